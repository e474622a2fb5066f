//! Attention, on the emulated device against the interpreter.

use std::collections::BTreeMap;

use kernels::cuda::Gpu;
use ops::{Builder, DType, Error, Graph, TensorType, ValueId};
use tests::{Rng, relative_l2};

/// A graph of one body over inputs of these types.
fn graph(
    types: &[(&[usize], DType)],
    build: impl Fn(&mut Builder, &[ValueId]) -> Result<ValueId, Error>,
) -> Graph {
    let mut b = Builder::new("attention");
    let args: Vec<ValueId> = types
        .iter()
        .enumerate()
        .map(|(i, (shape, dtype))| {
            b.input(&i.to_string(), TensorType::new(*dtype, *shape).unwrap())
        })
        .collect();
    let output = build(&mut b, &args).unwrap();
    b.finish(&[output])
}

/// Runs it and compares.
fn check(name: &str, graph: &Graph, gpu: Gpu, most: f64) {
    let mut rng = Rng::named(name);
    let given: BTreeMap<_, _> = graph
        .inputs()
        .map(|(value, input)| (input.to_string(), rng.tensor(graph.ty(value), (-2.0, 2.0))))
        .collect();
    let found = cuda_tests::run(graph, &given, gpu);
    let expected = cuda_tests::expected(graph, &given);
    let error = relative_l2(found[0].as_floats(), expected[0].as_floats());
    assert!(error < most, "{name}: {error}");
}

/// bf16 rows and weights: 8 bits each.
const HALF: f64 = 8e-3;

#[test]
fn self_attention_of_long_sequences() {
    // [B, Sq, Sk, H, D]
    for [batch, sq, sk, h, d] in
        [[1, 128, 128, 2, 64], [2, 130, 130, 2, 72], [1, 70, 200, 1, 128], [1, 33, 9, 1, 32]]
    {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
        let scale = 1.0 / (d as f64).sqrt();
        for dtype in [DType::Bf16, DType::F16] {
            let graph = graph(&[(q, dtype), (k, dtype), (k, dtype)], |b, args| {
                b.attention([args[0], args[1], args[2]], None, None, scale)
            });
            check(&format!("{dtype} {sq} x {sk} x {d}"), &graph, Gpu(80), HALF);
        }
    }
}
