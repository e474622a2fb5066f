//! What can end a measurement.

use std::io;
use std::path::PathBuf;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A peer says that it failed, or ended.
    #[error("{side}: {reason}")]
    Side {
        /// Which side.
        side: String,
        /// What it said.
        reason: String,
    },
    /// The system refused a file or a process.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The caller stopped it.
    #[error("interrupted")]
    Interrupted,
    /// A model that cannot be built.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// A graph that cannot be built.
    #[error(transparent)]
    Graph(#[from] ops::Error),
    /// A graph that cannot be compiled.
    #[error(transparent)]
    Compile(#[from] compiler::Error),
    /// Threads that cannot be started.
    #[error("cannot start threads: {0}")]
    Threads(io::Error),
    /// A plan that cannot run.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// Weights that cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// Weights that do not fit the model.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
}
