//! Which samples make the batches of an epoch, in which order, for which rank.
//!
//! An [`Epoch`] is a pure function of the table's sizes, the buckets and a seed: rows grouped by bucket,
//! shuffled within, and *accesses* to buckets, shuffled too, each of which takes the bucket's next batch.
//! Step `i` of `R` ranks is accesses `i R` to `i R + R - 1`, one for each rank, so ranks of one step may run
//! different shapes. Any access can be asked for by its index, so resuming is arithmetic, on any
//! number of ranks. Order and numbers are upstream's (`VariableVideoBatchSampler`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{BucketId, Buckets, Error, Result, Survey, TorchRandom, VideoSize};

/// How epochs are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SamplerSettings {
    /// With the epoch, the seed of all draws.
    pub seed: u64,
    /// Every so manyth frame of a video is taken.
    pub frame_interval: usize,
    /// Whether samples and batches are shuffled.
    pub is_shuffled: bool,
    /// Whether what does not fill a batch, or a step of all ranks, is left out; else it is filled up with
    /// samples that the epoch has already, unless they are less than half a batch.
    pub drops_last: bool,
}

/// The batches of one epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Epoch {
    index: u64,
    drops_last: bool,
    groups: Vec<Group>,
    accesses: Vec<Access>,
}

/// The samples of one bucket.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Group {
    bucket: BucketId,
    batch_size: usize,
    rows: Vec<u32>,
}

/// A batch: of which group, and its index there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Access {
    group: u32,
    batch: u32,
}

/// Samples that are trained on together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Batch<'a> {
    /// Their bucket.
    pub bucket: BucketId,
    /// Their rows in the table.
    pub rows: &'a [u32],
    /// All rows of the bucket in this epoch, of which another may stand in for one.
    pub rows_of_bucket: &'a [u32],
}

/// Where a run is, to be stored with its checkpoints; the names are upstream's.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct SamplerState {
    /// [`SamplerSettings::seed`].
    pub seed: u64,
    /// The epoch.
    pub epoch: u64,
    /// Accesses of it that are used up, over all ranks.
    pub last_micro_batch_access_index: u64,
}

impl Epoch {
    /// The batches of epoch `index`.
    ///
    /// # Errors
    /// [`Error::NoBatch`] if no bucket has a batch, with the reason of each bucket; [`Error::Setting`].
    pub fn new(
        buckets: &Buckets,
        sizes: &[VideoSize],
        settings: SamplerSettings,
        index: u64,
    ) -> Result<Epoch> {
        let SamplerSettings { seed, frame_interval, is_shuffled, drops_last } = settings;
        if frame_interval == 0 || sizes.len() >= TorchRandom::MAX_PERMUTED {
            return Err(Error::Setting(format!(
                "an epoch of {} samples with every {frame_interval}th frame; expected fewer than {} \
                 samples, and at least every 1st frame",
                sizes.len(),
                TorchRandom::MAX_PERMUTED
            )));
        }
        let mut random = TorchRandom::new(seed.wrapping_add(index));
        let mut shuffled = |n: usize| match is_shuffled {
            true => random.permutation(n),
            false => (0..n as u32).collect(),
        };
        let mut groups = group(buckets, sizes, settings, index);
        let mut ordered = Vec::new();
        for (number, group) in groups.iter_mut().enumerate() {
            group.fill(drops_last);
            group.rows =
                shuffled(group.rows.len()).into_iter().map(|i| group.rows[i as usize]).collect();
            let n_batches = group.rows.len() / group.batch_size;
            ordered.extend(std::iter::repeat_n(number as u32, n_batches));
        }
        if ordered.len() >= TorchRandom::MAX_PERMUTED {
            return Err(Error::Setting("an epoch of too many batches".into()));
        }
        // Which bucket is accessed is shuffled; its batches are used up in their order.
        let mut next = vec![0; groups.len()];
        let access = |i: u32| {
            let group: u32 = ordered[i as usize];
            let batch = next[group as usize];
            next[group as usize] += 1;
            Access { group, batch }
        };
        let accesses: Vec<Access> = shuffled(ordered.len()).into_iter().map(access).collect();
        if accesses.is_empty() {
            let survey = Survey::new(buckets, sizes, frame_interval, [seed, index]);
            return Err(Error::NoBatch { epoch: index, survey: survey.to_string() });
        }
        Ok(Epoch { index, drops_last, groups, accesses })
    }

    /// The epoch's number.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Steps of `n_ranks` ranks. With fewer batches than ranks and the rest dropped there is none.
    pub fn n_steps(&self, n_ranks: usize) -> usize {
        match self.drops_last {
            true => self.accesses.len() / n_ranks,
            false => self.accesses.len().div_ceil(n_ranks),
        }
    }

