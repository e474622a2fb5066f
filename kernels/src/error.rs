//! What can go wrong when a kernel is described; running one cannot fail.

use crate::isa::Kind;

/// A kernel, program or setting that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user's: a misspelled instruction set.
    #[error("unknown instruction set `{name}`, expected portable, neon, avx2 or avx512")]
    UnknownIsa {
        /// As given.
        name: String,
    },
    /// The user's: an instruction set this machine lacks.
    #[error("this CPU does not have {}; choose another instruction set or let it be detected", kind.name())]
    UnsupportedIsa {
        /// As given.
        kind: Kind,
    },
    /// The compiler's: a program that needs more than the fixed limits.
    #[error("program needs {found} {what}, at most {limit} fit; split it")]
    ProgramTooLong {
        /// What there is too much of.
        what: &'static str,
        /// How many the program has.
        found: usize,
        /// How many fit.
        limit: usize,
    },
    /// A program text or structure that is not valid.
    #[error("invalid program: {reason}")]
    InvalidProgram {
        /// Which line or instruction, and why.
        reason: String,
    },
    /// A kernel description that contradicts itself.
    #[error("invalid {kernel}: {reason}")]
    InvalidSpec {
        /// Kernel name.
        kernel: &'static str,
        /// What does not fit.
        reason: String,
    },
}
