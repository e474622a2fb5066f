//! Reading the safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes.
//!
//! The reader is ours rather than the `safetensors` crate's because that crate silently keeps one of two equal
//! names, and its errors do not name the tensor. What is accepted is the same (a test compares them): every byte
//! of the data belongs to exactly one tensor, without holes. Nothing is allocated from a claimed length; the
//! header's JSON is the only thing copied.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::blob::Blob;
use crate::layout::{Dims, Entry, MAX_RANK};
use crate::shard::{Format, Shard};
use crate::{DType, Error};

/// Largest header accepted, as in the reference implementation.
pub(crate) const MAX_HEADER_BYTES: u64 = 100_000_000;

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
