//! Torch files of the time before zip archives: five pickles in a row, then the raw storages.
//!
//! The pickles are a magic number, the protocol, a description of the machine, the object, and the list of
//! storage keys; each storage follows in that order as an 8-byte element count and its elements.

use std::collections::BTreeMap;

use crate::Error;
use crate::blob::Blob;
use crate::layout::StorageRegion;
use crate::pickle::{Object, Pickle};
use crate::shard::{Format, Shard};
use crate::state_dict::{StateDict, StorageId, storage_bytes, storage_id};

/// `0x1950a86a20f9469cfc6c` as torch pickles it: protocol 2, a 10-byte integer, stop.
const MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Whether a file opens with the magic number, whatever its pickle protocol.
pub(crate) fn is_legacy(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x80) && bytes.get(2..).is_some_and(|rest| rest.starts_with(MAGIC))
        // Protocol 4 and later wrap it in a frame of 8 length bytes.
        || bytes.get(2) == Some(&0x95)
            && bytes.get(11..).is_some_and(|rest| rest.starts_with(MAGIC))
}

fn damaged(problem: impl Into<String>) -> Error {
    Error::Archive { problem: problem.into() }
}

/// A pickle at `at`, and where it ends. Offsets in errors count from the pickle's own start.
fn pickle_at(bytes: &[u8], at: usize) -> Result<(Pickle<'_>, usize), Error> {
    let pickle = Pickle::load(&bytes[at..])?;
    let end = at + pickle.length;
    Ok((pickle, end))
}

/// Reads the pickles and finds every storage.
pub(crate) fn read(blob: Blob) -> Result<Shard, Error> {
    let bytes = blob.bytes();
    let (_magic, at) = pickle_at(bytes, 0)?;
    let (protocol, at) = pickle_at(bytes, at)?;
    if !matches!(protocol.get(protocol.root), Object::Int(1001)) {
        return Err(damaged("legacy protocol number is not 1001"));
    }
    let (machine, at) = pickle_at(bytes, at)?;
    check_machine(&machine)?;
    let (object, at) = pickle_at(bytes, at)?;
    let (keys, at) = pickle_at(bytes, at)?;
    let Object::List(key_ids) = keys.get(keys.root) else {
        return Err(damaged("the list of storage keys is missing"));
    };

    // Element types are known only from the descriptions inside the object; every storage in the list has one.
    let described = described_storages(&object)?;
    let mut regions = BTreeMap::new();
    let mut rest_at = at;
    for key in key_ids {
        let key = keys.text(*key).ok_or_else(|| damaged("a storage key is not text"))?;
        let id =
            described.get(key).ok_or_else(|| damaged(format!("storage {key} is used nowhere")))?;
        let rest = &bytes[rest_at..];
        let (count, data) = rest.split_first_chunk::<8>().ok_or_else(|| {
            Error::truncated(format!("element count of storage {key}"), 8, rest.len() as u64)
        })?;
        let count = u64::from_le_bytes(*count);
        if count != id.n_elements {
            let n_elements = id.n_elements;
            return Err(damaged(format!(
                "storage {key} holds {count} elements, expected {n_elements}"
            )));
        }
        let n_bytes = storage_bytes(id)?;
        if n_bytes > data.len() as u64 {
            return Err(Error::truncated(format!("storage {key}"), n_bytes, data.len() as u64));
        }
        let offset = rest_at + 8;
        let n_bytes = usize::try_from(n_bytes).expect("at most the length of the rest");
        let region = StorageRegion { dtype: id.dtype, blob: 0, offset, n_elements: count };
        if regions.insert(key, region).is_some() {
            return Err(damaged(format!("storage {key} is listed twice")));
        }
        rest_at = offset + n_bytes;
    }

    let state = StateDict::find(&object)?;
    let entries = state.place(&object, |id| {
        let region = regions.get(id.key).copied();
        region.ok_or_else(|| damaged(format!("storage {} is not in the list of keys", id.key)))
    })?;
    let taken = state.taken;
    Ok(Shard {
        format: Format::TorchLegacy,
        blobs: vec![blob],
        entries,
        metadata: BTreeMap::new(),
        taken,
    })
}

/// Every storage that the object mentions, by key; two descriptions of one storage must agree.
fn described_storages<'a>(object: &Pickle<'a>) -> Result<BTreeMap<&'a str, StorageId<'a>>, Error> {
    let mut described: BTreeMap<&str, StorageId<'_>> = BTreeMap::new();
    for id in object.persistent_ids() {
        let id = storage_id(object, id)?;
        if let Some(other) = described.get(id.key)
            && (other.dtype, other.n_elements) != (id.dtype, id.n_elements)
        {
            return Err(damaged(format!("storage {} is described in two ways", id.key)));
        }
        described.insert(id.key, id);
    }
    Ok(described)
}

fn check_machine(machine: &Pickle<'_>) -> Result<(), Error> {
    let Object::Dict(items) = machine.get(machine.root) else {
        return Err(damaged("the description of the writing machine is missing"));
    };
    let order = items.iter().find(|item| machine.text(item.0) == Some("little_endian"));
    match order.map(|item| machine.get(item.1)) {
        Some(Object::Bool(true)) => Ok(()),
        Some(Object::Bool(false)) => Err(damaged("byte order is big, expected little")),
        _ => Err(damaged("the byte order of the writing machine is missing")),
    }
}
