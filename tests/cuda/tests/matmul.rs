//! Products: types, shapes, strides, batches, and what is fused behind them.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;

use kernels::Kernel;
use kernels::cuda::gemm::{Method, Tile};
use kernels::cuda::{Function, Gpu};
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

#[test]
fn f32_is_multiplied_exactly() {
    for (m, n, k) in [(64, 64, 32), (70, 37, 19), (9, 130, 64)] {
        let mut case = Case::new(DType::F32);
        let (x, w) = (case.input("x", &[m, k]), case.param("w", &[n, k]));
        let y = case.b.matmul(x, w, false, true).unwrap();
        check(&case.finish(y), Gpu(80));
    }
}

#[test]
fn a_warp_takes_a_column_of_few_rows() {
    for (dtype, m, n, k) in [
        (DType::Bf16, 1, 48, 256),
        (DType::Bf16, 2, 70, 264),
        (DType::F16, 8, 9, 24),
        (DType::F32, 3, 33, 100),
        (DType::Bf16, 5, 10, 13),
    ] {
        let mut case = Case::new(dtype);
        let (x, w) = (case.input("x", &[m, k]), case.param("w", &[n, k]));
        let bias = case.param("bias", &[1, n]);
        let y = case.b.matmul(x, w, false, true).unwrap();
        let y = case.b.add(y, bias).unwrap();
        let y = case.b.silu(y).unwrap();
        check(&case.finish(y), Gpu(80));
    }
}

#[test]
fn factors_may_be_stored_across_the_depth() {
    // [transpose_a, transpose_b], whether B is a weight.
    for dtype in [DType::Bf16, DType::F32] {
        for (flips, is_weight) in [
            ([false, false], true),
            ([false, false], false),
            ([true, true], false),
            ([true, false], true),
        ] {
            let (m, n, k) = (40, 48, 24);
            let mut case = Case::new(dtype);
            let x = case.input("x", &if flips[0] { [k, m] } else { [m, k] });
            let shape = if flips[1] { [n, k] } else { [k, n] };
            let w = if is_weight { case.param("w", &shape) } else { case.input("w", &shape) };
            let y = case.b.matmul(x, w, flips[0], flips[1]).unwrap();
            check(&case.finish(y), Gpu(80));
        }
    }
}

#[test]
fn batches_and_strided_rows_are_views() {
    for dtype in [DType::Bf16, DType::F32] {
        // A part of each row of a wider operand, [B, T, S, 3 K] sliced.
        let mut case = Case::new(dtype);
        let x = case.input("x", &[2, 3, 20, 96]);
        let w = case.param("w", &[40, 32]);
        let part = case.b.slice(x, &[0, 0, 2, 32], &[2, 3, 18, 64], &[1; 4]).unwrap();
        let y = case.b.matmul(part, w, false, true).unwrap();
        check(&case.finish(y), Gpu(80));
        // A product for each of a batch, one side repeated.
        let mut case = Case::new(dtype);
        let (x, y) = (case.input("x", &[2, 3, 20, 16]), case.input("y", &[1, 3, 24, 16]));
        let y = case.b.matmul(x, y, false, true).unwrap();
        check(&case.finish(y), Gpu(80));
    }
}

#[test]
fn code_of_the_models_follows_the_sums() {
    // Bias; bias and GELU; x + gate (sum + bias), the gate per sample; a product of two results.
    for (dtype, n) in [(DType::Bf16, 72), (DType::Bf16, 36), (DType::F32, 40)] {
        let shape = [2, 21, n];
        for form in ["bias", "gelu", "gate", "glu"] {
            let mut case = Case::new(dtype);
            let x = case.input("x", &[2, 21, 48]);
            let w = case.param("w", &[n, 48]);
            let y = case.b.matmul(x, w, false, true).unwrap();
            let bias = case.param("bias", &[1, 1, n]);
            let y = case.b.add(y, bias).unwrap();
            let y = match form {
                "bias" => y,
                "gelu" => case.b.gelu_tanh(y).unwrap(),
                "gate" => {
                    let (gate, residual) =
                        (case.input("gate", &[2, 1, n]), case.input("residual", &shape));
                    let y = case.b.mul(y, gate).unwrap();
                    case.b.add(residual, y).unwrap()
                }
                _ => {
                    let other = case.input("other", &shape);
                    case.b.mul(y, other).unwrap()
                }
            };
            check(&case.finish(y), Gpu(80));
        }
    }
}

#[test]
fn norms_and_code_before_the_product_are_made_in_scratch() {
    for (dtype, rows) in [(DType::Bf16, 21), (DType::F16, 3), (DType::F32, 21)] {
        for form in ["layer", "rms", "silu", "modulated"] {
            let mut case = Case::new(dtype);
            let x = case.input("x", &[2, rows, 48]);
            let w = case.param("w", &[72, 48]);
            let x = match form {
                "layer" => case.b.layer_norm(x, 1e-5).unwrap(),
                "rms" => {
                    let weight = case.param("weight", &[1, 1, 48]);
                    let x = case.b.rms_norm(x, 1e-6).unwrap();
                    case.b.mul(x, weight).unwrap()
                }
                "silu" => case.b.silu(x).unwrap(),
                _ => {
                    let shift = case.input("shift", &[2, 1, 48]);
                    let scale = case.input("scale", &[2, 1, 48]);
                    let x = case.b.layer_norm(x, 1e-6).unwrap();
                    let scaled = case.b.mul(x, scale).unwrap();
                    case.b.add(scaled, shift).unwrap()
                }
            };
            let y = case.b.matmul(x, w, false, true).unwrap();
            let graph = case.finish(y);
            // What is rounded on its way into the product differs by a half's bits.
            check(&graph, Gpu(80));
        }
    }
}

#[test]
fn nothing_spills_and_tensor_cores_are_fed_asynchronously() {
    let mut case = Case::new(DType::Bf16);
    let (x, w) = (case.input("x", &[2, 520, 1152]), case.param("w", &[1152, 1152]));
    let (gate, residual) =
        (case.input("gate", &[2, 1, 1152]), case.input("residual", &[2, 520, 1152]));
    let bias = case.param("bias", &[1, 1, 1152]);
    let y = case.b.matmul(x, w, false, true).unwrap();
    let y = case.b.add(y, bias).unwrap();
    let y = case.b.mul(y, gate).unwrap();
    let y = case.b.add(residual, y).unwrap();
    let graph = case.finish(y);
    for (gpu, tiles) in [(Gpu(80), &Tile::ALL[2..3]), (Gpu(90), &Tile::ALL[..])] {
        let plan = compiler::compile(graph.clone(), &cuda_tests::target(gpu)).unwrap();
        let Kernel::Cuda(kernel) = &plan.steps[0].kernel else { panic!("a CPU's kernel") };
        let Function::Matmul(matmul) = &kernel.launches[0].function else { panic!("no product") };
        for &tile in tiles {
            let mut matmul = matmul.clone();
            matmul.0.method = Method::Tensor(tile);
            let (_, compiled) = cuda_tests::compile(&Function::Matmul(matmul), gpu);
            let resources = compiled.resources;
            assert_eq!((resources.spill_bytes, resources.stack_bytes), (0, 0), "{gpu} {tile:?}");
            for instruction in ["mma.sync", "ldmatrix", "cp.async", "st.global.v4"] {
                assert!(compiled.ptx.contains(instruction), "{gpu} {tile:?}: no {instruction}");
            }
        }
    }
}
