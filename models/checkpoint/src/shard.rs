//! One weight file as read: its blobs, and where its tensors lie in them.

use std::collections::BTreeMap;
use std::fmt;

use crate::Error;
use crate::blob::Blob;
use crate::layout::Entry;

/// The kind of file a checkpoint came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Format {
    /// One safetensors file.
    Safetensors,
    /// A torch zip archive.
    TorchZip,
    /// A torch file of the time before zip archives.
    TorchLegacy,
    /// Several files with an index.
    Sharded,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Safetensors => "safetensors",
            Format::TorchZip => "torch zip archive",
            Format::TorchLegacy => "torch legacy pickle",
            Format::Sharded => "sharded",
        })
    }
}

/// The tensors of one file. Every entry's `blob` indexes `blobs`.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) format: Format,
    pub(crate) blobs: Vec<Blob>,
    pub(crate) entries: BTreeMap<String, Entry>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// The nested dictionary that was taken from a torch file, such as `ema`.
    pub(crate) taken: Option<String>,
}

impl Shard {
    /// Reads a weight file; its kind is told by its first bytes, not by its name.
    pub(crate) fn read(blob: Blob) -> Result<Shard, Error> {
        let bytes = blob.bytes();
        if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
            return crate::torch_zip::read(blob);
        }
        if crate::torch_legacy::is_legacy(bytes) {
            return crate::torch_legacy::read(blob);
        }
        // A header opens with a brace; one that claims 2^40 bytes is refused by the reader with a better message.
        if bytes.len() < 9 || bytes[8] == b'{' {
            return crate::safetensors::read(blob);
        }
        let start = &bytes[..bytes.len().min(16)];
        Err(Error::UnknownFormat {
            found: format!("a file that starts \"{}\"", start.escape_ascii()),
        })
    }
}
