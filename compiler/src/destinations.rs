//! Which values are made in place in the result of a `concat`.
//!
//! A concat whose every operand is the result of a step of its own needs no step: each operand is
//! written where it belongs in the concat's storage, which is a slice of it. Concats of concats
//! share the storage of the outermost. A value that is already stored elsewhere (an input, a
//! weight, a view, an operand of two concats) would have to be copied anyway; such a concat runs as
//! a kernel.

use std::collections::{BTreeMap, BTreeSet};

use kernels::Layout;
use ops::{Graph, Op, ValueId};

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
    let mut members: BTreeMap<ValueId, BTreeSet<ValueId>> = BTreeMap::new();
    for concat in graph.values().rev() {
        let Some(Op::Concat(op)) = graph.op(concat) else { continue };
        let args = &graph.node(concat).args;
        let whole = found.of[concat.index()].clone().unwrap_or_else(|| Destination {
            root: concat,
            layout: Layout::dense(graph.ty(concat)),
        });
        let mut in_storage = members.get(&whole.root).cloned().unwrap_or_default();
        in_storage.extend(args);
        // A step that read one member and wrote another would read and write one buffer.
        let reads_a_member = |&member: &ValueId| {
            let is_step = member != concat && !found.is_assembled[member.index()];
            let mut operands = graph.node(member).args.iter();
            is_step && operands.any(|arg| in_storage.contains(&bases[arg.index()]))
        };
        let are_steps = args.iter().all(|&arg| {
            graph.op(arg).is_some_and(|op| !is_view(op))
                && !graph.outputs.contains(&arg)
                && found.of[arg.index()].is_none()
        });
        let are_distinct = args.iter().collect::<BTreeSet<_>>().len() == args.len();
        if !are_steps || !are_distinct || in_storage.iter().any(reads_a_member) {
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
        members.insert(whole.root, in_storage);
    }
    found
}

/// For each value the one whose elements it shows: itself, or what it is a view of.
fn bases(graph: &Graph) -> Vec<ValueId> {
    let mut bases: Vec<ValueId> = Vec::with_capacity(graph.nodes.len());
    for value in graph.values() {
        let is_shown = graph.op(value).is_some_and(is_view);
        bases.push(if is_shown { bases[graph.node(value).args[0].index()] } else { value });
    }
    bases
}

/// Whether the op's result is a view of its operand.
pub(crate) fn is_view(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Permute(_) | Op::Slice(_) | Op::Broadcast(_))
}
