//! The stages of a run: text, given frames, denoising, decoding and writing.
//!
//! A long video is several loops, each of which begins with the last frames of the one before. All
//! batches go through a stage together; batches of long videos one after the other, because a loop
//! needs the frames of the one before.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use checkpoint::TensorView;
use compiler::Plan;
use kernels::Target;
use media::{Layout, MediaWriter, Metadata};
use pipeline::{Conditioning, Features, Model, OnTimes, Plans, Request, Sampler, Scheduler, Watch};
use runtime::{Backend, StepTime};

use crate::failure::Outcome;
use crate::noise::Noise;
use crate::options::SampleOptions;
use crate::outputs::Job;
use crate::profile_stages::StageTimes;
use crate::progress::{Console, Stage};
use crate::prompts::Prompt;
use crate::references::{GivenLatents, Placed, References};
use crate::report::{Output, Report};
use crate::settings::Settings;
use crate::{VERSION, prompts};

/// Everything that stays the same from batch to batch.
pub(crate) struct Run<'a> {
    pub options: &'a SampleOptions,
    pub model: &'a Model,
    pub settings: &'a Settings,
    pub scheduler: Scheduler,
    pub target: &'a Target,
    pub limit: compiler::Options,
    pub prompts: &'a [Prompt],
    pub references: &'a References,
    pub placed: &'a Placed,
    pub noise: Noise,
    pub backend: &'a dyn Backend,
    pub interrupt: &'a AtomicBool,
    /// For `--profile`.
    pub times: RefCell<StageTimes>,
}

/// Videos that are made together, and how far they are.
struct Batch<'j> {
    jobs: &'j [Job],
    /// Of the loop at hand, f32 `[rows, channels, T, h, w]`.
    latents: Vec<f32>,
    /// The files that are begun, by row.
    writers: Vec<Option<MediaWriter>>,
    /// Pixels f32 `[3, H, W]` of the frames that the next loop begins with, by row.
    tails: Vec<Vec<Vec<f32>>>,
}

/// The stages that all batches go through, and the work done in them.
struct Stages {
    condition: Option<Stage>,
    denoise: Stage,
    decode: Stage,
    encode: Stage,
    denoise_flops: u64,
    decode_flops: u64,
}

/// Features by the text that they are of.
type TextFeatures<'p> = BTreeMap<&'p str, Features>;

