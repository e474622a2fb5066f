//! What `kino train` tells before it trains: memory, work and expected time of a step of each bucket.

use compiler::cost::CostModel;
use serde_json::json;
use training_run::{PlannedBucket, Run};

use crate::report::line;
use crate::units;

/// The plan of a run, and what is said of it.
pub(crate) struct Shown<'a> {
    /// Name of the recipe.
    pub name: &'a str,
    pub run: &'a Run,
    /// What this machine does in a second, if it was measured.
    pub cost: Option<&'a CostModel>,
    /// What to do if it was not.
    pub advice: Option<&'static str>,
}

impl Shown<'_> {
    /// Expected seconds of a batch.
    fn seconds(&self, bucket: &PlannedBucket) -> Option<f64> {
        self.cost.map(|cost| cost.plan_seconds(bucket.step.plan()))
    }

    /// Expected seconds of the run, if its epochs are as the first.
    fn seconds_of_run(&self) -> Option<f64> {
        let plan = self.run.plan();
        let mut seconds = 0.0;
        let mut n_batches = 0;
        for bucket in plan.buckets() {
            seconds += self.seconds(bucket)? * bucket.n_batches as f64;
            n_batches += bucket.n_batches;
        }
        let per_batch = seconds / n_batches.max(1) as f64;
        let of_update = match (plan.update(), self.cost) {
            (Some(step), Some(cost)) => cost.plan_seconds(step.plan()),
            _ => 0.0,
        };
        Some((per_batch * plan.micro_batches as f64 + of_update) * plan.n_updates as f64)
    }

    /// For people.
    pub(crate) fn to_text(&self) -> String {
        let plan = self.run.plan();
        let mut text = String::new();
        line(
            &mut text,
            format_args!(
                "{}: {} of {} parameters are trained, {} updates, {} in the first epoch",
                self.name,
                millions(plan.n_trained),
                millions(plan.n_params),
                plan.n_updates,
                plan.n_updates_of_epoch
            ),
        );
        line(
            &mut text,
            format_args!(
                "{:<16} {:>8} {:>8} {:>11} {:>11} {:>8} {:>12} {:>9}",
                "bucket", "batches", "tokens", "memory", "made again", "", "work", "time"
            ),
        );
        for bucket in plan.buckets() {
            let step = bucket.step.plan();
            let (bytes, flops) = bucket.step.recomputed();
            let kept = step.flops().saturating_sub(flops).max(1);
            line(
                &mut text,
                format_args!(
                    "{:<16} {:>8} {:>8} {:>11} {:>11} {:>7} {:>12} {:>9}",
                    bucket.name,
                    bucket.n_batches,
                    bucket.tokens,
                    units::bytes(bucket.step.own_bytes() as f64),
                    units::bytes(bytes as f64),
                    format!("+{:.0} %", 100.0 * flops as f64 / kept as f64),
                    units::flops(step.flops()),
                    self.seconds(bucket).map_or("unknown".into(), units::seconds)
                ),
            );
        }
        let frozen = match plan.frozen_bytes {
            0 => String::new(),
            bytes => format!(" + {} frozen weights", units::bytes(bytes as f64)),
        };
        line(
            &mut text,
            format_args!(
                "memory   {} = {} weights with moments and averages{frozen} + steps; encoders and samples come on top",
                units::bytes(plan.peak_bytes() as f64),
                units::bytes(plan.state_bytes as f64)
            ),
        );
        match (self.seconds_of_run(), self.advice) {
            (Some(seconds), _) => line(
                &mut text,
                format_args!("time     {} for all updates", units::seconds(seconds)),
            ),
            (None, Some(advice)) => line(&mut text, format_args!("time     unknown: {advice}")),
            (None, None) => {}
        }
        text
    }

    /// For programs: one line.
    pub(crate) fn to_json(&self) -> String {
        let plan = self.run.plan();
        let bucket = |bucket: &PlannedBucket| {
            let (bytes, flops) = bucket.step.recomputed();
            let step = bucket.step.plan();
            json!({
                "name": bucket.name, "batches": bucket.n_batches, "tokens": bucket.tokens,
                "held_bytes": bucket.step.own_bytes(), "arena_bytes": step.arena_bytes,
                "recomputed_bytes": bytes, "recomputed_flops": flops, "flops": step.flops(),
                "seconds": self.seconds(bucket),
            })
        };
        let buckets: Vec<_> = plan.buckets().into_iter().map(bucket).collect();
        let document = json!({
            "event": "plan", "recipe": self.name, "params": plan.n_params, "trained_params": plan.n_trained,
            "updates": plan.n_updates, "updates_of_epoch": plan.n_updates_of_epoch,
            "micro_batches": plan.micro_batches, "state_bytes": plan.state_bytes,
            "frozen_bytes": plan.frozen_bytes,
            "peak_bytes": plan.peak_bytes(), "buckets": buckets, "seconds": self.seconds_of_run(),
        });
        format!("{document}\n")
    }
}

/// `3700000` as `3.7M`.
fn millions(count: u64) -> String {
    match count {
        0..1000 => count.to_string(),
        1000..1_000_000 => format!("{:.1}k", count as f64 / 1e3),
        _ => format!("{:.1}M", count as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_short() {
        assert_eq!([millions(999), millions(3_700_000)], ["999", "3.7M"]);
        assert_eq!(millions(21_450), "21.4k");
    }
}
