//! What a run says of itself: the plan before, the results after, as text and as JSON.

use std::fmt::Write;

use compiler::Plan;
use kernels::Target;
use media::Written;
use pipeline::{Model, Plans, Request};
use serde_json::{Value, json};

use crate::failure::Outcome;
use crate::outputs::Job;
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
    /// Fills in the plan of `n_videos` videos.
    pub(crate) fn describe(
        &mut self,
        model: &Model,
        settings: &Settings,
        request: &Request,
        plans: &Plans,
        target: &Target,
        n_videos: usize,
    ) -> Outcome<()> {
        let [height, width] = request.frame_size(model)?;
        let latent = request.latent(model)?;
        let channels = model.transformer.common().in_channels;
        let n_latent = channels * latent.iter().product::<usize>();
        // The sampler holds its latent and two draws, the program all results.
        let host = (3 * request.rows + n_videos).saturating_mul(4 * n_latent);
        self.peak_bytes = plans.peak_bytes().saturating_add(host);
        let per_video = plans.flops(request.rows, request.num_frames, settings.steps);
        let batches = n_videos.div_ceil(request.rows) as u64;
        let stage = |name, plan: &Plan, flops: u64| StagePlan {
            name,
            weight_bytes: plan.weight_bytes(),
            arena_bytes: plan.arena_bytes,
            lower_bound_bytes: plan.lower_bound_bytes,
            n_steps: plan.steps.len(),
            flops: flops.saturating_mul(batches),
        };
        self.stages = vec![
            StagePlan {
                weight_bytes: plans
                    .streamed_memory()
                    .map_or(plans.text.weight_bytes(), |memory| memory - plans.text.arena_bytes),
                ..stage("text", &plans.text, per_video[0].1)
            },
            stage("denoise", &plans.denoise, per_video[1].1),
            stage("decode", &plans.decode, per_video[2].1),
        ];
        let parameters = model.n_parameters() as f64 / 1e6;
        let rate = settings.save_fps.as_f64();
        let plural = |n: usize, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
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
                    plural(request.num_frames, "frame"),
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
                    plural(settings.steps, "step"),
                    units::plain(settings.cfg_scale),
                    settings.seed
                ),
            ),
            (
                "compute",
                format!("{}, {}, {}", plural(target.threads, "thread"), target.isa, request.dtype),
            ),
        ];
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
            "seed": settings.seed, "dtype": settings.storage, "threads": target.threads,
            "isa": target.isa.name(), "model": model.name, "class": model.transformer.name(),
            "n_parameters": model.n_parameters(),
        });
        Ok(())
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
                    "  {:<8} {:>10} {:>12} {:>7} {:>14}",
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

fn line(text: &mut String, args: std::fmt::Arguments<'_>) {
    writeln!(text, "{args}").expect("a string takes any text");
}
