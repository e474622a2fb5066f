//! Animated GIF: one palette for the clip, endless loop, metadata in a comment extension.
//!
//! Frames are spooled until the palette is known. A frame stores only the rectangle that differs from the
//! frame before, with unchanged pixels in it transparent. Clips of at most 255 colors come back exactly.
//! Format: Graphics Interchange Format, Version 89a.

use std::io::{BufWriter, Read, Seek};
use std::sync::atomic::{AtomicBool, Ordering};

use ::gif::{DisposalMethod, Encoder, Extension, Frame, Repeat};

use super::palette::{Histogram, MAX_COLORS};
use crate::error::Fault;
use crate::metadata::MAX_JSON_BYTES;
use crate::part_file::PartFile;
use crate::source::Source;
use crate::spool::Spool;
use crate::{Fps, Metadata};

/// What our comment starts with, before the JSON.
const COMMENT: &[u8] = b"kinograph:";

/// The palette index that leaves the pixel of the frame before.
const UNCHANGED: u8 = MAX_COLORS as u8;

/// Shortest frame in hundredths of a second: viewers slow anything faster down to 10 frames per second.
const MIN_DELAY: u64 = 2;

/// Collects frames and encodes them at the end.
#[derive(Debug)]
pub(crate) struct GifWriter {
    part: PartFile,
    spool: Spool,
    histogram: Histogram,
    size: [u16; 2],
    fps: Fps,
    comment: Vec<u8>,
}

impl GifWriter {
    /// `size` must have passed [`crate::Format::check_size`].
    pub(crate) fn new(
        part: PartFile,
        spool: Spool,
        size: [u32; 2],
        fps: Fps,
        metadata: &Metadata,
    ) -> Self {
        let comment = [COMMENT, metadata.to_ascii_json().as_bytes()].concat();
        let size = size.map(|dim| u16::try_from(dim).expect("the size was checked"));
        Self { part, spool, histogram: Histogram::new(), size, fps, comment }
    }

    pub(crate) fn push(&mut self, rgb: &[u8]) -> Result<(), Fault> {
        self.histogram.add(rgb);
        self.spool.push(rgb)
    }

    /// Encodes the clip, unless `stop` is true before its last frame.
    pub(crate) fn finish(self, stop: &AtomicBool) -> Result<u64, Fault> {
        let [width, height] = self.size;
        let palette = self.histogram.palette();
        let mut colors = palette.bytes();
        // The color of `UNCHANGED` is never shown.
        colors.resize(256 * 3, 0);
        let mut encoder = Encoder::new(BufWriter::new(self.part), width, height, &colors)?;
        encoder.set_repeat(Repeat::Infinite)?;
        encoder.write_raw_extension(Extension::Comment.into(), &[&self.comment])?;

        let mut frames = self.spool.into_frames()?;
        let mut mapper = palette.mapper(width.into());
        let mut rgb = vec![0; usize::from(width) * usize::from(height) * 3];
        let mut indices = vec![0; rgb.len() / 3];
        let mut before = vec![UNCHANGED; indices.len()];
        for index in 0..frames.len() {
            if stop.load(Ordering::Relaxed) {
                return Err(Fault::Interrupted);
            }
            frames.read(index, 0, &mut rgb)?;
            mapper.map(&rgb, &mut indices);
            let mut frame = changed_part(&before, &indices, usize::from(width));
            frame.delay = delay(self.fps, index)?;
            encoder.write_frame(&frame)?;
            std::mem::swap(&mut before, &mut indices);
        }
        let out = encoder.into_inner()?;
        Ok(out.into_inner().map_err(std::io::IntoInnerError::into_error)?.commit()?)
    }
}

/// How long frame `index` is shown, in hundredths of a second. Above 50 frames per second it is
/// [`MIN_DELAY`], so the clip plays slower than asked; GIF has nothing shorter that viewers respect.
fn delay(fps: Fps, index: u64) -> Result<u16, Fault> {
    u16::try_from(fps.duration(index, 100).max(MIN_DELAY))
        .map_err(|_| Fault::Encode("a GIF frame cannot last longer than 655 s".into()))
}

