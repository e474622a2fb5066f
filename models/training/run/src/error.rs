//! What can go wrong between a recipe and a trained model.

use std::io;
use std::path::{Path, PathBuf};

/// Why a run cannot begin, or ended before its last update.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request cannot be. The caller's.
    #[error("{0}")]
    Request(String),
    /// The steps do not fit the memory that is allowed. The caller's.
    #[error(
        "training needs {smallest} bytes ({state} for weights, moments and averages, {steps} for steps), \
         {memory} are allowed: allow {smallest}, or use smaller batches, fewer frames or fewer buckets"
    )]
    Budget {
        /// Bytes allowed.
        memory: usize,
        /// Bytes that work.
        smallest: usize,
        /// Of those, what is trained, and frozen weights.
        state: usize,
        /// Of those, arenas of all steps.
        steps: usize,
    },
    /// A folder is not that of a run, is in use, or is that of another run.
    #[error("{}: {reason}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A run would go on with something else than it began with.
    #[error(
        "{}: {what} changed since the run began, so that it would not be the same run; --allow-changes goes on all \
         the same",
        path.display()
    )]
    Changed {
        /// The run's folder.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// A loss or norm is no number any more.
    #[error(
        "update {step}: the {what} is {value}; its batch has {rows}; {kept}. A lower learning rate, clipping \
         (optimizer.max_norm) or other data may help"
    )]
    NotFinite {
        /// The update.
        step: u64,
        /// Loss or norm.
        what: &'static str,
        /// What it is.
        value: f32,
        /// Lines of the table and paths.
        rows: String,
        /// What of the run is still there.
        kept: String,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted, as a verb phrase.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The weights to start from are of another model.
    #[error(
        "the weights to start from do not fit the recipe's model; random weights do (--init random): {0}"
    )]
    Start(#[source] Box<pipeline::Error>),
    /// The user stopped the run before it had begun to train.
    #[error("interrupted")]
    Interrupted,
    /// A step, the state or the log of the run.
    #[error(transparent)]
    Training(#[from] training::Error),
    /// The table, its files or cached features.
    #[error(transparent)]
    Data(#[from] data::Error),
    /// The encoders, or the sampler of validations.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The model has no graph for a bucket.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// An encoder has no plan.
    #[error(transparent)]
    Compiler(#[from] compiler::Error),
    /// A validation cannot be written.
    #[error(transparent)]
    Media(#[from] media::Error),
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether the request itself cannot be, whatever the files hold.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Request(_) | Error::Budget { .. } => true,
            Error::Data(error) => error.is_usage(),
            Error::Training(
                training::Error::Option { .. }
                | training::Error::Recipe(_)
                | training::Error::Bucket(_)
                | training::Error::Compile(compiler::Error::Memory { .. }),
            ) => true,
            Error::Pipeline(pipeline::Error::Request { .. })
            | Error::Compiler(compiler::Error::Memory { .. }) => true,
            _ => false,
        }
    }

    /// Whether the user stopped the run.
    pub fn is_interrupt(&self) -> bool {
        match self {
            Error::Interrupted => true,
            Error::Data(error) => error.is_interrupt(),
            Error::Pipeline(error) => error.is_interrupt(),
            Error::Media(error) => matches!(error, media::Error::Interrupted { .. }),
            _ => false,
        }
    }

    /// An [`Error::Io`] of the system's error at `path`.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { path, action, source }
    }

    /// An [`Error::Folder`].
    pub(crate) fn folder(path: &Path, reason: impl Into<String>) -> Error {
        Error::Folder { path: path.to_path_buf(), reason: reason.into() }
    }
}
