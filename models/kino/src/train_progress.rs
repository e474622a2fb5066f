//! What `kino train` shows while it trains: a bar on a terminal, lines elsewhere, one JSON object a line for
//! programs.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use training::run_log::{Event, Record, Start, Step};
use training_run::{Notice, RunPlan};

use crate::progress::{Console, Stage, write_out};
use crate::units;

/// How much an update counts in the mean time of one: what is left is told by about the last hundred.
const NEW_SHARE: f64 = 0.01;

/// The time between two lines of the log counts as no more than this many times the mean, so that a machine that
/// slept for an hour, or a process that was halted, does not make what is left look as long.
const MOST_TIMES: f64 = 4.0;

/// How long an update takes of late, samples and snapshots in between included: an exponential mean.
#[derive(Debug, Default)]
struct Pace {
    /// Seconds by weight, and the weight: the first updates count as much as the last.
    sum: f64,
    weight: f64,
    /// The last update that was told of, and when.
    last: Option<(u64, Instant)>,
}

impl Pace {
    /// Takes an update that took `seconds` by itself and is told of at `now`; the mean seconds of one.
    fn add(&mut self, step: u64, seconds: f64, now: Instant) -> f64 {
        let (each, n) = match self.last {
            Some((last, at)) if step > last => {
                let n = (step - last) as f64;
                let each = now.saturating_duration_since(at).as_secs_f64() / n;
                (each.min(self.mean() * MOST_TIMES), n)
            }
            _ => (seconds, 1.0),
        };
        let keep = (1.0 - NEW_SHARE).powf(n);
        self.sum = self.sum * keep + each * (1.0 - keep);
        self.weight = self.weight * keep + (1.0 - keep);
        self.last = Some((step, now));
        self.mean()
    }

    fn mean(&self) -> f64 {
        self.sum / self.weight
    }

    /// Leaves out time that was not that of updates.
    fn skip(&mut self, time: Duration) {
        if let Some((_, at)) = &mut self.last {
            *at += time;
        }
    }
}

/// What is shown of a run.
pub(crate) struct Shown<'a> {
    console: &'a mut Console,
    is_json: bool,
    path: &'a Path,
    /// Updates of the run.
    n_updates: u64,
    encode: Option<(Stage, Instant)>,
    /// The updates, and when they began; what `encode` took in between moves that on.
    train: Option<(Stage, Instant)>,
    limit_flops: Option<f64>,
    pace: Pace,
}

impl<'a> Shown<'a> {
    pub(crate) fn new(
        console: &'a mut Console,
        is_json: bool,
        plan: &RunPlan,
        path: &'a Path,
    ) -> Shown<'a> {
        let n_updates = plan.n_updates;
        let (encode, train, limit_flops, pace) = (None, None, None, Pace::default());
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
            let time = stage.elapsed;
            self.encode = None;
            self.pace.skip(time);
            if let Some((_, since)) = &mut self.train {
                *since += time;
            }
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
                if let Some((mut stage, since)) = self.train.take() {
                    stage.elapsed = since.elapsed();
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
        let stage = self.console.stage_with_own_pace("train", self.n_updates);
        stage.set(start.step);
        self.train = Some((stage, Instant::now()));
        self.pace = Pace::default();
    }

    fn step(&mut self, step: &Step) {
        let pace = self.pace.add(step.step, step.seconds, Instant::now());
        let left = units::time_left(pace * self.n_updates.saturating_sub(step.step) as f64);
        let text = describe(step, self.limit_flops);
        let line = format!("update {}/{}  {text}  {left} left", step.step, self.n_updates);
        if let Some((stage, _)) = &self.train {
            stage.set(step.step);
            stage.note(format!("{left} left  {text}"));
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

    /// The mean after lines of the log that come `waits` seconds after each other, every tenth update.
    fn pace(pace: &mut Pace, begin: &mut (u64, Instant), waits: &[f64]) -> f64 {
        let mut mean = f64::NAN;
        for wait in waits {
            *begin = (begin.0 + 10, begin.1 + Duration::from_secs_f64(*wait));
            mean = pace.add(begin.0, 0.5, begin.1);
        }
        mean
    }

    #[test]
    fn what_is_left_is_told_by_recent_updates_and_not_by_a_pause() {
        let mut of = Pace::default();
        let mut at = (0, Instant::now());
        assert!((pace(&mut of, &mut at, &[0.0]) - 0.5).abs() < 1e-9, "the first has its own time");
        assert!((pace(&mut of, &mut at, &[5.0; 3]) - 0.5).abs() < 1e-9);
        // An hour between two lines is a third more at most, and soon forgotten.
        let paused = pace(&mut of, &mut at, &[5.0; 20]).max(pace(&mut of, &mut at, &[3600.0]));
        assert!((0.5..0.67).contains(&paused), "{paused}");
        let later = pace(&mut of, &mut at, &[5.0; 30]);
        assert!((later - 0.5).abs() < 0.01, "{later}");
        // A machine of half the speed is believed within a few hundred updates.
        let slow = pace(&mut of, &mut at, &[10.0; 30]);
        assert!((slow - 1.0).abs() < 0.05, "{slow}");
        // Time that was another stage's is not theirs.
        of.skip(Duration::from_secs(100));
        assert!((pace(&mut of, &mut at, &[110.0]) - slow).abs() < 0.01);
    }

    #[test]
    fn an_update_is_described_in_a_line() {
        let step = Step {
            step: 10,
            epoch: 0,
            buckets: vec!["8x64x64 x16".into()],
            loss: 0.98768,
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
