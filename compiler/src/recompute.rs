//! A graph with some values made again where they are needed late, instead of kept.
//!
//! A *drop* names a value and a place in the program: users after it read a copy that is made from what is
//! there at the time: inputs, parameters, and values that later users want anyway. What else it takes is
//! made again too. Every copy is a copy of the node, so it runs the same kernel on the same operands and
//! gives the same bits.

use std::collections::{BTreeMap, BTreeSet};

use ops::{Builder, Graph, ValueId};

use crate::destinations::is_view;
use crate::plan::Carry;

/// Which values are not kept: for each, the last place of the program (a value's position) that reads the
/// original.
pub(crate) type Drops = BTreeMap<ValueId, usize>;

/// One node of the program with its copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Instance {
    /// The node.
    pub(crate) value: ValueId,
    /// Operands, as positions in [`Program::instances`].
    args: Vec<usize>,
    /// The position in the graph of the node that is made here, or for which this copy is made.
    pub(crate) at: usize,
    /// Whether it is a copy.
    pub(crate) is_again: bool,
}

/// A graph's nodes in order, with copies.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) instances: Vec<Instance>,
    outputs: Vec<usize>,
}

/// What deciding on drops needs to know of a graph.
#[derive(Debug)]
pub(crate) struct Facts<'g> {
    pub(crate) graph: &'g Graph,
    /// The value whose storage holds each: itself, or what it is a view of.
    pub(crate) bases: Vec<ValueId>,
    /// Positions that read each base, also by way of a view, ascending; an output is read at the end.
    pub(crate) reads: Vec<Vec<usize>>,
    /// FLOPs of each node.
    pub(crate) flops: Vec<u64>,
    /// Which values are in memory of their own, beside the arena.
    is_beside: Vec<bool>,
}

