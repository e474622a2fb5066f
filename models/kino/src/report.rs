//! What a run says of itself: the plan before, the results after, as text and as JSON.

use std::fmt::Write;

use compiler::Plan;
use kernels::Target;
use media::Written;
use pipeline::{Model, Plans, Request};
use serde_json::{Value, json};

use crate::failure::Outcome;
use crate::outputs::Job;
use crate::references::Placed;
use crate::settings::Settings;
use crate::{VERSION, units};

/// A video that was written.
#[derive(Debug)]
pub(crate) struct Output {
    /// As typed.
    pub prompt: String,
    /// Its number.
    pub sample_index: u64,
    /// The file.
    pub written: Written,
}

/// A stage of the plan.
#[derive(Debug)]
struct StagePlan {
    name: &'static str,
    weight_bytes: usize,
    arena_bytes: usize,
    lower_bound_bytes: usize,
    n_steps: usize,
    flops: u64,
}

/// What a run is going to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned<'a> {
    pub model: &'a Model,
    pub settings: &'a Settings,
    /// With the batch size that is used.
    pub request: &'a Request,
    pub plans: &'a Plans,
    pub target: &'a Target,
    pub placed: &'a Placed,
    /// Texts to encode.
    pub n_texts: usize,
    /// Videos of all batches.
    pub n_videos: usize,
}

