//! Packing and unpacking of registers, and addresses between windows.

use crate::ast::Space;
use crate::error::FaultKind;
use crate::memory::{InLane, Wrong, resolve, space_name, window};
use crate::ops::Slot;
use crate::registers::{LANES, Reg, Registers, Row, Word, lanes};

/// The row of a slot.
pub(super) fn read(registers: &Registers, slot: Slot) -> Row<u64> {
    match slot {
        Slot::Narrow(reg) => u32::row(registers, reg).map(u64::from),
        Slot::Wide(reg) => *u64::row(registers, reg),
        Slot::Sink => [0; LANES],
    }
}

/// Writes the low bits of words to a slot.
pub(super) fn write(registers: &mut Registers, mask: u32, slot: Slot, row: &Row<u64>) {
    match slot {
        Slot::Narrow(reg) => registers.set(mask, reg, &row.map(|word| word as u32)),
        Slot::Wide(reg) => registers.set(mask, reg, row),
        Slot::Sink => {}
    }
}

pub(super) fn fill(registers: &mut Registers, mask: u32, slot: Slot, value: u64) {
    write(registers, mask, slot, &[value; LANES]);
}

/// Joins parts of `bits` bits, lowest first.
pub(super) fn pack(registers: &mut Registers, mask: u32, bits: u32, to: Slot, from: &[Slot]) {
    let mut joined = [0; LANES];
    for (i, &slot) in from.iter().enumerate() {
        let row = read(registers, slot);
        for (word, part) in joined.iter_mut().zip(row) {
            *word |= (part & ((1 << bits) - 1)) << (bits * i as u32);
        }
    }
    write(registers, mask, to, &joined);
}

pub(super) fn unpack(registers: &mut Registers, mask: u32, bits: u32, from: Slot, to: &[Slot]) {
    let row = read(registers, from);
    for (i, &slot) in to.iter().enumerate() {
        let part = row.map(|word| word >> (bits * i as u32) & ((1 << bits) - 1));
        write(registers, mask, slot, &part);
    }
}

/// `cvta`
pub(super) fn change_window(
    registers: &mut Registers,
    mask: u32,
    is_to_generic: bool,
    space: Space,
    [to, from]: [Slot; 2],
) -> Result<(), Box<Wrong>> {
    let mut row = read(registers, from);
    for lane in lanes(mask) {
        let address = row[lane];
        row[lane] = if is_to_generic {
            address + window(space)
        } else {
            let (found, inside) = resolve(address);
            if found != space && address != 0 {
                let what = format!(
                    "address of {} memory taken as one of {} memory",
                    space_name(found),
                    space_name(space)
                );
                return Err(Wrong::at(FaultKind::OutOfBounds, address, what)).in_lane(lane);
            }
            inside
        };
    }
    write(registers, mask, to, &row);
    Ok(())
}

/// `isspacep`
pub(super) fn is_space(registers: &mut Registers, mask: u32, space: Space, to: Reg, from: Slot) {
    let row = read(registers, from);
    let bits = (0..LANES).fold(0, |bits, l| bits | u32::from(resolve(row[l]).0 == space) << l);
    registers.set_pred(mask, to, bits);
}
