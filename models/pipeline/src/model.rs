//! A loaded model: tokenizer, text encoder, transformer, VAE.

use std::fs;
use std::path::{Path, PathBuf};

use checkpoint::{Checkpoint, Kind, identify};
use models::config::{AutoencoderKl, Stdit, Stdit1, Stdit2, T5};
use models::{stdit1, stdit2, t5, vae};
use serde_json::Value;
use text::Tokenizer;

use crate::Error;
use crate::source::Part;

/// Where the parts of a model are. A pipeline folder has all; a part given by itself wins.
#[derive(Clone, Default, Debug)]
pub struct Paths {
    /// A pipeline folder, or a transformer's checkpoint.
    pub model: Option<PathBuf>,
    /// A text encoder's checkpoint.
    pub text_encoder: Option<PathBuf>,
    /// `tokenizer.json`, `spiece.model`, or a folder with one.
    pub tokenizer: Option<PathBuf>,
    /// A VAE's checkpoint.
    pub vae: Option<PathBuf>,
}

/// The transformer's configuration.
#[derive(Clone, PartialEq, Debug)]
pub enum Transformer {
    /// Open-Sora 1.0.
    Stdit1(Stdit1),
    /// Open-Sora 1.1.
    Stdit2(Stdit2),
}

impl Transformer {
    /// What all have.
    pub fn common(&self) -> &Stdit {
        match self {
            Transformer::Stdit1(config) => &config.common,
            Transformer::Stdit2(config) => &config.common,
        }
    }

    /// Upstream's class name.
    pub fn name(&self) -> &'static str {
        match self {
            Transformer::Stdit1(_) => "STDiT",
            Transformer::Stdit2(_) => "STDiT2",
        }
    }
}

/// Everything that sampling needs of a checkpoint.
#[derive(Debug)]
pub struct Model {
    /// Prints in the plan and in the output's metadata.
    pub name: String,
    /// Text to token ids.
    pub tokenizer: Tokenizer,
    /// The text encoder's configuration.
    pub t5: T5,
    /// Its weights.
    pub text_encoder: Part,
    /// The transformer's configuration.
    pub transformer: Transformer,
    /// Its weights.
    pub denoiser: Part,
    /// The VAE's configuration.
    pub vae: AutoencoderKl,
    /// Its weights.
    pub autoencoder: Part,
    /// `sampling` and `scheduler` of `model_index.json`: the settings a model is meant for.
    pub defaults: Value,
}

/// The bytes or files of a model before they are fitted together.
pub(crate) struct Pieces {
    pub(crate) name: String,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) text_encoder: Checkpoint,
    pub(crate) transformer: Checkpoint,
    pub(crate) vae: Checkpoint,
    pub(crate) defaults: Value,
}

impl Model {
    /// Loads a model from files. Weights are mapped, not read.
    ///
    /// # Errors
    /// Says which part is missing, unreadable, or does not fit.
    pub fn open(paths: &Paths) -> Result<Model, Error> {
        let pipeline = match &paths.model {
            Some(path) if checkpoint::Pipeline::is_pipeline(path) => {
                Some(checkpoint::Pipeline::open(path)?)
            }
            _ => None,
        };
        let part = |own: &Option<PathBuf>, name: &str| -> Result<Option<PathBuf>, Error> {
            match (own, &pipeline) {
                (Some(path), _) => Ok(Some(path.clone())),
                (None, Some(pipeline)) => Ok(Some(pipeline.part(name)?.to_path_buf())),
                (None, None) => Ok(None),
            }
        };
        let no_part = |part, flag| Error::NoPart { part, flag };
        let transformer = match (&pipeline, &paths.model) {
            (Some(pipeline), _) => pipeline.part("transformer")?.to_path_buf(),
            (None, Some(path)) => path.clone(),
            (None, None) => return Err(no_part("transformer", "--ckpt-path")),
        };
        let text_encoder = part(&paths.text_encoder, "text_encoder")?
            .ok_or_else(|| no_part("text encoder", "--text-encoder"))?;
        let vae = part(&paths.vae, "vae")?.ok_or_else(|| no_part("VAE", "--vae"))?;
        // A T5 folder has its tokenizer beside the weights.
        let tokenizer =
            part(&paths.tokenizer, "tokenizer")?.unwrap_or_else(|| text_encoder.clone());
        let name = paths.model.as_ref().and_then(|path| path.file_name());
        Model::assemble(Pieces {
            name: name.map_or("model".into(), |name| name.to_string_lossy().into_owned()),
            tokenizer: open_tokenizer(&tokenizer)?,
            text_encoder: Checkpoint::open(&text_encoder)?,
            transformer: Checkpoint::open(&transformer)?,
            vae: Checkpoint::open(&vae)?,
            defaults: pipeline.map_or(Value::Null, |pipeline| pipeline.model_index),
        })
    }

    /// A model whose files are in memory, as a program embeds them: `model_index.json`,
    /// `tokenizer.json`, and for text encoder, transformer and VAE `config.json` with safetensors.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_bytes(
        name: &str,
        model_index: &[u8],
        tokenizer: &[u8],
        parts: [(&[u8], &'static [u8]); 3],
    ) -> Result<Model, Error> {
        let json = |bytes: &[u8], what: &'static str| -> Result<Value, Error> {
            serde_json::from_slice(bytes).map_err(|error| Error::request(what, error.to_string()))
        };
        let [text_encoder, transformer, vae] = parts.map(|(config, weights)| {
            let config = json(config, "config.json")?;
            Ok::<_, Error>(Checkpoint::from_safetensors_bytes(weights)?.with_config(config))
        });
        Model::assemble(Pieces {
            name: name.into(),
            tokenizer: Tokenizer::from_tokenizer_json(tokenizer)?,
            text_encoder: text_encoder?,
            transformer: transformer?,
            vae: vae?,
            defaults: json(model_index, "model_index.json")?,
        })
    }

