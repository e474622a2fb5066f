//! A convolution with what is done to its input on the way in and to its result on the way out; its gradient
//! with respect to the input with the latter.
//!
//! Prologue: at most one `group_norm`, then elementwise ops that vary with the norm's result alone,
//! then at most one doubling of height and width (reshape, broadcast, reshape). The normalized, the
//! activated and the doubled input are then never stored; positions outside the input are zero all
//! the same. Epilogue: elementwise ops of the result's shape, as bias, activation and residual.

use std::collections::BTreeSet;

use ops::{Graph, Op, Role, ValueId};

use crate::pass::Pass;
use crate::passes::group::{Group, Grouping, Take};

pub(crate) const PASS: Pass = Pass {
    name: "fuse-conv",
    about: "convolution with norm, activation, doubling before, bias, activation, residual after",
    run,
};

fn run(graph: &Graph) -> Graph {
    let mut grouping = Grouping::new(graph);
    let is_conv =
        |&value: &ValueId| matches!(graph.op(value), Some(Op::Conv(_) | Op::ConvInputGrad(_)));
    let mut groups = Vec::new();
    // From the end, so that of a chain of sums each convolution takes its own: the first one would
    // take them all, and have the results of all others as operands.
    for conv in graph.values().rev().filter(is_conv) {
        let mut group = Group::around("conv", conv);
        grouping.grow_forward(&mut group, |value| grouping.is_epilogue_of(conv, value));
        grouping.claim(&group, |_| false);
        groups.push(group);
    }
    for group in &mut groups {
        let result = group.result;
        grouping.grow_sides(group, result);
        grouping.claim(group, |_| false);
    }
    // After all epilogues, which are computed once for each element; halos compute prologues again.
    for mut group in groups {
        if let Some(Op::Conv(_)) = graph.op(group.anchor) {
            grow_prologue(&grouping, &mut group);
        }
        grouping.claim(&group, |value| is_view(graph, value));
        grouping.commit(group);
    }
    grouping.into_graph()
}

/// Takes into `group` what makes the input of its convolution.
fn grow_prologue(grouping: &Grouping<'_>, group: &mut Group) {
    let graph = grouping.graph;
    let [x, weight] = graph.node(group.anchor).args[..] else { return };
    if x == weight {
        return;
    }
    let is_param = |value: ValueId| matches!(graph.node(value).role, Role::Param(_));
    let doubling = doubling(graph, x);
    let root = doubling.map_or(x, |[spread, ..]| graph.node(spread).args[0]);
    let cone = grouping.cone(
        &group.members,
        [x, weight],
        |value| is_view(graph, value),
        |value| {
            let is_doubling = doubling.is_some_and(|steps| steps.contains(&value));
            let shape = graph.ty(value).shape();
            match graph.op(value) {
                // A part of a weight is packed like a whole one, but only inside.
                Some(Op::Slice(_)) if value == weight && is_param(graph.node(value).args[0]) => {
                    Take::Only
                }
                _ if value == weight => Take::No,
                _ if is_doubling => Take::AndOperands,
                Some(Op::GroupNorm(_)) if shape == graph.ty(root).shape() => Take::Only,
                _ if grouping.is_epilogue_of(root, value) => Take::AndOperands,
                _ => Take::No,
            }
        },
    );
    grouping.grow_backward(group, &cone, |added| {
        let added: BTreeSet<ValueId> = added.iter().copied().filter(|&op| op != weight).collect();
        let n_taken =
            doubling.map_or(0, |steps| steps.iter().filter(|s| added.contains(s)).count());
        let is_norm = |value: &&ValueId| matches!(graph.op(**value), Some(Op::GroupNorm(_)));
        (n_taken == 0 || n_taken == 3)
            && added.iter().filter(is_norm).count() <= 1
            && (added.is_empty() || has_one_source(grouping, &added, root))
    });
}

/// Whether `value` only names elements of another, so that any number of groups may hold it.
fn is_view(graph: &Graph, value: ValueId) -> bool {
    matches!(graph.op(value), Some(Op::Reshape(_) | Op::Broadcast(_) | Op::Slice(_)))
}

/// Whether one operand of the ops that make `root` has its shape; others vary along some axes only.
fn has_one_source(grouping: &Grouping<'_>, ops: &BTreeSet<ValueId>, root: ValueId) -> bool {
    let graph = grouping.graph;
    let count = graph.ty(root).count();
    let operands = grouping.operands(ops);
    operands.iter().filter(|&&operand| graph.ty(operand).count() == count).count() == 1
}

/// The reshape, the broadcast and the reshape that make `[N, 2 H, 2 W, C]` from `[N, H, W, C]`, if
/// `value` is their result.
fn doubling(graph: &Graph, value: ValueId) -> Option<[ValueId; 3]> {
    let Some(Op::Reshape(_)) = graph.op(value) else { return None };
    let repeated = graph.node(value).args[0];
    let Some(Op::Broadcast(_)) = graph.op(repeated) else { return None };
    let spread = graph.node(repeated).args[0];
    let Some(Op::Reshape(_)) = graph.op(spread) else { return None };
    let shape = |value: ValueId| graph.ty(value).shape();
    let &[n, h, w, c] = shape(graph.node(spread).args[0]) else { return None };
    let is_doubling = shape(spread) == [n, h, 1, w, 1, c]
        && shape(repeated) == [n, h, 2, w, 2, c]
        && shape(value) == [n, 2 * h, 2 * w, c];
    is_doubling.then_some([spread, repeated, value])
}
