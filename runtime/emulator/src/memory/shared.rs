//! Shared memory of a block, with who wrote and read each byte last.
//!
//! A byte's last write is a warp and a time; its reads and atomics since are each a set of warps at one time, or,
//! where warps came at different times and no barrier orders them, a list. With the block's clocks that finds
//! every pair of accesses of different warps that no barrier orders in the run at hand.

use super::clocks::{Clocks, MAX_WARPS};
use super::{Access, SPACE_START, Wrong};
use crate::error::FaultKind;
use crate::registers::lanes;

/// A write: 0 for never, [`PENDING`], or time << 5 | warp, with [`BULK`] if a bulk copy made it.
type Write = u32;

/// The write came through the asynchronous proxy, to which it needs no fence.
const BULK: Write = 1 << 31;

/// An asynchronous copy to the byte is under way.
const PENDING: Write = u32::MAX;
/// Latest time of a write that is told from others; with any warp it is not [`PENDING`].
const MAX_TIME: u32 = (1 << 26) - 2;

/// Who came since the last write: time << 32 | set of warps, or [`LISTED`] << 32 | index of a list.
type Visits = u64;

const LISTED: u32 = u32::MAX;
/// Lists after which those that no byte refers to are dropped.
const MANY_LISTS: usize = 1 << 14;

#[derive(Debug)]
pub(crate) struct Shared {
    bytes: Vec<u8>,
    writes: Vec<Write>,
    reads: Vec<Visits>,
    /// Empty until there is an atomic.
    atomics: Vec<Visits>,
    /// Times by warp, for bytes that warps visited at different times.
    lists: Vec<[u32; MAX_WARPS]>,
    max_lists: usize,
    pub(crate) clocks: Clocks,
    pub(crate) checks_races: bool,
}

