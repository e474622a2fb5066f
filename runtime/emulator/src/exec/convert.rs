//! `cvt`: from any number to any number, through rows of i64 or f64, which hold each of them exactly.

use super::half::half_format;
use crate::ops::{Mode, Slot};
use crate::registers::{LANES, Reg, Registers, Row, Value, Word};
use crate::rounding::{BF16, F16, F32, Rounding, TF32, nearest_bf16, to_odd};
use crate::types::Ty;

/// The row of a slot as 64-bit words.
fn words(registers: &Registers, slot: Slot) -> Row<u64> {
    match slot {
        Slot::Narrow(reg) => u32::row(registers, reg).map(u64::from),
        Slot::Wide(reg) => *u64::row(registers, reg),
        Slot::Sink => [0; LANES],
    }
}

/// Writes the low bits of words.
fn set_words(registers: &mut Registers, mask: u32, slot: Slot, row: &Row<u64>) {
    match slot {
        Slot::Narrow(reg) => registers.set(mask, reg, &row.map(|word| word as u32)),
        Slot::Wide(reg) => registers.set(mask, reg, row),
        Slot::Sink => {}
    }
}

/// Extends the low bits of a word as its type says; u64 keeps its bits.
fn extend(ty: Ty, word: u64) -> i64 {
    match ty {
        Ty::U8 => i64::from(word as u8),
        Ty::S8 => i64::from(word as i8),
        Ty::U16 => i64::from(word as u16),
        Ty::S16 => i64::from(word as i16),
        Ty::U32 => i64::from(word as u32),
        Ty::S32 => i64::from(word as i32),
        _ => word.cast_signed(),
    }
}

fn limits(ty: Ty) -> (i128, i128) {
    let bits = ty.bytes() * 8;
    if ty.is_signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

/// The number of a word; exact in f64 for every type but 64-bit integers, which do not come here.
fn number(ty: Ty, word: u64) -> f64 {
    match ty {
        Ty::F64 => f64::from_bits(word),
        Ty::F32 | Ty::Tf32 => f32::of(word as u32).into(),
        _ => half_format(ty).value(word as u16).into(),
    }
}

/// How a conversion goes.
#[derive(Clone, Copy)]
pub(super) struct Conversion {
    pub(super) to: Ty,
    pub(super) from: Ty,
    pub(super) mode: Mode,
    /// A float is rounded to an integer, whatever it is converted to.
    pub(super) is_integral: bool,
    pub(super) is_relu: bool,
}

pub(super) fn convert(
    registers: &mut Registers,
    mask: u32,
    conversion: Conversion,
    [to_slot, from_slot]: [Slot; 2],
) {
    let Conversion { to, from, mode, is_integral, is_relu } = conversion;
    if let (Slot::Narrow(d), Slot::Narrow(a)) = (to_slot, from_slot)
        && (from, to, is_relu) == (Ty::F32, Ty::Bf16, false)
        && mode.rounding == Rounding::Nearest
        && !mode.is_saturated
    {
        registers.map1(mask, [d, a], nearest_bf16);
        return;
    }
    let row = words(registers, from_slot);
    let row = match (from.is_integer(), to.is_integer()) {
        (true, true) => row.map(|word| {
            let value = extend(from, word);
            if !mode.is_saturated {
                return extend(to, value.cast_unsigned()).cast_unsigned();
            }
            let value = exact_integer(from, value);
            let (least, most) = limits(to);
            value.clamp(least, most) as u64
        }),
        (true, false) => {
            row.map(|word| from_integer(exact_integer(from, extend(from, word)), to, mode))
        }
        (false, true) => row.map(|word| {
            let mut x = number(from, word);
            if mode.is_ftz && from == Ty::F32 && x.abs() < f64::from(f32::MIN_POSITIVE) {
                x = 0.0;
            }
            let (least, most) = limits(to);
            // A float is clamped by `as`; NaN becomes zero.
            (mode.rounding.integral(x) as i128).clamp(least, most) as u64
        }),
        (false, false) => row.map(|word| {
            let mut x = number(from, word);
            if is_integral {
                x = mode.rounding.integral(x);
            }
            if is_relu && x <= 0.0 {
                x = 0.0;
            }
            float_bits(x, to, mode)
        }),
    };
    // The bits above a narrow type are zero in its register.
    let kept = if to.bytes() < 4 { (1 << (8 * to.bytes())) - 1 } else { u64::MAX };
    let is_extended = to.is_signed() && matches!(to, Ty::S8 | Ty::S16);
    let row = match to_slot {
        // A conversion to a narrow integer extends it over a wider register.
        Slot::Wide(_) if to.is_integer() => row.map(|word| extend(to, word).cast_unsigned()),
        Slot::Narrow(_) if is_extended => row.map(|word| word & 0xffff_ffff),
        _ => row.map(|word| word & kept),
    };
    set_words(registers, mask, to_slot, &row);
}

fn exact_integer(ty: Ty, value: i64) -> i128 {
    if ty == Ty::U64 { i128::from(value.cast_unsigned()) } else { i128::from(value) }
}

fn from_integer(value: i128, to: Ty, mode: Mode) -> u64 {
    let near = value as f64;
    let error = value - near as i128;
    if to == Ty::F64 {
        return crate::rounding::directed(near, error as f64, mode.rounding).to_bits();
    }
    float_bits(to_odd(near, error as f64), to, mode)
}

/// The bits of `x` as a float type.
fn float_bits(x: f64, to: Ty, mode: Mode) -> u64 {
    let x = match (mode.is_saturated, x > 0.0) {
        (false, _) => x,
        (true, true) => x.min(1.0),
        (true, false) => 0.0,
    };
    let rounded = match to {
        Ty::F64 => return x.to_bits(),
        Ty::F16 => F16.round(x, mode.rounding),
        Ty::Bf16 => BF16.round(x, mode.rounding),
        Ty::Tf32 => TF32.round(x, mode.rounding) << 13,
        _ => mode.result(f32::from_bits(F32.round(x, mode.rounding))).to_bits(),
    };
    u64::from(rounded)
}

/// `cvt.rn.bf16x2.f32 d, a, b`: a is the upper half.
pub(super) fn convert_pair(
    registers: &mut Registers,
    mask: u32,
    (to, mode, is_relu): (Ty, Mode, bool),
    regs: [Reg; 3],
) {
    let is_plain = !is_relu && !mode.is_saturated && mode.rounding == Rounding::Nearest;
    if to == Ty::Bf16x2 && is_plain {
        registers.map2(mask, regs, |high: f32, low: f32| {
            u32::from(nearest_bf16(high)) << 16 | u32::from(nearest_bf16(low))
        });
        return;
    }
    let format = if to == Ty::F16x2 { Ty::F16 } else { Ty::Bf16 };
    let one = |x: f32| {
        let x = if is_relu && x <= 0.0 { 0.0 } else { f64::from(x) };
        float_bits(x, format, mode) as u32
    };
    registers.map2(mask, regs, |high: f32, low: f32| one(high) << 16 | one(low));
}
