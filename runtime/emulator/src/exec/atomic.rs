//! Atomics: lanes in order, lowest first; blocks of a launch with atomics run one after another.

use super::Warp;
use super::half::half_format;
use super::load_store::addresses;
use super::move_bits;
use crate::ast::Space;
use crate::block::Block;
use crate::memory::{InLane, MAX_ACCESS, Wrong};
use crate::ops::{Address, AtomOp, Slot};
use crate::registers::lanes;
use crate::types::Ty;

/// What an atomic leaves of `old`; both are low bits of words.
pub(super) fn combine(op: AtomOp, ty: Ty, old: u64, x: u64, other: u64) -> u64 {
    if ty.is_packed() {
        let half = if ty == Ty::F16x2 { Ty::F16 } else { Ty::Bf16 };
        let side = |shift: u32| {
            let part = |word: u64| word >> shift & 0xffff;
            (combine(op, half, part(old), part(x), part(other)) & 0xffff) << shift
        };
        return side(0) | side(16);
    }
    match op {
        AtomOp::And => old & x,
        AtomOp::Or => old | x,
        AtomOp::Xor => old ^ x,
        AtomOp::Exch => x,
        AtomOp::Cas => {
            if old == x {
                other
            } else {
                old
            }
        }
        AtomOp::Inc => {
            if old >= x {
                0
            } else {
                old + 1
            }
        }
        AtomOp::Dec => {
            if old == 0 || old > x {
                x
            } else {
                old - 1
            }
        }
        AtomOp::Add => match ty {
            Ty::F32 => {
                let sum = f32::from_bits(old as u32) + f32::from_bits(x as u32);
                sum.to_bits().into()
            }
            Ty::F64 => (f64::from_bits(old) + f64::from_bits(x)).to_bits(),
            Ty::F16 | Ty::Bf16 => {
                let format = half_format(ty);
                let value = |word: u64| f64::from(format.value(word as u16));
                format.bits(value(old) + value(x)).into()
            }
            _ => old.wrapping_add(x),
        },
        AtomOp::Min | AtomOp::Max => {
            let is_less = match ty {
                Ty::S32 => (old as i32) < x as i32,
                Ty::S64 => old.cast_signed() < x.cast_signed(),
                Ty::F16 | Ty::Bf16 => {
                    let format = half_format(ty);
                    let (old, x) = (format.value(old as u16), format.value(x as u16));
                    old < x || x.is_nan()
                }
                _ => old < x,
            };
            if is_less == (op == AtomOp::Min) { old } else { x }
        }
    }
}

impl Warp {
    pub(super) fn atomic(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        (space, op, ty): (Option<Space>, AtomOp, Ty),
        address: Address,
        (to, from): (Slot, [Slot; 2]),
    ) -> Result<(), Box<Wrong>> {
        let row = addresses(&self.registers, address);
        let [x, other] = from.map(|slot| move_bits::read(&self.registers, slot));
        let n = ty.bytes() as usize;
        let kept = if n == 8 { u64::MAX } else { (1 << (8 * n)) - 1 };
        let mut before = [0; 32];
        for lane in lanes(mask) {
            let mut access = self.access(lane, n);
            access.is_atomic = true;
            let bytes = block.memory.read(space, row[lane], access).in_lane(lane)?;
            let old = u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
            before[lane] = old;
            let new = combine(op, ty, old, x[lane] & kept, other[lane] & kept) & kept;
            let mut bytes = [0; MAX_ACCESS];
            bytes[..8].copy_from_slice(&new.to_le_bytes());
            block.memory.write(space, row[lane], access, &bytes).in_lane(lane)?;
        }
        let first = row[mask.trailing_zeros() as usize & 31];
        block.count_access(space, first, mask, n, false);
        block.count_access(space, first, mask, n, true);
        move_bits::write(&mut self.registers, mask, to, &before);
        Ok(())
    }
}
