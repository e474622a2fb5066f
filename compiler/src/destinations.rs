//! Which values are made in place in the result of a `concat`.
//!
//! A concat whose every operand is the result of a step of its own needs no step: each operand is
//! written where it belongs in the concat's storage, which is a slice of it. Concats of concats
//! share the storage of the outermost. A value that is already stored elsewhere (an input, a
//! weight, a view, an operand of two concats) would have to be copied anyway; such a concat runs as
//! a kernel.

use std::collections::BTreeSet;

use kernels::Layout;
use ops::{Class, Graph, Op, ValueId};

/// Where the result of an op is written.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    /// The outermost concat, which owns the storage.
    pub(crate) root: ValueId,
    /// The elements of that storage.
    pub(crate) layout: Layout,
}

/// The destinations of a graph's values.
#[derive(Debug)]
pub(crate) struct Destinations {
    /// For each value the part of a concat's storage that it is written to; `None` for values with
    /// storage of their own.
    pub(crate) of: Vec<Option<Destination>>,
    /// Which values are concats that their operands' steps put together.
    pub(crate) is_assembled: Vec<bool>,
}

/// Decides for every concat of `graph`, outer ones first.
pub(crate) fn destinations(graph: &Graph) -> Destinations {
    let n = graph.nodes.len();
    let mut found = Destinations { of: vec![None; n], is_assembled: vec![false; n] };
    let bases = bases(graph);
    for concat in graph.values().rev() {
        let Some(Op::Concat(op)) = graph.op(concat) else { continue };
        let args = &graph.node(concat).args;
        let whole = found.of[concat.index()].clone().unwrap_or_else(|| Destination {
            root: concat,
            layout: Layout::dense(graph.ty(concat)),
        });
        let in_storage = |value: &ValueId| {
            found.of[value.index()].as_ref().is_some_and(|place| place.root == whole.root)
        };
        let mut members: BTreeSet<ValueId> = graph.values().filter(in_storage).collect();
        members.extend(args);
        // A step that read one member and wrote another would read and write one buffer.
        let reads_a_member = |&member: &ValueId| {
            let operands = &graph.node(member).args;
            member != concat
                && operands.iter().any(|operand| !bases[operand.index()].is_disjoint(&members))
        };
        let are_steps = args.iter().all(|&arg| {
            graph.op(arg).is_some_and(|op| !is_view(op))
                && !graph.outputs.contains(&arg)
                && found.of[arg.index()].is_none()
        });
        let are_distinct = args.iter().collect::<BTreeSet<_>>().len() == args.len();
        if !are_steps || !are_distinct || members.iter().any(reads_a_member) {
            continue;
        }
        let mut start = vec![0; whole.layout.rank()];
        let step = vec![1; whole.layout.rank()];
        for &arg in args {
            let shape = graph.ty(arg).shape();
            let layout = whole.layout.sliced(&start, shape, &step);
            found.of[arg.index()] = Some(Destination { root: whole.root, layout });
            start[op.axis] += shape[op.axis];
        }
        found.is_assembled[concat.index()] = true;
    }
    found
}

/// For each value the values whose elements it may show: itself, and what movement ops read.
fn bases(graph: &Graph) -> Vec<BTreeSet<ValueId>> {
    let mut bases: Vec<BTreeSet<ValueId>> = Vec::with_capacity(graph.nodes.len());
    for value in graph.values() {
        let mut own = BTreeSet::from([value]);
        if graph.op(value).is_some_and(|op| op.def().class() == Class::Movement) {
            for arg in &graph.node(value).args {
                own.extend(&bases[arg.index()]);
            }
        }
        bases.push(own);
    }
    bases
}

/// Whether the op's result is a view of its operand.
fn is_view(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Permute(_) | Op::Slice(_) | Op::Broadcast(_))
}
