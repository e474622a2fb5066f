//! The gradient of a norm's weight or modulation: a sum of the norm times its cotangent, with the norm made again of
//! what was normalized. Other users of the norm no longer share it, so that it becomes a part of what they make, and is
//! never stored.
//!
//! Only where the gradient by the norm's operand is asked for, too: that operand is read then anyway.

use std::collections::BTreeSet;

use ops::{Graph, Op, ValueId};

use crate::pass::Pass;
use crate::passes::group::{Group, Grouping, Take};

pub(crate) const PASS: Pass = Pass {
    name: "fuse-norm-gradient",
    about: "sum of a norm times its cotangent, with the norm made again",
    run,
};

fn run(graph: &Graph) -> Graph {
    let mut grouping = Grouping::new(graph);
    let again: Vec<bool> = graph.values().map(|value| is_made_again(&grouping, value)).collect();
    let again = |value: ValueId| again[value.index()];
    for value in graph.values() {
        let Some(Op::ReduceSum(sum)) = graph.op(value) else { continue };
        let operand = graph.node(value).args[0];
        let shape = graph.ty(operand).shape();
        if sum.axes.contains(&(shape.len() - 1)) {
            continue;
        }
        let mut group = Group::around("reduce", value);
        grouping.grow_forward(&mut group, |next| grouping.is_epilogue_of(value, next));
        let result = group.result;
        grouping.grow_sides(&mut group, result);
        let cone = grouping.cone(&group.members, [operand], again, |op| {
            if again(op) && graph.ty(op).shape() == shape {
                Take::Only
            } else if grouping.is_better_inside(operand, op) {
                Take::AndOperands
            } else {
                Take::No
            }
        });
        let norms = |ops: &BTreeSet<ValueId>| ops.iter().filter(|&&op| again(op)).count();
        grouping.grow_backward(&mut group, &cone, |added| norms(added) == 1);
        if norms(&group.members) == 1 {
            grouping.claim(&group, again);
            grouping.commit(group);
        }
    }
    grouping.into_graph()
}

/// Whether `value` is a norm of what the gradient of a norm reads.
fn is_made_again(grouping: &Grouping<'_>, value: ValueId) -> bool {
    let graph = grouping.graph;
    let is_norm = matches!(graph.op(value), Some(Op::LayerNorm(_) | Op::RmsNorm(_)));
    let is_gradient = |user: &ValueId| matches!(graph.op(*user), Some(Op::NormGrad(_)));
    is_norm
        && !grouping.is_output(value)
        && grouping.users[graph.node(value).args[0].index()].iter().any(is_gradient)
}
