//! Aligned memory for arenas and packed weights.
//!
//! Invariant: the range is allocated once, zeroed, never moves, and is freed on drop. Zeroed pages
//! come lazily from the system, so memory counts as used only where it is touched. Large ranges ask
//! for huge pages: kernels size their blocks for the second-level cache, and small pages scattered
//! over physical memory compete for its sets.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use compiler::ALIGN_BYTES;
use memmap2::MmapMut;

use crate::Error;

/// Size from which a range is a mapping of its own: a huge page.
const MAPPED_BYTES: usize = 2 << 20;

/// A zeroed range of bytes, aligned to [`ALIGN_BYTES`].
#[derive(Debug)]
pub struct Arena {
    start: NonNull<u8>,
    bytes: usize,
    /// What owns the range; without it, the heap does.
    mapping: Option<MmapMut>,
}

// SAFETY: the range is owned by the arena alone; access through `&self` is read-only and access
// through raw pointers is ordered by whoever holds `&mut Session`.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Allocates `bytes` for `what`, which names the purpose in an error.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(bytes: usize, what: &'static str) -> Result<Arena, Error> {
        let out_of_memory = || Error::OutOfMemory { what, bytes };
        if bytes == 0 {
            return Ok(Arena { start: NonNull::dangling(), bytes, mapping: None });
        }
        if bytes >= MAPPED_BYTES {
            let mut mapping = MmapMut::map_anon(bytes).map_err(|_| out_of_memory())?;
            // Where the system has no huge pages, small ones serve.
            #[cfg(target_os = "linux")]
            let _ = mapping.advise(memmap2::Advice::HugePage);
            let start = NonNull::new(mapping.as_mut_ptr()).ok_or_else(out_of_memory)?;
            return Ok(Arena { start, bytes, mapping: Some(mapping) });
        }
        let layout = Layout::from_size_align(bytes, ALIGN_BYTES).map_err(|_| out_of_memory())?;
        // SAFETY: the layout has a non-zero size.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).ok_or_else(out_of_memory)?;
        Ok(Arena { start, bytes, mapping: None })
    }

    /// Bytes of the range.
    #[expect(clippy::len_without_is_empty, reason = "a size in bytes, not a collection")]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// First byte.
    pub fn ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes `offset..offset + bytes`.
    pub fn slice(&self, offset: usize, bytes: usize) -> &[u8] {
        assert!(offset + bytes <= self.bytes, "the plan was checked");
        // SAFETY: in range, initialized (zeroed at allocation), and no step runs while `&self`
        // of the owning session is borrowed.
        unsafe { std::slice::from_raw_parts(self.ptr().add(offset), bytes) }
    }

    /// Bytes `offset..offset + bytes`, for writing.
    pub fn slice_mut(&mut self, offset: usize, bytes: usize) -> &mut [u8] {
        assert!(offset + bytes <= self.bytes, "the plan was checked");
        // SAFETY: in range, initialized, and borrowed exclusively through `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.ptr().add(offset), bytes) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.bytes > 0 && self.mapping.is_none() {
            let layout = Layout::from_size_align(self.bytes, ALIGN_BYTES)
                .expect("the same layout was made in `new`");
            // SAFETY: allocated in `new` with this layout, freed once.
            unsafe { dealloc(self.ptr(), layout) }
        }
    }
}
