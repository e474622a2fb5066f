//! A two-block model and made-up values for the inputs of its graphs.

use std::collections::BTreeMap;

use models::Bucket;
use models::config::Stdit2;
use ops::{DType, Graph, Role, Rounding, Tensor, TensorType};
use serde_json::json;
use training::{Model, Program};

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// Two blocks, 16 wide.
pub(crate) fn model() -> Model {
    let file = json!({
        "hidden_size": 24, "depth": 2, "num_heads": 2, "caption_channels": 6,
        "model_max_length": 5, "qk_norm": true, "input_sq_size": 16,
    });
    Model::Stdit2(Stdit2::from_json(&file).unwrap())
}

/// Two rows of three frames, some of them clean.
pub(crate) fn bucket() -> Bucket {
    Bucket { frame_mask: true, ..Bucket::new(2, [3, 4, 4], [32.0, 32.0], 5) }
}

/// Some value for every input and parameter; the same for the same name. Timesteps are 0 and then in
/// the middle; masks have both values; sums of squares and moments are not negative.
pub(crate) fn given(graph: &Graph) -> Tensors {
    let mut given = Tensors::new();
    for node in &graph.nodes {
        let (Role::Input(name) | Role::Param(name)) = &node.role else { continue };
        let count = node.ty.count();
        let seed = name.bytes().fold(7.0, |seed, byte| 1.3 * seed % 97.0 + f64::from(byte));
        // Products keep the size of what they multiply.
        let is_matrix = node.ty.rank() >= 2 && name.ends_with("weight");
        let scale = if is_matrix { (node.ty.shape()[0] as f64 / count as f64).sqrt() } else { 0.4 };
        let wave = |i: usize| scale * (seed + 0.7 * i as f64).sin() + 0.02 * (i % 5) as f64;
        let tensor = match node.ty.dtype() {
            DType::Bool => {
                Tensor::ints(node.ty.clone(), (0..count).map(|i| i64::from(i % 3 != 1)).collect())
            }
            DType::I64 => {
                Tensor::ints(node.ty.clone(), (0..count).map(|i| 431 * i as i64).collect())
            }
            _ if name.starts_with("second_moment.") => {
                Tensor::floats(node.ty.clone(), (0..count).map(|i| wave(i).abs()).collect())
            }
            _ => Tensor::floats(node.ty.clone(), (0..count).map(wave).collect()),
        };
        given.insert(name.to_string(), tensor.rounded());
    }
    for (name, value) in
        [("height", 32.0), ("width", 32.0), ("num_frames", 3.0), ("ar", 1.0), ("fps", 8.0)]
    {
        given.insert(name.into(), vector(&[value; 2]));
    }
    if given.contains_key("optimizer") {
        given.insert("optimizer".into(), vector(&[1e-3, 1.5, 1.0]));
    }
    given
}

/// f32 `[n]`.
pub(crate) fn vector(values: &[f64]) -> Tensor {
    let ty = TensorType::new(DType::F32, [values.len()]).unwrap();
    Tensor::floats(ty, values.to_vec()).rounded()
}

/// The outputs of `program` by the interpreter, rounded as stored.
pub(crate) fn run(program: &Program, given: &Tensors) -> Vec<Tensor> {
    ops::eval(&program.graph, given, Rounding::Stored).unwrap()
}

/// `||a - b|| / ||b||`.
pub(crate) fn relative_l2(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum();
    let norm: f64 = b.iter().map(|y| y * y).sum();
    (difference / norm).sqrt()
}