    /// The batch of `rank` of `n_ranks` in step `step`, which is below [`Epoch::n_steps`]. Where batches do
    /// not fill the last step, it is filled with the first ones again.
    pub fn batch(&self, step: usize, rank: usize, n_ranks: usize) -> Batch<'_> {
        debug_assert!(rank < n_ranks && step < self.n_steps(n_ranks), "step {step} of rank {rank}");
        let access = self.accesses[(step * n_ranks + rank) % self.accesses.len()];
        let group = &self.groups[access.group as usize];
        let start = access.batch as usize * group.batch_size;
        Batch {
            bucket: group.bucket,
            rows: &group.rows[start..start + group.batch_size],
            rows_of_bucket: &group.rows,
        }
    }
}

impl SamplerState {
    /// The state before the first step of a run.
    pub fn start(seed: u64) -> SamplerState {
        SamplerState { seed, epoch: 0, last_micro_batch_access_index: 0 }
    }

    /// The state after step `step` of `n_ranks` ranks in `epoch`: of the next step, or of the next epoch.
    #[must_use]
    pub fn after(self, epoch: &Epoch, step: usize, n_ranks: usize) -> SamplerState {
        let done = step + 1;
        if done >= epoch.n_steps(n_ranks) {
            return SamplerState {
                epoch: epoch.index() + 1,
                last_micro_batch_access_index: 0,
                ..self
            };
        }
        let last_micro_batch_access_index = (done * n_ranks) as u64;
        SamplerState { epoch: epoch.index(), last_micro_batch_access_index, ..self }
    }

    /// The step that a run of `n_ranks` ranks goes on with: accesses of a step that is not complete are
    /// used again.
    ///
    /// # Errors
    /// [`Error::Setting`] if the run has another seed than the state.
    pub fn step(&self, settings: SamplerSettings, n_ranks: usize) -> Result<usize> {
        if self.seed != settings.seed {
            return Err(Error::Setting(format!(
                "the checkpoint's samples were drawn with seed {}, this run has seed {}; resume with the \
                 checkpoint's, or start with a new sampler",
                self.seed, settings.seed
            )));
        }
        let step = self.last_micro_batch_access_index / n_ranks.max(1) as u64;
        usize::try_from(step).map_err(|_| Error::Setting(format!("there is no step {step}")))
    }
}

impl Group {
    /// Drops or adds rows to make the number of them divisible by the batch size.
    fn fill(&mut self, drops_last: bool) {
        let n = self.rows.len();
        let rest = n % self.batch_size;
        if drops_last {
            self.rows.truncate(n - rest);
        } else if rest > 0 {
            // Once around, as upstream has it: a bucket of less than half a batch stays short of one.
            self.rows.extend_from_within(..n.min(self.batch_size - rest));
        }
    }
}

/// Rows by bucket, buckets by their first row.
fn group(
    buckets: &Buckets,
    sizes: &[VideoSize],
    settings: SamplerSettings,
    epoch: u64,
) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut places: BTreeMap<BucketId, usize> = BTreeMap::new();
    for (row, &size) in sizes.iter().enumerate() {
        let seed = buckets.sample_seed(settings.seed, epoch, row);
        let Some(bucket) = buckets.assign(size, settings.frame_interval, seed) else { continue };
        let place = *places.entry(bucket).or_insert_with(|| {
            let batch_size = buckets.batch_size(bucket);
            groups.push(Group { bucket, batch_size, rows: Vec::new() });
            groups.len() - 1
        });
        groups[place].rows.push(row as u32);
    }
    groups
}

#[cfg(test)]
mod tests {
    use diffusion::Release;

    use super::*;
    use crate::{BucketEntry, Keep};

    fn buckets() -> Buckets {
        let entry = |resolution: &str, num_frames, batch_size| BucketEntry {
            resolution: resolution.into(),
            num_frames,
            keep: Keep { probability: 0.8, of_length: None },
            batch_size: Some(batch_size),
        };
        let entries = [entry("144p", 16, 3), entry("144p", 1, 5), entry("256", 1, 2)];
        Buckets::new(&entries, Release::V1_2).unwrap()
    }

    fn sizes(n: usize) -> Vec<VideoSize> {
        let sizes = [(1, 256, 256), (40, 144, 256), (1, 144, 256), (20, 256, 144), (1, 10, 10)];
        let size = |(num_frames, height, width)| VideoSize { num_frames, height, width };
        (0..n).map(|i| size(sizes[i * 7 % sizes.len()])).collect()
    }

