//! Frames out of files: a PNG, a folder of PNGs, or anything that an installed `ffmpeg` decodes.
//!
//! Frames come one after the other and only those that are asked for are kept, so memory does not
//! grow with a video's length. `ffmpeg` is told to open files only, no addresses.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::error::Fault;
use crate::fit::{Fit, fit};
use crate::resample::{Filter, Scaling};
use crate::{Error, Result, image, ppm};

/// Most frames of one video.
const MAX_FRAMES: usize = 100_000;

/// Most bytes of `ffmpeg`'s messages that are kept.
const MAX_MESSAGE_BYTES: u64 = 4096;

/// A picture as it was stored: 8-bit RGB `[height, width, 3]`.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) rgb: Vec<u8>,
}

/// A picture with the opacity of its pixels.
#[derive(Clone, Debug)]
pub struct RgbaPicture {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 8-bit red, green, blue and opacity, `[height, width, 4]`; colors are not multiplied by it.
    pub rgba: Vec<u8>,
}

/// Reads any PNG with its opacity.
///
/// # Errors
/// [`Error::Io`], [`Error::Malformed`].
pub fn read_rgba_png(path: &Path) -> Result<RgbaPicture> {
    let read = || image::png::read_rgba(BufReader::new(File::open(path)?));
    read().map_err(|fault: Fault| fault.reading(path))
}

/// An image or a video to read frames from.
#[derive(Debug)]
pub struct FrameSource {
    path: PathBuf,
    kind: Kind,
    n_frames: usize,
    fit: Fit,
}

#[derive(Debug)]
enum Kind {
    Png,
    /// The files in order.
    Folder(Vec<PathBuf>),
    /// Decoded by `ffmpeg`.
    Video,
}

impl FrameSource {
    /// Opens `path` and counts its frames, which decodes a video once, unless `stop` becomes true.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`], [`Error::NoDecoder`] where `ffmpeg` is needed and missing,
    /// [`Error::Interrupted`].
    pub fn open(path: &Path, stop: &AtomicBool) -> Result<FrameSource> {
        let mut source = FrameSource::open_counted(path, 0)?;
        if let Kind::Video = source.kind {
            Decoder::start(path)?.each::<Error>(path, stop, |_, _| {
                source.n_frames += 1;
                Ok(true)
            })?;
        }
        Ok(source)
    }

    /// As [`FrameSource::open`], but a video is believed to have `n_frames` and not decoded; frames that
    /// it has not are found out when they are read.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`].
    pub fn open_counted(path: &Path, n_frames: usize) -> Result<FrameSource> {
        let fault = |fault: Fault| fault.reading(path);
        let metadata = fs::metadata(path).map_err(|error| fault(Fault::Io(error)))?;
        let (kind, n_frames) = if metadata.is_dir() {
            let files = pngs(path).map_err(fault)?;
            let n_frames = files.len();
            (Kind::Folder(files), n_frames)
        } else if is_png(path).map_err(|error| fault(Fault::Io(error)))? {
            (Kind::Png, 1)
        } else {
            (Kind::Video, n_frames)
        };
        Ok(FrameSource { path: path.to_owned(), kind, n_frames, fit: Fit::Cover })
    }

    /// The same source with its frames brought to a size by `fit`.
    #[must_use]
    pub fn fitted(self, fit: Fit) -> FrameSource {
        FrameSource { fit, ..self }
    }

    /// Count of frames, at least 1 unless [`FrameSource::open_counted`] was told so.
    pub fn n_frames(&self) -> usize {
        self.n_frames
    }

    /// Calls `each` with the index and the pixels of every frame of `wanted`, which ascends: f32
    /// `[3, height, width]` in -1..1, scaled to cover `size` (height first) and cropped in the middle, as
    /// [`FrameSource::fitted`] says.
    /// An image is scaled as images are, a frame of a folder or video as those of videos.
    ///
    /// # Errors
    /// As [`FrameSource::open`], and what `each` returns.
    pub fn read<E: From<Error>>(
        &self,
        wanted: &[usize],
        size: [usize; 2],
        stop: &AtomicBool,
        mut each: impl FnMut(usize, Vec<f32>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        debug_assert!(wanted.is_sorted(), "frames are asked for in order of time");
        let scaling = match &self.kind {
            Kind::Png => Scaling::Image(Filter::Cubic),
            Kind::Video if self.n_frames == 1 => Scaling::Image(Filter::Cubic),
            Kind::Folder(_) | Kind::Video => Scaling::VideoFrame,
        };
        match &self.kind {
            Kind::Png | Kind::Folder(_) => {
                for &index in wanted {
                    if stop.load(Ordering::Relaxed) {
                        return Err(Fault::Interrupted.reading(&self.path).into());
                    }
                    let file = match &self.kind {
                        Kind::Folder(files) => &files[index],
                        Kind::Png | Kind::Video => &self.path,
                    };
                    let picture = read_png(file).map_err(|fault| fault.reading(file))?;
                    each(index, fit(&picture, size, scaling, self.fit))?;
                }
                Ok(())
            }
            Kind::Video => {
                let mut left = wanted;
                Decoder::start(&self.path)?.each::<E>(&self.path, stop, |index, picture| {
                    if left.first() == Some(&index) {
                        each(index, fit(&picture, size, scaling, self.fit))?;
                        left = &left[1..];
                    }
                    Ok(!left.is_empty())
                })?;
                match left.first() {
                    None => Ok(()),
                    Some(index) => {
                        let reason = format!("frame {index} is gone: the file has changed");
                        Err(Fault::Malformed(reason).reading(&self.path).into())
                    }
                }
            }
        }
    }
}

/// Whether a file begins as PNGs do.
fn is_png(path: &Path) -> std::io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(8).read_to_end(&mut start)?;
    Ok(start == image::png::SIGNATURE)
}

