//! `kino profile`: runs a model's stages and tells where time and memory went, beside what the plan
//! and the machine's cost model said before.
//!
//! A model by name has made-up weights, so no file is needed; a checkpoint's are its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use checkpoint::{Checkpoint, Pipeline};
use clap::Args;
use compiler::Plan;
use compiler::cost::CostModel;
use kernels::{Pool, Target};
use measure::{MadeUp, Rehearsal};
use models::{stdit1, stdit2, t5, vae};
use ops::Graph;
use pipeline::{Part, Transformer};
use runtime::{LimitedSession, WeightStore};
use serde_json::json;

use crate::calibrate::Calibration;
use crate::dump::{ModelOptions, StageName};
use crate::failure::{Failure, Outcome};
use crate::parts::Parts;
use crate::profile_report::{Memory, StageProfile, Streamed};
use crate::progress::Console;
use crate::report::line;
use crate::{VERSION, machine, plan, profile_scaling, profile_trace, progress, settings, source};

/// What to run and how to show it.
#[derive(Args, Debug)]
pub(crate) struct ProfileOptions {
    #[command(flatten)]
    pub model: ModelOptions,
    /// Runs that count; the best of each step is shown
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub repeat: usize,
    /// Most memory for activations and weights, such as 12GiB: longer runs are chunked, and the text
    /// encoder's weights are streamed
    #[arg(long, value_name = "BYTES", conflicts_with = "scaling")]
    memory: Option<String>,
    /// Slowest steps to list
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Write a trace for Perfetto or Chrome: a slice for each step, and live bytes
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Time of one block over tokens and threads, and against attention over all tokens at once
    #[arg(long, conflicts_with = "trace")]
    scaling: bool,
    /// With --scaling: runs that are expected to take longer are not measured
    #[arg(long, value_name = "SECONDS", default_value_t = 4.0, requires = "scaling")]
    pub at_most: f64,
    /// One JSON document on standard output
    #[arg(long)]
    pub json: bool,
}

/// The command.
pub(crate) fn run(
    options: &ProfileOptions,
    forced_isa: Option<&str>,
    calibration: &Calibration,
    interrupt: &AtomicBool,
) -> Outcome<()> {
    if options.repeat == 0 {
        return Err(Failure::usage("--repeat 0; expected at least 1"));
    }
    let target = machine::target(forced_isa, options.model.threads)?;
    if options.scaling {
        return profile_scaling::run(options, &target, calibration, interrupt);
    }
    let model = calibration.load(&target)?;
    let size = options.model.size()?;
    let limit = compiler::Options {
        memory: options.memory.as_deref().map(settings::parse_memory).transpose()?,
    };
    let parts = Parts::find(&options.model.model)?;
    let stages = options.model.stage.map_or_else(|| parts.stages(), |stage| vec![stage]);
    let pool = Arc::new(Pool::new(target.threads).context("cannot start threads")?);
    let console = Console::new(options.json, false);
    let mut profiles = Vec::new();
    for stage in stages {
        let graph = parts.graph(&options.model, stage, size, &target)?;
        let weights = Weights::open(&options.model, &parts, stage, &graph)?;
        let plan = match stage {
            StageName::Text => {
                pipeline::compile_text(graph, Some(weights.store()), &target, &limit)?
            }
            _ => compiler::compile_with(graph, &target, &limit)?,
        };
        let run = Run { options, console: &console, pool: &pool, interrupt, model: model.as_ref() };
        profiles.push(run.profile(stage, Arc::new(plan), weights.store(), limit.memory)?);
    }
    if let Some(path) = &options.trace {
        let trace = profile_trace::trace(&options.model.model, &profiles);
        media::write_file(path, trace.as_bytes())?;
    }
    report(options, &target, calibration, size, &profiles);
    Ok(())
}

fn report(
    options: &ProfileOptions,
    target: &Target,
    calibration: &Calibration,
    size: [usize; 3],
    profiles: &[StageProfile],
) {
    if options.json {
        let stages: Vec<serde_json::Value> = profiles.iter().map(StageProfile::to_json).collect();
        let document = json!({
            "version": VERSION, "model": options.model.model, "num_frames": size[0],
            "height": size[1], "width": size[2], "batch_size": options.model.batch_size,
            "dtype": options.model.dtype, "threads": target.threads, "isa": target.isa.name(),
            "runs": options.repeat, "stages": stages,
        });
        progress::write_out(&format!("{document:#}\n"));
        return;
    }
    let mut text = plan::header(&options.model, size, target);
    for profile in profiles {
        text += &profile.to_text(options.top);
    }
    if profiles.iter().any(|profile| profile.expected.is_none()) {
        let advice = calibration.advice(target);
        line(
            &mut text,
            format_args!("\nexpected times and shares of the limit are unknown: {advice}"),
        );
    }
    if let Some(path) = &options.trace {
        line(&mut text, format_args!("\nwrote    {}", path.display()));
    }
    progress::write_out(&text);
}

