//! What can end a measurement.

use std::io;
use std::path::PathBuf;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that no piece of work has. The caller's fault.
    #[error("no work is called {name}; did you mean {nearest}? (--list shows all)")]
    UnknownWork {
        /// The name asked for.
        name: String,
        /// The most similar name there is.
        nearest: &'static str,
    },
    /// The work, in this type, has no such peer. A mistake of ours.
    #[error("{what}: {reason}")]
    Protocol {
        /// Which side.
        what: String,
        /// What was expected and found.
        reason: String,
    },
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
    /// A thread pool that cannot be started.
    #[error(transparent)]
    Kernels(#[from] kernels::Error),
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
