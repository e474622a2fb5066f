//! A norm or softmax with the elementwise ops on its result: weight, modulation, activation. The
//! norms are those that no matmul or attention took in.

use ops::{Graph, Op, ValueId};

use crate::pass::Pass;
use crate::passes::group::fuse_with_epilogue;

pub(crate) const PASS: Pass =
    Pass { name: "fuse-norm", about: "norm or softmax with elementwise ops after", run };

fn run(graph: &Graph) -> Graph {
    let is_norm = |value: ValueId| {
        matches!(
            graph.op(value),
            Some(Op::LayerNorm(_) | Op::RmsNorm(_) | Op::GroupNorm(_) | Op::Softmax(_))
        )
    };
    fuse_with_epilogue(graph, "norm", is_norm)
}
