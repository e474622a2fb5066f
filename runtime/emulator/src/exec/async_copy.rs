//! `cp.async`: copies from global to shared memory that land at issue or at the wait that guarantees them.
//!
//! Between issue and wait nobody may touch the destination, whichever way they land; so a missing wait is found
//! in every mode. Groups are counted per lane, as PTX has them per thread.

use super::Warp;
use super::load_store::addresses;
use crate::ast::Space;
use crate::block::Block;
use crate::error::FaultKind;
use crate::launch::Arrival;
use crate::memory::{Access, Bytes, InLane, MAX_ACCESS, Memory, Wrong};
use crate::ops::Address;
use crate::registers::{PredUse, Reg, Word, lanes};

/// A copy of one lane.
#[derive(Clone, Copy, Debug)]
struct Copy {
    lane: usize,
    /// Groups that the lane had committed when it issued the copy.
    group: u32,
    /// First byte in shared memory.
    to: usize,
    bytes: usize,
    from: u64,
    /// Bytes that are read; the others are zero.
    source_bytes: usize,
}

/// Copies of a warp that are not waited for, in order of issue.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    open: Vec<Copy>,
    committed: [u32; 32],
}

impl Copies {
    pub(super) fn commit(&mut self, mask: u32) {
        for lane in lanes(mask) {
            self.committed[lane] += 1;
        }
    }
}

/// What a copy reads.
fn source(memory: &mut Memory<'_>, copy: &Copy, access: Access) -> Result<Bytes, Box<Wrong>> {
    let mut bytes = [0; MAX_ACCESS];
    let n = copy.source_bytes;
    let part = if n == copy.bytes {
        n
    } else if n.is_multiple_of(4) {
        4
    } else {
        1
    };
    for at in (0..n).step_by(part) {
        let access = Access { bytes: part, ..access };
        let read = memory.read(Some(Space::Global), copy.from + at as u64, access)?;
        bytes[at..at + part].copy_from_slice(&read[..part]);
    }
    Ok(bytes)
}

impl Warp {
    pub(super) fn copy_async(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        bytes: u32,
        (to, from): (Address, Address),
        (source_bytes, ignored): (Option<Reg>, Option<PredUse>),
    ) -> Result<(), Box<Wrong>> {
        let bytes = bytes as usize;
        let to = addresses(&self.registers, to);
        let from = addresses(&self.registers, from);
        let sizes = source_bytes.map(|reg| *u32::row(&self.registers, reg));
        let ignored = ignored.map_or(0, |pred| self.registers.pred(pred));
        for lane in lanes(mask) {
            let access = self.access(lane, bytes);
            let place = block.memory.shared_place(to[lane], bytes).in_lane(lane)?;
            let source_bytes = if ignored >> lane & 1 == 1 {
                0
            } else {
                sizes.map_or(bytes, |row| (row[lane] as usize).min(bytes))
            };
            let group = self.copies.committed[lane];
            let copy = Copy { lane, group, to: place, bytes, from: from[lane], source_bytes };
            block.memory.shared.begin_copy(place, access).in_lane(lane)?;
            // Also where the data arrives late, a wrong address is found here.
            let data = source(&mut block.memory, &copy, access).in_lane(lane)?;
            if block.options.arrival == Arrival::Early {
                block.memory.shared.land_early(place, &data[..bytes]);
            }
            block.stats.global_loaded += source_bytes as u64;
            block.stats.shared_stored += bytes as u64;
            self.copies.open.push(copy);
        }
        Ok(())
    }

    /// Lands the copies for which `is_done` holds.
    fn land_copies(
        &mut self,
        block: &mut Block<'_>,
        is_done: impl Fn(usize, u32) -> bool,
    ) -> Result<(), Box<Wrong>> {
        let (done, open): (Vec<Copy>, Vec<Copy>) =
            self.copies.open.drain(..).partition(|copy| is_done(copy.lane, copy.group));
        self.copies.open = open;
        for copy in done {
            let access = self.access(copy.lane, copy.bytes);
            let data = if block.options.arrival == Arrival::Early {
                let mut data = [0; MAX_ACCESS];
                let landed = block.memory.shared.bytes(copy.to, copy.bytes);
                data[..copy.bytes].copy_from_slice(landed);
                data
            } else {
                source(&mut block.memory, &copy, access).in_lane(copy.lane)?
            };
            block.memory.shared.land(copy.to, &data[..copy.bytes], access);
        }
        Ok(())
    }

