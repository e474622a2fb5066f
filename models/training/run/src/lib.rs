//! A training run from a recipe to a model: plan, cached features, updates, snapshots, validations, and going on
//! after whatever stopped it.
//!
//! [`Run::new`] reads the table and plans every step ([`RunPlan`]) before a weight is read. [`Run::train`] encodes
//! what an epoch needs into a cache on disk (`encode.rs`), makes batches ahead of the updates (`batches.rs`), and
//! keeps state, log, samples and model in a [`RunFolder`].
//!
//! Invariants: what is drawn is a function of seed, epoch and place (`draws.rs`), so that a run which was stopped
//! anywhere, also by a kill, and goes on has the same losses, weights and snapshots as one that never stopped,
//! bit for bit; one process trains in a folder; every file appears whole or not at all. This crate prints nothing.
//!
//! Start reading at `run.rs`, then `progress.rs`.

mod batches;
mod draws;
mod encode;
mod error;
mod export;
mod features;
mod folder;
mod latents;
mod plan;
mod progress;
mod request;
mod run;
mod samples;
mod start;
mod subject;
mod validate;

pub use error::{Error, Result};
pub use export::PipelineFiles;
pub use folder::{Identity, Record, RunFolder};
pub use plan::{PlannedBucket, RunPlan};
pub use request::{Ended, Made, Notice, Pipeline, Place, Request, Watch};
pub use run::Run;
pub use start::Start;
