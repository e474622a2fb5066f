//! Elementwise ops of one float operand. Adding one is one row of the table.

use crate::defs::elementwise::elementwise;
use crate::op::{arity, float};
use crate::{Attrs, Builder, Class, DType, Error, Example, OpDef, Tensor, TensorType, ValueId};

/// One row: printed name, function, gradient, cost, and where examples draw values.
struct Row {
    name: &'static str,
    f: fn(f64) -> f64,
    /// Appends `grad * f'(x)` given `(x, y = f(x), grad)`.
    vjp: fn(&mut Builder, ValueId, ValueId, ValueId) -> Result<ValueId, Error>,
    flops: u64,
    range: (f64, f64),
}

elementwise! {
    /// An elementwise function of one operand. The result has the operand's type.
    enum Unary;
    fn (&mut self, x: ValueId) |op| self.op(op, &[x]);

    /// `-x`.
    Neg neg Row {
        name: "neg", f: |x| -x, flops: 1, range: (-2.0, 2.0),
        vjp: |b, _, _, g| b.neg(g),
    };
    /// `|x|`; gradient `sign(x)`, 0 at 0.
    Abs abs Row {
        name: "abs", f: f64::abs, flops: 1, range: (0.25, 2.0),
        vjp: |b, x, _, g| {
            let zero = b.splat_like(x, 0.0)?;
            let positive = b.less(zero, x)?;
            let negative = b.less(x, zero)?;
            let minus = b.neg(g)?;
            let rest = b.select(negative, minus, zero)?;
            b.select(positive, g, rest)
        },
    };
    /// `e^x`.
    Exp exp Row {
        name: "exp", f: f64::exp, flops: 1, range: (-2.0, 2.0),
        vjp: |b, _, y, g| b.mul(g, y),
    };
    /// Natural logarithm.
    Log log Row {
        name: "log", f: f64::ln, flops: 1, range: (0.25, 4.0),
        vjp: |b, x, _, g| b.div(g, x),
    };
    /// `1 / x`.
    Recip recip Row {
        name: "recip", f: f64::recip, flops: 1, range: (0.5, 3.0),
        vjp: |b, _, y, g| { let y2 = b.square(y)?; let d = b.mul(g, y2)?; b.neg(d) },
    };
    /// `x^2`.
    Square square Row {
        name: "square", f: |x| x * x, flops: 1, range: (-2.0, 2.0),
        vjp: |b, x, _, g| { let d = b.mul(g, x)?; b.mul_scalar(d, 2.0) },
    };
    /// Square root.
    Sqrt sqrt Row {
        name: "sqrt", f: f64::sqrt, flops: 1, range: (0.25, 4.0),
        vjp: |b, _, y, g| { let d = b.div(g, y)?; b.mul_scalar(d, 0.5) },
    };
    /// `1 / sqrt(x)`.
    Rsqrt rsqrt Row {
        name: "rsqrt", f: |x| 1.0 / x.sqrt(), flops: 2, range: (0.25, 4.0),
        vjp: |b, x, y, g| { let d = b.mul(g, y)?; let d = b.div(d, x)?; b.mul_scalar(d, -0.5) },
    };
    /// Sine, radians.
    Sin sin Row {
        name: "sin", f: f64::sin, flops: 1, range: (-3.0, 3.0),
        vjp: |b, x, _, g| { let d = b.cos(x)?; b.mul(g, d) },
    };
    /// Cosine, radians.
    Cos cos Row {
        name: "cos", f: f64::cos, flops: 1, range: (-3.0, 3.0),
        vjp: |b, x, _, g| { let d = b.sin(x)?; let d = b.mul(g, d)?; b.neg(d) },
    };
    /// Hyperbolic tangent.
    Tanh tanh Row {
        name: "tanh", f: f64::tanh, flops: 1, range: (-2.0, 2.0),
        vjp: |b, _, y, g| { let y2 = b.square(y)?; let d = b.mul(g, y2)?; b.sub(g, d) },
    };
    /// `1 / (1 + e^-x)`.
    Sigmoid sigmoid Row {
        name: "sigmoid", f: |x| 1.0 / (1.0 + (-x).exp()), flops: 3, range: (-3.0, 3.0),
        vjp: |b, _, y, g| { let d = b.square(y)?; let d = b.sub(y, d)?; b.mul(g, d) },
    };
    /// `x * sigmoid(x)`.
    Silu silu Row {
        name: "silu", f: |x| x / (1.0 + (-x).exp()), flops: 4, range: (-3.0, 3.0),
        // s + y (1 - s) with s = sigmoid(x).
        vjp: |b, x, y, g| {
            let s = b.sigmoid(x)?;
            let ys = b.mul(y, s)?;
            let d = b.sub(y, ys)?;
            let d = b.add(s, d)?;
            b.mul(g, d)
        },
    };
    /// GELU in its tanh form: `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh gelu_tanh Row {
        name: "gelu_tanh", flops: 9, range: (-3.0, 3.0),
        f: |x| 0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x)).tanh()),
        // With p = 2 c (x + a x^3), s = sigmoid(p) the function is x s, and q = x p' = 2 c (x + 3 a x^3) makes it
        // s + x s (1 - s) p' = s (1 + q - s q).
        vjp: |b, x, _, g| {
            let x2 = b.square(x)?;
            let p = b.mul_scalar(x2, 2.0 * SQRT_2_OVER_PI * GELU_CUBIC)?;
            let p = b.add_scalar(p, 2.0 * SQRT_2_OVER_PI)?;
            let p = b.mul(p, x)?;
            let s = b.sigmoid(p)?;
            let q = b.mul_scalar(x2, 6.0 * SQRT_2_OVER_PI * GELU_CUBIC)?;
            let q = b.add_scalar(q, 2.0 * SQRT_2_OVER_PI)?;
            let q = b.mul(q, x)?;
            let sq = b.mul(s, q)?;
            let d = b.sub(q, sq)?;
            let d = b.add_scalar(d, 1.0)?;
            let d = b.mul(s, d)?;
            b.mul(g, d)
        },
    };
}

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const GELU_CUBIC: f64 = 0.044_715;

impl Unary {
    /// The function on one element.
    pub fn apply(self, x: f64) -> f64 {
        (self.row().f)(x)
    }

    /// The function called `name`, if the table has it.
    pub fn parse(name: &str, attrs: &Attrs) -> Option<Result<Unary, Error>> {
        let op = Unary::ALL.iter().copied().find(|op| op.name() == name)?;
        Some(crate::AttrReader::new(op.name(), attrs).end().map(|()| op))
    }

    /// Every row on even and odd sizes and in half precision.
    pub fn examples() -> Vec<Example> {
        let mut all = Vec::new();
        for &op in Unary::ALL {
            let (low, high) = op.row().range;
            let example = |shape: &[usize]| Example::f32(op, &[shape]).in_range(low, high);
            all.push(example(&[2, 3]));
            all.push(example(&[3, 1, 7]));
            all.push(example(&[2, 5]).of(DType::Bf16));
            all.push(example(&[5]).of(DType::F16));
        }
        all
    }

    /// Printed names in table order.
    pub fn names() -> Vec<&'static str> {
        Unary::ALL.iter().map(OpDef::name).collect()
    }
}

impl OpDef for Unary {
    fn name(&self) -> &'static str {
        self.row().name
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity(self.name(), args, 1)?;
        float(self.name(), args, 0)?;
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
        out: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        Ok(vec![Some((self.row().vjp)(b, args[0], out, grad)?)])
    }

    fn flops(&self, _: &[&TensorType], out: &TensorType) -> u64 {
        self.row().flops * out.count() as u64
    }
}