    pub(super) fn copy_wait(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        n_open: u32,
    ) -> Result<(), Box<Wrong>> {
        let committed = self.copies.committed;
        self.land_copies(block, |lane, group| {
            mask >> lane & 1 == 1 && group < committed[lane].saturating_sub(n_open)
        })
    }

    pub(super) fn copy_wait_all(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
    ) -> Result<(), Box<Wrong>> {
        self.land_copies(block, |lane, _| mask >> lane & 1 == 1)
    }

    /// `cp.async.mbarrier.arrive`: earlier copies of the lanes land, and then the lanes arrive. That is one of
    /// the times at which a device may do it.
    pub(super) fn copy_arrive(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        barrier: Address,
        is_counted: bool,
    ) -> Result<(), Box<Wrong>> {
        self.copy_wait_all(block, mask)?;
        let row = addresses(&self.registers, barrier);
        for lane in lanes(mask) {
            let arrivals = if is_counted { 1 } else { 0 };
            block.arrive(self.index, lane, row[lane], (arrivals, 1 - arrivals, 0)).in_lane(lane)?;
        }
        Ok(())
    }

    /// A copy of many bytes by one lane, which completes on an mbarrier.
    pub(super) fn copy_bulk(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        (to, from): (Address, Address),
        bytes: Reg,
        barrier: Address,
    ) -> Result<(), Box<Wrong>> {
        let to = addresses(&self.registers, to);
        let from = addresses(&self.registers, from);
        let barriers = addresses(&self.registers, barrier);
        let sizes = *u32::row(&self.registers, bytes);
        for lane in lanes(mask) {
            let n = sizes[lane] as usize;
            let places = self.bulk_places(block, lane, (to[lane], from[lane]), n).in_lane(lane)?;
            let copy = Bulk { barrier: barriers[lane], warp: self.index, lane, places };
            block.barrier_place(self.index, lane, copy.barrier).in_lane(lane)?;
            if block.options.arrival == Arrival::Early {
                copy.land(block).in_lane(lane)?;
            } else {
                block.bulk_copies.push(copy);
            }
            block.stats.global_loaded += n as u64;
            block.stats.shared_stored += n as u64;
        }
        Ok(())
    }

    fn bulk_places(
        &self,
        block: &mut Block<'_>,
        lane: usize,
        (to, from): (u64, u64),
        n: usize,
    ) -> Result<Vec<(usize, u64)>, Box<Wrong>> {
        if !n.is_multiple_of(MAX_ACCESS) || n == 0 {
            let what = format!("bulk copy of {n} bytes, expected a positive multiple of 16");
            return Err(Wrong::boxed(FaultKind::BadOperand, what));
        }
        let mut places = vec![];
        for at in (0..n).step_by(MAX_ACCESS) {
            let access = self.access(lane, MAX_ACCESS);
            let place = block.memory.shared_place(to + at as u64, MAX_ACCESS)?;
            block.memory.shared.begin_copy(place, access)?;
            block.memory.read(Some(Space::Global), from + at as u64, access)?;
            places.push((place, from + at as u64));
        }
        Ok(places)
    }
}

/// A bulk copy under way.
#[derive(Debug)]
pub(crate) struct Bulk {
    pub(crate) barrier: u64,
    warp: usize,
    lane: usize,
    /// Where 16 bytes each go and come from.
    places: Vec<(usize, u64)>,
}

impl Bulk {
    /// Writes the bytes and tells the mbarrier.
    pub(crate) fn land(&self, block: &mut Block<'_>) -> Result<(), Box<Wrong>> {
        let access =
            Access { warp: self.warp, lane: self.lane, is_atomic: false, bytes: MAX_ACCESS };
        for &(place, from) in &self.places {
            let data = block.memory.read(Some(Space::Global), from, access)?;
            block.memory.shared.land_bulk(place, &data, access);
        }
        let n = (self.places.len() * MAX_ACCESS) as i64;
        block.arrive(self.warp, self.lane, self.barrier, (0, 0, -n)).map(|_| ())
    }
}
