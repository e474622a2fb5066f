//! Which part of its operands a part of an op's result is made of.
//!
//! The question of `chunk-tokens`: if only positions `low..high` of one axis of a result are wanted,
//! which positions of which axis of each operand are needed? For a product that is rows of A and
//! all of B; for attention over the frames of one place it is that place in q, k and v.

use std::collections::BTreeMap;

use ops::defs::fused::Fused;
use ops::{Builder, Class, Graph, Node, Op, Role, TensorType, ValueId};

/// An axis in equal parts: part `k` is positions `k * unit..(k + 1) * unit`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Split {
    pub(super) axis: usize,
    pub(super) unit: usize,
}

/// What a part of a result needs of an operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Along {
    /// All of it, whichever part is wanted.
    Whole,
    /// The same parts of an axis.
    Split(Split),
}

/// What the values that `result` is made of are needed along, if `result` is split: everything
/// reached from it through ops that are `inside`, and what those read from outside. `None` if some
/// op does not split so, or two users of a value need it along different axes.
pub(super) fn propagate(
    graph: &Graph,
    result: ValueId,
    split: Split,
    inside: impl Fn(ValueId) -> bool,
) -> Option<BTreeMap<ValueId, Along>> {
    let mut along = BTreeMap::from([(result, Along::Split(split))]);
    let mut below = result.0 + 1;
    // From the last value up: all users of a value come before it.
    while let Some((&value, &needed)) = along.range(..ValueId(below)).next_back() {
        below = value.0;
        let Some(op) = graph.op(value).filter(|_| inside(value)) else { continue };
        let args = &graph.node(value).args;
        let of_args = match needed {
            Along::Whole => vec![Along::Whole; args.len()],
            Along::Split(split) => operands(op, &graph.arg_types(value), graph.ty(value), split)?,
        };
        for (&arg, needed) in args.iter().zip(of_args) {
            if *along.entry(arg).or_insert(needed) != needed {
                return None;
            }
        }
    }
    Some(along)
}

/// What a part of the result needs of each operand.
fn operands(op: &Op, args: &[&TensorType], out: &TensorType, split: Split) -> Option<Vec<Along>> {
    let Split { axis, unit } = split;
    let rank = out.rank();
    let dim = out.shape()[axis];
    let same = Along::Split(split);
    // The same axis, counted from the last; an operand that is repeated along it is needed whole.
    let aligned = |arg: &TensorType| -> Option<Along> {
        let Some(axis) = (axis + arg.rank()).checked_sub(rank) else { return Some(Along::Whole) };
        match arg.shape()[axis] {
            found if found == dim => Some(Along::Split(Split { axis, unit })),
            1 => Some(Along::Whole),
            _ => None,
        }
    };
    match op {
        Op::LayerNorm(_) | Op::RmsNorm(_) => (axis + 1 < rank).then(|| vec![same]),
        Op::NormGrad(_) => (axis + 1 < rank).then(|| vec![same, same]),
        Op::Softmax(op) => (axis != op.axis).then(|| vec![same]),
        Op::Matmul(op) => {
            let of_b = if axis + 2 < rank { aligned(args[1])? } else { Along::Whole };
            match rank - axis {
                1 => None,
                2 if op.transpose_a => None,
                _ => Some(vec![aligned(args[0])?, of_b]),
            }
        }
        Op::Attention(_) => {
            let is_mask = |arg: &TensorType| arg.dtype() == ops::DType::Bool;
            let of = |(i, arg): (usize, &&TensorType)| match (rank - axis, i) {
                // Queries: keys, values and their mask serve all.
                (3, 0) => Some(same),
                (3, 1 | 2) => Some(Along::Whole),
                (3, _) if is_mask(arg) => Some(Along::Whole),
                (3, _) => Some(Along::Split(Split { axis: rank - 2, unit })),
                (4.., _) if arg.shape()[axis] == dim => Some(same),
                (4.., _) if arg.shape()[axis] == 1 => Some(Along::Whole),
                _ => None,
            };
            args.iter().enumerate().map(of).collect()
        }
        Op::Rope(_) => match rank - axis {
            3 => Some(vec![same, Along::Split(Split { axis: 0, unit })]),
            4.. => Some(vec![same, Along::Whole]),
            _ => None,
        },
        Op::Reshape(_) => {
            reshaped(args[0].shape(), out.shape(), split).map(|split| vec![Along::Split(split)])
        }
        Op::Permute(op) => Some(vec![Along::Split(Split { axis: op.axes[axis], unit })]),
        Op::Slice(_) => (args[0].shape()[axis] == dim).then(|| vec![same]),
        Op::Broadcast(_) => Some(vec![aligned(args[0])?]),
        Op::Concat(op) => (axis != op.axis).then(|| vec![same; args.len()]),
        Op::Fused(group) => {
            let body = group.body();
            let along = propagate(body, body.outputs[0], split, |_| true)?;
            let is_sliced_constant = |(&value, needed): (&ValueId, &Along)| {
                matches!(body.node(value).role, Role::Constant(_)) && *needed != Along::Whole
            };
            if along.iter().any(is_sliced_constant) {
                return None;
            }
            let of = |(value, _)| along.get(&value).copied().unwrap_or(Along::Whole);
            Some(body.inputs().map(of).collect())
        }
        op if op.def().class() == Class::Elementwise => {
            args.iter().map(|arg| aligned(arg)).collect()
        }
        _ => None,
    }
}

