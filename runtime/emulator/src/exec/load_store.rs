//! Loads and stores.

use super::Warp;
use crate::ast::Space;
use crate::block::Block;
use crate::error::FaultKind;
use crate::memory::{Access, Bytes, InLane, MAX_ACCESS, Wrong, resolve};
use crate::ops::{Address, Base, Slot};
use crate::registers::{LANES, Registers, Row, Word, lanes};
use crate::types::Ty;

/// The address of each lane.
pub(super) fn addresses(registers: &Registers, address: Address) -> Row<u64> {
    let Address { base, offset } = address;
    match base {
        Base::None => [offset; LANES],
        // Narrow registers hold addresses in shared memory, which wrap at 32 bits.
        Base::Narrow(reg) => {
            u32::row(registers, reg).map(|base| u64::from(base.wrapping_add(offset as u32)))
        }
        Base::Wide(reg) => u64::row(registers, reg).map(|base| base.wrapping_add(offset)),
    }
}

/// Sign or zero extension of `bytes` low bytes, as a type says.
fn extended(ty: Ty, word: u64) -> u64 {
    match ty {
        Ty::S8 => i64::from(word as i8).cast_unsigned(),
        Ty::S16 => i64::from(word as i16).cast_unsigned(),
        Ty::S32 => i64::from(word as i32).cast_unsigned(),
        _ => word,
    }
}

impl Warp {
    pub(super) fn access(&self, lane: usize, bytes: usize) -> Access {
        Access { warp: self.index, lane, is_atomic: false, bytes }
    }

    pub(super) fn load(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        space: Option<Space>,
        ty: Ty,
        address: Address,
        to: &[Slot],
    ) -> Result<(), Box<Wrong>> {
        let row = addresses(&self.registers, address);
        let part = ty.bytes() as usize;
        let n = part * to.len();
        let mut loaded = [[0; MAX_ACCESS]; LANES];
        for lane in lanes(mask) {
            loaded[lane] =
                block.memory.read(space, row[lane], self.access(lane, n)).in_lane(lane)?;
        }
        block.count_access(space, row[mask.trailing_zeros() as usize & 31], mask, n, false);
        for (i, &slot) in to.iter().enumerate() {
            let word = |bytes: &Bytes| {
                let mut word = [0; 8];
                word[..part].copy_from_slice(&bytes[i * part..(i + 1) * part]);
                u64::from_le_bytes(word)
            };
            match slot {
                Slot::Narrow(reg) if part == 4 => {
                    let row = loaded.each_ref().map(|bytes| {
                        let at = i * 4;
                        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
                    });
                    self.registers.set(mask, reg, &row);
                }
                Slot::Narrow(reg) => {
                    let row = loaded.each_ref().map(|bytes| extended(ty, word(bytes)) as u32);
                    self.registers.set(mask, reg, &row);
                }
                Slot::Wide(reg) => {
                    let row = loaded.each_ref().map(|bytes| extended(ty, word(bytes)));
                    self.registers.set(mask, reg, &row);
                }
                Slot::Sink => {}
            }
        }
        Ok(())
    }

    pub(super) fn store(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        space: Option<Space>,
        ty: Ty,
        address: Address,
        from: &[Slot],
    ) -> Result<(), Box<Wrong>> {
        let row = addresses(&self.registers, address);
        let part = ty.bytes() as usize;
        let n = part * from.len();
        let mut stored = [[0; MAX_ACCESS]; LANES];
        for (i, &slot) in from.iter().enumerate() {
            let range = i * part..(i + 1) * part;
            match slot {
                Slot::Narrow(reg) => {
                    for (bytes, word) in stored.iter_mut().zip(u32::row(&self.registers, reg)) {
                        let word = u64::from(*word).to_le_bytes();
                        bytes[range.clone()].copy_from_slice(&word[..part]);
                    }
                }
                Slot::Wide(reg) => {
                    for (bytes, word) in stored.iter_mut().zip(u64::row(&self.registers, reg)) {
                        bytes[range.clone()].copy_from_slice(&word.to_le_bytes()[..part]);
                    }
                }
                Slot::Sink => {}
            }
        }
        self.store_bytes(block, mask, space, &row, &stored, n)
    }

    /// Stores `n` bytes of each lane.
    pub(super) fn store_bytes(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        space: Option<Space>,
        row: &Row<u64>,
        stored: &[Bytes; LANES],
        n: usize,
    ) -> Result<(), Box<Wrong>> {
        check_lanes_agree(mask, space, row, stored, n)?;
        for lane in lanes(mask) {
            let access = self.access(lane, n);
            block.memory.write(space, row[lane], access, &stored[lane]).in_lane(lane)?;
        }
        block.count_access(space, row[mask.trailing_zeros() as usize & 31], mask, n, true);
        Ok(())
    }
}

/// Lanes of one store may write to one place only if they write the same.
fn check_lanes_agree(
    mask: u32,
    space: Option<Space>,
    row: &Row<u64>,
    stored: &[Bytes; LANES],
    n: usize,
) -> Result<(), Box<Wrong>> {
    if space == Some(Space::Local) {
        return Ok(());
    }
    // Mostly addresses rise from lane to lane, and nothing need be sorted.
    let mut least = 0;
    let is_rising = lanes(mask).all(|lane| {
        let is_above = row[lane] >= least;
        least = row[lane].saturating_add(n as u64);
        is_above
    });
    if is_rising {
        return Ok(());
    }
    let mut sorted: Vec<(u64, usize)> = lanes(mask)
        .filter(|&lane| space.is_some() || resolve(row[lane]).0 != Space::Local)
        .map(|lane| (row[lane], lane))
        .collect();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        let [(below, first), (above, second)] = [pair[0], pair[1]];
        // Accesses of one size that are aligned overlap wholly or not at all.
        if below == above && stored[first][..n] != stored[second][..n] {
            let what = format!(
                "lanes {first} and {second} of one instruction store different values to one address"
            );
            return Err(Wrong::at(FaultKind::Race, above, what)).in_lane(second);
        }
    }
    Ok(())
}
