//! Puts what replaces a carried input behind everything that reads the input, so that it can be written over it.
//!
//! Values keep their order but for those that have to wait, and what depends on them. Where a reader depends on the new
//! value, directly or because two inputs are exchanged, nothing can wait: such an output is copied after the run.

use std::collections::BTreeSet;

use ops::{Builder, Graph, Op, ValueId};

use crate::destinations::is_view;
use crate::plan::Carry;

/// The graph in such an order; `None` if it is in one. `carries` are of inputs and outputs that there are.
pub(crate) fn order_carries(graph: &Graph, carries: &[Carry]) -> Option<Graph> {
    let order = order(graph, &waits(graph, carries));
    if order.iter().copied().eq(graph.values()) {
        return None;
    }
    let mut b = Builder::new(graph.name.clone());
    let mut new = vec![ValueId(0); graph.nodes.len()];
    for value in order {
        let node = graph.node(value);
        let args: Vec<ValueId> = node.args.iter().map(|arg| new[arg.index()]).collect();
        new[value.index()] = b.copy_node(node, &args).expect("the graph type-checked");
    }
    let outputs: Vec<ValueId> = graph.outputs.iter().map(|output| new[output.index()]).collect();
    Some(b.finish(&outputs))
}

/// For each value what should be made before it although it is no operand.
fn waits(graph: &Graph, carries: &[Carry]) -> Vec<BTreeSet<ValueId>> {
    let mut bases: Vec<ValueId> = Vec::with_capacity(graph.nodes.len());
    let mut readers: Vec<Vec<ValueId>> = vec![vec![]; graph.nodes.len()];
    for value in graph.values() {
        let args = &graph.node(value).args;
        let is_shown = graph.op(value).is_some_and(is_view);
        bases.push(if is_shown { bases[args[0].index()] } else { value });
        if !is_shown {
            for arg in args {
                readers[bases[arg.index()].index()].push(value);
            }
        }
    }
    let mut waits = vec![BTreeSet::new(); graph.nodes.len()];
    for (input, name) in graph.inputs() {
        let carry = carries.iter().find(|carry| *carry.input == *name);
        let Some(output) = carry.and_then(|carry| carry.output) else { continue };
        let writer = bases[graph.outputs[output].index()];
        // What is only another name of an input is copied after everything else anyway.
        if graph.op(writer).is_some_and(|op| !matches!(op, Op::Concat(_))) {
            let others = readers[input.index()].iter().copied();
            waits[writer.index()].extend(others.filter(|&reader| reader != writer));
        }
    }
    waits
}

/// Every value after its operands and, as far as that can be, after what it waits for; otherwise in the order given.
fn order(graph: &Graph, waits: &[BTreeSet<ValueId>]) -> Vec<ValueId> {
    let users = graph.users();
    let mut waiting: Vec<Vec<ValueId>> = vec![vec![]; graph.nodes.len()];
    for value in graph.values() {
        for awaited in &waits[value.index()] {
            waiting[awaited.index()].push(value);
        }
    }
    let mut missing: Vec<usize> = graph.nodes.iter().map(|node| node.args.len()).collect();
    let mut awaited: Vec<usize> = waits.iter().map(BTreeSet::len).collect();
    let mut ready = BTreeSet::new();
    // What has its operands, but should wait.
    let mut held = BTreeSet::new();
    let mut order: Vec<ValueId> = Vec::with_capacity(graph.nodes.len());
    for value in graph.values().filter(|value| graph.node(*value).args.is_empty()) {
        ready.insert(value);
    }
    while let Some(value) = ready.pop_first().or_else(|| held.pop_first()) {
        order.push(value);
        for &user in &users[value.index()] {
            missing[user.index()] -= 1;
            if missing[user.index()] == 0 {
                let list = if awaited[user.index()] == 0 { &mut ready } else { &mut held };
                list.insert(user);
            }
        }
        for &other in &waiting[value.index()] {
            awaited[other.index()] -= 1;
            if awaited[other.index()] == 0 && missing[other.index()] == 0 && held.remove(&other) {
                ready.insert(other);
            }
        }
    }
    debug_assert_eq!(order.len(), graph.nodes.len(), "a graph has no cycles");
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use ops::{DType, TensorType};

    /// What is returned as `%0`, made by a function of the inputs `a` and `b`.
    fn graph(build: impl FnOnce(&mut Builder, [ValueId; 2]) -> Vec<ValueId>) -> Graph {
        let mut b = Builder::new("carried");
        let inputs = ["a", "b"].map(|name| {
            let ty = TensorType::new(DType::F32, [4]).expect("a small shape");
            b.input(name, ty)
        });
        let outputs = build(&mut b, inputs);
        b.finish(&outputs)
    }

    fn carry(input: &str, output: usize) -> Carry {
        Carry { input: input.into(), output: Some(output) }
    }

    #[test]
    fn a_reader_comes_before_what_replaces_its_operand() {
        let early = graph(|b, [x, y]| {
            let new = b.neg(x).unwrap();
            let wide = b.reshape(x, &[2, 2]).unwrap();
            let read = b.exp(wide).unwrap();
            let after = b.add(new, y).unwrap();
            vec![new, read, after]
        });
        let ordered = order_carries(&early, &[carry("a", 0)]).expect("the order changes");
        let position = |output: usize| ordered.outputs[output].index();
        assert!(position(1) < position(0) && position(0) < position(2), "{ordered}");
        assert!(order_carries(&ordered, &[carry("a", 0)]).is_none(), "it is in order now");
        assert!(order_carries(&early, &[]).is_none());
    }

    #[test]
    fn an_exchange_and_a_reader_of_the_new_value_change_nothing_that_they_need() {
        let exchange = graph(|b, [x, y]| vec![b.neg(y).unwrap(), b.neg(x).unwrap()]);
        let ordered = order_carries(&exchange, &[carry("a", 0), carry("b", 1)]);
        let ordered = ordered.unwrap_or(exchange);
        assert!(ops::verify(&ordered).is_empty());
        let depends = graph(|b, [x, _]| {
            let new = b.neg(x).unwrap();
            vec![new, b.add(new, x).unwrap()]
        });
        assert!(order_carries(&depends, &[carry("a", 0)]).is_none());
    }
}
