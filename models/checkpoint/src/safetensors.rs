//! The safetensors format, both ways: 8 bytes of header length, a JSON header, the tensors' bytes.
//!
//! The reader is ours rather than the `safetensors` crate's because that crate silently keeps one of two equal
//! names, and its errors do not name the tensor. What is accepted is the same (a test compares them): every byte
//! of the data belongs to exactly one tensor, without holes. Nothing is allocated from a claimed length; the
//! header's JSON is the only thing copied.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::blob::Blob;
use crate::layout::{Dims, Entry, MAX_RANK};
use crate::shard::{Format, Shard};
use crate::{DType, Error, TensorView};

/// Largest header accepted, as in the reference implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A JSON object whose keys are kept in order, equal ones included.
pub(crate) struct Pairs<V>(pub(crate) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for InOrder<V> {
            type Value = Pairs<V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<V>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value::<V>().map_err(|error| under(&key, &error))?;
                    pairs.push((key, value));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(InOrder(std::marker::PhantomData))
    }
}

/// A parser's error with the key it happened under.
fn under<E: serde::de::Error>(key: &str, error: &E) -> E {
    E::custom(format_args!("{key}: {error}"))
}

/// The first name that occurs twice.
pub(crate) fn first_duplicate<V>(pairs: &[(String, V)]) -> Option<&str> {
    let mut names: Vec<&str> = pairs.iter().map(|pair| pair.0.as_str()).collect();
    names.sort_unstable();
    names.windows(2).find(|two| two[0] == two[1]).map(|two| two[0])
}

/// A shape that stops reading at [`MAX_RANK`], so that a header cannot unfold into more than its own size.
struct BoundedShape(Dims);

impl<'de> Deserialize<'de> for BoundedShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded;
        impl<'de> Visitor<'de> for Bounded {
            type Value = BoundedShape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX_RANK} dims")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<BoundedShape, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element()? {
                    if dims.len() == MAX_RANK {
                        return Err(A::Error::invalid_length(MAX_RANK + 1, &self));
                    }
                    dims.push(dim);
                }
                Ok(BoundedShape(dims))
            }
        }
        deserializer.deserialize_seq(Bounded)
    }
}

#[derive(serde::Deserialize)]
struct Described {
    dtype: String,
    shape: BoundedShape,
    data_offsets: (u64, u64),
}

struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, Described)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensor names to {dtype, shape, data_offsets}")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header { metadata: BTreeMap::new(), tensors: Vec::new() };
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        header.metadata = map.next_value().map_err(|error| under(&key, &error))?;
                    } else {
                        let tensor = map.next_value().map_err(|error| under(&key, &error))?;
                        header.tensors.push((key, tensor));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// Reads the header and checks every tensor's place.
pub(crate) fn read(blob: Blob) -> Result<Shard, Error> {
    let bytes = blob.bytes();
    let (length, rest) = bytes
        .split_first_chunk::<8>()
        .ok_or_else(|| Error::truncated("safetensors header length", 8, bytes.len() as u64))?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        let what = "the safetensors header's length".into();
        return Err(Error::TooLarge { what, found: length, limit: MAX_HEADER_BYTES });
    }
    let (header, data) = usize::try_from(length)
        .ok()
        .and_then(|length| rest.split_at_checked(length))
        .ok_or_else(|| Error::truncated("safetensors header", length, rest.len() as u64))?;
    let header = std::str::from_utf8(header)
        .map_err(|error| Error::HeaderNotUtf8 { at: error.valid_up_to() })?;
    let header: Header = serde_json::from_str(header)
        .map_err(|error| Error::Json { what: "safetensors header", error })?;
    if let Some(name) = first_duplicate(&header.tensors) {
        return Err(Error::DuplicateName { name: name.into() });
    }

    let available = data.len() as u64;
    let data_start = bytes.len() - data.len();
    let mut entries = BTreeMap::new();
    let mut ranges = Vec::with_capacity(header.tensors.len());
    for (name, Described { dtype, shape, data_offsets: (begin, end) }) in header.tensors {
        let Some(dtype) = DType::from_safetensors_name(&dtype) else {
            return Err(Error::UnknownDType { name, found: dtype });
        };
        if begin > end || end > available {
            return Err(Error::OutOfRange { name, begin, end, available });
        }
        let start = data_start + usize::try_from(begin).expect("at most the length of the data");
        let entry = Entry::contiguous(&name, dtype, &shape.0, 0, start, end - begin)?;
        ranges.push((begin, end, name.clone()));
        entries.insert(name, entry);
    }
    check_tiling(ranges, available)?;
    Ok(Shard {
        format: Format::Safetensors,
        blobs: vec![blob],
        entries,
        metadata: header.metadata,
        taken: None,
    })
}

