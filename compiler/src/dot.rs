//! A graph as a picture: Graphviz text, one box per value, colored by what makes it.

use std::fmt::Write;

use ops::{Class, Graph, Node, Op, Role, ValueId};
use petgraph::dot::{Config, Dot};
use petgraph::graph::{DiGraph, NodeIndex};

/// The graph with an edge from each operand to its user.
fn flow(graph: &Graph) -> DiGraph<ValueId, ()> {
    let mut flow = DiGraph::with_capacity(graph.nodes.len(), graph.nodes.len());
    let at: Vec<NodeIndex> = graph.values().map(|value| flow.add_node(value)).collect();
    for value in graph.values() {
        for arg in &graph.node(value).args {
            flow.add_edge(at[arg.index()], at[value.index()], ());
        }
    }
    flow
}

/// Graphviz text of `graph`: `dot -Tsvg` draws it.
pub fn to_dot(graph: &Graph) -> String {
    let flow = flow(graph);
    let attributes = |_: &DiGraph<ValueId, ()>, (_, &value): (NodeIndex, &ValueId)| {
        let node = graph.node(value);
        let is_output = graph.outputs.contains(&value);
        format!(
            "label=\"{}\" fillcolor=\"{}\" penwidth={}",
            label(value, node),
            color(node),
            if is_output { 3 } else { 1 }
        )
    };
    let config = [Config::EdgeNoLabel, Config::NodeNoLabel];
    let dot = Dot::with_attr_getters(&flow, &config, &|_, _| String::new(), &attributes);
    let text = format!("{dot:?}");
    // `Dot` has no place for graph-wide attributes; they go behind the opening line.
    text.replacen("digraph {\n", "digraph {\n    node [shape=box style=filled]\n", 1)
}

fn label(value: ValueId, node: &Node) -> String {
    let mut text = String::new();
    let what = match &node.role {
        Role::Input(name) => format!("input {name}"),
        Role::Param(name) => name.to_string(),
        Role::Constant(_) => "constant".into(),
        Role::Op(Op::Fused(group)) => {
            let body = group.body();
            let ops = body.values().filter_map(|v| body.op(v)).map(|op| op.def().name());
            format!("{}: {}", group.kind(), ops.collect::<Vec<_>>().join(" "))
        }
        Role::Op(op) => op.def().name().to_string(),
    };
    // Names come from files: quotes and backslashes would end the label.
    let what = what.replace(['"', '\\', '\n'], "'");
    let _ = write!(text, "{value} {what}\\n{}", node.ty);
    text
}

fn color(node: &Node) -> &'static str {
    match &node.role {
        Role::Input(_) => "#cfe8ff",
        Role::Param(_) => "#e6e6e6",
        Role::Constant(_) => "#f3f3f3",
        Role::Op(Op::Fused(_)) => "#c8f0c8",
        Role::Op(op) => match op.def().class() {
            Class::Movement => "#ffffff",
            Class::Elementwise => "#fff3c4",
            Class::Reduction | Class::Structured => "#ffd8b8",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_and_use_is_drawn() {
        let text = "graph @g {\n  %0 : f32[2] = input \"a\\\"b\"\n  %1 : f32[2] = add %0, %0\n  \
                    return %1\n}\n";
        let dot = to_dot(&ops::parse(text).unwrap());
        assert!(dot.starts_with("digraph {\n    node [shape=box"), "{dot}");
        assert_eq!(dot.matches("0 -> 1").count(), 2, "{dot}");
        assert!(dot.contains("%0 input a'b\\nf32[2]"), "{dot}");
        assert!(dot.contains("penwidth=3"), "{dot}");
    }
}
