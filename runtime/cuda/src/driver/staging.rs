//! Bytes on their way to and from the GPU, through two pinned buffers.
//!
//! A copy from ordinary memory would stop the stream while the driver pins pages. Uploads fill one buffer after
//! the other, small ones side by side, and only wait where a buffer is full and the other is still copied: those
//! of a whole denoising run but for its latents fit into one.

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
    /// Reached when the copies from the buffer are done, since it was last full.
    is_free: sys::CUevent,
}

/// Bytes that uploads are aligned to in a buffer.
const ALIGN_BYTES: usize = 256;

/// Two pinned buffers of one context, used in turn.
#[derive(Debug)]
pub(super) struct Staging {
    buffers: [Buffer; 2],
    /// The buffer that is being filled.
    current: usize,
    /// Bytes of it that are filled, a multiple of [`ALIGN_BYTES`].
    n_filled: usize,
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
        Ok(Staging { buffers: [Buffer::new()?, Buffer::new()?], current: 0, n_filled: 0 })
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
        let (mut to, mut rest) = (address, bytes);
        while !rest.is_empty() {
            if self.n_filled == BUFFER_BYTES {
                // SAFETY: the caller promises what is needed.
                unsafe { self.turn(stream)? };
            }
            let (part, after) = rest.split_at(rest.len().min(BUFFER_BYTES - self.n_filled));
            // SAFETY: the part ends inside of the buffer. The GPU is done with these bytes: it was when the buffer's
            // turn came, and they were not filled since; nobody else has a reference to them. The caller promises
            // the rest.
            unsafe {
                let start = self.buffers[self.current].start.as_ptr().add(self.n_filled);
                start.copy_from_nonoverlapping(part.as_ptr(), part.len());
                let from = start.cast_const().cast();
                sys::cuMemcpyHtoDAsync_v2(to, from, part.len(), stream).result()?;
            }
            self.n_filled += part.len().next_multiple_of(ALIGN_BYTES);
            (to, rest) = (to + part.len() as u64, after);
        }
        Ok(())
    }

    /// Goes on to the other buffer, when the GPU is done with it.
    ///
    /// # Safety
    /// The stream is of the current context, which is the one of the buffers.
    unsafe fn turn(&mut self, stream: sys::CUstream) -> Result<(), DriverError> {
        let (full, next) = (self.current, 1 - self.current);
        // SAFETY: the caller promises it. An event that was never recorded counts as reached.
        unsafe {
            result::event::record(self.buffers[full].is_free, stream)?;
            result::event::synchronize(self.buffers[next].is_free)?;
        }
        (self.current, self.n_filled) = (next, 0);
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
            // the buffer is read, and before an upload can fill it; it is as long as a part. The caller promises
            // the rest.
            unsafe {
                sys::cuMemcpyDtoHAsync_v2(start.cast(), from, part.len(), stream).result()?;
                result::stream::synchronize(stream)?;
                start.copy_to_nonoverlapping(part.as_mut_ptr(), part.len());
            }
        }
        Ok(())
    }
}
