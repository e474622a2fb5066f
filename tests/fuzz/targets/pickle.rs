//! Torch files, zip and legacy. An input that is neither is wrapped as the pickle of a minimal zip archive, so that
//! the fuzzer reaches the interpreter without having to invent an archive around it.

#![no_main]

#[path = "../../../models/checkpoint/tests/torch_file/mod.rs"]
mod torch_file;

use checkpoint::{Checkpoint, identify};
use libfuzzer_sys::fuzz_target;
use torch_file::archive;

fuzz_target!(|data: &[u8]| {
    let is_torch = data.starts_with(b"PK") || data.starts_with(b"\x80");
    let bytes = if is_torch { data.to_vec() } else { archive(data, &[0; 64]) };
    let Ok(checkpoint) = Checkpoint::from_bytes(bytes) else { return };
    for info in checkpoint.tensors() {
        let view = checkpoint.tensor(info.name).expect("listed");
        assert_eq!(view.bytes.len(), info.bytes);
        let n_elements: usize = view.shape.iter().product();
        assert_eq!(n_elements * view.dtype.size(), info.bytes);
        drop(view.to_f32());
    }
    identify(&checkpoint);
});
