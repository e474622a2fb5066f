//! Convolutions: windows at every edge, channels that fill no copy, doubled inputs, parts of weights.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;

use kernels::cuda::Gpu;
use ops::defs::conv::Window;
use ops::{Builder, DType, Error, Graph, Tensor, TensorType, ValueId};
use tests::{Rng, relative_l2};

/// A convolution of `x` with weight `w` (and `bias`) in `build`.
fn graph_of(
    dtype: DType,
    x: &[usize],
    w: &[usize],
    build: impl Fn(&mut Builder, ValueId, ValueId) -> Result<ValueId, Error>,
) -> Graph {
    let mut b = Builder::new("conv");
    let input = b.input("x", TensorType::new(dtype, x).unwrap());
    let weight = b.param("w", TensorType::new(dtype, w).unwrap());
    let output = build(&mut b, input, weight).unwrap();
    b.finish(&[output])
}

fn given(graph: &Graph) -> BTreeMap<String, Tensor> {
    let mut rng = Rng::new(5);
    let named = graph.inputs().chain(graph.params());
    named
        .map(|(value, name)| (name.to_string(), rng.tensor(graph.ty(value), (-1.0, 1.0))))
        .collect()
}

/// Runs on the emulated device and compares: halves are rounded once, f32 sums differ in order.
fn check(graph: &Graph, what: &str) {
    let given = given(graph);
    let found = cuda_tests::run(graph, &given, Gpu(80));
    let expected = cuda_tests::expected(graph, &given);
    let dtype = graph.ty(graph.outputs[0]).dtype();
    let most = if dtype == DType::F32 { 1e-6 } else { 3e-3 };
    let error = relative_l2(found[0].as_floats(), expected[0].as_floats());
    assert!(error < most, "{dtype} {what}: {error}");
}

#[test]
fn windows_see_zeros_outside() {
    for dtype in [DType::Bf16, DType::F32] {
        // A 3x3 window of one step, of two, padded on one side only; one tap; three axes.
        for (x, w, stride, low, high) in [
            (&[2, 9, 11, 16][..], &[24, 16, 3, 3][..], &[1, 1][..], &[1, 1][..], &[1, 1][..]),
            (&[1, 8, 10, 64], &[40, 64, 3, 3], &[2, 2], &[0, 0], &[1, 1]),
            (&[1, 7, 5, 32], &[16, 32, 1, 1], &[1, 1], &[0, 0], &[0, 0]),
            (&[2, 5, 6, 7, 8], &[32, 8, 3, 3, 3], &[1, 1, 1], &[2, 1, 1], &[0, 1, 1]),
            (&[1, 6, 4, 4, 16], &[16, 16, 3, 1, 1], &[1, 1, 1], &[1, 0, 0], &[1, 0, 0]),
        ] {
            let graph =
                graph_of(dtype, x, w, |b, x, w| b.conv(x, w, &Window::new(stride, low, high)));
            check(&graph, &format!("{x:?} {w:?}"));
        }
    }
}

#[test]
fn channels_may_fill_no_copy() {
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        for (x, w, stride, pad) in [
            (&[1, 10, 9, 4][..], &[32, 4, 3, 3][..], &[1, 1][..], &[1, 1][..]),
            (&[1, 9, 8, 3], &[16, 3, 3, 3], &[1, 1], &[1, 1]),
            (&[1, 8, 9, 32], &[3, 32, 3, 3], &[1, 1], &[1, 1]),
            (&[1, 2, 8, 6, 4], &[24, 4, 1, 2, 2], &[1, 2, 2], &[0, 0, 0]),
        ] {
            let graph =
                graph_of(dtype, x, w, |b, x, w| b.conv(x, w, &Window::new(stride, pad, pad)));
            check(&graph, &format!("{x:?} {w:?}"));
        }
    }
}

#[test]
fn a_doubled_input_is_read_where_it_is() {
    for dtype in [DType::Bf16, DType::F32] {
        let graph = graph_of(dtype, &[2, 5, 6, 16], &[24, 16, 3, 3], |b, x, w| {
            let x = b.reshape(x, &[2, 5, 1, 6, 1, 16])?;
            let x = b.broadcast(x, &[2, 5, 2, 6, 2, 16])?;
            let x = b.reshape(x, &[2, 10, 12, 16])?;
            b.conv(x, w, &Window::new(&[1, 1], &[1, 1], &[1, 1]))
        });
        check(&graph, "doubled");
    }
}

#[test]
fn bias_and_residual_follow_the_sums() {
    for dtype in [DType::Bf16, DType::F32] {
        let graph = graph_of(dtype, &[2, 6, 7, 16], &[40, 16, 3, 3], |b, x, w| {
            let ty = |shape: &[usize]| TensorType::new(dtype, shape);
            let bias = b.param("bias", ty(&[1, 1, 1, 40])?);
            let residual = b.input("residual", ty(&[2, 6, 7, 40])?);
            let y = b.conv(x, w, &Window::new(&[1, 1], &[1, 1], &[1, 1]))?;
            let y = b.add(y, bias)?;
            b.add(residual, y)
        });
        check(&graph, "bias and residual");
    }
}

#[test]
fn a_part_of_a_weight_is_a_view_of_its_stored_form() {
    for dtype in [DType::Bf16, DType::F32] {
        // The last two of three taps along time, as at a clip's first frame.
        let graph = graph_of(dtype, &[1, 2, 5, 6, 16], &[24, 16, 3, 3, 3], |b, x, w| {
            let w = b.slice(w, &[0, 0, 1, 0, 0], &[24, 16, 3, 3, 3], &[1; 5])?;
            b.conv(x, w, &Window::new(&[1, 1, 1], &[0, 1, 1], &[0, 1, 1]))
        });
        check(&graph, "part along time");
        // Some of the input's channels, whose taps no one stride steps through; a weight that no file
        // has.
        let graph = graph_of(dtype, &[1, 5, 6, 16], &[24, 32, 3, 3], |b, x, w| {
            let w = b.slice(w, &[0, 8, 0, 0], &[24, 24, 3, 3], &[1; 4])?;
            b.conv(x, w, &Window::new(&[1, 1], &[1, 1], &[1, 1]))
        });
        check(&graph, "part of the channels");
        let graph = graph_of(dtype, &[1, 5, 6, 16], &[24, 16, 3, 3], |b, x, _| {
            let w = b.input("other", TensorType::new(dtype, [24, 16, 3, 3])?);
            b.conv(x, w, &Window::new(&[1, 1], &[1, 1], &[1, 1]))
        });
        check(&graph, "an input as weight");
    }
}

#[test]
fn a_norm_before_the_window_is_made_in_scratch() {
    for (dtype, is_doubled) in [(DType::Bf16, false), (DType::Bf16, true), (DType::F32, false)] {
        let graph = graph_of(dtype, &[2, 5, 6, 16], &[24, 16, 3, 3], |b, x, w| {
            let scale = b.param("scale", TensorType::new(dtype, [16])?);
            let shift = b.param("shift", TensorType::new(dtype, [16])?);
            let x = b.group_norm(x, scale, shift, 4, 1e-6)?;
            let mut x = b.silu(x)?;
            if is_doubled {
                x = b.reshape(x, &[2, 5, 1, 6, 1, 16])?;
                x = b.broadcast(x, &[2, 5, 2, 6, 2, 16])?;
                x = b.reshape(x, &[2, 10, 12, 16])?;
            }
            b.conv(x, w, &Window::new(&[1, 1], &[1, 1], &[1, 1]))
        });
        check(&graph, "norm");
    }
}
