//! `kino sample`: prompts to video files.
//!
//! Order matters: everything that can be refused is refused before the first long computation, the
//! plan is printed before it runs, and a frame goes to its file as soon as it is decoded.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Context;
use checkpoint::TensorView;
use kernels::{Pool, Target};
use media::{Layout, MediaWriter, Metadata, Written};
use pipeline::{Conditioning, Features, Model, Plans, Request, Sampler, Scheduler, Watch};

use crate::failure::Outcome;
use crate::noise::Noise;
use crate::options::SampleOptions;
use crate::outputs::{self, Job};
use crate::progress::{Console, Stage};
use crate::prompts::{self, Prompt};
use crate::report::{Output, Report};
use crate::settings::{self, Settings};
use crate::{VERSION, layers, machine, source};

/// Everything that stays the same from batch to batch.
struct Run<'a> {
    options: &'a SampleOptions,
    model: &'a Model,
    settings: &'a Settings,
    scheduler: Scheduler,
    target: &'a Target,
    limit: compiler::Options,
    prompts: &'a [Prompt],
    noise: Noise,
    pool: Arc<Pool>,
    interrupt: &'a AtomicBool,
}

/// The command.
pub(crate) fn run(
    flags: SampleOptions,
    forced_isa: Option<&str>,
    interrupt: &AtomicBool,
) -> Outcome<()> {
    let start = Instant::now();
    let (options, earlier) = layers::gather(flags)?;
    let mut console = Console::new(options.quiet, options.json);
    let prompts = prompts::gather(&options)?;
    settings::check(&options)?;
    source::check(&options)?;
    let n_videos = prompts.len().saturating_mul(options.num_sample.unwrap_or(1));
    outputs::check(&options, n_videos)?;
    let target = machine::target(forced_isa, options.threads)?;
    if let Some(earlier) = earlier {
        let isa = target.isa.name();
        if (earlier.version.as_str(), earlier.isa.as_str()) != (VERSION, isa) {
            console.warn(format!(
                "made by version {} with {}, this is version {VERSION} with {isa}: frames may \
                 differ in their last bits",
                earlier.version, earlier.isa
            ));
        }
    }

    let mut report = Report::default();
    let model = source::load(&options)?;
    report.seconds.push(("load", start.elapsed().as_secs_f64()));
    let settings = Settings::resolve(&options, &model)?;
    let scheduler = settings.scheduler(&model)?;
    let frame = settings.request.frame_size(&model)?;
    let (jobs, folders) = outputs::jobs(&options, &prompts, settings.request.num_frames, frame)?;
    let limit = model.transformer.common().model_max_length;
    for warning in prompts::truncations(&prompts, &model.tokenizer, limit)? {
        console.warn(warning);
    }
    let request =
        Request { rows: settings.request.rows.min(jobs.len()), ..settings.request.clone() };
    machine::check_memory(request.floor_bytes(&model)?, "at least ")?;
    let [t, h, w] = request.latent(&model)?;
    let shape = [model.transformer.common().in_channels, t, h, w];
    let noise = Noise::new(settings.seed, shape, options.initial_noise.as_deref())?;
    jobs.iter().try_for_each(|job| noise.check(job.sample_index))?;

    let compile = Instant::now();
    let limit = compiler::Options { memory: settings::memory(&options)? };
    let plans = Plans::compile_with(&model, &scheduler, &request, &target, &limit)?;
    report.seconds.push(("compile", compile.elapsed().as_secs_f64()));
    report.describe(&model, &settings, &request, &plans, &target, jobs.len())?;
    machine::check_memory(report.peak_bytes as f64, "")?;
    console.print(&report.plan_text(&jobs));

    let pool = Pool::new(target.threads).context("cannot start threads")?;
    let run = Run {
        options: &options,
        model: &model,
        settings: &settings,
        scheduler,
        target: &target,
        limit,
        prompts: &prompts,
        noise,
        pool: Arc::new(pool),
        interrupt,
    };
    run.sample(&jobs, &request, plans, &mut console, &mut report)?;
    drop(folders);
    report.seconds.push(("total", start.elapsed().as_secs_f64()));
    if options.json {
        crate::progress::write_out(&report.to_json(console.warnings()));
    } else {
        console.print(&report.result_text());
    }
    Ok(())
}

