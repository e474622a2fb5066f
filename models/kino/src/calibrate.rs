//! `kino calibrate`: measures this machine once and keeps its cost model in the user's cache folder.
//!
//! The file is named by what the numbers depend on: CPU, instruction set, threads. It states the
//! program's version and the key of its kernels; the numbers of other kernels are not used.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, anyhow};
use clap::Args;
use compiler::cost::{CostModel, Level, Sample};
use kernels::{Pool, Target};
use ops::DType;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::failure::{Failure, Outcome};
use crate::progress::Console;
use crate::report::line;
use crate::{VERSION, machine, progress, units};

/// What to measure.
#[derive(Args, Debug)]
pub(crate) struct CalibrateOptions {
    /// Threads to measure with [default: all]
    #[arg(long)]
    threads: Option<usize>,
    /// Measure only if this machine was not measured before
    #[arg(long)]
    if_missing: bool,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// Where calibrations are kept.
#[derive(Debug)]
pub(crate) struct Calibration {
    /// The program's folder in the user's cache; `None` if the user has none.
    folder: Option<PathBuf>,
}

/// A cost model as the file has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: String,
    kernels: String,
    cpu: String,
    isa: String,
    threads: usize,
    launch_seconds: f64,
    wake_seconds: f64,
    peak_f32: f64,
    peak_bf16: Option<f64>,
    elementwise: f64,
    levels: Vec<LevelRow>,
    samples: Vec<SampleRow>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LevelRow {
    name: String,
    bytes: u64,
    read: f64,
    write: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SampleRow {
    kernel: String,
    dtype: String,
    shape: Vec<f64>,
    rate: f64,
}

/// The command.
pub(crate) fn run(
    options: &CalibrateOptions,
    forced_isa: Option<&str>,
    calibration: &Calibration,
    interrupt: &AtomicBool,
) -> Outcome<()> {
    let target = machine::target(forced_isa, options.threads)?;
    let path = calibration.path(&target)?;
    let known = if options.if_missing { calibration.load(&target)? } else { None };
    let was_known = known.is_some();
    let model = match known {
        Some(model) => model,
        None => {
            let model = measure(&target, interrupt, options.json)?;
            calibration.store(&target, &model)?;
            model
        }
    };
    if options.json {
        let document =
            serde_json::to_value(Document::of(&target, &model)).map_err(anyhow::Error::from)?;
        let document = json!({ "path": path.display().to_string(), "measured": !was_known, "model": document });
        progress::write_out(&format!("{document:#}\n"));
    } else {
        progress::write_out(&to_text(&target, &model));
        progress::write_out(&format!("kept in  {}\n", path.display()));
    }
    Ok(())
}

fn measure(target: &Target, interrupt: &AtomicBool, quiet: bool) -> Outcome<CostModel> {
    let console = Console::new(quiet, false);
    let pool = Arc::new(Pool::new(target.threads).context("cannot start threads")?);
    // As many units as there are cases; the bar's length is known with the first report.
    let mut stage = console.stage("measure", 1);
    let model = stage.time(|bar| {
        measure::calibrate(target, &pool, Some(interrupt), &mut |done, total| {
            bar.set_length(total as u64);
            bar.set(done as u64);
        })
    })?;
    stage.finish();
    Ok(model)
}

impl Calibration {
    /// Calibrations below `cache`, the user's cache folder.
    pub(crate) fn below(cache: Option<PathBuf>) -> Calibration {
        Calibration { folder: cache.map(|cache| cache.join("kinograph")) }
    }

    /// The file for this machine and target.
    fn path(&self, target: &Target) -> Outcome<PathBuf> {
        let folder = self.folder.as_ref().ok_or_else(|| {
            Failure::Run(anyhow!("there is no cache folder: set XDG_CACHE_HOME or HOME"))
        })?;
        let cpu = slug(&machine::cpu_name());
        Ok(folder.join(format!("calibration-{cpu}-{}-{}.json", target.isa, target.threads)))
    }

    /// The cost model for `target`, if this version of the program has measured it.
    pub(crate) fn load(&self, target: &Target) -> Outcome<Option<CostModel>> {
        if self.folder.is_none() {
            return Ok(None);
        }
        let path = self.path(target)?;
        if !path.exists() {
            return Ok(None);
        }
        let damaged = |error: anyhow::Error| {
            let what = format!("{}: run `kino calibrate` again", path.display());
            Failure::Run(error.context(what))
        };
        let text = fs::read_to_string(&path).map_err(|error| damaged(error.into()))?;
        let header: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| damaged(error.into()))?;
        if header["version"] != VERSION || header["kernels"] != measure::KERNELS_KEY {
            return Ok(None);
        }
        let document: Document =
            serde_json::from_value(header).map_err(|error| damaged(error.into()))?;
        document.model().map(Some).map_err(damaged)
    }

    /// Why there is no cost model for `target`, and what to do.
    pub(crate) fn advice(&self, target: &Target) -> &'static str {
        match self.path(target) {
            Ok(path) if path.exists() => {
                "this machine was measured with other kernels; run `kino calibrate` again, which takes \
                 seconds"
            }
            _ => "this machine was not measured yet; `kino calibrate` does it in seconds",
        }
    }

