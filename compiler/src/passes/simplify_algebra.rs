//! Algebra on elementwise ops. Every rule keeps the value of each element, up to two things that it
//! may improve: two roundings may become one (`x * a * b` as `x * (a b)`), and a zero may lose or keep
//! its sign (`x + 0`). Nothing is assumed about elements: `x - x` and `x * 0` stay, because of infinities
//! and NaN.
//!
//! What it builds is kept canonical and constants in it are folded, so one run is enough.

use ops::defs::binary::Binary;
use ops::defs::concat::Concat;
use ops::defs::pad::Pad;
use ops::defs::scalar::{Scalar, ScalarFn};
use ops::defs::unary::Unary;
use ops::{Data, Graph, Op, Tensor, ValueId};

use crate::pass::Pass;
use crate::passes::{canonicalize, fold_constants};
use crate::rewrite::{Rewriter, rewrite};

pub(crate) const PASS: Pass = Pass {
    name: "simplify-algebra",
    about: "apply identities of elementwise ops that hold for every float",
    run,
};

fn run(graph: &Graph) -> Graph {
    rewrite(graph, simplest)
}

/// These rules, and those of the passes before, which keep what they build simple.
pub(super) fn simplest(r: &mut Rewriter<'_>, op: &Op, args: &[ValueId]) -> Option<ValueId> {
    rule(r, op, args)
        .or_else(|| fold_constants::rule(r, op, args))
        .or_else(|| canonicalize::rule(r, op, args))
}

fn rule(r: &mut Rewriter<'_>, op: &Op, args: &[ValueId]) -> Option<ValueId> {
    match op {
        Op::Unary(op) => unary(r, *op, args[0]),
        Op::Scalar(op) => scalar(r, *op, args[0]),
        Op::Binary(op) => binary(r, *op, args[0], args[1]),
        Op::Select(_) => select(r, args[0], args[1], args[2]),
        _ => None,
    }
}

fn unary(r: &mut Rewriter<'_>, op: Unary, x: ValueId) -> Option<ValueId> {
    let inner = r.op(x).cloned()?;
    match (op, inner) {
        (Unary::Neg, Op::Unary(Unary::Neg)) => Some(r.arg(x, 0)),
        (Unary::Neg, Op::Binary(Binary::Sub)) => {
            let [a, b] = [r.arg(x, 0), r.arg(x, 1)];
            Some(r.append(Binary::Sub, &[b, a]))
        }
        (Unary::Neg, Op::Scalar(Scalar { op: ScalarFn::Mul, value })) => {
            let source = r.arg(x, 0);
            Some(r.append(Scalar { op: ScalarFn::Mul, value: -value }, &[source]))
        }
        (Unary::Abs, Op::Unary(Unary::Abs)) => Some(x),
        (Unary::Abs | Unary::Square, Op::Unary(Unary::Neg | Unary::Abs)) => {
            let source = r.arg(x, 0);
            Some(r.append(op, &[source]))
        }
        _ => None,
    }
}

fn scalar(r: &mut Rewriter<'_>, op: Scalar, x: ValueId) -> Option<ValueId> {
    match (op.op, op.value) {
        (ScalarFn::Add, 0.0) => return Some(x),
        (ScalarFn::Mul | ScalarFn::Pow, 1.0) => return Some(x),
        (ScalarFn::Mul, -1.0) => return Some(r.append(Unary::Neg, &[x])),
        (ScalarFn::Pow, 2.0) => return Some(r.append(Unary::Square, &[x])),
        (ScalarFn::Pow, -1.0) => return Some(r.append(Unary::Recip, &[x])),
        _ => {}
    }
    let value = match (op.op, r.op(x)?.clone()) {
        (ScalarFn::Mul, Op::Unary(Unary::Neg)) => -op.value,
        (ScalarFn::Mul, Op::Scalar(Scalar { op: ScalarFn::Mul, value })) => {
            product_of_factors(op.value, value)?
        }
        // With opposite signs the first sum may round away what the second brings back.
        (ScalarFn::Add, Op::Scalar(Scalar { op: ScalarFn::Add, value }))
            if op.value.is_sign_positive() == value.is_sign_positive() =>
        {
            op.value + value
        }
        (ScalarFn::Max, Op::Scalar(Scalar { op: ScalarFn::Max, value })) => op.value.max(value),
        (ScalarFn::Min, Op::Scalar(Scalar { op: ScalarFn::Min, value })) => op.value.min(value),
        _ => return None,
    };
    let source = r.arg(x, 0);
    Some(r.append(Scalar { op: op.op, value }, &[source]))
}

