//! One form for each thing, so that later passes have one form to look for. Exact: every element
//! keeps its bits, except that `c - x` becomes `-x + c`, which rounds the same.

use ops::defs::binary::Binary;
use ops::defs::broadcast::Broadcast;
use ops::defs::cast::Cast;
use ops::defs::matmul::Matmul;
use ops::defs::permute::Permute;
use ops::defs::reduce_max::ReduceMax;
use ops::defs::reduce_sum::ReduceSum;
use ops::defs::scalar::{Scalar, ScalarFn};
use ops::defs::unary::Unary;
use ops::{Class, DType, Data, Graph, Op, Role, Tensor, TensorType, ValueId};

use crate::pass::Pass;
use crate::passes::movement;
use crate::rewrite::{Rewriter, rewrite};

pub(crate) const PASS: Pass = Pass {
    name: "canonicalize",
    about: "bring each op into its one form: movement composed, weights and constants on the right",
    run,
};

fn run(graph: &Graph) -> Graph {
    rewrite(graph, rule)
}

/// All rules of the pass.
pub(super) fn rule(r: &mut Rewriter<'_>, op: &Op, args: &[ValueId]) -> Option<ValueId> {
    movement::rule(r, op, args).or_else(|| hoist_broadcast(r, op, args)).or_else(|| match op {
        Op::Cast(cast) => self::cast(r, *cast, args[0]),
        Op::Binary(op) => binary(r, *op, args[0], args[1]),
        Op::Matmul(op) => matmul(r, *op, args[0], args[1]),
        Op::ReduceSum(reduce) => {
            drop_unit_axes(r, &reduce.axes, args[0], |axes| ReduceSum { axes })
        }
        Op::ReduceMax(reduce) => {
            drop_unit_axes(r, &reduce.axes, args[0], |axes| ReduceMax { axes })
        }
        _ => None,
    })
}

/// Elementwise ops repeat operands themselves, so a broadcast before one is dropped, or moved
/// behind it where the op's result would be smaller without.
fn hoist_broadcast(r: &mut Rewriter<'_>, op: &Op, args: &[ValueId]) -> Option<ValueId> {
    if op.def().class() != Class::Elementwise {
        return None;
    }
    let is_broadcast = |&arg: &ValueId| matches!(r.op(arg), Some(Op::Broadcast(_)));
    if !args.iter().any(is_broadcast) {
        return None;
    }
    let shape = infer(r, op, args).shape().to_vec();
    let bare: Vec<ValueId> =
        args.iter().map(|arg| if is_broadcast(arg) { r.arg(*arg, 0) } else { *arg }).collect();
    let value = r.append(op.clone(), &bare);
    Some(if r.shape(value) == shape { value } else { r.append(Broadcast { shape }, &[value]) })
}

fn infer(r: &Rewriter<'_>, op: &Op, args: &[ValueId]) -> TensorType {
    let types: Vec<&TensorType> = args.iter().map(|&arg| r.ty(arg)).collect();
    op.def().infer(&types).expect("the op was in a valid graph with operands of these types")
}

/// A cast to the same type is dropped, and so is one to a type in between that holds every value.
fn cast(r: &mut Rewriter<'_>, op: Cast, x: ValueId) -> Option<ValueId> {
    if r.ty(x).dtype() == op.dtype {
        return Some(x);
    }
    let Some(&Op::Cast(inner)) = r.op(x) else { return None };
    let source = r.arg(x, 0);
    if !is_widening(r.ty(source).dtype(), inner.dtype) {
        return None;
    }
    Some(r.append(op, &[source]))
}

/// Whether every value of `from` is a value of `to`.
fn is_widening(from: DType, to: DType) -> bool {
    match (from, to) {
        (DType::Bool, _) => true,
        (DType::U8, to) => to != DType::Bool,
        (DType::F16 | DType::Bf16, DType::F32) | (DType::I32, DType::I64) => true,
        (from, to) => from == to,
    }
}