impl<'g> Facts<'g> {
    /// The facts of a graph whose values are all in the arena.
    pub(crate) fn of(graph: &'g Graph) -> Facts<'g> {
        Facts::beside(graph, &[])
    }

    /// The facts of a graph whose carried inputs, and what replaces them, are beside the arena.
    pub(crate) fn beside(graph: &'g Graph, carries: &[Carry]) -> Facts<'g> {
        let mut bases: Vec<ValueId> = Vec::with_capacity(graph.nodes.len());
        for value in graph.values() {
            let is_view = graph.op(value).is_some_and(is_view);
            bases.push(match graph.node(value).args.first() {
                Some(of) if is_view => bases[of.index()],
                _ => value,
            });
        }
        let mut reads = vec![Vec::new(); graph.nodes.len()];
        for value in graph.values() {
            for arg in &graph.node(value).args {
                reads[bases[arg.index()].index()].push(value.index());
            }
        }
        for output in &graph.outputs {
            reads[bases[output.index()].index()].push(graph.nodes.len());
        }
        let flops = graph.values().map(|value| graph.node_flops(value)).collect();
        let mut is_beside = vec![false; graph.nodes.len()];
        for (input, name) in graph.inputs() {
            let Some(carry) = carries.iter().find(|carry| *carry.input == *name) else { continue };
            is_beside[input.index()] = true;
            if let Some(output) = carry.output {
                is_beside[bases[graph.outputs[output].index()].index()] = true;
            }
        }
        Facts { graph, bases, reads, flops, is_beside }
    }

    /// Whether `value` takes memory of its own when it is made.
    pub(crate) fn is_stored(&self, value: ValueId) -> bool {
        self.graph.op(value).is_some() && self.bases[value.index()] == value
    }

    /// Whether the original of `value` is there at position `at`, after all that comes before.
    fn is_there(&self, drops: &Drops, value: ValueId, at: usize) -> bool {
        if self.graph.op(value).is_none() {
            return true;
        }
        let base = self.bases[value.index()];
        let is_kept = drops.get(&base).is_none_or(|&last| at <= last);
        is_kept && self.reads[base.index()].last().is_some_and(|&last| last >= at)
    }

    /// What must be made at position `at` to have `value` there, in order. `is_made` says which copies
    /// there are.
    pub(crate) fn to_make(
        &self,
        drops: &Drops,
        value: ValueId,
        at: usize,
        is_made: impl Fn(ValueId) -> bool,
    ) -> BTreeSet<ValueId> {
        let mut found = BTreeSet::new();
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            if is_made(value) || self.is_there(drops, value, at) || !found.insert(value) {
                continue;
            }
            open.extend(&self.graph.node(value).args);
        }
        found
    }

    /// The program that `drops` make of the graph.
    pub(crate) fn program(&self, drops: &Drops) -> Program {
        let n = self.graph.nodes.len();
        let mut instances: Vec<Instance> = Vec::with_capacity(n);
        let mut original = vec![usize::MAX; n];
        let mut again: Vec<Option<usize>> = vec![None; n];
        for value in self.graph.values() {
            let at = value.index();
            for &arg in &self.graph.node(value).args {
                for missing in self.to_make(drops, arg, at, |value| again[value.index()].is_some())
                {
                    let args = &self.graph.node(missing).args;
                    let args = args.iter().map(|&arg| {
                        if self.is_there(drops, arg, at) {
                            original[arg.index()]
                        } else {
                            again[arg.index()].expect("operands are made before their users")
                        }
                    });
                    let args = args.collect();
                    again[missing.index()] = Some(instances.len());
                    instances.push(Instance { value: missing, args, at, is_again: true });
                }
            }
            let args = self.graph.node(value).args.iter().map(|&arg| {
                let copy = again[arg.index()].filter(|_| !self.is_there(drops, arg, at));
                copy.unwrap_or(original[arg.index()])
            });
            let args = args.collect();
            original[at] = instances.len();
            instances.push(Instance { value, args, at, is_again: false });
        }
        let outputs = self.graph.outputs.iter().map(|output| original[output.index()]).collect();
        Program { instances, outputs }
    }

    /// FLOPs of a program's copies.
    pub(crate) fn added_flops(&self, program: &Program) -> u64 {
        let copies = program.instances.iter().filter(|instance| instance.is_again);
        copies.fold(0, |sum, copy| sum.saturating_add(self.flops[copy.value.index()]))
    }

    /// Bytes that are live while each instance is made: an estimate that knows views, but not which
    /// operands are overwritten.
    pub(crate) fn live_bytes(&self, program: &Program) -> Vec<usize> {
        let instances = &program.instances;
        let mut base: Vec<usize> = Vec::with_capacity(instances.len());
        for (at, instance) in instances.iter().enumerate() {
            let is_view = self.graph.op(instance.value).is_some_and(is_view);
            base.push(if is_view { base[instance.args[0]] } else { at });
        }
        let mut last_read: Vec<usize> = (0..instances.len()).collect();
        for (at, instance) in instances.iter().enumerate() {
            for &arg in &instance.args {
                last_read[base[arg]] = at;
            }
        }
        for &output in &program.outputs {
            last_read[base[output]] = instances.len();
        }
        let bytes = |at: usize| {
            let is_fixed = matches!(
                self.graph.node(instances[at].value).role,
                ops::Role::Param(_) | ops::Role::Constant(_)
            );
            let is_beside = self.is_beside[instances[at].value.index()] && !instances[at].is_again;
            if is_fixed || is_beside || base[at] != at {
                0
            } else {
                self.graph.ty(instances[at].value).bytes()
            }
        };
        // Inputs are there from the start.
        let is_input = |at: usize| self.graph.op(instances[at].value).is_none();
        let mut change = vec![0isize; instances.len() + 2];
        for at in 0..instances.len() {
            let first = if is_input(at) { 0 } else { at };
            change[first] += bytes(at) as isize;
            change[last_read[at].min(instances.len()) + 1] -= bytes(at) as isize;
        }
        let mut live = 0isize;
        let profile = change[..instances.len()].iter().map(|change| {
            live += change;
            live as usize
        });
        profile.collect()
    }

    /// The program as a graph.
    pub(crate) fn build(&self, program: &Program) -> Graph {
        let mut b = Builder::new(self.graph.name.clone());
        let mut new: Vec<ValueId> = Vec::with_capacity(program.instances.len());
        for instance in &program.instances {
            let args: Vec<ValueId> = instance.args.iter().map(|&arg| new[arg]).collect();
            let node = self.graph.node(instance.value);
            new.push(b.copy_node(node, &args).expect("the graph type-checked"));
        }
        let outputs: Vec<ValueId> = program.outputs.iter().map(|&output| new[output]).collect();
        b.finish(&outputs)
    }
}
