//! `kino roofline`: what an engine or a model's plans would take on a GPU, and what limits them.
//!
//! No GPU is needed and nothing runs. The numbers are those of [`crate::gpu_model`], and every report
//! says that they are modelled and what they rest on.

use std::collections::BTreeMap;

use clap::Args;
use compiler::cost::Limit;
use kernels::cuda::Gpu;
use kernels::{Kernel, Target};
use ops::DType;
use serde_json::{Value, json};

use crate::dump::{ModelOptions, StageName};
use crate::failure::{Failure, Outcome};
use crate::gpu_model::{Code, Roofline, Task, intensity};
use crate::gpus::{self, DataSheet};
use crate::options::Storage;
use crate::plan::{StagePlan, percent, stage_plans};
use crate::report::line;
use crate::{VERSION, machine, progress, roofline_table, units};

/// What to model, and for which device.
#[derive(Args, Debug)]
pub(crate) struct RooflineOptions {
    /// An engine, or a model as `kino plan` takes it
    model: String,
    /// h100, h200, a100, rtx4090 or l40s
    #[arg(long, value_name = "GPU")]
    gpu: String,
    /// One program, where there are several
    #[arg(long, value_name = "NAME")]
    program: Option<String>,
    /// Size of a model: 240p:16f:9:16 (name, frames, aspect) or 16x256x256 (frames, height, width)
    #[arg(long, default_value = "240p:16f:9:16", value_name = "BUCKET")]
    bucket: String,
    /// One part of sampling, where the model has several
    #[arg(long)]
    stage: Option<StageName>,
    /// Videos at once
    #[arg(long, default_value_t = 1)]
    batch_size: usize,
    /// Storage type of weights and activations
    #[arg(long, default_value = "bf16")]
    dtype: Storage,
    /// Generation that a model's kernels are made for, such as `sm_80` [default: that of the GPU]
    #[arg(long, value_name = "ARCH")]
    target: Option<String>,
    /// A table over upstream's resolutions and lengths
    #[arg(long, conflicts_with = "program")]
    all_buckets: bool,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// The steps of one program.
#[derive(Debug)]
struct Program {
    name: String,
    tasks: Vec<Task>,
}

/// Modelled work of several steps.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Total {
    /// Steps.
    pub steps: usize,
    /// Launches.
    pub launches: usize,
    /// FLOPs.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// Modelled seconds.
    pub seconds: f64,
    /// Seconds of steps that are limited by arithmetic, by bytes, by launches.
    by_limit: [f64; LIMITS.len()],
}

const LIMITS: [Limit; 3] = [Limit::Compute, Limit::Memory, Limit::Launch];

/// The command.
pub(crate) fn run(options: &RooflineOptions) -> Outcome<()> {
    let sheet = gpus::data_sheet(&options.gpu)?;
    #[cfg(feature = "engine-files")]
    if engine::Engine::is_engine(options.model.as_ref()) {
        if options.all_buckets {
            let reason = "--all-buckets plans a model; an engine has the programs that it has";
            return Err(Failure::usage(reason));
        }
        let engine = crate::inspect_engine::open(options.model.as_ref())?;
        let target = target_of_engine(&options.model, &engine, sheet)?;
        // Code that is specific to a generation is code of the last.
        let code = if target.is_specific { Code::Groups } else { Code::Warps };
        let roofline = Roofline::new(sheet, code, engine.dtype);
        return report(options, &roofline, engine.dtype, programs_of_engine(&engine, target));
    }
    let gpu = match options.target.as_deref() {
        Some(name) => gpus::generation("--target", name)?,
        None => sheet.generation,
    };
    let code = code_for(gpu, sheet)?;
    let dtype = options.dtype.dtype();
    let roofline = Roofline::new(sheet, code, dtype);
    let model = options.model();
    let target = machine::gpu_target(gpu);
    if options.all_buckets {
        return roofline_table::run(&model, &target, &roofline, options.json);
    }
    let plans = plans(&model, &target)?;
    let programs = plans.iter().map(|plan| Program {
        name: format!("{} {}", plan.stage.name(), options.bucket),
        tasks: tasks_of_plan(plan),
    });
    report(options, &roofline, dtype, programs.collect())
}

fn plans(model: &ModelOptions, target: &Target) -> Outcome<Vec<StagePlan>> {
    stage_plans(model, model.size()?, target, &compiler::Options::default(), None)
}

