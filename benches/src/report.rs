//! What was measured, as JSON for programs and as a Markdown table for people.

use std::fmt::Write;

use ops::DType;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::measure::{OURS, tolerance};
use crate::work::Work;

/// One row in one type.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The row.
    pub work: Work,
    /// Storage type.
    pub dtype: DType,
    /// Floating-point operations of one run, as our graph's ops state them, for every side.
    pub flops: u64,
    /// Our arena.
    pub arena_bytes: u64,
    /// Our compiler's time.
    pub compile_seconds: f64,
    /// Where our time goes.
    pub kernels: Vec<KernelTime>,
    /// Ours, then the peers.
    pub sides: Vec<SideResult>,
}

/// Time of one of our kernels in one run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct KernelTime {
    /// Its name.
    pub kernel: String,
    /// Seconds.
    pub seconds: f64,
    /// Floating-point operations.
    pub flops: u64,
    /// Steps of the plan.
    pub steps: usize,
}

/// One side of a row.
#[derive(Clone, Debug)]
pub struct SideResult {
    /// Name.
    pub name: String,
    /// Library and version.
    pub version: String,
    /// From the start of the process to the end of its first run.
    pub ready_seconds: f64,
    /// Of each turn.
    pub seconds: Vec<f64>,
    /// The machine's limit in each turn, FLOP/s.
    pub limits: Vec<f64>,
    /// Our seconds in each turn.
    pub ours: Vec<f64>,
    /// Most memory of the process, weights and mapped files included.
    pub peak_bytes: Option<u64>,
    /// Relative L2 distance from `PyTorch`'s f32 result, if that is there.
    pub error: Option<f64>,
    /// Why there are no numbers.
    pub failure: Option<String>,
}

impl SideResult {
    pub(crate) fn new(name: &str, ready_seconds: f64, version: &Json) -> SideResult {
        SideResult {
            name: name.into(),
            version: version.as_str().unwrap_or_default().into(),
            ready_seconds,
            seconds: vec![],
            limits: vec![],
            ours: vec![],
            peak_bytes: None,
            error: None,
            failure: None,
        }
    }

    /// Median of `value` over the turns; `None` without turns.
    fn median(&self, value: impl Fn(usize) -> f64) -> Option<f64> {
        let mut values: Vec<f64> = (0..self.seconds.len()).map(value).collect();
        values.sort_by(f64::total_cmp);
        let n = values.len();
        let (low, high) = (values.get(n.saturating_sub(1) / 2)?, values.get(n / 2)?);
        Some((low + high) / 2.0)
    }

    /// Median seconds.
    pub fn median_seconds(&self) -> Option<f64> {
        self.median(|i| self.seconds[i])
    }

    /// Least seconds.
    pub fn best_seconds(&self) -> Option<f64> {
        self.seconds.iter().copied().min_by(f64::total_cmp)
    }

    /// Median of the share of the machine's limit.
    pub fn share(&self, flops: u64) -> Option<f64> {
        self.median(|i| flops as f64 / self.seconds[i] / self.limits[i])
    }

    /// Its time over ours, median over common turns: above 1 we are faster.
    pub fn ratio(&self) -> Option<f64> {
        self.median(|i| self.seconds[i] / self.ours[i])
    }

    /// Whether the result is right; `None` if that is not known.
    pub fn is_right(&self, dtype: DType) -> Option<bool> {
        self.error.map(|error| error <= tolerance(dtype))
    }
}

impl Measured {
    /// As an object of the document that `--json` prints.
    pub fn to_json(&self) -> Json {
        let side = |side: &SideResult| {
            let counts = side.is_right(self.dtype) != Some(false);
            json!({
                "side": side.name, "version": side.version, "failure": side.failure,
                "seconds": {
                    "median": side.median_seconds(), "best": side.best_seconds(),
                    "all": side.seconds,
                },
                "ready_seconds": side.ready_seconds,
                "gflops": side.median_seconds().map(|time| self.flops as f64 / time / 1e9),
                "share_of_peak": side.share(self.flops),
                "peak_gflops": side.median(|i| side.limits[i] / 1e9),
                "peak_rss_bytes": side.peak_bytes,
                "error": side.error, "right": side.is_right(self.dtype),
                "ratio": if side.name == OURS || !counts { None } else { side.ratio() },
            })
        };
        json!({
            "row": self.work.name, "about": self.work.about, "dtype": self.dtype.to_string(),
            "flops": self.flops, "arena_bytes": self.arena_bytes,
            "compile_seconds": self.compile_seconds, "kernels": self.kernels,
            "sides": self.sides.iter().map(side).collect::<Vec<_>>(),
        })
    }

