//! What can go wrong between a function and its machine code.

/// Why there is no machine code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `CubeCL` refuses the function.
    #[error("no CUDA text for {function}: {reason}")]
    Emit {
        /// Its name.
        function: String,
        /// What `CubeCL` says.
        reason: String,
    },
    /// The compiler's library or its headers are not there.
    #[error(
        "no CUDA compiler: {missing} was not found in {searched}; install it with \
         kernels/cuda/install, or name its folder in KINO_CUDA_TOOLS"
    )]
    NoCompiler {
        /// What was looked for.
        missing: String,
        /// Where.
        searched: String,
    },
    /// The compiler refuses the text.
    #[error("{entry} does not compile for {target}: {log}")]
    Compile {
        /// The function's symbol.
        entry: String,
        /// The architecture.
        target: String,
        /// What the compiler says.
        log: String,
    },
}
