//! What a launch did: lines reached, instructions by class, bytes by space, multiply-adds of matrix instructions.

use std::collections::BTreeSet;

/// Class of an instruction.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Class {
    /// Integer arithmetic and bits.
    Integer,
    /// f32 and f64 arithmetic.
    Float,
    /// f16 and bf16 arithmetic, packed or not.
    Half,
    /// Roots, reciprocals, exponentials and the like.
    Special,
    /// Conversions between types.
    Convert,
    /// Comparisons, selections and predicates.
    Predicate,
    /// Moves, packing, addresses.
    Move,
    /// Loads.
    Load,
    /// Stores.
    Store,
    /// Atomics.
    Atomic,
    /// Asynchronous copies and their waits.
    Copy,
    /// Barriers, fences, mbarriers.
    Barrier,
    /// Collectives of a warp.
    Collective,
    /// Matrix products of a warp and loads and stores of their operands.
    Matrix,
    /// Branches and exits.
    Control,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 15] = [
        Self::Integer,
        Self::Float,
        Self::Half,
        Self::Special,
        Self::Convert,
        Self::Predicate,
        Self::Move,
        Self::Load,
        Self::Store,
        Self::Atomic,
        Self::Copy,
        Self::Barrier,
        Self::Collective,
        Self::Matrix,
        Self::Control,
    ];
}

/// Counts of a launch. The same for every number of host threads and, where the kernel's control flow does not
/// depend on the order of warps, for every order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    instructions: [u64; Class::ALL.len()],
    /// Bytes that lanes loaded from global memory; atomics count as a load and a store.
    pub global_loaded: u64,
    /// Bytes that lanes stored to global memory.
    pub global_stored: u64,
    /// Bytes that lanes loaded from shared memory.
    pub shared_loaded: u64,
    /// Bytes that lanes stored to shared memory, asynchronous copies included.
    pub shared_stored: u64,
    /// Bytes that lanes loaded from or stored to local memory.
    pub local: u64,
    /// Matrix product instructions.
    pub products: u64,
    /// Multiply-adds of matrix product instructions.
    pub multiply_adds: u64,
    /// Barriers that blocks passed.
    pub barriers: u64,
    /// Lines of the text that some lane executed.
    pub reached_lines: BTreeSet<u32>,
}

impl Stats {
    /// Warp instructions of one class.
    pub fn instructions(&self, class: Class) -> u64 {
        self.instructions[class as usize]
    }

    /// All warp instructions.
    pub fn total_instructions(&self) -> u64 {
        self.instructions.iter().sum()
    }

    #[inline]
    pub(crate) fn count(&mut self, class: Class) {
        self.instructions[class as usize] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let Self {
            instructions,
            global_loaded,
            global_stored,
            shared_loaded,
            shared_stored,
            local,
            products,
            multiply_adds,
            barriers,
            reached_lines,
        } = other;
        for (sum, n) in self.instructions.iter_mut().zip(instructions) {
            *sum += n;
        }
        self.global_loaded += global_loaded;
        self.global_stored += global_stored;
        self.shared_loaded += shared_loaded;
        self.shared_stored += shared_stored;
        self.local += local;
        self.products += products;
        self.multiply_adds += multiply_adds;
        self.barriers += barriers;
        self.reached_lines.extend(reached_lines);
    }
}
