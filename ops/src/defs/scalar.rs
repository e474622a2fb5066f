//! Elementwise ops of one float operand and one number. Adding one is one row of the table.
//!
//! The number is the attribute `value`, kept in f64 and never NaN, so that equal ops compare equal.

use crate::defs::elementwise::elementwise;
use crate::op::{arity, float};
use crate::{
    Attr, AttrReader, Attrs, Builder, Class, DType, Error, Example, OpDef, Tensor, TensorType,
    ValueId,
};

/// One row: printed name, function, gradient, cost, and what examples use.
struct Row {
    name: &'static str,
    /// The result for `(x, value)`.
    f: fn(f64, f64) -> f64,
    /// Appends the gradient with respect to `x` given `(x, value, grad)`.
    vjp: fn(&mut Builder, ValueId, f64, ValueId) -> Result<ValueId, Error>,
    flops: u64,
    range: (f64, f64),
    values: [f64; 2],
}

elementwise! {
    /// What a [`Scalar`] computes.
    enum ScalarFn;
    fn (&mut self, x: ValueId, value: f64) |op| self.op(Scalar { op, value }, &[x]);

    /// `x + value`.
    Add add_scalar Row {
        name: "add_scalar", f: |x, value| x + value, flops: 1,
        range: (-2.0, 2.0), values: [1.0, -0.75],
        vjp: |_, _, _, g| Ok(g),
    };
    /// `x * value`.
    Mul mul_scalar Row {
        name: "mul_scalar", f: |x, value| x * value, flops: 1,
        range: (-2.0, 2.0), values: [0.125, -3.0],
        vjp: |b, _, value, g| b.mul_scalar(g, value),
    };
    /// The larger of `x` and `value`; at equality the gradient is 0.
    Max max_scalar Row {
        name: "max_scalar", f: f64::max, flops: 1,
        range: (-2.0, 2.0), values: [0.0, -1.0],
        vjp: |b, x, value, g| {
            let value = b.splat_like(x, value)?;
            let passes = b.less(value, x)?;
            let zero = b.splat_like(g, 0.0)?;
            b.select(passes, g, zero)
        },
    };
    /// The smaller of `x` and `value`; at equality the gradient is 0.
    Min min_scalar Row {
        name: "min_scalar", f: f64::min, flops: 1,
        range: (-2.0, 2.0), values: [0.0, 1.0],
        vjp: |b, x, value, g| {
            let value = b.splat_like(x, value)?;
            let passes = b.less(x, value)?;
            let zero = b.splat_like(g, 0.0)?;
            b.select(passes, g, zero)
        },
    };
    /// `x ^ value`; NaN for a negative `x` unless `value` is an integer.
    Pow pow_scalar Row {
        name: "pow_scalar", f: f64::powf, flops: 1,
        range: (0.25, 3.0), values: [3.0, -0.5],
        vjp: |b, x, value, g| {
            // x^(-1) is infinite at 0, where the gradient of a constant still is 0.
            if value == 0.0 {
                return b.mul_scalar(g, 0.0);
            }
            let power = b.pow_scalar(x, value - 1.0)?;
            let d = b.mul(g, power)?;
            b.mul_scalar(d, value)
        },
    };
}

/// An elementwise function of one operand and a number. The result has the operand's type.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Scalar {
    /// The function.
    pub op: ScalarFn,
    /// Its second argument.
    pub value: f64,
}

impl Scalar {
    /// The function on one element.
    pub fn apply(self, x: f64) -> f64 {
        (self.op.row().f)(x, self.value)
    }

    /// The op called `name`, if the table has it.
    pub fn parse(name: &str, attrs: &Attrs) -> Option<Result<Scalar, Error>> {
        let op = ScalarFn::ALL.iter().copied().find(|op| op.row().name == name)?;
        let mut attrs = AttrReader::new(op.row().name, attrs);
        let value = attrs.float("value");
        Some(value.and_then(|value| attrs.end().map(|()| Scalar { op, value })))
    }

    /// Every row, with two numbers, on even and odd sizes and in half precision.
    pub fn examples() -> Vec<Example> {
        let mut all = Vec::new();
        for &op in ScalarFn::ALL {
            let row = op.row();
            let example = |value: f64, shape: &[usize]| {
                Example::f32(Scalar { op, value }, &[shape]).in_range(row.range.0, row.range.1)
            };
            all.push(example(row.values[0], &[2, 3]));
            all.push(example(row.values[1], &[3, 1, 7]));
            all.push(example(row.values[1], &[2, 5]).of(DType::Bf16));
        }
        all
    }

    /// Printed names in table order.
    pub fn names() -> Vec<&'static str> {
        ScalarFn::ALL.iter().map(|op| op.row().name).collect()
    }
}

impl OpDef for Scalar {
    fn name(&self) -> &'static str {
        self.op.row().name
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("value", Attr::Float(self.value))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity(self.name(), args, 1)?;
        float(self.name(), args, 0)?;
        if self.value.is_nan() {
            return Err(Error::attr(self.name(), "value must not be NaN"));
        }
        Ok(args[0].clone())
    }

    fn class(&self) -> Class {
        Class::Elementwise
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        Tensor::floats(out.clone(), args[0].as_floats().iter().map(|&x| self.apply(x)).collect())
    }

    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        _: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        Ok(vec![Some((self.op.row().vjp)(b, args[0], self.value, grad)?)])
    }

    fn flops(&self, _: &[&TensorType], out: &TensorType) -> u64 {
        self.op.row().flops * out.count() as u64
    }
}
