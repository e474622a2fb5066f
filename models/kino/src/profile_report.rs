//! What a run took, step by step, beside what was expected: as text and as JSON.

use std::collections::BTreeMap;
use std::sync::Arc;

use compiler::cost::CostModel;
use compiler::{Plan, Shape, Step, Work};
use runtime::StreamTimes;
use serde_json::{Value, json};

use crate::plan::{name_of, percent};
use crate::report::line;
use crate::units;

/// Bytes that a stage was expected to need, and needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Memory {
    /// Arena and weights of the plan.
    pub expected: u64,
    /// What the process grew by, where the system tells.
    pub measured: Option<u64>,
    /// The most that the whole process had, where the system tells.
    pub process: Option<u64>,
}

/// Weights that passed through memory in a run.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Streamed {
    /// Their bytes.
    pub bytes: usize,
    /// Seconds of one run, the mean.
    pub times: StreamTimes,
}

/// One step as it ran.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct StepProfile {
    /// What it did.
    pub work: Work,
    /// The part of the model.
    pub scope: Arc<str>,
    /// Seconds it took.
    pub seconds: f64,
    /// Seconds that were expected.
    pub expected: Option<f64>,
    /// Seconds that the machine's limits allow.
    pub limit: Option<f64>,
}

/// One stage as it ran.
#[derive(Debug)]
pub(crate) struct StageProfile {
    /// The stage's name.
    pub name: &'static str,
    /// Its plan.
    pub plan: Arc<Plan>,
    /// Its steps, in plan order.
    pub steps: Vec<StepProfile>,
    /// Expected seconds of one run.
    pub expected: Option<f64>,
    streamed: Option<Streamed>,
    memory: Memory,
}

/// The sum over the steps of one kernel.
#[derive(Clone, Copy, Default)]
struct Total {
    steps: usize,
    flops: u64,
    bytes: u64,
    seconds: f64,
    expected: f64,
    limit: f64,
}

impl Total {
    fn add(&mut self, step: &StepProfile) {
        self.steps += 1;
        self.flops = self.flops.saturating_add(step.work.flops());
        self.bytes = self.bytes.saturating_add(step.work.bytes());
        self.seconds += step.seconds;
        self.expected += step.expected.unwrap_or(0.0);
        self.limit += step.limit.unwrap_or(0.0);
    }
}

impl StageProfile {
    /// `seconds` of each step of `plan`, and what `model` expected.
    pub(crate) fn new(
        name: &'static str,
        plan: Arc<Plan>,
        seconds: Vec<f64>,
        streamed: Option<Streamed>,
        memory: Memory,
        model: Option<&CostModel>,
    ) -> StageProfile {
        let step = |((step, work), seconds): ((&Step, Work), f64)| StepProfile {
            scope: Arc::clone(&plan.graph.node(step.value).scope),
            seconds,
            expected: model.map(|model| model.estimate(&work).seconds),
            limit: model.map(|model| model.limit_seconds(&work)),
            work,
        };
        let works = plan.steps.iter().zip(plan.works());
        let steps: Vec<StepProfile> = works.zip(seconds).map(step).collect();
        let expected = steps.iter().map(|step| step.expected).sum();
        StageProfile { name, plan, steps, expected, streamed, memory }
    }

    /// Seconds of one run.
    pub(crate) fn seconds(&self) -> f64 {
        self.steps.iter().map(|step| step.seconds).sum()
    }

