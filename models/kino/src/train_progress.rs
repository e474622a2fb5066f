//! What `kino train` shows while it trains: a bar on a terminal, lines elsewhere, one JSON object a line for
//! programs.

use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use training::run_log::{Event, Record, Start, Step};
use training_run::{Notice, RunPlan};

use crate::progress::{Console, Stage, write_out};
use crate::units;

/// How much a new update counts in the mean time of one: what is left is told by the last fifty.
const NEW_SHARE: f64 = 0.02;

/// What is shown of a run.
pub(crate) struct Shown<'a> {
    console: &'a mut Console,
    is_json: bool,
    path: &'a Path,
    /// Updates of the run.
    n_updates: u64,
    encode: Option<(Stage, Instant)>,
    train: Option<Stage>,
    limit_flops: Option<f64>,
    /// Mean seconds of an update, and the update that was the last.
    pace: Option<(f64, u64, Instant)>,
}

impl<'a> Shown<'a> {
    pub(crate) fn new(
        console: &'a mut Console,
        is_json: bool,
        plan: &RunPlan,
        path: &'a Path,
    ) -> Shown<'a> {
        let n_updates = plan.n_updates;
        let (encode, train, limit_flops, pace) = (None, None, None, None);
        Shown { console, is_json, path, n_updates, encode, train, limit_flops, pace }
    }

    /// Shows what a run tells.
    pub(crate) fn show(&mut self, notice: &Notice<'_>) {
        if self.is_json {
            write_out(&to_json(notice));
            return;
        }
        match notice {
            Notice::Encoding { done, total } => self.encoding(*done, *total),
            Notice::Event(event) => self.event(event),
        }
    }

    fn encoding(&mut self, done: usize, total: usize) {
        let console = &*self.console;
        let (stage, start) = self
            .encode
            .get_or_insert_with(|| (console.stage("encode", total as u64), Instant::now()));
        stage.set_length(total as u64);
        stage.set(done as u64);
        if done == total {
            stage.elapsed = start.elapsed();
            stage.finish();
            self.encode = None;
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Start(start) => self.start(start),
            Event::Step(step) => self.step(step),
            Event::Replaced(replaced) => self.console.warn(format!(
                "{} is replaced by {}: {}",
                replaced.path, replaced.by, replaced.reason
            )),
            Event::Validation(video) => {
                let path = self.path.join(&video.file);
                self.console.line(&format!("  sample {}: {}", path.display(), video.prompt));
            }
            Event::Snapshot(_) => {}
            Event::Stop(_) => {
                if let Some(stage) = self.train.take() {
                    stage.finish();
                }
            }
        }
    }

    fn start(&mut self, start: &Start) {
        self.limit_flops = start.limit_gflops.map(|gflops| gflops * 1e9);
        if start.step > 0 {
            let line = format!("goes on after update {}", start.step);
            self.console.line(&line);
        }
        let stage = self.console.stage("train", self.n_updates);
        stage.set(start.step);
        self.train = Some(stage);
        self.pace = None;
    }

    fn step(&mut self, step: &Step) {
        // Time between two lines of the log, so that snapshots and samples count too.
        let now = Instant::now();
        let pace = match self.pace {
            Some((mean, last, at)) if step.step > last => {
                let n = (step.step - last) as f64;
                let seconds = (now - at).as_secs_f64() / n;
                let share = 1.0 - (1.0 - NEW_SHARE).powf(n);
                mean + share * (seconds - mean)
            }
            _ => step.seconds,
        };
        self.pace = Some((pace, step.step, now));
        let left = pace * self.n_updates.saturating_sub(step.step) as f64;
        let text = describe(step, self.limit_flops);
        let line = format!(
            "update {}/{}  {text}  {} left",
            step.step,
            self.n_updates,
            units::seconds(left)
        );
        if let Some(stage) = &mut self.train {
            stage.elapsed += std::time::Duration::from_secs_f64(step.seconds.max(0.0));
            stage.set(step.step);
            stage.note(text);
        }
        self.console.line_without_bars(&line);
    }
}

/// Loss, rate, norm and speed of an update.
fn describe(step: &Step, limit_flops: Option<f64>) -> String {
    let seconds = step.seconds.max(1e-9);
    let mut text = format!(
        "loss {:.4}  lr {:.2e}  norm {:.3}  {:.1} samples/s  {:.0} tokens/s",
        step.loss,
        step.lr,
        step.grad_norm,
        step.samples as f64 / seconds,
        step.tokens as f64 / seconds
    );
    if let Some(limit) = limit_flops {
        let share = 100.0 * step.flops as f64 / seconds / limit;
        text += &format!("  {share:.0} % of limit");
    }
    text
}

/// A line for programs: that of the log, or how far encoding is.
fn to_json(notice: &Notice<'_>) -> String {
    let line = match notice {
        Notice::Encoding { done, total } => {
            json!({ "event": "encode", "done": done, "total": total }).to_string()
        }
        Notice::Event(event) => {
            let time = SystemTime::now().duration_since(UNIX_EPOCH);
            let time = time.map_or(0.0, |time| time.as_secs_f64());
            let record = Record { time, event: (*event).clone() };
            serde_json::to_string(&record).expect("an event is texts and numbers")
        }
    };
    line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_is_described_in_a_line() {
        let step = Step {
            step: 10,
            epoch: 0,
            buckets: vec!["8x64x64 x16".into()],
            loss: 0.98765,
            lr: 1e-3,
            grad_norm: 0.5,
            samples: 16,
            tokens: 2048,
            seconds: 2.0,
            flops: 200_000_000_000,
            data_wait_seconds: 0.0,
            rss_bytes: 0,
        };
        let expected = "loss 0.9877  lr 1.00e-3  norm 0.500  8.0 samples/s  1024 tokens/s";
        assert_eq!(describe(&step, None), expected);
        assert_eq!(describe(&step, Some(4e11)), format!("{expected}  25 % of limit"));
        let json = to_json(&Notice::Event(&Event::Step(step)));
        assert!(json.contains("\"event\":\"step\"") && json.ends_with("}\n"), "{json}");
    }
}
