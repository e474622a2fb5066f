//! Values that no output needs go. Inputs stay, used or not: they are the graph's interface.
//! Parameters go, so that a run asks for no weight that it does not read.

use ops::{Graph, Role, ValueId};

use crate::pass::Pass;
use crate::rewrite::Rewriter;

pub(crate) const PASS: Pass =
    Pass { name: "eliminate-dead-values", about: "drop what no output needs", run };

pub(super) fn run(graph: &Graph) -> Graph {
    let is_live = live(graph);
    let mut r = Rewriter::without_rule(graph);
    for value in graph.values() {
        if is_live[value.index()] {
            r.keep(value);
        } else {
            r.drop(value);
        }
    }
    r.finish()
}

/// For each value whether it is an input or some output needs it.
fn live(graph: &Graph) -> Vec<bool> {
    let is_input = |value: ValueId| matches!(graph.node(value).role, Role::Input(_));
    let mut is_live: Vec<bool> = graph.values().map(is_input).collect();
    for output in &graph.outputs {
        is_live[output.index()] = true;
    }
    for value in graph.values().rev().filter(|value| graph.op(*value).is_some()) {
        if is_live[value.index()] {
            for arg in &graph.node(value).args {
                is_live[arg.index()] = true;
            }
        }
    }
    is_live
}
