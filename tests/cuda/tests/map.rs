//! Elementwise groups and copies.

use std::collections::BTreeMap;

use kernels::cuda::Gpu;
use ops::{Builder, DType, TensorType};
use tests::{Rng, relative_l2};

#[test]
fn fused_code_follows_the_interpreter() {
    for (dtype, shape) in [
        (DType::F32, vec![3, 5]),
        (DType::Bf16, vec![4, 16]),
        (DType::F16, vec![2, 3, 24]),
        (DType::Bf16, vec![70, 33]),
    ] {
        let mut b = Builder::new("elementwise");
        let ty = TensorType::new(dtype, shape.clone()).unwrap();
        let x = b.input("x", ty.clone());
        let row = b.input(
            "row",
            TensorType::new(
                dtype,
                [vec![1; shape.len() - 1], vec![shape[shape.len() - 1]]].concat(),
            )
            .unwrap(),
        );
        let y = b.silu(x).unwrap();
        let y = b.mul(y, row).unwrap();
        let y = b.gelu_tanh(y).unwrap();
        let graph = b.finish(&[y]);
        let mut rng = Rng::new(1);
        let given: BTreeMap<_, _> = graph
            .inputs()
            .map(|(value, name)| (name.to_string(), rng.tensor(graph.ty(value), (-2.0, 2.0))))
            .collect();
        let found = cuda_tests::run(&graph, &given, Gpu(80));
        let expected = cuda_tests::expected(&graph, &given);
        let error = relative_l2(found[0].as_floats(), expected[0].as_floats());
        let most = if dtype == DType::F32 { 1e-6 } else { 4e-3 };
        assert!(error < most, "{dtype} {shape:?}: {error}");
    }
}
