//! `kino data`: training data made and checked before a run needs it.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use ::data::flare::{self, ClipFormat, SetSettings};
use ::data::{BadRow, BucketFile, Error, Survey, Table, check_files};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::{machine, progress};

/// What to do with data.
#[derive(Args, Debug)]
pub(crate) struct DataOptions {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Subcommand, Debug)]
enum DataCommand {
    /// Make a small captioned video data set of the art of the Flare game
    Flare(FlareOptions),
    /// Tell what each bucket gets of a table, and which files cannot be read
    Check(CheckOptions),
}

/// What to make.
#[derive(Args, Debug)]
struct FlareOptions {
    /// The folder to make
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Folder with the game's mods [default: where the package flare-game installs them]
    #[arg(long, value_name = "FOLDER")]
    flare: Option<PathBuf>,
    /// Creatures [default: all ten]; the embedded model knows zombie, minotaur, fire ant, hobgoblin
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    creatures: Vec<String>,
    /// 8 directions, or the 4 that are not diagonal
    #[arg(long, value_name = "N", default_value_t = 8)]
    directions: usize,
    /// How clips are stored
    #[arg(long, default_value = "png")]
    format: StoredAs,
    /// Threads; do not change the set [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print errors only
    #[arg(long, short)]
    quiet: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum StoredAs {
    /// Folders of PNGs
    Png,
    /// H.264, which loses some detail
    Mp4,
}

/// What to check.
#[derive(Args, Debug)]
struct CheckOptions {
    #[arg(help = "The table, CSV with the columns path, text, num_frames, height, width, fps")]
    table: PathBuf,
    #[arg(
        long,
        value_name = "FILE",
        help = "Buckets, as TOML: a recipe of training, or a list such as buckets = [{ resolution = \"240p\", frames = 51, keep = 0.4, batch = 20 }]"
    )]
    buckets: PathBuf,
    /// Folder that paths of the table are below
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// Seed of the run
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Epoch of the run, from 0; who is in which bucket changes with it
    #[arg(long, value_name = "N", default_value_t = 0)]
    epoch: u64,
    /// Look at the table only, not at files
    #[arg(long)]
    no_files: bool,
    /// Threads that read files [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print what was found as one JSON document
    #[arg(long)]
    json: bool,
    /// Print errors only
    #[arg(long, short)]
    quiet: bool,
}

/// The command.
pub(crate) fn run(options: &DataOptions, interrupt: &AtomicBool) -> Outcome<()> {
    match &options.command {
        DataCommand::Flare(options) => flare(options, interrupt),
        DataCommand::Check(options) => check(options, interrupt),
    }
}

fn flare(options: &FlareOptions, interrupt: &AtomicBool) -> Outcome<()> {
    let threads = machine::target(None, options.threads)?.threads;
    let settings = SetSettings {
        creatures: options.creatures.iter().map(|name| name.trim().to_owned()).collect(),
        n_directions: options.directions,
        format: match options.format {
            StoredAs::Png => ClipFormat::Folder,
            StoredAs::Mp4 => ClipFormat::Mp4,
        },
    };
    let art = flare::find_art(options.flare.as_deref())?;
    let console = progress::Console::new(options.quiet, false);
    let stage = Mutex::new(console.stage("clips", 1));
    let each = |done: usize, total: usize| {
        if let Ok(stage) = stage.lock() {
            stage.set_length(total as u64);
            stage.set(done as u64);
        }
    };
    let start = std::time::Instant::now();
    let written = flare::write_set(&art, &options.out, &settings, threads, interrupt, each)?;
    if let Ok(mut stage) = stage.into_inner() {
        stage.elapsed = start.elapsed();
        stage.finish();
    }
    let path = options.out.display();
    console.print(&format!(
        "{path}: {} clips to train with, {} held out; {} frames of {side}x{side}, train.csv, held_out.csv, \
         buckets.toml\n",
        written.n_train,
        written.n_held_out,
        flare::N_FRAMES,
        side = flare::SIDE
    ));
    Ok(())
}

fn check(options: &CheckOptions, interrupt: &AtomicBool) -> Outcome<()> {
    let threads = machine::target(None, options.threads)?.threads;
    let BucketFile { buckets, frame_interval } = BucketFile::read(&options.buckets)?;
    let table = Table::read(&options.table, options.root.as_deref())?;
    let sizes = table.sizes()?;
    let survey = Survey::new(&buckets, &sizes, frame_interval, [options.seed, options.epoch]);
    let console = progress::Console::new(options.quiet || options.json, false);
    console.print(&format!("{survey}\n"));
    let mut bad = Vec::new();
    if !options.no_files {
        let stage = console.stage("files", sizes.len() as u64);
        let start = std::time::Instant::now();
        let stage = Mutex::new(stage);
        bad = check_files(&table, threads, interrupt, |done| {
            if let Ok(stage) = stage.lock() {
                stage.set(done as u64);
            }
        })?;
        if let Ok(mut stage) = stage.into_inner() {
            stage.elapsed = start.elapsed();
            stage.finish();
        }
    }
    let mut text = String::new();
    for row in &bad {
        let _ = writeln!(text, "line {}: {}", row.line, row.reason);
    }
    console.print(&text);
    if options.json {
        progress::write_out(&format!("{:#}\n", survey_json(&survey, &bad)));
    }
    let is_empty = survey.occupancies.iter().all(|occupancy| occupancy.n_batches() == 0);
    if is_empty || !bad.is_empty() {
        let path = options.table.display();
        let reason = match (is_empty, bad.len()) {
            (true, _) => "no bucket has a batch".to_owned(),
            (false, n) if n == sizes.len() && options.root.is_none() => {
                "none of its files can be used; is --root missing, the folder that they are below?"
                    .to_owned()
            }
            (false, n) => format!("{n} of {} files cannot be used", sizes.len()),
        };
        return Err(Failure::Run(anyhow::anyhow!("{path}: {reason}")));
    }
    Ok(())
}

fn survey_json(survey: &Survey, bad: &[BadRow]) -> Value {
    let buckets = survey.occupancies.iter().map(|occupancy| {
        json!({
            "resolution": &*occupancy.length.resolution,
            "frames": occupancy.length.num_frames,
            "batch": occupancy.length.batch_size,
            "samples": occupancy.n_samples(),
            "batches": occupancy.n_batches(),
            "by_aspect": occupancy.samples,
            "why_empty": occupancy.why_empty(),
        })
    });
    let bad = bad.iter().map(|row| json!({ "line": row.line, "reason": row.reason }));
    json!({
        "buckets": buckets.collect::<Vec<_>>(),
        "samples": survey.n_samples,
        "left_out": survey.left_out.values().sum::<usize>(),
        "bad_files": bad.collect::<Vec<_>>(),
    })
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            error if error.is_interrupt() => Failure::Interrupted { written: 0 },
            error if error.is_usage() => Failure::usage(error),
            Error::Media(error) => error.into(),
            error => Failure::Run(error.into()),
        }
    }
}
