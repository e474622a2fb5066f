//! Device memory: allocations far from each other, and which of their bytes have been written.
//!
//! Words are atomic, so that blocks on several host threads may write next to each other without a lock. An
//! address is never given out twice, so that use after free is found as an access outside of all allocations.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::{Bytes, GLOBAL_START, MAX_ACCESS, Wrong, check_alignment};
use crate::Error;
use crate::error::FaultKind;

/// Alignment of allocations, as of a driver's.
const ALIGN: u64 = 256;
/// Unused addresses after each allocation.
const GAP: u64 = 1 << 20;
/// Most bytes of all allocations.
const MAX_BYTES: u64 = 1 << 36;

#[derive(Debug)]
struct Allocation {
    base: u64,
    bytes: u64,
    words: Box<[AtomicU32]>,
    /// One bit a byte.
    written: Box<[AtomicU32]>,
}

#[derive(Debug)]
pub(crate) struct Global {
    /// By address.
    allocations: Vec<Allocation>,
    next: u64,
    bytes: u64,
}

fn zeros(n: usize) -> Box<[AtomicU32]> {
    std::iter::repeat_with(AtomicU32::default).take(n).collect()
}

impl Allocation {
    /// The bits of `written` of `n` bytes at `at`: index and mask. An aligned access has them in one word.
    fn written_bits(at: usize, n: usize) -> (usize, u32) {
        (at / 32, (u32::MAX >> (32 - n)) << (at % 32))
    }

    fn mark(&self, at: usize, n: usize) {
        let (word, mask) = Self::written_bits(at, n);
        // Most writes are to bytes that have been written, and a load is cheaper than an exchange.
        if self.written[word].load(Relaxed) & mask != mask {
            self.written[word].fetch_or(mask, Relaxed);
        }
    }
}

impl Global {
    pub(crate) fn new() -> Self {
        Self { allocations: vec![], next: GLOBAL_START, bytes: 0 }
    }

    pub(crate) fn alloc(&mut self, bytes: u64) -> Result<u64, Error> {
        let address = self.next;
        if bytes > MAX_BYTES - self.bytes {
            let what = format!("no room for {bytes} bytes beside {} of {MAX_BYTES}", self.bytes);
            return Err(Error::Memory { address, what });
        }
        self.bytes += bytes;
        self.next = (address + bytes + GAP).next_multiple_of(ALIGN);
        let words = zeros(bytes.div_ceil(4) as usize);
        let written = zeros(bytes.div_ceil(32) as usize);
        self.allocations.push(Allocation { base: address, bytes, words, written });
        Ok(address)
    }

    pub(crate) fn free(&mut self, address: u64) -> Result<(), Error> {
        let Ok(index) = self.allocations.binary_search_by_key(&address, |a| a.base) else {
            let what = "freed, but no allocation starts there".to_string();
            return Err(Error::Memory { address, what });
        };
        self.bytes -= self.allocations.remove(index).bytes;
        Ok(())
    }

    /// The allocation that begins at or below `address`.
    fn below(&self, address: u64) -> Option<&Allocation> {
        let index = self.allocations.partition_point(|a| a.base <= address);
        self.allocations.get(index.checked_sub(1)?)
    }

    /// The first address of the allocation of `address`.
    pub(crate) fn base(&self, address: u64) -> Option<u64> {
        self.below(address).map(|a| a.base)
    }

    fn find(&self, address: u64, n: u64) -> Option<(&Allocation, usize)> {
        let allocation = self.below(address)?;
        let at = address - allocation.base;
        (at.checked_add(n)? <= allocation.bytes).then_some((allocation, at as usize))
    }

    fn outside(&self, address: u64, n: u64) -> String {
        let Some(below) = self.below(address) else {
            return format!("{n} bytes outside of all allocations");
        };
        let (at, bytes) = (address - below.base, below.bytes);
        format!("{n} bytes at byte {at} of an allocation of {bytes} bytes at {:#x}", below.base)
    }

    /// What a lane finds at an address.
    #[inline]
    fn access(&self, address: u64, n: usize) -> Result<(&Allocation, usize), Box<Wrong>> {
        let Some((allocation, at)) = self.find(address, n as u64) else {
            let what = format!("access of {}", self.outside(address, n as u64));
            return Err(Wrong::at(FaultKind::OutOfBounds, address, what));
        };
        check_alignment(address, n)?;
        Ok((allocation, at))
    }

