//! What can be wrong with tables, buckets, samples and the files of a data set.

use std::io;
use std::path::PathBuf;

/// Why training data cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The table as a whole is wrong: no rows, no such column, no CSV.
    #[error("{}: {reason}", path.display())]
    Table {
        /// The table's file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// One cell of a table is wrong.
    #[error("{}: line {line}, column `{column}`: expected {expected}, found `{found}`", path.display())]
    Cell {
        /// The table's file.
        path: PathBuf,
        /// Line of the file, from 1.
        line: u64,
        /// Name of the column.
        column: &'static str,
        /// What a cell of this column holds.
        expected: &'static str,
        /// What it holds.
        found: String,
    },
    /// The configuration of buckets is wrong.
    #[error("buckets: {0}")]
    Buckets(String),
    /// A mask's name or share is wrong.
    #[error("mask ratios: {0}")]
    Masks(String),
    /// Settings of a sampler or loader, or the state that it resumes from, cannot be.
    #[error("{0}")]
    Setting(String),
    /// No bucket has a batch, so there is nothing to train on.
    #[error("no bucket has a batch of samples in epoch {epoch}:\n{survey}")]
    NoBatch {
        /// The epoch.
        epoch: u64,
        /// One line for each bucket: why it is empty.
        survey: String,
    },
    /// Neither a sample nor those that were tried in its place can be read.
    #[error(
        "bucket {bucket}: none of {n_tried} samples could be read, the last for this reason: {reason}; \
         `kino data check` lists what cannot be read"
    )]
    Unreadable {
        /// The bucket's name.
        bucket: String,
        /// How many were tried.
        n_tried: usize,
        /// Why the last one failed.
        reason: String,
    },
    /// A sample's file has less than its bucket needs.
    #[error("{}: has {found} frames, its bucket needs {expected}", path.display())]
    TooShort {
        /// The sample's file.
        path: PathBuf,
        /// Frames it has.
        found: usize,
        /// Frames it must have.
        expected: usize,
    },
    /// The art of the Flare game is missing or not as expected.
    #[error("{}: {reason}", path.display())]
    Flare {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A file of cached features is damaged or of another run.
    #[error("{}: {reason}", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
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
    /// A frame could not be read or written.
    #[error(transparent)]
    Media(#[from] media::Error),
    /// The caller wants no more.
    #[error("stopped before the data was complete")]
    Interrupted,
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether the request itself cannot be, whatever the files hold.
    pub fn is_usage(&self) -> bool {
        matches!(self, Error::Buckets(_) | Error::Masks(_) | Error::Setting(_))
    }

    /// Whether the caller stopped the work.
    pub fn is_interrupt(&self) -> bool {
        matches!(self, Error::Interrupted | Error::Media(media::Error::Interrupted { .. }))
    }
}
