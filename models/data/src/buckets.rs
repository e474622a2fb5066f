//! Buckets: classes of samples of one resolution, length and aspect, trained in batches of one shape.
//!
//! A sample goes to the first bucket that it is large and long enough for and that a draw lets it into,
//! from the most pixels and frames down; whom the draw refuses falls to the next resolution. Draws depend on
//! row and epoch only, so an assignment needs no memory and is the same on every rank. Rules and
//! numbers are those of upstream's `Bucket`.

use std::sync::Arc;

use diffusion::{Release, Resolution, closest_aspect, resolution};

use crate::{Error, Pcg64, Result, VideoSize};

/// A sample may have this part of a resolution's pixels and still count as large enough.
const LARGE_ENOUGH: f64 = 0.8;

/// Largest height or width of a size of one's own.
const MAX_SIDE: usize = 1 << 15;

/// Most samples of a batch.
const MAX_BATCH: usize = 1 << 16;

/// Most resolutions and lengths.
const MAX_ENTRIES: usize = 1 << 12;

/// What share of the samples that fit a bucket it takes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Keep {
    /// Probability that a sample which fits is taken; the others fall to lower resolutions.
    pub probability: f64,
    /// Probability that the length is looked at at all, of 1.2; the others fall to shorter lengths.
    pub of_length: Option<f64>,
}

/// Buckets of one resolution and length, as they are configured.
#[derive(Clone, PartialEq, Debug)]
pub struct BucketEntry {
    /// Name of a resolution, such as `240p`; or one size, height x width, such as `64x64`.
    pub resolution: String,
    /// Count of frames; 1 takes images.
    pub num_frames: usize,
    /// Whom they take.
    pub keep: Keep,
    /// Samples of a batch; `None` for buckets that take nobody.
    pub batch_size: Option<usize>,
}

/// All buckets of a training run.
#[derive(Clone, Debug)]
pub struct Buckets {
    release: Release,
    levels: Vec<Level>,
    n_buckets: u64,
}

/// A resolution, and its lengths from the longest to the shortest.
#[derive(Clone, Debug)]
struct Level {
    resolution: Arc<str>,
    pixels: usize,
    sizes: Sizes,
    lengths: Vec<BucketLength>,
}

/// The sizes of a resolution's buckets.
#[derive(Clone, Debug)]
enum Sizes {
    /// One for each aspect of upstream's table.
    Table(&'static Resolution),
    /// One height and width.
    One(usize, usize),
}

/// The buckets of one resolution and length, over all aspects.
#[derive(Clone, Debug)]
pub struct BucketLength {
    /// Name of their resolution.
    pub resolution: Arc<str>,
    /// Pixels that a frame must have at least.
    pub min_pixels: usize,
    /// Their count of frames.
    pub num_frames: usize,
    /// Whom they take.
    pub keep: Keep,
    /// Samples of a batch, 0 for buckets that take nobody.
    pub batch_size: usize,
    /// Whether a video with exactly as many frames as they need is taken.
    takes_equal: bool,
    /// Index over lengths of all resolutions.
    number: u64,
}

/// One bucket of a [`Buckets`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BucketId {
    level: u16,
    length: u16,
    aspect: u16,
}

/// The shape of a bucket's samples.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BucketShape {
    /// Count of frames.
    pub num_frames: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
}

/// Why a sample is not let into buckets of a resolution and length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Refusal {
    /// It has too few pixels for the resolution.
    Small,
    /// It is an image and they take videos, or the other way around.
    Kind,
    /// It has too few frames.
    Short,
    /// The draw of the length, or of the bucket, was against it.
    Drawn,
}

impl Buckets {
    /// Buckets of `entries` by the rules of `release`. Of resolutions with equally many pixels, the first
    /// entry's comes first.
    ///
    /// # Errors
    /// [`Error::Buckets`] names the entry that cannot be.
    pub fn new(entries: &[BucketEntry], release: Release) -> Result<Buckets> {
        if entries.is_empty() || entries.len() > MAX_ENTRIES {
            let n = entries.len();
            return Err(Error::Buckets(format!("there are {n}; expected 1 to {MAX_ENTRIES}")));
        }
        let mut levels: Vec<Level> = Vec::new();
        for entry in entries {
            let known = levels.iter().position(|level| *level.resolution == *entry.resolution);
            let index = match known {
                Some(index) => index,
                None => {
                    levels.push(Level::of(&entry.resolution, release)?);
                    levels.len() - 1
                }
            };
            let level = &mut levels[index];
            if level.lengths.iter().any(|other| other.num_frames == entry.num_frames) {
                return Err(refused(entry, "is there twice"));
            }
            let length = BucketLength::of(entry, level, release)?;
            level.lengths.push(length);
        }
        // Both sorts keep the order of equals.
        levels.sort_by_key(|level| std::cmp::Reverse(level.pixels));
        let (mut number, mut n_buckets) = (0, 0);
        for level in &mut levels {
            level.lengths.sort_by_key(|length| std::cmp::Reverse(length.num_frames));
            for length in &mut level.lengths {
                length.number = number;
                number += 1;
                n_buckets += level.sizes.n_aspects() as u64;
            }
        }
        Ok(Buckets { release, levels, n_buckets })
    }

