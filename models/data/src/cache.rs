//! Features that are computed once and kept: latents of videos, features of captions.
//!
//! A cache is a folder of safetensors files, *shards*, which other programs read too. A record is the tensors of
//! one [`Key`], named `key.name`; a shard's metadata has the identity of what made it and a hash for each
//! record. Shards appear whole or not at all and are never changed, so a run that stopped goes on with
//! what is there, and loses a part of one shard at most. What features mean is the caller's to know.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use ops::DType;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::{Error, Result};

/// Longest header of a shard.
const MAX_HEADER_BYTES: u64 = 100 << 20;
/// Key of the identity in a shard's metadata.
const IDENTITY: &str = "identity";
/// Safetensors' names of element types.
const ELEMENTS: [(&str, DType); 7] = [
    ("F32", DType::F32),
    ("F16", DType::F16),
    ("BF16", DType::Bf16),
    ("I64", DType::I64),
    ("I32", DType::I32),
    ("U8", DType::U8),
    ("BOOL", DType::Bool),
];

/// What a record is of: a hash of everything that its tensors depend on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key(u128);

/// A tensor of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CachedTensor {
    /// Its name in the record, such as `latent`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<usize>,
    /// Elements in row-major order, little endian.
    pub bytes: Vec<u8>,
}

/// Appends records to a cache.
#[derive(Debug)]
pub struct CacheWriter {
    folder: PathBuf,
    identity: String,
    name: String,
    shard_bytes: usize,
    known: BTreeSet<Key>,
    next_shard: usize,
    pending: BTreeMap<Key, Vec<CachedTensor>>,
    pending_bytes: usize,
}

/// Finds records of a cache; may be shared by threads.
#[derive(Debug)]
pub struct CacheReader {
    shards: Vec<PathBuf>,
    records: BTreeMap<Key, Record>,
}

/// Where a record is.
#[derive(Clone, Debug)]
struct Record {
    shard: usize,
    hash: u128,
    /// Name and place of each tensor, by name.
    tensors: Vec<(String, Place)>,
}

#[derive(Clone, Debug)]
struct Place {
    dtype: DType,
    shape: Vec<usize>,
    /// Offset in the shard's file.
    start: u64,
    n_bytes: usize,
}

/// The JSON header of a safetensors file.
#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

impl Key {
    /// The key of what depends on `parts` and nothing else.
    pub fn of(parts: &[&[u8]]) -> Key {
        let mut hash = Xxh3::new();
        for part in parts {
            // With lengths, so that no two lists of parts are one text.
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Key(hash.digest128())
    }

    fn text(self) -> String {
        format!("{:032x}", self.0)
    }

    fn parse(text: &str) -> Option<Key> {
        (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok()).flatten().map(Key)
    }
}

impl CacheWriter {
    /// Opens a cache, or begins one, in `folder`, whose own folder exists. `identity` says what makes the
    /// features; `name` tells this writer's shards from those of others that write at the same time, such
    /// as `rank0`. A shard is written whenever `shard_bytes` are waiting.
    ///
    /// # Errors
    /// [`Error::Cache`] for a damaged shard or another identity, [`Error::Io`].
    pub fn open(
        folder: &Path,
        identity: &str,
        name: &str,
        shard_bytes: usize,
    ) -> Result<CacheWriter> {
        match std::fs::create_dir(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(io(folder, "create the cache", error));
            }
            _ => {}
        }
        let CacheReader { shards, records } = CacheReader::open(folder, identity)?;
        let own = |path: &PathBuf| {
            let stem = path.file_stem()?.to_str()?;
            stem.strip_prefix(name)?.strip_prefix('-')?.parse::<usize>().ok()
        };
        Ok(CacheWriter {
            folder: folder.to_owned(),
            identity: identity.to_owned(),
            name: name.to_owned(),
            shard_bytes,
            known: records.into_keys().collect(),
            next_shard: shards.iter().filter_map(own).max().map_or(0, |last| last + 1),
            pending: BTreeMap::new(),
            pending_bytes: 0,
        })
    }

