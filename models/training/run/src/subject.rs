//! What a run trains, a transformer or an autoencoder, where the two differ in types only.

use models::config::AutoencoderKl;
use models::vae::FrameBucket;
use runtime::{WeightSource, WeightStore};
use training::{
    Autoencoder, Batch, BucketId, Error, Initial, Machine, Objective as _, Options, Outcome, Param,
    PlannedStep, State, Subject, Trainer,
};

/// A trainer of either.
#[derive(Debug)]
pub(crate) enum AnyTrainer {
    Transformer(Trainer),
    Autoencoder(Trainer<Autoencoder>),
}

impl AnyTrainer {
    /// As [`Trainer::new`].
    pub(crate) fn new(
        subject: &Subject,
        options: Options,
        state: State,
        weights: WeightStore,
        machine: Machine,
    ) -> Result<AnyTrainer, Error> {
        Ok(match subject {
            Subject::Transformer(model) => {
                let trainer = Trainer::new(model.clone(), options, state, weights, machine)?;
                AnyTrainer::Transformer(trainer)
            }
            Subject::Autoencoder(model) => {
                let trainer = Trainer::new(model.clone(), options, state, weights, machine)?;
                AnyTrainer::Autoencoder(trainer)
            }
        })
    }

    /// As [`Trainer::add`].
    pub(crate) fn add(&mut self, step: PlannedStep) -> Result<BucketId, Error> {
        match self {
            AnyTrainer::Transformer(trainer) => trainer.add(step),
            AnyTrainer::Autoencoder(trainer) => trainer.add(step),
        }
    }

    /// As [`Trainer::update`].
    pub(crate) fn update(
        &mut self,
        batches: &[(BucketId, &Batch<'_>)],
        lr: f64,
    ) -> Result<Outcome, Error> {
        match self {
            AnyTrainer::Transformer(trainer) => trainer.update(batches, lr),
            AnyTrainer::Autoencoder(trainer) => trainer.update(batches, lr),
        }
    }

    /// As [`Trainer::state`].
    pub(crate) fn state(&self) -> &State {
        match self {
            AnyTrainer::Transformer(trainer) => trainer.state(),
            AnyTrainer::Autoencoder(trainer) => trainer.state(),
        }
    }
}

/// Every parameter of a step.
pub(crate) fn parameters(subject: &Subject, options: &Options) -> Result<Vec<Param>, Error> {
    match subject {
        Subject::Transformer(model) => model.parameters(options),
        Subject::Autoencoder(model) => model.parameters(options),
    }
}

/// The state before the first update.
pub(crate) fn first_state(
    subject: &Subject,
    options: &Options,
    weights: &dyn WeightSource,
) -> Result<State, Error> {
    match subject {
        Subject::Transformer(model) => State::new(model, options, weights),
        Subject::Autoencoder(model) => State::new(model, options, weights),
    }
}

/// Weights as upstream initializes them.
pub(crate) fn initial(subject: &Subject, options: &Options, seed: u64) -> Result<Initial, Error> {
    match subject {
        Subject::Transformer(model) => Initial::new(model, options, seed),
        Subject::Autoencoder(model) => Initial::new(model, options, seed),
    }
}

/// The autoencoder that latents are of: the one in training, or the pipeline's.
pub(crate) fn autoencoder<'a>(
    subject: &'a Subject,
    pipeline: &'a pipeline::Model,
) -> &'a AutoencoderKl {
    match subject {
        Subject::Transformer(_) => &pipeline.vae,
        Subject::Autoencoder(model) => &model.config,
    }
}

/// The bucket of an autoencoder: every frame of a batch's videos is an image.
pub(crate) fn images(
    dtype: ops::DType,
    [frames, height, width]: [usize; 3],
    rows: usize,
) -> FrameBucket {
    FrameBucket { dtype, frames: frames * rows, height, width }
}
