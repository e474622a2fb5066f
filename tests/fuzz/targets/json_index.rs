//! The JSON readers: a shard index, and a config.json beside weights.

#![no_main]

use checkpoint::{Checkpoint, ShardIndex, identify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(index) = ShardIndex::parse(data) {
        for file in index.shards.keys() {
            assert!(!file.contains(['/', '\\']) && file != "..", "{file:?} leaves its folder");
        }
    }
    let Ok(config) = serde_json::from_slice(data) else { return };
    const WEIGHTS: &[u8] = b"\x50\0\0\0\0\0\0\0{\"x_embedder.proj.weight\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1],\"data_offsets\":[0,1]}}\0";
    let checkpoint = Checkpoint::from_safetensors_bytes(WEIGHTS).expect("a valid file");
    identify(&checkpoint.with_config(config));
});