    /// Whether the record is there and need not be made.
    pub fn contains(&self, key: Key) -> bool {
        self.known.contains(&key) || self.pending.contains_key(&key)
    }

    /// Adds a record; one that is there already is left as it is.
    ///
    /// # Errors
    /// [`Error::Setting`] for a tensor whose bytes are not its shape's; as [`CacheWriter::finish`].
    pub fn put(&mut self, key: Key, mut tensors: Vec<CachedTensor>) -> Result<()> {
        if self.contains(key) {
            return Ok(());
        }
        for tensor in &tensors {
            let expected = n_bytes(tensor.dtype, &tensor.shape);
            if expected != Some(tensor.bytes.len()) {
                return Err(Error::Setting(format!(
                    "`{}`: {} bytes for a tensor of {} {:?}",
                    tensor.name,
                    tensor.bytes.len(),
                    tensor.dtype.name(),
                    tensor.shape
                )));
            }
            self.pending_bytes += tensor.bytes.len();
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        self.pending.insert(key, tensors);
        if self.pending_bytes >= self.shard_bytes {
            self.write_shard()?;
        }
        Ok(())
    }

    /// Writes what is waiting.
    ///
    /// # Errors
    /// [`Error::Media`] with the file that could not be written.
    pub fn finish(mut self) -> Result<()> {
        self.write_shard()
    }

    fn write_shard(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut header = Header { metadata: BTreeMap::new(), tensors: BTreeMap::new() };
        header.metadata.insert(IDENTITY.into(), self.identity.clone());
        let mut data = Vec::with_capacity(self.pending_bytes);
        for (key, tensors) in &self.pending {
            header.metadata.insert(key.text(), format!("{:032x}", hash_of(tensors)));
            for tensor in tensors {
                let start = data.len() as u64;
                data.extend(&tensor.bytes);
                let entry = Entry {
                    dtype: element(tensor.dtype).into(),
                    shape: tensor.shape.clone(),
                    data_offsets: [start, data.len() as u64],
                };
                header.tensors.insert(format!("{}.{}", key.text(), tensor.name), entry);
            }
        }
        let mut json = serde_json::to_vec(&header).expect("texts and numbers are JSON");
        // Data begins at a multiple of 8, as safetensors has it.
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut json);
        bytes.append(&mut data);
        let path = self.folder.join(format!("{}-{:06}.safetensors", self.name, self.next_shard));
        media::write_file(&path, &bytes)?;
        self.next_shard += 1;
        self.pending_bytes = 0;
        self.known.extend(std::mem::take(&mut self.pending).into_keys());
        Ok(())
    }
}

impl CacheReader {
    /// Opens the cache in `folder`, which `identity` made.
    ///
    /// # Errors
    /// [`Error::Cache`] for a damaged shard or another identity, [`Error::Io`].
    pub fn open(folder: &Path, identity: &str) -> Result<CacheReader> {
        let mut shards = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(|e| io(folder, "list the cache", e))? {
            let path = entry.map_err(|error| io(folder, "list the cache", error))?.path();
            if path.extension().is_some_and(|ending| ending == "safetensors") {
                shards.push(path);
            }
        }
        shards.sort();
        let mut records = BTreeMap::new();
        for (shard, path) in shards.iter().enumerate() {
            read_index(path, shard, identity, &mut records)?;
        }
        Ok(CacheReader { shards, records })
    }

