//! Batches as a step takes them, made ahead by a thread: features out of the cache, or frames, and the random
//! numbers of the batch. The order is that of the epoch, and what is in a batch does not depend on time.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

use bytemuck::cast_slice;
use data::{BucketId, CacheReader, Epoch, MaskRatios, Replaced};
use training::{Model, Subject, TimestepSampler};

use crate::Result;
use crate::draws::Draws;
use crate::features::{Clip, Features, cleaned};
use crate::samples::{BadRows, Samples, extents};

/// Batches that wait ready, besides the one that is being made.
const N_READY: usize = 2;

/// How far a pixel is from an image's median color that is salient: an eighth of the range from -1 to 1.
const SALIENT: f32 = 0.25;

/// Inputs of a step by name, dense little-endian.
pub(crate) type Inputs = Vec<(&'static str, Vec<u8>)>;

/// One batch.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) bucket: BucketId,
    /// Rows of the table.
    pub(crate) rows: Vec<usize>,
    pub(crate) inputs: Inputs,
    pub(crate) replaced: Vec<Replaced>,
}

/// What decides the inputs of a batch besides the data.
#[derive(Clone, Debug)]
pub(crate) struct Conditions {
    pub(crate) subject: Subject,
    pub(crate) seed: u64,
    pub(crate) timesteps: TimestepSampler,
    /// None where no frame is ever given.
    pub(crate) masks: Option<MaskRatios>,
    /// Share of captions that are replaced by the null caption.
    pub(crate) caption_dropout: f64,
}

/// What makes the batches of an epoch.
pub(crate) struct Source {
    pub(crate) samples: Arc<Samples>,
    /// Where features are; none for an autoencoder, which is trained on frames.
    pub(crate) features: Option<(Features, Arc<CacheReader>)>,
    pub(crate) conditions: Arc<Conditions>,
    pub(crate) epoch: Epoch,
    pub(crate) bad: BadRows,
}

/// Batches in order; an iterator, which ends after the first error.
#[derive(Debug)]
pub(crate) struct Batches {
    /// An Option only so that `drop` can hang up before it waits for the thread.
    receiver: Option<Receiver<Result<Prepared>>>,
    worker: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Batches {
    /// Starts to make the batches of `numbers`.
    pub(crate) fn start(source: Source, numbers: Range<usize>) -> Batches {
        let (sender, receiver) = sync_channel(N_READY);
        let stop = Arc::new(AtomicBool::new(false));
        let is_stopped = Arc::clone(&stop);
        let work = move || {
            for number in numbers {
                let batch = match &source.features {
                    Some((features, reader)) => source.latents(number, features, reader),
                    None => source.images(number, &is_stopped),
                };
                let is_over = batch.is_err();
                if sender.send(batch).is_err() || is_over {
                    return;
                }
            }
        };
        Batches { receiver: Some(receiver), worker: Some(thread::spawn(work)), stop }
    }
}

impl Iterator for Batches {
    type Item = Result<Prepared>;

    fn next(&mut self) -> Option<Result<Prepared>> {
        self.receiver.as_ref()?.recv().ok()
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.receiver = None;
        if let Some(worker) = self.worker.take() {
            // A panic of it has been printed, and there are no more batches.
            let _ = worker.join();
        }
    }
}

impl Source {
    /// Makes the batch with this number of features.
    fn latents(
        &self,
        number: usize,
        features: &Features,
        reader: &CacheReader,
    ) -> Result<Prepared> {
        let Source { samples, conditions, epoch, bad, .. } = self;
        let batch = epoch.batch(number, 0, 1);
        let extents = extents(samples.buckets.shape(batch.bucket));
        let [frames, height, width] = extents;
        let n_rows = batch.rows.len();
        let draws = Draws { seed: conditions.seed, epoch: epoch.index(), batch: number as u64 };
        let (mut rows, mut replaced) = (Vec::with_capacity(n_rows), Vec::new());
        let (mut latents, mut deviations) = (Vec::new(), Vec::new());
        let (mut captions, mut caption_masks) = (Vec::new(), Vec::new());
        let (mut fps, mut aspect_ratios) = (Vec::new(), Vec::new());
        for &row in batch.rows {
            let (row, instead) = samples.resolve(&batch, row, bad)?;
            replaced.extend(instead);
            rows.push(row);
            let is_mirrored = samples.is_mirrored(epoch.index(), row);
            let key = features.clip_key(samples, Clip { row, extents, is_mirrored });
            let found = features.latents(reader, key)?;
            latents.extend(found.mean);
            deviations.extend(found.deviation);
            fps.push(found.fps);
            aspect_ratios.push(found.aspect_ratio);
            let caption = cleaned(&samples.table.rows()[row].text);
            let caption = features.caption(reader, features.caption_key(&caption))?;
            captions.extend(caption.values);
            caption_masks.extend(caption.mask);
        }
        // A sample of the posterior, another in each epoch.
        let normal = draws.posterior(latents.len());
        for ((latent, deviation), normal) in latents.iter_mut().zip(&deviations).zip(normal) {
            *latent += deviation * normal;
        }
        let mut inputs: Inputs = vec![
            ("x", floats(&latents)),
            ("noise", floats(&draws.noise(latents.len()))),
            ("timestep", cast_slice(&draws.timesteps(&conditions.timesteps, n_rows)).to_vec()),
            (if features.as_tokens { "input_ids" } else { "y" }, captions),
            ("mask", caption_masks),
        ];
        if conditions.caption_dropout > 0.0 {
            let dropped = draws.dropped_captions(conditions.caption_dropout, n_rows);
            inputs.push(("drop_caption", dropped));
        }
        if let Some(ratios) = &conditions.masks {
            inputs.push(("x_mask", draws.masks(ratios, n_rows, frames)));
        }
        if let Subject::Transformer(Model::Stdit2(_)) = conditions.subject {
            let same = |value: usize| floats(&vec![value as f32; n_rows]);
            inputs.extend([
                ("height", same(height)),
                ("width", same(width)),
                ("num_frames", same(frames)),
                ("ar", floats(&aspect_ratios)),
                ("fps", floats(&fps)),
            ]);
        }
        Ok(Prepared { bucket: batch.bucket, rows, inputs, replaced })
    }

