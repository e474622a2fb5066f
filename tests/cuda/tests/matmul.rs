//! Products: types, shapes, strides, batches, and what is fused behind them.

use std::collections::BTreeMap;

use kernels::cuda::Gpu;
use ops::{Builder, DType, Graph, Tensor, TensorType, ValueId};
use tests::{Rng, relative_l2};

/// A builder, and inputs by shape.
struct Case {
    b: Builder,
    dtype: DType,
}

impl Case {
    fn new(dtype: DType) -> Case {
        Case { b: Builder::new("product"), dtype }
    }

    fn input(&mut self, name: &str, shape: &[usize]) -> ValueId {
        self.b.input(name, TensorType::new(self.dtype, shape).unwrap())
    }

    fn param(&mut self, name: &str, shape: &[usize]) -> ValueId {
        self.b.param(name, TensorType::new(self.dtype, shape).unwrap())
    }

    fn finish(self, output: ValueId) -> Graph {
        self.b.finish(&[output])
    }
}

fn given(graph: &Graph) -> BTreeMap<String, Tensor> {
    let mut rng = Rng::new(3);
    let named = graph.inputs().chain(graph.params());
    named
        .map(|(value, name)| (name.to_string(), rng.tensor(graph.ty(value), (-1.0, 1.0))))
        .collect()
}

/// Runs on the emulated device and compares: halves are rounded once, f32 sums differ in order.
fn check(graph: &Graph, gpu: Gpu) {
    let given = given(graph);
    let found = cuda_tests::run(graph, &given, gpu);
    let expected = cuda_tests::expected(graph, &given);
    let dtype = graph.ty(graph.outputs[0]).dtype();
    let most = if dtype == DType::F32 { 1e-6 } else { 3e-3 };
    let error = relative_l2(found[0].as_floats(), expected[0].as_floats());
    assert!(error < most, "{dtype} {}: {error}", graph.name);
}

#[test]
fn halves_are_multiplied_on_tensor_cores_at_every_edge() {
    for (dtype, m, n, k) in [
        (DType::Bf16, 64, 128, 128),
        (DType::Bf16, 70, 72, 40),
        (DType::F16, 33, 96, 200),
        (DType::Bf16, 130, 264, 64),
        (DType::Bf16, 17, 9, 16),
    ] {
        let mut case = Case::new(dtype);
        let (x, w) = (case.input("x", &[m, k]), case.param("w", &[n, k]));
        let y = case.b.matmul(x, w, false, true).unwrap();
        check(&case.finish(y), Gpu(80));
    }
}
