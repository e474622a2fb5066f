//! What a run takes, before a weight is read: a step of every bucket that it meets, planned within a budget.

use std::collections::BTreeMap;

use data::BucketId;
use kernels::Target;
use models::Bucket;
use ops::DType;
use training::run_log::BucketPlan;
use training::{Options, PlannedStep, Subject};

use crate::samples::{Samples, extents};
use crate::{Error, Result, subject};

/// Epochs whose buckets are planned before the run begins; a bucket that only later ones have is planned when it
/// comes.
const N_EPOCHS: u64 = 16;

/// State of a trained parameter besides averages and sums: master and two moments.
const N_TENSORS: usize = 3;

/// What steps are planned for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planning<'a> {
    pub(crate) samples: &'a Samples,
    pub(crate) subject: &'a Subject,
    pub(crate) options: &'a Options,
    /// How many pixels of a side are one of a latent's.
    pub(crate) downscale: usize,
    pub(crate) has_masks: bool,
    pub(crate) dtype: DType,
    pub(crate) target: &'a Target,
    /// Most bytes of state, frozen weights and arenas together.
    pub(crate) memory: Option<usize>,
}

/// A bucket's step.
#[derive(Debug)]
pub struct PlannedBucket {
    /// Frames, height, width and rows.
    pub name: String,
    /// Tokens of a batch that the transformer sees.
    pub tokens: u64,
    /// Batches in the first epoch.
    pub n_batches: usize,
    /// The step.
    pub step: PlannedStep,
}

/// What a run takes.
#[derive(Debug)]
pub struct RunPlan {
    /// A step of every bucket.
    pub(crate) buckets: BTreeMap<BucketId, PlannedBucket>,
    /// What follows the batches of an update, where they are several.
    pub(crate) update: Option<PlannedStep>,
    /// Bytes of what is trained: masters, moments, averages, sums of gradients.
    pub state_bytes: usize,
    /// Bytes of the weights that steps read and nobody trains.
    pub frozen_bytes: usize,
    /// Elements of all parameters.
    pub n_params: u64,
    /// Elements of those that are trained.
    pub n_trained: u64,
    /// Updates of the run; with a last epoch instead of a number, as if all epochs were as long as the first.
    pub n_updates: u64,
    /// Updates of the first epoch.
    pub n_updates_of_epoch: u64,
    /// Batches of an update.
    pub micro_batches: usize,
}

impl RunPlan {
    /// Every bucket's step, the most work first.
    pub fn buckets(&self) -> Vec<&PlannedBucket> {
        let mut buckets: Vec<&PlannedBucket> = self.buckets.values().collect();
        buckets.sort_by_key(|bucket| std::cmp::Reverse(bucket.step.plan().flops()));
        buckets
    }

    /// What follows the batches of an update, where they are several.
    pub fn update(&self) -> Option<&PlannedStep> {
        self.update.as_ref()
    }

    /// Bytes of state, frozen weights and arenas: all steps are held at once.
    pub fn peak_bytes(&self) -> usize {
        let steps = self.buckets.values().map(|bucket| &bucket.step).chain(&self.update);
        self.shared_bytes() + steps.map(PlannedStep::own_bytes).sum::<usize>()
    }

    /// Bytes of what all steps share: the state, masters in the type that steps compute with, and frozen weights.
    fn shared_bytes(&self) -> usize {
        let steps = self.buckets.values().map(|bucket| &bucket.step);
        let stored = steps.map(PlannedStep::stored_bytes).max().unwrap_or(0);
        self.state_bytes + stored + self.frozen_bytes
    }

    /// As the log has it.
    pub(crate) fn records(&self) -> Vec<BucketPlan> {
        let record = |bucket: &&PlannedBucket| BucketPlan {
            name: bucket.name.clone(),
            peak_bytes: (self.shared_bytes() + bucket.step.own_bytes()) as u64,
            flops: bucket.step.plan().flops(),
            recomputed_flops: bucket.step.recomputed().1,
        };
        self.buckets().iter().map(record).collect()
    }
}