    /// Makes the batch with this number of frames, each an image. Files that cannot be read are replaced.
    fn images(&self, number: usize, stop: &AtomicBool) -> Result<Prepared> {
        let Source { samples, conditions, epoch, .. } = self;
        let batch = epoch.batch(number, 0, 1);
        let shape = samples.buckets.shape(batch.bucket);
        let [frames, height, width] = extents(shape);
        let draws = Draws { seed: conditions.seed, epoch: epoch.index(), batch: number as u64 };
        let (mut rows, mut replaced) = (Vec::new(), Vec::new());
        let mut images: Vec<f32> = Vec::new();
        for &row in batch.rows {
            let (sample, instead) = batch.read_or_replace(&samples.buckets, row, |index| {
                let row = &samples.table.rows()[index];
                samples.settings.read(row, index, shape, epoch.index(), stop)
            })?;
            replaced.extend(instead);
            rows.push(sample.row);
            let is_mirrored = samples.is_mirrored(epoch.index(), sample.row);
            let plane = height * width;
            for t in 0..frames {
                for channel in 0..3 {
                    let at = (channel * frames + t) * plane;
                    for line in sample.pixels[at..at + plane].chunks_exact(width) {
                        if is_mirrored {
                            images.extend(line.iter().rev());
                        } else {
                            images.extend(line);
                        }
                    }
                }
            }
        }
        let Subject::Autoencoder(autoencoder) = &conditions.subject else {
            unreachable!("a transformer is trained on features")
        };
        let step = autoencoder.config.downscale();
        let latent = autoencoder.config.latent_channels * (height / step) * (width / step);
        let noise = draws.noise(rows.len() * frames * latent);
        let mut inputs = vec![("x", floats(&images)), ("noise", floats(&noise))];
        if autoencoder.is_weighted() {
            let weights = images.chunks_exact(3 * height * width);
            let weights = weights.flat_map(|image| pixel_weights(image, autoencoder.salient));
            inputs.push(("weight", floats(&weights.collect::<Vec<f32>>())));
        }
        Ok(Prepared { bucket: batch.bucket, rows, inputs, replaced })
    }
}

/// What each pixel of an image `[3, height, width]` counts: `salient` where it differs from the median color by more
/// than [`SALIENT`] in some channel, else 1.
fn pixel_weights(image: &[f32], salient: f64) -> Vec<f32> {
    let plane = image.len() / 3;
    let mut weights = vec![1.0; plane];
    for channel in image.chunks_exact(plane) {
        let mut sorted = channel.to_vec();
        let (_, &mut median, _) = sorted.select_nth_unstable_by(plane / 2, f32::total_cmp);
        for (weight, value) in weights.iter_mut().zip(channel) {
            if (value - median).abs() > SALIENT {
                *weight = salient as f32;
            }
        }
    }
    weights
}

fn floats(values: &[f32]) -> Vec<u8> {
    cast_slice(values).to_vec()
}

/// The buckets of `batches` of an epoch, in order.
pub(crate) fn buckets_of(epoch: &Epoch, batches: Range<usize>) -> BTreeSet<BucketId> {
    batches.map(|number| epoch.batch(number, 0, 1).bucket).collect()
}

#[cfg(test)]
mod tests {
    use super::pixel_weights;

    #[test]
    fn pixels_unlike_the_ground_count() {
        // Three channels of 2x3; the fifth pixel differs in the last channel, the second by less than an eighth.
        let mut image = vec![0.5; 6];
        image.extend([-0.2; 6]);
        image.extend([0.0, 0.2, 0.0, 0.0, -0.3, 0.0]);
        assert_eq!(pixel_weights(&image, 4.0), [1.0, 1.0, 1.0, 1.0, 4.0, 1.0]);
    }
}
