//! f16 and bf16 arithmetic, alone or in pairs: computed exactly and rounded once.

use super::float::least;
use crate::ops::{FloatOp, Mode};
use crate::registers::{Reg, Registers};
use crate::rounding::{BF16, F16, Format, Rounding, add_odd, bf16_value, f16_value};
use crate::types::Ty;

/// One of the two formats.
#[derive(Clone, Copy)]
pub(super) struct HalfFormat {
    format: Format,
    value: fn(u16) -> f32,
}

/// The format of a type of one half or two.
pub(super) fn half_format(ty: Ty) -> HalfFormat {
    if matches!(ty, Ty::F16 | Ty::F16x2) {
        HalfFormat { format: F16, value: f16_value }
    } else {
        HalfFormat { format: BF16, value: bf16_value }
    }
}

impl HalfFormat {
    pub(super) fn value(self, bits: u16) -> f32 {
        (self.value)(bits)
    }

    pub(super) fn bits(self, x: f64) -> u16 {
        self.format.round(x, Rounding::Nearest) as u16
    }
}

/// Executes for the lanes of `mask`; `regs` are d, a, b, c.
pub(super) fn half(
    registers: &mut Registers,
    mask: u32,
    (op, ty, mode, is_relu): (FloatOp, Ty, Mode, bool),
    regs: [Reg; 4],
) {
    let format = half_format(ty);
    let one = |x: u16, y: u16, z: u16| -> u16 {
        // The sign alone changes, also of NaN.
        match op {
            FloatOp::Neg => return x ^ 0x8000,
            FloatOp::Abs => return x & 0x7fff,
            _ => {}
        }
        let read = |bits: u16| {
            let value = format.value(bits);
            // Flushing is an f16 modifier: its subnormals are below 2^-14.
            if mode.is_ftz && value.abs() < 6.103_515_6e-5 {
                0.0_f32.copysign(value)
            } else {
                value
            }
        };
        let (x, y, z) = (read(x), read(y), read(z));
        let bits = format.bits(exact(op, x, y, z));
        let result = format.value(bits);
        if mode.is_saturated {
            return if result > 0.0 { format.bits(f64::from(result.min(1.0))) } else { 0 };
        }
        // A NaN stays one; negative numbers become zero.
        if is_relu && result <= 0.0 {
            return 0;
        }
        if mode.is_ftz && result.abs() < 6.103_515_6e-5 { bits & 0x8000 } else { bits }
    };
    if ty.is_packed() {
        registers.map3(mask, regs, |x: u32, y: u32, z: u32| {
            let low = one(x as u16, y as u16, z as u16);
            let high = one((x >> 16) as u16, (y >> 16) as u16, (z >> 16) as u16);
            u32::from(high) << 16 | u32::from(low)
        });
    } else {
        registers.map3(mask, regs, one);
    }
}

fn exact(op: FloatOp, x: f32, y: f32, z: f32) -> f64 {
    let [wide_x, wide_y, wide_z] = [x, y, z].map(f64::from);
    let is_nan = x.is_nan() || y.is_nan();
    match op {
        FloatOp::Add => add_odd(wide_x, wide_y),
        FloatOp::Sub => add_odd(wide_x, -wide_y),
        FloatOp::Mul => wide_x * wide_y,
        FloatOp::Fma => add_odd(wide_x * wide_y, wide_z),
        FloatOp::MinNan | FloatOp::MaxNan if is_nan => f64::NAN,
        FloatOp::Min | FloatOp::MinNan => least(x, y).into(),
        FloatOp::Max | FloatOp::MaxNan => (-least(-x, -y)).into(),
        FloatOp::Ex2 => wide_x.exp2(),
        FloatOp::Tanh => wide_x.tanh(),
        FloatOp::Rcp => 1.0 / wide_x,
        FloatOp::Div => wide_x / wide_y,
        FloatOp::Sqrt => wide_x.sqrt(),
        FloatOp::Rsqrt => 1.0 / wide_x.sqrt(),
        FloatOp::Lg2 => wide_x.log2(),
        FloatOp::Sin => wide_x.sin(),
        FloatOp::Cos => wide_x.cos(),
        FloatOp::Neg | FloatOp::Abs | FloatOp::CopySign => wide_x,
    }
}
