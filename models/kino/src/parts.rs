//! Models by name or path: the configurations of what is embedded, published, or on the disk.

use std::path::Path;

use checkpoint::{Checkpoint, Kind, Pipeline, identify};
use models::config::{AutoencoderKl, T5};
use models::nearest;
use models::published::{self, Architecture, PUBLISHED};
use pipeline::Transformer;

use crate::failure::{Failure, Outcome};
use crate::inspect::{Config, config_of};
use crate::source;

/// Configurations at hand; a pipeline has all three.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// The text encoder.
    pub t5: Option<T5>,
    /// The denoiser.
    pub transformer: Option<Transformer>,
    /// The autoencoder of frames.
    pub vae: Option<AutoencoderKl>,
}

/// The names of published architectures.
pub(crate) fn published_names() -> impl Iterator<Item = &'static str> {
    PUBLISHED.iter().map(|model| model.name)
}

impl Parts {
    /// The configurations of a model by name or path.
    pub(crate) fn find(name: &str) -> Outcome<Parts> {
        let mut parts = Parts::default();
        if name == source::EMBEDDED {
            let model = source::embedded()?;
            parts.t5 = Some(model.t5);
            parts.transformer = Some(model.transformer);
            parts.vae = Some(model.vae);
        } else if let Some(model) = published::find(name) {
            match model.architecture()? {
                Architecture::Stdit1(config) => {
                    parts.transformer = Some(Transformer::Stdit1(config));
                }
                Architecture::Stdit2(config) => {
                    parts.transformer = Some(Transformer::Stdit2(config));
                }
                Architecture::T5(config) => parts.t5 = Some(config),
                Architecture::AutoencoderKl(config) => parts.vae = Some(config),
            }
        } else if Pipeline::is_pipeline(name) {
            let pipeline = Pipeline::open(name)?;
            for component in ["text_encoder", "transformer", "vae"] {
                parts.read(pipeline.part(component)?)?;
            }
        } else if Path::new(name).exists() {
            parts.read(Path::new(name))?;
        } else {
            let known = || published_names().chain([source::EMBEDDED]);
            return Err(Failure::usage(format!(
                "{name}: no such file or folder, and no model of this name; did you mean {}? \
                 Expected a path, {}, or {}",
                nearest::nearest(name, known()),
                published_names().collect::<Vec<_>>().join(", "),
                source::EMBEDDED
            )));
        }
        Ok(parts)
    }

    /// Adds what a checkpoint is.
    fn read(&mut self, path: &Path) -> Outcome<()> {
        let checkpoint = Checkpoint::open(path)?;
        match config_of(&checkpoint)? {
            Config::Stdit(transformer) => self.transformer = Some(transformer),
            Config::T5(t5) => self.t5 = Some(t5),
            Config::Vae(vae) => self.vae = Some(vae),
            Config::Other => {
                let kind = match identify(&checkpoint).kind {
                    Kind::Unknown => "no known model".to_string(),
                    kind => format!("{kind}, which has no graph yet"),
                };
                let error = anyhow::anyhow!("{} is {kind}", path.display());
                return Err(Failure::Run(error));
            }
        }
        Ok(())
    }
}