    /// The release whose rules hold.
    pub fn release(&self) -> Release {
        self.release
    }

    /// Count of buckets, over resolutions, lengths and aspects.
    pub fn n_buckets(&self) -> u64 {
        self.n_buckets
    }

    /// The seed of a row's draws in an epoch.
    pub fn sample_seed(&self, sampler_seed: u64, epoch: u64, row: usize) -> u64 {
        let of_row = (row as u64).wrapping_mul(self.n_buckets);
        sampler_seed.wrapping_add(epoch).wrapping_add(of_row)
    }

    /// The bucket of a sample of which every `frame_interval`-th frame is taken; `None` if none takes it.
    pub fn assign(&self, size: VideoSize, frame_interval: usize, seed: u64) -> Option<BucketId> {
        self.assign_and_tell(size, frame_interval, seed, |_, _| {})
    }

    /// As [`Buckets::assign`]; calls `tell` with the number of each resolution and length that refuses the
    /// sample, in the order of [`Buckets::lengths`].
    pub(crate) fn assign_and_tell(
        &self,
        size: VideoSize,
        frame_interval: usize,
        seed: u64,
        mut tell: impl FnMut(u64, Refusal),
    ) -> Option<BucketId> {
        for (index, level) in self.levels.iter().enumerate() {
            let pixels = size.height as f64 * size.width as f64;
            if pixels < level.pixels as f64 * LARGE_ENOUGH {
                level.lengths.iter().for_each(|length| tell(length.number, Refusal::Small));
                continue;
            }
            let taken = match size.num_frames {
                1 => level.of_image(seed, &mut tell),
                n_frames => level.of_video(n_frames, frame_interval, seed, &mut tell),
            };
            if let Some(length) = taken {
                return Some(BucketId {
                    level: index as u16,
                    length: length as u16,
                    aspect: level.sizes.aspect(size) as u16,
                });
            }
        }
        None
    }

    /// The shape of a bucket's samples.
    pub fn shape(&self, id: BucketId) -> BucketShape {
        let (_, height, width) = self.level(id).sizes.size(usize::from(id.aspect));
        BucketShape { num_frames: self.length(id).num_frames, height, width }
    }

    /// Samples of one batch of a bucket.
    pub fn batch_size(&self, id: BucketId) -> usize {
        self.length(id).batch_size
    }

    /// A bucket's resolution, frames and aspect as upstream writes it, such as `240p`, 51, `0.56`.
    pub fn key(&self, id: BucketId) -> (&str, usize, &'static str) {
        let level = self.level(id);
        (&level.resolution, self.length(id).num_frames, level.sizes.size(usize::from(id.aspect)).0)
    }

    /// Index of a bucket's resolution and length in [`Buckets::lengths`].
    pub fn number(&self, id: BucketId) -> usize {
        self.length(id).number as usize
    }

    /// Every resolution and length, from the most pixels and frames down.
    pub fn lengths(&self) -> impl Iterator<Item = &BucketLength> {
        self.levels.iter().flat_map(|level| &level.lengths)
    }

    /// Height and width of every bucket of a resolution that these buckets have, in upstream's order.
    pub fn sizes(&self, resolution: &str) -> Vec<[usize; 2]> {
        match self.sizes_of(resolution) {
            Sizes::Table(table) => table.sizes.iter().map(|&(_, h, w)| [h, w]).collect(),
            Sizes::One(height, width) => vec![[*height, *width]],
        }
    }

    /// Height and width of the bucket of a resolution that takes videos of `height` to `width`.
    pub fn size_near(&self, resolution: &str, height: usize, width: usize) -> [usize; 2] {
        let sizes = self.sizes_of(resolution);
        let (_, height, width) =
            sizes.size(sizes.aspect(VideoSize { num_frames: 1, height, width }));
        [height, width]
    }

    fn sizes_of(&self, resolution: &str) -> &Sizes {
        let level = self.levels.iter().find(|level| *level.resolution == *resolution);
        &level.expect("lengths name their resolution").sizes
    }