impl Planning<'_> {
    /// Plans a run of `epochs` epochs and at most `steps` updates.
    ///
    /// # Errors
    /// [`Error::Budget`] with the least that works, and what no step can be of.
    pub(crate) fn plan(&self, epochs: u64, steps: Option<u64>) -> Result<RunPlan> {
        let micro_batches = self.options.micro_batches;
        let mut n_batches: BTreeMap<BucketId, usize> = BTreeMap::new();
        let mut n_updates_of_epoch = 0;
        let mut n_updates = 0;
        for index in 0..epochs.min(N_EPOCHS) {
            let epoch = self.samples.epoch(index)?;
            let updates = epoch.n_steps(1) / micro_batches;
            for number in 0..updates * micro_batches {
                let count = n_batches.entry(epoch.batch(number, 0, 1).bucket).or_default();
                *count += usize::from(index == 0);
            }
            n_updates += updates as u64;
            if index == 0 {
                n_updates_of_epoch = n_updates;
            }
            if steps.is_some_and(|steps| n_updates >= steps) {
                break;
            }
        }
        let n_updates = n_updates_of_epoch.saturating_mul(epochs);
        let ids: Vec<BucketId> = n_batches.keys().copied().collect();
        let mut planned = Vec::with_capacity(ids.len());
        for &id in &ids {
            planned.push(self.step(id, None)?);
        }
        let update = match self.subject {
            Subject::Transformer(model) => {
                PlannedStep::of_update_after(model, self.options, self.target, &planned)?
            }
            Subject::Autoencoder(model) => {
                PlannedStep::of_update_after(model, self.options, self.target, &planned)?
            }
        };
        let trained = &planned[0].program().trained;
        let n_trained: usize = trained.iter().map(|(_, ty)| ty.count()).sum();
        let tensors = N_TENSORS
            + usize::from(self.options.ema_decay.is_some())
            + usize::from(micro_batches > 1);
        let state_bytes = n_trained * tensors * DType::F32.size();
        let stored = planned.iter().map(PlannedStep::stored_bytes).max().unwrap_or(0);
        let frozen = PlannedStep::frozen_bytes_of(&planned);
        let update_bytes = update.as_ref().map_or(0, PlannedStep::own_bytes);
        let base = state_bytes + stored + frozen + update_bytes;
        if let Some(memory) = self.memory {
            planned = self.within(memory, base, &ids, planned)?;
        }
        let frozen_bytes = PlannedStep::frozen_bytes_of(&planned);
        let params = subject::parameters(self.subject, self.options)?;
        let n_params =
            params.iter().map(|param| param.shape.iter().product::<usize>() as u64).sum();
        let buckets = ids.into_iter().zip(planned).map(|(id, step)| {
            let n_batches = n_batches.get(&id).copied().unwrap_or(0);
            (id, self.bucket(id, step, n_batches))
        });
        Ok(RunPlan {
            buckets: buckets.collect(),
            update,
            state_bytes,
            frozen_bytes,
            n_params,
            n_trained: n_trained as u64,
            n_updates: steps.map_or(n_updates, |steps| steps.min(n_updates)),
            n_updates_of_epoch,
            micro_batches,
        })
    }

    /// Plans a bucket that the plan of the run has not, within what is left of the budget.
    ///
    /// # Errors
    /// As [`Planning::plan`].
    pub(crate) fn further(&self, id: BucketId, held: usize) -> Result<PlannedBucket> {
        let step = self.step(id, None)?;
        let limit = self.memory.map(|memory| memory.saturating_sub(held));
        let step = match limit.filter(|&limit| step.own_bytes() > limit) {
            Some(limit) => self.step(id, Some(limit + shared_bytes(&step)))?,
            None => step,
        };
        Ok(self.bucket(id, step, 0))
    }

    /// The steps of `ids` within `memory`, of which `base` is used already. Each gets what it needs at least; what
    /// is left is shared evenly among those that still want more, the most modest first.
    fn within(
        &self,
        memory: usize,
        base: usize,
        ids: &[BucketId],
        planned: Vec<PlannedStep>,
    ) -> Result<Vec<PlannedStep>> {
        let wanted: Vec<usize> = planned.iter().map(PlannedStep::own_bytes).collect();
        if base + wanted.iter().sum::<usize>() <= memory {
            return Ok(planned);
        }
        let mut floors = Vec::with_capacity(ids.len());
        for (&id, step) in ids.iter().zip(&planned) {
            let least = self.least(id)?.map(|least| least - shared_bytes(step));
            floors.push(least.unwrap_or_else(|| step.own_bytes()));
        }
        let least: usize = floors.iter().sum();
        let Some(rest) = memory.checked_sub(base + least) else {
            let smallest = base + least;
            let state = base;
            return Err(Error::Budget { memory, smallest, state, steps: least });
        };
        let limits = shares(rest, &floors, &wanted);
        let planned = planned.into_iter().zip(ids).zip(limits.iter().zip(&wanted));
        planned
            .map(|((step, &id), (&limit, &wanted))| {
                if wanted <= limit {
                    return Ok(step);
                }
                self.step(id, Some(limit + shared_bytes(&step)))
            })
            .collect()
    }

    /// The least bytes that a bucket's step can have, with its state; `None` if it needs none.
    fn least(&self, id: BucketId) -> Result<Option<usize>> {
        match self.step(id, Some(0)) {
            Ok(_) => Ok(None),
            Err(Error::Training(training::Error::Compile(compiler::Error::Memory {
                smallest,
                ..
            }))) => Ok(Some(smallest)),
            Err(error) => Err(error),
        }
    }

    fn step(&self, id: BucketId, memory: Option<usize>) -> Result<PlannedStep> {
        let Planning { samples, options, target, dtype, .. } = *self;
        let rows = samples.buckets.batch_size(id);
        let extents = extents(samples.buckets.shape(id));
        Ok(match self.subject {
            Subject::Transformer(model) => {
                let name = || samples.name(id);
                let tokens = model.common().model_max_length;
                let latent = self.latent(extents, name)?;
                let pixels = [extents[1] as f64, extents[2] as f64];
                let frame_mask = self.has_masks;
                let bucket =
                    Bucket { dtype, frame_mask, ..Bucket::new(rows, latent, pixels, tokens) };
                PlannedStep::of_bucket(model, &bucket, options, target, memory)?
            }
            Subject::Autoencoder(model) => {
                let bucket = subject::images(dtype, extents, rows);
                PlannedStep::of_bucket(model, &bucket, options, target, memory)?
            }
        })
    }

    /// Frames, height and width of the latent of a video.
    fn latent(
        &self,
        [frames, height, width]: [usize; 3],
        name: impl Fn() -> String,
    ) -> Result<[usize; 3]> {
        let downscale = self.downscale;
        if height < downscale || width < downscale {
            return Err(Error::Request(format!(
                "bucket {}: frames are smaller than the {downscale}x{downscale} pixels of one latent",
                name()
            )));
        }
        Ok([frames, height / downscale, width / downscale])
    }

    fn bucket(&self, id: BucketId, step: PlannedStep, n_batches: usize) -> PlannedBucket {
        let [frames, height, width] = extents(self.samples.buckets.shape(id));
        let latent = [frames, height / self.downscale, width / self.downscale];
        // An autoencoder sees every place of a latent.
        let patch = match self.subject {
            Subject::Transformer(model) => model.common().patch_size,
            Subject::Autoencoder(_) => [1; 3],
        };
        let tokens = latent.iter().zip(patch).map(|(dim, patch)| dim.div_ceil(patch) as u64);
        let rows = self.samples.buckets.batch_size(id) as u64;
        let tokens = rows * tokens.product::<u64>();
        PlannedBucket { name: self.samples.name(id), tokens, n_batches, step }
    }
}

