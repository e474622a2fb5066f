//! Fused elementwise code, expanded into a function: one value of registers for each instruction.

use cubecl::prelude::*;
use kernels::program::{Instr, Program};
use ops::DType;
use ops::defs::binary::Binary;
use ops::defs::unary::Unary;

use crate::angle::{cosine, sine};
use crate::math::sigmoid;

/// What `program` makes of one element of each slot. Every step is f32.
#[cube]
pub(crate) fn evaluate(slots: &Sequence<f32>, #[comptime] program: Program) -> f32 {
    intrinsic!(|scope| {
        let mut values: Vec<NativeExpand<f32>> = Vec::with_capacity(program.instrs().len());
        for instr in program.instrs() {
            let of = |value: kernels::program::Value| values[value.index()];
            let value = match *instr {
                Instr::Load { slot } => *slots.__expand_index_method(scope, slot.into()),
                Instr::Const(x) => x.into(),
                Instr::Unary { op, x } => unary(scope, op, of(x)),
                Instr::Binary { op, x, y } => binary(scope, op, of(x), of(y)),
                Instr::Select { condition, x, y } => {
                    choose::expand(scope, of(condition), of(x), of(y))
                }
                Instr::Round { dtype: DType::Bf16, x } => round_bf16::expand(scope, of(x)),
                Instr::Round { dtype: DType::F16, x } => round_f16::expand(scope, of(x)),
                Instr::Round { dtype: _, x } => of(x),
            };
            values.push(value);
        }
        values[values.len() - 1]
    })
}

fn unary(scope: &Scope, op: Unary, x: NativeExpand<f32>) -> NativeExpand<f32> {
    match op {
        Unary::Neg => neg::expand(scope, x),
        Unary::Abs => abs::expand(scope, x),
        Unary::Exp => exp::expand(scope, x),
        Unary::Log => log::expand(scope, x),
        Unary::Recip => recip::expand(scope, x),
        Unary::Square => square::expand(scope, x),
        Unary::Sqrt => sqrt::expand(scope, x),
        Unary::Rsqrt => rsqrt::expand(scope, x),
        Unary::Sin => sine::expand(scope, x, false),
        Unary::Cos => cosine::expand(scope, x, false),
        Unary::Tanh => tanh::expand(scope, x),
        Unary::Sigmoid => sigmoid::expand(scope, x),
        Unary::Silu => silu::expand(scope, x),
        Unary::GeluTanh => gelu_tanh::expand(scope, x),
    }
}

fn binary(
    scope: &Scope,
    op: Binary,
    x: NativeExpand<f32>,
    y: NativeExpand<f32>,
) -> NativeExpand<f32> {
    match op {
        Binary::Add => add::expand(scope, x, y),
        Binary::Sub => sub::expand(scope, x, y),
        Binary::Mul => mul::expand(scope, x, y),
        Binary::Div => div::expand(scope, x, y),
        Binary::Max => max::expand(scope, x, y),
        Binary::Min => min::expand(scope, x, y),
        Binary::Less => less::expand(scope, x, y),
        Binary::Equal => equal::expand(scope, x, y),
    }
}

#[cube]
fn neg(x: f32) -> f32 {
    -x
}

#[cube]
fn abs(x: f32) -> f32 {
    x.abs()
}

#[cube]
fn exp(x: f32) -> f32 {
    x.exp()
}

#[cube]
fn log(x: f32) -> f32 {
    x.ln()
}

#[cube]
fn recip(x: f32) -> f32 {
    1.0f32 / x
}

#[cube]
fn square(x: f32) -> f32 {
    x * x
}

#[cube]
fn sqrt(x: f32) -> f32 {
    x.sqrt()
}

#[cube]
fn rsqrt(x: f32) -> f32 {
    1.0f32 / x.sqrt()
}

#[cube]
fn tanh(x: f32) -> f32 {
    x.tanh()
}

#[cube]
fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// `0.5 x (1 + tanh(u))` is `x sigmoid(2u)`, which needs one exponential.
#[cube]
fn gelu_tanh(x: f32) -> f32 {
    let u = 0.797_884_6_f32 * (x + 0.044_715_f32 * x * x * x);
    x * sigmoid(2.0f32 * u)
}

#[cube]
fn add(x: f32, y: f32) -> f32 {
    x + y
}

#[cube]
fn sub(x: f32, y: f32) -> f32 {
    x - y
}

#[cube]
fn mul(x: f32, y: f32) -> f32 {
    x * y
}

#[cube]
fn div(x: f32, y: f32) -> f32 {
    x / y
}

#[cube]
fn max(x: f32, y: f32) -> f32 {
    select(x > y, x, y)
}

#[cube]
fn min(x: f32, y: f32) -> f32 {
    select(x < y, x, y)
}

#[cube]
fn less(x: f32, y: f32) -> f32 {
    select(x < y, 1.0f32, 0.0f32)
}

#[cube]
fn equal(x: f32, y: f32) -> f32 {
    select(x == y, 1.0f32, 0.0f32)
}

#[cube]
fn choose(condition: f32, x: f32, y: f32) -> f32 {
    select(condition != 0.0f32, x, y)
}

#[cube]
fn round_bf16(x: f32) -> f32 {
    f32::cast_from(half::bf16::cast_from(x))
}

#[cube]
fn round_f16(x: f32) -> f32 {
    f32::cast_from(half::f16::cast_from(x))
}