impl RooflineOptions {
    fn model(&self) -> ModelOptions {
        ModelOptions {
            model: self.model.clone(),
            bucket: self.bucket.clone(),
            stage: self.stage,
            batch_size: self.batch_size,
            dtype: self.dtype,
            text_dtype: Some(self.dtype),
            threads: None,
        }
    }
}

/// How kernels for `gpu` multiply, if the device runs them.
fn code_for(gpu: Gpu, sheet: &DataSheet) -> Outcome<Code> {
    // Code for the last generation is specific to it; other code runs on whatever is newer.
    match gpu {
        Gpu(90) if sheet.generation == gpu => Ok(Code::Groups),
        Gpu(90) => Err(unusable(sheet, &gpu.code_name())),
        gpu if gpu <= sheet.generation => Ok(Code::Warps),
        gpu => Err(unusable(sheet, &gpu.code_name())),
    }
}

fn unusable(sheet: &DataSheet, target: &str) -> Failure {
    Failure::usage(format!(
        "the {} is {} and runs no code for {target}; use --target {}",
        sheet.title,
        sheet.generation,
        sheet.generation.code_name()
    ))
}

/// The steps of a stage's plan.
pub(crate) fn tasks_of_plan(plan: &StagePlan) -> Vec<Task> {
    let steps = plan.plan.steps.iter().zip(&plan.works);
    let task = |(step, work): (&compiler::Step, &compiler::Work)| Task {
        kernel: step.kernel.def().name().to_owned(),
        flops: work.flops(),
        bytes: work.bytes(),
        scratch_bytes: step.scratch.map_or(0, |id| plan.plan.buffers[id.index()].bytes as u64),
        launches: match &step.kernel {
            Kernel::Cuda(kernel) => kernel.launches.len(),
            _ => 1,
        },
    };
    steps.map(task).collect()
}

/// The programs for `target`.
#[cfg(feature = "engine-files")]
fn programs_of_engine(engine: &engine::Engine, target: engine::Arch) -> Vec<Program> {
    let task = |step: &engine::Step| Task {
        kernel: step.label.clone(),
        flops: step.flops,
        bytes: step.bytes,
        scratch_bytes: step.scratch_bytes,
        launches: step.launches.len(),
    };
    let program = |program: &engine::Program| Program {
        name: program.name.clone(),
        tasks: program.steps.iter().map(task).collect(),
    };
    engine.programs.iter().filter(|program| program.target == target).map(program).collect()
}

/// Which programs of an engine the device runs; fails if it runs none.
#[cfg(feature = "engine-files")]
fn target_of_engine(
    name: &str,
    engine: &engine::Engine,
    sheet: &DataSheet,
) -> Outcome<engine::Arch> {
    let generation = sheet.generation;
    let device = engine::Arch::of_device(generation.0 / 10, generation.0 % 10);
    let (_, shared_bytes) = generation.shared_bytes();
    let runs = |kernel: &engine::Kernel| {
        kernel.image_for(device).is_some() && kernel.shared_bytes as usize <= shared_bytes
    };
    engine.target_for(device, &runs).ok_or_else(|| {
        let targets: Vec<String> = engine.targets().iter().map(ToString::to_string).collect();
        Failure::usage(format!(
            "{name} is for {}, and the {} is {device}; use an engine that was compiled with \
             --target {}",
            if targets.is_empty() { "no GPU".to_owned() } else { targets.join(", ") },
            sheet.title,
            generation.code_name()
        ))
    })
}

fn report(
    options: &RooflineOptions,
    roofline: &Roofline,
    dtype: DType,
    mut programs: Vec<Program>,
) -> Outcome<()> {
    if let Some(name) = &options.program {
        let known: Vec<&str> = programs.iter().map(|program| program.name.as_str()).collect();
        if !known.contains(&name.as_str()) {
            let known = known.join(", ");
            return Err(Failure::usage(format!("--program {name}; expected one of {known}")));
        }
        programs.retain(|program| program.name == *name);
    }
    let text = if options.json {
        let document = json!({
            "version": VERSION, "model": options.model, "gpu": roofline.sheet.name,
            "dtype": dtype.to_string(), "modelled": true,
            "assumptions": roofline.assumptions(dtype),
            "programs": programs.iter().map(|program| program.to_json(roofline)).collect::<Vec<_>>(),
        });
        format!("{document:#}\n")
    } else {
        let mut text = header(&options.model, roofline, dtype);
        for program in &programs {
            text += &program.to_text(roofline);
        }
        text
    };
    progress::write_out(&text);
    Ok(())
}