    fn level(&self, id: BucketId) -> &Level {
        &self.levels[usize::from(id.level)]
    }

    fn length(&self, id: BucketId) -> &BucketLength {
        &self.level(id).lengths[usize::from(id.length)]
    }
}

impl Level {
    /// The resolution called `name`, without lengths.
    fn of(name: &str, release: Release) -> Result<Level> {
        let one = name.split_once('x').and_then(|(height, width)| {
            let side = |text: &str| text.parse().ok().filter(|side| (1..=MAX_SIDE).contains(side));
            Some((side(height)?, side(width)?))
        });
        let (pixels, sizes) = match one {
            Some((height, width)) => (height * width, Sizes::One(height, width)),
            None => {
                let table = resolution(name, release).map_err(|error| {
                    Error::Buckets(format!("{error}, or one size as height x width, such as 64x64"))
                })?;
                (table.pixels, Sizes::Table(table))
            }
        };
        Ok(Level { resolution: name.into(), pixels, sizes, lengths: Vec::new() })
    }

    /// Index of the length that takes an image.
    fn of_image(&self, seed: u64, tell: &mut impl FnMut(u64, Refusal)) -> Option<usize> {
        for length in self.lengths.iter().filter(|length| length.num_frames != 1) {
            tell(length.number, Refusal::Kind);
        }
        let (index, length) =
            self.lengths.iter().enumerate().find(|(_, length)| length.num_frames == 1)?;
        if length.draws(seed).random() < length.keep.probability {
            return Some(index);
        }
        tell(length.number, Refusal::Drawn);
        None
    }

    /// Index of the length that takes a video of `n_frames`.
    fn of_video(
        &self,
        n_frames: usize,
        frame_interval: usize,
        seed: u64,
        tell: &mut impl FnMut(u64, Refusal),
    ) -> Option<usize> {
        for (index, length) in self.lengths.iter().enumerate() {
            let mut draws = length.draws(seed);
            if length.keep.of_length.is_some_and(|probability| draws.random() > probability) {
                tell(length.number, Refusal::Drawn);
                continue;
            }
            if length.num_frames == 1 {
                tell(length.number, Refusal::Kind);
                continue;
            }
            if n_frames <= length.above_frames(frame_interval) {
                tell(length.number, Refusal::Short);
                continue;
            }
            let probability = length.keep.probability;
            if probability >= 1.0 || draws.random() < probability {
                return Some(index);
            }
            // On to the next resolution, not to the next length.
            tell(length.number, Refusal::Drawn);
            return None;
        }
        None
    }
}

impl Sizes {
    fn n_aspects(&self) -> usize {
        match self {
            Sizes::Table(table) => table.sizes.len(),
            Sizes::One(..) => 1,
        }
    }

    /// Index of the aspect that is closest to a sample's.
    fn aspect(&self, size: VideoSize) -> usize {
        match self {
            Sizes::Table(table) => {
                let key = closest_aspect(table, size.height, size.width);
                table.sizes.iter().position(|row| row.0 == key).expect("the key is of this table")
            }
            Sizes::One(..) => 0,
        }
    }

    /// Key, height and width by index of the aspect.
    fn size(&self, aspect: usize) -> (&'static str, usize, usize) {
        match *self {
            Sizes::Table(table) => table.sizes[aspect],
            Sizes::One(height, width) => ("all", height, width),
        }
    }
}

impl BucketLength {
    fn of(entry: &BucketEntry, level: &Level, release: Release) -> Result<BucketLength> {
        let BucketEntry { num_frames, keep, batch_size, .. } = *entry;
        let is_share = |value: f64| (0.0..=1.0).contains(&value);
        if num_frames == 0 {
            return Err(refused(entry, "expected at least 1 frame"));
        }
        if !is_share(keep.probability) || !keep.of_length.is_none_or(is_share) {
            return Err(refused(entry, "keeps a share that is not from 0 to 1"));
        }
        match keep.of_length {
            Some(_) if release == Release::V1_1 => {
                return Err(refused(entry, "has two shares, which only the rules of 1.2 know"));
            }
            Some(_) if num_frames == 1 => {
                return Err(refused(entry, "has two shares; images have one"));
            }
            _ => {}
        }
        let batch_size = match batch_size {
            Some(size) if (1..=MAX_BATCH).contains(&size) => size,
            Some(_) => {
                return Err(refused(entry, "has batches that are not of 1 to 65536 samples"));
            }
            None if keep.probability == 0.0 => 0,
            None => {
                let why = "has no batch size, which only buckets that keep 0 need not have";
                return Err(refused(entry, why));
            }
        };
        Ok(BucketLength {
            resolution: Arc::clone(&level.resolution),
            min_pixels: (level.pixels as f64 * LARGE_ENOUGH).ceil() as usize,
            num_frames,
            keep,
            batch_size,
            // As many as the bucket has are not enough, as upstream has it; sizes of one's own are free of that.
            takes_equal: matches!(level.sizes, Sizes::One(..)),
            number: 0,
        })
    }

