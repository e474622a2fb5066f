//! `kino lora merge`: an adaptation put into the weights that it is of, as a model of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use checkpoint::names::{Leniency, fit_with};
use checkpoint::{Checkpoint, Pipeline, identify};
use clap::{Args, Subcommand};
use media::{Format, PartFolder};
use models::{stdit1, stdit2};
use pipeline::Transformer;
use training::Adapter;

use crate::failure::{Failure, Outcome};
use crate::inspect::{Config, config_of};
use crate::{progress, units};

/// The part of a pipeline that is adapted.
const ADAPTED: &str = "transformer";
/// Names of files in a model's folder.
const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";

/// What to do with low-rank adaptations.
#[derive(Args, Debug)]
pub(crate) struct LoraOptions {
    #[command(subcommand)]
    command: LoraCommand,
}

#[derive(Subcommand, Debug)]
enum LoraCommand {
    /// Put an adaptation into the weights that it is of
    Merge(MergeOptions),
}

/// What to merge.
#[derive(Args, Debug)]
struct MergeOptions {
    /// A pipeline folder, or a transformer's checkpoint
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    #[arg(
        long,
        value_name = "FILE",
        help = "The adaptation: safetensors with NAME.lora_A.weight and NAME.lora_B.weight, or a folder as PEFT saves it"
    )]
    lora: PathBuf,
    /// The folder to make: what --model is, with other weights
    #[arg(long, short, value_name = "FOLDER")]
    output: PathBuf,
    /// Products of factors count alpha / rank times [default: what the file says]
    #[arg(long, value_name = "NUMBER")]
    alpha: Option<f64>,
    /// Print errors only
    #[arg(long, short)]
    quiet: bool,
}

/// The command.
pub(crate) fn run(options: &LoraOptions) -> Outcome<()> {
    let LoraCommand::Merge(options) = &options.command;
    merge(options)
}

fn merge(options: &MergeOptions) -> Outcome<()> {
    let MergeOptions { model, lora, output, alpha, quiet } = options;
    if let Some(alpha) = alpha
        && !(*alpha > 0.0 && alpha.is_finite())
    {
        return Err(Failure::usage(format!("--alpha {alpha}; expected above 0")));
    }
    for (flag, path) in [("--model", model), ("--lora", lora)] {
        if !path.exists() {
            let error = anyhow::anyhow!("{flag} {}: no such file or folder", path.display());
            return Err(Failure::Run(error));
        }
    }
    media::check_writable(output, Format::Folder)?;
    if is_inside(output, model)? {
        return Err(Failure::usage(format!(
            "--output {} is inside --model; name a folder elsewhere",
            output.display()
        )));
    }
    let pipeline = match Pipeline::is_pipeline(model) {
        true => Some(Pipeline::open(model)?),
        false => None,
    };
    let adapted: &Path = match &pipeline {
        Some(pipeline) => pipeline.part(ADAPTED)?,
        None => model,
    };
    let checkpoint = Checkpoint::open(adapted)?;
    let params = match config_of(&checkpoint)? {
        Config::Stdit(Transformer::Stdit1(config)) => stdit1::params(&config)?,
        Config::Stdit(Transformer::Stdit2(config)) => stdit2::params(&config)?,
        Config::T5(_) | Config::Vae(_) | Config::Other => {
            let found = identify(&checkpoint).kind;
            return Err(Failure::Run(anyhow::anyhow!(
                "{} is {found}, expected a transformer that adaptations are trained for",
                adapted.display()
            )));
        }
    };
    let weights = fit_with(&checkpoint, &params, Leniency::default())
        .map_err(|misfit| Failure::Run(misfit.into()))?;
    let adapter = Adapter::open(lora, *alpha).map_err(|error| Failure::Run(error.into()))?;
    adapter.check(&params).map_err(|error| Failure::Run(error.into()))?;

    let folder = PartFolder::create(output)
        .with_context(|| format!("cannot create a folder beside {}", output.display()))?;
    let part = match &pipeline {
        Some(pipeline) => {
            copy_but(&pipeline.path, folder.path(), ADAPTED)?;
            let part = folder.path().join(ADAPTED);
            fs::create_dir(&part).with_context(|| format!("cannot create {}", part.display()))?;
            part
        }
        None => folder.path().to_owned(),
    };
    if let Some(config) = checkpoint.config() {
        media::write_file(&part.join(CONFIG), format!("{config:#}\n").as_bytes())?;
    }
    adapter
        .write_merged(&weights, &part.join(WEIGHTS))
        .map_err(|error| Failure::Run(error.into()))?;
    folder.commit().with_context(|| format!("cannot give {} its name", output.display()))?;
    if !quiet {
        progress::write_out(&format!(
            "{}: {} adapted with rank {} and alpha {}\n",
            output.display(),
            units::counted(adapter.factors().len(), "weight"),
            adapter.rank(),
            adapter.alpha()
        ));
    }
    Ok(())
}

/// Whether `path`, which need not exist, is below `folder`.
fn is_inside(path: &Path, folder: &Path) -> Outcome<bool> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let absolute = |path: &Path| {
        path.canonicalize().with_context(|| format!("cannot find {}", path.display()))
    };
    Ok(absolute(parent)?.starts_with(absolute(folder)?))
}

/// Copies what is in the folder `from`, but for the entry called `left_out`, into the folder `to`.
fn copy_but(from: &Path, to: &Path, left_out: &str) -> Outcome<()> {
    let reading = || format!("cannot read {}", from.display());
    for entry in fs::read_dir(from).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        if entry.file_name() == left_out {
            continue;
        }
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            fs::create_dir(&target)
                .with_context(|| format!("cannot create {}", target.display()))?;
            copy_but(&source, &target, "")?;
        } else {
            let copy = || -> std::io::Result<()> {
                fs::copy(&source, &target)?;
                // The folder gets its name only when what is in it is on the disk.
                fs::File::open(&target)?.sync_all()
            };
            copy().with_context(|| format!("cannot copy {}", source.display()))?;
        }
    }
    Ok(())
}
