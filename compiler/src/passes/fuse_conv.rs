//! A convolution with the elementwise ops on its result: bias, activation, residual.

use ops::{Graph, Op, ValueId};

use crate::pass::Pass;
use crate::passes::group::fuse_with_epilogue;

pub(crate) const PASS: Pass =
    Pass { name: "fuse-conv", about: "convolution with bias, activation and residual after", run };

fn run(graph: &Graph) -> Graph {
    fuse_with_epilogue(graph, "conv", |value: ValueId| matches!(graph.op(value), Some(Op::Conv(_))))
}
