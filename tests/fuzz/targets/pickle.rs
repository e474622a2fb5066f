//! Torch files, zip and legacy. An input that is neither is wrapped as the pickle of a minimal zip archive, so that
//! the fuzzer reaches the interpreter without having to invent an archive around it.

#![no_main]

use checkpoint::{Checkpoint, identify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let is_torch = data.starts_with(b"PK") || data.starts_with(b"\x80");
    let bytes = if is_torch { data.to_vec() } else { archive(data) };
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

/// A stored zip archive of `a/data.pkl` and a 64-byte storage `0`.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut directory = Vec::new();
    for (name, content) in [("a/data.pkl", pickle), ("a/data/0", &[0; 64][..])] {
        let size =
            u32::try_from(content.len()).expect("libFuzzer's inputs are small").to_le_bytes();
        let start = u32::try_from(bytes.len()).expect("libFuzzer's inputs are small").to_le_bytes();
        let name_length = [u8::try_from(name.len()).expect("the names above are short"), 0, 0, 0];
        // Version, flags, method, time, date, checksum (not checked for stored entries), sizes, lengths.
        let common =
            [&[20, 0, 0, 0, 0, 0, 0, 0, 33, 0, 0, 0, 0, 0][..], &size, &size, &name_length]
                .concat();
        bytes.extend([b"PK\x03\x04", &common[..], name.as_bytes(), content].concat());
        directory.extend(
            [b"PK\x01\x02\x14\x00", &common[..], &[0; 10], &start, name.as_bytes()].concat(),
        );
    }
    let start = u32::try_from(bytes.len()).expect("libFuzzer's inputs are small").to_le_bytes();
    let size = u32::try_from(directory.len()).expect("two short entries").to_le_bytes();
    let end = [b"PK\x05\x06\0\0\0\0\x02\0\x02\0", &size[..], &start, &[0, 0]].concat();
    [bytes, directory, end].concat()
}