    fn store(&self, target: &Target, model: &CostModel) -> Outcome<()> {
        let path = self.path(target)?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let document = serde_json::to_string_pretty(&Document::of(target, model));
        let document = document.map_err(anyhow::Error::from)? + "\n";
        media::write_file(&path, document.as_bytes())?;
        Ok(())
    }
}

impl Document {
    fn of(target: &Target, model: &CostModel) -> Document {
        let level = |level: &Level| LevelRow {
            name: level.name.clone(),
            bytes: level.bytes,
            read: level.read,
            write: level.write,
        };
        let sample = |sample: &Sample| SampleRow {
            kernel: sample.kernel.clone(),
            dtype: sample.dtype.name().into(),
            shape: sample.shape.clone(),
            rate: sample.rate,
        };
        Document {
            version: VERSION.into(),
            kernels: measure::KERNELS_KEY.into(),
            cpu: machine::cpu_name(),
            isa: target.isa.name().into(),
            threads: target.threads,
            launch_seconds: model.launch_seconds,
            wake_seconds: model.wake_seconds,
            peak_f32: model.peak_f32,
            peak_bf16: model.peak_bf16,
            elementwise: model.elementwise,
            levels: model.levels.iter().map(level).collect(),
            samples: model.samples.iter().map(sample).collect(),
        }
    }

    fn model(self) -> anyhow::Result<CostModel> {
        let level = |row: LevelRow| Level {
            name: row.name,
            bytes: row.bytes,
            read: row.read,
            write: row.write,
        };
        let sample = |row: SampleRow| -> anyhow::Result<Sample> {
            let dtype = DType::from_name(&row.dtype)
                .ok_or_else(|| anyhow!("`{}` is no element type", row.dtype))?;
            Ok(Sample { kernel: row.kernel, dtype, shape: row.shape, rate: row.rate })
        };
        let model = CostModel {
            launch_seconds: self.launch_seconds,
            wake_seconds: self.wake_seconds,
            peak_f32: self.peak_f32,
            peak_bf16: self.peak_bf16,
            elementwise: self.elementwise,
            levels: self.levels.into_iter().map(level).collect(),
            samples: self.samples.into_iter().map(sample).collect::<Result<_, _>>()?,
        };
        model.check()?;
        Ok(model)
    }
}

/// A name as part of a file's name.
fn slug(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

fn to_text(target: &Target, model: &CostModel) -> String {
    let rate = |flops: f64| format!("{}/s", units::flops(flops as u64));
    let moved = |bytes: f64| format!("{}/s", units::bytes(bytes));
    let mut text = String::new();
    let (cpu, threads) = (machine::cpu_name(), units::counted(target.threads, "thread"));
    line(&mut text, format_args!("machine  {cpu}, {threads}, {}", target.isa));
    let bf16 = model.peak_bf16.map_or("no bf16 dot product".into(), |peak| {
        format!("{} in bf16 dot products", rate(peak))
    });
    line(&mut text, format_args!("peak     {} in f32, {bf16}", rate(model.peak_f32)));
    for level in &model.levels {
        let (read, write) = (moved(level.read), moved(level.write));
        line(&mut text, format_args!("{:<8} reads {read}, writes {write}", level.name));
    }
    let [start, wake] = [model.launch_seconds, model.wake_seconds].map(units::seconds);
    line(&mut text, format_args!("step     {start} to start, {wake} more for all threads"));
    line(
        &mut text,
        format_args!(
            "\n{:<16} {:<5} {:<24} {:>14} {:>8}",
            "kernel", "type", "shape", "rate", "of peak"
        ),
    );
    for sample in &model.samples {
        let shape: Vec<String> = sample.shape.iter().map(|dim| format!("{dim}")).collect();
        let (speed, share) = match &sample.shape[..] {
            [bytes] => {
                let level = model.level(*bytes as u64);
                // A third of the bytes written is usual: a sum of two operands.
                let full = 3.0 / (2.0 / level.read + 1.0 / level.write);
                (moved(sample.rate), sample.rate / full)
            }
            _ => (rate(sample.rate), sample.rate / model.peak(sample.dtype)),
        };
        line(
            &mut text,
            format_args!(
                "{:<16} {:<5} {:<24} {speed:>14} {:>6.0} %",
                sample.kernel,
                sample.dtype.name(),
                shape.join(" x "),
                100.0 * share
            ),
        );
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_cpus_become_names_of_files() {
        assert_eq!(slug("Intel(R) Xeon(R) CPU @ 2.80GHz"), "intel-r-xeon-r-cpu-2-80ghz");
        assert_eq!(slug("../x"), "x");
    }
}