    #[inline]
    pub(crate) fn read(
        &self,
        address: u64,
        n: usize,
        checks_never_written: bool,
    ) -> Result<Bytes, Box<Wrong>> {
        let (allocation, at) = self.access(address, n)?;
        if checks_never_written {
            let (word, mask) = Allocation::written_bits(at, n);
            let missing = mask & !allocation.written[word].load(Relaxed);
            if missing != 0 {
                let byte = (word * 32) as u64 + u64::from(missing.trailing_zeros());
                let what = format!(
                    "read of global memory that nothing has written (byte {byte} of the allocation)"
                );
                return Err(Wrong::at(FaultKind::NeverWritten, allocation.base + byte, what));
            }
        }
        let mut bytes = [0; MAX_ACCESS];
        if n < 4 {
            let word = allocation.words[at / 4].load(Relaxed) >> (8 * (at % 4));
            bytes[..n].copy_from_slice(&word.to_le_bytes()[..n]);
        } else {
            for (i, part) in bytes[..n].chunks_exact_mut(4).enumerate() {
                let word = allocation.words[at / 4 + i].load(Relaxed);
                part.copy_from_slice(&word.to_le_bytes());
            }
        }
        Ok(bytes)
    }

    #[inline]
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Box<Wrong>> {
        let (allocation, at) = self.access(address, bytes.len())?;
        if bytes.len() < 4 {
            let (mut value, mut mask) = (0, 0);
            for (i, &byte) in bytes.iter().enumerate() {
                let shift = 8 * (at % 4 + i);
                value |= u32::from(byte) << shift;
                mask |= 0xff << shift;
            }
            // Another block may write other bytes of the word at the same time.
            let word = &allocation.words[at / 4];
            let mut old = word.load(Relaxed);
            while let Err(found) =
                word.compare_exchange_weak(old, old & !mask | value, Relaxed, Relaxed)
            {
                old = found;
            }
        } else {
            for (i, part) in bytes.chunks_exact(4).enumerate() {
                let word = u32::from_le_bytes([part[0], part[1], part[2], part[3]]);
                allocation.words[at / 4 + i].store(word, Relaxed);
            }
        }
        allocation.mark(at, bytes.len());
        Ok(())
    }

    /// The host writes.
    pub(crate) fn upload(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let Some((allocation, at)) = self.find(address, bytes.len() as u64) else {
            let what = format!("upload of {}", self.outside(address, bytes.len() as u64));
            return Err(Error::Memory { address, what });
        };
        let mut rest = bytes;
        let mut at = at;
        while !rest.is_empty() {
            let n = rest.len().min(4 - at % 4);
            let shift = 8 * (at % 4);
            let mut word = allocation.words[at / 4].load(Relaxed).to_le_bytes();
            word[shift / 8..shift / 8 + n].copy_from_slice(&rest[..n]);
            allocation.words[at / 4].store(u32::from_le_bytes(word), Relaxed);
            allocation.mark(at, n);
            (at, rest) = (at + n, &rest[n..]);
        }
        Ok(())
    }

    /// The host reads; bytes that nothing has written read as zero.
    pub(crate) fn download(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let Some((allocation, at)) = self.find(address, bytes.len() as u64) else {
            let what = format!("download of {}", self.outside(address, bytes.len() as u64));
            return Err(Error::Memory { address, what });
        };
        for (i, byte) in bytes.iter_mut().enumerate() {
            let at = at + i;
            *byte = allocation.words[at / 4].load(Relaxed).to_le_bytes()[at % 4];
        }
        Ok(())
    }

    /// The first byte of a range that nothing has written.
    pub(crate) fn first_unwritten(&self, address: u64, n: u64) -> Option<u64> {
        let (allocation, at) = self.find(address, n)?;
        let is_written =
            |at: usize| allocation.written[at / 32].load(Relaxed) >> (at % 32) & 1 == 1;
        (at..at + n as usize).find(|&at| !is_written(at)).map(|at| allocation.base + at as u64)
    }
}
