//! `kino train`: a recipe and a table to a trained model; `--resume` goes on with a run that was stopped.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, anyhow};
use clap::Args;
use kernels::Pool;
use models::nearest::nearest;
use ops::DType;
use pipeline::{Model, Paths};
use training::recipe::DTypeName;
use training::{Keep, PUBLISHED, Recipe};
use training_run::{
    Ended, Error, Made, Pipeline, PipelineFiles, Place, Record, Request, Run, RunFolder, Start,
    Watch,
};

use crate::calibrate::Calibration;
use crate::failure::{Failure, Outcome};
use crate::progress::Console;
use crate::train_progress::Shown;
use crate::{VERSION, machine, settings, train_plan};

/// What to train, on what.
#[derive(Args, Debug)]
pub(crate) struct TrainOptions {
    /// The recipe: a TOML file, or the name of one that comes with the program, such as tiny-flare
    #[arg(value_name = "RECIPE", required_unless_present = "resume")]
    recipe: Option<String>,
    /// The table, CSV with the columns path, text, `num_frames`, height, width, fps
    #[arg(long, value_name = "FILE", required_unless_present = "resume")]
    data: Option<PathBuf>,
    /// Folder that paths of the table are below [default: that of the table]
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// Folder of the run, which is made
    #[arg(long, value_name = "FOLDER", required_unless_present_any = ["resume", "plan"])]
    output: Option<PathBuf>,
    /// Go on with the run in this folder, from its newest snapshot
    #[arg(
        long,
        value_name = "RUN",
        conflicts_with_all = ["recipe", "data", "root", "output", "model", "init", "cache", "keep_last", "keep_every"]
    )]
    resume: Option<PathBuf>,
    /// Go on although recipe, table or weights are not what the run began with
    #[arg(long, requires = "resume")]
    allow_changes: bool,
    /// Write the model of the newest snapshot, with `[lora]` also the adaptation, and stop
    #[arg(long, requires = "resume", conflicts_with = "plan")]
    export: bool,
    /// Pipeline folder of text encoder, autoencoder and first weights [default: the embedded model]
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// First weights: `model` for those of --model, `random`, or a transformer's checkpoint [default: model]
    #[arg(long, value_name = "WEIGHTS")]
    init: Option<String>,
    /// Folder of features of videos and captions, which runs may share [default: in that of the run]
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// Most memory of weights in training and steps, such as 12GiB: what does not fit is computed twice
    #[arg(long, value_name = "BYTES")]
    memory: Option<String>,
    /// Newest snapshots that stay
    #[arg(long, value_name = "N", default_value_t = 3)]
    keep_last: usize,
    /// Snapshots stay whose number of updates is a multiple of this; 0 for none
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_every: u64,
    /// Tell what a run takes, and stop
    #[arg(long)]
    plan: bool,
    /// Threads; do not change the result [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// One JSON object a line on standard output for whatever happens
    #[arg(long)]
    json: bool,
    /// Print errors only
    #[arg(long, short)]
    quiet: bool,
}

/// What is trained, where: of the options, or of the run that goes on.
struct Asked {
    request: Request,
    /// The pipeline folder; the program's own without.
    model: Option<PathBuf>,
    /// The folder of a run that goes on.
    resumed: Option<(RunFolder, Record)>,
}

/// The command.
pub(crate) fn run(
    options: &TrainOptions,
    forced_isa: Option<&str>,
    calibration: &Calibration,
    interrupt: &AtomicBool,
) -> Outcome<()> {
    let mut console = Console::new(options.quiet, options.json);
    let target = machine::target(forced_isa, options.threads)?;
    let cost = calibration.load(&target)?;
    let Asked { request, model, resumed } = match &options.resume {
        Some(path) => resumed(options, path)?,
        None => new(options)?,
    };
    let pool = Arc::new(Pool::new(target.threads).context("cannot start threads")?);
    let dtype = match request.recipe.model.dtype {
        DTypeName::F32 => DType::F32,
        DTypeName::Bf16 => DType::Bf16,
    };
    let place = Place {
        target: target.clone(),
        pool,
        version: VERSION.into(),
        limit_flops: cost.as_ref().map(|cost| cost.peak(dtype)),
    };
    let shown = (request.name.clone(), request.text.clone());
    let (memory, start) = (request.memory, request.start.text());
    let (table, root) = (request.table.clone(), request.root.clone());
    let mut run = Run::new(request, pipeline(model.as_deref())?, place)?;
    let advice = cost.is_none().then(|| calibration.advice(&target));
    let plan = train_plan::Shown { name: &shown.0, run: &run, cost: cost.as_ref(), advice };
    if options.json {
        crate::progress::write_out(&plan.to_json());
    } else {
        console.print(&plan.to_text());
    }
    if options.plan {
        return Ok(());
    }
    machine::check_memory(run.plan().peak_bytes() as f64, "")?;
    let (folder, record) = match resumed {
        Some(resumed) => resumed,
        None => {
            let path = options.output.as_deref().expect("it is required for a new run");
            let cache = options.cache.clone().unwrap_or_else(|| RunFolder::cache(path));
            let keep = Keep { last: options.keep_last, every: options.keep_every };
            let paths = [table, root, cache];
            let identity = run.identity().clone();
            let record = Record::new(shown.0, paths, model, start, (memory, keep), identity)?;
            let folder = RunFolder::create(path)?;
            folder.begin(&record, &shown.1)?;
            (folder, record)
        }
    };
    if options.export {
        let Made { model, adaptation } =
            run.export((&folder, &record), options.allow_changes, interrupt)?;
        for path in adaptation.iter().chain([&model]) {
            console.print(&format!("wrote    {}\n", path.display()));
        }
        return Ok(());
    }
    let ended = {
        let mut shown = Shown::new(&mut console, options.json, run.plan(), folder.path());
        let resident = || machine::resident_bytes().map_or(0, |[now, _]| now);
        let mut tell = |notice: &training_run::Notice<'_>| shown.show(notice);
        let mut watch = Watch { interrupt, tell: &mut tell, resident_bytes: &resident };
        run.train((&folder, record), options.allow_changes, &mut watch)?
    };
    let path = folder.path().display();
    match ended {
        Ended::Finished { step, made: Made { model, adaptation } } => {
            let with = match adaptation {
                Some(adaptation) => format!(", its adaptation alone {}", adaptation.display()),
                None => String::new(),
            };
            let model = model.display();
            console.print(&format!("trained  {step} updates; the model is {model}{with}\n"));
            Ok(())
        }
        Ended::Interrupted { step, snapshot: Some(snapshot) } => Err(Failure::Paused(format!(
            "interrupted after update {step}, which {} has; go on with: kino train --resume {path}",
            snapshot.display()
        ))),
        Ended::Interrupted { snapshot: None, .. } => Err(Failure::Paused(format!(
            "interrupted before the first update; go on with: kino train --resume {path}"
        ))),
    }
}