/// The smallest rectangle of `after` that holds all differences; one pixel when there is none.
fn changed_part(before: &[u8], after: &[u8], width: usize) -> Frame<'static> {
    let (mut left, mut right, mut top, mut bottom) = (width, 0, after.len() / width, 0);
    for (y, (old, new)) in before.chunks_exact(width).zip(after.chunks_exact(width)).enumerate() {
        let Some(first) = (0..width).find(|&x| old[x] != new[x]) else { continue };
        let last = (0..width).rfind(|&x| old[x] != new[x]).unwrap_or(first);
        (left, right) = (left.min(first), right.max(last + 1));
        (top, bottom) = (top.min(y), y + 1);
    }
    if right == 0 {
        (left, right, top, bottom) = (0, 1, 0, 1);
    }
    let mut buffer = Vec::with_capacity((right - left) * (bottom - top));
    for row in top..bottom {
        let range = row * width + left..row * width + right;
        buffer.extend(
            before[range.clone()]
                .iter()
                .zip(&after[range])
                .map(|(&old, &new)| if old == new { UNCHANGED } else { new }),
        );
    }
    let dim = |value: usize| u16::try_from(value).expect("a part is not larger than the frame");
    Frame {
        left: dim(left),
        top: dim(top),
        width: dim(right - left),
        height: dim(bottom - top),
        transparent: Some(UNCHANGED),
        dispose: DisposalMethod::Keep,
        buffer: buffer.into(),
        ..Frame::default()
    }
}

/// Reads our comment, which comes before the first frame.
pub(crate) fn read_metadata(input: impl Read + Seek) -> Result<Metadata, Fault> {
    let mut source = Source::new(input)?;
    let header: [u8; 13] = source.array("GIF header")?;
    if !matches!(&header[..6], b"GIF89a" | b"GIF87a") {
        return Err(Fault::Malformed("not a GIF: expected GIF89a".into()));
    }
    let flags = header[10];
    if flags & 0x80 != 0 {
        source.skip(3 << ((flags & 7) + 1), "global palette")?;
    }
    loop {
        source.count_part()?;
        match source.array("block type")? {
            [0x21] => {
                let [label] = source.array("extension label")?;
                if label == Extension::Comment as u8 {
                    let comment = sub_blocks(&mut source)?;
                    if let Some(json) = comment.strip_prefix(COMMENT) {
                        return Metadata::from_json(json);
                    }
                } else {
                    sub_blocks(&mut source)?;
                }
            }
            // The first image, or the end of the file.
            [0x2c | 0x3b] => return Ok(Metadata::new()),
            [other] => {
                return Err(Fault::Malformed(format!(
                    "block at byte {} has type {other:#04x}, expected 0x21, 0x2c or 0x3b",
                    source.pos() - 1
                )));
            }
        }
    }
}

/// The bytes of a chain of sub-blocks.
fn sub_blocks(source: &mut Source<impl Read + Seek>) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    loop {
        source.count_part()?;
        let [len] = source.array("sub-block length")?;
        if len == 0 {
            return Ok(bytes);
        }
        if bytes.len() > MAX_JSON_BYTES + COMMENT.len() {
            return Err(Fault::Malformed(format!(
                "an extension is longer than {MAX_JSON_BYTES} bytes"
            )));
        }
        bytes.extend(source.bytes(len.into(), 255, "sub-block")?);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_stores_only_what_changed() {
        let before = [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
        let after = [1, 1, 1, 1, 1, 2, 1, 3, 1, 1, 1, 1];
        let frame = changed_part(&before, &after, 4);
        assert_eq!([frame.left, frame.top, frame.width, frame.height], [1, 1, 3, 1]);
        assert_eq!(*frame.buffer, [2, UNCHANGED, 3]);
        let same = changed_part(&before, &before, 4);
        assert_eq!((same.width, same.height, &*same.buffer), (1, 1, &[UNCHANGED][..]));
    }

    #[test]
    fn delays_never_fall_below_what_viewers_respect() {
        assert_eq!(delay(Fps::new(120, 1).unwrap(), 7).unwrap(), 2);
        assert_eq!(delay(Fps::new(8, 1).unwrap(), 0).unwrap(), 13);
        assert_eq!(delay(Fps::new(8, 1).unwrap(), 1).unwrap(), 12);
        assert!(delay(Fps::new(1, 1000).unwrap(), 0).is_err());
    }
}
