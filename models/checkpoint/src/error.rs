//! Every way a checkpoint can be refused.
//!
//! Each message names the tensor, file or pickle item at fault, what was expected and what was found.
//! All variants but [`Error::Io`] and the usage ones ([`Error::NoSuchTensor`], [`Error::NotAFloat`]) mean
//! that the file is damaged, hostile or of a kind this crate does not read.

use std::path::{Path, PathBuf};

use crate::DType;

/// Why a checkpoint could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The error below happened in this file.
    #[error("{}: {error}", path.display())]
    In {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<Error>,
    },
    /// The operating system refused.
    #[error("cannot {action}: {error}")]
    Io {
        /// What was attempted, as a verb phrase.
        action: &'static str,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The file is of no kind this crate reads.
    #[error(
        "not a checkpoint: expected safetensors, a torch archive (zip or legacy pickle) or an index .json, found {found}"
    )]
    UnknownFormat {
        /// What the first bytes look like.
        found: String,
    },
    /// A folder without a weight file of a known name.
    #[error("no weights in this folder: looked for {looked_for}")]
    NoWeights {
        /// The names that were tried.
        looked_for: String,
    },
    /// The folder is a whole pipeline, not one model.
    #[error(
        "this folder is a pipeline (it has model_index.json): name one of its parts, such as {example}"
    )]
    IsPipeline {
        /// A part that exists.
        example: String,
    },
    /// The file ends before a structure does.
    #[error("truncated: {what} needs {needed} bytes, {available} are left")]
    Truncated {
        /// The structure that was being read.
        what: String,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// A structure is larger than any honest file has.
    #[error("{what} is {found}, the limit is {limit}")]
    TooLarge {
        /// The structure.
        what: String,
        /// Its size or count.
        found: u64,
        /// The largest accepted.
        limit: u64,
    },
    /// The safetensors header is not UTF-8.
    #[error("safetensors header is not UTF-8 at byte {at}")]
    HeaderNotUtf8 {
        /// Offset within the header.
        at: usize,
    },
    /// JSON that does not parse or has the wrong structure.
    #[error("{what} is not valid: {error}")]
    Json {
        /// Which JSON text.
        what: &'static str,
        /// The parser's reason, with line and column.
        error: serde_json::Error,
    },
    /// Two tensors of one name.
    #[error("tensor {name}: listed twice")]
    DuplicateName {
        /// The tensor.
        name: String,
    },
    /// An element type this crate does not know.
    #[error("tensor {name}: dtype {found} is not supported (supported: {})", DType::list())]
    UnknownDType {
        /// The tensor.
        name: String,
        /// The type as the file spells it.
        found: String,
    },
    /// The product of a shape does not fit 64 bits.
    #[error("tensor {name}: {shape:?} elements of {dtype} overflow the address space")]
    ShapeOverflow {
        /// The tensor.
        name: String,
        /// Its claimed shape.
        shape: Vec<u64>,
        /// Its element type.
        dtype: DType,
    },
    /// Byte range and shape disagree.
    #[error("tensor {name}: {dtype} {shape:?} takes {expected} bytes, the file gives it {found}")]
    SizeMismatch {
        /// The tensor.
        name: String,
        /// Its element type.
        dtype: DType,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes that the shape needs.
        expected: u64,
        /// Bytes the file assigns.
        found: u64,
    },
    /// A byte range that is reversed or leaves the file.
    #[error(
        "tensor {name}: bytes {begin}..{end} leave the data, which has {available} bytes (file truncated, or header damaged)"
    )]
    OutOfRange {
        /// The tensor.
        name: String,
        /// First byte, relative to the data.
        begin: u64,
        /// One past the last byte.
        end: u64,
        /// Bytes of data in the file.
        available: u64,
    },
    /// Two tensors share bytes where the format forbids it.
    #[error(
        "tensor {name}: starts at byte {begin}, inside tensor {other}, which ends at {other_end}"
    )]
    Overlap {
        /// The later tensor.
        name: String,
        /// Its first byte.
        begin: u64,
        /// The tensor it overlaps.
        other: String,
        /// One past that tensor's last byte.
        other_end: u64,
    },
    /// Bytes that no tensor owns, where the format forbids it.
    #[error("{count} bytes at {begin} of the data belong to no tensor ({before})")]
    Hole {
        /// First unowned byte.
        begin: u64,
        /// How many there are.
        count: u64,
        /// Where: before which tensor, or after the last.
        before: String,
    },
    /// The pickle names something outside the allowlist. Nothing is ever imported or run.
    #[error(
        "pickle refers to {module}.{name}, which is not on the list of allowed names; nothing was run. Save only tensors, or convert the file to safetensors"
    )]
    ForbiddenGlobal {
        /// Python module.
        module: String,
        /// Name in it.
        name: String,
    },
    /// The pickle is damaged or uses something torch never writes.
    #[error("pickle, byte {at}: {problem}")]
    Pickle {
        /// Offset within the pickle.
        at: usize,
        /// What is wrong.
        problem: String,
    },
    /// The archive around a pickle is damaged.
    #[error("torch archive: {problem}")]
    Archive {
        /// What is wrong.
        problem: String,
    },
    /// A tensor in a torch file reaches outside its storage.
    #[error(
        "tensor {name}: shape {shape:?}, strides {strides:?}, offset {offset} reach outside its storage of {storage_len} elements"
    )]
    OutsideStorage {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Its strides in elements.
        strides: Vec<u64>,
        /// Its first element.
        offset: u64,
        /// Elements in the storage.
        storage_len: u64,
    },
    /// A torch file whose object holds no tensors where a state dictionary has them.
    #[error(
        "no tensors found: the pickled object is {found}, expected a dictionary from names to tensors, or one under ema, state_dict, model or module"
    )]
    NoTensors {
        /// What the top object is.
        found: String,
    },
    /// The index names a shard by something other than a plain file name.
    #[error("index sends tensor {tensor} to {file:?}: a shard must be a file beside the index")]
    ShardName {
        /// The tensor.
        tensor: String,
        /// The file name found.
        file: String,
    },
    /// A shard lacks a tensor that the index sends there.
    #[error("index sends tensor {tensor} to {file}, which does not have it")]
    NotInShard {
        /// The tensor.
        tensor: String,
        /// The shard.
        file: String,
    },
    /// A part named in `model_index.json` cannot be used.
    #[error("model_index.json: part {part}: {problem}")]
    Part {
        /// The part.
        part: String,
        /// What is wrong.
        problem: String,
    },
    /// The caller asked for a tensor that is not there.
    #[error("no tensor named {name}")]
    NoSuchTensor {
        /// The name asked for.
        name: String,
    },
    /// The caller asked for floats of an integer or boolean tensor.
    #[error("tensor {name} is {dtype}, expected a float type (f64, f32, f16, bf16)")]
    NotAFloat {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: DType,
    },
}

impl Error {
    /// The same error, with the file it happened in; the innermost file wins.
    pub(crate) fn within(self, path: &Path) -> Error {
        match self {
            Error::In { .. } => self,
            error => Error::In { path: path.to_path_buf(), error: Box::new(error) },
        }
    }

    /// The error without the file it happened in.
    pub fn root(&self) -> &Error {
        match self {
            Error::In { error, .. } => error.root(),
            error => error,
        }
    }

    pub(crate) fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        move |error| Error::Io { action, error }
    }

    pub(crate) fn truncated(what: impl Into<String>, needed: u64, available: u64) -> Error {
        Error::Truncated { what: what.into(), needed, available }
    }
}
