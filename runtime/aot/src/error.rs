//! What can go wrong between plans and an engine.

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A function has no code.
    #[error(transparent)]
    Code(#[from] cuda_kernels::Error),
    /// A step of a plan runs on a CPU.
    #[error("step {step} of {program} has no kernel for a GPU ({kernel})")]
    NotForGpu {
        /// The program.
        program: String,
        /// Which step.
        step: usize,
        /// Its kernel.
        kernel: String,
    },
    /// A plan is for a CPU.
    #[error(
        "{program} is planned for a CPU, expected a generation of GPUs: plan it with a target that has one"
    )]
    Target {
        /// The program.
        program: String,
    },
}
