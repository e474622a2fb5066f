//! What can go wrong between a recipe and a trained model.

use std::io;
use std::path::{Path, PathBuf};

/// Why a step cannot be built, compiled or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option that no step can have. The caller's.
    #[error("training option `{name}`: {reason}")]
    Option {
        /// The option.
        name: &'static str,
        /// What was expected and found.
        reason: String,
    },
    /// A recipe that is no TOML, or that says what no run can be. Its writer's.
    #[error("recipe: {0}")]
    Recipe(String),
    /// The bucket is not one of training. The caller's.
    #[error("training bucket: {0}")]
    Bucket(String),
    /// A trained parameter has no influence on the loss. The caller's.
    #[error("parameter `{0}` does not change the loss: freeze it")]
    NoInfluence(String),
    /// A weight cannot be had, or has another shape. The checkpoint's.
    #[error("weight `{name}`: {reason}")]
    Weight {
        /// Checkpoint name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A file or folder of the run cannot be read or written. The system's.
    #[error("{}: {source}", path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is no snapshot of this training, or damaged. The caller's.
    #[error("snapshot {}: {reason}", path.display())]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The log of a run is missing, in the way, or broken. The caller's.
    #[error("run log {}: {reason}", path.display())]
    RunLog {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file is no adaptation, or not one of this model. The caller's.
    #[error("adaptation {origin}: {reason}")]
    Adapter {
        /// Where it is from.
        origin: String,
        /// What is wrong.
        reason: String,
    },
    /// The state is not that of this step. The caller's.
    #[error("training state: {0}")]
    State(String),
    /// Weights cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The model has no graph for the bucket.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// The noise schedule is none.
    #[error(transparent)]
    Schedule(#[from] diffusion::Error),
    /// An op does not fit its operands.
    #[error(transparent)]
    Op(#[from] ops::Error),
    /// The graph has no plan.
    #[error(transparent)]
    Compile(#[from] compiler::Error),
    /// The plan cannot be run.
    #[error(transparent)]
    Run(#[from] runtime::Error),
}

impl Error {
    /// An [`Error::File`] of the system's error at `path`.
    pub(crate) fn file(path: &Path) -> impl Fn(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::File { path: path.clone(), source }
    }

    /// An [`Error::Snapshot`].
    pub(crate) fn snapshot(path: &Path, reason: impl Into<String>) -> Error {
        Error::Snapshot { path: path.to_path_buf(), reason: reason.into() }
    }

    /// An [`Error::RunLog`].
    pub(crate) fn run_log(path: &Path, reason: impl Into<String>) -> Error {
        Error::RunLog { path: path.to_path_buf(), reason: reason.into() }
    }

    /// An [`Error::Adapter`].
    pub(crate) fn adapter(origin: String, reason: String) -> Error {
        Error::Adapter { origin, reason }
    }

    /// An [`Error::Option`].
    pub(crate) fn option(name: &'static str, reason: impl Into<String>) -> Error {
        Error::Option { name, reason: reason.into() }
    }
}