/// Bytes of what a step works on and others do too: state and frozen weights.
fn shared_bytes(step: &PlannedStep) -> usize {
    step.plan().carried_bytes() - step.stored_bytes() + step.frozen_bytes()
}

/// `floors` raised by `rest` in all, none above what is `wanted`: as evenly as that allows.
fn shares(mut rest: usize, floors: &[usize], wanted: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..floors.len()).collect();
    order.sort_by_key(|&i| wanted[i].saturating_sub(floors[i]));
    let mut limits = floors.to_vec();
    for (place, &i) in order.iter().enumerate() {
        let part = rest / (order.len() - place);
        let more = wanted[i].saturating_sub(floors[i]).min(part);
        limits[i] += more;
        rest -= more;
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_goes_to_those_who_want_more() {
        // The first wants 10 of its share of 30; the others share what it leaves.
        assert_eq!(shares(90, &[10, 20, 30], &[20, 100, 70]), [20, 60, 70]);
        assert_eq!(shares(0, &[1, 2], &[5, 5]), [1, 2]);
        assert_eq!(shares(100, &[7], &[9]), [9]);
        assert_eq!(shares(5, &[1, 1], &[1, 100]), [1, 6]);
        assert_eq!(shares(5, &[], &[]), [0usize; 0]);
    }
}
