//! Clips of a model for prompts, by the pipeline that `kino sample` runs.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use data::flare::{FPS, Subject};
use media::{Filter, Layout, resample};
use ops::DType;
use pipeline::{
    Conditioning, Features, Model, Paths, Plans, Request, Sampler, Scheduler, SchedulerKind,
    Transformer, Watch,
};

use crate::classifier::Machine;
use crate::clips::{Clip, N_FRAMES, SIDE, frame_rgb, planar, psnr, to_float};

/// Guidance and guided channels of upstream's first release, and of models that say nothing.
const RELEASED_SCALE: f64 = 7.0;
const RELEASED_CHANNELS: usize = 3;
/// Steps of models that say nothing.
const RELEASED_STEPS: usize = 100;

/// How clips are sampled; what is left open is as the model's folder recommends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sampling {
    /// Steps of the sampler.
    pub steps: Option<usize>,
    /// Guidance.
    pub cfg_scale: Option<f64>,
    /// Chooses the noise: clip `i` is what `kino sample --seed SEED --sample-index i` makes of its prompt.
    pub seed: u64,
    /// Clips that are sampled at once; do not change them.
    pub rows: usize,
}

/// A clip of a model whose first frame was given.
#[derive(Clone, PartialEq, Debug)]
pub struct Continued {
    /// The clip.
    pub clip: Clip,
    /// Signal-to-noise ratio of its first frame against what was given, in dB.
    pub psnr: f64,
    /// Largest difference of the first frame's latent from what was given.
    pub latent_error: f32,
}

/// Clips that are sampled at once.
struct Batch {
    /// Number of the first.
    first: usize,
    /// What each is asked to show; the last batch may have fewer than it has rows.
    subjects: Vec<Subject>,
    /// Of every row; rows beyond the last subject have its features.
    features: Vec<Features>,
}

/// Loads a model from its folder.
///
/// # Errors
/// Says which part is missing or does not fit.
pub fn open(path: &Path) -> Result<Model> {
    let paths = Paths { model: Some(path.to_owned()), ..Paths::default() };
    Model::open(&paths).with_context(|| path.display().to_string())
}

/// A model and the settings that it is sampled with.
#[derive(Debug)]
pub struct Generator<'m> {
    model: &'m Model,
    machine: Machine<'m>,
    scheduler: Scheduler,
    sampling: Sampling,
    request: Request,
    /// Steps and guidance, for reports.
    pub settings: (usize, f64),
}

