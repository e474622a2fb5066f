//! [`MediaWriter`]: frames in, one file or folder out, in any [`Format`].
//!
//! Invariant: until [`MediaWriter::finish`] returns, nothing is at the output path that was not there
//! before; dropping the writer earlier removes what was written.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Fault;
use crate::image::folder::FolderWriter;
use crate::image::gif::GifWriter;
use crate::image::sheet::SheetWriter;
use crate::image::webp::WebPWriter;
use crate::mp4::write::Mp4Writer;
use crate::part_file::{PartFile, PartFolder, check_free};
use crate::spool::Spool;
use crate::{Clip, Error, Format, Fps, Metadata, Result, image};

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The output path.
    pub path: PathBuf,
    /// Frames that were pushed.
    pub frames: u64,
    /// Bytes of the file, or of all files in the folder.
    pub bytes: u64,
}

/// Writes a video frame by frame, so that a long one is never in memory as a whole.
pub struct MediaWriter {
    path: PathBuf,
    format: Format,
    size: [u32; 2],
    frames: u64,
    kind: Kind,
}

enum Kind {
    Mp4(Box<Mp4Writer>),
    Png { part: PartFile, metadata: Metadata, rgb: Vec<u8> },
    Gif(Box<GifWriter>),
    WebP(Box<WebPWriter>),
    Folder(Box<FolderWriter>),
    Sheet(Box<SheetWriter>),
}

impl MediaWriter {
    /// Starts writing `path` as `format`, with frames of `size`, `[width, height]` in pixels.
    ///
    /// MP4 shows odd sizes one pixel larger, with the last column or row repeated: its chroma has half the
    /// resolution, so it has no odd sizes. `fps` is not used by PNG and contact sheets.
    ///
    /// # Errors
    /// [`Error::FrameSize`], [`Error::Occupied`], [`Error::Io`], or [`Error::Encode`] from the encoder.
    pub fn create(
        path: &Path,
        format: Format,
        size: [u32; 2],
        fps: Fps,
        metadata: &Metadata,
    ) -> Result<Self> {
        format.check_size(path, size[0], size[1])?;
        check_free(path, format)?;
        let kind =
            Kind::create(path, format, size, fps, metadata).map_err(|fault| fault.writing(path))?;
        Ok(Self { path: path.to_owned(), format, size, frames: 0, kind })
    }

    /// Adds the next frame, RGB `[height, width, 3]`.
    ///
    /// # Errors
    /// [`Error::FrameLength`] for a frame of another size, [`Error::FrameCount`] for a second frame in a
    /// PNG, [`Error::Io`], [`Error::Encode`]. After an error the writer should be dropped.
    pub fn push(&mut self, rgb: &[u8]) -> Result<()> {
        let [width, height] = self.size;
        let expected = u64::from(width) * u64::from(height) * 3;
        if rgb.len() as u64 != expected {
            let shape = format!("one frame of {height}x{width}x3");
            return Err(Error::FrameLength { expected, found: rgb.len(), shape });
        }
        if self.format == Format::Png && self.frames == 1 {
            let advice = "choose .mp4, .gif, .webp, .sheet.png or a path ending in /";
            return Err(self.frame_count("one frame", 2, advice));
        }
        self.kind.push(rgb).map_err(|fault| fault.writing(&self.path))?;
        self.frames += 1;
        Ok(())
    }

    /// Completes the output and gives it its name.
    ///
    /// # Errors
    /// [`Error::FrameCount`] when no frame was pushed, [`Error::Io`], [`Error::Encode`].
    pub fn finish(self) -> Result<Written> {
        self.finish_unless(&AtomicBool::new(false))
    }

