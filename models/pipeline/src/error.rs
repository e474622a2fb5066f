//! What can go wrong between a checkpoint, a request, and frames.

use thiserror::Error;

/// Why a model could not be loaded or a request not be sampled.
#[derive(Debug, Error)]
pub enum Error {
    /// A checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// A checkpoint's tensors are not those of the model.
    #[error(transparent)]
    Misfit(#[from] Box<checkpoint::names::Misfit>),
    /// A part of the model has a configuration that cannot be.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// A tokenizer cannot be read or a prompt not be encoded.
    #[error(transparent)]
    Text(#[from] text::Error),
    /// The sampler's settings cannot be.
    #[error(transparent)]
    Diffusion(#[from] diffusion::Error),
    /// A graph cannot be compiled. Ours.
    #[error(transparent)]
    Compiler(#[from] compiler::Error),
    /// A graph cannot be built. Ours.
    #[error(transparent)]
    Graph(#[from] ops::Error),
    /// A plan cannot be bound or run.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// A part of the model is of a kind that does not serve its place.
    #[error("{path} is {found}, expected {expected}")]
    Kind {
        /// The checkpoint.
        path: String,
        /// What it is.
        found: String,
        /// What is needed there.
        expected: &'static str,
    },
    /// A part of the model is not given.
    #[error("no {part}: give {flag}, or a pipeline folder that has one")]
    NoPart {
        /// What is missing.
        part: &'static str,
        /// How to give it.
        flag: &'static str,
    },
    /// The request does not fit the model.
    #[error("{what}: {reason}")]
    Request {
        /// The setting.
        what: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
}

impl Error {
    /// An [`Error::Request`] about `what`.
    pub(crate) fn request(what: &'static str, reason: impl Into<String>) -> Error {
        Error::Request { what, reason: reason.into() }
    }

    /// Whether the user stopped the run.
    pub fn is_interrupt(&self) -> bool {
        matches!(self, Error::Runtime(runtime::Error::Interrupted))
    }
}
