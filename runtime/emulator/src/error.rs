//! What can be wrong with a module, with a launch, or with what a kernel does.

use std::fmt;

use thiserror::Error;

/// Why a module was refused or a launch ended early.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// The text is not PTX as this reader knows it. Whoever made the text.
    #[error("line {line}: expected {expected}, found {found}")]
    Syntax {
        /// Line, from 1.
        line: u32,
        /// What could stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// An instruction or directive that is not emulated; it would be refused by no GPU. A limit of this crate.
    #[error("line {line}: {what} is not emulated: {reason}")]
    NotEmulated {
        /// Line, from 1.
        line: u32,
        /// The instruction.
        what: String,
        /// Which part of it.
        reason: String,
    },
    /// The module contradicts itself: an unknown name, a register of another width. Whoever made the text.
    #[error("line {line}: {what}")]
    Invalid {
        /// Line, from 1.
        line: u32,
        /// What is wrong.
        what: String,
    },
    /// A launch that a driver would refuse. The caller.
    #[error("launch of {kernel}: {what}")]
    Launch {
        /// Entry.
        kernel: String,
        /// What is wrong.
        what: String,
    },
    /// Device memory used outside of its allocations by the host. The caller.
    #[error("device memory at {address:#x}: {what}")]
    Memory {
        /// Address.
        address: u64,
        /// What is wrong.
        what: String,
    },
    /// A module has no such entry, or no such barrier to take away. The caller.
    #[error("{0}")]
    Unknown(String),
    /// A kernel did what it must not do. Whoever wrote the kernel.
    #[error("{0}")]
    Fault(Box<Fault>),
}

/// What a kernel did wrong, and where.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Class of what was wrong.
    pub kind: FaultKind,
    /// Entry.
    pub kernel: String,
    /// Line of the instruction in the PTX text, from 1.
    pub line: u32,
    /// The instruction as written.
    pub instruction: String,
    /// Block, as `%ctaid`.
    pub block: [u32; 3],
    /// Thread, as `%tid`; the first of those that are wrong.
    pub thread: [u32; 3],
    /// Address, in the space that the message names.
    pub address: Option<u64>,
    /// What was wrong.
    pub what: String,
}

/// Class of a [`Fault`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FaultKind {
    /// An access outside of every variable and allocation of its space.
    OutOfBounds,
    /// An address that is no multiple of the size of the access.
    Misaligned,
    /// Bytes were read that nothing has written.
    NeverWritten,
    /// Bytes were used while an asynchronous copy to them was not waited for.
    PendingCopy,
    /// Registers were used while an asynchronous product that sums in them was not waited for.
    PendingProduct,
    /// A product of four warps used what another instruction accessed, with no fence between.
    MissingFence,
    /// A barrier reached by a part of a warp, or a product of four warps by some of them.
    DivergentBarrier,
    /// No warp can go on: a barrier waits for warps that do not come.
    Deadlock,
    /// A collective of a warp that not every lane named by its mask executes, or that reads a lane that does not.
    InactiveLane,
    /// Two accesses that no barrier orders, or two lanes that write different values to one place.
    Race,
    /// The limit of steps of a block was reached.
    StepLimit,
    /// `trap` or a failed assertion.
    Trap,
    /// An operand that the instruction does not allow, such as a branch index outside of its table.
    BadOperand,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind: _, kernel, line, instruction, block, thread, address, what } = self;
        let [bx, by, bz] = block;
        let [tx, ty, tz] = thread;
        write!(f, "{kernel}, line {line} `{instruction}`, block ({bx}, {by}, {bz}), ")?;
        write!(f, "thread ({tx}, {ty}, {tz})")?;
        if let Some(address) = address {
            write!(f, ", address {address:#x}")?;
        }
        write!(f, ": {what}")
    }
}
