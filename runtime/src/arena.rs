//! Aligned memory for arenas and packed weights.
//!
//! Invariant: the range is allocated once, zeroed, never moves, and is freed on drop. Zeroed pages
//! come lazily from the system, so memory counts as used only where it is touched. That holds for
//! allocations of common alignment only: a larger one would be zeroed by writing to it, so the range
//! is aligned within an allocation that is a little too long.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use compiler::ALIGN_BYTES;

use crate::Error;

/// A zeroed range of bytes, aligned to [`ALIGN_BYTES`].
#[derive(Debug)]
pub(crate) struct Arena {
    allocation: NonNull<u8>,
    start: NonNull<u8>,
    bytes: usize,
}

/// The allocation that holds `bytes` aligned bytes.
fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.checked_add(ALIGN_BYTES)?, 1).ok()
}

// SAFETY: the range is owned by the arena alone; access through `&self` is read-only and access
// through raw pointers is ordered by whoever holds `&mut Session`.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Allocates `bytes` for `what`, which names the purpose in an error.
    pub(crate) fn new(bytes: usize, what: &'static str) -> Result<Arena, Error> {
        let out_of_memory = || Error::OutOfMemory { what, bytes };
        if bytes == 0 {
            let start = NonNull::dangling();
            return Ok(Arena { allocation: start, start, bytes });
        }
        let layout = layout(bytes).ok_or_else(out_of_memory)?;
        // SAFETY: the layout has a non-zero size.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(out_of_memory)?;
        let padding = allocation.as_ptr().align_offset(ALIGN_BYTES);
        assert!(padding < ALIGN_BYTES, "any byte address can be aligned");
        // SAFETY: less than `ALIGN_BYTES` further, where `bytes` are left of the allocation.
        let start = unsafe { allocation.add(padding) };
        Ok(Arena { allocation, start, bytes })
    }

    /// Bytes of the range.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// First byte.
    pub(crate) fn ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes `offset..offset + bytes`.
    pub(crate) fn slice(&self, offset: usize, bytes: usize) -> &[u8] {
        assert!(offset + bytes <= self.bytes, "the plan was checked");
        // SAFETY: in range, initialized (zeroed at allocation), and no step runs while `&self`
        // of the owning session is borrowed.
        unsafe { std::slice::from_raw_parts(self.ptr().add(offset), bytes) }
    }

    /// Bytes `offset..offset + bytes`, for writing.
    pub(crate) fn slice_mut(&mut self, offset: usize, bytes: usize) -> &mut [u8] {
        assert!(offset + bytes <= self.bytes, "the plan was checked");
        // SAFETY: in range, initialized, and borrowed exclusively through `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.ptr().add(offset), bytes) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let layout = layout(self.bytes).expect("the same layout was made in `new`");
            // SAFETY: allocated in `new` with this layout, freed once.
            unsafe { dealloc(self.allocation.as_ptr(), layout) }
        }
    }
}
