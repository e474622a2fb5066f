//! The safetensors reader: any bytes give a checkpoint or an error, and what is accepted survives a rewrite.

#![no_main]

use std::collections::BTreeMap;

use checkpoint::{Checkpoint, identify, safetensors_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(checkpoint) = Checkpoint::from_safetensors_bytes(data.to_vec()) else { return };
    let tensors: BTreeMap<_, _> = checkpoint
        .tensors()
        .map(|info| (info.name.to_string(), checkpoint.tensor(info.name).expect("listed")))
        .collect();
    let written = safetensors_bytes(&tensors, checkpoint.metadata()).expect("read from a file");
    let again = Checkpoint::from_safetensors_bytes(written).expect("written by us");
    for info in checkpoint.tensors() {
        assert_eq!(again.tensor(info.name).expect("written"), tensors[info.name]);
    }
    identify(&checkpoint);
});