    fn totals(&self) -> BTreeMap<&'static str, Total> {
        let mut totals: BTreeMap<&'static str, Total> = BTreeMap::new();
        for step in &self.steps {
            totals.entry(step.work.kernel).or_default().add(step);
        }
        totals
    }

    /// For people, with the `top` slowest steps.
    pub(crate) fn to_text(&self, top: usize) -> String {
        let mut text = String::new();
        let seconds = self.seconds();
        let rate = units::flops((self.plan.flops() as f64 / seconds) as u64);
        let (flops, time) = (units::flops(self.plan.flops()), units::seconds(seconds));
        line(&mut text, format_args!("\n{:<8} {flops} in {time}: {rate}/s", self.name));
        if let Some(expected) = self.expected {
            let (time, error) = (units::seconds(expected), error_of(expected, seconds));
            line(&mut text, format_args!("  time   {time} expected, off by {error}"));
        }
        let bytes = |count: u64| units::bytes(count as f64);
        let measured = match (self.memory.measured, self.memory.process) {
            (Some(measured), Some(process)) => {
                format!(", {} measured (the whole process had {})", bytes(measured), bytes(process))
            }
            _ => String::new(),
        };
        line(
            &mut text,
            format_args!("  memory {} expected{measured}", bytes(self.memory.expected)),
        );
        if let Some(Streamed { bytes, times }) = self.streamed {
            let (bytes, rate) = (units::bytes(bytes as f64), bytes as f64 / times.making);
            line(
                &mut text,
                format_args!(
                    "  stream {bytes} of weights made in {} beside the steps ({}/s), which waited {} more",
                    units::seconds(times.making),
                    units::bytes(rate),
                    units::seconds(times.waiting)
                ),
            );
        }
        line(
            &mut text,
            format_args!(
                "  {:<12} {:>5} {:>10} {:>7} {:>9} {:>7} {:>9} {:>10} {:>8}",
                "kernel",
                "steps",
                "time",
                "share",
                "GFLOP/s",
                "GB/s",
                "of limit",
                "expected",
                "off by"
            ),
        );
        let mut totals: Vec<(&str, Total)> = self.totals().into_iter().collect();
        totals.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
        for (kernel, total) in totals {
            let row = self.row(&total, seconds);
            line(&mut text, format_args!("    {kernel:<10} {:>5} {row}", total.steps));
        }
        let mut slowest: Vec<(usize, &StepProfile)> = self.steps.iter().enumerate().collect();
        slowest.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
        slowest.truncate(top);
        if !slowest.is_empty() {
            line(&mut text, format_args!("  slowest steps"));
        }
        for (index, step) in slowest {
            let mut total = Total::default();
            total.add(step);
            let row = self.row(&total, seconds);
            let (kernel, shape) = (step.work.kernel, shape_of(&step.work));
            let scope = name_of(&step.scope);
            line(&mut text, format_args!("    {kernel:<10} {index:>5} {row}  {shape}  {scope}"));
        }
        text
    }

    fn row(&self, total: &Total, all: f64) -> String {
        let per = |amount: u64| amount as f64 / total.seconds.max(1e-12) / 1e9;
        let (limit, expected, error) = match self.expected {
            Some(_) => (
                format!("{:.0} %", 100.0 * total.limit / total.seconds.max(1e-12)),
                units::seconds(total.expected),
                error_of(total.expected, total.seconds),
            ),
            None => ("-".into(), "-".into(), "-".into()),
        };
        format!(
            "{:>10} {:>7} {:>9.1} {:>7.1} {limit:>9} {expected:>10} {error:>8}",
            units::seconds(total.seconds),
            percent(total.seconds, all),
            per(total.flops),
            per(total.bytes)
        )
    }

    /// Everything, for programs.
    pub(crate) fn to_json(&self) -> Value {
        let known = self.expected.is_some();
        let kernels = self.totals().into_iter().map(|(kernel, total)| {
            json!({
                "kernel": kernel, "steps": total.steps, "flops": total.flops, "bytes": total.bytes,
                "seconds": total.seconds, "expected_seconds": known.then_some(total.expected),
                "limit_seconds": known.then_some(total.limit),
            })
        });
        let steps = self.steps.iter().map(|step| {
            json!({
                "kernel": step.work.kernel, "scope": &*step.scope, "shape": shape_of(&step.work),
                "dtype": step.work.dtype.name(), "flops": step.work.flops(),
                "bytes": step.work.bytes(), "seconds": step.seconds,
                "expected_seconds": step.expected, "limit_seconds": step.limit,
            })
        });
        json!({
            "stage": self.name, "seconds": self.seconds(), "expected_seconds": self.expected,
            "flops": self.plan.flops(), "arena_bytes": self.plan.arena_bytes,
            "weight_bytes": self.plan.weight_bytes(),
            "expected_bytes": self.memory.expected, "measured_bytes": self.memory.measured,
            "process_bytes": self.memory.process,
            "streamed": self.streamed.map(|streamed| json!({
                "bytes": streamed.bytes, "making_seconds": streamed.times.making,
                "waiting_seconds": streamed.times.waiting,
            })),
            "kernels": kernels.collect::<Vec<_>>(), "steps": steps.collect::<Vec<_>>(),
        })
    }
}

/// How far what was expected is from what was measured, as `+3.1 %`.
pub(crate) fn error_of(expected: f64, measured: f64) -> String {
    format!("{:+.1} %", 100.0 * (expected / measured.max(1e-12) - 1.0))
}

/// The dims that a step's speed depends on.
pub(crate) fn shape_of(work: &Work) -> String {
    match work.shape {
        Shape::Product { rows, columns, depth } => format!("{rows} x {columns} x {depth}"),
        Shape::Attention { queries, keys, width, is_biased } => {
            format!("{queries} x {keys} of {width}{}", if is_biased { ", biased" } else { "" })
        }
        Shape::Conv { positions, inputs, outputs, taps } => {
            format!("{positions} x {outputs} x {taps} of {inputs}")
        }
        Shape::Columns(bytes) => format!("{} down columns", units::bytes(bytes as f64)),
        Shape::Rows { bytes, width } => {
            format!("{} in rows of {width}", units::bytes(bytes as f64))
        }
        Shape::Bytes(bytes) => units::bytes(bytes as f64),
    }
}
