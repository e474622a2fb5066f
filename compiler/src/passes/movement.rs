//! Canonical forms of ops that only move elements: one op where two do the same, none where
//! nothing moves.

use ops::defs::broadcast::Broadcast;
use ops::defs::concat::Concat;
use ops::defs::pad::Pad;
use ops::defs::permute::Permute;
use ops::defs::reshape::Reshape;
use ops::defs::slice::Slice;
use ops::{Op, ValueId};

use crate::rewrite::Rewriter;

/// The rules of `canonicalize` for movement ops.
pub(super) fn rule(r: &mut Rewriter<'_>, op: &Op, args: &[ValueId]) -> Option<ValueId> {
    match op {
        Op::Reshape(reshape) => self::reshape(r, reshape, args[0]),
        Op::Permute(permute) => self::permute(r, permute, args[0]),
        Op::Slice(slice) => self::slice(r, slice, args[0]),
        Op::Broadcast(broadcast) => self::broadcast(r, broadcast, args[0]),
        Op::Pad(pad) => self::pad(r, pad, args[0]),
        Op::Concat(_) => (args.len() == 1).then(|| args[0]),
        // Gradients have been appended by now.
        Op::StopGradient(_) => Some(args[0]),
        _ => None,
    }
}

/// A reshape to the same dims is dropped; of two, the last one counts.
fn reshape(r: &mut Rewriter<'_>, op: &Reshape, x: ValueId) -> Option<ValueId> {
    if r.shape(x) == op.shape {
        return Some(x);
    }
    let Some(Op::Reshape(_)) = r.op(x) else { return None };
    let source = r.arg(x, 0);
    Some(r.append(op.clone(), &[source]))
}

/// A permute that moves nothing is dropped; two are composed.
fn permute(r: &mut Rewriter<'_>, op: &Permute, x: ValueId) -> Option<ValueId> {
    if op.axes.iter().copied().eq(0..op.axes.len()) {
        return Some(x);
    }
    let Some(Op::Permute(inner)) = r.op(x) else { return None };
    let axes = op.axes.iter().map(|&axis| inner.axes[axis]).collect();
    let source = r.arg(x, 0);
    Some(r.append(Permute { axes }, &[source]))
}

/// A slice of everything is dropped; two are composed; a slice of one operand of a concat takes it
/// from there; `stop` is one past the last position that is taken, and `step` is 1 where one
/// position is.
fn slice(r: &mut Rewriter<'_>, op: &Slice, x: ValueId) -> Option<ValueId> {
    let tight = tight(op);
    let shape = r.shape(x);
    let takes_all = (0..shape.len()).all(|axis| {
        tight.start[axis] == 0 && tight.step[axis] == 1 && tight.stop[axis] == shape[axis]
    });
    if takes_all {
        return Some(x);
    }
    if tight != *op {
        return Some(r.append(tight, &[x]));
    }
    match r.op(x) {
        Some(Op::Slice(inner)) => {
            let composed = compose(inner, op);
            let source = r.arg(x, 0);
            Some(r.append(composed, &[source]))
        }
        Some(&Op::Concat(concat)) => slice_of_concat(r, op, concat, x),
        _ => None,
    }
}

fn tight(op: &Slice) -> Slice {
    let mut tight = op.clone();
    for axis in 0..op.start.len() {
        let last = (op.stop[axis] - op.start[axis] - 1) / op.step[axis];
        tight.stop[axis] = op.start[axis] + last * op.step[axis] + 1;
        if last == 0 {
            tight.step[axis] = 1;
        }
    }
    tight
}

/// `outer` of what `inner` takes.
fn compose(inner: &Slice, outer: &Slice) -> Slice {
    let position = |axis: usize, i: usize| inner.start[axis] + i * inner.step[axis];
    let axes = 0..inner.start.len();
    Slice {
        start: axes.clone().map(|axis| position(axis, outer.start[axis])).collect(),
        stop: axes.clone().map(|axis| position(axis, outer.stop[axis] - 1) + 1).collect(),
        step: axes.map(|axis| inner.step[axis] * outer.step[axis]).collect(),
    }
}

fn slice_of_concat(
    r: &mut Rewriter<'_>,
    op: &Slice,
    concat: Concat,
    x: ValueId,
) -> Option<ValueId> {
    let axis = concat.axis;
    let mut begin = 0;
    for i in 0..r.graph().node(x).args.len() {
        let part = r.arg(x, i);
        let end = begin + r.shape(part)[axis];
        if op.start[axis] >= begin && op.stop[axis] <= end {
            let mut inside = op.clone();
            inside.start[axis] -= begin;
            inside.stop[axis] -= begin;
            return Some(r.append(inside, &[part]));
        }
        begin = end;
    }
    None
}

/// A broadcast to the same dims is dropped; of two, the last one counts.
fn broadcast(r: &mut Rewriter<'_>, op: &Broadcast, x: ValueId) -> Option<ValueId> {
    if r.shape(x) == op.shape {
        return Some(x);
    }
    let Some(Op::Broadcast(_)) = r.op(x) else { return None };
    let source = r.arg(x, 0);
    Some(r.append(op.clone(), &[source]))
}

/// A pad of nothing is dropped; two are added up.
fn pad(r: &mut Rewriter<'_>, op: &Pad, x: ValueId) -> Option<ValueId> {
    if op.low.iter().chain(&op.high).all(|&n| n == 0) {
        return Some(x);
    }
    let Some(Op::Pad(inner)) = r.op(x) else { return None };
    let sum = |a: &[usize], b: &[usize]| a.iter().zip(b).map(|(a, b)| a + b).collect();
    let both = Pad { low: sum(&op.low, &inner.low), high: sum(&op.high, &inner.high) };
    let source = r.arg(x, 0);
    Some(r.append(both, &[source]))
}
