//! The TOML file of a bucket configuration.
//!
//! ```toml
//! release = "1.2"
//! frame_interval = 1
//!
//! [buckets.240p]                                # a resolution, then count of frames: whom, how many at once
//! 1 = { keep = 0.3, batch_size = 297 }          # images
//! 51 = { keep = 0.4, batch_size = 20 }
//! 102 = { keep = [0.4, 0.33], batch_size = 10 } # 1.2: of bucket, of length
//! 408 = { keep = 0.0 }                          # may be cut into, is not used
//!
//! [buckets.64x64]                               # one size, height x width
//! 8 = { keep = 1.0, batch_size = 16 }
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use diffusion::Release;
use serde::Deserialize;
use toml::Spanned;

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
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default = "newest")]
    release: String,
    #[serde(default = "one")]
    frame_interval: usize,
    buckets: BTreeMap<Spanned<String>, BTreeMap<String, Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    keep: Shares,
    batch_size: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Shares {
    One(f64),
    Two([f64; 2]),
}

fn newest() -> String {
    "1.2".into()
}

fn one() -> usize {
    1
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
        let release = match document.release.as_str() {
            "1.1" => Release::V1_1,
            "1.2" => Release::V1_2,
            other => {
                let message = format!("release `{other}` is unknown; expected 1.1 or 1.2");
                return Err(Error::Buckets(message));
            }
        };
        if document.frame_interval == 0 {
            return Err(Error::Buckets("frame_interval is 0; expected at least 1".into()));
        }
        // Of equally large resolutions the first counts, and a map has forgotten which that was.
        let mut resolutions: Vec<_> = document.buckets.into_iter().collect();
        resolutions.sort_by_key(|(name, _)| name.span().start);
        let mut entries = Vec::new();
        for (name, lengths) in resolutions {
            let resolution = name.into_inner();
            for (frames, entry) in lengths {
                let num_frames = diffusion::num_frames(&frames)
                    .map_err(|error| Error::Buckets(format!("{resolution}: {error}")))?;
                let (probability, of_length) = match entry.keep {
                    Shares::One(share) => (share, None),
                    Shares::Two([share, of_length]) => (share, Some(of_length)),
                };
                entries.push(BucketEntry {
                    resolution: resolution.clone(),
                    num_frames,
                    keep: Keep { probability, of_length },
                    batch_size: entry.batch_size,
                });
            }
        }
        let buckets = Buckets::new(&entries, release)?;
        Ok(BucketFile { buckets, frame_interval: document.frame_interval })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_buckets() {
        let text = "frame_interval = 2\n[buckets.4k]\n1 = { keep = 1, batch_size = 1 }\n\
                    [buckets.2880]\n1 = { keep = 1.0, batch_size = 1 }\n[buckets.240p]\n\
                    51 = { keep = 0.4, batch_size = 20 }\n2x = { keep = [0.4, 0.33], batch_size = 10 }\n\
                    408 = { keep = 0.0 }\n";
        let file = BucketFile::parse(text).unwrap();
        let found: Vec<(&str, usize, usize)> =
            file.buckets.lengths().map(|l| (&*l.resolution, l.num_frames, l.batch_size)).collect();
        let expected =
            [("4k", 1, 1), ("2880", 1, 1), ("240p", 408, 0), ("240p", 102, 10), ("240p", 51, 20)];
        assert_eq!(found, expected);
        assert_eq!(file.frame_interval, 2);
    }

    #[test]
    fn what_cannot_be_says_where() {
        for (text, expected) in [
            ("[buckets.240p]\n1 = { keep = \"x\", batch_size = 1 }", "line 2"),
            ("release = \"1.3\"\n[buckets]", "`1.3` is unknown"),
            ("frame_interval = 0\n[buckets]", "frame_interval is 0"),
            ("[buckets]", "there are 0; expected 1 to 4096"),
            ("[bucket.240p]", "unknown field `bucket`"),
            ("[buckets.240p]\n1.5 = { keep = 1.0, batch_size = 1 }", "line"),
            ("[buckets.240p]\nx = { keep = 1.0, batch_size = 1 }", "240p: number of frames `x`"),
            ("[buckets.7p]\n1 = { keep = 1.0, batch_size = 1 }", "`7p` is unknown"),
        ] {
            let error = BucketFile::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
