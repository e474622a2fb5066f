//! Every op's examples, each compiled as a graph of its own.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;

use kernels::cuda::Gpu;
use ops::{Builder, Class, DType, Example, Op, Tensor, TensorType, Tolerance};
use tests::{Rng, relative_l2};

/// Ops without a kernel: only gradients need them.
const WITHOUT_KERNEL: [&str; 5] =
    ["attention_grad", "conv_input_grad", "conv_weight_grad", "norm_grad", "scatter_add"];

/// Whether integers are computed with, not only copied or cast to floats: no model does, and no GPU
/// kernel takes it.
fn computes_integers(example: &Example) -> bool {
    let is_integer = |ty: &TensorType| !ty.dtype().is_float() && ty.dtype() != DType::Bool;
    let def = example.op.def();
    let casts = matches!(&example.op, Op::Cast(cast) if cast.dtype.is_float());
    let folds = ["reduce_max", "reduce_sum"].contains(&def.name());
    (def.class() == Class::Elementwise || folds)
        && !casts
        && example.args.iter().any(is_integer)
        && !matches!(&example.op, Op::Cast(cast) if cast.dtype == example.args[0].dtype())
}

/// Ops whose kernels have tests of their own.
const TESTED_ELSEWHERE: [&str; 3] = ["attention", "conv", "matmul"];

#[test]
fn examples_of_ops_follow_the_interpreter() {
    let mut failures = vec![];
    for (index, example) in Op::examples().into_iter().enumerate() {
        let name = example.op.def().name();
        if WITHOUT_KERNEL.contains(&name)
            || computes_integers(&example)
            || TESTED_ELSEWHERE.contains(&name)
        {
            continue;
        }
        let mut b = Builder::new(format!("{name}_{index}"));
        let args: Vec<_> = example
            .args
            .iter()
            .enumerate()
            .map(|(i, ty)| b.input(&format!("x{i}"), ty.clone()))
            .collect();
        let result = b.op(example.op.clone(), &args).unwrap();
        let graph = b.finish(&[result]);
        let given: BTreeMap<String, Tensor> = Rng::named(&graph.name)
            .operands(&example)
            .into_iter()
            .enumerate()
            .map(|(i, tensor)| (format!("x{i}"), tensor))
            .collect();
        if let Err(error) = compiler::compile(graph.clone(), &cuda_tests::target(Gpu(80))) {
            failures.push(format!("{}: {error}", graph.name));
            continue;
        }
        let found = &cuda_tests::run(&graph, &given, Gpu(80))[0];
        let expected = &cuda_tests::expected(&graph, &given)[0].clone().rounded();
        let is_close = match example.op.def().tolerance() {
            Tolerance::Relative(_) if found.ty().dtype().is_float() => {
                let most = match found.ty().dtype() {
                    DType::F32 => 2e-6,
                    DType::F16 => 1e-3,
                    _ => 8e-3,
                };
                relative_l2(found.as_floats(), expected.as_floats()) <= most
            }
            Tolerance::Relative(_) | Tolerance::Exact => found == expected,
        };
        if !is_close {
            failures
                .push(format!("{} of {:?}: {found:?} is not {expected:?}", graph.name, example.op));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