impl Run<'_> {
    /// Makes all videos.
    pub(crate) fn sample(
        &self,
        jobs: &[Job],
        request: &Request,
        plans: Plans,
        console: &Console,
        report: &mut Report,
    ) -> Outcome<()> {
        let mut sampler = self.sampler(request.clone(), plans);
        let features = self.encode_text(&sampler, console, report)?;
        let total = |name: &str| report.flops(name);
        let mut stages = Stages {
            condition: request.frame_mask.then(|| console.stage("condition", total("condition"))),
            denoise: console.stage("denoise", total("denoise")),
            decode: console.stage("decode", total("decode")),
            encode: console.stage("encode", (jobs.len() * self.settings.total_frames()) as u64),
            denoise_flops: 0,
            decode_flops: 0,
        };
        let pictures = self.encode_pictures(&sampler, &mut stages)?;

        let mut batches = self.batches(jobs, request.rows);
        let n_loops = self.settings.n_loops;
        let (n_batches, at_once) = (batches.len(), if n_loops == 1 { batches.len() } else { 1 });
        for (group_index, group) in batches.chunks_mut(at_once).enumerate() {
            for index in 0..n_loops {
                for batch in &mut *group {
                    self.fit(&mut sampler, batch.jobs)?;
                    let given = self.given(&sampler, batch, index, &pictures, &mut stages)?;
                    let given = given.as_ref();
                    self.denoise(&mut sampler, batch, index, &features, given, &mut stages)?;
                }
                if (group_index + 1) * at_once >= n_batches && index + 1 == n_loops {
                    if let Some(stage) = &stages.condition {
                        report.seconds.push(("condition", stage.finish()));
                    }
                    report.seconds.push(("denoise", stages.denoise.finish()));
                    sampler.release(pipeline::Stage::Denoise);
                }
                for batch in &mut *group {
                    self.fit(&mut sampler, batch.jobs)?;
                    self.decode(&mut sampler, batch, index, &mut stages, &mut report.outputs)?;
                }
            }
        }
        // Frames are encoded between the steps of decoding.
        stages.decode.elapsed = stages.decode.elapsed.saturating_sub(stages.encode.elapsed);
        report.seconds.push(("decode", stages.decode.finish()));
        report.seconds.push(("encode", stages.encode.finish()));
        if let Some(path) = &self.options.save_latents {
            self.save_latents(path, &batches, jobs.len())?;
        }
        Ok(())
    }

    fn sampler(&self, request: Request, plans: Plans) -> Sampler<'_> {
        Sampler::new(self.model, self.scheduler.clone(), request, plans, self.backend)
    }

    /// Splits `jobs` into batches of at most `rows`. Videos with given frames are not mixed with
    /// others, so that no video depends on which others are asked for.
    fn batches<'j>(&self, jobs: &'j [Job], rows: usize) -> Vec<Batch<'j>> {
        let is_given = |job: &Job| self.placed.is_given(job.prompt);
        let alike = jobs.chunk_by(|a, b| is_given(a) == is_given(b));
        let batch = |jobs: &'j [Job]| Batch {
            jobs,
            latents: Vec::new(),
            writers: jobs.iter().map(|_| None).collect(),
            tails: vec![Vec::new(); jobs.len()],
        };
        alike.flat_map(|jobs| jobs.chunks(rows)).map(batch).collect()
    }

    /// Makes the sampler one of the videos of a batch.
    fn fit<'s>(&'s self, sampler: &mut Sampler<'s>, jobs: &[Job]) -> Outcome<()> {
        let (rows, frame_mask) = (jobs.len(), self.placed.is_given(jobs[0].prompt));
        if (sampler.request().rows, sampler.request().frame_mask) == (rows, frame_mask) {
            return Ok(());
        }
        let request = Request { rows, frame_mask, ..sampler.request().clone() };
        let plans =
            Plans::compile_with(self.model, &self.scheduler, &request, self.target, &self.limit)?;
        *sampler = self.sampler(request, plans);
        Ok(())
    }

    fn watch<'w>(&'w self, on_flops: &'w mut dyn FnMut(u64), on_times: OnTimes<'w>) -> Watch<'w> {
        let (on_flops, on_times) = (Some(on_flops), Some(on_times));
        Watch { interrupt: Some(self.interrupt), on_flops, on_times }
    }

    /// Keeps the times of a stage's steps for `--profile`.
    fn keep_times(&self, stage: pipeline::Stage, plan: &Arc<Plan>, times: &[StepTime]) {
        if self.options.profile.is_some() {
            self.times.borrow_mut().keep(stage, plan, times);
        }
    }

    /// The features of every text of every prompt, each encoded once.
    fn encode_text(
        &self,
        sampler: &Sampler<'_>,
        console: &Console,
        report: &mut Report,
    ) -> Outcome<TextFeatures<'_>> {
        let texts = prompts::texts(self.prompts);
        let flops = sampler.plans().text.flops() * texts.len() as u64;
        let mut stage = console.stage("text", flops);
        let features = stage.time(|bar| {
            let mut on_flops = |done| bar.set(done);
            let mut on_times = |stage, plan: &_, times: &_| self.keep_times(stage, plan, times);
            sampler.encode_text(&texts, &mut self.watch(&mut on_flops, &mut on_times))
        })?;
        report.seconds.push(("text", stage.finish()));
        Ok(texts.into_iter().zip(features).collect())
    }

    /// The latent of every picture that references give.
    fn encode_pictures(
        &self,
        sampler: &Sampler<'_>,
        stages: &mut Stages,
    ) -> Outcome<Vec<Vec<f32>>> {
        let Some(stage) = &mut stages.condition else { return Ok(Vec::new()) };
        let Request { height, width, .. } = *sampler.request();
        let mut encoder = sampler.frame_encoder()?;
        let mut latents = Vec::with_capacity(self.placed.n_pictures());
        stage.time(|bar| {
            let mut on_flops = |done| bar.set(done);
            let mut on_times = |stage, plan: &_, times: &_| self.keep_times(stage, plan, times);
            let mut watch = self.watch(&mut on_flops, &mut on_times);
            self.references.read(self.placed, [height, width], self.interrupt, |pixels| {
                latents.push(encoder.encode(pixels, &mut watch)?);
                Ok(())
            })
        })?;
        Ok(latents)
    }

    /// What loop `index` of a batch is given: what the rules say, and after the first loop the end
    /// of the one before.
    fn given(
        &self,
        sampler: &Sampler<'_>,
        batch: &mut Batch<'_>,
        index: usize,
        pictures: &[Vec<f32>],
        stages: &mut Stages,
    ) -> Outcome<Option<GivenLatents>> {
        let Some(stage) = stages.condition.as_mut().filter(|_| sampler.request().frame_mask) else {
            return Ok(None);
        };
        let [n_frames, h, w] = sampler.request().latent(self.model)?;
        let channels = self.model.transformer.common().in_channels;
        let prompts: Vec<usize> = batch.jobs.iter().map(|job| job.prompt).collect();
        let mut given = GivenLatents::new(prompts.len(), channels, n_frames, h * w);
        for (row, &prompt) in prompts.iter().enumerate() {
            for (t, picture, edit_ratio) in self.placed.frames(prompt, index) {
                given.put(row, t, &pictures[picture], edit_ratio);
            }
        }
        if batch.tails.iter().any(|tail| !tail.is_empty()) {
            let mut encoder = sampler.frame_encoder()?;
            stage.time(|_| -> Outcome<()> {
                for (row, tail) in batch.tails.iter_mut().enumerate() {
                    for (t, pixels) in std::mem::take(tail).iter().enumerate() {
                        let mut on_times = |stage, plan: &_, times: &_| {
                            self.keep_times(stage, plan, times);
                        };
                        let mut on_flops = |_| {};
                        let watch = &mut self.watch(&mut on_flops, &mut on_times);
                        let latent = encoder.encode(pixels, watch)?;
                        given.put(row, t, &latent, self.settings.condition_edit);
                    }
                }
                Ok(())
            })?;
        }
        Ok(Some(given))
    }

    /// Denoises loop `index` of a batch.
    fn denoise(
        &self,
        sampler: &mut Sampler<'_>,
        batch: &mut Batch<'_>,
        index: usize,
        features: &TextFeatures<'_>,
        given: Option<&GivenLatents>,
        stages: &mut Stages,
    ) -> Outcome<()> {
        let jobs = batch.jobs;
        let features: Vec<Features> = jobs
            .iter()
            .map(|job| features[self.prompts[job.prompt].texts.text(index)].clone())
            .collect();
        let mut noise = |draw: u64, out: &mut [f32]| {
            let n = out.len() / jobs.len();
            for (job, out) in jobs.iter().zip(out.chunks_exact_mut(n)) {
                self.noise.fill(index as u64, draw, job.sample_index, out);
            }
        };
        let given = given.map(|given| (&given.edit_ratios[..], &given.latents[..]));
        let keys = |draw: u64| -> Vec<[u64; 3]> {
            jobs.iter().map(|job| self.noise.key(index as u64, draw, job.sample_index)).collect()
        };
        let mut conditioning =
            Conditioning { features: &features, noise: &mut noise, keys: Some(&keys), given };
        let done_before = stages.denoise_flops;
        batch.latents = stages.denoise.time(|bar| {
            let mut on_flops = |done| bar.set(done_before + done);
            let mut on_times = |stage, plan: &_, times: &_| self.keep_times(stage, plan, times);
            sampler.denoise(&mut conditioning, &mut self.watch(&mut on_flops, &mut on_times))
        })?;
        let n_steps = self.scheduler.n_steps() as u64;
        stages.denoise_flops += sampler.plans().denoise.flops() * n_steps;
        Ok(())
    }

    /// Decodes loop `index` of a batch, each frame into its file; what is complete goes to
    /// `outputs`.
    fn decode(
        &self,
        sampler: &mut Sampler<'_>,
        batch: &mut Batch<'_>,
        index: usize,
        stages: &mut Stages,
        outputs: &mut Vec<Output>,
    ) -> Outcome<()> {
        let [height, width] = sampler.request().frame_size(self.model)?;
        let (n_frames, shared) = (sampler.request().num_frames, self.settings.condition_frames);
        let is_last = index + 1 == self.settings.n_loops;
        let Batch { jobs, latents, writers, tails } = batch;
        let Stages { decode, encode, decode_flops, .. } = stages;
        let done_before = *decode_flops;
        let mut rgb = Vec::new();
        decode.time(|bar| {
            let mut on_flops = |done| bar.set(done_before + done);
            let mut on_times = |stage, plan: &_, times: &_| self.keep_times(stage, plan, times);
            let mut watch = self.watch(&mut on_flops, &mut on_times);
            sampler.decode(latents, &mut watch, |row, t, pixels| -> Outcome<()> {
                if !is_last && t + shared >= n_frames {
                    tails[row].push(pixels.to_vec());
                }
                if index > 0 && t < shared {
                    // The end of the loop before, which is in the file.
                    return Ok(());
                }
                encode.time(|bar| {
                    media::frame_from_f32(pixels, Layout::Cthw, [1, height, width], 0, &mut rgb)?;
                    let writer = &mut writers[row];
                    if writer.is_none() {
                        *writer = Some(self.open(&jobs[row], [width, height])?);
                    }
                    let open = writer.as_mut().expect("opened above");
                    open.push(&rgb)?;
                    if is_last && t + 1 == n_frames {
                        let written = writer.take().expect("opened above");
                        let written = written.finish_unless(self.interrupt)?;
                        let job = &jobs[row];
                        let prompt = self.prompts[job.prompt].typed.clone();
                        outputs.push(Output { prompt, sample_index: job.sample_index, written });
                    }
                    bar.advance();
                    Ok(())
                })
            })
        })?;
        let n_decoded = (jobs.len() * n_frames) as u64;
        stages.decode_flops += sampler.plans().decode.flops() * n_decoded;
        Ok(())
    }

    /// Starts the file of a video, with what it was made from.
    fn open(&self, job: &Job, [width, height]: [usize; 2]) -> Outcome<MediaWriter> {
        let prompt = &self.prompts[job.prompt];
        let mut metadata = Metadata::new();
        metadata.push("prompt", &prompt.typed)?;
        metadata.push("seed", &self.settings.seed.to_string())?;
        let settings = self.settings.to_json(self.options, prompt.index, job.sample_index);
        metadata.push("settings", &settings)?;
        metadata.push("version", VERSION)?;
        metadata.push("isa", self.target.isa.name())?;
        let size = [width as u32, height as u32];
        Ok(MediaWriter::create(&job.path, job.format, size, self.settings.save_fps, &metadata)?)
    }

    /// All latents as one tensor.
    fn save_latents(&self, path: &Path, batches: &[Batch<'_>], videos: usize) -> Outcome<()> {
        let values: Vec<f32> =
            batches.iter().flat_map(|batch| batch.latents.iter().copied()).collect();
        let [t, h, w] = self.settings.request.latent(self.model)?;
        let shape = vec![videos, self.model.transformer.common().in_channels, t, h, w];
        let bytes = Cow::Borrowed(bytemuck::cast_slice(&values));
        let view = TensorView { dtype: checkpoint::DType::F32, shape, bytes };
        let tensors = BTreeMap::from([("latents".to_string(), view)]);
        checkpoint::write_safetensors(path, &tensors, &BTreeMap::new())?;
        Ok(())
    }
}
