//! What can go wrong while a machine is measured.

use thiserror::Error;

/// Why there is no measurement.
#[derive(Debug, Error)]
pub enum Error {
    /// A case could not be built. Ours.
    #[error(transparent)]
    Graph(#[from] ops::Error),
    /// A case could not be compiled. Ours.
    #[error(transparent)]
    Compile(#[from] compiler::Error),
    /// A plan could not run: memory, interrupts. The world's.
    #[error(transparent)]
    Run(#[from] runtime::Error),
}
