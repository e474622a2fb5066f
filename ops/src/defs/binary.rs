//! Elementwise ops of two operands, with broadcasting. Adding one is one row of the table.
//!
//! Operands have the same element type and rank; in each axis the dims are equal or one of them is
//! 1, which is then repeated. Comparisons give `bool`.

use crate::defs::broadcast::{broadcast_index, broadcast_shape, sum_to};
use crate::defs::elementwise::elementwise;
use crate::op::arity;
use crate::{
    Attrs, Builder, Class, DType, Data, Error, Example, Op, OpDef, Tensor, TensorType, ValueId,
};

type Vjp = fn(&mut Builder, [ValueId; 2], ValueId, ValueId) -> Result<[Option<ValueId>; 2], Error>;

/// What a row computes.
enum Kind {
    /// On floats and integers, same type out.
    Arithmetic(fn(f64, f64) -> f64, fn(i64, i64) -> i64),
    /// On floats and integers, bool out.
    Comparison(fn(f64, f64) -> bool, fn(i64, i64) -> bool),
}

/// One row: printed name, function, gradient before broadcasting is undone, and cost.
struct Row {
    name: &'static str,
    kind: Kind,
    /// Appends both gradients given `([x, y], out, grad)`, in the broadcast shape.
    vjp: Vjp,
    range: (f64, f64),
}

/// Passes `grad` to the operand that was chosen (`chosen` is bool), zero to the other.
fn route(b: &mut Builder, chosen: ValueId, g: ValueId) -> Result<[Option<ValueId>; 2], Error> {
    let zero = b.splat_like(g, 0.0)?;
    Ok([Some(b.select(chosen, g, zero)?), Some(b.select(chosen, zero, g)?)])
}

elementwise! {
    /// An elementwise function of two operands.
    enum Binary;
    fn (&mut self, x: ValueId, y: ValueId) |op| self.op(op, &[x, y]);

    /// `x + y`.
    Add add Row {
        name: "add", range: (-2.0, 2.0),
        kind: Kind::Arithmetic(|x, y| x + y, i64::wrapping_add),
        vjp: |_, _, _, g| Ok([Some(g), Some(g)]),
    };
    /// `x - y`.
    Sub sub Row {
        name: "sub", range: (-2.0, 2.0),
        kind: Kind::Arithmetic(|x, y| x - y, i64::wrapping_sub),
        vjp: |b, _, _, g| Ok([Some(g), Some(b.neg(g)?)]),
    };
    /// `x * y`.
    Mul mul Row {
        name: "mul", range: (-2.0, 2.0),
        kind: Kind::Arithmetic(|x, y| x * y, i64::wrapping_mul),
        vjp: |b, [x, y], _, g| Ok([Some(b.mul(g, y)?), Some(b.mul(g, x)?)]),
    };
    /// `x / y`; integers truncate and wrap, and divide by zero to 0.
    Div div Row {
        name: "div", range: (0.5, 3.0),
        kind: Kind::Arithmetic(|x, y| x / y, |x, y| if y == 0 { 0 } else { x.wrapping_div(y) }),
        vjp: |b, [_, y], out, g| {
            let dx = b.div(g, y)?;
            let dy = b.mul(dx, out)?;
            Ok([Some(dx), Some(b.neg(dy)?)])
        },
    };
    /// The larger; at equality the gradient goes to `y`.
    Max maximum Row {
        name: "max", range: (-2.0, 2.0),
        kind: Kind::Arithmetic(f64::max, i64::max),
        vjp: |b, [x, y], _, g| { let chosen = b.less(y, x)?; route(b, chosen, g) },
    };
    /// The smaller; at equality the gradient goes to `y`.
    Min minimum Row {
        name: "min", range: (-2.0, 2.0),
        kind: Kind::Arithmetic(f64::min, i64::min),
        vjp: |b, [x, y], _, g| { let chosen = b.less(x, y)?; route(b, chosen, g) },
    };
    /// `x < y`, bool.
    Less less Row {
        name: "less", range: (-2.0, 2.0),
        kind: Kind::Comparison(|x, y| x < y, |x, y| x < y),
        vjp: |_, _, _, _| Ok([None, None]),
    };
    /// `x == y`, bool.
    Equal equal Row {
        name: "equal", range: (-2.0, 2.0),
        kind: Kind::Comparison(|x, y| x == y, |x, y| x == y),
        vjp: |_, _, _, _| Ok([None, None]),
    };
}

