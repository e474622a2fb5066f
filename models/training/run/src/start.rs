//! The weights that training starts from, and those that it leaves as they are.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use checkpoint::Checkpoint;
use checkpoint::names::Leniency;
use models::{t5, vae};
use ops::TensorType;
use pipeline::{FittedWeights, Part};
use runtime::WeightSource;
use training::{Initial, Options, Subject, Text};
use xxhash_rust::xxh3::Xxh3;

use crate::{Error, Result, subject};

/// Where the first weights come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Start {
    /// The pipeline's part that is trained.
    Pipeline,
    /// Nowhere: as upstream initializes them, drawn with the run's seed.
    Random,
    /// A checkpoint of what is trained.
    Checkpoint(PathBuf),
}

impl Start {
    /// As [`Start::parse`] reads it.
    pub fn text(&self) -> String {
        match self {
            Start::Pipeline => "model".into(),
            Start::Random => "random".into(),
            Start::Checkpoint(path) => path.display().to_string(),
        }
    }

    /// `model`, `random`, or a path.
    pub fn parse(text: &str) -> Start {
        match text {
            "model" => Start::Pipeline,
            "random" => Start::Random,
            path => Start::Checkpoint(path.into()),
        }
    }
}

/// Every weight of a model by its name: of a checkpoint where there is one that has it, else initialized.
#[derive(Clone, Debug)]
pub(crate) struct StartWeights(Arc<Weights>);

#[derive(Debug)]
struct Weights {
    /// Those of checkpoints: no two have a name in common.
    fitted: Vec<FittedWeights>,
    initial: Initial,
}

impl StartWeights {
    /// Weights of `start` for a step of `subject` with `options`; `pipeline` has those of [`Start::Pipeline`]. And
    /// what tells them from others.
    ///
    /// # Errors
    /// [`Error::Start`] for weights of another model, and what cannot be read.
    pub(crate) fn new(
        start: &Start,
        pipeline: &pipeline::Model,
        (subject, options, seed): (&Subject, &Options, u64),
    ) -> Result<(StartWeights, String)> {
        let given = |own: &Part| -> Result<Option<Arc<Checkpoint>>> {
            Ok(match start {
                Start::Pipeline => Some(own.shared_checkpoint()),
                Start::Random => None,
                Start::Checkpoint(path) => Some(Arc::new(Checkpoint::open(path)?)),
            })
        };
        let mut parts = match subject {
            Subject::Transformer(model) => vec![(given(&pipeline.denoiser)?, model.params()?)],
            Subject::Autoencoder(model) => {
                vec![(given(&pipeline.autoencoder)?, vae::params(&model.config)?)]
            }
        };
        if let Text::Encoder { config, .. } = &options.text {
            let own = (*start != Start::Random).then(|| pipeline.text_encoder.shared_checkpoint());
            parts.push((own, t5::params(config)?));
        }
        let (mut fitted, mut name) = (Vec::new(), format!("random {seed}"));
        for (checkpoint, params) in parts {
            let Some(checkpoint) = checkpoint else { continue };
            name = format!("{name}, {}", identity(&checkpoint)?);
            // Whole parts may be new, as the temporal attention of a start from an image model; an adaptation is of
            // weights that somebody else has too.
            let leniency = Leniency { start: options.lora.is_none(), subset: false };
            let weights = FittedWeights::new(checkpoint, &params, leniency);
            fitted.push(weights.map_err(|error| Error::Start(Box::new(error)))?);
        }
        let initial = subject::initial(subject, options, seed)?;
        Ok((StartWeights(Arc::new(Weights { fitted, initial })), name))
    }
}

impl WeightSource for StartWeights {
    fn tensor(
        &self,
        name: &str,
    ) -> std::result::Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        for fitted in &self.0.fitted {
            if let Some(found) = fitted.tensor(name)? {
                return Ok(Some(found));
            }
        }
        self.0.initial.tensor(name)
    }

    fn release(&self, name: &str) {
        self.0.fitted.iter().for_each(|fitted| fitted.release(name));
    }

    fn prefetch(&self, name: &str) {
        self.0.fitted.iter().for_each(|fitted| fitted.prefetch(name));
    }
}

/// A hash of all tensors of a checkpoint.
pub(crate) fn identity(checkpoint: &Checkpoint) -> Result<String> {
    let mut hash = Xxh3::new();
    for info in checkpoint.tensors() {
        let view = checkpoint.tensor(info.name)?;
        let head = format!("{} {} {:?}", info.name, view.dtype, view.shape);
        hash.update(&(head.len() as u64).to_le_bytes());
        hash.update(head.as_bytes());
        hash.update(&view.bytes);
        drop(view);
        checkpoint.release(info.name);
    }
    Ok(format!("{:032x}", hash.digest128()))
}
