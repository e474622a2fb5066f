//! Group norms, alone and with code around them.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use kernels::cuda::Gpu;
use ops::defs::conv::Window;
use ops::{Builder, DType, Graph, TensorType};

/// A norm of `shape` and what follows it in the decoder.
fn graph(dtype: DType, shape: &[usize], groups: usize) -> Graph {
    let mut b = Builder::new(format!("group_norm_{dtype}_{shape:?}_{groups}"));
    let ty = |shape: &[usize]| TensorType::new(dtype, shape).expect("a valid shape");
    let x = b.input("x", ty(shape));
    let [weight, bias] =
        ["weight", "bias"].map(|name| b.input(name, ty(&shape[shape.len() - 1..])));
    let y = b.group_norm(x, weight, bias, groups, 1e-6).expect("shapes fit");
    let y = b.silu(y).expect("a float");
    b.finish(&[y])
}

#[test]
fn groups_of_any_size_follow_the_interpreter() {
    for (dtype, shape, groups) in [
        (DType::F32, vec![1, 1, 2], 2),
        (DType::F32, vec![2, 5, 3, 12], 3),
        (DType::Bf16, vec![2, 13, 7, 32], 32),
        (DType::Bf16, vec![1, 40, 64], 4),
        (DType::F16, vec![1, 9, 9, 320], 32),
        (DType::Bf16, vec![1, 300, 128], 32),
        (DType::F32, vec![1, 6, 2048], 1),
    ] {
        let graph = graph(dtype, &shape, groups);
        let given = cuda_tests::given(&graph.name, &graph, (-2.0, 5.0));
        let error = cuda_tests::distance(&graph, &given, Gpu(80));
        let most = if dtype == DType::F32 { 2e-6 } else { 4e-3 };
        assert!(error < most, "{}: {error}", graph.name);
    }
}

#[test]
fn a_mean_far_above_the_deviation_costs_no_more_than_its_own_rounding() {
    let graph = graph(DType::F32, &[1, 37, 21, 32], 8);
    let given = cuda_tests::given(&graph.name, &graph, (1000.0, 1001.0));
    let error = cuda_tests::distance(&graph, &given, Gpu(80));
    assert!(error < 2e-4, "{error}");
}

#[test]
fn code_fits_registers() {
    let graph = graph(DType::Bf16, &[2, 64, 64, 128], 32);
    for gpu in [Gpu(80), Gpu(90)] {
        assert_eq!(cuda_tests::functions(&graph, gpu), ["group_sums", "group_scale", "map"]);
    }
}

#[test]
fn a_convolution_reads_what_is_normalized_for_it() {
    for dtype in [DType::F32, DType::Bf16] {
        let mut b = Builder::new(format!("normed_conv_{dtype}"));
        let ty = |shape: &[usize]| TensorType::new(dtype, shape.to_vec()).unwrap();
        let x = b.input("x", ty(&[2, 7, 9, 32]));
        let weight = b.input("weight", ty(&[32]));
        let bias = b.input("bias", ty(&[32]));
        let filter = b.param("filter", ty(&[16, 32, 3, 3]));
        let y = b.group_norm(x, weight, bias, 8, 1e-6).unwrap();
        let y = b.silu(y).unwrap();
        let y = b.conv(y, filter, &Window::new(&[1, 1], &[1, 1], &[1, 1])).unwrap();
        let graph = b.finish(&[y]);
        let given = cuda_tests::given(&graph.name, &graph, (-1.0, 2.0));
        let error = cuda_tests::distance(&graph, &given, Gpu(80));
        let most = if dtype == DType::F32 { 4e-6 } else { 1e-2 };
        assert!(error < most, "{}: {error}", graph.name);
    }
}