/// Checks that the ranges cover `0..available` exactly once.
fn check_tiling(mut ranges: Vec<(u64, u64, String)>, available: u64) -> Result<(), Error> {
    ranges.sort_unstable();
    let mut covered = 0;
    let mut other = String::new();
    for (begin, end, name) in ranges {
        if begin < covered {
            return Err(Error::Overlap { name, begin, other, other_end: covered });
        }
        if begin > covered {
            let before = format!("before tensor {name}");
            return Err(Error::Hole { begin: covered, count: begin - covered, before });
        }
        // An empty tensor must not hide the neighbor that a later overlap would be blamed on.
        if end > begin {
            other = name;
        }
        covered = end;
    }
    if covered < available {
        let before = "after the last tensor".into();
        return Err(Error::Hole { begin: covered, count: available - covered, before });
    }
    Ok(())
}

/// The header of a safetensors file, and the tensors in the order their bytes follow it.
fn plan<'t>(
    tensors: &'t BTreeMap<String, TensorView<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, Vec<&'t [u8]>), Error> {
    // Wide types first keeps every tensor aligned to its element size; names break ties.
    let mut order: Vec<(&String, &TensorView<'_>)> = tensors.iter().collect();
    order.sort_by_key(|(name, tensor)| (std::cmp::Reverse(tensor.dtype.size()), *name));
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut offset = 0;
    let mut parts = Vec::with_capacity(order.len());
    for (name, tensor) in order {
        if name == "__metadata__" {
            return Err(Error::DuplicateName { name: name.clone() });
        }
        let shape: Dims = tensor.shape.iter().map(|dim| *dim as u64).collect();
        let found = tensor.bytes.len();
        Entry::contiguous(name, tensor.dtype, &shape, 0, 0, found as u64)?;
        header.insert(
            name.clone(),
            serde_json::json!({
                "dtype": tensor.dtype.safetensors_name(),
                "shape": shape,
                "data_offsets": [offset, offset + found],
            }),
        );
        parts.push(&*tensor.bytes);
        offset += found;
    }
    let mut text = serde_json::to_vec(&header)
        .map_err(|error| Error::Json { what: "safetensors header", error })?;
    // Spaces up to a multiple of 8, as the reference writer does, so that the data is aligned in a mapped file.
    text.resize(text.len().next_multiple_of(8), b' ');
    if text.len() as u64 > MAX_HEADER_BYTES {
        let (what, found) = ("the safetensors header's length".into(), text.len() as u64);
        return Err(Error::TooLarge { what, found, limit: MAX_HEADER_BYTES });
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    Ok((header, parts))
}

/// A safetensors file in memory: equal input gives equal bytes.
///
/// # Errors
/// A tensor whose bytes do not match its shape, or a header above 100 MB.
pub fn safetensors_bytes(
    tensors: &BTreeMap<String, TensorView<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, Error> {
    let (mut out, parts) = plan(tensors, metadata)?;
    for part in parts {
        out.extend_from_slice(part);
    }
    Ok(out)
}

/// Writes a safetensors file so that `path` holds either its old content or all of the new one.
///
/// The bytes go to a new file beside `path`, are flushed to the disk, and replace `path` by a rename; a file that
/// is mapped under that name stays intact. Equal input gives equal bytes.
///
/// # Errors
/// As [`safetensors_bytes`], or the system's (disk full, folder not writable); nothing is left behind then.
pub fn write_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, TensorView<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let (header, parts) = plan(tensors, metadata).map_err(|error| error.within(path))?;
    let Some(file_name) = path.file_name() else {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
        return Err(Error::io("write")(error).within(path));
    };
    let mut beside = std::ffi::OsString::from(".");
    beside.push(file_name);
    beside.push(format!(".{}.part", std::process::id()));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let part_path = folder.join(beside);
    let written = write_all(&part_path, &header, &parts)
        .and_then(|()| fs::rename(&part_path, path))
        // The rename itself is only durable once the folder is.
        .and_then(|()| File::open(folder)?.sync_all());
    written.map_err(|error| {
        // The write's error is the one to report; a part file that was never made cannot be removed.
        let _ = fs::remove_file(&part_path);
        Error::io("write")(error).within(path)
    })
}

fn write_all(path: &Path, header: &[u8], parts: &[&[u8]]) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(header)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.flush()?;
    file.get_ref().sync_all()
}
