//! Streams access units into an MP4 file whose index comes first ("faststart").
//!
//! The index is known only after the last frame. So the samples are written from byte 0 and moved back
//! inside the file at the end. Invariant: memory is one frame and eight bytes per sample.

use std::io::{BufWriter, Seek, SeekFrom, Write};

use super::color::Matrix;
use super::encode::H264;
use super::moov::{Track, ftyp, moov};
use crate::error::Fault;
use crate::part_file::{PartFile, shift_right};
use crate::{Fps, Metadata};

/// Streams frames into an MP4.
pub(crate) struct Mp4Writer {
    out: BufWriter<PartFile>,
    encoder: H264,
    size: [u32; 2],
    fps: Fps,
    matrix: Matrix,
    metadata: Metadata,
    sample_bytes: Vec<u32>,
    keyframes: Vec<u32>,
}

impl Mp4Writer {
    pub(crate) fn new(
        part: PartFile,
        size: [u32; 2],
        fps: Fps,
        metadata: &Metadata,
    ) -> Result<Self, Fault> {
        let matrix = Matrix::for_size(size);
        Ok(Self {
            out: BufWriter::new(part),
            encoder: H264::new(size, fps, matrix)?,
            size,
            fps,
            matrix,
            metadata: metadata.clone(),
            sample_bytes: Vec::new(),
            keyframes: Vec::new(),
        })
    }

    pub(crate) fn push(&mut self, rgb: &[u8]) -> Result<(), Fault> {
        let unit = self.encoder.encode(rgb)?;
        self.out.write_all(&unit.bytes)?;
        self.sample_bytes.push(unit.bytes.len() as u32);
        if unit.is_keyframe {
            self.keyframes.push(self.sample_bytes.len() as u32);
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<u64, Fault> {
        let payload: u64 = self.sample_bytes.iter().map(|&bytes| u64::from(bytes)).sum();
        let track = Track {
            // The encoder pads odd sizes; 4:2:0 cannot crop to them.
            size: self.size.map(|dim| dim.next_multiple_of(2)),
            fps: self.fps,
            matrix: self.matrix,
            sps: self.encoder.sps(),
            pps: self.encoder.pps(),
            sample_bytes: &self.sample_bytes,
            keyframes: &self.keyframes,
            metadata: &self.metadata,
        };
        // The index is far below 2 GiB, so this decides before its length is known.
        let wide = payload > 1 << 31;
        let mdat_header = if wide {
            let len = (payload + 16).to_be_bytes();
            [&[0, 0, 0, 1], &b"mdat"[..], &len].concat()
        } else {
            [&(payload as u32 + 8).to_be_bytes(), &b"mdat"[..]].concat()
        };
        let ftyp = ftyp();
        let moov_bytes = moov(&track, 0, wide).len();
        let first_sample = (ftyp.len() + moov_bytes + mdat_header.len()) as u64;
        let head = [ftyp, moov(&track, first_sample, wide), mdat_header].concat();

        let mut part = self.out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        shift_right(&mut part, payload, first_sample)?;
        part.seek(SeekFrom::Start(0))?;
        part.write_all(&head)?;
        Ok(part.commit()?)
    }
}
