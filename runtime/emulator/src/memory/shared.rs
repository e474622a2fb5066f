//! Shared memory of a block, with who wrote and read each byte last.
//!
//! A byte's last write is a warp and a time; its reads since are a set of warps at one time, or, where warps
//! read it at different times and no barrier orders them, a list. With the block's clocks that finds every pair
//! of accesses of different warps that no barrier orders in the run at hand.

use super::clocks::{Clocks, MAX_WARPS};
use super::{Access, SPACE_START, Wrong};
use crate::error::FaultKind;
use crate::registers::lanes;

/// A write: 0 for never, [`PENDING`], or time << 7 | is_atomic << 6 | is_by_many << 5 | warp.
type Write = u32;

/// An asynchronous copy to the byte is under way.
const PENDING: Write = u32::MAX;
const BY_ATOMIC: Write = 1 << 6;
const BY_MANY: Write = 1 << 5;

/// Reads: time << 32 | set of warps, or [`LISTED`] << 32 | index of a list.
type Reads = u64;

const LISTED: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Shared {
    bytes: Vec<u8>,
    writes: Vec<Write>,
    reads: Vec<Reads>,
    /// Times of reads by warp, for bytes whose reads have different times.
    lists: Vec<[u32; MAX_WARPS]>,
    pub(crate) clocks: Clocks,
    pub(crate) checks_races: bool,
}

