//! What can go wrong when a right plan meets the world.

use thiserror::Error;

/// Why a plan could not be bound or run.
#[derive(Debug, Error)]
pub enum Error {
    /// The weights lack a tensor that the plan reads. The caller's checkpoint.
    #[error("weight `{0}` is missing")]
    MissingWeight(String),
    /// A weight has another shape or type than the plan reads. The caller's checkpoint.
    #[error("weight `{name}` is {found}, expected {expected}")]
    WeightType {
        /// Checkpoint name.
        name: String,
        /// What the source has.
        found: String,
        /// What the plan reads.
        expected: String,
    },
    /// The source of weights failed. The world's.
    #[error("weight `{name}`: {reason}")]
    Source {
        /// Checkpoint name.
        name: String,
        /// What the source says.
        reason: String,
    },
    /// The system has not enough memory. The world's.
    #[error(
        "{bytes} bytes for the {what} cannot be allocated: use a smaller size, fewer frames or a smaller batch"
    )]
    OutOfMemory {
        /// What the memory is for.
        what: &'static str,
        /// How much.
        bytes: usize,
    },
    /// Weights and arena cannot be held to a limit, not even streamed. The caller's.
    #[error(
        "{needed} bytes are needed with streamed weights, {memory} are allowed: allow {needed}, or \
         use a smaller size"
    )]
    TooLittleMemory {
        /// Bytes allowed.
        memory: usize,
        /// Bytes that work.
        needed: usize,
    },
    /// The thread that loads weights cannot be started. The world's.
    #[error("the loader of weights cannot start: {0}")]
    Loader(String),
    /// An input is missing, unknown, or of another size. The caller's.
    #[error("input `{name}`: {reason}")]
    Input {
        /// The input's name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A device failed, or cannot run the plan. The world's.
    #[error("{0}")]
    Device(String),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}
