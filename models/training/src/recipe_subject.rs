//! What a recipe trains: a transformer, with its text encoder or without, or an autoencoder; and what of a pipeline's
//! folder comes of it.

use models::config::T5;
use models::nearest::nearest;
use models::published::{self, Architecture, Published};
use models::vae::LATENT_SCALE;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::recipe::{LossKind, Recipe, fail};
use crate::step::trained;
use crate::transformer::text_parameters;
use crate::{Autoencoder, Error, Model, Objective as _, Options, Param, Text};

/// What is trained. Each has buckets and batches of its own, see [`Objective`](crate::Objective).
#[derive(Clone, PartialEq, Debug)]
pub enum Subject {
    /// A diffusion transformer, on latents and captions.
    Transformer(Model),
    /// An autoencoder, on images: every frame of a video is one.
    Autoencoder(Autoencoder),
}

/// A text encoder that is trained with the transformer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TextSection {
    /// A published architecture.
    pub architecture: String,
    /// Keys of its `config.json` that differ.
    #[serde(default)]
    pub config: toml::Table,
    /// What its learning rate is to the transformer's.
    #[serde(default = "same_rate")]
    pub lr_factor: f64,
}

pub(crate) fn same_rate() -> f64 {
    1.0
}

/// A folder of a pipeline that training makes.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelPart {
    /// Its name in the pipeline's folder.
    pub folder: &'static str,
    /// The name of its weights.
    pub file: &'static str,
    /// Its `config.json`.
    pub config: Json,
    /// Its parameters, by the names that weights are stored under.
    pub params: Vec<Param>,
}

/// A published architecture's `config.json` with the keys that differ; `place` is where a recipe has them.
fn with_keys(published: &Published, keys: &toml::Table, place: &str) -> Result<Json, Error> {
    let mut config = published.config_json();
    for (key, value) in keys {
        let value = serde_json::to_value(value)
            .map_err(|error| Error::Recipe(format!("{place}.{key}: {error}")))?;
        config[key.as_str()] = value;
    }
    Ok(config)
}

/// The published architecture called `name`, one of those that `is_meant` says are meant.
fn find(
    name: &str,
    place: &str,
    is_meant: fn(&Architecture) -> bool,
) -> Result<&'static Published, Error> {
    let known = || {
        let meant =
            move |model: &&Published| model.architecture().is_ok_and(|found| is_meant(&found));
        published::PUBLISHED.iter().filter(meant).map(|model| model.name)
    };
    match published::find(name) {
        Some(published) if known().any(|known| known == name) => Ok(published),
        Some(_) => {
            let known: Vec<&str> = known().collect();
            fail(format!(
                "{place} `{name}` cannot be trained; expected one of {}",
                known.join(", ")
            ))
        }
        None => {
            let meant = nearest(name, known());
            fail(format!("{place} `{name}` is unknown; did you mean `{meant}`?"))
        }
    }
}

fn is_text(architecture: &Architecture) -> bool {
    matches!(architecture, Architecture::T5(_))
}

impl TextSection {
    /// Its `config.json`.
    fn config_json(&self) -> Result<Json, Error> {
        let published = find(&self.architecture, "text.architecture", is_text)?;
        with_keys(published, &self.config, "text.config")
    }

    /// What of a step's options it decides.
    pub(crate) fn text(&self) -> Result<Text, Error> {
        let config = T5::from_json(&self.config_json()?)?;
        Ok(Text::Encoder { config, lr_factor: self.lr_factor })
    }
}

impl Recipe {
    /// The model's `config.json`: the published one with the keys that differ.
    ///
    /// # Errors
    /// Refuses an unknown architecture, and values that JSON has not.
    pub fn config_json(&self) -> Result<Json, Error> {
        with_keys(self.published()?, &self.model.config, "model.config")
    }

