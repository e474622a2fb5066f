//! Batches of an epoch, decoded in the background, in order.
//!
//! Worker `w` of `n` decodes every `n`th step into a queue of its own that holds a few batches, and the
//! loader takes from the queues in turns: the order does not depend on how fast a worker is, and memory
//! is bounded. A sample that cannot be read is replaced by the next of its bucket that can, and reported;
//! which one that is depends on the epoch only.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use crate::{Batch, BucketId, Buckets, Epoch, Error, Result, Sample, SampleSettings, Table};

/// Samples that are tried in place of one that cannot be read, as many as upstream tries.
const MAX_TRIES: usize = 10;

/// What a loader loads, shared with its workers.
#[derive(Clone, Debug)]
pub struct Loading {
    /// The samples.
    pub table: Arc<Table>,
    /// Their buckets.
    pub buckets: Arc<Buckets>,
    /// Which samples, in which order.
    pub epoch: Arc<Epoch>,
    /// How they are read.
    pub settings: SampleSettings,
    /// This rank, and how many there are.
    pub rank: usize,
    /// See [`Loading::rank`].
    pub n_ranks: usize,
}

/// How much is done ahead.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    /// Threads that decode.
    pub n_workers: usize,
    /// Batches that each of them holds ready, besides the one that it works on.
    pub n_ready: usize,
}

/// A batch of one step of one rank.
#[derive(Clone, PartialEq, Debug)]
pub struct LoadedBatch {
    /// The step of the epoch.
    pub step: usize,
    /// The bucket of all samples.
    pub bucket: BucketId,
    /// The samples.
    pub samples: Vec<Sample>,
    /// Samples that could not be read.
    pub replaced: Vec<Replaced>,
}

/// A sample that could not be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replaced {
    /// Its row.
    pub row: usize,
    /// The row of the sample in its place.
    pub by: usize,
    /// Why, with its path.
    pub reason: String,
}

/// Batches in order of steps; an iterator, which ends with the epoch or after the first error.
#[derive(Debug)]
pub struct Loader {
    queues: Vec<Receiver<Result<LoadedBatch>>>,
    workers: Vec<JoinHandle<()>>,
    steps: Range<usize>,
    first_step: usize,
    stop: Arc<AtomicBool>,
}

impl Loader {
    /// Starts to load from `first_step` on.
    ///
    /// # Errors
    /// [`Error::Setting`] if the epoch has no step for so many ranks, or there are no workers.
    pub fn start(loading: Loading, first_step: usize, ahead: Ahead) -> Result<Loader> {
        let n_steps = match loading.n_ranks {
            0 => 0,
            n_ranks => loading.epoch.n_steps(n_ranks),
        };
        if n_steps == 0 || loading.rank >= loading.n_ranks || ahead.n_workers == 0 {
            return Err(Error::Setting(format!(
                "rank {} of {} has nothing to load with {} workers: an epoch has {n_steps} steps; use \
                 fewer ranks, smaller batches or more samples",
                loading.rank, loading.n_ranks, ahead.n_workers
            )));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let loading = Arc::new(loading);
        let n_workers = ahead.n_workers;
        let (mut queues, mut workers) = (Vec::new(), Vec::new());
        for worker in 0..n_workers {
            let (sender, receiver) = sync_channel(ahead.n_ready.max(1));
            let (loading, stop) = (Arc::clone(&loading), Arc::clone(&stop));
            let steps = (first_step + worker..n_steps).step_by(n_workers);
            workers.push(thread::spawn(move || work(&loading, steps, &sender, &stop)));
            queues.push(receiver);
        }
        Ok(Loader { queues, workers, steps: first_step..n_steps, first_step, stop })
    }
}

impl Iterator for Loader {
    type Item = Result<LoadedBatch>;

    fn next(&mut self) -> Option<Result<LoadedBatch>> {
        let step = self.steps.next()?;
        let queue = &self.queues[(step - self.first_step) % self.queues.len()];
        // A worker hangs up early only when the loader is dropped.
        let batch = queue.recv().unwrap_or(Err(Error::Interrupted));
        if batch.is_err() {
            self.steps = 0..0;
        }
        Some(batch)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Workers that wait for room see that nobody takes.
        self.queues.clear();
        for worker in self.workers.drain(..) {
            // A worker's panic has been printed, and the loader is at its end.
            let _ = worker.join();
        }
    }
}

fn work(
    loading: &Loading,
    steps: impl Iterator<Item = usize>,
    queue: &SyncSender<Result<LoadedBatch>>,
    stop: &AtomicBool,
) {
    for step in steps {
        let batch = loading.load(step, stop);
        let is_over = batch.is_err();
        if queue.send(batch).is_err() || is_over {
            return;
        }
    }
}

impl Loading {
    /// Loads the batch of a step, which is below [`Epoch::n_steps`].
    ///
    /// # Errors
    /// [`Error::Unreadable`] where no sample can be read in place of one that cannot.
    pub fn load(&self, step: usize, stop: &AtomicBool) -> Result<LoadedBatch> {
        let batch = self.epoch.batch(step, self.rank, self.n_ranks);
        let (mut samples, mut replaced) = (Vec::with_capacity(batch.rows.len()), Vec::new());
        for &row in batch.rows {
            samples.push(self.sample(&batch, row, &mut replaced, stop)?);
        }
        Ok(LoadedBatch { step, bucket: batch.bucket, samples, replaced })
    }

    /// The sample of `row`, or of a row of its bucket after it.
    fn sample(
        &self,
        batch: &Batch<'_>,
        row: u32,
        replaced: &mut Vec<Replaced>,
        stop: &AtomicBool,
    ) -> Result<Sample> {
        let shape = self.buckets.shape(batch.bucket);
        let (sample, instead) = batch.read_or_replace(&self.buckets, row, |index| {
            self.settings.read(&self.table.rows()[index], index, shape, self.epoch.index(), stop)
        })?;
        replaced.extend(instead);
        Ok(sample)
    }
}

impl Batch<'_> {
    /// What `read` makes of `row`, or of the first row of its bucket after it of which it makes something, as
    /// many as upstream tries; and what was replaced then. `buckets` are those of the epoch.
    ///
    /// # Errors
    /// [`Error::Unreadable`] where none of them can be read, and interrupts.
    pub fn read_or_replace<T>(
        &self,
        buckets: &Buckets,
        row: u32,
        mut read: impl FnMut(usize) -> Result<T>,
    ) -> Result<(T, Option<Replaced>)> {
        let rows = self.rows_of_bucket;
        let start = rows.iter().position(|&other| other == row).unwrap_or(0);
        let mut first_reason = None;
        let mut n_tried = 0;
        let mut reason = String::new();
        for index in rows[start..].iter().chain(&rows[..start]).take(1 + MAX_TRIES) {
            let index = *index as usize;
            n_tried += 1;
            match read(index) {
                Ok(found) => {
                    let row = row as usize;
                    let replaced = first_reason.map(|reason| Replaced { row, by: index, reason });
                    return Ok((found, replaced));
                }
                Err(error) if error.is_interrupt() => return Err(error),
                Err(error) => {
                    reason = error.to_string();
                    first_reason.get_or_insert_with(|| reason.clone());
                }
            }
        }
        let (resolution, num_frames, aspect) = buckets.key(self.bucket);
        let bucket = format!("{resolution}, {num_frames} frames, {aspect}");
        Err(Error::Unreadable { bucket, n_tried, reason })
    }
}
