//! Bounded reading of hostile files: every length is checked against what is left before it is believed.

use std::io::{Read, Seek, SeekFrom};

use crate::error::Fault;

type Result<T> = std::result::Result<T, Fault>;

/// Most chunks, boxes or blocks that are visited in one file.
const MAX_PARTS: u32 = 1 << 20;

/// A file that knows how many bytes are left.
#[derive(Debug)]
pub(crate) struct Source<R> {
    inner: R,
    pos: u64,
    end: u64,
    parts: u32,
}

impl<R: Read + Seek> Source<R> {
    /// `inner`, from its first byte.
    pub(crate) fn new(mut inner: R) -> Result<Self> {
        let end = inner.seek(SeekFrom::End(0))?;
        inner.seek(SeekFrom::Start(0))?;
        Ok(Self { inner, pos: 0, end, parts: 0 })
    }

    /// Offset of the next byte.
    pub(crate) fn pos(&self) -> u64 {
        self.pos
    }

    /// Length of the file.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Reads `N` bytes of `what`.
    pub(crate) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        self.check(N as u64, what)?;
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes)?;
        self.pos += N as u64;
        Ok(bytes)
    }

    /// Reads `len` bytes of `what`, at most `limit`.
    pub(crate) fn bytes(&mut self, len: u64, limit: usize, what: &str) -> Result<Vec<u8>> {
        self.check(len, what)?;
        if len > limit as u64 {
            return Err(Fault::Malformed(format!(
                "{what} is {len} bytes long, the limit is {limit}"
            )));
        }
        let mut bytes = vec![0; len as usize];
        self.inner.read_exact(&mut bytes)?;
        self.pos += len;
        Ok(bytes)
    }

    /// Passes over `len` bytes of `what`.
    pub(crate) fn skip(&mut self, len: u64, what: &str) -> Result<()> {
        self.check(len, what)?;
        self.pos += len;
        self.inner.seek(SeekFrom::Start(self.pos))?;
        Ok(())
    }

    /// Counts a chunk, box or block, so that a file of many empty ones cannot keep the reader busy.
    pub(crate) fn count_part(&mut self) -> Result<()> {
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return Err(Fault::Malformed(format!("has more than {MAX_PARTS} parts")));
        }
        Ok(())
    }

    fn check(&self, len: u64, what: &str) -> Result<()> {
        let left = self.end - self.pos;
        if len > left {
            return Err(Fault::Malformed(format!(
                "truncated: {what} at byte {} needs {len} bytes, {left} are left",
                self.pos
            )));
        }
        Ok(())
    }
}
