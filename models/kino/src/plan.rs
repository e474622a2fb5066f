//! `kino plan`: what a request takes before anything runs: memory and what holds it, work, expected
//! time. No weight is read.
//!
//! The numbers are those of the plan itself; time comes from the machine's cost model, if `kino
//! calibrate` has measured one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use compiler::cost::CostModel;
use compiler::{Content, Plan, Purpose, Work};
use kernels::Target;
use kernels::cuda::Gpu;
use ops::{Graph, Op, ValueId};
use serde_json::{Value, json};

use crate::calibrate::Calibration;
use crate::dump::{ModelOptions, StageName};
use crate::failure::Outcome;
use crate::parts::Parts;
use crate::report::line;
use crate::{VERSION, gpus, machine, plan_chart, plan_page, plan_table, progress, settings, units};

/// What to plan and how to show it.
#[derive(Args, Debug)]
pub(crate) struct PlanOptions {
    #[command(flatten)]
    pub model: ModelOptions,
    /// Draw the arena over time
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write a page that shows the arena over time, to zoom into
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Most memory for arena and weights, such as 12GiB: chunks get smaller, a text encoder's weights are streamed
    #[arg(long, value_name = "BYTES")]
    memory: Option<String>,
    /// A plan for a GPU: h100, h200, a100, rtx4090, l40s, or a generation such as `sm_90a`
    #[arg(long, value_name = "GPU", conflicts_with = "threads")]
    gpu: Option<String>,
    /// A table over upstream's resolutions and lengths
    #[arg(long, conflicts_with_all = ["svg", "html"])]
    all_buckets: bool,
    /// One JSON document on standard output
    #[arg(long)]
    pub json: bool,
}

/// Buffers that are listed at the peak; the rest is one line.
const LISTED: usize = 8;

/// The plan of one stage, and what is said of it.
#[derive(Debug)]
pub(crate) struct StagePlan {
    /// The stage.
    pub stage: StageName,
    /// Its plan.
    pub plan: Arc<Plan>,
    /// What arena and weights may take together where the weights are streamed.
    streamed: Option<usize>,
    /// The work of each step.
    pub works: Vec<Work>,
    /// Expected seconds of each step, on a calibrated machine.
    pub seconds: Option<Vec<f64>>,
}

/// The work of all steps of one kernel.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct KernelTotal {
    /// Steps.
    pub steps: usize,
    /// FLOPs.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// Expected seconds; 0 without a cost model.
    pub seconds: f64,
}

/// A buffer that is live at the fullest step.
#[derive(Debug)]
pub(crate) struct Held {
    /// Its index in the plan.
    pub buffer: usize,
    /// What it is for.
    pub purpose: Purpose,
    /// What it holds at that step.
    pub content: Content,
}

/// The command.
pub(crate) fn run(
    options: &PlanOptions,
    forced_isa: Option<&str>,
    calibration: &Calibration,
) -> Outcome<()> {
    let gpu = options.gpu.as_deref().map(gpus::device_or_generation).transpose()?;
    let (target, model, advice) = match gpu {
        Some((gpu, _)) => (machine::gpu_target(gpu), None, "`kino roofline` models it for a GPU"),
        None => {
            let target = machine::target(forced_isa, options.model.threads)?;
            let model = calibration.load(&target)?;
            let advice = calibration.advice(&target);
            (target, model, advice)
        }
    };
    if options.all_buckets {
        return plan_table::run(options, &target, model.as_ref(), advice);
    }
    let size = options.model.size()?;
    let limit = options.limit()?;
    let stages = stage_plans(&options.model, size, &target, &limit, model.as_ref())?;
    if let Some(path) = &options.svg {
        media::write_file(path, plan_chart::svg(&options.model, size, &stages).as_bytes())?;
    }
    if let Some(path) = &options.html {
        media::write_file(path, plan_page::html(&options.model, size, &stages).as_bytes())?;
    }
    if options.json {
        let document = json!({
            "version": VERSION, "model": options.model.model,
            "num_frames": size[0], "height": size[1], "width": size[2],
            "batch_size": options.model.batch_size, "dtype": options.model.dtype,
            "threads": target.threads, "isa": target.isa.name(), "calibrated": model.is_some(),
            "gpu": target.gpu.map(Gpu::code_name),
            "peak_bytes": peak_bytes(&stages),
            "stages": stages.iter().map(StagePlan::to_json).collect::<Vec<_>>(),
        });
        progress::write_out(&format!("{document:#}\n"));
        return Ok(());
    }
    let mut text = header(&options.model, size, &target);
    for stage in &stages {
        text += &stage.to_text();
    }
    if stages.len() > 1 {
        let peak = units::bytes(peak_bytes(&stages) as f64);
        line(
            &mut text,
            format_args!(
                "\npeak     {peak} for the whole run: each stage is given back before the next"
            ),
        );
    }
    if model.is_none() {
        line(&mut text, format_args!("\ntime     unknown: {advice}"));
    }
    if let Some((_, Some(sheet))) = gpu {
        let (needed, memory) = (peak_bytes(&stages) as f64, sheet.memory_bytes as f64);
        let verdict = if needed <= memory { "fits" } else { "does not fit" };
        let (needed, memory) = (units::bytes(needed), units::bytes(memory));
        let device = sheet.title;
        line(&mut text, format_args!("device   {needed} {verdict} {memory} of one {device}"));
    }
    for path in options.svg.iter().chain(&options.html) {
        line(&mut text, format_args!("wrote    {}", path.display()));
    }
    progress::write_out(&text);
    Ok(())
}