    fn assemble(pieces: Pieces) -> Result<Model, Error> {
        let Pieces { name, tokenizer, text_encoder, transformer, vae, defaults } = pieces;
        let t5 = match config_of(&text_encoder, &[Kind::T5Encoder], "a T5 encoder")? {
            (_, Some(config)) => T5::from_json(config)?,
            (_, None) => T5::from_shapes(&shapes(&text_encoder))?,
        };
        let config = match config_of(
            &transformer,
            &[Kind::StDit1, Kind::StDit2],
            "an STDiT-1 or STDiT-2",
        )? {
            (Kind::StDit1, Some(config)) => Transformer::Stdit1(Stdit1::from_json(config)?),
            (Kind::StDit1, None) => Transformer::Stdit1(stdit1_from_tensors(&transformer)?),
            (_, Some(config)) => Transformer::Stdit2(Stdit2::from_json(config)?),
            (_, None) => Transformer::Stdit2(Stdit2::from_shapes(&shapes(&transformer))?),
        };
        let autoencoder = match config_of(&vae, &[Kind::AutoencoderKl], "an AutoencoderKL")? {
            (_, Some(config)) => AutoencoderKl::from_json(config)?,
            (_, None) => AutoencoderKl::from_shapes(&shapes(&vae))?,
        };
        let params = match &config {
            Transformer::Stdit1(config) => stdit1::params(config)?,
            Transformer::Stdit2(config) => stdit2::params(config)?,
        };
        if config.common().caption_channels != t5.d_model {
            let reason = format!(
                "its captions have {} channels, the text encoder gives {}",
                config.common().caption_channels,
                t5.d_model
            );
            return Err(Error::request("transformer", reason));
        }
        Ok(Model {
            name,
            tokenizer,
            text_encoder: Part::new(text_encoder, &t5::params(&t5)?)?,
            t5,
            denoiser: Part::new(transformer, &params)?,
            transformer: config,
            autoencoder: Part::new(vae, &vae::params(&autoencoder)?)?,
            vae: autoencoder,
            defaults,
        })
    }

    /// Elements of all its tensors.
    pub fn n_parameters(&self) -> usize {
        let parts = [&self.text_encoder, &self.denoiser, &self.autoencoder];
        parts
            .iter()
            .flat_map(|part| part.checkpoint().tensors())
            .map(|info| info.n_elements())
            .sum()
    }

    /// The setting `key` that the model is meant for, below `group` of `model_index.json`.
    pub fn default(&self, group: &str, key: &str) -> Option<f64> {
        self.defaults.get(group)?.get(key)?.as_f64()
    }
}

/// The checkpoint's kind, which must be one of `kinds`, and its `config.json` if it has one.
fn config_of<'c>(
    checkpoint: &'c Checkpoint,
    kinds: &[Kind],
    expected: &'static str,
) -> Result<(Kind, Option<&'c Value>), Error> {
    let identity = identify(checkpoint);
    if !kinds.contains(&identity.kind) {
        let path = checkpoint.path().map_or("the model".into(), |path| path.display().to_string());
        return Err(Error::Kind { path, found: identity.kind.to_string(), expected });
    }
    Ok((identity.kind, checkpoint.config()))
}

/// STDiT-1 of a bare file. Its position tables are recomputed, but their lengths tell which of the
/// published sizes it was trained at, and so the scales, which no other tensor tells.
fn stdit1_from_tensors(checkpoint: &Checkpoint) -> Result<Stdit1, Error> {
    let mut config = Stdit1::from_shapes(&shapes(checkpoint))?;
    let rows = |name: &str| checkpoint.info(name)?.shape.get(1).copied();
    // 256x256 pixels are 16x16 tokens.
    if rows("pos_embed") == Some(256) {
        config.space_scale = 0.5;
    }
    if rows("pos_embed_temporal") == Some(64) {
        config.time_scale = 2.0 / 3.0;
    }
    Ok(config)
}

fn shapes(checkpoint: &Checkpoint) -> Vec<(String, Vec<usize>)> {
    checkpoint.tensors().map(|info| (info.name.to_string(), info.shape.to_vec())).collect()
}

/// Reads `tokenizer.json` or `spiece.model`, given itself or by its folder.
fn open_tokenizer(path: &Path) -> Result<Tokenizer, Error> {
    let file = if path.is_dir() {
        ["tokenizer.json", "spiece.model"]
            .map(|name| path.join(name))
            .into_iter()
            .find(|p| p.is_file())
    } else {
        Some(path.to_path_buf())
    };
    let missing = |reason: String| Error::request("tokenizer", reason);
    let file = file.ok_or_else(|| {
        missing(format!(
            "{} has neither tokenizer.json nor spiece.model; give --tokenizer",
            path.display()
        ))
    })?;
    let bytes = fs::read(&file).map_err(|error| missing(format!("{}: {error}", file.display())))?;
    if file.extension().is_some_and(|extension| extension == "json") {
        Ok(Tokenizer::from_tokenizer_json(&bytes)?)
    } else {
        Ok(Tokenizer::from_spiece(&bytes)?)
    }
}
