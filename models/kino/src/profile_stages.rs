//! `kino sample --profile`: the times of the steps of a real run, kept stage by stage.

use std::sync::Arc;

use compiler::Plan;
use compiler::cost::CostModel;
use kernels::Target;
use pipeline::Stage;
use runtime::StepTime;
use serde_json::{Value, json};

use crate::options::SampleOptions;
use crate::profile_report::{Memory, StageProfile};
use crate::{VERSION, machine};

/// What each plan of a run has taken so far; a last, smaller batch has plans of its own.
#[derive(Debug, Default)]
pub(crate) struct StageTimes(Vec<PlanTimes>);

/// The steps of one plan.
#[derive(Debug)]
struct PlanTimes {
    stage: Stage,
    plan: Arc<Plan>,
    /// Of runners that are gone.
    before: Vec<StepTime>,
    /// Of the runner that is there, since it was made.
    now: Vec<StepTime>,
}

impl StageTimes {
    /// Takes the times of a plan since it was bound, which contain those that were taken of it before.
    pub(crate) fn keep(&mut self, stage: Stage, plan: &Arc<Plan>, times: &[StepTime]) {
        let now = times.to_vec();
        let Some(kept) = self.0.iter_mut().find(|kept| Arc::ptr_eq(&kept.plan, plan)) else {
            self.0.push(PlanTimes { stage, plan: Arc::clone(plan), before: vec![], now });
            return;
        };
        // The runs of a runner only grow: fewer are those of a new one.
        let runs = |times: &[StepTime]| times.first().map_or(0, |time| time.runs);
        if runs(&now) <= runs(&kept.now) {
            kept.before = kept.sums();
        }
        kept.now = now;
    }

    /// The document: seconds are those of one run of a stage's plan, the mean over all.
    pub(crate) fn to_json(
        &self,
        options: &SampleOptions,
        target: &Target,
        model: Option<&CostModel>,
    ) -> String {
        let stage = |times: &PlanTimes| -> Value {
            let name = match times.stage {
                Stage::Text => "text",
                Stage::Condition => "condition",
                Stage::Denoise => "denoise",
                Stage::Decode => "decode",
            };
            let sums = times.sums();
            let mean = |time: &StepTime| time.seconds / f64::from(time.runs.max(1));
            let memory = Memory {
                expected: times.plan.held_bytes() as u64,
                measured: None,
                process: machine::resident_bytes().map(|[_, most]| most),
            };
            let seconds = sums.iter().map(mean).collect();
            let plan = Arc::clone(&times.plan);
            let mut document =
                StageProfile::new(name, plan, seconds, None, memory, model).to_json();
            document["runs"] = json!(sums.first().map_or(0, |time| time.runs));
            document
        };
        let document = json!({
            "version": VERSION, "prompts": options.prompt, "threads": target.threads,
            "isa": target.isa.name(), "device": device(options), "stages": self.0.iter().map(stage).collect::<Vec<_>>(),
        });
        format!("{document:#}\n")
    }
}

/// The device that ran the steps, if it was not this CPU.
#[cfg(feature = "cuda")]
fn device(options: &SampleOptions) -> Option<&str> {
    options.engine.as_ref().map(|_| options.device.as_deref().unwrap_or(crate::device::DEFAULT))
}

/// This build has none.
#[cfg(not(feature = "cuda"))]
fn device(_: &SampleOptions) -> Option<&str> {
    None
}

impl PlanTimes {
    /// Over all runners.
    fn sums(&self) -> Vec<StepTime> {
        if self.before.is_empty() {
            return self.now.clone();
        }
        let sum = |(a, b): (&StepTime, &StepTime)| StepTime {
            seconds: a.seconds + b.seconds,
            runs: a.runs + b.runs,
        };
        self.before.iter().zip(&self.now).map(sum).collect()
    }
}
