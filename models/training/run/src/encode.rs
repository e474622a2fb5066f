//! Fills the cache of features with what an epoch needs and it has not: files are decoded by threads into a
//! bounded queue, and encoded as they come. What is there already is not made again, so that a run that was
//! stopped goes on where it was.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;

use compiler::Options;
use data::{CacheWriter, Epoch, Sample};
use kernels::Target;
use ops::DType;
use pipeline::{
    FrameEncoder, Model, TextEncoder, Watch, compile_text, posterior_graph, text_graph,
};
use runtime::Backend;

use crate::features::{Clip, Features, Latents, cleaned};
use crate::samples::{BadRows, Samples, extents};
use crate::{Error, Result};

/// What encodes, and how.
pub(crate) struct Encoding<'a> {
    pub(crate) model: &'a Model,
    pub(crate) backend: &'a dyn Backend,
    pub(crate) target: &'a Target,
    /// Storage type of the encoders' weights and activations.
    pub(crate) dtype: DType,
    /// Most bytes of an encoder; a text encoder's weights are streamed where they do not fit.
    pub(crate) memory: Option<usize>,
    /// Threads that decode.
    pub(crate) n_workers: usize,
    pub(crate) interrupt: &'a AtomicBool,
}

/// Is told how many clips and captions are encoded, and of how many.
pub(crate) type Each<'a> = &'a mut dyn FnMut(usize, usize);

