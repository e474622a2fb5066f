//! Bytes on their way to and from the GPU, through two pinned buffers.
//!
//! A copy from ordinary memory would stop the stream while the driver pins pages. One buffer is filled while the
//! other is copied.

use std::ptr::NonNull;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::failed;
use crate::error::Error;

/// Bytes of each buffer: enough that a copy runs at the speed of the bus.
const BUFFER_BYTES: usize = 16 << 20;

/// One pinned buffer.
#[derive(Debug)]
struct Buffer {
    start: NonNull<u8>,
    /// Reached when the last copy from the buffer is done.
    is_free: sys::CUevent,
}

/// Two pinned buffers of one context, used in turn.
#[derive(Debug)]
pub(super) struct Staging {
    buffers: [Buffer; 2],
    next: usize,
}

impl Buffer {
    /// A buffer of the current context.
    fn new() -> Result<Buffer, Error> {
        // SAFETY: the memory is only written and read as bytes.
        let start = unsafe { result::malloc_host(BUFFER_BYTES, 0) };
        let start = start.map_err(failed(format!("pin {BUFFER_BYTES} bytes of memory")))?;
        let Some(start) = NonNull::new(start.cast()) else {
            return Err(Error::Misuse("the driver pinned no memory".into()));
        };
        match result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING) {
            Ok(is_free) => Ok(Buffer { start, is_free }),
            Err(error) => {
                // SAFETY: it was allocated above, and nothing uses it.
                let _ = unsafe { result::free_host(start.as_ptr().cast()) };
                Err(failed("make an event")(error))
            }
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: both were made by `new`; the device waits for its stream before it drops them. Failures cannot
        // be told any more.
        unsafe {
            let _ = result::event::destroy(self.is_free);
            let _ = result::free_host(self.start.as_ptr().cast());
        }
    }
}

impl Staging {
    /// Buffers of the current context, which must be current when they are dropped.
    pub(super) fn new() -> Result<Staging, Error> {
        Ok(Staging { buffers: [Buffer::new()?, Buffer::new()?], next: 0 })
    }

    /// Copies `bytes` to `address` in the order of `stream`. They are not read any more when it returns.
    ///
    /// # Safety
    /// The range is allocated; the stream is of the current context, which is the one of the buffers.
    pub(super) unsafe fn upload(
        &mut self,
        stream: sys::CUstream,
        address: u64,
        bytes: &[u8],
    ) -> Result<(), DriverError> {
        for (index, part) in bytes.chunks(BUFFER_BYTES).enumerate() {
            let buffer = &self.buffers[self.next];
            self.next = 1 - self.next;
            let start = buffer.start.as_ptr();
            let to = address + (index * BUFFER_BYTES) as u64;
            // SAFETY: the buffer is as long as a part, and is not used by the GPU after its event; nobody else has
            // a reference to it. The caller promises the rest.
            unsafe {
                result::event::synchronize(buffer.is_free)?;
                start.copy_from_nonoverlapping(part.as_ptr(), part.len());
                let from = start.cast_const().cast();
                sys::cuMemcpyHtoDAsync_v2(to, from, part.len(), stream).result()?;
                result::event::record(buffer.is_free, stream)?;
            }
        }
        Ok(())
    }

    /// Waits for the stream and copies what is at `address` to `bytes`.
    ///
    /// # Safety
    /// As [`Staging::upload`].
    pub(super) unsafe fn download(
        &mut self,
        stream: sys::CUstream,
        address: u64,
        bytes: &mut [u8],
    ) -> Result<(), DriverError> {
        for (index, part) in bytes.chunks_mut(BUFFER_BYTES).enumerate() {
            let start = self.buffers[0].start.as_ptr();
            let from = address + (index * BUFFER_BYTES) as u64;
            // SAFETY: earlier copies from the buffer come before this one in the stream, which is waited for before
            // the buffer is read; it is as long as a part. The caller promises the rest.
            unsafe {
                sys::cuMemcpyDtoHAsync_v2(start.cast(), from, part.len(), stream).result()?;
                result::stream::synchronize(stream)?;
                start.copy_to_nonoverlapping(part.as_mut_ptr(), part.len());
            }
        }
        Ok(())
    }
}