impl Binary {
    /// The function on one element; a comparison gives 0 or 1.
    pub fn apply(self, x: f64, y: f64) -> f64 {
        match self.row().kind {
            Kind::Arithmetic(f, _) => f(x, y),
            Kind::Comparison(f, _) => f64::from(u8::from(f(x, y))),
        }
    }

    /// The function on one integer element; a comparison gives 0 or 1.
    pub fn apply_int(self, x: i64, y: i64) -> i64 {
        match self.row().kind {
            Kind::Arithmetic(_, f) => f(x, y),
            Kind::Comparison(_, f) => i64::from(f(x, y)),
        }
    }

    /// Whether the result is `bool`.
    pub fn is_comparison(self) -> bool {
        matches!(self.row().kind, Kind::Comparison(..))
    }

    /// Whether swapping the operands keeps the result.
    pub fn is_commutative(self) -> bool {
        matches!(self, Binary::Add | Binary::Mul | Binary::Max | Binary::Min | Binary::Equal)
    }

    /// The function called `name`, if the table has it.
    pub fn parse(name: &str, attrs: &Attrs) -> Option<Result<Binary, Error>> {
        let op = Binary::ALL.iter().copied().find(|op| op.name() == name)?;
        Some(crate::AttrReader::new(op.name(), attrs).end().map(|()| op))
    }

    /// Every row on equal shapes and with either operand broadcast, in bf16 and i32.
    pub fn examples() -> Vec<Example> {
        let shapes: [[&[usize]; 2]; 3] =
            [[&[2, 3], &[2, 3]], [&[2, 3, 4], &[2, 1, 4]], [&[1, 1], &[2, 3]]];
        let mut all = Vec::new();
        for &op in Binary::ALL {
            let (low, high) = op.row().range;
            for pair in shapes {
                all.push(Example::f32(Op::from(op), &pair).in_range(low, high));
            }
            let odd = Example::f32(Op::from(op), &[&[3, 5], &[3, 1]]);
            all.push(odd.clone().of(DType::Bf16).in_range(low, high));
            all.push(odd.of(DType::I32).in_range(-3.0, 9.0));
        }
        all
    }

    /// Printed names in table order.
    pub fn names() -> Vec<&'static str> {
        Binary::ALL.iter().map(OpDef::name).collect()
    }
}

impl OpDef for Binary {
    fn name(&self) -> &'static str {
        self.row().name
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity(self.name(), args, 2)?;
        let [x, y] = [args[0], args[1]];
        let shape = broadcast_shape(x.shape(), y.shape());
        let Some(shape) = shape.filter(|_| x.dtype() == y.dtype()) else {
            return Err(Error::operand(
                self.name(),
                1,
                y,
                format!("{} with dims equal to those of {x}, or 1", x.dtype()),
            ));
        };
        let dtype = if self.is_comparison() { DType::Bool } else { x.dtype() };
        TensorType::new(dtype, shape)
    }

    fn class(&self) -> Class {
        Class::Elementwise
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let [x, y] = [args[0], args[1]].map(|arg| (arg, broadcast_index(arg.shape(), out.shape())));
        let n = 0..out.count();
        match (x.0.data(), y.0.data()) {
            (Data::Float(xs), Data::Float(ys)) => {
                let values = n.map(|i| self.apply(xs[x.1(i)], ys[y.1(i)]));
                if self.is_comparison() {
                    Tensor::ints(out.clone(), values.map(|v| v as i64).collect())
                } else {
                    Tensor::floats(out.clone(), values.collect())
                }
            }
            _ => {
                let (xs, ys) = (x.0.as_ints(), y.0.as_ints());
                let values = n.map(|i| self.apply_int(xs[x.1(i)], ys[y.1(i)]));
                Tensor::ints(out.clone(), values.collect())
            }
        }
    }

    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        out: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let grads = (self.row().vjp)(b, [args[0], args[1]], out, grad)?;
        let mut result = Vec::with_capacity(2);
        for (grad, arg) in grads.into_iter().zip(args) {
            result.push(match grad {
                Some(grad) => Some(sum_to(b, grad, *arg)?),
                None => None,
            });
        }
        Ok(result)
    }

    fn flops(&self, _: &[&TensorType], out: &TensorType) -> u64 {
        out.count() as u64
    }
}
