//! f32 and f64 arithmetic.
//!
//! Approximate functions (`ex2.approx`, `rsqrt.approx`, `sin.approx`, ...) are computed in f64 and rounded once to
//! f32, which is closer than the device's, whose error is up to a few units in the last place.

use crate::ops::{FloatOp, FloatTest, Mode};
use crate::registers::{Reg, Registers, Word};
use crate::rounding::{F32, Rounding, add_odd, directed, to_odd};
use crate::types::Ty;

impl Mode {
    fn is_plain(self) -> bool {
        self.rounding == Rounding::Nearest && !self.is_ftz && !self.is_saturated
    }

    #[inline]
    fn operand(self, x: f32) -> f32 {
        if self.is_ftz { flushed(x) } else { x }
    }

    #[inline]
    pub(super) fn result(self, x: f32) -> f32 {
        let x = if self.is_ftz { flushed(x) } else { x };
        // The comparison is false for NaN, which saturates to zero.
        if !self.is_saturated {
            x
        } else if x > 0.0 {
            x.min(1.0)
        } else {
            0.0
        }
    }
}

/// Zero of the same sign for a subnormal.
#[inline]
pub(super) fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { f32::from_bits(x.to_bits() & 1 << 31) } else { x }
}

/// Executes for the lanes of `mask`; `regs` are d, a, b, c.
pub(super) fn float(
    registers: &mut Registers,
    mask: u32,
    (op, ty, mode): (FloatOp, Ty, Mode),
    regs: [Reg; 4],
) {
    if ty == Ty::F64 {
        double(registers, mask, op, mode, regs);
    } else if mode.is_plain() {
        single(registers, mask, op, regs, |x| x, |x| x);
    } else if mode.rounding == Rounding::Nearest {
        single(registers, mask, op, regs, |x| mode.operand(x), |x| mode.result(x));
    } else {
        rounded(registers, mask, op, mode, regs);
    }
}

/// f32 to nearest; `read` is applied to operands and `finish` to the result.
#[inline]
fn single(
    registers: &mut Registers,
    mask: u32,
    op: FloatOp,
    regs: [Reg; 4],
    read: impl Fn(f32) -> f32,
    finish: impl Fn(f32) -> f32,
) {
    let [d, a, b, _] = regs;
    let (one, two) = ([d, a], [d, a, b]);
    let special = |f: fn(f64) -> f64| {
        let (read, finish) = (&read, &finish);
        move |x: f32| finish(f(f64::from(read(x))) as f32)
    };
    match op {
        FloatOp::Add => registers.map2(mask, two, |x, y| finish(read(x) + read(y))),
        FloatOp::Sub => registers.map2(mask, two, |x, y| finish(read(x) - read(y))),
        FloatOp::Mul => registers.map2(mask, two, |x, y| finish(read(x) * read(y))),
        FloatOp::Fma => {
            registers.map3(mask, regs, |x, y, z| finish(read(x).mul_add(read(y), read(z))));
        }
        FloatOp::Div => registers.map2(mask, two, |x, y| finish(read(x) / read(y))),
        FloatOp::Min => registers.map2(mask, two, |x, y| finish(least(read(x), read(y)))),
        FloatOp::Max => registers.map2(mask, two, |x, y| finish(-least(-read(x), -read(y)))),
        FloatOp::MinNan => {
            registers.map2(mask, two, |x, y| finish(or_nan(read(x), read(y), least)));
        }
        FloatOp::MaxNan => registers
            .map2(mask, two, |x, y| finish(or_nan(read(x), read(y), |x, y| -least(-x, -y)))),
        FloatOp::Abs => registers.map1(mask, one, |x| finish(read(x).abs())),
        FloatOp::Neg => registers.map1(mask, one, |x| finish(-read(x))),
        FloatOp::CopySign => registers.map2(mask, two, |x: f32, y: f32| y.copysign(x)),
        FloatOp::Sqrt => registers.map1(mask, one, |x| finish(read(x).sqrt())),
        FloatOp::Rcp => registers.map1(mask, one, |x| finish(1.0 / read(x))),
        FloatOp::Rsqrt => registers.map1(mask, one, special(|x| 1.0 / x.sqrt())),
        FloatOp::Ex2 => registers.map1(mask, one, special(f64::exp2)),
        FloatOp::Lg2 => registers.map1(mask, one, special(f64::log2)),
        FloatOp::Sin => registers.map1(mask, one, special(f64::sin)),
        FloatOp::Cos => registers.map1(mask, one, special(f64::cos)),
        FloatOp::Tanh => registers.map1(mask, one, special(f64::tanh)),
    }
}

/// The smaller; of a number and NaN the number; of zeros the negative one.
#[inline]
pub(super) fn least(x: f32, y: f32) -> f32 {
    if x < y || y.is_nan() || x == y && x.is_sign_negative() { x } else { y }
}

fn or_nan(x: f32, y: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    if x.is_nan() || y.is_nan() { f32::NAN } else { f(x, y) }
}

