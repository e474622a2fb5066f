//! A smaller graph that fails the same way.

use ops::{Builder, Graph, Role, ValueId};

/// A smaller graph for which `fails` holds too, found by trying parts of `graph` until none fails.
pub fn shrink(graph: &Graph, fails: impl Fn(&Graph) -> bool) -> Graph {
    let mut graph = graph.clone();
    loop {
        let smaller = parts(&graph).find(|part| fails(part));
        let Some(smaller) = smaller else { return graph };
        graph = smaller;
    }
}

/// Smaller graphs made from `graph`: with an inner value as the only output, or with one op's result
/// given as an input.
fn parts(graph: &Graph) -> impl Iterator<Item = Graph> {
    let size = |graph: &Graph| {
        let n_ops = graph.values().filter(|&value| graph.op(value).is_some()).count();
        (n_ops, graph.nodes.len())
    };
    let ops = || graph.values().filter(|&value| graph.op(value).is_some());
    let one_output = ops().map(|value| {
        let mut part = graph.clone();
        part.outputs = vec![value];
        part
    });
    // An earlier cut may have the name.
    let unused = |mut name: String| {
        while graph.inputs().any(|(_, other)| *other == name) {
            name.push('\'');
        }
        name
    };
    let cut = ops().map(move |value| {
        let mut part = graph.clone();
        let node = &mut part.nodes[value.index()];
        node.role = Role::Input(unused(format!("cut{}", value.0)).into());
        node.args.clear();
        part
    });
    let before = size(graph);
    one_output.chain(cut).map(|part| live_nodes(&part)).filter(move |part| size(part) < before)
}

/// `graph` without what its outputs do not need.
fn live_nodes(graph: &Graph) -> Graph {
    let mut is_live = vec![false; graph.nodes.len()];
    for output in &graph.outputs {
        is_live[output.index()] = true;
    }
    for value in graph.values().rev() {
        if is_live[value.index()] {
            for arg in &graph.node(value).args {
                is_live[arg.index()] = true;
            }
        }
    }
    let mut b = Builder::new(graph.name.clone());
    let mut new = vec![ValueId(0); graph.nodes.len()];
    for value in graph.values().filter(|value| is_live[value.index()]) {
        let args: Vec<ValueId> =
            graph.node(value).args.iter().map(|arg| new[arg.index()]).collect();
        new[value.index()] = b.copy_node(graph.node(value), &args).expect("the graph was valid");
    }
    let outputs: Vec<ValueId> = graph.outputs.iter().map(|output| new[output.index()]).collect();
    b.finish(&outputs)
}
