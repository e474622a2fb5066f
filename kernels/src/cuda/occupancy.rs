//! How many blocks a multiprocessor runs at once: what hides the time that one of them waits.
//!
//! Limits are those of the CUDA C++ Programming Guide, "Technical Specifications per Compute Capability";
//! how registers and shared memory are given out is the rule of `cuda_occupancy.h` in CUDA's toolkit.

use super::{Gpu, WARP};

/// Registers are given to a warp in steps of this many.
const REGISTER_STEP: u32 = 256;
/// Parts of a multiprocessor, each with its share of the registers, that warps are dealt to.
const PARTS: u32 = 4;
/// Shared memory is given to a block in steps of this many bytes.
const SHARED_STEP: u32 = 128;
/// Bytes of shared memory that the system takes for each block.
const SYSTEM_SHARED_BYTES: u32 = 1 << 10;

/// What a multiprocessor has for the blocks that it runs at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Multiprocessor {
    /// Registers of 32 bits.
    pub registers: u32,
    /// Bytes of shared memory.
    pub shared_bytes: u32,
    /// Most bytes of shared memory of one block.
    pub block_shared_bytes: u32,
    /// Warps.
    pub warps: u32,
    /// Blocks.
    pub blocks: u32,
}

/// What a block needs of a multiprocessor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockNeeds {
    /// Threads.
    pub threads: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory, static and dynamic.
    pub shared_bytes: u32,
}

impl Multiprocessor {
    /// That of a generation.
    pub fn of(gpu: Gpu) -> Multiprocessor {
        let (shared_bytes, block_shared_bytes) = gpu.shared_bytes();
        let (warps, blocks) = match gpu.0 {
            80 => (64, 32),
            86 => (48, 16),
            89 => (48, 24),
            _ => (64, 32),
        };
        Multiprocessor {
            registers: 64 << 10,
            shared_bytes: shared_bytes as u32,
            block_shared_bytes: block_shared_bytes as u32,
            warps,
            blocks,
        }
    }

    /// Blocks that run at once; 0 if not even one does.
    pub fn residents(&self, needs: &BlockNeeds) -> u32 {
        let warps = needs.threads.div_ceil(WARP).max(1);
        let of_warp = (needs.registers * WARP).next_multiple_of(REGISTER_STEP).max(REGISTER_STEP);
        let by_registers = self.registers / PARTS / of_warp * PARTS / warps;
        let shared = (needs.shared_bytes + SYSTEM_SHARED_BYTES).next_multiple_of(SHARED_STEP);
        let by_memory = match needs.shared_bytes <= self.block_shared_bytes {
            true => self.shared_bytes / shared,
            false => 0,
        };
        by_registers.min(by_memory).min(self.warps / warps).min(self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn residents(gpu: u32, threads: u32, registers: u32, shared_bytes: u32) -> u32 {
        Multiprocessor::of(Gpu(gpu)).residents(&BlockNeeds { threads, registers, shared_bytes })
    }

    #[test]
    fn the_scarcest_resource_decides() {
        // Threads: 2048 and 1536.
        assert_eq!((residents(80, 1024, 32, 0), residents(89, 1024, 32, 0)), (2, 1));
        // Registers: 255 of 32 threads are 8192 of 65536.
        assert_eq!((residents(90, 256, 255, 0), residents(90, 256, 128, 0)), (1, 2));
        // 129 registers are given out as 136: three warps for each part.
        assert_eq!(residents(90, 128, 129, 0), 3);
        // Shared memory: 1 KiB more for each block.
        assert_eq!((residents(90, 128, 32, 113 << 10), residents(90, 128, 32, 114 << 10)), (2, 1));
        assert_eq!((residents(86, 128, 32, 99 << 10), residents(86, 128, 32, 100 << 10)), (1, 0));
        // Blocks.
        assert_eq!([80, 86, 89, 90].map(|gpu| residents(gpu, 32, 16, 0)), [32, 16, 24, 32]);
    }
}