/// A run that is new.
fn new(options: &TrainOptions) -> Outcome<Asked> {
    if let Some(path) = &options.output {
        RunFolder::check(path)?;
    }
    let recipe = options.recipe.as_deref().expect("it is required for a new run");
    let (name, text) = read_recipe(recipe)?;
    let table = options.data.clone().expect("it is required for a new run");
    let beside = || table.parent().unwrap_or(Path::new("")).to_path_buf();
    let root = options.root.clone().unwrap_or_else(beside);
    let start = match options.init.as_deref().map_or(Start::Pipeline, Start::parse) {
        // A run goes on from any folder.
        Start::Checkpoint(path) => Start::Checkpoint(std::path::absolute(path)?),
        start => start,
    };
    let recipe = parse(&text, &name)?;
    let memory = options.memory.as_deref().map(settings::parse_memory).transpose()?;
    let request = Request { name, text, recipe, table, root, start, memory };
    Ok(Asked { request, model: options.model.clone(), resumed: None })
}

/// A run that goes on.
fn resumed(options: &TrainOptions, path: &Path) -> Outcome<Asked> {
    let (folder, record, text) = RunFolder::open(path)?;
    let name = record.recipe.clone();
    let recipe = parse(&text, &path.join("config.toml").display().to_string())?;
    let memory = match &options.memory {
        Some(memory) => Some(settings::parse_memory(memory)?),
        None => record.memory,
    };
    let (table, root) = (record.table.clone(), record.root.clone());
    let start = Start::parse(&record.init);
    let request = Request { name, text, recipe, table, root, start, memory };
    Ok(Asked { request, model: record.model.clone(), resumed: Some((folder, record)) })
}

/// Name and text of a recipe: of a file, or one that comes with the program.
fn read_recipe(recipe: &str) -> Outcome<(String, String)> {
    if let Some((name, text)) = PUBLISHED.iter().find(|(name, _)| *name == recipe) {
        return Ok(((*name).into(), (*text).into()));
    }
    let path = Path::new(recipe);
    let names = || PUBLISHED.iter().map(|(name, _)| *name);
    if !path.exists() && path.extension().is_none() {
        let meant = nearest(recipe, names());
        return Err(Failure::usage(format!(
            "there is no file {recipe}, and no recipe of this name comes with the program; did you mean {meant}?"
        )));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::Run(anyhow!("{}: cannot read it: {error}", path.display())))?;
    let name = path.file_stem().map_or(recipe.into(), |stem| stem.to_string_lossy().into_owned());
    Ok((name, text))
}

fn parse(text: &str, place: &str) -> Outcome<Recipe> {
    Recipe::parse(text).map_err(|error| Failure::usage(format!("{place}: {error}")))
}

/// Encoders and first weights.
fn pipeline(folder: Option<&Path>) -> Outcome<Pipeline> {
    let Some(folder) = folder else { return embedded() };
    if !checkpoint::Pipeline::is_pipeline(folder) {
        let reason = "expected a pipeline folder, with model_index.json and a folder for each part";
        return Err(Failure::usage(format!("--model {}: {reason}", folder.display())));
    }
    let model = Model::open(&Paths { model: Some(folder.into()), ..Paths::default() })?;
    Ok(Pipeline { model, files: PipelineFiles::Folder(folder.into()) })
}

#[cfg(feature = "embedded-model")]
fn embedded() -> Outcome<Pipeline> {
    let files = PipelineFiles::Held(crate::source::EMBEDDED_FILES.to_vec());
    Ok(Pipeline { model: crate::source::embedded()?, files })
}

#[cfg(not(feature = "embedded-model"))]
fn embedded() -> Outcome<Pipeline> {
    Err(Failure::usage("this build has no embedded model: give --model with a pipeline folder"))
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            error if error.is_interrupt() => Failure::Interrupted { written: 0 },
            error if error.is_usage() => Failure::usage(error),
            error => Failure::Run(error.into()),
        }
    }
}
