//! `order-steps`: reorders a fused graph so that less memory is live at once.
//!
//! Finding the best order is NP-hard. Builders write models in an order that is already good, so
//! the given order competes with a greedy one (of the values that can be made next, the one that
//! grows live memory least) and stays unless the greedy one has a lower peak.

use ops::{Builder, Class, Graph, ValueId};

/// The pass.
pub fn order_steps(graph: Graph) -> Graph {
    let order = greedy_order(&graph);
    let given: Vec<ValueId> = graph.values().collect();
    if peak_bytes(&graph, &order) >= peak_bytes(&graph, &given) {
        return graph;
    }
    reordered(&graph, &order)
}

/// Bytes that a value needs in the arena: none for what is not stored there.
fn stored_bytes(graph: &Graph, value: ValueId) -> usize {
    match graph.op(value) {
        Some(op) if op.def().class() != Class::Movement => graph.ty(value).bytes(),
        _ => 0,
    }
}

/// For each value, the stored value whose bytes it keeps alive (through movement ops).
fn bases(graph: &Graph) -> Vec<ValueId> {
    let mut bases: Vec<ValueId> = Vec::with_capacity(graph.nodes.len());
    for value in graph.values() {
        let is_view = graph.op(value).is_some_and(|op| op.def().class() == Class::Movement);
        let args = &graph.node(value).args;
        bases.push(if is_view && args.len() == 1 { bases[args[0].index()] } else { value });
    }
    bases
}

/// How many uses each base value has before its bytes can be reused; outputs count one more.
fn use_counts(graph: &Graph, bases: &[ValueId]) -> Vec<usize> {
    let mut counts = vec![0; graph.nodes.len()];
    for value in graph.values() {
        for arg in &graph.node(value).args {
            counts[bases[arg.index()].index()] += 1;
        }
    }
    for output in &graph.outputs {
        counts[bases[output.index()].index()] += 1;
    }
    counts
}

fn peak_bytes(graph: &Graph, order: &[ValueId]) -> usize {
    let bases = bases(graph);
    let mut uses = use_counts(graph, &bases);
    let (mut live, mut peak) = (0, 0);
    for &value in order {
        live += stored_bytes(graph, value);
        peak = peak.max(live);
        for arg in &graph.node(value).args {
            let base = bases[arg.index()];
            uses[base.index()] -= 1;
            if uses[base.index()] == 0 {
                live -= stored_bytes(graph, base);
            }
        }
    }
    peak
}

fn greedy_order(graph: &Graph) -> Vec<ValueId> {
    let bases = bases(graph);
    let users = graph.users();
    let mut uses = use_counts(graph, &bases);
    let mut missing: Vec<usize> = graph.nodes.iter().map(|node| node.args.len()).collect();
    let mut ready: Vec<ValueId> =
        graph.values().filter(|value| missing[value.index()] == 0).collect();
    let mut order = Vec::with_capacity(graph.nodes.len());
    while !ready.is_empty() {
        // Growth of live bytes if the value is made next; ties go to program order.
        let growth = |value: ValueId| {
            let mut freed = 0isize;
            let mut args = graph.node(value).args.clone();
            args.sort_unstable();
            for arg in &args {
                let base = bases[arg.index()];
                let taken = args.iter().filter(|other| bases[other.index()] == base).count();
                if uses[base.index()] == taken {
                    freed += stored_bytes(graph, base) as isize / taken as isize;
                }
            }
            stored_bytes(graph, value) as isize - freed
        };
        let next = (0..ready.len())
            .min_by_key(|&i| (growth(ready[i]), ready[i]))
            .expect("ready is not empty");
        let value = ready.swap_remove(next);
        order.push(value);
        for arg in &graph.node(value).args {
            uses[bases[arg.index()].index()] -= 1;
        }
        for &user in &users[value.index()] {
            missing[user.index()] -= 1;
            if missing[user.index()] == 0 {
                ready.push(user);
            }
        }
    }
    order
}

fn reordered(graph: &Graph, order: &[ValueId]) -> Graph {
    let mut b = Builder::new(graph.name.clone());
    let mut new = vec![ValueId(0); graph.nodes.len()];
    for &value in order {
        let node = graph.node(value);
        let args: Vec<ValueId> = node.args.iter().map(|arg| new[arg.index()]).collect();
        new[value.index()] = b.copy_node(node, &args).expect("the graph type-checked");
    }
    let outputs: Vec<ValueId> = graph.outputs.iter().map(|o| new[o.index()]).collect();
    b.finish(&outputs)
}