/// The exact value rounded to odd.
fn odd(op: FloatOp, x: f64, y: f64, z: f64) -> f64 {
    let quotient = |x: f64, y: f64| {
        let q = x / y;
        // The remainder is exact, as operands are of f32; its sign with that of y tells the side.
        let rest = (-q).mul_add(y, x);
        to_odd(q, if y < 0.0 { -rest } else { rest })
    };
    match op {
        FloatOp::Add => add_odd(x, y),
        FloatOp::Sub => add_odd(x, -y),
        // Products of 24 bits are exact in 53.
        FloatOp::Mul => x * y,
        FloatOp::Fma => add_odd(x * y, z),
        FloatOp::Div => quotient(x, y),
        FloatOp::Rcp => quotient(1.0, x),
        FloatOp::Sqrt => {
            let root = x.sqrt();
            to_odd(root, (-root).mul_add(root, x))
        }
        _ => x,
    }
}

/// f32 in another direction than to nearest.
fn rounded(registers: &mut Registers, mask: u32, op: FloatOp, mode: Mode, regs: [Reg; 4]) {
    registers.map3(mask, regs, |x: f32, y: f32, z: f32| {
        let [x, y, z] = [x, y, z].map(|v| f64::from(mode.operand(v)));
        mode.result(f32::from_bits(F32.round(odd(op, x, y, z), mode.rounding)))
    });
}

fn double(registers: &mut Registers, mask: u32, op: FloatOp, mode: Mode, regs: [Reg; 4]) {
    let [d, a, b, _] = regs;
    let (one, two) = ([d, a], [d, a, b]);
    let rounding = mode.rounding;
    let sum = |x: f64, y: f64| {
        let sum = x + y;
        let y_part = sum - x;
        directed(sum, (x - (sum - y_part)) + (y - y_part), rounding)
    };
    match op {
        FloatOp::Add => registers.map2(mask, two, sum),
        FloatOp::Sub => registers.map2(mask, two, |x: f64, y: f64| sum(x, -y)),
        FloatOp::Mul => registers.map2(mask, two, |x: f64, y: f64| {
            let product = x * y;
            directed(product, x.mul_add(y, -product), rounding)
        }),
        FloatOp::Fma => registers.map3(mask, regs, f64::mul_add),
        FloatOp::Div => registers.map2(mask, two, |x: f64, y: f64| {
            let q = x / y;
            let rest = (-q).mul_add(y, x);
            directed(q, if y < 0.0 { -rest } else { rest }, rounding)
        }),
        FloatOp::Min | FloatOp::MinNan => registers.map2(mask, two, f64::min),
        FloatOp::Max | FloatOp::MaxNan => registers.map2(mask, two, f64::max),
        FloatOp::Abs => registers.map1(mask, one, f64::abs),
        FloatOp::Neg => registers.map1(mask, one, |x: f64| -x),
        FloatOp::CopySign => registers.map2(mask, two, |x: f64, y: f64| y.copysign(x)),
        FloatOp::Sqrt => registers.map1(mask, one, |x: f64| {
            let root = x.sqrt();
            directed(root, (-root).mul_add(root, x), rounding)
        }),
        FloatOp::Rsqrt => registers.map1(mask, one, |x: f64| 1.0 / x.sqrt()),
        FloatOp::Rcp => registers.map1(mask, one, |x: f64| {
            let q = 1.0 / x;
            let rest = (-q).mul_add(x, 1.0);
            directed(q, if x < 0.0 { -rest } else { rest }, rounding)
        }),
        FloatOp::Ex2 => registers.map1(mask, one, f64::exp2),
        FloatOp::Lg2 => registers.map1(mask, one, f64::log2),
        FloatOp::Sin => registers.map1(mask, one, f64::sin),
        FloatOp::Cos => registers.map1(mask, one, f64::cos),
        FloatOp::Tanh => registers.map1(mask, one, f64::tanh),
    }
}

/// `testp`
pub(super) fn test(
    registers: &mut Registers,
    mask: u32,
    (ty, test): (Ty, FloatTest),
    to: Reg,
    from: Reg,
) {
    let holds = |x: f64, is_subnormal: bool| match test {
        FloatTest::Finite => x.is_finite(),
        FloatTest::Infinite => x.is_infinite(),
        FloatTest::Number => !x.is_nan(),
        FloatTest::NotANumber => x.is_nan(),
        FloatTest::Normal => x.is_finite() && !is_subnormal && x != 0.0,
        FloatTest::Subnormal => is_subnormal,
    };
    let bits = if ty == Ty::F64 {
        u64::row(registers, from).map(f64::from_bits).map(|x| holds(x, x.is_subnormal()))
    } else {
        u32::row(registers, from).map(f32::from_bits).map(|x| holds(x.into(), x.is_subnormal()))
    };
    let bits = bits.iter().enumerate().fold(0, |all, (l, &bit)| all | u32::from(bit) << l);
    registers.set_pred(mask, to, bits);
}
