//! Writes torch's zip files, small enough to be sure of: stored entries, pickles of protocol 0.
//!
//! Shared by source with the tests of `kino` and with fuzzing, which need such files too.
#![allow(dead_code, reason = "no user needs all of it")]

/// A state dictionary as `torch.save` lays it out: each tensor `(name, storage class, shape, bytes)`
/// has a contiguous storage of its own. Names are without quotes and backslashes.
pub(crate) fn state_dict(tensors: &[(&str, &str, &[usize], &[u8])]) -> Vec<u8> {
    let words = |dims: &[usize]| dims.iter().map(|dim| format!("{dim} ")).collect::<String>();
    let mut pickle = String::from("}");
    for (key, (name, class, shape, _)) in tensors.iter().enumerate() {
        let n = shape.iter().product::<usize>().to_string();
        let strides: Vec<usize> =
            (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        let key = key.to_string();
        let storage = [class, key.as_str(), n.as_str()];
        pickle += &format!("S'{name}'\n{}s", tensor(storage, "0", &words(shape), &words(&strides)));
    }
    pickle += ".";
    let mut zip = Zip::default();
    zip.add("a/data.pkl", pickle.as_bytes());
    for (key, (.., bytes)) in tensors.iter().enumerate() {
        zip.add(&format!("a/data/{key}"), bytes);
    }
    zip.finish()
}

/// An archive around a pickle, with one storage `0`.
pub(crate) fn archive(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    let mut zip = Zip::default();
    for (name, content) in [("a/data.pkl", pickle), ("a/data/0", storage)] {
        zip.add(name, content);
    }
    zip.finish()
}

/// The instructions that build a tensor, its numbers as text: `shape` and `strides` are words.
/// The storage is its class, its key, and how many elements it claims.
pub(crate) fn tensor(
    [class, key, n]: [&str; 3],
    offset: &str,
    shape: &str,
    strides: &str,
) -> String {
    let numbers =
        |words: &str| words.split_whitespace().map(|n| format!("I{n}\n")).collect::<String>();
    format!(
        "ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\n{class}\nS'{key}'\nS'cpu'\nI{n}\ntQI{offset}\n({}t({}tI00\nNtR",
        numbers(shape),
        numbers(strides)
    )
}

/// A zip archive of stored entries.
#[derive(Default)]
pub(crate) struct Zip {
    bytes: Vec<u8>,
    directory: Vec<u8>,
    n_entries: u16,
}

impl Zip {
    /// Adds a file. Checksums are left 0: the reader does not ask stored entries for theirs.
    pub(crate) fn add(&mut self, name: &str, content: &[u8]) {
        let start = self.bytes.len() as u32;
        let size = (content.len() as u32).to_le_bytes();
        let mut common = Vec::new();
        common.extend([20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0]);
        common.extend([0; 4]);
        common.extend(size);
        common.extend(size);
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        self.bytes.extend(b"PK\x03\x04");
        self.bytes.extend(&common);
        self.bytes.extend(name.as_bytes());
        self.bytes.extend(content);
        self.directory.extend(b"PK\x01\x02\x14\x00");
        self.directory.extend(&common);
        self.directory.extend([0; 10]);
        self.directory.extend(start.to_le_bytes());
        self.directory.extend(name.as_bytes());
        self.n_entries += 1;
    }

    /// The archive's bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let start = self.bytes.len() as u32;
        let size = self.directory.len() as u32;
        self.bytes.append(&mut self.directory);
        self.bytes.extend(b"PK\x05\x06\0\0\0\0");
        self.bytes.extend([self.n_entries.to_le_bytes(), self.n_entries.to_le_bytes()].concat());
        self.bytes.extend(size.to_le_bytes());
        self.bytes.extend(start.to_le_bytes());
        self.bytes.extend([0, 0]);
        self.bytes
    }
}