impl Encoding<'_> {
    /// Encodes what `batches` of `epoch` need. Rows whose files cannot be used go to `bad`, and what takes their
    /// places is encoded too.
    ///
    /// # Errors
    /// A bucket of which nothing can be read, what the encoders and the cache say, and interrupts, after which
    /// what is encoded stays.
    pub(crate) fn fill(
        &self,
        samples: &Samples,
        features: &Features,
        (epoch, batches): (&Epoch, Range<usize>),
        bad: &mut BadRows,
        each: Each<'_>,
    ) -> Result<()> {
        let mut writer = features.writer()?;
        let mut n_done = 0;
        loop {
            let (clips, captions) =
                missing(samples, features, (epoch, batches.clone()), bad, &writer)?;
            if clips.is_empty() && captions.is_empty() {
                return Ok(writer.finish()?);
            }
            let total = n_done + clips.len() + captions.len();
            each(n_done, total);
            let mut advance = || {
                n_done += 1;
                each(n_done, total);
            };
            let encoded =
                self.captions(&captions, features, &mut writer, &mut advance).and_then(|()| {
                    self.clips(samples, &clips, features, &mut writer, bad, &mut advance)
                });
            if let Err(error) = encoded {
                // What was encoded need not be again.
                writer.finish()?;
                return Err(error);
            }
        }
    }

    /// Encodes captions.
    fn captions(
        &self,
        captions: &BTreeSet<String>,
        features: &Features,
        writer: &mut CacheWriter,
        advance: &mut dyn FnMut(),
    ) -> Result<()> {
        if captions.is_empty() {
            return Ok(());
        }
        let Encoding { model, backend, target, memory, .. } = *self;
        let tokens = features.tokens;
        if features.as_tokens {
            for caption in captions {
                let encoded =
                    model.tokenizer.encode(caption, tokens).map_err(pipeline::Error::from)?;
                let mask = encoded.mask.iter().map(|&mask| u8::from(mask != 0)).collect();
                let record = features.token_record(&encoded.ids, mask);
                writer.put(features.caption_key(caption), record)?;
                advance();
            }
            return Ok(());
        }
        let graph = text_graph(&model.t5, self.dtype, tokens)?;
        let weights = model.text_encoder.weights();
        let plan = Arc::new(compile_text(graph, Some(weights), target, &Options { memory })?);
        let mut encoder = TextEncoder::new(model, plan, tokens, backend, memory)?;
        for caption in captions {
            let found = encoder.encode(caption, &mut self.watch())?;
            let record = features.caption_record(&found.values, found.mask);
            writer.put(features.caption_key(caption), record)?;
            advance();
        }
        Ok(())
    }

    /// Encodes clips, those of one size after those of another, so that one plan is held at a time.
    fn clips(
        &self,
        samples: &Samples,
        clips: &BTreeSet<Clip>,
        features: &Features,
        writer: &mut CacheWriter,
        bad: &mut BadRows,
        advance: &mut dyn FnMut(),
    ) -> Result<()> {
        let size = |clip: &Clip| [clip.extents[1], clip.extents[2]];
        let mut clips: Vec<Clip> = clips.iter().copied().collect();
        clips.sort_by_key(|clip| (size(clip), *clip));
        for of_size in clips.chunk_by(|a, b| size(a) == size(b)) {
            let size = size(&of_size[0]);
            let graph = posterior_graph(&self.model.vae, self.dtype, size)?;
            let limit = Options { memory: self.memory };
            let plan = Arc::new(compiler::compile_with(graph, self.target, &limit)?);
            let mut encoder = FrameEncoder::new(self.model, plan, self.backend)?;
            self.decoded(samples, of_size, |clip, sample| {
                match sample {
                    Ok(sample) => {
                        let latents = self.latents(&mut encoder, &sample, clip.is_mirrored)?;
                        let shape = self.latent_shape(clip.extents);
                        let record = Features::clip_record(&latents, shape);
                        writer.put(features.clip_key(samples, clip), record)?;
                    }
                    Err(error) if error.is_interrupt() => return Err(Error::Interrupted),
                    Err(error) => {
                        bad.insert((clip.row, clip.extents), error.to_string());
                    }
                }
                advance();
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Decodes `clips` with threads, and gives each to `each` when it is there.
    fn decoded(
        &self,
        samples: &Samples,
        clips: &[Clip],
        mut each: impl FnMut(Clip, data::Result<Sample>) -> Result<()>,
    ) -> Result<()> {
        let (sender, receiver) = sync_channel(self.n_workers);
        let (next, interrupt) = (AtomicUsize::new(0), self.interrupt);
        thread::scope(|scope| {
            for _ in 0..self.n_workers {
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    while let Some(&clip) = clips.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if sender.send((clip, decode(samples, clip, interrupt))).is_err() {
                            // An error ended it.
                            return;
                        }
                    }
                });
            }
            drop(sender);
            // The receiver ends with this loop, also by an error, and the threads with it.
            for (clip, sample) in receiver {
                if interrupt.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                each(clip, sample)?;
            }
            Ok(())
        })
    }

    /// Encodes a clip frame by frame.
    fn latents(
        &self,
        encoder: &mut FrameEncoder<'_>,
        sample: &Sample,
        is_mirrored: bool,
    ) -> Result<Latents> {
        let [frames, height, width] = extents(sample.shape);
        let [channels, _, h, w] = self.latent_shape([frames, height, width]);
        let (pixels, plane) = (height * width, h * w);
        let mut both =
            [vec![0f32; channels * frames * plane], vec![0f32; channels * frames * plane]];
        let mut frame = vec![0f32; 3 * pixels];
        for t in 0..frames {
            for (channel, values) in frame.chunks_exact_mut(pixels).enumerate() {
                let from = (channel * frames + t) * pixels;
                values.copy_from_slice(&sample.pixels[from..from + pixels]);
            }
            if is_mirrored {
                frame.chunks_exact_mut(width).for_each(<[f32]>::reverse);
            }
            let posterior = encoder.encode_posterior(&frame, &mut self.watch())?;
            for (whole, of_frame) in both.iter_mut().zip(&posterior) {
                for (channel, values) in of_frame.chunks_exact(plane).enumerate() {
                    let to = (channel * frames + t) * plane;
                    whole[to..to + plane].copy_from_slice(values);
                }
            }
        }
        let [mean, deviation] = both;
        let (fps, aspect_ratio) = (sample.fps, sample.aspect_ratio);
        Ok(Latents { mean, deviation, fps, aspect_ratio })
    }

    /// Channels, frames, height and width of the latent of a clip.
    fn latent_shape(&self, [frames, height, width]: [usize; 3]) -> [usize; 4] {
        let vae = &self.model.vae;
        [vae.latent_channels, frames, height / vae.downscale(), width / vae.downscale()]
    }

    fn watch(&self) -> Watch<'_> {
        Watch { interrupt: Some(self.interrupt), ..Watch::default() }
    }
}

/// Decodes a clip. The epoch does not matter to where it is cut.
fn decode(samples: &Samples, clip: Clip, interrupt: &AtomicBool) -> data::Result<Sample> {
    let row = &samples.table.rows()[clip.row];
    samples.settings.read(row, clip.row, clip.shape(), 0, interrupt)
}

/// Clips and captions that `batches` of `epoch` need and the cache has not.
fn missing(
    samples: &Samples,
    features: &Features,
    (epoch, batches): (&Epoch, Range<usize>),
    bad: &BadRows,
    writer: &CacheWriter,
) -> Result<(BTreeSet<Clip>, BTreeSet<String>)> {
    let (mut clips, mut captions) = (BTreeSet::new(), BTreeSet::new());
    for number in batches {
        let batch = epoch.batch(number, 0, 1);
        for &row in batch.rows {
            let (row, _) = samples.resolve(&batch, row, bad)?;
            let clip = Clip {
                row,
                extents: extents(samples.buckets.shape(batch.bucket)),
                is_mirrored: samples.is_mirrored(epoch.index(), row),
            };
            if !writer.contains(features.clip_key(samples, clip)) {
                clips.insert(clip);
            }
            let caption = cleaned(&samples.table.rows()[row].text);
            if !writer.contains(features.caption_key(&caption)) {
                captions.insert(caption);
            }
        }
    }
    Ok((clips, captions))
}