impl Shared {
    pub(crate) fn new(bytes: usize, n_warps: usize, checks_races: bool) -> Self {
        Self {
            bytes: vec![0; bytes],
            writes: vec![0; bytes],
            reads: vec![0; bytes],
            lists: vec![],
            clocks: Clocks::new(n_warps),
            checks_races,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Checks a read of bytes `at`, notes it, and returns them.
    #[inline]
    pub(crate) fn read(
        &mut self,
        at: usize,
        access: Access,
        checks_never_written: bool,
    ) -> Result<&[u8], Box<Wrong>> {
        let range = at..at + access.bytes;
        let writes = &self.writes[range.clone()];
        let first = writes[0];
        // The bytes of an access are mostly written by one access.
        if writes.iter().all(|&write| write == first) {
            self.check_write_before(first, at, access, checks_never_written, "read")?;
        } else {
            for i in range.clone() {
                self.check_write_before(self.writes[i], i, access, checks_never_written, "read")?;
            }
        }
        // What an atomic reads is noted by its write, which other atomics may precede.
        if self.checks_races && !access.is_atomic {
            self.note_reads(at, access);
        }
        Ok(&self.bytes[range])
    }

    fn note_reads(&mut self, at: usize, access: Access) {
        let now = self.clocks.now();
        let bit = 1_u64 << access.warp;
        let today = u64::from(now) << 32;
        for i in at..at + access.bytes {
            let old = self.reads[i];
            if (old ^ today) >> 32 == 0 {
                self.reads[i] = old | bit;
            } else {
                self.reads[i] = self.merge_reads(old, access.warp);
            }
        }
    }

    /// Reads of another time joined with one of `warp` now.
    fn merge_reads(&mut self, old: Reads, warp: usize) -> Reads {
        let (time, set) = ((old >> 32) as u32, old as u32);
        let now = self.clocks.now();
        if time == LISTED {
            self.lists[set as usize][warp] = now;
            return old;
        }
        // A read that happens before this one need not be kept: what is ordered after this one is after it too.
        let concurrent = lanes(set).filter(|&v| !self.clocks.is_before(v, time, warp));
        let mut list = [0; MAX_WARPS];
        let mut n_concurrent = 0;
        for v in concurrent {
            list[v] = time;
            n_concurrent += 1;
        }
        if n_concurrent == 0 {
            return u64::from(now) << 32 | 1 << warp;
        }
        list[warp] = now;
        self.lists.push(list);
        u64::from(LISTED) << 32 | (self.lists.len() - 1) as u64
    }

    fn check_write_before(
        &self,
        write: Write,
        at: usize,
        access: Access,
        checks_never_written: bool,
        verb: &str,
    ) -> Result<(), Box<Wrong>> {
        let address = at as u64 + SPACE_START;
        if write == 0 {
            if checks_never_written {
                let what = "read of shared memory that nothing has written";
                return Err(Wrong::at(FaultKind::NeverWritten, address, what));
            }
            return Ok(());
        }
        if write == PENDING {
            let what = format!(
                "{verb} of shared memory while an asynchronous copy to it has not been waited for"
            );
            return Err(Wrong::at(FaultKind::PendingCopy, address, what));
        }
        if !self.checks_races || write & BY_ATOMIC != 0 && access.is_atomic {
            return Ok(());
        }
        let (time, by) = (write >> 7, (write & 31) as usize);
        let is_before = if write & BY_MANY != 0 {
            (0..MAX_WARPS).all(|v| self.clocks.is_before(v, time, access.warp))
        } else {
            self.clocks.is_before(by, time, access.warp)
        };
        if is_before {
            return Ok(());
        }
        let what = format!(
            "{verb} of shared memory by warp {}, which warp {by} writes with no barrier between",
            access.warp
        );
        Err(Wrong::at(FaultKind::Race, address, what))
    }

    fn check_reads_before(&self, at: usize, access: Access, verb: &str) -> Result<(), Box<Wrong>> {
        let reads = self.reads[at];
        let (time, set) = ((reads >> 32) as u32, reads as u32);
        let reader = if time == LISTED {
            let list = &self.lists[set as usize];
            (0..MAX_WARPS)
                .find(|&v| list[v] != 0 && !self.clocks.is_before(v, list[v], access.warp))
        } else if set & !(1 << access.warp) == 0 {
            None
        } else {
            lanes(set).find(|&v| !self.clocks.is_before(v, time, access.warp))
        };
        let Some(reader) = reader else { return Ok(()) };
        let what = format!(
            "{verb} of shared memory by warp {}, which warp {reader} reads with no barrier between",
            access.warp
        );
        Err(Wrong::at(FaultKind::Race, at as u64 + SPACE_START, what))
    }

    /// Checks a write of bytes `at`; atomics on bytes that atomics wrote are in order.
    #[inline]
    fn check_write(&self, at: usize, access: Access, verb: &str) -> Result<(), Box<Wrong>> {
        let range = at..at + access.bytes;
        let (first, reads) = (self.writes[at], self.reads[at]);
        let is_same = self.writes[range.clone()].iter().all(|&write| write == first)
            && self.reads[range.clone()].iter().all(|&read| read == reads);
        for i in range {
            self.check_write_before(self.writes[i], i, access, false, verb)?;
            if self.checks_races {
                self.check_reads_before(i, access, verb)?;
            }
            if is_same {
                break;
            }
        }
        Ok(())
    }

    /// The entry of a write now.
    fn entry(&self, access: Access, old: Write) -> Write {
        let write = self.clocks.now().min((1 << 24) - 1) << 7 | access.warp as u32;
        if !access.is_atomic {
            return write;
        }
        let by_other = old & BY_ATOMIC != 0 && old & 31 != access.warp as u32;
        let is_recent = old >> 7 == write >> 7;
        let many = if is_recent && (by_other || old & BY_MANY != 0) { BY_MANY } else { 0 };
        write | BY_ATOMIC | many
    }

    #[inline]
    pub(crate) fn write(
        &mut self,
        at: usize,
        bytes: &[u8],
        access: Access,
    ) -> Result<(), Box<Wrong>> {
        self.check_write(at, access, "write")?;
        self.land(at, bytes, access);
        Ok(())
    }

    /// An asynchronous copy is issued: it writes from now on, and until waited for nobody may touch the bytes.
    pub(crate) fn begin_copy(&mut self, at: usize, access: Access) -> Result<(), Box<Wrong>> {
        self.check_write(at, access, "asynchronous copy")?;
        self.writes[at..at + access.bytes].fill(PENDING);
        Ok(())
    }

    /// Bytes under an asynchronous copy, to which its data arrives before it is waited for.
    pub(crate) fn land_early(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes without a check.
    #[inline]
    pub(crate) fn land(&mut self, at: usize, bytes: &[u8], access: Access) {
        let range = at..at + bytes.len();
        if access.is_atomic {
            for i in range.clone() {
                self.writes[i] = self.entry(access, self.writes[i]);
            }
        } else {
            let entry = self.entry(access, 0);
            self.writes[range.clone()].fill(entry);
            // Reads are before this write, which is known by now, or would have been an error.
            self.reads[range.clone()].fill(0);
        }
        self.bytes[range].copy_from_slice(bytes);
    }

    /// Bytes under an asynchronous copy that has arrived early.
    pub(crate) fn bytes(&self, at: usize, n: usize) -> &[u8] {
        &self.bytes[at..at + n]
    }
}