impl Run<'_> {
    /// Samples all videos, batch by batch.
    fn sample(
        &self,
        jobs: &[Job],
        request: &Request,
        plans: Plans,
        console: &mut Console,
        report: &mut Report,
    ) -> Outcome<()> {
        let flops = plans.flops(request.rows, request.num_frames, self.scheduler.n_steps());
        // Batches of the last size may be smaller; what they cost is in proportion.
        let of_all = |at: usize| flops[at].1 / request.rows as u64 * jobs.len() as u64;
        let mut sampler = self.sampler(request.clone(), plans);
        let mut text =
            console.stage("text", sampler.plans().text.flops() * self.prompts.len() as u64);
        let cleaned: Vec<String> = self.prompts.iter().map(|p| p.cleaned.clone()).collect();
        let features = text.time(|bar| {
            let mut on_flops = |done| bar.set(done);
            sampler.encode_text(&cleaned, &mut self.watch(&mut on_flops))
        })?;
        report.seconds.push(("text", text.finish()));

        let mut denoise = console.stage("denoise", of_all(1));
        let mut latents: Vec<Vec<f32>> = Vec::new();
        let batches: Vec<&[Job]> = jobs.chunks(request.rows).collect();
        for (number, batch) in batches.iter().enumerate() {
            self.fit(&mut sampler, batch.len())?;
            let done_before = number as u64 * flops[1].1;
            latents.push(self.denoise(
                &mut sampler,
                batch,
                &features,
                &mut denoise,
                done_before,
            )?);
        }
        report.seconds.push(("denoise", denoise.finish()));
        sampler.release(pipeline::Stage::Denoise);

        let mut decode = console.stage("decode", of_all(2));
        let mut encode = console.stage("encode", (jobs.len() * request.num_frames) as u64);
        for (number, batch) in batches.iter().enumerate() {
            self.fit(&mut sampler, batch.len())?;
            let done_before = number as u64 * flops[2].1;
            let written = self.decode(
                &mut sampler,
                batch,
                &latents[number],
                (&mut decode, &mut encode),
                done_before,
            )?;
            for (job, written) in batch.iter().zip(written) {
                let prompt = self.prompts[job.prompt].typed.clone();
                report.outputs.push(Output { prompt, sample_index: job.sample_index, written });
            }
        }
        // Frames are encoded between the steps of decoding.
        decode.elapsed = decode.elapsed.saturating_sub(encode.elapsed);
        report.seconds.push(("decode", decode.finish()));
        report.seconds.push(("encode", encode.finish()));
        if let Some(path) = &self.options.save_latents {
            self.save_latents(path, &latents, jobs.len())?;
        }
        Ok(())
    }

    fn sampler(&self, request: Request, plans: Plans) -> Sampler<'_> {
        Sampler::new(self.model, self.scheduler.clone(), request, plans, Arc::clone(&self.pool))
    }

    /// Makes the sampler one of `rows` videos.
    fn fit<'s>(&'s self, sampler: &mut Sampler<'s>, rows: usize) -> Outcome<()> {
        if sampler.request().rows == rows {
            return Ok(());
        }
        let request = Request { rows, ..sampler.request().clone() };
        let (model, target) = (self.model, self.target);
        let plans = Plans::compile_with(model, &self.scheduler, &request, target, &self.limit)?;
        *sampler = self.sampler(request, plans);
        Ok(())
    }

    fn watch<'w>(&'w self, on_flops: &'w mut dyn FnMut(u64)) -> Watch<'w> {
        Watch { interrupt: Some(self.interrupt), on_flops: Some(on_flops) }
    }

    /// The latents of one batch.
    fn denoise(
        &self,
        sampler: &mut Sampler<'_>,
        batch: &[Job],
        features: &[Features],
        stage: &mut Stage,
        done_before: u64,
    ) -> Outcome<Vec<f32>> {
        let features: Vec<Features> =
            batch.iter().map(|job| features[job.prompt].clone()).collect();
        let mut noise = |draw: u64, out: &mut [f32]| {
            let n = out.len() / batch.len();
            for (job, out) in batch.iter().zip(out.chunks_exact_mut(n)) {
                self.noise.fill(draw, job.sample_index, out);
            }
        };
        let mut conditioning = Conditioning { features: &features, noise: &mut noise, given: None };
        stage.time(|bar| {
            let mut on_flops = |done| bar.set(done_before + done);
            Ok(sampler.denoise(&mut conditioning, &mut self.watch(&mut on_flops))?)
        })
    }

    /// Decodes a batch, each frame into its file.
    fn decode(
        &self,
        sampler: &mut Sampler<'_>,
        batch: &[Job],
        latents: &[f32],
        (decode, encode): (&mut Stage, &mut Stage),
        done_before: u64,
    ) -> Outcome<Vec<Written>> {
        let [height, width] = sampler.request().frame_size(self.model)?;
        let n_frames = sampler.request().num_frames;
        let mut written = Vec::new();
        let mut writer: Option<MediaWriter> = None;
        let mut rgb = Vec::new();
        decode.time(|bar| {
            let mut on_flops = |done| bar.set(done_before + done);
            let mut watch = self.watch(&mut on_flops);
            sampler.decode(latents, &mut watch, |row, t, pixels| -> Outcome<()> {
                encode.time(|bar| {
                    let job = &batch[row];
                    media::frame_from_f32(pixels, Layout::Cthw, [1, height, width], 0, &mut rgb)?;
                    if t == 0 {
                        writer = Some(self.open(job, [width, height])?);
                    }
                    let open = writer.as_mut().expect("opened at frame 0");
                    open.push(&rgb)?;
                    if t + 1 == n_frames {
                        let done = writer.take().expect("opened at frame 0");
                        written.push(done.finish()?);
                    }
                    bar.advance();
                    Ok(())
                })
            })
        })?;
        Ok(written)
    }

    /// Starts the file of a video, with what it was made from.
    fn open(&self, job: &Job, [width, height]: [usize; 2]) -> Outcome<MediaWriter> {
        let prompt = &self.prompts[job.prompt];
        let mut metadata = Metadata::new();
        metadata.push("prompt", &prompt.typed)?;
        metadata.push("seed", &self.settings.seed.to_string())?;
        metadata.push("settings", &self.settings.to_json(self.options, job.sample_index))?;
        metadata.push("version", VERSION)?;
        metadata.push("isa", self.target.isa.name())?;
        let size = [width as u32, height as u32];
        Ok(MediaWriter::create(&job.path, job.format, size, self.settings.save_fps, &metadata)?)
    }

    /// All latents as one tensor.
    fn save_latents(&self, path: &Path, batches: &[Vec<f32>], videos: usize) -> Outcome<()> {
        let values = batches.concat();
        let [t, h, w] = self.settings.request.latent(self.model)?;
        let shape = vec![videos, self.model.transformer.common().in_channels, t, h, w];
        let bytes = Cow::Borrowed(bytemuck::cast_slice(&values));
        let view = TensorView { dtype: checkpoint::DType::F32, shape, bytes };
        let tensors = BTreeMap::from([("latents".to_string(), view)]);
        checkpoint::write_safetensors(path, &tensors, &BTreeMap::new())?;
        Ok(())
    }
}