impl Shared {
    pub(crate) fn new(bytes: usize, n_warps: usize, checks_races: bool) -> Self {
        Self {
            bytes: vec![0; bytes],
            writes: vec![0; bytes],
            reads: vec![0; bytes],
            atomics: vec![],
            lists: vec![],
            max_lists: MANY_LISTS,
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
        let first = self.writes[at];
        // The bytes of an access are mostly written by one access.
        let is_same = self.writes[range.clone()].iter().all(|&write| write == first);
        let n_checked = if is_same { 1 } else { access.bytes };
        for i in at..at + n_checked {
            if checks_never_written && self.writes[i] == 0 {
                let what = "read of shared memory that nothing has written";
                return Err(Wrong::at(FaultKind::NeverWritten, i as u64 + SPACE_START, what));
            }
            self.check_write_before(i, access, "read")?;
        }
        // What an atomic reads is noted by its write, which other atomics may precede.
        if self.checks_races && !access.is_atomic {
            self.check_visits(&self.atomics, at, access, ("read", "changes by an atomic"))?;
            self.note_reads(at, access);
        }
        Ok(&self.bytes[range])
    }

    /// The same for a read through the asynchronous proxy, as of products of four warps: plain writes and small
    /// copies must have been fenced.
    #[inline]
    pub(crate) fn read_by_proxy(
        &mut self,
        at: usize,
        access: Access,
        checks_never_written: bool,
    ) -> Result<&[u8], Box<Wrong>> {
        self.read(at, access, checks_never_written)?;
        if self.checks_races {
            let mut last = 0;
            for (i, &write) in self.writes[at..at + access.bytes].iter().enumerate() {
                if write == last || write == 0 || write & BULK != 0 {
                    continue;
                }
                last = write;
                let (time, by) = maker(write);
                if !self.clocks.is_fenced(by, time, access.warp) {
                    let what = format!(
                        "asynchronous read of shared memory by warp {}, which warp {by} wrote with no \
                         fence.proxy.async of the whole warp between the write and the barrier",
                        access.warp
                    );
                    let address = (at + i) as u64 + SPACE_START;
                    return Err(Wrong::at(FaultKind::MissingFence, address, what));
                }
            }
        }
        Ok(&self.bytes[at..at + access.bytes])
    }

    #[inline]
    fn note_reads(&mut self, at: usize, access: Access) {
        let range = at..at + access.bytes;
        let first = self.reads[at];
        if self.reads[range.clone()].iter().all(|&visits| visits == first) {
            let visits = self.merge_visits(first, access.warp);
            if visits != first {
                self.reads[range].fill(visits);
            }
            return;
        }
        for i in range {
            self.reads[i] = self.merge_visits(self.reads[i], access.warp);
        }
    }

    /// Visits joined with one of `warp` now.
    #[inline]
    fn merge_visits(&mut self, old: Visits, warp: usize) -> Visits {
        let (now, bit) = (self.clocks.now(), 1_u64 << warp);
        let (time, set) = ((old >> 32) as u32, old & u64::from(u32::MAX));
        if time == now {
            return old | bit;
        }
        if time != LISTED && set & !bit == 0 {
            return u64::from(now) << 32 | bit;
        }
        self.merge_times(old, warp)
    }

    /// The same where visits have different times.
    fn merge_times(&mut self, old: Visits, warp: usize) -> Visits {
        let now = self.clocks.now();
        // A visit before this one need not be kept: what is ordered after this one is after it too.
        let mut list = [0; MAX_WARPS];
        for (v, time) in self.visitors(old) {
            if !self.clocks.is_before(v, time, warp) {
                list[v] = time;
            }
        }
        list[warp] = now;
        if list.iter().all(|&time| time == 0 || time == now) {
            let set = (0..MAX_WARPS).fold(0, |set, v| set | u64::from(list[v] == now) << v);
            return u64::from(now) << 32 | set;
        }
        // Bytes of one access have one list.
        if self.lists.last() != Some(&list) {
            if self.lists.len() >= self.max_lists {
                self.drop_lists();
            }
            self.lists.push(list);
        }
        u64::from(LISTED) << 32 | (self.lists.len() - 1) as u64
    }

    /// Warps of visits with their times.
    fn visitors(&self, visits: Visits) -> impl Iterator<Item = (usize, u32)> + use<> {
        let (time, set) = ((visits >> 32) as u32, visits as u32);
        let times = if time == LISTED {
            self.lists[set as usize]
        } else {
            std::array::from_fn(|v| if set >> v & 1 == 1 { time } else { 0 })
        };
        times.into_iter().enumerate().filter(|(_, time)| *time != 0)
    }

    /// Drops the lists that no byte refers to.
    fn drop_lists(&mut self) {
        let mut kept: Vec<[u32; MAX_WARPS]> = vec![];
        for visits in self.reads.iter_mut().chain(&mut self.atomics) {
            if (*visits >> 32) as u32 == LISTED {
                let list = self.lists[*visits as u32 as usize];
                if kept.last() != Some(&list) {
                    kept.push(list);
                }
                *visits = u64::from(LISTED) << 32 | (kept.len() - 1) as u64;
            }
        }
        self.max_lists = MANY_LISTS.max(2 * kept.len());
        self.lists = kept;
    }

    /// The last plain write must happen before an access.
    #[inline]
    fn check_write_before(&self, at: usize, access: Access, verb: &str) -> Result<(), Box<Wrong>> {
        let write = self.writes[at];
        if write == 0 {
            return Ok(());
        }
        if write == PENDING {
            let what = format!(
                "{verb} of shared memory while an asynchronous copy to it has not been waited for"
            );
            return Err(Wrong::at(FaultKind::PendingCopy, at as u64 + SPACE_START, what));
        }
        let (time, by) = maker(write);
        if !self.checks_races || self.clocks.is_before(by, time, access.warp) {
            return Ok(());
        }
        Err(race(at, access, verb, (by, "writes")))
    }

    /// Visits must happen before an access; `verbs` are what it does and what they did.
    #[inline]
    fn check_visits(
        &self,
        visits: &[Visits],
        at: usize,
        access: Access,
        verbs: (&str, &str),
    ) -> Result<(), Box<Wrong>> {
        let Some(visits) = visits.get(at..at + access.bytes) else { return Ok(()) };
        let mut last = 0;
        for (i, &visits) in visits.iter().enumerate() {
            // No visits, or those of the byte before, or the warp's own.
            if visits == last || visits as u32 == 1 << access.warp && visits >> 32 != LISTED.into()
            {
                continue;
            }
            last = visits;
            let (time, set) = ((visits >> 32) as u32, visits as u32);
            let other = if time == LISTED {
                self.visitors(visits).find(|&(v, t)| !self.clocks.is_before(v, t, access.warp))
            } else {
                let mut warps = lanes(set);
                warps.find(|&v| !self.clocks.is_before(v, time, access.warp)).map(|v| (v, time))
            };
            if let Some((by, _)) = other {
                return Err(race(at + i, access, verbs.0, (by, verbs.1)));
            }
        }
        Ok(())
    }

    /// Checks a write of bytes `at`.
    #[inline]
    fn check_write(&self, at: usize, access: Access, verb: &str) -> Result<(), Box<Wrong>> {
        let first = self.writes[at];
        let is_same = self.writes[at..at + access.bytes].iter().all(|&write| write == first);
        let n_checked = if is_same { 1 } else { access.bytes };
        for i in at..at + n_checked {
            self.check_write_before(i, access, verb)?;
        }
        if !self.checks_races {
            return Ok(());
        }
        self.check_visits(&self.reads, at, access, (verb, "reads"))?;
        if access.is_atomic {
            return Ok(());
        }
        self.check_visits(&self.atomics, at, access, (verb, "changes by an atomic"))
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
            self.atomics.resize(self.bytes.len(), 0);
            for i in range.clone() {
                self.atomics[i] = self.merge_visits(self.atomics[i], access.warp);
            }
        } else {
            self.writes[range.clone()]
                .fill(self.clocks.now().min(MAX_TIME) << 5 | access.warp as u32);
            // Visits happen before this write, which is known by now, or would have been an error.
            self.reads[range.clone()].fill(0);
            if let Some(atomics) = self.atomics.get_mut(range.clone()) {
                atomics.fill(0);
            }
        }
        self.bytes[range].copy_from_slice(bytes);
    }

    /// Writes what a bulk copy brings, without a check.
    pub(crate) fn land_bulk(&mut self, at: usize, bytes: &[u8], access: Access) {
        self.land(at, bytes, access);
        for write in &mut self.writes[at..at + bytes.len()] {
            *write |= BULK;
        }
    }

    /// Bytes under an asynchronous copy that has arrived early.
    pub(crate) fn bytes(&self, at: usize, n: usize) -> &[u8] {
        &self.bytes[at..at + n]
    }
}

/// Time and warp of a write.
#[inline]
fn maker(write: Write) -> (u32, usize) {
    ((write & !BULK) >> 5, (write & 31) as usize)
}

fn race(at: usize, access: Access, verb: &str, (by, did): (usize, &str)) -> Box<Wrong> {
    let what = format!(
        "{verb} of shared memory by warp {}, which warp {by} {did} with no barrier between",
        access.warp
    );
    Wrong::at(FaultKind::Race, at as u64 + SPACE_START, what)
}
