//! Why an engine was refused.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// What is wrong with an engine or its file.
#[derive(Debug, Error)]
pub enum Error {
    /// The system refused. The world's.
    #[error("cannot {doing}: {reason}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the system says.
        reason: io::Error,
    },
    /// The bytes are of something else. The caller's.
    #[error("not an engine file: it is {found}; compile the model to get one")]
    NotAnEngine {
        /// What the file seems to be.
        found: String,
    },
    /// The file is of another version of the format. The caller's.
    #[error(
        "the engine file has format version {found}, this program reads {expected}: compile the model again \
         with this program"
    )]
    Version {
        /// Version in the file.
        found: u32,
        /// The one that is read.
        expected: u32,
    },
    /// The file ends early, or goes on after its end. A download or copy that failed.
    #[error(
        "the engine file has {found} bytes, expected {expected}: copy it again, or compile the model again"
    )]
    Length {
        /// Bytes in the file.
        found: u64,
        /// Bytes that it should have.
        expected: u64,
    },
    /// Bytes changed after they were written. The disk's, or a copy's.
    #[error(
        "the engine file is damaged: its hash is {found:032x}, expected {expected:032x}; copy it again, or compile \
         the model again"
    )]
    Hash {
        /// Hash of the bytes.
        found: u128,
        /// Hash in the header.
        expected: u128,
    },
    /// The bytes are not records of an engine although the hash is right. Whoever wrote the file.
    #[error(
        "the engine file is not well formed: section {section}, byte {at}: {what}; compile the model again"
    )]
    Malformed {
        /// Section.
        section: &'static str,
        /// Byte in the section.
        at: usize,
        /// What was expected and found.
        what: String,
    },
    /// The engine contradicts itself. Whoever compiled it.
    #[error("the engine is not valid: {0}; compile the model again")]
    Invalid(String),
    /// One of the above, of a file.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: Box<Error>,
    },
}

impl Error {
    pub(crate) fn within(self, path: &Path) -> Error {
        Error::File { path: path.to_path_buf(), reason: Box::new(self) }
    }
}
