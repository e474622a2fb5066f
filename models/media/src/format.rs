//! The output formats and how a path chooses one.

use std::path::Path;

use crate::{Error, Result};

/// A kind of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// H.264 in MP4, `.mp4`.
    Mp4,
    /// One frame, `.png`.
    Png,
    /// Animated GIF with one palette for the clip, `.gif`.
    Gif,
    /// Animated WebP, lossless, `.webp`.
    WebP,
    /// A folder with `frame_0000.png`, ... and `metadata.json`; a path that ends in `/`.
    Folder,
    /// Up to 36 frames, evenly spread over the clip, in a grid: `.sheet.png`.
    ContactSheet,
}

/// Every way to name a format, for messages.
pub(crate) const KNOWN: &str = ".mp4, .png (one frame), .gif, .webp, .sheet.png (contact sheet) or a path \
     ending in / (folder of PNGs)";

impl Format {
    /// The format that `path` asks for: by its extension, in any case, or by being a folder.
    ///
    /// # Errors
    /// [`Error::UnknownFormat`], which lists the known ones.
    pub fn from_path(path: &Path) -> Result<Self> {
        let text = path.to_string_lossy();
        if text.ends_with(['/', std::path::MAIN_SEPARATOR]) || path.is_dir() {
            return Ok(Self::Folder);
        }
        let lower = text.to_ascii_lowercase();
        let extension = Path::new(&lower).extension().map(|e| e.to_string_lossy().into_owned());
        match extension.as_deref() {
            Some("mp4") => Ok(Self::Mp4),
            Some("png") if lower.ends_with(".sheet.png") => Ok(Self::ContactSheet),
            Some("png") => Ok(Self::Png),
            Some("gif") => Ok(Self::Gif),
            Some("webp") => Ok(Self::WebP),
            other => Err(Error::UnknownFormat {
                path: path.to_owned(),
                found: other.map_or("a name without an extension".into(), |e| format!(".{e}")),
                expected: KNOWN,
            }),
        }
    }

    /// Name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mp4 => "MP4",
            Self::Png => "PNG",
            Self::Gif => "GIF",
            Self::WebP => "WebP",
            Self::Folder => "a folder of PNGs",
            Self::ContactSheet => "a contact sheet",
        }
    }

    /// Smallest and largest frame, `[width, height]` in pixels. An MP4 frame may also be turned, 2160x3840.
    pub(crate) fn size_limits(self) -> ([u32; 2], [u32; 2], &'static str, &'static str) {
        match self {
            // The encoder's limits.
            Self::Mp4 => ([16, 16], [3840, 2160], "16x16", "3840x2160 or 2160x3840"),
            Self::Gif => ([1, 1], [65_535, 65_535], "1x1", "65535x65535"),
            Self::WebP => ([1, 1], [16_384, 16_384], "1x1", "16384x16384"),
            // The format allows more; beyond this, a frame's bytes no longer fit 32 bits.
            Self::Png | Self::Folder | Self::ContactSheet => {
                ([1, 1], [32_768, 32_768], "1x1", "32768x32768")
            }
        }
    }

    /// Refuses a frame size that this format cannot hold.
    ///
    /// # Errors
    /// [`Error::FrameSize`].
    pub fn check_size(self, path: &Path, width: u32, height: u32) -> Result<()> {
        let (min, max, min_text, max_text) = self.size_limits();
        let fits = |w: u32, h: u32| w >= min[0] && h >= min[1] && w <= max[0] && h <= max[1];
        if fits(width, height) || (self == Self::Mp4 && fits(height, width)) {
            return Ok(());
        }
        Err(Error::FrameSize {
            path: path.to_owned(),
            format: self.name(),
            min: min_text,
            max: max_text,
            width,
            height,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extension_chooses_the_format() {
        for (path, format) in [
            ("a.mp4", Format::Mp4),
            ("x/A.MP4", Format::Mp4),
            ("a.b.png", Format::Png),
            ("a.sheet.png", Format::ContactSheet),
            ("a.gif", Format::Gif),
            ("a.webp", Format::WebP),
            ("frames.mp4/", Format::Folder),
        ] {
            assert_eq!(Format::from_path(Path::new(path)).unwrap(), format, "{path}");
        }
    }

    #[test]
    fn unknown_extension_lists_the_known_ones() {
        for path in ["a.avi", "a", "a.", "mp4", ""] {
            let message = Format::from_path(Path::new(path)).unwrap_err().to_string();
            for known in [".mp4", ".png", ".gif", ".webp", ".sheet.png", "folder"] {
                assert!(message.contains(known), "{path}: {message}");
            }
        }
    }

    #[test]
    fn mp4_takes_a_turned_frame_and_refuses_a_larger_one() {
        let path = Path::new("a.mp4");
        assert!(Format::Mp4.check_size(path, 2160, 3840).is_ok());
        assert!(Format::Mp4.check_size(path, 3840, 2160).is_ok());
        for (w, h) in [(15, 64), (64, 15), (4096, 2160), (2161, 2161), (0, 0)] {
            assert!(Format::Mp4.check_size(path, w, h).is_err(), "{w}x{h}");
        }
    }
}
