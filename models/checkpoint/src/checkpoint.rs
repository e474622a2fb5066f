//! [`Checkpoint`]: named tensors over mapped files, whatever form they were stored in.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::blob::{Blob, read_small};
use crate::index::ShardIndex;
use crate::layout::Entry;
use crate::shard::{Format, Shard};
use crate::{DType, Error, TensorView, locate};

/// Largest `config.json`, and largest index, in bytes.
pub(crate) const MAX_JSON_BYTES: u64 = 64 << 20;

/// An open checkpoint. Names are unique and iterate in bytewise order.
#[derive(Debug)]
pub struct Checkpoint {
    path: Option<PathBuf>,
    format: Format,
    taken: Option<String>,
    config: Option<Value>,
    metadata: BTreeMap<String, String>,
    blobs: Vec<Blob>,
    entries: BTreeMap<String, Entry>,
}

/// What a tensor is, without its elements.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TensorInfo<'a> {
    /// Name, as stored.
    pub name: &'a str,
    /// Element type.
    pub dtype: DType,
    /// Shape; empty for a scalar.
    pub shape: &'a [usize],
    /// Bytes of all elements.
    pub bytes: usize,
}

impl TensorInfo<'_> {
    /// Product of the shape.
    pub fn n_elements(&self) -> usize {
        self.bytes / self.dtype.size()
    }
}

impl Checkpoint {
    /// Opens a checkpoint from a path.
    ///
    /// - a file: safetensors, a torch `.pt`/`.pth`/`.bin`/`.ckpt` (zip or legacy), or the index of a sharded one;
    ///   told by content, except that an index must be named `*.json`;
    /// - a folder: a diffusers or transformers model, sharded or not, with its `config.json`; or a training
    ///   checkpoint of `ColossalAI` (weights in `model/`).
    ///
    /// Of a sharded checkpoint, the tensors that the index lists are taken.
    ///
    /// # Errors
    /// Any [`Error`], wrapped in [`Error::In`] with the file it happened in.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint, Error> {
        let path = path.as_ref();
        let weights = locate::weight_file(path).map_err(|error| error.within(path))?;
        let config = match locate::config_file(path, &weights) {
            Some(file) => {
                Some(read_json(&file, "config.json").map_err(|error| error.within(&file))?)
            }
            None => None,
        };
        let is_index = weights.extension().is_some_and(|extension| extension == "json");
        let shard = if is_index { read_sharded(&weights) } else { read_file(&weights) };
        let shard = shard.map_err(|error| error.within(&weights))?;
        let mut checkpoint = Checkpoint::from_shard(shard);
        checkpoint.path = Some(path.to_path_buf());
        checkpoint.config = config;
        Ok(checkpoint)
    }

    /// Opens a weight file that is already in memory, such as one embedded in the program. The format is told by
    /// the content.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], without a path.
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Checkpoint, Error> {
        Shard::read(Blob::Held(bytes.into())).map(Checkpoint::from_shard)
    }

    /// As [`Checkpoint::from_bytes`], for safetensors only.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], without a path.
    pub fn from_safetensors_bytes(
        bytes: impl Into<Cow<'static, [u8]>>,
    ) -> Result<Checkpoint, Error> {
        crate::safetensors::read(Blob::Held(bytes.into())).map(Checkpoint::from_shard)
    }

    /// The same checkpoint with this `config.json`, for weights that come without a folder.
    #[must_use]
    pub fn with_config(mut self, config: Value) -> Checkpoint {
        self.config = Some(config);
        self
    }

    fn from_shard(shard: Shard) -> Checkpoint {
        let Shard { format, blobs, entries, metadata, taken } = shard;
        Checkpoint { path: None, format, taken, config: None, metadata, blobs, entries }
    }

    /// The path it was opened from; `None` for bytes in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The kind of file it is.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The nested dictionary of a torch file that was taken: `ema` before `state_dict`, `model` and `module`;
    /// `None` where the tensors are at the top.
    pub fn taken(&self) -> Option<&str> {
        self.taken.as_deref()
    }

    /// The folder's `config.json`.
    pub fn config(&self) -> Option<&Value> {
        self.config.as_ref()
    }

    /// The free-text metadata of a safetensors file; empty for other formats.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All tensors in order of name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.entries.iter().map(|(name, entry)| info(name, entry))
    }

    /// What a tensor is; `None` if there is none of this name.
    pub fn info(&self, name: &str) -> Option<TensorInfo<'_>> {
        self.entries.get_key_value(name).map(|(name, entry)| info(name, entry))
    }

    /// A tensor's elements, borrowed from the file if they are contiguous there.
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`].
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, Error> {
        let entry = self.entries.get(name);
        let entry = entry.ok_or_else(|| Error::NoSuchTensor { name: name.into() })?;
        let bytes = entry.read(self.blobs[entry.blob].bytes());
        Ok(TensorView { dtype: entry.dtype, shape: entry.shape.clone(), bytes })
    }

    /// Says that a tensor will not be read again soon, so that a mapped file's pages need not stay
    /// in memory.
    pub fn release(&self, name: &str) {
        if let Some((blob, bytes)) = self.stored(name) {
            blob.release(bytes);
        }
    }

    /// Says that a tensor will be read soon, so that the system can begin to read a mapped file.
    pub fn prefetch(&self, name: &str) {
        if let Some((blob, bytes)) = self.stored(name) {
            blob.prefetch(bytes);
        }
    }

    /// A tensor's bytes where the file has them as they are.
    fn stored(&self, name: &str) -> Option<(&Blob, &[u8])> {
        let entry = self.entries.get(name)?;
        let blob = &self.blobs[entry.blob];
        match entry.read(blob.bytes()) {
            Cow::Borrowed(bytes) => Some((blob, bytes)),
            Cow::Owned(_) => None,
        }
    }

    /// A float tensor's elements as f32; f64 rounds to nearest.
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`], [`Error::NotAFloat`].
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        let tensor = self.tensor(name)?;
        let dtype = tensor.dtype;
        tensor.to_f32().ok_or_else(|| Error::NotAFloat { name: name.into(), dtype })
    }
}

fn info<'a>(name: &'a str, entry: &'a Entry) -> TensorInfo<'a> {
    TensorInfo { name, dtype: entry.dtype, shape: &entry.shape, bytes: entry.n_bytes }
}

/// A small JSON file.
pub(crate) fn read_json(path: &Path, what: &'static str) -> Result<Value, Error> {
    let bytes = read_small(path, what, MAX_JSON_BYTES)?;
    serde_json::from_slice(&bytes).map_err(|error| Error::Json { what, error })
}

fn read_file(path: &Path) -> Result<Shard, Error> {
    Shard::read(Blob::map(path)?)
}

fn read_sharded(index_path: &Path) -> Result<Shard, Error> {
    let index = ShardIndex::parse(&read_small(index_path, "shard index", MAX_JSON_BYTES)?)?;
    let mut all = Shard {
        format: Format::Sharded,
        blobs: Vec::new(),
        entries: BTreeMap::new(),
        metadata: BTreeMap::new(),
        taken: None,
    };
    for (file, names) in index.shards {
        let path = index_path.with_file_name(&file);
        let mut shard = read_file(&path).map_err(|error| error.within(&path))?;
        let first_blob = all.blobs.len();
        all.blobs.append(&mut shard.blobs);
        for name in names {
            let Some(entry) = shard.entries.remove(&name) else {
                return Err(Error::NotInShard { tensor: name, file });
            };
            all.entries.insert(name, entry.rebased(first_blob));
        }
    }
    Ok(all)
}
