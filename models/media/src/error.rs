//! Every way writing or reading a media file can fail.
//!
//! [`Error`] is public and names the path; [`Fault`] is what the format modules raise, which know bytes
//! but no path. A `Fault` becomes an `Error` at the edge of the crate only.

use std::io;
use std::path::{Path, PathBuf};

/// Why a media file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's path has an extension no format goes with.
    #[error("{}: no format for {found}: expected {expected}", path.display())]
    UnknownFormat {
        /// The path that was asked for.
        path: PathBuf,
        /// The extension, or that there is none.
        found: String,
        /// Every extension there is.
        expected: &'static str,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}; {}", path.display(), advice(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted, as a verb phrase.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// Something that must not be replaced is where the output should go.
    #[error("{}: is {found}: {advice}", path.display())]
    Occupied {
        /// The output path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The format cannot hold frames of this size.
    #[error(
        "{}: {format} holds frames from {min} to {max} pixels (width x height), found {width}x{height}: \
         choose another size or another format",
        path.display()
    )]
    FrameSize {
        /// The output path.
        path: PathBuf,
        /// The format's name.
        format: &'static str,
        /// Smallest size, as text.
        min: &'static str,
        /// Largest size, as text.
        max: &'static str,
        /// Width asked for, in pixels.
        width: u32,
        /// Height asked for, in pixels.
        height: u32,
    },
    /// No frame was pushed, or more than the format can hold.
    #[error("{}: {format} holds {expected}, found {found}: {advice}", path.display())]
    FrameCount {
        /// The output path.
        path: PathBuf,
        /// The format's name.
        format: &'static str,
        /// How many frames it takes.
        expected: &'static str,
        /// How many there were.
        found: u64,
        /// What to do.
        advice: &'static str,
    },
    /// The caller's samples do not have the stated shape.
    #[error("frame data has {found} values, expected {expected} ({shape})")]
    FrameLength {
        /// Values there must be.
        expected: u64,
        /// Values there are.
        found: usize,
        /// The shape that was stated.
        shape: String,
    },
    /// A sample is NaN or infinite, so the model diverged.
    #[error(
        "frame {frame} holds {value} at (y {y}, x {x}, channel {channel}): the model's output is not \
         finite, try f32"
    )]
    NotFinite {
        /// Index of the frame.
        frame: usize,
        /// Row.
        y: usize,
        /// Column.
        x: usize,
        /// 0 red, 1 green, 2 blue.
        channel: usize,
        /// The value found.
        value: f32,
    },
    /// A frame rate that no format can express.
    #[error("frame rate {found} is not usable: expected between 1/1000 and 1000 frames per second")]
    FrameRate {
        /// The rate, as text.
        found: String,
    },
    /// A metadata entry that cannot be stored in every format.
    #[error("metadata {key:?}: {reason}")]
    BadMetadata {
        /// The entry's key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An encoder or a container limit stopped the writing.
    #[error("{}: cannot encode: {reason}", path.display())]
    Encode {
        /// The output path.
        path: PathBuf,
        /// The encoder's reason.
        reason: String,
    },
    /// A file that only `ffmpeg` decodes, on a machine without it.
    #[error(
        "{}: needs the program ffmpeg to be decoded, which is not installed: install it, or give a PNG or a \
         folder of PNGs",
        path.display()
    )]
    NoDecoder {
        /// The input path.
        path: PathBuf,
    },
    /// The caller stopped the reading or writing; nothing was left of it.
    #[error("{}: stopped before it was complete", path.display())]
    Interrupted {
        /// The path.
        path: PathBuf,
    },
    /// The file that was read is damaged, hostile or of no known kind.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The input path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is sound, but Kinograph did not write it or the metadata was stripped.
    #[error("{}: carries no Kinograph metadata: expected a file that `kino sample` wrote", path.display())]
    NoMetadata {
        /// The input path.
        path: PathBuf,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What the user can do about an operating system error.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space or choose a folder on another disk"
        }
        io::ErrorKind::FileTooLarge => {
            "raise the file size limit or choose fewer or smaller frames"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "choose a folder you may write to"
        }
        io::ErrorKind::NotFound => "check the path; its folder must be there",
        io::ErrorKind::NotADirectory => "a part of the path is a file, choose another folder",
        io::ErrorKind::IsADirectory => "name a file, not a folder",
        io::ErrorKind::InvalidFilename => "choose a shorter or plainer name",
        _ => "check the disk and the path",
    }
}

/// An error below the level that knows the path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// An encoder refused.
    #[error("{0}")]
    Encode(String),
    /// Input bytes are wrong.
    #[error("{0}")]
    Malformed(String),
    /// The caller wants no more.
    #[error("stopped")]
    Interrupted,
}

impl Fault {
    /// The public error for this fault while writing `path`.
    pub(crate) fn writing(self, path: &Path) -> Error {
        self.at(path, "write")
    }

    /// The public error for this fault while reading `path`.
    pub(crate) fn reading(self, path: &Path) -> Error {
        self.at(path, "read")
    }

    fn at(self, path: &Path, action: &'static str) -> Error {
        let path = path.to_owned();
        match self {
            Self::Io(source) => Error::Io { path, action, source },
            Self::Encode(reason) => Error::Encode { path, reason },
            Self::Malformed(reason) => Error::Malformed { path, reason },
            Self::Interrupted => Error::Interrupted { path },
        }
    }
}

impl From<gif::EncodingError> for Fault {
    fn from(error: gif::EncodingError) -> Self {
        match error {
            gif::EncodingError::Io(error) => Self::Io(error),
            other => Self::Encode(other.to_string()),
        }
    }
}

impl From<png::EncodingError> for Fault {
    fn from(error: png::EncodingError) -> Self {
        match error {
            png::EncodingError::IoError(error) => Self::Io(error),
            other => Self::Encode(other.to_string()),
        }
    }
}

impl From<image_webp::EncodingError> for Fault {
    fn from(error: image_webp::EncodingError) -> Self {
        match error {
            image_webp::EncodingError::IoError(error) => Self::Io(error),
            other => Self::Encode(other.to_string()),
        }
    }
}