impl<'m> Generator<'m> {
    /// A generator of clips of `N_FRAMES` frames at the size that the model is meant for.
    ///
    /// # Errors
    /// Settings that the model cannot be sampled with.
    pub fn new(
        model: &'m Model,
        machine: Machine<'m>,
        sampling: Sampling,
    ) -> Result<Generator<'m>> {
        ensure!(sampling.rows > 0, "batches of 0 clips, expected 1 or more");
        let count = |key: &str, other: usize| {
            model.default("sampling", key).map_or(other, |value| value as usize)
        };
        let own_scale = model.default("scheduler", "cfg_scale");
        let own_steps = model.default("scheduler", "num_sampling_steps").map(|n| n as usize);
        let own_channels = model.default("scheduler", "cfg_channel").map(|n| n as usize);
        let is_first = matches!(model.transformer, Transformer::Stdit1(_));
        let released = (own_scale.is_none() || is_first).then_some(RELEASED_CHANNELS);
        let steps = sampling.steps.or(own_steps).unwrap_or(RELEASED_STEPS);
        let scale = sampling.cfg_scale.or(own_scale).unwrap_or(RELEASED_SCALE);
        let scheduler = Scheduler::new(
            SchedulerKind::Iddpm,
            steps,
            scale,
            own_channels.or(released),
            &model.transformer,
        )?;
        let request = Request {
            rows: sampling.rows,
            num_frames: N_FRAMES,
            height: count("height", SIDE),
            width: count("width", SIDE),
            fps: model.default("sampling", "fps").unwrap_or(f64::from(FPS)),
            dtype: DType::F32,
            text_dtype: DType::F32,
            frame_mask: false,
        };
        let settings = (steps, scale);
        Ok(Generator { model, machine, scheduler, sampling, request, settings })
    }

    /// A clip for each subject, asked for by its first caption.
    ///
    /// # Errors
    /// What the model cannot do; frames with numbers that are none.
    pub fn clips(&self, subjects: &[Subject], each: &mut dyn FnMut(usize)) -> Result<Vec<Clip>> {
        let mut sampler = self.sampler(false)?;
        let mut clips = Vec::with_capacity(subjects.len());
        for Batch { first, subjects, features } in self.batches(&sampler, subjects)? {
            let latents = self.denoise(&mut sampler, first, &features, None)?;
            clips.extend(self.decode(&mut sampler, &latents, subjects)?);
            each(clips.len());
        }
        Ok(clips)
    }

    /// A clip for each real one: its subject asked for, its first frame given.
    ///
    /// # Errors
    /// As [`Generator::clips`].
    pub fn continued(&self, real: &[Clip], each: &mut dyn FnMut(usize)) -> Result<Vec<Continued>> {
        let mut sampler = self.sampler(true)?;
        let size = sampler.request().frame_size(self.model)?;
        let [n_frames, height, width] = sampler.request().latent(self.model)?;
        let (channels, plane) = (self.model.vae.latent_channels, height * width);
        let given = {
            let mut encoder = sampler.frame_encoder()?;
            let encode = |clip: &Clip| -> Result<Vec<f32>> {
                let pixels = first_frame(clip, size)?;
                Ok(encoder.encode(&pixels, &mut Watch::default())?)
            };
            real.iter().map(encode).collect::<Result<Vec<_>>>()?
        };
        let subjects: Vec<Subject> = real.iter().map(|clip| clip.subject).collect();
        let mut continued = Vec::with_capacity(real.len());
        for Batch { first, subjects, features } in self.batches(&sampler, &subjects)? {
            // Rows beyond the last clip are made and dropped.
            let of_row = |row: usize| (first + row).min(real.len() - 1);
            let mut ratios = vec![1f32; self.sampling.rows * n_frames];
            let mut latents = vec![0f32; self.sampling.rows * channels * n_frames * plane];
            for row in 0..self.sampling.rows {
                ratios[row * n_frames] = 0.0;
                for (c, values) in given[of_row(row)].chunks_exact(plane).enumerate() {
                    latents[(row * channels + c) * n_frames * plane..][..plane]
                        .copy_from_slice(values);
                }
            }
            let made =
                self.denoise(&mut sampler, first, &features, Some((&ratios[..], &latents[..])))?;
            let clips = self.decode(&mut sampler, &made, subjects)?;
            for (row, clip) in clips.into_iter().enumerate() {
                let latent_error = given[of_row(row)].chunks_exact(plane).enumerate().fold(
                    0f32,
                    |worst, (c, values)| {
                        let from = &made[(row * channels + c) * n_frames * plane..][..plane];
                        from.iter().zip(values).map(|(a, b)| (a - b).abs()).fold(worst, f32::max)
                    },
                );
                let psnr =
                    psnr(&frame_rgb(&clip.pixels, 0), &frame_rgb(&real[of_row(row)].pixels, 0));
                continued.push(Continued { clip, psnr, latent_error });
            }
            each(continued.len());
        }
        Ok(continued)
    }

    fn sampler(&self, frame_mask: bool) -> Result<Sampler<'m>> {
        let request = Request { frame_mask, ..self.request.clone() };
        let plans = Plans::compile(self.model, &self.scheduler, &request, self.machine.target)?;
        let (scheduler, backend) = (self.scheduler.clone(), self.machine.backend);
        Ok(Sampler::new(self.model, scheduler, request, plans, backend))
    }

    /// Splits subjects into batches.
    fn batches(&self, sampler: &Sampler<'_>, subjects: &[Subject]) -> Result<Vec<Batch>> {
        let caption = |subject: &Subject| {
            let [caption, ..] = subject.captions();
            text::text_preprocessing(&caption, true)
        };
        let captions: Vec<String> = subjects.iter().map(caption).collect();
        let features = sampler.encode_text(&captions, &mut Watch::default())?;
        let rows = self.sampling.rows;
        let groups = subjects.chunks(rows).zip(features.chunks(rows)).enumerate();
        let batch = |(index, (subjects, features)): (usize, (&[Subject], &[Features]))| {
            let mut features = features.to_vec();
            let last = features.last().cloned().expect("chunks are not empty");
            features.resize(rows, last);
            Batch { first: index * rows, subjects: subjects.to_vec(), features }
        };
        Ok(groups.map(batch).collect())
    }

    /// Samples the latents of a batch whose first clip has number `first`.
    fn denoise(
        &self,
        sampler: &mut Sampler<'m>,
        first: usize,
        features: &[Features],
        given: Option<(&[f32], &[f32])>,
    ) -> Result<Vec<f32>> {
        let (seed, rows) = (self.sampling.seed, self.sampling.rows);
        // The numbers that `kino sample` draws.
        let mut noise = |draw: u64, out: &mut [f32]| {
            let n = out.len() / rows;
            for (row, out) in out.chunks_exact_mut(n).enumerate() {
                diffusion::fill_normal(seed, draw, ((first + row) * n) as u64, out);
            }
        };
        let mut conditioning = Conditioning { features, noise: &mut noise, keys: None, given };
        Ok(sampler.denoise(&mut conditioning, &mut Watch::default())?)
    }

    /// The clips of a batch's latents, as many as there are subjects, brought to the classifier's size.
    fn decode(
        &self,
        sampler: &mut Sampler<'m>,
        latents: &[f32],
        subjects: Vec<Subject>,
    ) -> Result<Vec<Clip>> {
        let [height, width] = sampler.request().frame_size(self.model)?;
        let mut frames: Vec<Vec<u8>> = vec![Vec::new(); subjects.len()];
        let mut rgb = Vec::new();
        sampler.decode(latents, &mut Watch::default(), |row, t, pixels| -> Result<()> {
            let Some(frames) = frames.get_mut(row) else { return Ok(()) };
            if let Some(value) = pixels.iter().find(|value| !value.is_finite()) {
                bail!("frame {t} has the number {value}");
            }
            media::frame_from_f32(pixels, Layout::Cthw, [1, height, width], 0, &mut rgb)?;
            let is_own_size = [height, width] == [SIDE, SIDE];
            if is_own_size {
                frames.extend_from_slice(&rgb);
            } else {
                let scaled = resample(&rgb, [height, width], [SIDE, SIDE], Filter::Lanczos)?;
                frames.extend_from_slice(&scaled);
            }
            Ok(())
        })?;
        let clip = |(subject, rgb): (Subject, Vec<u8>)| Clip { subject, pixels: planar(&rgb) };
        Ok(subjects.into_iter().zip(frames).map(clip).collect())
    }
}

/// The first frame of a clip as models take it: f32 `[3, height, width]` in -1..1.
fn first_frame(clip: &Clip, [height, width]: [usize; 2]) -> Result<Vec<f32>> {
    let rgb = frame_rgb(&clip.pixels, 0);
    let rgb = match [height, width] == [SIDE, SIDE] {
        true => rgb,
        false => resample(&rgb, [SIDE, SIDE], [height, width], Filter::Cubic)?,
    };
    let channel = |c: usize| rgb.iter().skip(c).step_by(3).map(|&byte| to_float(byte));
    Ok((0..3).flat_map(channel).collect())
}
