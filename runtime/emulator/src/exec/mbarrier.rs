//! mbarriers: arrivals and bytes of a phase, counted in shared memory.
//!
//! The counts live beside shared memory; the 8 bytes of the object only say that it is there, so that a use
//! before initialization, or one that no barrier orders after it, is found as any other access.

use super::async_copy::Bulk;
use super::load_store::addresses;
use super::{Warp, move_bits};
use crate::block::Block;
use crate::error::FaultKind;
use crate::memory::clocks::{Known, MAX_WARPS, merge};
use crate::memory::{Access, InLane, Wrong};
use crate::ops::{Address, MbarrierState, Slot};
use crate::registers::{Reg, Word, lanes};

/// Bytes of the object.
const BYTES: usize = 8;

/// The state of an mbarrier.
#[derive(Clone, Debug)]
pub(crate) struct Mbarrier {
    /// Arrivals of a phase.
    expected: u32,
    /// Arrivals that the phase still waits for.
    missing: i64,
    /// Bytes that the phase still waits for.
    missing_bytes: i64,
    /// Phases that are over.
    phase: u64,
    /// What those that arrived have done.
    published: Known,
}

impl Mbarrier {
    fn complete(&mut self) {
        if self.missing == 0 && self.missing_bytes == 0 {
            self.phase += 1;
            self.missing = self.expected.into();
        }
    }
}

impl Block<'_> {
    /// Where the object at an address is; the access is checked as an atomic.
    pub(crate) fn barrier_place(
        &mut self,
        warp: usize,
        lane: usize,
        address: u64,
    ) -> Result<u64, Box<Wrong>> {
        let place = self.memory.shared_place(address, BYTES)?;
        let access = Access { warp, lane, is_atomic: true, bytes: BYTES };
        self.memory.shared.read(place, access, true)?;
        Ok(place as u64)
    }

    fn mbarrier(
        &mut self,
        warp: usize,
        lane: usize,
        address: u64,
    ) -> Result<&mut Mbarrier, Box<Wrong>> {
        let place = self.barrier_place(warp, lane, address)?;
        self.mbarriers.get_mut(&place).ok_or_else(|| {
            Wrong::at(FaultKind::BadOperand, address, "no mbarrier is initialized there")
        })
    }

    /// Counts (arrivals, further arrivals expected in this phase, bytes expected) and returns the phase before.
    pub(crate) fn arrive(
        &mut self,
        warp: usize,
        lane: usize,
        address: u64,
        (arrivals, added, bytes): (u32, u32, i64),
    ) -> Result<u64, Box<Wrong>> {
        let known = self.memory.shared.clocks.release(warp);
        let barrier = self.mbarrier(warp, lane, address)?;
        let phase = barrier.phase;
        barrier.missing += i64::from(added) - i64::from(arrivals + added);
        barrier.missing_bytes += bytes;
        merge(&mut barrier.published, &known);
        if barrier.missing < 0 {
            let what =
                format!("more than the {} arrivals that the mbarrier expects", barrier.expected);
            return Err(Wrong::at(FaultKind::BadOperand, address, what));
        }
        barrier.complete();
        Ok(phase)
    }

    /// Lands bulk copies whose mbarrier is being waited for.
    fn land_bulk_copies(&mut self, address: u64) -> Result<(), Box<Wrong>> {
        let copies = std::mem::take(&mut self.bulk_copies);
        let (due, open): (Vec<Bulk>, Vec<Bulk>) =
            copies.into_iter().partition(|copy| copy.barrier == address);
        self.bulk_copies = open;
        due.iter().try_for_each(|copy| copy.land(self))
    }
}

impl Warp {
    pub(super) fn mbarrier_init(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        barrier: Address,
        count: Reg,
    ) -> Result<(), Box<Wrong>> {
        let row = addresses(&self.registers, barrier);
        let counts = *u32::row(&self.registers, count);
        for lane in lanes(mask) {
            let place = block.memory.shared_place(row[lane], BYTES).in_lane(lane)?;
            let access = self.access(lane, BYTES);
            block.memory.shared.write(place, &[0; BYTES], access).in_lane(lane)?;
            let expected = counts[lane];
            let state = Mbarrier {
                expected,
                missing: expected.into(),
                missing_bytes: 0,
                phase: 0,
                published: [0; MAX_WARPS],
            };
            block.mbarriers.insert(place as u64, state);
        }
        Ok(())
    }

    pub(super) fn mbarrier_invalidate(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        barrier: Address,
    ) -> Result<(), Box<Wrong>> {
        let row = addresses(&self.registers, barrier);
        for lane in lanes(mask) {
            let place = block.barrier_place(self.index, lane, row[lane]).in_lane(lane)?;
            block.mbarriers.remove(&place);
        }
        Ok(())
    }

    pub(super) fn mbarrier_arrive(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        barrier: Address,
        to: Slot,
        (count, expected, drops): (Option<Reg>, Option<Reg>, bool),
    ) -> Result<(), Box<Wrong>> {
        let row = addresses(&self.registers, barrier);
        let counts = count.map(|reg| *u32::row(&self.registers, reg));
        let bytes = expected.map(|reg| *u32::row(&self.registers, reg));
        let mut tokens = [0; 32];
        for lane in lanes(mask) {
            let arrivals = counts.map_or(1, |row| row[lane]);
            let bytes = bytes.map_or(0, |row| row[lane]);
            if drops {
                let state = block.mbarrier(self.index, lane, row[lane]).in_lane(lane)?;
                state.expected = state.expected.saturating_sub(arrivals);
            }
            let counted = (arrivals, 0, i64::from(bytes));
            tokens[lane] = block.arrive(self.index, lane, row[lane], counted).in_lane(lane)?;
        }
        move_bits::write(&mut self.registers, mask, to, &tokens);
        Ok(())
    }

    pub(super) fn mbarrier_expect(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        barrier: Address,
        bytes: Reg,
    ) -> Result<(), Box<Wrong>> {
        let row = addresses(&self.registers, barrier);
        let bytes = *u32::row(&self.registers, bytes);
        for lane in lanes(mask) {
            let state = block.mbarrier(self.index, lane, row[lane]).in_lane(lane)?;
            state.missing_bytes += i64::from(bytes[lane]);
        }
        Ok(())
    }

    /// Whether the phases that all lanes wait for are over; each lane's own answer goes to `to`.
    pub(super) fn mbarrier_test(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        barrier: Address,
        to: Reg,
        state: MbarrierState,
    ) -> Result<bool, Box<Wrong>> {
        let row = addresses(&self.registers, barrier);
        let mut bits = 0;
        for lane in lanes(mask) {
            block.land_bulk_copies(row[lane]).in_lane(lane)?;
            let barrier = block.mbarrier(self.index, lane, row[lane]).in_lane(lane)?;
            let is_over = match state {
                MbarrierState::Token(reg) => barrier.phase != u64::row(&self.registers, reg)[lane],
                MbarrierState::Parity(reg) => {
                    barrier.phase & 1 != u64::from(u32::row(&self.registers, reg)[lane] & 1)
                }
            };
            if is_over {
                let published = barrier.published;
                block.memory.shared.clocks.acquire(self.index, &published);
                bits |= 1 << lane;
            }
        }
        self.registers.set_pred(mask, to, bits);
        Ok(bits == mask)
    }
}