    /// Frames that a video must exceed of which every `frame_interval`-th is taken.
    pub fn above_frames(&self, frame_interval: usize) -> usize {
        self.num_frames.saturating_mul(frame_interval).saturating_sub(usize::from(self.takes_equal))
    }

    /// The generator of a sample's draws for this length.
    fn draws(&self, seed: u64) -> Pcg64 {
        Pcg64::new(u128::from(seed) + u128::from(self.number))
    }
}

fn refused(entry: &BucketEntry, why: &str) -> Error {
    Error::Buckets(format!("{} with {} frames {why}", entry.resolution, entry.num_frames))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(resolution: &str, num_frames: usize, keep: f64, batch: usize) -> BucketEntry {
        BucketEntry {
            resolution: resolution.into(),
            num_frames,
            keep: Keep { probability: keep, of_length: None },
            batch_size: (batch > 0).then_some(batch),
        }
    }

    #[test]
    fn entries_that_cannot_be_are_refused() {
        let pair = BucketEntry {
            keep: Keep { probability: 0.5, of_length: Some(0.3) },
            ..entry("240p", 51, 1.0, 2)
        };
        let image_pair = BucketEntry { num_frames: 1, ..pair.clone() };
        for (entries, release, expected) in [
            (vec![], Release::V1_1, "there are 0"),
            (
                vec![entry("240", 1, 1.0, 1)],
                Release::V1_1,
                "`240` is unknown; expected one of 144p",
            ),
            (vec![entry("2k", 1, 1.0, 1)], Release::V1_1, "`2k` is unknown"),
            (vec![entry("240p", 0, 1.0, 1)], Release::V1_2, "240p with 0 frames expected at least"),
            (vec![entry("240p", 1, 1.5, 1)], Release::V1_2, "not from 0 to 1"),
            (vec![entry("240p", 1, f64::NAN, 1)], Release::V1_2, "not from 0 to 1"),
            (vec![entry("240p", 1, 0.5, 0)], Release::V1_2, "has no batch size"),
            (vec![entry("240p", 1, 0.5, 2); 2], Release::V1_2, "is there twice"),
            (vec![pair], Release::V1_1, "only the rules of 1.2"),
            (vec![image_pair], Release::V1_2, "images have one"),
        ] {
            let error = Buckets::new(&entries, release).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn equally_many_pixels_stay_in_the_order_of_entries() {
        for names in [["4k", "2880"], ["2880", "4k"]] {
            let entries = names.map(|name| entry(name, 1, 1.0, 1));
            let buckets = Buckets::new(&entries, Release::V1_2).unwrap();
            let found: Vec<&str> = buckets.lengths().map(|length| &*length.resolution).collect();
            assert_eq!(found, names);
        }
    }

    /// A share of samples near the probability, within four standard errors.
    #[test]
    fn the_share_that_is_kept_is_the_probability() {
        let entries = [entry("360p", 16, 0.3, 1), entry("144p", 16, 1.0, 1)];
        let buckets = Buckets::new(&entries, Release::V1_1).unwrap();
        let size = VideoSize { num_frames: 100, height: 720, width: 1280 };
        let n = 4000;
        let taken = |row: usize| buckets.assign(size, 1, buckets.sample_seed(42, 0, row)).unwrap();
        let kept = (0..n).filter(|&row| buckets.key(taken(row)).0 == "360p").count();
        let share = kept as f64 / n as f64;
        assert!((share - 0.3).abs() < 4.0 * (0.21 / n as f64).sqrt(), "{share}");
    }

    /// More frames or pixels never leave a sample without a bucket, when buckets take all that fit.
    #[test]
    fn what_grows_stays_in_a_bucket() {
        let entries =
            [entry("240p", 16, 1.0, 1), entry("144p", 8, 1.0, 1), entry("144p", 1, 1.0, 1)];
        let buckets = Buckets::new(&entries, Release::V1_2).unwrap();
        let mut before = None;
        for num_frames in 2..40 {
            let size = VideoSize { num_frames, height: 144, width: 256 };
            let found = buckets.assign(size, 1, 7).map(|id| buckets.shape(id).num_frames);
            assert!(found >= before, "{num_frames} frames: {found:?} after {before:?}");
            before = found;
        }
        assert_eq!(before, Some(8));
    }
}