    fn settings(drops_last: bool) -> SamplerSettings {
        SamplerSettings { seed: 5, frame_interval: 1, is_shuffled: true, drops_last }
    }

    fn all(epoch: &Epoch, n_ranks: usize, from: usize) -> Vec<u32> {
        let steps = from..epoch.n_steps(n_ranks);
        let batches = steps.flat_map(|step| (0..n_ranks).map(move |rank| (step, rank)));
        batches.flat_map(|(step, rank)| epoch.batch(step, rank, n_ranks).rows.to_vec()).collect()
    }

    #[test]
    fn no_row_comes_twice_and_batches_are_of_one_bucket() {
        let (buckets, sizes) = (buckets(), sizes(300));
        let epoch = Epoch::new(&buckets, &sizes, settings(true), 0).unwrap();
        let mut rows = all(&epoch, 1, 0);
        let n = rows.len();
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len(), n);
        assert!(n > 150, "{n} rows of 300");
        for step in 0..epoch.n_steps(1) {
            let batch = epoch.batch(step, 0, 1);
            assert_eq!(batch.rows.len(), buckets.batch_size(batch.bucket));
            for &row in batch.rows {
                let seed = buckets.sample_seed(5, 0, row as usize);
                assert_eq!(buckets.assign(sizes[row as usize], 1, seed), Some(batch.bucket));
            }
        }
        assert_ne!(
            epoch.accesses,
            Epoch::new(&buckets, &sizes, settings(true), 1).unwrap().accesses
        );
    }

    #[test]
    fn without_dropping_only_less_than_half_a_batch_is_lost() {
        let (buckets, sizes) = (buckets(), sizes(53));
        let epoch = Epoch::new(&buckets, &sizes, settings(false), 0).unwrap();
        let mut expected = Vec::new();
        for Group { bucket, batch_size, rows } in group(&buckets, &sizes, settings(false), 0) {
            assert_eq!(batch_size, buckets.batch_size(bucket));
            if 2 * rows.len() >= batch_size {
                expected.extend(rows);
            }
        }
        expected.sort_unstable();
        assert!(expected.len() > 30, "{expected:?}");
        for n_ranks in [1, 2, 7, 64] {
            let mut rows = all(&epoch, n_ranks, 0);
            rows.sort_unstable();
            rows.dedup();
            assert_eq!(rows, expected, "{n_ranks} ranks");
        }
    }

    #[test]
    fn a_run_goes_on_with_other_ranks_where_it_stopped() {
        let (buckets, sizes) = (buckets(), sizes(300));
        let epoch = Epoch::new(&buckets, &sizes, settings(true), 3).unwrap();
        let whole = all(&epoch, 1, 0);
        let state = SamplerState::start(5).after(&epoch, 3, 4);
        assert_eq!((state.epoch, state.last_micro_batch_access_index), (3, 16));
        for n_ranks in [1, 2, 8, 16] {
            let step = state.step(settings(true), n_ranks).unwrap();
            let rest = all(&epoch, n_ranks, step);
            let start: usize = (0..16).map(|step| epoch.batch(step, 0, 1).rows.len()).sum();
            assert_eq!(rest[..], whole[start..start + rest.len()], "{n_ranks} ranks");
        }
        // 16 accesses are 5 steps of 3 ranks, and one access more, which comes again.
        assert_eq!(state.step(settings(true), 3).unwrap(), 5);
        let end = state.after(&epoch, epoch.n_steps(4) - 1, 4);
        assert_eq!((end.epoch, end.last_micro_batch_access_index), (4, 0));
        let other = SamplerSettings { seed: 6, ..settings(true) };
        assert!(state.step(other, 1).unwrap_err().to_string().contains("seed 5"));
    }

    #[test]
    fn a_table_that_no_bucket_takes_is_refused_with_reasons() {
        let size = |num_frames, height, width| VideoSize { num_frames, height, width };
        let small = vec![size(1, 10, 10), size(8, 144, 256)];
        let error = Epoch::new(&buckets(), &small, settings(true), 0).unwrap_err().to_string();
        for expected in [
            "no sample that came to it has 52429 pixels",
            "none of 1 videos of its resolution has more than 16 frames",
            "1 samples of its resolution are videos, it takes images",
            "2 of 2 samples are left out: 1 too small for every resolution, 1 too short",
        ] {
            assert!(error.contains(expected), "{error}");
        }
        let few = vec![size(1, 256, 256); 1];
        let error = Epoch::new(&buckets(), &few, settings(true), 0).unwrap_err().to_string();
        assert!(error.contains("1 samples, none of its aspects has the 5 of a batch"), "{error}");
        assert!(error.contains("all 1 samples that fit were drawn for other buckets"), "{error}");
    }
}
