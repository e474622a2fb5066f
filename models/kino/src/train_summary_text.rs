//! The summary of a run as lines for people, and as a document for programs.

use std::path::Path;

use serde_json::{Value, json};
use training::run_log::Replaced;

use crate::report::line;
use crate::train_summary::{Summary, Turn};
use crate::{VERSION, units};

impl Summary<'_> {
    /// The summary, for people.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        let start = self.start;
        line(
            &mut text,
            format_args!(
                "run      {} ({}, {:.2}M parameters, {:.2}M trained)",
                start.recipe,
                start.model,
                start.params as f64 / 1e6,
                start.trained_params as f64 / 1e6
            ),
        );
        line(
            &mut text,
            format_args!("state    {} of {} updates, {}", self.step, start.steps, self.state()),
        );
        let resumes: Vec<String> = self.resumes().iter().map(u64::to_string).collect();
        if !resumes.is_empty() {
            line(&mut text, format_args!("resumed  after update {}", resumes.join(", ")));
        }
        if let [first, .., last] = self.smoothed_losses()[..] {
            let lowest = self.lowest_loss().map_or(String::new(), |step| {
                format!(", lowest {:.4} in update {}", step.loss, step.step)
            });
            let (first, last) = (first.1, last.1);
            line(&mut text, format_args!("loss     {first:.4} to {last:.4} smoothed{lowest}"));
        }
        if let Some(first) = self.diverged().first() {
            let n = units::counted(self.diverged().len(), "update");
            line(
                &mut text,
                format_args!(
                    "diverged loss or gradient is no number in {n}, first in update {first}"
                ),
            );
        }
        let each = self.seconds_of_update();
        let each =
            each.map_or(String::new(), |each| format!(", {} an update", units::seconds(each)));
        line(&mut text, format_args!("time     {}{each}", units::seconds(self.elapsed())));
        if let Some(speed) = self.speed() {
            line(&mut text, format_args!("speed    {speed}"));
        }
        if let Some(memory) = self.memory() {
            line(&mut text, format_args!("memory   {memory}"));
        }
        if !self.replaced.is_empty() {
            let (n, causes) = (self.replaced.len(), self.causes().len());
            line(
                &mut text,
                format_args!("data     {n} samples replaced, {causes} that cannot be read"),
            );
        }
        text
    }

    /// Rates over the whole run, if time passed.
    pub(crate) fn speed(&self) -> Option<String> {
        let samples = self.per_second(|step| step.samples)?;
        let tokens = self.per_second(|step| step.tokens)?;
        let mut text = format!("{samples:.2} samples/s, {tokens:.0} tokens/s");
        if let Some(share) = self.share_of_limit() {
            text += &format!(", {:.1} % of the machine's limit", share * 100.0);
        }
        if let Some(wait) = self.data_wait() {
            text += &format!(", {:.1} % of the time waiting for data", wait * 100.0);
        }
        Some(text)
    }

    /// Resident bytes beside the plan's, if there were updates.
    pub(crate) fn memory(&self) -> Option<String> {
        let bytes = |count: u64| units::bytes(count as f64);
        let mut text = format!("{} resident at the most", bytes(self.peak_rss()?));
        if let Some(planned) = self.planned_bytes() {
            text += &format!(", {} planned", bytes(planned));
        }
        Some(text)
    }

    /// Everything, for programs.
    pub(crate) fn to_json(&self, folder: &Path) -> Value {
        let start = self.start;
        let buckets: Vec<Value> = self
            .buckets()
            .into_iter()
            .map(|bucket| {
                json!({
                    "name": bucket.name, "batches": bucket.n_batches, "seconds": bucket.seconds,
                    "peak_bytes": bucket.plan.as_ref().map(|plan| plan.peak_bytes),
                    "flops": bucket.plan.as_ref().map(|plan| plan.flops),
                    "recomputed_flops": bucket.plan.as_ref().map(|plan| plan.recomputed_flops),
                })
            })
            .collect();
        let state = match self.course.last() {
            Some((_, Turn::Stop(stop))) if stop.step == self.step => json!(stop.reason),
            _ => Value::Null,
        };
        let replaced: Vec<Value> = self
            .causes()
            .into_iter()
            .map(|cause| {
                let Replaced { path, reason, .. } = cause.first;
                json!({ "path": path, "reason": reason, "count": cause.count })
            })
            .collect();
        let last_loss = self.smoothed_losses().last().map(|(_, loss)| *loss);
        let lowest = self.lowest_loss();
        json!({
            "version": VERSION, "run": folder.display().to_string(), "recipe": start.recipe,
            "model": start.model, "params": start.params, "trained_params": start.trained_params,
            "threads": start.threads, "seed": start.seed,
            "step": self.step, "steps": start.steps, "stopped": state,
            "resumed_after": self.resumes(), "last_event": self.time,
            "loss": {
                "smoothed": last_loss,
                "lowest": lowest.map(|step| step.loss), "lowest_step": lowest.map(|step| step.step),
                "diverged_steps": self.diverged().len(),
            },
            "elapsed_seconds": self.elapsed(),
            "logged": {
                "updates": self.steps.len(), "seconds": self.seconds(),
                "samples": self.total(|step| step.samples),
                "tokens": self.total(|step| step.tokens),
            },
            "speed": {
                "samples_per_second": self.per_second(|step| step.samples),
                "tokens_per_second": self.per_second(|step| step.tokens),
                "share_of_limit": self.share_of_limit(), "limit_gflops": start.limit_gflops,
                "data_wait_share": self.data_wait(),
            },
            "memory": { "peak_rss_bytes": self.peak_rss(), "planned_bytes": self.planned_bytes() },
            "buckets": buckets, "snapshots": self.snapshots, "validations": self.validations,
            "replaced": replaced,
        })
    }
}
