//! From a loaded pickle to named tensors: which dictionary is taken, and where each tensor's storage lies.

use std::collections::BTreeMap;

use crate::layout::{Entry, StorageRegion};
use crate::pickle::{Id, Object, Pickle, TensorParts};
use crate::pickle_globals::Global;
use crate::{DType, Error};

/// Keys under which training programs nest the weights, best first: averaged weights win, as in upstream's loader.
const NESTED: [&str; 4] = ["ema", "state_dict", "model", "module"];

/// How deep dictionaries of [`NESTED`] keys may lie in each other.
const MAX_DEPTH: usize = 2;

/// What a storage's persistent id says.
#[derive(Clone, Debug)]
pub(crate) struct StorageId<'a> {
    pub(crate) dtype: DType,
    /// Names the raw bytes in the archive.
    pub(crate) key: &'a str,
    pub(crate) n_elements: u64,
    /// The part of the storage that is meant, in elements; only legacy files have one.
    pub(crate) view: Option<(u64, u64)>,
}

/// The dictionary of tensors inside a pickle.
#[derive(Debug)]
pub(crate) struct StateDict<'a> {
    /// In order of name.
    pub(crate) tensors: BTreeMap<&'a str, TensorParts>,
    /// The keys that led to it, joined by dots; absent when the top object is the dictionary.
    pub(crate) taken: Option<String>,
}

impl<'a> StateDict<'a> {
    /// Finds the dictionary of tensors. Values that are not tensors, and keys that are not texts, are passed over.
    pub(crate) fn find(pickle: &Pickle<'a>) -> Result<StateDict<'a>, Error> {
        let mut keys = Vec::new();
        let tensors = find_in(pickle, pickle.root, &mut keys).ok_or_else(|| {
            let found = match pickle.get(pickle.root) {
                Object::Dict(items) => format!("a dictionary of {} other values", items.len()),
                other => other.kind().to_string(),
            };
            Error::NoTensors { found }
        })?;
        let taken = (!keys.is_empty()).then(|| keys.join("."));
        Ok(StateDict { tensors, taken })
    }

    /// Places every tensor, given the place of every storage.
    pub(crate) fn place(
        &self,
        pickle: &Pickle<'a>,
        mut storage: impl FnMut(&StorageId<'a>) -> Result<StorageRegion, Error>,
    ) -> Result<BTreeMap<String, Entry>, Error> {
        let mut entries = BTreeMap::new();
        for (name, parts) in &self.tensors {
            let id = storage_id(pickle, parts.storage)?;
            let mut region = storage(&id)?;
            if let Some((first, n_elements)) = id.view {
                let end = first.checked_add(n_elements);
                if end.is_none_or(|end| end > region.n_elements) {
                    return Err(Error::OutsideStorage {
                        name: (*name).into(),
                        shape: vec![n_elements],
                        strides: vec![1],
                        offset: first,
                        storage_len: region.n_elements,
                    });
                }
                let first = usize::try_from(first).expect("inside a storage that lies in a blob");
                region.offset += first * region.dtype.size();
                region.n_elements = n_elements;
            }
            let (shape, strides) = (pickle.dims(parts.shape), pickle.dims(parts.strides));
            let entry = Entry::strided(name, region, parts.offset, &shape, &strides)?;
            entries.insert((*name).to_string(), entry);
        }
        Ok(entries)
    }
}

fn find_in<'a>(
    pickle: &Pickle<'a>,
    id: Id,
    keys: &mut Vec<&'static str>,
) -> Option<BTreeMap<&'a str, TensorParts>> {
    let Object::Dict(items) = pickle.get(id) else { return None };
    if keys.len() < MAX_DEPTH {
        for key in NESTED {
            let nested = items.iter().rev().find(|item| pickle.text(item.0) == Some(key));
            if let Some((_, value)) = nested {
                keys.push(key);
                if let Some(tensors) = find_in(pickle, *value, keys) {
                    return Some(tensors);
                }
                keys.pop();
            }
        }
    }
    let mut tensors = BTreeMap::new();
    for (key, value) in items {
        if let (Some(name), Object::Tensor(parts)) = (pickle.text(*key), pickle.get(*value)) {
            tensors.insert(name, *parts);
        }
    }
    (!tensors.is_empty()).then_some(tensors)
}

/// Reads `("storage", type, key, location, n_elements[, view])`.
pub(crate) fn storage_id<'a>(pickle: &Pickle<'a>, id: Id) -> Result<StorageId<'a>, Error> {
    let wrong =
        |problem: &str| Error::Archive { problem: format!("storage description: {problem}") };
    let Object::Persistent(tuple) = pickle.get(id) else {
        return Err(wrong("not a persistent id"));
    };
    let Object::Tuple(parts) = pickle.get(*tuple) else {
        return Err(wrong("not a tuple"));
    };
    let [tag, class, key, _location, n_elements, rest @ ..] = &parts[..] else {
        return Err(wrong("fewer than 5 parts"));
    };
    if pickle.text(*tag) != Some("storage") {
        return Err(wrong("not tagged as a storage"));
    }
    let Object::Global(Global::Storage(dtype)) = pickle.get(*class) else {
        return Err(wrong("the type is not a storage class"));
    };
    let key = pickle.text(*key).ok_or_else(|| wrong("the key is not text"))?;
    let count = |id: Id, what| match pickle.get(id) {
        Object::Int(n) => u64::try_from(*n).map_err(|_| wrong(what)),
        _ => Err(wrong(what)),
    };
    let n_elements = count(*n_elements, "the element count is not a natural number")?;
    let view = match rest.first().map(|id| pickle.get(*id)) {
        Some(Object::Tuple(view)) => match view[..] {
            [_, offset, size] => Some((
                count(offset, "the view's offset is not a natural number")?,
                count(size, "the view's size is not a natural number")?,
            )),
            _ => return Err(wrong("a view without offset and size")),
        },
        Some(Object::None) | None => None,
        Some(_) => return Err(wrong("a view that is not a tuple")),
    };
    Ok(StorageId { dtype: *dtype, key, n_elements, view })
}

/// Bytes of a storage, or the overflow error that names it.
pub(crate) fn storage_bytes(id: &StorageId<'_>) -> Result<u64, Error> {
    crate::layout::byte_len(&format!("storage {}", id.key), id.dtype, &[id.n_elements])
}