/// The plans of the stage that is asked for, else of every stage that the model has.
pub(crate) fn stage_plans(
    options: &ModelOptions,
    size: [usize; 3],
    target: &Target,
    limit: &compiler::Options,
    model: Option<&CostModel>,
) -> Outcome<Vec<StagePlan>> {
    let parts = Parts::find(&options.model)?;
    let stages = options.stage.map_or_else(|| parts.stages(), |stage| vec![stage]);
    let planned = stages.into_iter().map(|stage| {
        let graph = parts.graph(options, stage, size, target)?;
        StagePlan::compile(stage, graph, target, limit, model)
    });
    planned.collect()
}

/// Bytes of arena and weights of the largest stage: each is given back before the next, as
/// [`pipeline::Plans::peak_bytes`] has it.
pub(crate) fn peak_bytes(stages: &[StagePlan]) -> usize {
    stages.iter().map(StagePlan::held_bytes).max().unwrap_or(0)
}

impl PlanOptions {
    /// What plans are held to.
    pub(crate) fn limit(&self) -> Outcome<compiler::Options> {
        let memory = self.memory.as_deref().map(settings::parse_memory).transpose()?;
        Ok(compiler::Options { memory })
    }
}

impl StagePlan {
    /// The plan of `graph` within `limit`, as sampling compiles that stage, with what `model` expects
    /// of it.
    pub(crate) fn compile(
        stage: StageName,
        graph: Graph,
        target: &Target,
        limit: &compiler::Options,
        model: Option<&CostModel>,
    ) -> Outcome<StagePlan> {
        let plan = match stage {
            StageName::Text => pipeline::compile_text(graph, None, target, limit)?,
            StageName::Condition | StageName::Denoise | StageName::Decode => {
                compiler::compile_with(graph, target, limit)?
            }
        };
        let works = plan.works();
        let seconds =
            model.map(|model| works.iter().map(|work| model.estimate(work).seconds).collect());
        let streamed = limit.memory.filter(|&memory| plan.held_bytes() > memory);
        Ok(StagePlan { stage, plan: Arc::new(plan), streamed, works, seconds })
    }

    /// Bytes of arena and weights at once.
    pub(crate) fn held_bytes(&self) -> usize {
        self.streamed.unwrap_or(self.plan.held_bytes())
    }

    /// Expected seconds of one run.
    pub(crate) fn total_seconds(&self) -> Option<f64> {
        self.seconds.as_ref().map(|seconds| seconds.iter().sum())
    }

    /// Bytes of the arena above its lower bound.
    pub(crate) fn gap_bytes(&self) -> usize {
        self.plan.arena_bytes - self.plan.lower_bound_bytes
    }

    /// What is live at `step`, largest first.
    pub(crate) fn held_at(&self, step: usize) -> Vec<Held> {
        let buffers = &self.plan.buffers;
        let mut held: Vec<Held> = self
            .plan
            .residents()
            .into_iter()
            .filter(|resident| {
                let buffer = &buffers[resident.buffer.index()];
                (buffer.first_step..=buffer.last_step).contains(&step)
            })
            .filter_map(|resident| {
                let content = resident.content_at(step)?.clone();
                let buffer = resident.buffer.index();
                Some(Held { buffer, purpose: resident.purpose, content })
            })
            .collect();
        held.sort_by_key(|held| (usize::MAX - buffers[held.buffer].bytes, held.buffer));
        held
    }

