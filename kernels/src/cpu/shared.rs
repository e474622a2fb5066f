//! A [`Launch`] as seen by every thread of a run.

use crate::kernel::Launch;
use crate::program::SlotPtr;

use crate::body::{Leaf, Source};

/// Bytes to which each worker's part of the scratch is aligned.
pub(crate) const ALIGN: usize = 64;

/// Pointers of a launch, for use inside items of the pool. Items of one run write disjoint parts
/// of the result, and scratch only in their worker's part.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    launch: &'a Launch<'a>,
}

// SAFETY: the pointers are only dereferenced inside kernels, whose items write disjoint elements
// and read what nothing writes during the run, as `KernelDef::run` demands of its caller.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    /// The pointers of `launch`.
    pub(crate) fn new(launch: &'a Launch<'a>) -> Shared<'a> {
        Shared { launch }
    }

    /// Base of operand `operand`.
    #[inline(always)]
    pub(crate) fn operand(self, operand: usize) -> *const u8 {
        self.launch.operands[operand]
    }

    /// Base of the result.
    #[inline(always)]
    pub(crate) fn result(self) -> *mut u8 {
        self.launch.result
    }

    /// Start of the scratch.
    #[inline(always)]
    pub(crate) fn scratch(self) -> *mut u8 {
        self.launch.scratch
    }

    /// Element `position` of a leaf, as a row with elements `stride` apart. Frontier rows are at
    /// `frontier`, which is the row itself.
    ///
    /// # Safety
    /// The element lies within the leaf's buffer.
    #[inline(always)]
    pub(crate) unsafe fn slot(
        self,
        leaf: &Leaf,
        position: usize,
        stride: usize,
        frontier: *const f32,
    ) -> SlotPtr {
        let base = match &leaf.source {
            Source::Operand(operand) => self.operand(*operand),
            Source::Constant(bytes) => bytes.as_ptr(),
            Source::Frontier(_) => {
                return SlotPtr { ptr: frontier.cast(), stride: stride as isize };
            }
        };
        // SAFETY: the caller promises that the element exists.
        let ptr = unsafe { base.add(position * leaf.layout.dtype.size()) };
        SlotPtr { ptr, stride: stride as isize }
    }
}

/// `bytes` rounded up to [`ALIGN`].
pub(crate) fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN)
}
