//! A matmul with what is done to its operand A on the way in and to its result on the way out.
//!
//! Prologue: at most one `layer_norm` or `rms_norm`, then elementwise ops. One value of A's dims comes
//! from outside and, where there is a norm, only the norm reads it; all else varies along some axes
//! only. Epilogue: elementwise ops of the result's dims. Operand B is never touched: it is packed.

use std::collections::BTreeSet;

use ops::{Graph, Op, ValueId};

use crate::pass::Pass;
use crate::passes::group::{Group, Grouping, Take};

pub(crate) const PASS: Pass = Pass {
    name: "fuse-matmul",
    about: "matmul with norm and modulation before, bias, activation, gate and residual after",
    run,
};

fn run(graph: &Graph) -> Graph {
    let mut grouping = Grouping::new(graph);
    let matmuls: Vec<ValueId> =
        graph.values().filter(|&value| matches!(graph.op(value), Some(Op::Matmul(_)))).collect();
    let mut groups: Vec<Group> = Vec::with_capacity(matmuls.len());
    for &matmul in &matmuls {
        let mut group = Group::around("matmul", matmul);
        grouping.grow_forward(&mut group, |value| grouping.is_epilogue_of(matmul, value));
        grouping.claim(&group, |_| false);
        groups.push(group);
    }
    for group in &mut groups {
        let result = group.result;
        grouping.grow_sides(group, result);
        grouping.claim(group, |_| false);
    }
    // Prologues come after all epilogues: what is done to a result as an epilogue is done once, as a
    // prologue it is done for every tile.
    for mut group in groups {
        grow_prologue(&grouping, &mut group);
        grouping.claim(&group, |_| false);
        grouping.commit(group);
    }
    grouping.into_graph()
}

/// Takes into `group` what makes operand A of its matmul.
fn grow_prologue(grouping: &Grouping<'_>, group: &mut Group) {
    let graph = grouping.graph;
    let Some(Op::Matmul(op)) = graph.op(group.anchor) else { return };
    let [a, b] = graph.node(group.anchor).args[..] else { return };
    // A transposed A is not read by rows, which a norm and its statistics need.
    if a == b || op.transpose_a {
        return;
    }
    let cone = grouping.cone(
        &group.members,
        [a],
        |_| false,
        |value| {
            if is_norm(graph, value) {
                return Take::Only;
            }
            let is_float = graph.ty(value).dtype().is_float();
            if is_float && grouping.is_better_inside(a, value) {
                Take::AndOperands
            } else {
                Take::No
            }
        },
    );
    grouping.grow_backward(group, &cone, |added| is_prologue(grouping, added, a));
}

/// Whether ops that make `a` have the form of a prologue.
fn is_prologue(grouping: &Grouping<'_>, ops: &BTreeSet<ValueId>, a: ValueId) -> bool {
    let graph = grouping.graph;
    let count = graph.ty(a).count();
    let operands = grouping.operands(ops);
    let mut full = operands.iter().filter(|&&operand| graph.ty(operand).count() == count);
    let (Some(source), None) = (full.next(), full.next()) else { return false };
    let mut norms = ops.iter().filter(|&&value| is_norm(graph, value));
    match (norms.next(), norms.next()) {
        (None, _) => true,
        (Some(norm), None) => {
            let readers = |value: ValueId| {
                ops.iter().filter(move |&&op| graph.node(op).args.contains(&value))
            };
            graph.ty(*norm).count() == count && readers(*source).eq([norm])
        }
        (Some(_), Some(_)) => false,
    }
}

fn is_norm(graph: &Graph, value: ValueId) -> bool {
    matches!(graph.op(value), Some(Op::LayerNorm(_) | Op::RmsNorm(_)))
}
