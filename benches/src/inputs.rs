//! What the work is done on: one file of inputs for all sides, the same numbers each time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::{Checkpoint, TensorView, write_safetensors};
use diffusion::fill_normal;
use half::{bf16, f16};
use ops::{DType, Graph, TensorType};

use crate::Error;
use crate::work::Work;

/// Seed of the inputs, which is none of the weights'.
const SEED: u64 = 2;

/// An input of a graph as dense little-endian bytes of its type.
pub(crate) type Input = (String, Vec<u8>);

/// Writes the inputs of `graph`: floats as f32, token ids as i64. Masks are not written: everything is valid.
///
/// # Errors
/// The system's.
pub fn write(work: &Work, graph: &Graph, path: &Path) -> Result<(), Error> {
    let mut tensors = BTreeMap::new();
    for (draw, (value, name)) in graph.inputs().enumerate() {
        let ty = graph.ty(value);
        let mut noise = vec![0f32; ty.count()];
        match work.scalar(name) {
            Some(value) => noise.fill(value),
            None => fill_normal(SEED, draw as u64, 0, &mut noise),
        }
        let (dtype, bytes): (_, Vec<u8>) = match ty.dtype() {
            DType::Bool => continue,
            DType::I64 => {
                let ids = work.vocabulary()? as i64;
                let id = |x: &f32| ((x.abs() * 1e4) as i64 % ids).to_le_bytes();
                (checkpoint::DType::I64, noise.iter().flat_map(id).collect())
            }
            _ => (checkpoint::DType::F32, noise.iter().flat_map(|x| x.to_le_bytes()).collect()),
        };
        let shape = ty.shape().to_vec();
        tensors.insert(name.to_string(), TensorView { dtype, shape, bytes: Cow::Owned(bytes) });
    }
    Ok(write_safetensors(path, &tensors, &BTreeMap::new())?)
}

/// Reads what [`write`] wrote, in the types that `graph` takes.
///
/// # Errors
/// A file that [`write`] did not write for this graph.
pub(crate) fn read(graph: &Graph, path: &Path) -> Result<Vec<Input>, Error> {
    let file = Checkpoint::open(path)?;
    let mut inputs = vec![];
    for (value, name) in graph.inputs() {
        let ty = graph.ty(value);
        let bytes = match ty.dtype() {
            DType::Bool => vec![1; ty.count()],
            DType::F32 | DType::I64 => file.tensor(name)?.bytes.into_owned(),
            DType::Bf16 => {
                file.to_f32(name)?.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
            }
            _ => file.to_f32(name)?.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        };
        inputs.push((name.to_string(), bytes));
    }
    Ok(inputs)
}

/// The dense bytes of a float result as those of f32.
pub(crate) fn to_f32_bytes(ty: &TensorType, bytes: &[u8]) -> Vec<u8> {
    let widen = |half: fn([u8; 2]) -> f32| -> Vec<u8> {
        bytes.as_chunks().0.iter().flat_map(|word| half(*word).to_le_bytes()).collect()
    };
    match ty.dtype() {
        DType::Bf16 => widen(|word| bf16::from_le_bytes(word).to_f32()),
        DType::F16 => widen(|word| f16::from_le_bytes(word).to_f32()),
        _ => bytes.to_vec(),
    }
}
