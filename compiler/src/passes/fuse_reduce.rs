//! A reduction with the elementwise ops that make its operand, and those on its result. The operand
//! is then never stored.

use ops::{Class, Graph};

use crate::pass::Pass;
use crate::passes::group::{Group, Grouping, Take};

pub(crate) const PASS: Pass =
    Pass { name: "fuse-reduce", about: "reduction with elementwise ops before and after", run };

fn run(graph: &Graph) -> Graph {
    let mut grouping = Grouping::new(graph);
    for value in graph.values() {
        if graph.op(value).is_none_or(|op| op.def().class() != Class::Reduction) {
            continue;
        }
        let mut group = Group::around("reduce", value);
        grouping.grow_forward(&mut group, |next| grouping.is_epilogue_of(value, next));
        let result = group.result;
        grouping.grow_sides(&mut group, result);
        let operand = graph.node(value).args[0];
        let cone = grouping.cone(
            &group.members,
            [operand],
            |_| false,
            |op| {
                if grouping.is_better_inside(operand, op) { Take::AndOperands } else { Take::No }
            },
        );
        grouping.grow_backward(&mut group, &cone, |_| true);
        grouping.claim(&group, |_| false);
        grouping.commit(group);
    }
    grouping.into_graph()
}
