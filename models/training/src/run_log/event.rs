//! What can happen in a run, as the log has it: one JSON object a line, its kind under `event`.
//!
//! Numbers are plain: bytes, seconds, FLOPs, updates. A step is always the number of updates made so far, so that
//! the first update is step 1. Paths are below the run's folder, with `/`, unless a sample's own table says otherwise.

use serde::{Deserialize, Serialize};

/// A line of the log: an event and when it was written.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Seconds since 1970, UTC.
    pub time: f64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Something that happened in a run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The run starts, or goes on from a snapshot.
    Start(Start),
    /// An update was made. A run may log some of its updates only.
    Step(Step),
    /// A sample could not be read and another took its place.
    Replaced(Replaced),
    /// A video was sampled with the weights of the moment.
    Validation(Validation),
    /// The state is on disk.
    Snapshot(Snapshot),
    /// The run ends.
    Stop(Stop),
}

/// The run starts, or goes on from a snapshot; then `step` is not 0.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Start {
    /// Updates that were made before.
    pub step: u64,
    /// Version of the program.
    pub version: String,
    /// Name of the recipe.
    pub recipe: String,
    /// The recipe itself, TOML.
    pub recipe_text: String,
    /// Name of the model.
    pub model: String,
    /// Elements of all parameters.
    pub params: u64,
    /// Elements of the parameters that are trained, factors of an adaptation included.
    pub trained_params: u64,
    /// What a step of each bucket takes, as planned.
    pub buckets: Vec<BucketPlan>,
    /// Updates after which the run ends.
    pub steps: u64,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Threads.
    pub threads: usize,
    /// GFLOP/s that the machine's multiply-adds can reach with these threads and this type, if it was measured.
    pub limit_gflops: Option<f64>,
}

/// What a step of one bucket takes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BucketPlan {
    /// Frames, height, width and rows, as in [`Step::buckets`].
    pub name: String,
    /// Most bytes that are held at once: arena, weights and state.
    pub peak_bytes: u64,
    /// FLOPs of a step, those that make values again included.
    pub flops: u64,
    /// FLOPs of `flops` that make values again instead of keeping them.
    pub recomputed_flops: u64,
}

/// An update.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Updates so far, this one included.
    pub step: u64,
    /// The epoch that its batches are of, from 0.
    pub epoch: u64,
    /// The bucket of each batch of the update, by [`BucketPlan::name`].
    pub buckets: Vec<String>,
    /// Mean loss over all rows.
    #[serde(with = "real")]
    pub loss: f32,
    /// Learning rate.
    pub lr: f64,
    /// Global norm of the gradients before clipping.
    #[serde(with = "real")]
    pub grad_norm: f32,
    /// Videos and images.
    pub samples: u64,
    /// Tokens that the transformer saw.
    pub tokens: u64,
    /// Wall-clock time since the update before, waiting for data included.
    pub seconds: f64,
    /// FLOPs as planned, those that make values again included.
    pub flops: u64,
    /// Seconds of `seconds` in which there was no batch to work on.
    pub data_wait_seconds: f64,
    /// Resident memory of the process afterwards.
    pub rss_bytes: u64,
}

/// A sample could not be read and another took its place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Replaced {
    /// Updates so far.
    pub step: u64,
    /// The sample, as its table names it.
    pub path: String,
    /// What took its place.
    pub by: String,
    /// Why it could not be read.
    pub reason: String,
}

/// A video was sampled with the weights of the moment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Validation {
    /// Updates so far.
    pub step: u64,
    /// Its prompt.
    pub prompt: String,
    /// The video.
    pub file: String,
    /// Its frames side by side, as one PNG.
    pub frames_png: Option<String>,
}

/// The state is on disk.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Updates so far.
    pub step: u64,
    /// The file.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// Time that it took to write.
    pub seconds: f64,
}

/// The run ends. A run that was killed has no such event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stop {
    /// Updates so far.
    pub step: u64,
    /// Why.
    pub reason: StopReason,
}

/// Why a run ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// All updates were made.
    Finished,
    /// The user stopped it.
    Interrupted,
    /// It could not go on.
    Failed {
        /// Why.
        message: String,
    },
}

impl Event {
    /// Updates so far.
    pub fn step(&self) -> u64 {
        match self {
            Event::Start(start) => start.step,
            Event::Step(step) => step.step,
            Event::Replaced(replaced) => replaced.step,
            Event::Validation(validation) => validation.step,
            Event::Snapshot(snapshot) => snapshot.step,
            Event::Stop(stop) => stop.step,
        }
    }
}

impl Step {
    /// How many of `count` a second, if time passed.
    pub fn per_second(&self, count: u64) -> Option<f64> {
        (self.seconds > 0.0).then(|| count as f64 / self.seconds)
    }

    /// The share of a machine's `limit_gflops` that the update reached, from 0.
    pub fn share_of(&self, limit_gflops: f64) -> Option<f64> {
        (limit_gflops > 0.0).then_some(self.per_second(self.flops)? / (limit_gflops * 1e9))
    }
}

/// JSON has neither NaN nor infinities, a run that diverges has both: they are words.
mod real {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Real {
        Number(f32),
        Word(String),
    }

    // The reference is what serde asks for.
    pub(super) fn serialize<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
        if value.is_finite() {
            serializer.serialize_f32(*value)
        } else {
            serializer.collect_str(value)
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
        match Real::deserialize(deserializer)? {
            Real::Number(value) => Ok(value),
            Real::Word(word) => match word.parse::<f32>() {
                Ok(value) if !value.is_finite() => Ok(value),
                _ => {
                    Err(D::Error::custom(format!("`{word}`, expected a number, NaN, inf or -inf")))
                }
            },
        }
    }
}
