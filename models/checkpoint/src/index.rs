//! The index of a sharded checkpoint: `{"metadata": ..., "weight_map": {tensor: file}}`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::Error;
use crate::safetensors::{Pairs, first_duplicate};

/// Most files one checkpoint may be split into.
const MAX_SHARDS: usize = 4096;

/// Which file holds which tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardIndex {
    /// File name (beside the index) to the tensors it holds, both in order.
    pub shards: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Json {
    weight_map: Pairs<String>,
}

impl ShardIndex {
    /// Parses an index.
    ///
    /// # Errors
    /// JSON of another structure, a tensor listed twice, a file that is not a plain name (an index must not reach
    /// outside its folder), or more than 4096 files.
    pub fn parse(json: &[u8]) -> Result<ShardIndex, Error> {
        let json: Json = serde_json::from_slice(json)
            .map_err(|error| Error::Json { what: "shard index", error })?;
        let pairs = json.weight_map.0;
        if let Some(name) = first_duplicate(&pairs) {
            return Err(Error::DuplicateName { name: name.into() });
        }
        let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (tensor, file) in pairs {
            if !is_plain_name(&file) {
                return Err(Error::ShardName { tensor, file });
            }
            shards.entry(file).or_default().push(tensor);
        }
        if shards.len() > MAX_SHARDS {
            return Err(Error::TooLarge {
                what: "the number of shards".into(),
                found: shards.len() as u64,
                limit: MAX_SHARDS as u64,
            });
        }
        for tensors in shards.values_mut() {
            tensors.sort_unstable();
        }
        Ok(ShardIndex { shards })
    }
}

/// Whether a name from a file may be joined to a folder without leaving it, on any system.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0'])
}