    /// The work of each kernel, by its name and the way it was chosen to compute.
    fn kernel_totals(&self) -> BTreeMap<(&'static str, String), KernelTotal> {
        let mut totals: BTreeMap<(&'static str, String), KernelTotal> = BTreeMap::new();
        for (index, (work, step)) in self.works.iter().zip(&self.plan.steps).enumerate() {
            let total = totals.entry((work.kernel, step.kernel.def().way())).or_default();
            total.steps += 1;
            total.flops = total.flops.saturating_add(work.flops());
            total.bytes = total.bytes.saturating_add(work.bytes());
            total.seconds += self.seconds.as_ref().map_or(0.0, |seconds| seconds[index]);
        }
        totals
    }

    fn to_text(&self) -> String {
        let plan = &self.plan;
        let bytes = |count: usize| units::bytes(count as f64);
        let mut text = String::new();
        line(
            &mut text,
            format_args!(
                "\n{:<8} {} in {} steps, {} moved",
                self.stage.name(),
                units::flops(plan.flops()),
                plan.steps.len(),
                units::bytes(plan.bytes_moved() as f64)
            ),
        );
        let (held, arena) = (bytes(self.held_bytes()), bytes(plan.arena_bytes));
        let weights = bytes(plan.weight_bytes());
        let weights = match self.streamed {
            Some(memory) => {
                format!(
                    "{} for weights, of which {weights} are streamed",
                    bytes(memory - plan.arena_bytes)
                )
            }
            None => format!("{weights} weights"),
        };
        line(&mut text, format_args!("  memory {held} = {arena} arena + {weights}"));
        let gap = percent(self.gap_bytes() as f64, plan.lower_bound_bytes as f64);
        let bound = bytes(plan.lower_bound_bytes);
        line(
            &mut text,
            format_args!("  bound  {bound}: the arena is {gap} above the least possible"),
        );
        if let Some(seconds) = self.total_seconds() {
            let rate = units::flops((plan.flops() as f64 / seconds) as u64);
            let seconds = units::seconds(seconds);
            line(&mut text, format_args!("  time   {seconds} expected, {rate}/s"));
        }
        text += &self.peak_text();
        text += &self.parts_text();
        text += &self.kernels_text();
        text
    }

    /// What holds the arena's peak.
    fn peak_text(&self) -> String {
        let plan = &self.plan;
        let fullest = plan.fullest_step();
        let mut text = String::new();
        let at = match plan.steps.get(fullest) {
            Some(step) => {
                let scope = &plan.graph.node(step.value).scope;
                format!("step {fullest}, {} {}", step.kernel.def().name(), name_of(scope))
            }
            None => "the end".to_string(),
        };
        line(&mut text, format_args!("  peak   at {at}"));
        let held = self.held_at(fullest);
        let live = plan.lower_bound_bytes as f64;
        for held in held.iter().take(LISTED) {
            let size = plan.buffers[held.buffer].bytes as f64;
            let row = format!(
                "    {:>10} {:>7}  {:<24} {:<10} {}",
                units::bytes(size),
                percent(size, live),
                type_of(&held.content),
                origin_of(held),
                name_of(&held.content.scope)
            );
            line(&mut text, format_args!("{}", row.trim_end()));
        }
        if held.len() > LISTED {
            let rest = &held[LISTED..];
            let size: usize = rest.iter().map(|held| plan.buffers[held.buffer].bytes).sum();
            let (size, share) = (size as f64, percent(size as f64, live));
            let (size, n) = (units::bytes(size), rest.len());
            line(&mut text, format_args!("    {size:>10} {share:>7}  in {n} more"));
        }
        text
    }

    /// Values that are made in parts, so that what leads to them never exists whole.
    fn parts_text(&self) -> String {
        let counts = self.parts();
        let (Some((fewest, _)), Some((most, _))) =
            (counts.first_key_value(), counts.last_key_value())
        else {
            return String::new();
        };
        let n_values = counts.values().sum();
        let parts = if fewest == most { format!("{most}") } else { format!("{fewest} to {most}") };
        let values = units::counted(n_values, "value");
        format!(
            "  parts  {values} made in {parts} parts, so that what leads there is never whole\n"
        )
    }

    /// How many values are written in place by how many parts.
    fn parts(&self) -> BTreeMap<usize, usize> {
        let plan = &self.plan;
        let stepped: BTreeSet<ValueId> = plan.steps.iter().map(|step| step.value).collect();
        let mut counts = BTreeMap::new();
        for value in plan.graph.values() {
            let is_concat = matches!(plan.graph.op(value), Some(Op::Concat(_)));
            if is_concat && !stepped.contains(&value) {
                *counts.entry(plan.graph.node(value).args.len()).or_default() += 1;
            }
        }
        counts
    }

    /// Steps and work by kernel and way, most work first: what the compiler chose.
    fn kernels_text(&self) -> String {
        let mut text = String::new();
        let mut totals: Vec<_> = self.kernel_totals().into_iter().collect();
        totals.sort_by_key(|(_, total)| u64::MAX - total.flops);
        let total_seconds = self.total_seconds();
        let head = if total_seconds.is_some() {
            format!(" {:>10} {:>7}", "expected", "share")
        } else {
            String::new()
        };
        let row = format!("  {:<24} {:>5} {:>14} {:>12}{head}", "kernel", "steps", "work", "moved");
        line(&mut text, format_args!("{row}"));
        for ((name, way), total) in totals {
            let name = format!("{name:<10} {way}");
            let time = total_seconds.map_or(String::new(), |all| {
                let share = percent(total.seconds, all);
                format!(" {:>10} {share:>7}", units::seconds(total.seconds))
            });
            let (work, moved) = (units::flops(total.flops), units::bytes(total.bytes as f64));
            let steps = total.steps;
            line(&mut text, format_args!("    {name:<22} {steps:>5} {work:>14} {moved:>12}{time}"));
        }
        text
    }

    /// Everything, for programs.
    pub(crate) fn to_json(&self) -> Value {
        let plan = &self.plan;
        let fullest = plan.fullest_step();
        let held = self.held_at(fullest).into_iter().map(|held| {
            let buffer = &plan.buffers[held.buffer];
            json!({
                "buffer": held.buffer, "bytes": buffer.bytes, "offset": buffer.offset,
                "first_step": buffer.first_step, "last_step": buffer.last_step,
                "origin": origin_of(&held), "scope": &*held.content.scope,
                "value": held.content.value.to_string(),
                "type": held.content.ty.as_ref().map(ToString::to_string),
            })
        });
        let kernels = self.kernel_totals().into_iter().map(|((name, way), total)| {
            json!({
                "kernel": name, "way": way, "steps": total.steps, "flops": total.flops, "bytes": total.bytes,
                "seconds": self.seconds.as_ref().map(|_| total.seconds),
            })
        });
        json!({
            "stage": self.stage.name(), "peak_bytes": self.held_bytes(),
            "streams_weights": self.streamed.is_some(),
            "arena_bytes": plan.arena_bytes, "lower_bound_bytes": plan.lower_bound_bytes,
            "gap_bytes": self.gap_bytes(), "weight_bytes": plan.weight_bytes(),
            "steps": plan.steps.len(), "flops": plan.flops(), "bytes_moved": plan.bytes_moved(),
            "seconds": self.total_seconds(), "fullest_step": fullest,
            "parts": self.parts().into_iter().map(|(parts, values)| json!({ "parts": parts, "values": values })).collect::<Vec<_>>(),
            "held": held.collect::<Vec<_>>(), "kernels": kernels.collect::<Vec<_>>(),
        })
    }
}

/// The first lines of every report about a model.
pub(crate) fn header(
    options: &ModelOptions,
    [frames, height, width]: [usize; 3],
    target: &Target,
) -> String {
    format!(
        "model    {}, {} of {height}x{width}, batch {}, {}\nmachine  {}\n",
        options.model,
        units::counted(frames, "frame"),
        options.batch_size,
        options.dtype.dtype(),
        machine::describe(target)
    )
}

/// A scope for people: the outermost has no name.
pub(crate) fn name_of(scope: &str) -> &str {
    if scope.is_empty() { "(outermost)" } else { scope }
}

fn type_of(content: &Content) -> String {
    content.ty.as_ref().map_or_else(|| "-".to_string(), ToString::to_string)
}

/// What a buffer is from: a kernel, an input, or the scratch of a step.
fn origin_of(held: &Held) -> &'static str {
    match held.purpose {
        Purpose::Scratch => "scratch",
        Purpose::Input | Purpose::Value => held.content.origin,
    }
}

/// `part` of `whole`, as `12.3 %`.
pub(crate) fn percent(part: f64, whole: f64) -> String {
    let share = if whole > 0.0 { 100.0 * part / whole } else { 0.0 };
    format!("{share:.1} %")
}