/// `a b` where neither factor can take an element out of range that the product keeps in it: both
/// are moderate, as factors in a model are.
fn product_of_factors(a: f64, b: f64) -> Option<f64> {
    let moderate = |x: f64| (1e-3..=1e3).contains(&x.abs());
    (moderate(a) && moderate(b)).then_some(a * b)
}

fn binary(r: &mut Rewriter<'_>, op: Binary, x: ValueId, y: ValueId) -> Option<ValueId> {
    if x == y {
        match op {
            Binary::Mul if r.ty(x).dtype().is_float() => {
                return Some(r.append(Unary::Square, &[x]));
            }
            Binary::Max | Binary::Min => return Some(x),
            _ => {}
        }
    }
    if let (Binary::Add, Some(joined)) = (op, join_pads(r, x, y)) {
        return Some(joined);
    }
    let negated = |r: &Rewriter<'_>, value: ValueId| match r.op(value) {
        Some(Op::Unary(Unary::Neg)) => Some(r.arg(value, 0)),
        _ => None,
    };
    match (op, negated(r, x), negated(r, y)) {
        (Binary::Add, _, Some(y)) => Some(r.append(Binary::Sub, &[x, y])),
        (Binary::Add, Some(x), None) => Some(r.append(Binary::Sub, &[y, x])),
        (Binary::Sub, _, Some(y)) => Some(r.append(Binary::Add, &[x, y])),
        (Binary::Mul | Binary::Div, Some(x), Some(y)) => Some(r.append(op, &[x, y])),
        _ => integer_identity(r, op, x, y),
    }
}

/// The sum of two parts of one value, each padded with zeros where the other is, as gradients of slices
/// are: the parts side by side, which need not be added.
fn join_pads(r: &mut Rewriter<'_>, x: ValueId, y: ValueId) -> Option<ValueId> {
    if r.shape(x) != r.shape(y) {
        return None;
    }
    let padded = |value: ValueId| match r.op(value) {
        Some(Op::Pad(pad)) => Some((pad.clone(), r.arg(value, 0))),
        _ => None,
    };
    let (a, b) = (padded(x)?, padded(y)?);
    let axis_of = |pad: &Pad| {
        let mut axes = (0..pad.low.len()).filter(|&axis| pad.low[axis] + pad.high[axis] > 0);
        axes.next().filter(|_| axes.next().is_none())
    };
    let axis = axis_of(&a.0).filter(|&axis| axis_of(&b.0) == Some(axis))?;
    let ((lower, first), (upper, second)) =
        if a.0.low[axis] < b.0.low[axis] { (a, b) } else { (b, a) };
    if lower.low[axis] + r.shape(first)[axis] != upper.low[axis] {
        return None;
    }
    // Parts that were joined before stay parts of one concat.
    let parts = |value: ValueId| match r.op(value) {
        Some(Op::Concat(concat)) if concat.axis == axis => r.graph().node(value).args.clone(),
        _ => vec![value],
    };
    let parts = [parts(first), parts(second)].concat();
    let joined = r.append(Concat { axis }, &parts);
    Some(r.append(Pad { low: lower.low, high: upper.high }, &[joined]))
}

/// `x + 0`, `x - 0`, `x * 1`, `x / 1` and `x * 0` of integers, where the result has the dims of the
/// operand that stands for it.
fn integer_identity(r: &Rewriter<'_>, op: Binary, x: ValueId, y: ValueId) -> Option<ValueId> {
    let Data::Int(values) = r.constant_of(y)?.data() else { return None };
    let first = values[0];
    if !values.iter().all(|&value| value == first) {
        return None;
    }
    let result = match (op, first) {
        (Binary::Add | Binary::Sub, 0) | (Binary::Mul | Binary::Div, 1) => x,
        (Binary::Mul, 0) => y,
        _ => return None,
    };
    let other = if result == x { y } else { x };
    // Dims that only the other operand has would be lost.
    let keeps_dims =
        r.shape(result).iter().zip(r.shape(other)).all(|(&kept, &dim)| dim == kept || dim == 1);
    keeps_dims.then_some(result)
}

/// A select between equals, or by a condition that is known, where dims allow.
fn select(r: &Rewriter<'_>, cond: ValueId, x: ValueId, y: ValueId) -> Option<ValueId> {
    let chosen = match r.constant_of(cond).map(Tensor::as_ints) {
        Some(bits) if bits.iter().all(|&bit| bit != 0) => x,
        Some(bits) if bits.iter().all(|&bit| bit == 0) => y,
        _ if x == y => x,
        _ => return None,
    };
    let covers = |value: ValueId| {
        r.shape(chosen).iter().zip(r.shape(value)).all(|(&kept, &dim)| dim == kept || dim == 1)
    };
    (covers(cond) && covers(x) && covers(y)).then_some(chosen)
}
