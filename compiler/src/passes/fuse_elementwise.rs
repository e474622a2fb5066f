//! Connected elementwise ops with one result become one loop over its elements. Values in between
//! are never stored.
//!
//! Each group is as large as it can be: it starts from a value that no group above could take, and
//! takes every operand that only its members use. An operand with several users is computed again
//! in each of their groups if that costs no more than reading it back.

use ops::{Graph, Op, ValueId};

use crate::pass::Pass;
use crate::passes::group::{Group, Grouping, Take};

pub(crate) const PASS: Pass =
    Pass { name: "fuse-elementwise", about: "connected elementwise ops as one loop", run };

fn run(graph: &Graph) -> Graph {
    let mut grouping = Grouping::new(graph);
    let again: Vec<bool> = graph.values().map(|value| is_free_again(&grouping, value)).collect();
    let again = |value: ValueId| again[value.index()];
    for result in graph.values().rev() {
        if !grouping.is_elementwise(result) || again(result) {
            continue;
        }
        let mut group = Group::around("map", result);
        let args = graph.node(result).args.iter().copied();
        let cone = grouping.cone(&group.members, args, again, |value| {
            if grouping.is_better_inside(result, value) { Take::AndOperands } else { Take::No }
        });
        grouping.grow_backward(&mut group, &cone, |_| true);
        grouping.claim(&group, again);
        grouping.commit(group);
    }
    grouping.into_graph()
}

/// Whether computing `value` in each of its users' groups costs no more than storing it once and
/// reading it back: one operand, as wide as the value at most, and an op as cheap as a load.
fn is_free_again(grouping: &Grouping<'_>, value: ValueId) -> bool {
    let graph = grouping.graph;
    let [source] = graph.node(value).args[..] else { return false };
    grouping.is_elementwise(value)
        && !grouping.is_output(value)
        && grouping.users[value.index()].len() > 1
        && matches!(graph.op(value), Some(Op::Cast(_) | Op::Scalar(_) | Op::Unary(_)))
        && grouping.is_cheap(value)
        && graph.ty(source).bytes() <= graph.ty(value).bytes()
        && grouping.users[value.index()].iter().all(|&user| grouping.is_elementwise(user))
}
