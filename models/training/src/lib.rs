//! Training: one step (noising, forward, loss, backward, clipping, `AdamW`, EMA) is one graph, and the host gives what
//! changes from step to step.
//!
//! [`training_step`] builds the graph of a bucket for an [`Objective`], which appends model and loss: a [`Model`], that is a
//! diffusion transformer with its noise process ([`Iddpm`]), alone or with the text encoder that it reads ([`Text`]); or an
//! [`Autoencoder`]. The rest are pure functions that append to a [`ops::Builder`]: [`append_global_norm`] and
//! [`append_clip_factor`], [`AdamW`], [`append_ema`]. Everything that is learned is f32 *state* (masters,
//! moments, EMA): inputs of the graph whose new values are outputs, paired by [`Carry`]. What is computed
//! with in another type is cast where it is used. [`Trainer`] compiles steps and keeps the state, in one place: steps
//! write new values over old ones, and weights in other types are cast when masters change (`stored.rs`). What there is
//! before the first step is a checkpoint, or [`Initial`].
//!
//! [`Snapshots`] keeps states on disk; a run that goes on from one is the run that never stopped, bit for bit.
//! What [`Lora`] trains is an [`Adapter`] in a file, read, and merged into a checkpoint.
//! A [`Recipe`] is a TOML file with every number of a run; those of upstream's releases and of the embedded model are
//! [`PUBLISHED`]. [`run_log`] is what a run tells of itself while it goes on.
//!
//! Reference numbers come from upstream's own training loop; `tests/tests/golden_training.rs` compares.

mod adamw;
mod adapter;
mod adapter_peft;
mod autoencoder;
mod clip;
mod ema;
mod error;
mod iddpm;
mod initial;
mod latents;
mod lora;
mod lr_schedule;
mod means;
mod model;
mod objective;
mod options;
mod planned;
mod program;
mod published;
pub mod recipe;
mod recipe_keys;
mod recipe_loss;
mod recipe_subject;
mod recipe_validation;
pub mod run_log;
mod snapshots;
mod state;
mod step;
mod stored;
mod timesteps;
mod trainable;
mod trainer;
mod transformer;

pub use adamw::{AdamW, Slot};
pub use adapter::{Adapter, Factors};
pub use adapter_peft::{PEFT_CONFIG, PEFT_WEIGHTS};
pub use autoencoder::Autoencoder;
pub use clip::{append_clip_factor, append_global_norm};
pub use ema::append_ema;
pub use error::Error;
pub use iddpm::{Iddpm, Losses, Sample, Weighting};
pub use initial::{Distribution, Initial};
pub use latents::LatentStatistics;
pub use lora::Lora;
pub use lr_schedule::LrSchedule;
pub use model::Model;
pub use objective::{Objective, Operands, Param};
pub use options::{Options, Text};
pub use planned::PlannedStep;
pub use program::{Carry, Program};
pub use published::{PUBLISHED, find};
pub use recipe::{ModelPart, Recipe, Subject};
pub use recipe_validation::ValidationSection;
pub use snapshots::{Keep, Snapshots};
pub use state::{State, StateKind};
pub use step::{accumulation_step, gradients, training_step, update_step};
pub use timesteps::TimestepSampler;
pub use trainable::Freeze;
pub use trainer::{Batch, BucketId, Machine, Outcome, Trainer};
