//! Raw frames on disk, for formats that must see the whole clip before they write its first byte.
//!
//! The spool lives beside the target, because a temporary folder may be small or in memory. It is a part
//! that is never committed, so it disappears when it is dropped.

use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::error::Fault;
use crate::part_file::PartFile;

/// A sequence of frames of equal size that is being written.
#[derive(Debug)]
pub(crate) struct Spool {
    out: BufWriter<PartFile>,
    frame_bytes: u64,
    frames: u64,
}

impl Spool {
    /// An empty spool beside `target` for frames of `frame_bytes` bytes.
    pub(crate) fn create(target: &Path, frame_bytes: u64) -> Result<Self, Fault> {
        let out = BufWriter::with_capacity(1 << 16, PartFile::create(target)?);
        Ok(Self { out, frame_bytes, frames: 0 })
    }

    pub(crate) fn push(&mut self, rgb: &[u8]) -> Result<(), Fault> {
        self.out.write_all(rgb)?;
        self.frames += 1;
        Ok(())
    }

    /// Ends the writing.
    pub(crate) fn into_frames(self) -> Result<SpooledFrames, Fault> {
        let part = self.out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        Ok(SpooledFrames { part, frame_bytes: self.frame_bytes, frames: self.frames })
    }
}

/// A complete sequence of frames.
#[derive(Debug)]
pub(crate) struct SpooledFrames {
    part: PartFile,
    frame_bytes: u64,
    frames: u64,
}

impl SpooledFrames {
    /// Number of frames.
    pub(crate) fn len(&self) -> u64 {
        self.frames
    }

    /// Reads `out.len()` bytes of frame `index` from byte `offset` of the frame on.
    pub(crate) fn read(&mut self, index: u64, offset: u64, out: &mut [u8]) -> Result<(), Fault> {
        assert!(index < self.frames && offset + out.len() as u64 <= self.frame_bytes);
        self.part.seek(SeekFrom::Start(index * self.frame_bytes + offset))?;
        Ok(self.part.read_exact(out)?)
    }
}
