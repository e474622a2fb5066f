//! `order-steps`: reorders a fused graph so that less memory is live at once.
//!
//! Finding the best order is NP-hard. Builders write models in an order that is already good, so
//! the given order competes with a greedy one: of the values that can be made next, the one that
//! grows live memory least. What counts here is an estimate that knows views and concats put
//! together in place, but not which operands are overwritten; planning both tells which is better.

use ops::{Builder, Graph, ValueId};

use crate::destinations::{destinations, is_view};
use crate::plan::Carry;

/// Larger graphs are finely chunked: their order was chosen for memory, and the search would take
/// longer than all else.
const MAX_VALUES: usize = 30_000;

/// The graph in the greedy order, if that seems to need less memory than the given one. What replaces a carried input
/// needs none.
pub(crate) fn order_steps(graph: &Graph, carries: &[Carry]) -> Option<Graph> {
    if graph.nodes.len() > MAX_VALUES {
        return None;
    }
    let mut memory = Memory::new(graph);
    for output in carries.iter().filter_map(|carry| carry.output) {
        memory.taken_bytes[graph.outputs[output].index()] = 0;
    }
    let order = greedy_order(graph, &memory);
    let given: Vec<ValueId> = graph.values().collect();
    let is_better = memory.peak_bytes(graph, &order) < memory.peak_bytes(graph, &given);
    is_better.then(|| reordered(graph, &order))
}

/// What values need.
struct Memory {
    /// The value whose storage holds each: itself, what a view shows, or the concat that it is made
    /// a part of.
    bases: Vec<ValueId>,
    /// Bytes that are taken when a value is made: none for views, and for concats those of operands that are copied
    /// there; the others have taken theirs.
    taken_bytes: Vec<usize>,
    /// Uses of each base, also of what is in its storage; outputs count one more.
    uses: Vec<usize>,
}

impl Memory {
    fn new(graph: &Graph) -> Memory {
        let n = graph.nodes.len();
        let destinations = destinations(graph);
        let mut memory =
            Memory { bases: Vec::with_capacity(n), taken_bytes: vec![0; n], uses: vec![0; n] };
        for value in graph.values() {
            let is_view = graph.op(value).is_some_and(is_view);
            memory.bases.push(match (&destinations.of[value.index()], is_view) {
                (Some(place), _) => place.root,
                (None, true) => memory.bases[graph.node(value).args[0].index()],
                (None, false) => value,
            });
            let is_made = graph.op(value).is_some() && !is_view;
            memory.taken_bytes[value.index()] = match destinations.assembled.get(&value) {
                Some(copied) => {
                    let args = graph.node(value).args.iter().zip(copied);
                    let copies = args.filter(|(_, copied)| copied.is_some());
                    copies.map(|(arg, _)| graph.ty(*arg).bytes()).sum()
                }
                None if is_made => graph.ty(value).bytes(),
                None => 0,
            };
        }
        for value in graph.values() {
            for arg in &graph.node(value).args {
                memory.uses[memory.bases[arg.index()].index()] += 1;
            }
        }
        for output in &graph.outputs {
            memory.uses[memory.bases[output.index()].index()] += 1;
        }
        memory
    }

    /// Bytes that are free again after the last use of a base.
    fn freed_bytes(&self, graph: &Graph, base: ValueId) -> usize {
        if graph.op(base).is_some() { graph.ty(base).bytes() } else { 0 }
    }

    fn peak_bytes(&self, graph: &Graph, order: &[ValueId]) -> usize {
        let mut uses = self.uses.clone();
        let (mut live, mut peak) = (0, 0);
        for &value in order {
            live += self.taken_bytes[value.index()];
            peak = peak.max(live);
            for arg in &graph.node(value).args {
                let base = self.bases[arg.index()];
                uses[base.index()] -= 1;
                if uses[base.index()] == 0 {
                    live -= self.freed_bytes(graph, base);
                }
            }
        }
        peak
    }
}

fn greedy_order(graph: &Graph, memory: &Memory) -> Vec<ValueId> {
    let bases = &memory.bases;
    let users = graph.users();
    let mut uses = memory.uses.clone();
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
                    freed += memory.freed_bytes(graph, base) as isize / taken as isize;
                }
            }
            memory.taken_bytes[value.index()] as isize - freed
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
