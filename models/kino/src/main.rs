//! `kino`: prompts to videos, and a look at the parts that make them.
//!
//! Start reading at `sample.rs`. `options.rs` has every option. Exit codes: 0 done, 1 failed, 2 the
//! request cannot be, 130 interrupted. This is the only place that reads the environment.

#[cfg(feature = "train")]
mod base64;
mod bench;
#[cfg(feature = "compile")]
mod bucket_table;
mod calibrate;
#[cfg(feature = "compile")]
mod compile;
mod config_file;
mod data;
#[cfg(feature = "cuda")]
mod device;
mod doctor;
mod dump;
mod failure;
mod gpu_model;
mod gpus;
mod inspect;
#[cfg(feature = "engine-files")]
mod inspect_engine;
#[cfg(feature = "engine-files")]
mod inspect_products;
mod layers;
#[cfg(feature = "train")]
mod lora;
mod machine;
mod noise;
mod options;
mod outputs;
mod parts;
mod plan;
mod plan_boxes;
mod plan_chart;
mod plan_page;
mod plan_table;
mod profile;
mod profile_report;
mod profile_scaling;
mod profile_stages;
mod profile_trace;
mod progress;
mod prompts;
mod references;
mod report;
mod roofline;
mod roofline_table;
mod run;
mod sample;
mod settings;
mod source;
mod svg;
mod synth;
#[cfg(feature = "train")]
mod train;
#[cfg(feature = "train")]
mod train_axis;
#[cfg(feature = "train")]
mod train_chart;
#[cfg(feature = "train")]
mod train_page;
#[cfg(feature = "train")]
mod train_plan;
#[cfg(feature = "train")]
mod train_progress;
#[cfg(feature = "train")]
mod train_report;
#[cfg(feature = "train")]
mod train_samples;
#[cfg(feature = "train")]
mod train_summary;
#[cfg(feature = "train")]
mod train_summary_text;
#[cfg(all(feature = "compile", feature = "cuda"))]
mod tune;
mod units;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};

use crate::calibrate::Calibration;
use crate::failure::{Failure, Outcome};

/// Version of the program, in outputs' metadata too.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Text to video with the Open-Sora family, on a CPU.
#[derive(Parser, Debug)]
#[command(name = "kino", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Sample videos or images from prompts
    Sample(Box<options::SampleOptions>),
    /// Tell what a checkpoint, a pipeline folder, an engine or an output is
    Inspect(inspect::InspectOptions),
    /// Print a model's graph, or its plan, as text
    Dump(dump::DumpOptions),
    /// Tell what a request takes before it runs: memory, work, expected time
    Plan(plan::PlanOptions),
    /// Model how long a plan or an engine takes on a GPU, and what limits it
    Roofline(roofline::RooflineOptions),
    /// Compile a model for GPUs: plans and kernels as one engine file
    #[cfg(feature = "compile")]
    Compile(compile::CompileOptions),
    /// Find the fastest tiles of a model's products on a GPU, for `compile --tiles`
    #[cfg(all(feature = "compile", feature = "cuda"))]
    Tune(tune::TuneOptions),
    /// Run a model and tell where time and memory go, on made-up weights if it is only a name
    Profile(profile::ProfileOptions),
    /// Measure this machine once, so that plans have an expected time
    Calibrate(calibrate::CalibrateOptions),
    /// Tell what this machine offers and what is used of it
    Doctor(doctor::DoctorOptions),
    /// Measure speed, memory and results, alone or beside other runtimes
    Bench(bench::BenchOptions),
    /// Make a checkpoint of a published architecture with made-up weights
    Synth(synth::SynthOptions),
    /// Make and check training data
    Data(data::DataOptions),
    /// Train a model by a recipe, or go on with a run that was stopped
    #[cfg(feature = "train")]
    Train(Box<train::TrainOptions>),
    /// Show what a run of training did, as one page
    #[cfg(feature = "train")]
    Report(train_report::ReportOptions),
    /// Merge low-rank adaptations into models
    #[cfg(feature = "train")]
    Lora(lora::LoraOptions),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => {
            // Help and version are no errors; a closed pipe is none either.
            let _ = message.print();
            return ExitCode::from(u8::from(message.use_stderr()) * 2);
        }
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            progress::write_err(&format!("error: {failure}"));
            ExitCode::from(failure.code())
        }
    }
}

fn run(command: Command) -> Outcome<()> {
    let forced_isa = variable(machine::ISA_VARIABLE);
    let forced_isa = forced_isa.as_deref();
    let calibration = Calibration::below(cache_folder());
    match command {
        Command::Sample(options) => sample::run(*options, forced_isa, &calibration, &*interrupt()?),
        Command::Plan(options) => plan::run(&options, forced_isa, &calibration),
        Command::Roofline(options) => roofline::run(&options),
        #[cfg(feature = "compile")]
        Command::Compile(options) => compile::run(&options, cache_folder()),
        #[cfg(all(feature = "compile", feature = "cuda"))]
        Command::Tune(options) => tune::run(&options, cache_folder(), &*interrupt()?),
        Command::Profile(options) => {
            profile::run(&options, forced_isa, &calibration, &*interrupt()?)
        }
        Command::Calibrate(options) => {
            calibrate::run(&options, forced_isa, &calibration, &*interrupt()?)
        }
        Command::Inspect(options) => inspect::run(&options),
        Command::Dump(options) => dump::run(&options, forced_isa),
        Command::Doctor(options) => doctor::run(&options, forced_isa),
        Command::Bench(options) => bench::run(&options, forced_isa, &*interrupt()?),
        Command::Synth(options) => synth::run(&options, &*interrupt()?),
        Command::Data(options) => data::run(&options, &*interrupt()?),
        #[cfg(feature = "train")]
        Command::Train(options) => train::run(&options, forced_isa, &calibration, &*interrupt()?),
        #[cfg(feature = "train")]
        Command::Report(options) => train_report::run(&options),
        #[cfg(feature = "train")]
        Command::Lora(options) => lora::run(&options),
    }
}

/// A flag that Ctrl-C, or a polite kill, sets from now on instead of ending the process.
fn interrupt() -> Outcome<Arc<AtomicBool>> {
    let interrupt = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupt);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .map_err(|error| Failure::Run(error.into()))?;
    Ok(interrupt)
}

/// A variable of the environment; an empty one is none.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The user's cache folder, as the XDG base directory specification has it.
fn cache_folder() -> Option<PathBuf> {
    let own = variable("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    own.or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".cache")))
}
