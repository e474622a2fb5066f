//! What buckets get from a table in an epoch, and why others get nothing.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use crate::{BucketLength, Buckets, Refusal, VideoSize};

/// Samples of an epoch by resolution and length.
#[derive(Clone, Debug)]
pub struct Survey {
    /// One for each of [`Buckets::lengths`].
    pub occupancies: Vec<Occupancy>,
    /// Samples in all.
    pub n_samples: usize,
    /// Samples that no bucket takes, by the best that any of them said: [`Refusal::Drawn`] if a draw alone
    /// was against it, [`Refusal::Small`] if it is too small for all.
    pub left_out: BTreeMap<Refusal, usize>,
}

/// What the buckets of one resolution and length get, over all aspects.
#[derive(Clone, Debug)]
pub struct Occupancy {
    /// The buckets.
    pub length: BucketLength,
    /// Samples by aspect, where there are some.
    pub samples: BTreeMap<&'static str, usize>,
    /// Samples that were refused, by the reason.
    pub refused: BTreeMap<Refusal, usize>,
    /// Frames that a video must exceed.
    more_than_frames: usize,
}

impl Survey {
    /// Assigns every sample of `sizes` for an epoch and counts.
    pub fn new(
        buckets: &Buckets,
        sizes: &[VideoSize],
        frame_interval: usize,
        [seed, epoch]: [u64; 2],
    ) -> Survey {
        let of_length = |length: &BucketLength| Occupancy {
            length: length.clone(),
            samples: BTreeMap::new(),
            refused: BTreeMap::new(),
            more_than_frames: length.above_frames(frame_interval),
        };
        let mut occupancies: Vec<Occupancy> = buckets.lengths().map(of_length).collect();
        let mut left_out = BTreeMap::new();
        for (row, &size) in sizes.iter().enumerate() {
            let mut best = Refusal::Small;
            let seed = buckets.sample_seed(seed, epoch, row);
            let id = buckets.assign_and_tell(size, frame_interval, seed, |number, refusal| {
                *occupancies[number as usize].refused.entry(refusal).or_default() += 1;
                best = best.max(refusal);
            });
            match id {
                Some(id) => {
                    let (.., aspect) = buckets.key(id);
                    *occupancies[buckets.number(id)].samples.entry(aspect).or_default() += 1;
                }
                None => *left_out.entry(best).or_default() += 1,
            }
        }
        Survey { occupancies, n_samples: sizes.len(), left_out }
    }
}

impl Occupancy {
    /// Samples over all aspects.
    pub fn n_samples(&self) -> usize {
        self.samples.values().sum()
    }

    /// Whole batches; samples of different aspects share none.
    pub fn n_batches(&self) -> usize {
        self.samples.values().map(|n| n.checked_div(self.length.batch_size).unwrap_or(0)).sum()
    }

    /// Why there is no batch; `None` if there is one.
    pub fn why_empty(&self) -> Option<String> {
        if self.n_batches() > 0 {
            return None;
        }
        let n_samples = self.n_samples();
        if n_samples > 0 {
            return Some(format!(
                "{n_samples} samples, none of its aspects has the {} of a batch",
                self.length.batch_size
            ));
        }
        if self.length.keep.probability == 0.0 {
            return Some("keeps 0".into());
        }
        let count = |refusal| self.refused.get(&refusal).copied().unwrap_or(0);
        let (drawn, short, kind) =
            (count(Refusal::Drawn), count(Refusal::Short), count(Refusal::Kind));
        Some(if drawn > 0 {
            format!("all {drawn} samples that fit were drawn for other buckets")
        } else if short > 0 {
            let least = self.more_than_frames;
            format!("none of {short} videos of its resolution has more than {least} frames")
        } else if kind > 0 && self.length.num_frames == 1 {
            format!("{kind} samples of its resolution are videos, it takes images")
        } else if kind > 0 {
            format!("{kind} samples of its resolution are images, it takes videos")
        } else if count(Refusal::Small) > 0 {
            format!("no sample that came to it has {} pixels in a frame", self.length.min_pixels)
        } else {
            "buckets above took every sample".into()
        })
    }
}

/// A table: a line for each resolution and length, then who is left out.
impl fmt::Display for Survey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>8} {:>6} {:>6} {:>8} {:>8}", "", "frames", "batch", "samples", "batches")?;
        for occupancy in &self.occupancies {
            let mut line = format!(
                "{:>8} {:>6} {:>6} {:>8} {:>8}",
                occupancy.length.resolution,
                occupancy.length.num_frames,
                occupancy.length.batch_size,
                occupancy.n_samples(),
                occupancy.n_batches()
            );
            match occupancy.why_empty() {
                Some(reason) => write!(line, "  {reason}")?,
                None => {
                    for (aspect, n) in &occupancy.samples {
                        write!(line, "  {aspect}: {n}")?;
                    }
                }
            }
            writeln!(f, "{line}")?;
        }
        let n_left_out: usize = self.left_out.values().sum();
        write!(f, "{n_left_out} of {} samples are left out", self.n_samples)?;
        for (index, (refusal, n)) in self.left_out.iter().enumerate() {
            let mark = if index == 0 { ':' } else { ',' };
            write!(f, "{mark} {n} {refusal}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Small => "too small for every resolution",
            Refusal::Kind => "images or videos that no bucket of their resolutions takes",
            Refusal::Short => "too short",
            Refusal::Drawn => "by the draw",
        })
    }
}
