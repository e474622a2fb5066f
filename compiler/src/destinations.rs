//! Which values are made in place in the result of a `concat`.
//!
//! A concat needs no step of its own where its operands are results of steps: each is written where it belongs in the
//! concat's storage, which is a slice of it, also where a reshape or permute is between the step and the concat.
//! Concats of concats share the storage of the outermost. An operand that is already stored elsewhere (an input, a
//! weight, a part of a value, an operand of two concats) has to be copied; where those are more than half, the concat
//! runs as a kernel.

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
    /// For each concat that needs no step of its own, where each of its operands is copied to; `None` for those that
    /// are there already.
    pub(crate) assembled: BTreeMap<ValueId, Vec<Option<Destination>>>,
}

/// Decides for every concat of `graph`, outer ones first.
pub(crate) fn destinations(graph: &Graph) -> Destinations {
    let n = graph.nodes.len();
    let mut found = Destinations { of: vec![None; n], assembled: BTreeMap::new() };
    let bases = bases(graph);
    let mut members: BTreeMap<ValueId, BTreeSet<ValueId>> = BTreeMap::new();
    for concat in graph.values().rev() {
        let Some(Op::Concat(op)) = graph.op(concat) else { continue };
        let args = &graph.node(concat).args;
        let whole = found.of[concat.index()].clone().unwrap_or_else(|| Destination {
            root: concat,
            layout: Layout::dense(graph.ty(concat)),
        });
        let mut start = vec![0; whole.layout.rank()];
        let step = vec![1; whole.layout.rank()];
        let mut made = BTreeMap::new();
        let mut copied = Vec::with_capacity(args.len());
        for &arg in args {
            let shape = graph.ty(arg).shape();
            let layout = whole.layout.sliced(&start, shape, &step);
            start[op.axis] += shape[op.axis];
            let maker = maker(graph, arg, &layout).filter(|(maker, _)| {
                !graph.outputs.contains(maker)
                    && found.of[maker.index()].is_none()
                    && !made.contains_key(maker)
            });
            copied.push(match maker {
                Some((maker, layout)) => {
                    made.insert(maker, Destination { root: whole.root, layout });
                    None
                }
                None => Some(Destination { root: whole.root, layout }),
            });
        }
        let bytes = |values: &mut dyn Iterator<Item = ValueId>| -> usize {
            values.map(|value| graph.ty(value).bytes()).sum()
        };
        let made_bytes = bytes(&mut made.keys().copied());
        if 2 * made_bytes < bytes(&mut std::iter::once(concat)) || made.is_empty() {
            continue;
        }
        let mut in_storage = members.get(&whole.root).cloned().unwrap_or_default();
        in_storage.extend(made.keys());
        // A step that read one member and wrote another would read and write one buffer.
        let reads_a_member = |&member: &ValueId| {
            let is_step = member != concat && !found.assembled.contains_key(&member);
            let mut operands = graph.node(member).args.iter();
            is_step && operands.any(|arg| in_storage.contains(&bases[arg.index()]))
        };
        let copies_a_member = args
            .iter()
            .zip(&copied)
            .any(|(arg, copied)| copied.is_some() && in_storage.contains(&bases[arg.index()]));
        if copies_a_member || in_storage.iter().any(reads_a_member) {
            continue;
        }
        for (maker, destination) in made {
            found.of[maker.index()] = Some(destination);
        }
        found.assembled.insert(concat, copied);
        members.insert(whole.root, in_storage);
    }
    found
}

/// The step or concat whose whole result `value` shows, and where that lies if `value` lies as `layout` says; `None` if
/// there is none, or strides cannot say so.
fn maker(graph: &Graph, value: ValueId, layout: &Layout) -> Option<(ValueId, Layout)> {
    let op = graph.op(value)?;
    if !is_view(op) {
        return Some((value, layout.clone()));
    }
    let from = *graph.node(value).args.first()?;
    let before = match op {
        Op::Reshape(_) => layout.reshaped(graph.ty(from).shape())?,
        Op::Permute(permute) => {
            let axes = &permute.axes;
            let place_of = |axis| axes.iter().position(|&from| from == axis);
            let places: Option<Vec<usize>> = (0..axes.len()).map(place_of).collect();
            layout.permuted(&places?)
        }
        _ => return None,
    };
    // What is made there must be shown from there without a copy.
    if let Op::Reshape(_) = op {
        before.reshaped(graph.ty(value).shape())?;
    }
    maker(graph, from, &before)
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
