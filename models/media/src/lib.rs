//! Frames to files: MP4 (H.264), PNG, GIF, animated WebP, a folder of PNGs, a contact sheet; the
//! metadata back from them; frames out of files, fitted to a size ([`FrameSource`]); pictures at another size.
//!
//! ```no_run
//! use media::{Clip, Format, Fps, Metadata};
//! # fn main() -> media::Result<()> {
//! let path = std::path::Path::new("red.mp4");
//! let format = Format::from_path(path)?;
//! media::check_writable(path, format)?; // before the long computation
//! let mut metadata = Metadata::new();
//! metadata.push("prompt", "red")?;
//! let rgb = [255, 0, 0].repeat(8 * 64 * 64);
//! media::write(path, &Clip::new(8, 64, 64, &rgb, Fps::new(8, 1)?)?, &metadata, format)?;
//! # Ok(())
//! # }
//! ```
//!
//! Invariants: a file appears whole or not at all ([`MediaWriter`]); equal input gives equal bytes, for any
//! number of threads; no memory grows with the number of frames, apart from a few bytes per frame; reading
//! is bounded on hostile input. This crate does not know what made the frames.
//!
//! Start reading at [`writer`](MediaWriter), then `mp4/` and `image/`. Building needs a C++ compiler, for
//! the H.264 encoder, whose source is bundled.

mod clip;
mod error;
mod fit;
mod format;
mod fps;
mod frames;
mod image;
mod metadata;
mod mp4;
mod part_file;
mod ppm;
mod read;
mod resample;
mod source;
mod spool;
mod writer;

pub use clip::{Clip, Layout, frame_from_f32, rgb_from_f32};
pub use error::{Error, Result};
pub use fit::Fit;
pub use format::Format;
pub use fps::Fps;
pub use frames::{FrameSource, RgbaPicture, read_rgba_png};
pub use metadata::{MAX_BYTES as MAX_METADATA_BYTES, Metadata};
pub use part_file::{PartFolder, check_writable, write_file};
pub use read::{read_metadata, read_metadata_from_bytes};
pub use resample::{Filter, resample};
pub use writer::{MediaWriter, Written, write};