    /// Count of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The tensors of a record, by name; `None` if it is not there.
    ///
    /// # Errors
    /// [`Error::Cache`] if the bytes are not those that were written, [`Error::Io`].
    pub fn get(&self, key: Key) -> Result<Option<Vec<CachedTensor>>> {
        let Some(record) = self.records.get(&key) else { return Ok(None) };
        let path = &self.shards[record.shard];
        let mut file = File::open(path).map_err(|error| io(path, "open it", error))?;
        let mut tensors = Vec::with_capacity(record.tensors.len());
        for (name, place) in &record.tensors {
            let mut bytes = vec![0; place.n_bytes];
            file.seek(SeekFrom::Start(place.start))
                .and_then(|_| file.read_exact(&mut bytes))
                .map_err(|error| io(path, "read it", error))?;
            let (dtype, shape) = (place.dtype, place.shape.clone());
            tensors.push(CachedTensor { name: name.clone(), dtype, shape, bytes });
        }
        if hash_of(&tensors) != record.hash {
            return Err(damaged(path, &format!("record {} is not what was written", key.text())));
        }
        Ok(Some(tensors))
    }
}

/// Adds the records of a shard.
fn read_index(
    path: &Path,
    shard: usize,
    identity: &str,
    records: &mut BTreeMap<Key, Record>,
) -> Result<()> {
    let fail = |error| io(path, "read it", error);
    let mut file = File::open(path).map_err(fail)?;
    let n_bytes_of_file = file.metadata().map_err(fail)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(fail)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES.min(n_bytes_of_file) {
        return Err(damaged(path, &format!("its header would have {length} bytes")));
    }
    let mut json = Vec::new();
    file.take(length).read_to_end(&mut json).map_err(fail)?;
    let header: Header =
        serde_json::from_slice(&json).map_err(|error| damaged(path, &error.to_string()))?;
    let found = header.metadata.get(IDENTITY).map_or("nothing that is named", String::as_str);
    if found != identity {
        let reason = format!(
            "was made by {found}, expected {identity}; choose another folder, or delete this one to make its \
             features again"
        );
        return Err(Error::Cache { path: path.to_owned(), reason });
    }
    let mut found: BTreeMap<Key, Record> = BTreeMap::new();
    for (name, hash) in header.metadata.iter().filter(|(name, _)| *name != IDENTITY) {
        let hash = Key::parse(hash).map(|hash| hash.0);
        let (Some(key), Some(hash)) = (Key::parse(name), hash) else {
            return Err(damaged(path, &format!("`{name}` is no record")));
        };
        found.insert(key, Record { shard, hash, tensors: Vec::new() });
    }
    for (name, entry) in header.tensors {
        let place = entry.place(8 + length, n_bytes_of_file);
        let record = name
            .split_once('.')
            .and_then(|(key, rest)| Some((found.get_mut(&Key::parse(key)?)?, rest.to_owned())));
        let (Some(place), Some((record, name))) = (place, record) else {
            return Err(damaged(
                path,
                &format!("tensor `{name}` is of no record, or outside the file"),
            ));
        };
        record.tensors.push((name, place));
    }
    records.extend(found);
    Ok(())
}

impl Entry {
    /// Where the tensor is in a file of `end` bytes whose data begins at `start`.
    fn place(&self, start: u64, end: u64) -> Option<Place> {
        let dtype = ELEMENTS.iter().find(|(name, _)| *name == self.dtype)?.1;
        let [from, to] = self.data_offsets;
        let n_bytes = n_bytes(dtype, &self.shape)?;
        let is_inside = from.checked_add(n_bytes as u64) == Some(to)
            && start.checked_add(to).is_some_and(|last| last <= end);
        is_inside.then(|| Place { dtype, shape: self.shape.clone(), start: start + from, n_bytes })
    }
}

fn n_bytes(dtype: DType, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |bytes, &extent| bytes.checked_mul(extent))
}

fn element(dtype: DType) -> &'static str {
    ELEMENTS.iter().find(|(_, known)| *known == dtype).expect("every element type is listed").0
}

