//! Normal numbers: the integers of the reference, and functions of f32 within a few units in the last place.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;

use cuda_tests::functions;
use kernels::cuda::Gpu;
use ops::{Builder, DType, Graph, Tensor, TensorType};

/// Rows of `shape`, one for each key.
fn graph(keys: &[[i64; 3]], shape: &[usize]) -> (Graph, BTreeMap<String, Tensor>) {
    let mut b = Builder::new("normal");
    let ty = TensorType::new(DType::I64, [keys.len(), 3]).unwrap();
    let key = b.input("key", ty.clone());
    let y = b.normal(key, shape).unwrap();
    let given = Tensor::ints(ty, keys.as_flattened().to_vec());
    (b.finish(&[y]), BTreeMap::from([("key".to_owned(), given)]))
}

#[test]
fn numbers_are_those_of_the_reference() {
    // Seeds, draws and elements that use all bits; rows that begin within a group of four; a draw's end.
    let keys = [
        [42, 1, 0],
        [42, 1, 2049],
        [-1, i64::MIN + 5, 1 << 40],
        [0x0123_4567_89ab_cdef, 3 << 32, -700],
    ];
    let (graph, given) = graph(&keys, &[3, 683]);
    assert_eq!(functions(&graph, Gpu(80)), ["normal"]);
    let found = &cuda_tests::run(&graph, &given, Gpu(80))[0];
    let expected = &cuda_tests::expected(&graph, &given)[0];
    let mut most = 0f64;
    for (found, expected) in found.as_floats().iter().zip(expected.as_floats()) {
        // A radius of up to 6 times the error of a sine near its zero, and that of the radius.
        let error = (found - expected).abs() / (expected.abs() + 0.1);
        assert!(error <= 6e-7, "{found} is not {expected}");
        most = most.max(error);
    }
    // Some are rounded otherwise: the test looks at functions of f32.
    assert!(most > 3e-8, "{most}");
    let [a, b] = [0, 2049].map(|row| &found.as_floats()[row..]);
    assert_eq!(a[2049], b[0], "a row goes on where the one before ended");
}

#[test]
fn the_host_draws_the_same_numbers() {
    let (graph, given) = graph(&[[7, (2 << 32) + 9, 5]], &[64]);
    let found = &cuda_tests::run(&graph, &given, Gpu(90))[0];
    let mut drawn = [0f32; 64];
    diffusion::fill_normal(7, (2 << 32) + 9, 5, &mut drawn);
    for (found, drawn) in found.as_floats().iter().zip(drawn) {
        assert!((found - f64::from(drawn)).abs() <= 1e-6, "{found} is not {drawn}");
    }
}