/// Operands of a commutative op stand in one order; a constant of one value becomes an attribute.
fn binary(r: &mut Rewriter<'_>, op: Binary, x: ValueId, y: ValueId) -> Option<ValueId> {
    if is_out_of_order(r, op, x, y) {
        return Some(r.append(op, &[y, x]));
    }
    let scalar = |op, value: f64| (!value.is_nan()).then_some(Scalar { op, value });
    // Where the constant is the larger operand, the scalar op's result is repeated up to it.
    let shape = infer(r, &op.into(), &[x, y]).shape().to_vec();
    let result = if let Some(c) = splat(r, y) {
        let op = match op {
            Binary::Add => scalar(ScalarFn::Add, c),
            Binary::Sub => scalar(ScalarFn::Add, -c),
            Binary::Mul => scalar(ScalarFn::Mul, c),
            Binary::Div if has_exact_reciprocal(c) => scalar(ScalarFn::Mul, 1.0 / c),
            Binary::Max => scalar(ScalarFn::Max, c),
            Binary::Min => scalar(ScalarFn::Min, c),
            Binary::Div | Binary::Less | Binary::Equal => None,
        }?;
        r.append(op, &[x])
    } else {
        let c = splat(r, x)?;
        match op {
            Binary::Sub => {
                let op = scalar(ScalarFn::Add, c)?;
                let minus = r.append(Unary::Neg, &[y]);
                r.append(op, &[minus])
            }
            Binary::Div if c == 1.0 => r.append(Unary::Recip, &[y]),
            _ => return None,
        }
    };
    Some(if r.shape(result) == shape { result } else { r.append(Broadcast { shape }, &[result]) })
}

/// A matmul transposes its operands itself.
fn matmul(r: &mut Rewriter<'_>, op: Matmul, a: ValueId, b: ValueId) -> Option<ValueId> {
    let transposed = |value: ValueId| match r.op(value) {
        Some(Op::Permute(Permute { axes })) if swaps_last_two(axes) => Some(r.arg(value, 0)),
        _ => None,
    };
    let (a_source, b_source) = (transposed(a), transposed(b));
    if a_source.is_none() && b_source.is_none() {
        return None;
    }
    let op = Matmul {
        transpose_a: op.transpose_a != a_source.is_some(),
        transpose_b: op.transpose_b != b_source.is_some(),
    };
    Some(r.append(op, &[a_source.unwrap_or(a), b_source.unwrap_or(b)]))
}

fn swaps_last_two(axes: &[usize]) -> bool {
    let n = axes.len();
    n >= 2 && axes[n - 2..] == [n - 1, n - 2] && axes[..n - 2].iter().copied().eq(0..n - 2)
}

/// Whether the operands of `op` can be swapped and should be.
pub(super) fn is_out_of_order(r: &Rewriter<'_>, op: Binary, x: ValueId, y: ValueId) -> bool {
    op.is_commutative() && rank(r, y) < rank(r, x)
}

/// The order of operands: what is computed first, then inputs, weights and constants, each as they
/// come in the program.
fn rank(r: &Rewriter<'_>, value: ValueId) -> (u8, ValueId) {
    let class = match r.graph().node(value).role {
        Role::Op(_) => 0,
        Role::Input(_) => 1,
        Role::Param(_) => 2,
        Role::Constant(_) => 3,
    };
    (class, value)
}

/// The one value of all elements of a float constant.
fn splat(r: &Rewriter<'_>, value: ValueId) -> Option<f64> {
    r.constant_of(value).and_then(splat_of)
}

/// See [`splat`].
pub(super) fn splat_of(tensor: &Tensor) -> Option<f64> {
    let Data::Float(values) = tensor.data() else { return None };
    // By bits: 0.0 and -0.0 are different constants.
    let first = values[0];
    values.iter().all(|x| x.to_bits() == first.to_bits()).then_some(first)
}

/// Whether `x / c` and `x * (1 / c)` round alike for every `x`: `c` is a power of two with a
/// reciprocal that no float type here takes for a subnormal.
fn has_exact_reciprocal(c: f64) -> bool {
    let mantissa_bits = c.to_bits() & ((1 << 52) - 1);
    mantissa_bits == 0 && (2f64.powi(-14)..=2f64.powi(14)).contains(&c.abs())
}

/// Axes of one element need no reduction.
fn drop_unit_axes<R: Into<Op>>(
    r: &mut Rewriter<'_>,
    axes: &[usize],
    x: ValueId,
    make: fn(Vec<usize>) -> R,
) -> Option<ValueId> {
    let kept: Vec<usize> = axes.iter().copied().filter(|&axis| r.shape(x)[axis] != 1).collect();
    if kept.is_empty() {
        return Some(x);
    }
    (kept.len() < axes.len()).then(|| r.append(make(kept), &[x]))
}