struct Run<'a> {
    options: &'a ProfileOptions,
    console: &'a Console,
    pool: &'a Arc<Pool>,
    interrupt: &'a AtomicBool,
    model: Option<&'a CostModel>,
}

impl Run<'_> {
    /// Runs one stage.
    fn profile(
        &self,
        stage: StageName,
        plan: Arc<Plan>,
        weights: &WeightStore,
        memory: Option<usize>,
    ) -> Outcome<StageProfile> {
        let held_bytes = plan.held_bytes();
        machine::check_memory(memory.unwrap_or(held_bytes).min(held_bytes) as f64, "")?;
        let before = machine::resident_bytes();
        let interrupt = Some(self.interrupt);
        let pool = Arc::clone(self.pool);
        let mut rehearsal = Rehearsal::with_weights(Arc::clone(&plan), pool, weights, memory)?;
        let expected_bytes = rehearsal.session().held_bytes();
        // What was needed while weights were packed does not count.
        machine::forget_peak();
        let flops = plan.flops();
        let mut bar = self.console.stage(stage.name(), flops * (self.options.repeat + 1) as u64);
        bar.time(|bar| -> Outcome<()> {
            rehearsal.warm_up(interrupt)?;
            for number in 0..self.options.repeat {
                let done = flops * (number + 1) as u64;
                rehearsal.run(interrupt, &mut |flops| bar.set(done + flops))?;
            }
            Ok(())
        })?;
        bar.finish();
        let after = machine::resident_bytes();
        let measured =
            before.zip(after).map(|([before, _], [_, most])| most.saturating_sub(before));
        let steps = rehearsal.steps().iter().map(|step| step.least).collect();
        let streamed = match rehearsal.session() {
            LimitedSession::Held(_) => None,
            LimitedSession::Streamed(session) => {
                Some(Streamed { bytes: session.streamed_bytes(), times: rehearsal.stream() })
            }
        };
        Ok(StageProfile::new(
            stage.name(),
            plan,
            steps,
            streamed,
            Memory {
                expected: expected_bytes as u64,
                measured,
                process: after.map(|[_, most]| most),
            },
            self.model,
        ))
    }
}

/// The weights of a stage.
#[derive(Debug)]
enum Weights {
    MadeUp(WeightStore),
    Of(Box<Part>),
}

impl Weights {
    /// The checkpoint's weights where the model is one, else made-up ones.
    fn open(
        options: &ModelOptions,
        parts: &Parts,
        stage: StageName,
        graph: &Graph,
    ) -> Outcome<Weights> {
        let name = options.model.as_str();
        if name == source::EMBEDDED {
            let model = source::embedded()?;
            return Ok(Weights::Of(Box::new(match stage {
                StageName::Text => model.text_encoder,
                StageName::Denoise => model.denoiser,
                StageName::Condition | StageName::Decode => model.autoencoder,
            })));
        }
        if !Path::new(name).exists() {
            return Ok(Weights::MadeUp(WeightStore::new(MadeUp::of(graph))));
        }
        let path = if Pipeline::is_pipeline(name) {
            let component = match stage {
                StageName::Text => "text_encoder",
                StageName::Denoise => "transformer",
                StageName::Condition | StageName::Decode => "vae",
            };
            Pipeline::open(name)?.part(component)?.to_path_buf()
        } else {
            PathBuf::from(name)
        };
        let params = match (stage, parts) {
            (StageName::Text, Parts { t5: Some(config), .. }) => t5::params(config)?,
            (StageName::Denoise, Parts { transformer: Some(config), .. }) => match config {
                Transformer::Stdit1(config) => stdit1::params(config)?,
                Transformer::Stdit2(config) => stdit2::params(config)?,
            },
            (StageName::Condition | StageName::Decode, Parts { vae: Some(config), .. }) => {
                vae::params(config)?
            }
            _ => return Err(Failure::usage(format!("{name} has no {} stage", stage.name()))),
        };
        Ok(Weights::Of(Box::new(Part::new(Checkpoint::open(path)?, &params)?)))
    }

    fn store(&self) -> &WeightStore {
        match self {
            Weights::MadeUp(store) => store,
            Weights::Of(part) => part.weights(),
        }
    }
}
