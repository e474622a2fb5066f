//! Comparisons, selections and predicates.

use super::float::flushed;
use super::half::half_format;
use crate::ops::{Cmp, Destination, Logic};
use crate::registers::{PredUse, Reg, Registers, Value, Word};
use crate::types::Ty;

fn compared<T: Value + PartialOrd>(
    registers: &Registers,
    regs: [Reg; 2],
    cmp: Cmp,
    read: impl Fn(T) -> T,
) -> u32 {
    let numbers = || registers.compare(regs, |x: T, y: T| read(x).partial_cmp(&read(y)).is_some());
    match cmp {
        Cmp::Eq => registers.compare(regs, |x, y| read(x) == read(y)),
        Cmp::Neu => !registers.compare(regs, |x, y| read(x) == read(y)),
        Cmp::Lt => registers.compare(regs, |x, y| read(x) < read(y)),
        Cmp::Geu => !registers.compare(regs, |x, y| read(x) < read(y)),
        Cmp::Le => registers.compare(regs, |x, y| read(x) <= read(y)),
        Cmp::Gtu => !registers.compare(regs, |x, y| read(x) <= read(y)),
        Cmp::Gt => registers.compare(regs, |x, y| read(x) > read(y)),
        Cmp::Leu => !registers.compare(regs, |x, y| read(x) > read(y)),
        Cmp::Ge => registers.compare(regs, |x, y| read(x) >= read(y)),
        Cmp::Ltu => !registers.compare(regs, |x, y| read(x) >= read(y)),
        Cmp::Ne => numbers() & !registers.compare(regs, |x, y| read(x) == read(y)),
        Cmp::Equ => !numbers() | registers.compare(regs, |x, y| read(x) == read(y)),
        Cmp::Num => numbers(),
        Cmp::Nan => !numbers(),
    }
}

/// The outcome for each lane, and for packed halves that of the upper ones.
fn outcomes(
    registers: &Registers,
    regs: [Reg; 2],
    cmp: Cmp,
    ty: Ty,
    is_ftz: bool,
) -> (u32, Option<u32>) {
    let bits = match ty {
        Ty::U8 | Ty::U16 => compared::<u16>(registers, regs, cmp, |x| x),
        Ty::S8 | Ty::S16 => compared::<i16>(registers, regs, cmp, |x| x),
        Ty::S32 => compared::<i32>(registers, regs, cmp, |x| x),
        Ty::U64 => compared::<u64>(registers, regs, cmp, |x| x),
        Ty::S64 => compared::<i64>(registers, regs, cmp, |x| x),
        Ty::F32 if is_ftz => compared::<f32>(registers, regs, cmp, flushed),
        Ty::F32 => compared::<f32>(registers, regs, cmp, |x| x),
        Ty::F64 => compared::<f64>(registers, regs, cmp, |x| x),
        Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2 => {
            let format = half_format(ty);
            let side = |shift: u32| {
                // Compared as f32, in two rows beside the registers.
                let rows = regs.map(|reg| {
                    u32::row(registers, reg)
                        .map(|bits| format.value((bits >> shift) as u16).to_bits())
                });
                let values = Registers { narrow: rows.to_vec(), wide: vec![], preds: vec![] };
                compared::<f32>(&values, [0, 1], cmp, |x| x)
            };
            return (side(0), ty.is_packed().then(|| side(16)));
        }
        Ty::U32 | Ty::Tf32 | Ty::Pred => compared::<u32>(registers, regs, cmp, |x| x),
    };
    (bits, None)
}

pub(super) fn combine(logic: Logic, x: u32, y: u32) -> u32 {
    match logic {
        Logic::And => x & y,
        Logic::Or => x | y,
        Logic::Xor => x ^ y,
    }
}

/// `setp` and `set`.
pub(super) fn compare(
    registers: &mut Registers,
    mask: u32,
    (cmp, ty, is_ftz): (Cmp, Ty, bool),
    regs: [Reg; 2],
    combined: Option<(Logic, PredUse)>,
    to: Destination,
) {
    let (low, high) = outcomes(registers, regs, cmp, ty, is_ftz);
    let with = combined.map(|(logic, pred)| (logic, registers.pred(pred)));
    let join = |bits: u32| with.map_or(bits, |(logic, other)| combine(logic, bits, other));
    match to {
        Destination::Preds(p, q) => {
            // The second predicate of halves is the upper half's outcome, else that of the opposite.
            let second = high.map_or(join(!low), join);
            if let Some(p) = p {
                registers.set_pred(mask, p, join(low));
            }
            if let Some(q) = q {
                registers.set_pred(mask, q, second);
            }
        }
        Destination::Word { to, is_float } => {
            let (low, high) = (join(low), high.map(join));
            let one: u32 = match (ty, is_float) {
                (Ty::F16 | Ty::F16x2, true) => 0x3c00,
                (Ty::Bf16 | Ty::Bf16x2, true) => 0x3f80,
                (_, true) => 1.0_f32.to_bits(),
                (_, false) if high.is_some() => 0xffff,
                (_, false) => u32::MAX,
            };
            let row = std::array::from_fn(|l| {
                let bit = |bits: u32| bits >> l & 1;
                (bit(low) * one) | high.map_or(0, |high| (bit(high) * one) << 16)
            });
            registers.set(mask, to, &row);
        }
    }
}

/// `selp`: d, a, b.
pub(super) fn select(
    registers: &mut Registers,
    mask: u32,
    is_wide: bool,
    regs: [Reg; 3],
    pred: PredUse,
) {
    let bits = registers.pred(pred);
    if is_wide {
        select_row::<u64>(registers, mask, regs, bits);
    } else {
        select_row::<u32>(registers, mask, regs, bits);
    }
}

fn select_row<W: Word>(registers: &mut Registers, mask: u32, [d, a, b]: [Reg; 3], bits: u32) {
    let (a, b) = (W::row(registers, a), W::row(registers, b));
    let row = std::array::from_fn(|l| if bits >> l & 1 == 1 { a[l] } else { b[l] });
    registers.set(mask, d, &row);
}

/// `slct`: d, a, b, c, where the sign of c decides; c is s32 or f32.
pub(super) fn select_by_sign(
    registers: &mut Registers,
    mask: u32,
    is_wide: bool,
    is_float: bool,
    [d, a, b, c]: [Reg; 4],
) {
    let is_first = |word: &u32| {
        if is_float { f32::from_bits(*word) >= 0.0 } else { word.cast_signed() >= 0 }
    };
    let row = u32::row(registers, c);
    let bits = row.iter().enumerate().fold(0, |all, (l, w)| all | u32::from(is_first(w)) << l);
    if is_wide {
        select_row::<u64>(registers, mask, [d, a, b], bits);
    } else {
        select_row::<u32>(registers, mask, [d, a, b], bits);
    }
}
