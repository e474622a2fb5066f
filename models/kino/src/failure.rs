//! How a command can end other than well, and the exit code of each way.

use std::fmt;

/// Why a command stopped.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The request cannot be: wrong options, sizes, prompts. Exit code 2.
    Usage(String),
    /// The request was fine, the world was not: files, memory, the checkpoint. Exit code 1.
    Run(anyhow::Error),
    /// The user stopped it, after so many outputs were complete. Exit code 130.
    Interrupted {
        /// Outputs that stay.
        written: usize,
    },
    /// The user stopped it, and it can go on from there. Exit code 130.
    #[cfg(feature = "train")]
    Paused(String),
}

/// What commands return.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A usage error from any message.
    pub(crate) fn usage(message: impl fmt::Display) -> Failure {
        Failure::Usage(message.to_string())
    }

    /// Exit code of the process.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Failure::Usage(_) => 2,
            Failure::Run(_) => 1,
            Failure::Interrupted { .. } => 130,
            #[cfg(feature = "train")]
            Failure::Paused(_) => 130,
        }
    }
}

/// One message with its causes, without those that the message repeats already.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(message) => f.write_str(message),
            #[cfg(feature = "train")]
            Failure::Paused(message) => f.write_str(message),
            Failure::Interrupted { written: 0 } => f.write_str("interrupted; nothing was written"),
            Failure::Interrupted { written: 1 } => f.write_str("interrupted; 1 output is complete"),
            Failure::Interrupted { written } => {
                write!(f, "interrupted; {written} outputs are complete")
            }
            Failure::Run(error) => {
                let mut text = error.to_string();
                for cause in error.chain().skip(1).map(ToString::to_string) {
                    if !text.contains(&cause) {
                        text = format!("{text}: {cause}");
                    }
                }
                f.write_str(&text)
            }
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Run(error)
    }
}

impl From<pipeline::Error> for Failure {
    fn from(error: pipeline::Error) -> Failure {
        match error {
            error if error.is_interrupt() => Failure::Interrupted { written: 0 },
            pipeline::Error::Request { .. }
            | pipeline::Error::Compiler(compiler::Error::Memory { .. })
            | pipeline::Error::NoPart { .. }
            | pipeline::Error::Diffusion(_) => Failure::usage(error),
            error => Failure::Run(error.into()),
        }
    }
}

impl From<media::Error> for Failure {
    fn from(error: media::Error) -> Failure {
        match error {
            media::Error::UnknownFormat { .. }
            | media::Error::FrameSize { .. }
            | media::Error::FrameRate { .. } => Failure::usage(error),
            media::Error::Interrupted { .. } => Failure::Interrupted { written: 0 },
            error => Failure::Run(error.into()),
        }
    }
}

impl From<measure::Error> for Failure {
    fn from(error: measure::Error) -> Failure {
        match error {
            measure::Error::Run(runtime::Error::Interrupted) => Failure::Interrupted { written: 0 },
            error => Failure::Run(error.into()),
        }
    }
}

impl From<checkpoint::Error> for Failure {
    fn from(error: checkpoint::Error) -> Failure {
        Failure::Run(error.into())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Run(error.into())
    }
}

/// What a user typed wrongly, in the crates that read it.
macro_rules! usage {
    ($($error:ty),*) => { $(
        impl From<$error> for Failure {
            fn from(error: $error) -> Failure {
                Failure::usage(error)
            }
        }
    )* };
}
usage!(diffusion::Error, text::Error, models::Error, compiler::Error, kernels::Error);