    fn published(&self) -> Result<&'static Published, Error> {
        find(&self.model.architecture, "model.architecture", |found| !is_text(found))
    }

    /// What is trained.
    ///
    /// # Errors
    /// Refuses names that are no model's, keys that its `config.json` cannot have, and a loss that is not of it.
    pub fn subject(&self) -> Result<Subject, Error> {
        let loss = &self.loss;
        let is_reconstruction = loss.kind == LossKind::Reconstruction;
        let subject = match self.published()?.parse(&self.config_json()?)? {
            Architecture::Stdit1(config) if !is_reconstruction => {
                Subject::Transformer(Model::Stdit1(config))
            }
            Architecture::Stdit2(config) if !is_reconstruction => {
                Subject::Transformer(Model::Stdit2(config))
            }
            Architecture::AutoencoderKl(config) if is_reconstruction => {
                let count = |number: Option<f64>| number.unwrap_or_default();
                let (l1, mse, kl) = (count(loss.l1), count(loss.mse), count(loss.kl));
                let initial_std = loss.initial_std.unwrap_or(1.0);
                let salient = loss.salient.unwrap_or(1.0);
                Subject::Autoencoder(Autoencoder { config, l1, mse, kl, initial_std, salient })
            }
            Architecture::Stdit1(_)
            | Architecture::Stdit2(_)
            | Architecture::AutoencoderKl(_)
            | Architecture::T5(_) => {
                let expected =
                    if is_reconstruction { "Iddpm or IddpmSpeed" } else { "Reconstruction" };
                return fail(format!(
                    "loss.kind {:?} is not of model.architecture `{}`; expected {expected}",
                    loss.kind, self.model.architecture
                ));
            }
        };
        Ok(subject)
    }

    /// The transformer.
    ///
    /// # Errors
    /// As [`Recipe::subject`]; refuses a recipe of an autoencoder.
    pub fn model(&self) -> Result<Model, Error> {
        match self.subject()? {
            Subject::Transformer(model) => Ok(model),
            Subject::Autoencoder(_) => fail(format!(
                "model.architecture `{}` is an autoencoder, expected a transformer",
                self.model.architecture
            )),
        }
    }

    /// The folders of a pipeline whose weights the run trains, with what each holds.
    ///
    /// # Errors
    /// As [`Recipe::subject`].
    pub fn parts(&self) -> Result<Vec<ModelPart>, Error> {
        let mut config = self.config_json()?;
        Ok(match self.subject()? {
            Subject::Transformer(model) => {
                let (folder, file) = ("transformer", "model.safetensors");
                let params = model.own_parameters()?;
                let mut parts = vec![ModelPart { folder, file, config, params }];
                if let Some(section) = &self.text {
                    let config = section.config_json()?;
                    let params = text_parameters(&T5::from_json(&config)?)?;
                    parts.push(ModelPart { folder: "text_encoder", file, config, params });
                }
                parts
            }
            Subject::Autoencoder(autoencoder) => {
                config["scaling_factor"] = LATENT_SCALE.into();
                let (folder, file) = ("vae", "diffusion_pytorch_model.safetensors");
                let params = autoencoder.parameters(&Options::default())?;
                vec![ModelPart { folder, file, config, params }]
            }
        })
    }

    /// Fails for sections that go with another subject.
    pub(crate) fn check_subject(&self) -> Result<(), Error> {
        match self.subject()? {
            Subject::Transformer(_) if self.text.is_some() && self.lora.is_some() => fail(
                "lora adapts the transformer alone: without `text` the encoder stays as it is"
                    .into(),
            ),
            // Whether all targets are there.
            Subject::Transformer(model) if self.lora.is_some() => {
                trained(&model, &self.options()?).map(drop)
            }
            // Whether the two fit together; by itself a configuration that exists has a graph.
            Subject::Transformer(model) if self.text.is_some() => {
                model.parameters(&self.options()?).map(drop)
            }
            Subject::Transformer(_) => Ok(()),
            Subject::Autoencoder(_) if self.lora.is_some() => fail(format!(
                "lora adapts transformers, model.architecture `{}` is an autoencoder: leave `lora` out",
                self.model.architecture
            )),
            Subject::Autoencoder(autoencoder) => {
                for (key, is_given) in [
                    ("masks", !self.masks.is_empty()),
                    ("text", self.text.is_some()),
                    ("data.vae_micro_batch", self.data.vae_micro_batch.is_some()),
                ] {
                    if is_given {
                        return fail(format!("{key} has no effect on an autoencoder"));
                    }
                }
                autoencoder.check()
            }
        }
    }
}
