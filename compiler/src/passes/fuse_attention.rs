//! Attention with what is done to each head of its queries and keys before: an RMS norm with its
//! weight, a rotation, in either order. A kernel applies them as it reads a head.

use ops::defs::binary::Binary;
use ops::{Graph, Op, ValueId};

use crate::pass::Pass;
use crate::passes::group::{Group, Grouping};

pub(crate) const PASS: Pass = Pass {
    name: "fuse-attention",
    about: "attention with norm and rotation of queries and keys",
    run,
};

fn run(graph: &Graph) -> Graph {
    let mut grouping = Grouping::new(graph);
    for value in graph.values() {
        if !matches!(graph.op(value), Some(Op::Attention(_))) {
            continue;
        }
        let mut group = Group::around("attention", value);
        for operand in 0..2 {
            grow_head_chain(&grouping, &mut group, operand);
        }
        grouping.claim(&group, |_| false);
        grouping.commit(group);
    }
    grouping.into_graph()
}

/// Takes in what leads to operand `operand` of the attention, if nobody else uses it.
fn grow_head_chain(grouping: &Grouping<'_>, group: &mut Group, operand: usize) {
    let graph = grouping.graph;
    let mut value = graph.node(group.anchor).args[operand];
    let (mut has_norm, mut has_rope) = (false, false);
    while is_ours(grouping, group, value) {
        let (taken, next) = match graph.op(value) {
            Some(Op::Rope(_)) if !has_rope => {
                has_rope = true;
                (vec![value], graph.node(value).args[0])
            }
            Some(Op::RmsNorm(_)) if !has_norm => {
                has_norm = true;
                (vec![value], graph.node(value).args[0])
            }
            Some(Op::Binary(Binary::Mul)) if !has_norm => {
                let Some(norm) = weighted_norm(grouping, value) else { return };
                has_norm = true;
                (vec![value, norm], graph.node(norm).args[0])
            }
            _ => return,
        };
        let mut members = group.members.clone();
        members.extend(taken);
        if !grouping.fits(&members) {
            return;
        }
        group.members = members;
        value = next;
    }
}

/// Whether `value` is free and used by one member, once, and by nothing else.
fn is_ours(grouping: &Grouping<'_>, group: &Group, value: ValueId) -> bool {
    let [user] = grouping.users[value.index()][..] else { return false };
    grouping.is_free(value) && !grouping.is_output(value) && group.members.contains(&user)
}

/// The RMS norm that `mul` multiplies by a weight per channel, if nothing else uses it.
fn weighted_norm(grouping: &Grouping<'_>, mul: ValueId) -> Option<ValueId> {
    let graph = grouping.graph;
    let [x, y] = graph.node(mul).args[..] else { return None };
    let is_norm = |value: ValueId| {
        matches!(graph.op(value), Some(Op::RmsNorm(_)))
            && grouping.users[value.index()] == [mul]
            && grouping.is_free(value)
            && !grouping.is_output(value)
            && graph.ty(value) == graph.ty(mul)
    };
    let (norm, weight) = if is_norm(x) { (x, y) } else { (y, x) };
    let (_, outer) = graph.ty(weight).shape().split_last()?;
    (is_norm(norm) && outer.iter().all(|&dim| dim == 1)).then_some(norm)
}