/// The first lines of every report: that it is modelled, and from what.
pub(crate) fn header(model: &str, roofline: &Roofline, dtype: DType) -> String {
    let sheet = roofline.sheet;
    let mut text = String::new();
    line(&mut text, format_args!("model    {model}, {dtype}"));
    line(
        &mut text,
        format_args!(
            "device   {}, {}: {} of memory, {} of L2; modelled, not measured",
            sheet.title,
            sheet.generation,
            units::bytes(sheet.memory_bytes as f64),
            units::bytes(sheet.l2_bytes as f64)
        ),
    );
    for assumption in roofline.assumptions(dtype) {
        line(&mut text, format_args!("  {assumption}"));
    }
    text
}

impl Program {
    fn to_text(&self, roofline: &Roofline) -> String {
        let all = Total::of(&self.tasks, roofline);
        let mut text = String::new();
        line(&mut text, format_args!("\n{}, modelled", self.name));
        line(
            &mut text,
            format_args!(
                "  {:<12} {:>6} {:>8} {:>14} {:>11} {:>9} {:>10} {:>7}  limit",
                "kernel", "steps", "launches", "work", "moved", "FLOP/byte", "time", "share"
            ),
        );
        let kernels = self.by_kernel(roofline);
        for (name, total) in kernels.into_iter().chain([("in all", all)]) {
            line(
                &mut text,
                format_args!(
                    "  {name:<12} {:>6} {:>8} {:>14} {:>11} {:>9.1} {:>10} {:>7}  {}",
                    total.steps,
                    total.launches,
                    units::flops(total.flops),
                    units::bytes(total.bytes as f64),
                    intensity(total.flops, total.bytes),
                    units::seconds(total.seconds),
                    percent(total.seconds, all.seconds),
                    total.limit().name()
                ),
            );
        }
        text
    }

    fn to_json(&self, roofline: &Roofline) -> Value {
        let mut document = Total::of(&self.tasks, roofline).to_json();
        document["name"] = json!(self.name);
        let kernels = self.by_kernel(roofline).into_iter().map(|(name, total)| {
            let mut document = total.to_json();
            document["kernel"] = json!(name);
            document
        });
        document["kernels"] = kernels.collect();
        document
    }

    /// Totals by kind of kernel, most time first.
    fn by_kernel(&self, roofline: &Roofline) -> Vec<(&str, Total)> {
        let mut totals: BTreeMap<&str, Total> = BTreeMap::new();
        for task in &self.tasks {
            totals.entry(&task.kernel).or_default().add(task, roofline);
        }
        let mut totals: Vec<(&str, Total)> = totals.into_iter().collect();
        totals.sort_by(|(_, a), (_, b)| b.seconds.total_cmp(&a.seconds));
        totals
    }
}

impl Total {
    /// The sum of `tasks`.
    pub(crate) fn of(tasks: &[Task], roofline: &Roofline) -> Total {
        let mut total = Total::default();
        for task in tasks {
            total.add(task, roofline);
        }
        total
    }

    fn add(&mut self, task: &Task, roofline: &Roofline) {
        let estimate = roofline.estimate(task);
        self.steps += 1;
        self.launches += task.launches;
        self.flops = self.flops.saturating_add(task.flops);
        self.bytes = self.bytes.saturating_add(task.bytes);
        self.seconds += estimate.seconds;
        for (limit, seconds) in LIMITS.iter().zip(&mut self.by_limit) {
            *seconds += if *limit == estimate.limit { estimate.seconds } else { 0.0 };
        }
    }

    /// What limits most of the time.
    pub(crate) fn limit(&self) -> Limit {
        let most = self.by_limit.iter().copied().fold(0.0, f64::max);
        let at = self.by_limit.iter().position(|&seconds| seconds == most);
        at.map_or(Limit::Launch, |at| LIMITS[at])
    }

    /// All of it, for programs.
    pub(crate) fn to_json(self) -> Value {
        json!({
            "steps": self.steps, "launches": self.launches, "flops": self.flops,
            "bytes": self.bytes, "intensity": intensity(self.flops, self.bytes),
            "seconds": self.seconds, "limit": self.limit().name(),
        })
    }
}