fn hash_of(tensors: &[CachedTensor]) -> u128 {
    let mut hash = Xxh3::new();
    for tensor in tensors {
        let kind = format!("{} {} {:?}", tensor.name, tensor.dtype.name(), tensor.shape);
        hash.update(&xxh3_128(kind.as_bytes()).to_le_bytes());
        hash.update(&xxh3_128(&tensor.bytes).to_le_bytes());
    }
    hash.digest128()
}

fn damaged(path: &Path, reason: &str) -> Error {
    let reason = format!("is damaged: {reason}; delete it, and its features are made again");
    Error::Cache { path: path.to_owned(), reason }
}

fn io(path: &Path, action: &'static str, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(seed: u8) -> Vec<CachedTensor> {
        let bytes = |n: u8| (0..n).map(|i| i.wrapping_mul(31) ^ seed).collect();
        let latent = CachedTensor {
            name: "latent".into(),
            dtype: DType::F32,
            shape: vec![2, 3],
            bytes: bytes(24),
        };
        let mask = CachedTensor {
            name: "a.mask".into(),
            dtype: DType::Bool,
            shape: vec![5],
            bytes: bytes(5),
        };
        vec![mask, latent]
    }

    fn key(n: u8) -> Key {
        Key::of(&[b"row", &[n]])
    }

    #[test]
    fn records_come_back_and_a_stopped_run_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let mut writer = CacheWriter::open(&path, "vae 1", "rank0", 50).unwrap();
        for n in 0..5 {
            writer.put(key(n), tensors(n)).unwrap();
            writer.put(key(n), tensors(99)).unwrap();
        }
        // Shards of two records were written, the fifth record is lost.
        drop(writer);
        let mut writer = CacheWriter::open(&path, "vae 1", "rank0", 50).unwrap();
        let missing: Vec<u8> = (0..6).filter(|&n| !writer.contains(key(n))).collect();
        assert_eq!(missing, [4, 5]);
        for n in missing {
            writer.put(key(n), tensors(n)).unwrap();
        }
        writer.finish().unwrap();
        let reader = CacheReader::open(&path, "vae 1").unwrap();
        assert_eq!(reader.len(), 6);
        for n in 0..6 {
            assert_eq!(reader.get(key(n)).unwrap(), Some(tensors(n)), "{n}");
        }
        assert_eq!(reader.get(key(7)).unwrap(), None);
        let error = CacheReader::open(&path, "vae 2").unwrap_err().to_string();
        assert!(error.contains("was made by vae 1, expected vae 2"), "{error}");
    }

    /// Every byte of a shard changed, and every length of it: refused, or the tensors are as they were.
    #[test]
    fn damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = CacheWriter::open(folder.path(), "x", "r", usize::MAX).unwrap();
        writer.put(key(1), tensors(1)).unwrap();
        writer.finish().unwrap();
        let path = folder.path().join("r-000000.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            CacheReader::open(folder.path(), "x").and_then(|reader| reader.get(key(1)))
        };
        assert_eq!(read(&bytes).unwrap(), Some(tensors(1)));
        let mut n_refused = 0;
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            match read(&changed) {
                Ok(found) => assert!(found.is_none_or(|found| found == tensors(1)), "byte {at}"),
                Err(_) => n_refused += 1,
            }
            assert!(!read(&bytes[..at]).is_ok_and(|found| found.is_some()), "{at} bytes");
        }
        assert!(n_refused > bytes.len() / 2, "{n_refused} of {}", bytes.len());
    }

    #[test]
    fn keys_tell_lists_apart() {
        assert_ne!(Key::of(&[b"ab", b"c"]), Key::of(&[b"a", b"bc"]));
        assert_ne!(Key::of(&[b"ab"]), Key::of(&[b"ab", b""]));
    }

    #[test]
    fn a_wrong_shape_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = CacheWriter::open(folder.path(), "x", "r", 1).unwrap();
        let mut wrong = tensors(0);
        wrong[1].shape = vec![7];
        assert!(writer.put(key(0), wrong).unwrap_err().to_string().contains("`latent`: 24 bytes"));
    }
}