/// The axis of a reshape's operand whose parts are those of the result.
fn reshaped(from: &[usize], to: &[usize], Split { axis, unit }: Split) -> Option<Split> {
    let outer: usize = to[..axis].iter().product();
    let part: usize = to[axis + 1..].iter().product::<usize>() * unit;
    let is_it = |&at: &usize| from[at] > 1 && from[..at].iter().product::<usize>() == outer;
    let axis = (0..from.len()).find(is_it)?;
    let inner: usize = from[axis + 1..].iter().product();
    part.is_multiple_of(inner).then_some(Split { axis, unit: part / inner })
}

/// `op` as it makes `n_parts` parts of its result; its operands are parts too.
pub(super) fn part_of(op: &Op, out: &TensorType, along: Along, n_parts: usize) -> Op {
    let Along::Split(split) = along else { return op.clone() };
    let len = n_parts * split.unit;
    let mut op = op.clone();
    match &mut op {
        Op::Reshape(op) => op.shape[split.axis] = len,
        Op::Broadcast(op) => op.shape[split.axis] = len,
        // All of the axis was taken.
        Op::Slice(op) => op.stop[split.axis] = len,
        Op::Fused(group) => {
            let parts = out.shape()[split.axis] / split.unit;
            return Fused::new(group.kind(), part_of_body(group.body(), split, n_parts, parts))
                .into();
        }
        _ => {}
    }
    op
}

/// `body` as it makes `n_parts` of the `parts` parts of its result.
fn part_of_body(body: &Graph, split: Split, n_parts: usize, parts: usize) -> Graph {
    let along = propagate(body, body.outputs[0], split, |_| true).expect("the group splits");
    let mut b = Builder::new(body.name.clone());
    let mut new: Vec<ValueId> = Vec::with_capacity(body.nodes.len());
    for (value, node) in body.values().zip(&body.nodes) {
        let needed = along.get(&value).copied().unwrap_or(Along::Whole);
        let made = match (&node.role, needed) {
            (Role::Input(name), Along::Split(Split { axis, unit })) => {
                debug_assert_eq!(node.ty.shape()[axis], parts * unit);
                let mut shape = node.ty.shape().to_vec();
                shape[axis] = n_parts * unit;
                let ty = node.ty.with_shape(shape).expect("a part is within the limits");
                Ok(b.input(name, ty))
            }
            (Role::Op(op), needed) => {
                let op = part_of(op, &node.ty, needed, n_parts);
                let args: Vec<ValueId> = node.args.iter().map(|arg| new[arg.index()]).collect();
                b.copy_node(&Node { role: Role::Op(op), ..node.clone() }, &args)
            }
            _ => b.copy_node(node, &[]),
        };
        new.push(made.expect("a part of a valid group is valid"));
    }
    b.finish(&[new[body.outputs[0].index()]])
}
