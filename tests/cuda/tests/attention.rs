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

#[test]
fn short_sequences_of_many_pairs() {
    // Up to 16 or 32 rows, each warp with a pair of its own; pairs that do not fill the last block.
    for [batch, sq, sk, h, d] in
        [[3, 16, 16, 2, 72], [5, 7, 9, 1, 64], [2, 20, 31, 3, 24], [1, 1, 1, 1, 8]]
    {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
        let scale = -1.0 / (d as f64).sqrt();
        let graph = graph(&[(q, DType::Bf16), (k, DType::Bf16), (k, DType::Bf16)], |b, args| {
            b.attention([args[0], args[1], args[2]], None, None, scale)
        });
        check(&format!("{batch} x {sq} x {sk} x {d}"), &graph, Gpu(80), HALF);
    }
}

#[test]
fn parts_of_one_product_are_read_where_they_lie() {
    // [B, T, S, 3 H D], attention over S, then over T.
    let (batch, t, s, h, d) = (2, 3, 66, 2, 72);
    let x: &[usize] = &[batch, t, s, 3 * h * d];
    for is_over_time in [false, true] {
        let graph = graph(&[(x, DType::Bf16)], |b, args| {
            let x = b.reshape(args[0], &[batch, t, s, 3, h, d])?;
            let mut parts = vec![];
            for part in 0..3 {
                let y = b.slice_axis(x, 3, part, part + 1)?;
                let y = b.reshape(y, &[batch, t, s, h, d])?;
                let axes = [0, 2, 1, 3, 4];
                parts.push(if is_over_time { b.permute(y, &axes)? } else { y });
            }
            let y = b.attention([parts[0], parts[1], parts[2]], None, None, 0.1)?;
            if is_over_time { b.permute(y, &[0, 2, 1, 3, 4]) } else { Ok(y) }
        });
        check(&format!("parts {is_over_time}"), &graph, Gpu(80), HALF);
    }
}

#[test]
fn masks_and_biases() {
    for [batch, sq, sk, h, d] in
        [[2, 40, 150, 2, 72], [3, 16, 16, 2, 32], [2, 9, 64, 1, 64], [1, 140, 70, 1, 64]]
    {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
        let (mask, bias): (&[usize], &[usize]) = (&[batch, sk], &[1, h, sq, sk]);
        let half = DType::Bf16;
        let plain = [(q, half), (k, half), (k, half)];
        let name = format!("{batch} x {sq} x {sk} x {d}");
        let masked = graph(&[&plain[..], &[(mask, DType::Bool)]].concat(), |b, args| {
            b.attention([args[0], args[1], args[2]], None, Some(args[3]), 0.2)
        });
        check(&format!("masked {name}"), &masked, Gpu(80), HALF);
        for dtype in [half, DType::F32] {
            let biased = graph(&[&plain[..], &[(bias, dtype)]].concat(), |b, args| {
                let y = b.attention([args[0], args[1], args[2]], Some(args[3]), None, 1.0)?;
                b.cast(y, DType::F32)
            });
            check(&format!("biased {name}"), &biased, Gpu(80), HALF);
        }
        let both = [&plain[..], &[(bias, DType::F32), (mask, DType::Bool)]].concat();
        let both = graph(&both, |b, args| {
            b.attention([args[0], args[1], args[2]], Some(args[3]), Some(args[4]), -0.3)
        });
        check(&format!("both {name}"), &both, Gpu(80), HALF);
    }
}