    /// [`MediaWriter::finish`], which gives up once `stop` is true: formats that must see the whole
    /// clip do most of their work here.
    ///
    /// # Errors
    /// As for [`MediaWriter::finish`], and [`Error::Interrupted`], after which nothing is left.
    pub fn finish_unless(self, stop: &AtomicBool) -> Result<Written> {
        if self.frames == 0 {
            return Err(self.frame_count("at least one frame", 0, "push a frame"));
        }
        let bytes = self.kind.finish(self.size, stop).map_err(|fault| fault.writing(&self.path))?;
        Ok(Written { path: self.path, frames: self.frames, bytes })
    }

    fn frame_count(&self, expected: &'static str, found: u64, advice: &'static str) -> Error {
        Error::FrameCount {
            path: self.path.clone(),
            format: self.format.name(),
            expected,
            found,
            advice,
        }
    }
}

impl fmt::Debug for MediaWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MediaWriter")
            .field("path", &self.path)
            .field("format", &self.format)
            .field("size", &self.size)
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl Kind {
    fn create(
        path: &Path,
        format: Format,
        size: [u32; 2],
        fps: Fps,
        metadata: &Metadata,
    ) -> std::result::Result<Self, Fault> {
        let frame_bytes = u64::from(size[0]) * u64::from(size[1]) * 3;
        if format == Format::Folder {
            let part = PartFolder::create(path)?;
            return Ok(Self::Folder(Box::new(FolderWriter::new(part, size, metadata))));
        }
        let part = PartFile::create(path)?;
        Ok(match format {
            Format::Mp4 => Self::Mp4(Box::new(Mp4Writer::new(part, size, fps, metadata)?)),
            Format::Png => Self::Png { part, metadata: metadata.clone(), rgb: Vec::new() },
            Format::Gif => {
                let spool = Spool::create(path, frame_bytes)?;
                Self::Gif(Box::new(GifWriter::new(part, spool, size, fps, metadata)))
            }
            Format::WebP => Self::WebP(Box::new(WebPWriter::new(part, size, fps, metadata)?)),
            Format::ContactSheet => {
                let spool = Spool::create(path, frame_bytes)?;
                Self::Sheet(Box::new(SheetWriter::new(part, spool, size, metadata)))
            }
            Format::Folder => unreachable!("handled above"),
        })
    }

    fn push(&mut self, frame: &[u8]) -> std::result::Result<(), Fault> {
        match self {
            Self::Mp4(writer) => writer.push(frame),
            Self::Png { rgb, .. } => {
                rgb.extend(frame);
                Ok(())
            }
            Self::Gif(writer) => writer.push(frame),
            Self::WebP(writer) => writer.push(frame),
            Self::Folder(writer) => writer.push(frame),
            Self::Sheet(writer) => writer.push(frame),
        }
    }

    fn finish(self, size: [u32; 2], stop: &AtomicBool) -> std::result::Result<u64, Fault> {
        if stop.load(Ordering::Relaxed) {
            return Err(Fault::Interrupted);
        }
        match self {
            Self::Mp4(writer) => writer.finish(),
            Self::Png { part, metadata, rgb } => {
                let mut out = std::io::BufWriter::new(part);
                image::png::write(&mut out, size, &rgb, &metadata)?;
                let part = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
                Ok(part.commit()?)
            }
            Self::Gif(writer) => writer.finish(stop),
            Self::WebP(writer) => writer.finish(),
            Self::Folder(writer) => writer.finish(),
            Self::Sheet(writer) => writer.finish(),
        }
    }
}

/// Writes a clip that is in memory; [`MediaWriter`] does the same frame by frame.
///
/// # Errors
/// As for [`MediaWriter`].
pub fn write(path: &Path, clip: &Clip<'_>, metadata: &Metadata, format: Format) -> Result<Written> {
    // A dimension past 32 bits is past every format's limit too.
    let dim = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let size = [dim(clip.width()), dim(clip.height())];
    let mut writer = MediaWriter::create(path, format, size, clip.fps(), metadata)?;
    for index in 0..clip.frames() {
        writer.push(clip.frame(index))?;
    }
    writer.finish()
}