fn read_png(path: &Path) -> std::result::Result<Picture, Fault> {
    image::png::read(BufReader::new(File::open(path)?))
}

/// The PNGs of a folder, by the number at the end of their names.
fn pngs(folder: &Path) -> std::result::Result<Vec<PathBuf>, Fault> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_png = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
        if is_png && path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Fault::Malformed("a folder without a PNG: expected its frames".into()));
    }
    files.sort_by_cached_key(|path| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = stem.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = stem[name.len()..].parse::<u64>().unwrap_or(0);
        (name.to_owned(), number, stem)
    });
    Ok(files)
}

/// A running `ffmpeg` that writes every frame as a PPM.
struct Decoder {
    child: Child,
    frames: BufReader<ChildStdout>,
    message: JoinHandle<String>,
}

impl Decoder {
    fn start(path: &Path) -> Result<Decoder> {
        let mut file = std::ffi::OsString::from("file:");
        file.push(path);
        let mut command = Command::new("ffmpeg");
        command
            .args(["-nostdin", "-v", "error", "-protocol_whitelist", "file", "-i"])
            .arg(file)
            // The first stream of pictures, each frame once.
            .args(["-map", "0:v:0", "-vsync", "passthrough", "-pix_fmt", "rgb24"])
            .args(["-f", "image2pipe", "-c:v", "ppm", "-"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::NoDecoder { path: path.to_owned() },
            _ => Error::Io { path: path.to_owned(), action: "start ffmpeg for it", source },
        })?;
        let frames = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut errors = child.stderr.take().expect("it is piped");
        // Read aside, so that no message can block the frames.
        let message = thread::spawn(move || {
            let mut start = Vec::new();
            let _ = errors.by_ref().take(MAX_MESSAGE_BYTES).read_to_end(&mut start);
            let _ = std::io::copy(&mut errors, &mut std::io::sink());
            String::from_utf8_lossy(&start).into_owned()
        });
        Ok(Decoder { child, frames, message })
    }

    /// Calls `each` with every frame, while it returns true.
    fn each<E: From<Error>>(
        mut self,
        path: &Path,
        stop: &AtomicBool,
        mut each: impl FnMut(usize, Picture) -> std::result::Result<bool, E>,
    ) -> std::result::Result<(), E> {
        let ran = self.frames(path, stop, &mut each);
        if !matches!(ran, Ok(Some(_))) {
            // No more frames are wanted.
            let _ = self.child.kill();
        }
        let status = self.child.wait();
        let message = self.message.join().unwrap_or_default();
        if stop.load(Ordering::Relaxed) {
            // A Ctrl-C reaches ffmpeg too, and what it made of it does not matter.
            return Err(Fault::Interrupted.reading(path).into());
        }
        let Some(n_frames) = ran? else { return Ok(()) };
        let is_sound = n_frames > 0 && status.is_ok_and(|status| status.success());
        if is_sound {
            return Ok(());
        }
        // `[demuxer @ address] what is wrong`, of which the address differs from run to run.
        let line = message.lines().next().unwrap_or("no frame");
        let reason = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
        let reason = reason.map_or(line, |(_, reason)| reason);
        Err(Fault::Malformed(format!("ffmpeg cannot decode it: {reason}")).reading(path).into())
    }

    /// As [`Decoder::each`]: the number of frames, or nothing if `each` wanted no more.
    fn frames<E: From<Error>>(
        &mut self,
        path: &Path,
        stop: &AtomicBool,
        each: &mut impl FnMut(usize, Picture) -> std::result::Result<bool, E>,
    ) -> std::result::Result<Option<usize>, E> {
        let fault = |fault: Fault| E::from(fault.reading(path));
        for index in 0.. {
            if stop.load(Ordering::Relaxed) {
                return Err(fault(Fault::Interrupted));
            }
            let Some(picture) = ppm::read(&mut self.frames).map_err(fault)? else {
                return Ok(Some(index));
            };
            if index == MAX_FRAMES {
                let reason = format!("more than {MAX_FRAMES} frames");
                return Err(fault(Fault::Malformed(reason)));
            }
            if !each(index, picture)? {
                return Ok(None);
            }
        }
        unreachable!("the count of frames is bounded")
    }
}
