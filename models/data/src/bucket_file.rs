//! The buckets of a TOML file: of a recipe of training, or of a file with nothing else.
//!
//! ```toml
//! release = "1.2"   # whose rules hold: 1.1 or 1.2
//! buckets = [       # resolution and frames: whom, how many at once
//!     { resolution = "240p", frames = 1, keep = 0.3, batch = 297 },             # images
//!     { resolution = "240p", frames = 51, keep = 0.4, batch = 20 },
//!     { resolution = "240p", frames = "4s", keep = [0.4, 0.33], batch = 10 },   # 1.2: of bucket, of length
//!     { resolution = "240p", frames = 408, keep = 0.0 },                        # may be cut into, is not used
//!     { resolution = "64x64", frames = 8, keep = 1.0, batch = 16 },             # one size, height x width
//! ]
//!
//! [data]
//! frame_interval = 1
//! ```
//!
//! Other keys are a recipe's and left alone. A recipe for one size says `[fixed]` instead.

use std::path::Path;

use diffusion::Release;
use serde::Deserialize;

use crate::{BucketEntry, Buckets, Error, Keep, Result};

/// A configuration of buckets.
#[derive(Clone, Debug)]
pub struct BucketFile {
    /// The buckets.
    pub buckets: Buckets,
    /// Every so manyth frame of a video is taken.
    pub frame_interval: usize,
}

#[derive(Deserialize)]
struct Document {
    release: Option<String>,
    #[serde(default)]
    buckets: Vec<Entry>,
    fixed: Option<OneSize>,
    #[serde(default)]
    data: DataSection,
    loss: Option<LossSection>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    resolution: String,
    frames: Frames,
    keep: Shares,
    batch: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number of frames, or a length such as \"2s\"")]
enum Frames {
    Count(usize),
    Length(String),
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a share from 0 to 1, or two: of the bucket and of the length"
)]
enum Shares {
    One(f64),
    Two([f64; 2]),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneSize {
    frames: usize,
    height: usize,
    width: usize,
    batch: usize,
}

#[derive(Deserialize)]
struct DataSection {
    #[serde(default = "one")]
    frame_interval: usize,
}

#[derive(Deserialize)]
struct LossSection {
    kind: String,
}

fn one() -> usize {
    1
}

impl Default for DataSection {
    fn default() -> DataSection {
        DataSection { frame_interval: one() }
    }
}

impl Document {
    /// Whose rules hold: as it says, else 1.1's for its loss, else the newest.
    fn release(&self) -> Result<Release> {
        let is_iddpm = |loss: &LossSection| loss.kind.starts_with("iddpm");
        match self.release.as_deref() {
            Some("1.1") => Ok(Release::V1_1),
            Some("1.2") => Ok(Release::V1_2),
            Some(other) => {
                Err(Error::Buckets(format!("release `{other}` is unknown; expected 1.1 or 1.2")))
            }
            None if self.loss.as_ref().is_some_and(is_iddpm) => Ok(Release::V1_1),
            None => Ok(Release::V1_2),
        }
    }