    /// Its lines of the table.
    pub fn table_lines(&self) -> String {
        let mut text = String::new();
        for side in &self.sides {
            let row = if side.name == OURS { self.work.name } else { "" };
            let dtype = if side.name == OURS { self.dtype.to_string() } else { String::new() };
            let Some(median) = side.median_seconds() else {
                let failure = side.failure.as_deref().unwrap_or("no run").replace('|', "/");
                push(&mut text, &format!("| {row} | {dtype} | {} | {failure} |", side.name));
                continue;
            };
            let wrong = side.is_right(self.dtype) == Some(false);
            let ratio = match side.ratio() {
                _ if side.name == OURS => String::new(),
                _ if wrong => "wrong".to_string(),
                Some(ratio) => format!("{ratio:.2}"),
                None => String::new(),
            };
            let error = match side.error {
                None => "-".to_string(),
                Some(0.0) => "0".to_string(),
                Some(error) => format!("{error:.0e}"),
            };
            let memory = side.peak_bytes.map_or("-".to_string(), |b| (b >> 20).to_string());
            push(
                &mut text,
                &format!(
                    "| {row} | {dtype} | {} | {} | {} | {:.0} | {:.0} | {memory} | {:.1} | {error} | {ratio} |",
                    side.name,
                    time(median),
                    time(side.best_seconds().unwrap_or(median)),
                    self.flops as f64 / median / 1e9,
                    100.0 * side.share(self.flops).unwrap_or_default(),
                    side.ready_seconds,
                ),
            );
        }
        text
    }

    /// Where our time goes, a line per kernel.
    pub fn profile_lines(&self) -> String {
        let total: f64 = self.kernels.iter().map(|row| row.seconds).sum();
        let mut text = format!(
            "{} {}: compiled in {:.0} ms, arena {:.1} MiB\n",
            self.work.name,
            self.dtype,
            self.compile_seconds * 1e3,
            self.arena_bytes as f64 / f64::from(1 << 20)
        );
        for row in &self.kernels {
            push(
                &mut text,
                &format!(
                    "  {:<12} {:>4} steps  {:>9.3} ms  {:>5.1} %  {:>5.0} GFLOP/s",
                    row.kernel,
                    row.steps,
                    row.seconds * 1e3,
                    100.0 * row.seconds / total,
                    row.flops as f64 / row.seconds / 1e9
                ),
            );
        }
        text
    }
}

/// The table's head.
pub const TABLE_HEAD: &str = "\
| row | type | side | median | best | GFLOP/s | % of peak | peak MiB | ready s | error | we are faster by |
|---|---|---|---|---|---|---|---|---|---|---|
";

fn push(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("a string takes any text");
}

/// Three digits.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 0.1 => format!("{:.2} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 10.0 => format!("{s:.2} s"),
        s => format!("{s:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(name: &str, seconds: &[f64], error: f64) -> SideResult {
        let mut side = SideResult::new(name, 1.5, &json!("peer 1.0"));
        side.seconds = seconds.to_vec();
        side.limits = vec![4e9; seconds.len()];
        side.ours = vec![0.5; seconds.len()];
        side.error = Some(error);
        side
    }

    fn measured() -> Measured {
        let mut failed = SideResult::new("gone", 0.0, &Json::Null);
        failed.failure = Some("gone: no module".into());
        Measured {
            work: crate::work::find("linear-proj").unwrap(),
            dtype: DType::F32,
            flops: 1_000_000_000,
            arena_bytes: 1 << 20,
            compile_seconds: 0.002,
            kernels: vec![],
            sides: vec![
                side(OURS, &[0.5, 0.5], 0.0),
                side("right", &[1.0, 3.0, 0.75, 1.0], 9e-5),
                side("wrong", &[0.1], 2e-4),
                failed,
            ],
        }
    }

    #[test]
    fn medians_ratios_and_shares_are_of_common_turns() {
        let side = side("a", &[1.0, 3.0, 0.75, 1.5], 0.0);
        assert_eq!(side.median_seconds(), Some(1.25));
        assert_eq!(side.best_seconds(), Some(0.75));
        assert_eq!(side.ratio(), Some(2.5));
        assert_eq!(side.share(5_000_000_000), Some((5.0 / 1.5 / 4.0 + 5.0 / 4.0) / 2.0));
        assert_eq!(SideResult::new("b", 0.0, &Json::Null).median_seconds(), None);
    }

    #[test]
    fn a_wrong_result_is_shown_and_not_counted() {
        let json = measured().to_json();
        let sides = json["sides"].as_array().unwrap();
        assert_eq!(sides[1]["ratio"], 2.0);
        assert_eq!((&sides[2]["ratio"], &sides[2]["right"]), (&Json::Null, &json!(false)));
        assert_eq!(sides[3]["failure"], "gone: no module");
        assert_eq!(sides[0]["share_of_peak"], 0.5);
        let table = measured().table_lines();
        let lines: Vec<&str> = table.lines().collect();
        assert!(
            lines[0].starts_with("| linear-proj | f32 | Kinograph | 500 ms | 500 ms | 2 | 50 |")
        );
        assert!(lines[1].ends_with("| 2.00 |") && lines[2].ends_with("| wrong |"), "{table}");
        assert!(lines[3].contains("no module"));
    }
}