/// Everything there is to say about a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    stages: Vec<StagePlan>,
    header: Vec<(&'static str, String)>,
    request: Value,
    /// Bytes of arenas, weights and latents at the fullest moment.
    pub peak_bytes: usize,
    /// Seconds of each stage.
    pub seconds: Vec<(&'static str, f64)>,
    /// Videos.
    pub outputs: Vec<Output>,
}

impl Report {
    /// Fills in what is planned.
    pub(crate) fn describe(&mut self, planned: &Planned<'_>) -> Outcome<()> {
        let Planned { model, settings, request, plans, target, placed, n_texts, n_videos } =
            *planned;
        let [height, width] = request.frame_size(model)?;
        let latent = request.latent(model)?;
        let channels = model.transformer.common().in_channels;
        let n_latent = channels * latent.iter().product::<usize>();
        let n_given = placed.n_pictures();
        let n_loops = settings.n_loops;
        // What each loop after the first begins with is encoded again; its pixels are kept till then.
        let n_again = (n_loops - 1).saturating_mul(settings.condition_frames);
        let n_tail = if n_loops > 1 { settings.condition_frames * request.rows } else { 0 };
        // The runner holds a latent and a draw (or what the step before predicted) and the sampler the next
        // draw; where frames are given, there are another draw and the given. The program holds all results
        // and one latent of each given picture.
        let n_held = if request.frame_mask { 5 } else { 3 };
        let host = (n_held * request.rows + n_videos)
            .saturating_mul(4 * n_latent)
            .saturating_add(n_given.saturating_mul(4 * n_latent / latent[0]))
            .saturating_add(n_tail.saturating_mul(3 * 4 * height * width));
        self.peak_bytes = plans.peak_bytes(n_loops > 1).saturating_add(host);
        let n_encoded = n_given.saturating_add(n_again.saturating_mul(n_videos));
        let per_batch = plans.flops(request.rows, request.num_frames, settings.steps, n_encoded);
        let stage = |name, plan: &Plan, flops: u64| StagePlan {
            name,
            weight_bytes: plan.weight_bytes(),
            arena_bytes: plan.arena_bytes,
            lower_bound_bytes: plan.lower_bound_bytes,
            n_steps: plan.steps.len(),
            flops,
        };
        let [_, condition, denoise, decode] = per_batch.map(|(_, flops)| flops);
        // The last batch may be smaller; what it costs is in proportion.
        let all =
            |flops: u64| (flops / request.rows as u64).saturating_mul((n_videos * n_loops) as u64);
        let text = plans.text.flops().saturating_mul(n_texts as u64);
        let held = plans.streamed_memory().map(|memory| memory - plans.text.arena_bytes);
        self.stages = vec![StagePlan {
            weight_bytes: held.unwrap_or(plans.text.weight_bytes()),
            ..stage("text", &plans.text, text)
        }];
        self.stages
            .extend(plans.condition.as_ref().map(|plan| stage("condition", plan, condition)));
        self.stages.push(stage("denoise", &plans.denoise, all(denoise)));
        self.stages.push(stage("decode", &plans.decode, all(decode)));
        let parameters = model.n_parameters() as f64 / 1e6;
        let rate = settings.save_fps.as_f64();
        let guided = settings.cfg_channel.map_or(String::new(), |n| {
            if n < channels { format!(" on {n} of {channels} channels") } else { String::new() }
        });
        self.header = vec![
            (
                "model",
                format!(
                    "{} ({}, {parameters:.1}M parameters)",
                    model.name,
                    model.transformer.name()
                ),
            ),
            (
                "bucket",
                format!(
                    "{} of {height}x{width}, latent {channels}x{}x{}x{}, batch {}",
                    units::counted(request.num_frames, "frame"),
                    latent[0],
                    latent[1],
                    latent[2],
                    request.rows
                ),
            ),
            (
                "sampler",
                format!(
                    "{}, {}, guidance {}{guided}, seed {}",
                    settings.kind.name(),
                    units::counted(settings.steps, "step"),
                    units::plain(settings.cfg_scale),
                    settings.seed
                ),
            ),
            (
                "compute",
                format!(
                    "{}, {}, {}",
                    units::counted(target.threads, "thread"),
                    target.isa,
                    request.dtype
                ),
            ),
        ];
        if n_loops > 1 {
            self.header.push((
                "loops",
                format!(
                    "{n_loops}, which share {}: {} in all",
                    units::counted(settings.condition_frames, "frame"),
                    units::counted(settings.total_frames(), "frame")
                ),
            ));
        }
        self.header.extend(placed.summary().map(|given| ("given", given)));
        if plans.streamed_memory().is_some() {
            let all = units::bytes(plans.text.weight_bytes() as f64);
            let text = format!("text encoder: {all} of weights pass through memory per prompt");
            self.header.push(("streamed", text));
        }
        self.request = json!({
            "num_frames": request.num_frames, "height": height, "width": width,
            "latent": [channels, latent[0], latent[1], latent[2]],
            "fps": request.fps, "save_fps": rate, "batch_size": request.rows,
            "scheduler": settings.kind.name(), "num_sampling_steps": settings.steps,
            "cfg_scale": settings.cfg_scale, "cfg_channel": settings.cfg_channel,
            "seed": settings.seed, "dtype": settings.storage,
            "text_dtype": settings.text_storage, "threads": target.threads,
            "isa": target.isa.name(), "model": model.name, "class": model.transformer.name(),
            "n_parameters": model.n_parameters(), "n_given_pictures": n_given,
            "loop": n_loops, "total_frames": settings.total_frames(),
        });
        Ok(())
    }

    /// FLOPs of all videos in a stage; 0 if there is none of this name.
    pub(crate) fn flops(&self, stage: &str) -> u64 {
        self.stages.iter().find(|plan| plan.name == stage).map_or(0, |plan| plan.flops)
    }

    /// The plan, for people.
    pub(crate) fn plan_text(&self, jobs: &[Job]) -> String {
        let mut text = String::new();
        let outputs = match jobs {
            [one] => one.path.display().to_string(),
            [first, .., last] => {
                format!("{} to {} ({})", first.path.display(), last.path.display(), jobs.len())
            }
            [] => String::new(),
        };
        for (name, value) in self.header.iter().chain([&("output", outputs)]) {
            line(&mut text, format_args!("{name:<8} {value}"));
        }
        let bytes = |count: usize| units::bytes(count as f64);
        let head = ["weights", "arena", "steps", "work"];
        line(
            &mut text,
            format_args!(
                "{:<8} {:>12} {:>12} {:>7} {:>14}",
                "plan", head[0], head[1], head[2], head[3]
            ),
        );
        for stage in &self.stages {
            line(
                &mut text,
                format_args!(
                    "  {:<9} {:>9} {:>12} {:>7} {:>14}",
                    stage.name,
                    bytes(stage.weight_bytes),
                    bytes(stage.arena_bytes),
                    stage.n_steps,
                    units::flops(stage.flops)
                ),
            );
        }
        let work = units::flops(self.stages.iter().map(|stage| stage.flops).sum());
        line(
            &mut text,
            format_args!("{:<8} {} at the peak; {work} in all", "memory", bytes(self.peak_bytes)),
        );
        text
    }

    /// What was written, for people.
    pub(crate) fn result_text(&self) -> String {
        let mut text = String::new();
        for Output { written, .. } in &self.outputs {
            let (path, frames) = (written.path.display(), written.frames);
            let noun = if frames == 1 { "frame" } else { "frames" };
            let bytes = units::bytes(written.bytes as f64);
            line(&mut text, format_args!("wrote    {path} ({frames} {noun}, {bytes})"));
        }
        let times: Vec<String> = self
            .seconds
            .iter()
            .map(|(name, seconds)| format!("{name} {}", units::seconds(*seconds)))
            .collect();
        line(&mut text, format_args!("time     {}", times.join(", ")));
        text
    }

    /// Everything, for programs.
    pub(crate) fn to_json(&self, warnings: &[String]) -> String {
        let stages: Vec<Value> = self
            .stages
            .iter()
            .map(|stage| {
                json!({
                    "stage": stage.name, "weight_bytes": stage.weight_bytes,
                    "arena_bytes": stage.arena_bytes,
                    "lower_bound_bytes": stage.lower_bound_bytes, "steps": stage.n_steps,
                    "flops": stage.flops,
                })
            })
            .collect();
        let seconds: serde_json::Map<String, Value> =
            self.seconds.iter().map(|(name, time)| (name.to_string(), json!(time))).collect();
        let outputs: Vec<Value> = self
            .outputs
            .iter()
            .map(|output| {
                json!({
                    "path": output.written.path.display().to_string(),
                    "frames": output.written.frames, "bytes": output.written.bytes,
                    "prompt": output.prompt, "sample_index": output.sample_index,
                })
            })
            .collect();
        let document = json!({
            "version": VERSION, "request": self.request,
            "plan": { "stages": stages, "peak_bytes": self.peak_bytes },
            "seconds": seconds, "outputs": outputs, "warnings": warnings,
        });
        format!("{document:#}\n")
    }
}

/// Appends a line.
pub(crate) fn line(text: &mut String, args: std::fmt::Arguments<'_>) {
    writeln!(text, "{args}").expect("a string takes any text");
}