    fn entries(&self) -> Result<Vec<BucketEntry>> {
        let entry = |entry: &Entry| {
            let resolution = entry.resolution.clone();
            let num_frames = match &entry.frames {
                Frames::Count(frames) => *frames,
                Frames::Length(text) => diffusion::num_frames(text)
                    .map_err(|error| Error::Buckets(format!("{resolution}: {error}")))?,
            };
            let (probability, of_length) = match entry.keep {
                Shares::One(share) => (share, None),
                Shares::Two([share, of_length]) => (share, Some(of_length)),
            };
            let keep = Keep { probability, of_length };
            Ok(BucketEntry { resolution, num_frames, keep, batch_size: entry.batch })
        };
        match (&self.buckets[..], &self.fixed) {
            ([], Some(size)) => Ok(vec![BucketEntry {
                resolution: format!("{}x{}", size.height, size.width),
                num_frames: size.frames,
                keep: Keep { probability: 1.0, of_length: None },
                batch_size: Some(size.batch),
            }]),
            ([], None) => Err(Error::Buckets(
                "no buckets; expected a list such as buckets = [{ resolution = \"240p\", frames = 16, \
                 keep = 1.0, batch = 2 }]"
                    .into(),
            )),
            (_, Some(_)) => Err(Error::Buckets("expected `buckets` or `fixed`, found both".into())),
            (entries, None) => entries.iter().map(entry).collect(),
        }
    }
}

impl BucketFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Buckets`] with the file's name.
    pub fn read(path: &Path) -> Result<BucketFile> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            action: "read the buckets",
            source,
        })?;
        BucketFile::parse(&text).map_err(|error| match error {
            Error::Buckets(reason) => Error::Buckets(format!("{}: {reason}", path.display())),
            other => other,
        })
    }

    /// Reads a document.
    ///
    /// # Errors
    /// [`Error::Buckets`] with the line, or the entry that cannot be.
    pub fn parse(text: &str) -> Result<BucketFile> {
        let document: Document = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            Error::Buckets(format!("line {line}: {}", error.message()))
        })?;
        let frame_interval = document.data.frame_interval;
        if frame_interval == 0 {
            return Err(Error::Buckets("frame_interval is 0; expected at least 1".into()));
        }
        let buckets = Buckets::new(&document.entries()?, document.release()?)?;
        Ok(BucketFile { buckets, frame_interval })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_buckets() {
        let text = r#"
            buckets = [
                { resolution = "4k", frames = 1, keep = 1, batch = 1 },
                { resolution = "2880", frames = 1, keep = 1.0, batch = 1 },
                { resolution = "240p", frames = 51, keep = 0.4, batch = 20 },
                { resolution = "240p", frames = "2x", keep = [0.4, 0.33], batch = 10 },
                { resolution = "240p", frames = 408, keep = 0.0 },
            ]
            about = "a recipe"
            data = { frame_interval = 2, workers = 8 }
        "#;
        let file = BucketFile::parse(text).unwrap();
        let found: Vec<(&str, usize, usize)> =
            file.buckets.lengths().map(|l| (&*l.resolution, l.num_frames, l.batch_size)).collect();
        let expected =
            [("4k", 1, 1), ("2880", 1, 1), ("240p", 408, 0), ("240p", 102, 10), ("240p", 51, 20)];
        assert_eq!(found, expected);
        assert_eq!((file.frame_interval, file.buckets.release()), (2, Release::V1_2));
    }

    #[test]
    fn a_recipe_of_one_size_is_one_bucket() {
        let text =
            "[fixed]\nframes = 8\nheight = 64\nwidth = 48\nbatch = 16\n[loss]\nkind = \"iddpm\"";
        let BucketFile { buckets, frame_interval } = BucketFile::parse(text).unwrap();
        let found: Vec<(&str, usize, usize)> =
            buckets.lengths().map(|l| (&*l.resolution, l.num_frames, l.batch_size)).collect();
        assert_eq!(found, [("64x48", 8, 16)]);
        assert_eq!((frame_interval, buckets.release()), (1, Release::V1_1));
    }

    #[test]
    fn what_cannot_be_says_where() {
        let row = |row: &str| format!("seed = 1\nbuckets = [{{ {row} }}]");
        for (text, expected) in [
            (
                row("resolution = '240p', frames = 1, keep = 'x', batch = 1"),
                "line 2: expected a share",
            ),
            (
                row("resolution = '240p', frames = 1.5, keep = 1, batch = 1"),
                "line 2: expected a number",
            ),
            (row("resolution = '240p', frames = 1, kep = 1, batch = 1"), "unknown field `kep`"),
            (row("resolution = '240p', frames = 1, keep = 1, batch = -1"), "line 2"),
            (
                row("resolution = '240p', frames = 'x', keep = 1, batch = 1"),
                "240p: number of frames `x`",
            ),
            (row("resolution = '7p', frames = 1, keep = 1, batch = 1"), "`7p` is unknown"),
            (
                "release = \"1.3\"\nfixed = { frames = 1, height = 8, width = 8, batch = 1 }"
                    .into(),
                "`1.3` is unknown",
            ),
            ("data.frame_interval = 0".into(), "frame_interval is 0"),
            ("seed = 42".into(), "no buckets; expected a list such as buckets = [{ resolution"),
            ("[buckets.240p]\n1 = 2".into(), "line 1"),
        ] {
            let error = BucketFile::parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
