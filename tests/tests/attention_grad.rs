//! The kernel of `attention_grad` on sizes that its examples are too small for: several blocks of queries and of
//! keys, several groups of head dims, several pairs to a task, and what is left of each.
//!
//! Tolerances: f32 as for other kernels. In bf16 weights and gradients of scores are rounded where pairs of bf16
//! are multiplied, each as large an error as the rounding of the result.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;

use kernels::Isa;
use ops::defs::attention_grad::AttentionGrad;
use ops::{Builder, DType, Graph, Rounding, Tensor, TensorType, eval};
use tests::{Rng, compiled, relative_l2};

struct Case {
    batch: usize,
    sq: usize,
    sk: usize,
    heads: usize,
    d: usize,
    is_masked: bool,
}

const CASES: [Case; 9] = [
    Case { batch: 1, sq: 130, sk: 200, heads: 2, d: 72, is_masked: false },
    Case { batch: 2, sq: 37, sk: 97, heads: 1, d: 16, is_masked: true },
    Case { batch: 3, sq: 16, sk: 16, heads: 2, d: 72, is_masked: false },
    Case { batch: 1, sq: 65, sk: 96, heads: 1, d: 130, is_masked: true },
    Case { batch: 2, sq: 1, sk: 3, heads: 3, d: 1, is_masked: false },
    Case { batch: 1, sq: 100, sk: 1, heads: 1, d: 64, is_masked: false },
    // Over time: many short sequences.
    Case { batch: 40, sq: 16, sk: 16, heads: 2, d: 72, is_masked: false },
    // To captions of some lengths.
    Case { batch: 2, sq: 130, sk: 120, heads: 2, d: 72, is_masked: true },
    // Words that rows of head dims end in.
    Case { batch: 3, sq: 33, sk: 99, heads: 1, d: 7, is_masked: true },
];

fn graph(case: &Case, dtype: DType) -> Graph {
    let Case { batch, sq, sk, heads, d, is_masked } = *case;
    let ty = |dtype: DType, shape: &[usize]| TensorType::new(dtype, shape).unwrap();
    let mut b = Builder::new("gradients");
    // Queries, keys and values are parts of one tensor, as a model stores them.
    let all = b.input("all", ty(dtype, &[batch, sq.max(sk), 3, heads, d]));
    let part = |b: &mut Builder, part: usize, len: usize| {
        let rows = b.slice_axis(all, 2, part, part + 1).unwrap();
        let rows = b.slice_axis(rows, 1, 0, len).unwrap();
        b.reshape(rows, &[batch, len, heads, d]).unwrap()
    };
    let mut operands = vec![part(&mut b, 0, sq), part(&mut b, 1, sk), part(&mut b, 2, sk)];
    operands.push(b.input("out", ty(dtype, &[batch, sq, heads, d])));
    operands.push(b.input("grad", ty(dtype, &[batch, sq, heads, d])));
    if is_masked {
        operands.push(b.input("mask", ty(DType::Bool, &[batch, sk])));
    }
    let out = b.op(AttentionGrad { scale: 0.4 }, &operands).unwrap();
    b.finish(&[out])
}

#[test]
fn gradients_follow_the_interpreter_on_every_instruction_set() {
    for dtype in [DType::F32, DType::Bf16] {
        for case in &CASES {
            let graph = graph(case, dtype);
            let mut rng = Rng::new(case.sq as u64);
            let given: BTreeMap<String, Tensor> = graph
                .inputs()
                .map(|(value, name)| (name.to_string(), rng.tensor(graph.ty(value), (-1.0, 1.0))))
                .collect();
            let expected = eval(&graph, &given, Rounding::Exact).unwrap();
            let limit = if dtype == DType::F32 { 2e-6 } else { 4e-3 };
            let mut bytes: Option<Vec<u8>> = None;
            for isa in Isa::available() {
                for threads in [1, 3] {
                    let found = compiled::run(&graph, &given, &compiled::target(isa, threads));
                    let error = relative_l2(found[0].as_floats(), expected[0].as_floats());
                    let Case { sq, sk, d, .. } = case;
                    assert!(error <= limit, "{dtype} {sq} x {sk} x {d} on {isa}: {error}");
                    let found = found[0].to_bytes();
                    if threads > 1 {
                        assert!(bytes.as_ref() == Some(&found), "{isa}: other bytes");
                    }
                    bytes = Some(found);
                }
            }
        }
    }
}
