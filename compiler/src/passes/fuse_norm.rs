//! A norm or softmax with the elementwise ops on its result: weight, modulation, activation. The
//! norms are those that no matmul or attention took in. The gradient of a norm also with those that make
//! its operands, as the weight or modulation that its cotangent comes through.

use ops::{Graph, Op, ValueId};

use crate::pass::Pass;
use crate::passes::group::{Group, Grouping, Take};

pub(crate) const PASS: Pass =
    Pass { name: "fuse-norm", about: "norm or softmax with elementwise ops after", run };

fn run(graph: &Graph) -> Graph {
    let mut grouping = Grouping::new(graph);
    let mut groups = Vec::new();
    for anchor in graph.values().filter(|&value| is_norm(graph, value)) {
        let mut group = Group::around("norm", anchor);
        grouping.grow_forward(&mut group, |value| grouping.is_epilogue_of(anchor, value));
        grouping.claim(&group, |_| false);
        groups.push(group);
    }
    for mut group in groups {
        let result = group.result;
        grouping.grow_sides(&mut group, result);
        grow_operands(&grouping, &mut group);
        grouping.claim(&group, |_| false);
        grouping.commit(group);
    }
    grouping.into_graph()
}

fn is_norm(graph: &Graph, value: ValueId) -> bool {
    matches!(
        graph.op(value),
        Some(
            Op::LayerNorm(_) | Op::RmsNorm(_) | Op::GroupNorm(_) | Op::NormGrad(_) | Op::Softmax(_)
        )
    )
}

/// Takes into `group` what makes the operands of a norm's gradient.
fn grow_operands(grouping: &Grouping<'_>, group: &mut Group) {
    let graph = grouping.graph;
    let anchor = group.anchor;
    if !matches!(graph.op(anchor), Some(Op::NormGrad(_))) {
        return;
    }
    let operands = graph.node(anchor).args.iter().copied();
    let cone = grouping.cone(
        &group.members,
        operands,
        |_| false,
        |value| {
            let is_float = graph.ty(value).dtype().is_float();
            if is_float && grouping.is_better_inside(anchor, value) {
                Take::AndOperands
            } else {
                Take::No
            }
        },
    );
    grouping.grow_backward(group, &cone, |_| true);
}
