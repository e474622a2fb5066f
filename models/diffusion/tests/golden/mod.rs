//! Reads golden cases: the folder `KINO_GOLDENS`, or the workspace's copy.

use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};

/// A tensor of any element type.
pub(crate) struct Golden {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f64>,
}

/// A case file, read whole.
pub(crate) struct Case(Vec<u8>);

fn path(name: &str) -> PathBuf {
    let folder = std::env::var_os("KINO_GOLDENS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden")),
        PathBuf::from,
    );
    folder.join(name)
}

fn read(name: &str) -> Vec<u8> {
    let path = path(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub(crate) fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&read(name)).unwrap()
}

impl Case {
    pub(crate) fn open(name: &str) -> Case {
        Case(read(name))
    }

    pub(crate) fn names(&self) -> Vec<String> {
        SafeTensors::deserialize(&self.0).unwrap().names().iter().map(ToString::to_string).collect()
    }

    pub(crate) fn get(&self, name: &str) -> Golden {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        fn wide<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            bytes.chunks_exact(N).map(|chunk| f(chunk.try_into().unwrap())).collect()
        }
        let values = match view.dtype() {
            Dtype::F32 => wide(view.data(), |b| f64::from(f32::from_le_bytes(b))),
            Dtype::F64 => wide(view.data(), f64::from_le_bytes),
            Dtype::I64 => wide(view.data(), |b| i64::from_le_bytes(b) as f64),
            Dtype::BOOL => wide(view.data(), |[b]| f64::from(b)),
            other => panic!("{name} is {other:?}"),
        };
        Golden { shape: view.shape().to_vec(), values }
    }
}

/// `||a - b|| / ||b||`.
pub(crate) fn relative_l2(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-30)
}
