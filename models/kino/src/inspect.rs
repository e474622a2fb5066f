//! `kino inspect`: what a checkpoint, a pipeline folder, an engine or an output is, and whether it fits.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use checkpoint::names::{Leniency, Misfit, Parameter, fit_with};
use checkpoint::{Checkpoint, Kind, Pipeline, identify};
use clap::Args;
use models::config::{AutoencoderKl, Stdit1, Stdit2, T5};
use models::{stdit1, stdit2, t5, vae};
use pipeline::Transformer;
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
#[cfg(feature = "engine-files")]
use crate::inspect_engine;
use crate::{progress, units};

/// What to look at.
#[derive(Args, Debug)]
pub(crate) struct InspectOptions {
    /// A checkpoint (file or folder), a pipeline folder, an engine, or an output of `kino sample`
    path: PathBuf,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// Parts of a pipeline that are checkpoints.
const WITH_WEIGHTS: [&str; 3] = ["text_encoder", "transformer", "vae"];

/// The configuration of a model that this program can build.
#[derive(Debug)]
pub(crate) enum Config {
    Stdit(Transformer),
    T5(T5),
    Vae(AutoencoderKl),
    /// Of a kind that has no graph here.
    Other,
}

/// The command.
pub(crate) fn run(options: &InspectOptions) -> Outcome<()> {
    let path = &options.path;
    if !path.exists() {
        let error = anyhow::anyhow!("{}: no such file or folder", path.display());
        return Err(Failure::Run(error));
    }
    if is_output(path) {
        return inspect_output(options);
    }
    #[cfg(feature = "engine-files")]
    if engine::Engine::is_engine(path) {
        let engine = inspect_engine::open(path)?;
        progress::write_out(&match options.json {
            true => format!("{:#}\n", inspect_engine::to_json(path, &engine)),
            false => inspect_engine::to_text(path, &engine),
        });
        return Ok(());
    }
    let mut documents = Vec::new();
    let mut text = String::new();
    let mut misfits = Vec::new();
    let parts: Vec<(Option<String>, PathBuf)> = if Pipeline::is_pipeline(path) {
        let pipeline = Pipeline::open(path)?;
        let parts = pipeline.components.into_iter();
        let parts = parts.filter(|(name, _)| WITH_WEIGHTS.contains(&name.as_str()));
        parts.map(|(name, part)| (Some(name), part.path)).collect()
    } else {
        vec![(None, path.clone())]
    };
    for (name, path) in parts {
        let part = inspect_checkpoint(&path, options.tensors)?;
        if let Some(name) = &name {
            push(&mut text, format_args!("[{name}]"));
        }
        text.push_str(&part.text);
        documents.push(match name {
            Some(name) => json!({ "part": name, "checkpoint": part.document }),
            None => part.document,
        });
        misfits.extend(part.misfit);
    }
    if options.json {
        let document = match documents.len() {
            1 if !Pipeline::is_pipeline(path) => documents.remove(0),
            _ => json!({ "pipeline": documents }),
        };
        text = format!("{document:#}\n");
    }
    progress::write_out(&text);
    if misfits.is_empty() { Ok(()) } else { Err(Failure::Run(anyhow::anyhow!(misfits.join("\n")))) }
}

/// Whether the path looks like something that `kino sample` wrote.
fn is_output(path: &Path) -> bool {
    if path.is_dir() {
        return path.join("metadata.json").is_file() && path.join("frame_0000.png").is_file();
    }
    let mut start = [0; 12];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok()
        && (start.starts_with(b"\x89PNG")
            || start.starts_with(b"GIF8")
            || start.starts_with(b"RIFF")
            || &start[4..8] == b"ftyp")
}

fn inspect_output(options: &InspectOptions) -> Outcome<()> {
    let metadata = media::read_metadata(&options.path)?;
    let mut text = String::new();
    if options.json {
        let entries = metadata.iter().map(|(key, value)| {
            // Settings are JSON themselves.
            let parsed = (key == "settings").then(|| serde_json::from_str(value).ok()).flatten();
            (key.to_string(), parsed.unwrap_or_else(|| Value::from(value)))
        });
        let document = json!({ "output": entries.collect::<serde_json::Map<_, _>>() });
        text = format!("{document:#}\n");
    } else {
        for (key, value) in metadata.iter() {
            push(&mut text, format_args!("{key:<10} {value}"));
        }
    }
    progress::write_out(&text);
    Ok(())
}

struct Inspected {
    text: String,
    document: Value,
    misfit: Option<String>,
}

fn inspect_checkpoint(path: &Path, with_tensors: bool) -> Outcome<Inspected> {
    let checkpoint = Checkpoint::open(path)?;
    let identity = identify(&checkpoint);
    let fit = params(&checkpoint)?.map(|params| {
        let fitted = fit_with(&checkpoint, &params, Leniency::default());
        fitted.map(|fitted| (fitted.changes, fitted.dropped)).map_err(Box::new)
    });

    let mut text = String::new();
    push(&mut text, format_args!("{:<12} {}", "path", path.display()));
    push(&mut text, format_args!("{:<12} {:?}", "format", checkpoint.format()));
    let class = identity.class.as_ref().map_or(String::new(), |class| format!(" ({class})"));
    push(&mut text, format_args!("{:<12} {}{class}", "model", identity.kind));
    let millions = identity.n_parameters as f64 / 1e6;
    let tensors = identity.n_tensors;
    push(&mut text, format_args!("{:<12} {millions:.2}M in {tensors} tensors", "parameters"));
    for (dtype, total) in &identity.by_dtype {
        let bytes = units::bytes(total.bytes as f64);
        let row = format!("{} tensors, {} elements, {bytes}", total.n_tensors, total.n_elements);
        push(&mut text, format_args!("{:<12} {row}", dtype.to_string()));
    }
    for (key, value) in &identity.config {
        let note = if identity.assumed.contains(key) { " (assumed)" } else { "" };
        push(&mut text, format_args!("  {key} = {value}{note}"));
    }
    for sentence in &identity.contradictions {
        push(&mut text, format_args!("{:<12} {sentence}", "but"));
    }
    if with_tensors {
        for info in checkpoint.tensors() {
            push(&mut text, format_args!("  {} {} {:?}", info.name, info.dtype, info.shape));
        }
    }
    let (state, lists) = match &fit {
        None => ("not checked: this kind of model has no graph here".to_string(), Value::Null),
        Some(Ok((changes, dropped))) => {
            for (name, change) in changes {
                push(&mut text, format_args!("  {name}: {change}"));
            }
            let state = match dropped.len() {
                0 => "every tensor".to_string(),
                n => format!("every tensor; {n} are not needed: {}", dropped.join(", ")),
            };
            (state, json!({ "fits": true, "dropped": dropped }))
        }
        Some(Err(misfit)) => ("no".to_string(), misfit_json(misfit)),
    };
    push(&mut text, format_args!("{:<12} {state}", "fits"));
    let mut document = json!({
        "path": path.display().to_string(), "format": format!("{:?}", checkpoint.format()),
        "identity": identity, "fit": lists,
    });
    if with_tensors {
        document["tensors"] = json!(checkpoint.tensors().collect::<Vec<_>>());
    }
    let misfit = fit.and_then(Result::err).map(|misfit| misfit.to_string());
    Ok(Inspected { text, document, misfit })
}

fn misfit_json(misfit: &Misfit) -> Value {
    let list = |rows: &[Parameter]| -> Vec<Value> {
        rows.iter().map(|(name, shape)| json!({ "name": name, "shape": shape })).collect()
    };
    let misshapen = misfit
        .misshapen
        .iter()
        .map(|row| json!({ "name": row.name, "expected": row.expected, "found": row.found }));
    json!({
        "fits": false, "missing": list(&misfit.missing), "unexpected": list(&misfit.unexpected),
        "misshapen": misshapen.collect::<Vec<_>>(),
    })
}

/// The parameters of the checkpoint's model, if it can be built.
fn params(checkpoint: &Checkpoint) -> Outcome<Option<Vec<Parameter>>> {
    Ok(match config_of(checkpoint)? {
        Config::Stdit(Transformer::Stdit1(config)) => Some(stdit1::params(&config)?),
        Config::Stdit(Transformer::Stdit2(config)) => Some(stdit2::params(&config)?),
        Config::T5(config) => Some(t5::params(&config)?),
        Config::Vae(config) => Some(vae::params(&config)?),
        Config::Other => None,
    })
}

/// The configuration of a checkpoint: of its `config.json`, else of its tensors.
pub(crate) fn config_of(checkpoint: &Checkpoint) -> Outcome<Config> {
    let stated = checkpoint.config();
    let shapes = || -> Vec<(String, Vec<usize>)> {
        checkpoint.tensors().map(|info| (info.name.to_string(), info.shape.to_vec())).collect()
    };
    let config = match (identify(checkpoint).kind, stated) {
        (Kind::StDit1, Some(json)) => Stdit1::from_json(json).map(wrap1),
        (Kind::StDit1, None) => Stdit1::from_shapes(&shapes()).map(wrap1),
        (Kind::StDit2, Some(json)) => Stdit2::from_json(json).map(wrap2),
        (Kind::StDit2, None) => Stdit2::from_shapes(&shapes()).map(wrap2),
        (Kind::T5Encoder, Some(json)) => T5::from_json(json).map(Config::T5),
        (Kind::T5Encoder, None) => T5::from_shapes(&shapes()).map(Config::T5),
        (Kind::AutoencoderKl, Some(json)) => AutoencoderKl::from_json(json).map(Config::Vae),
        (Kind::AutoencoderKl, None) => AutoencoderKl::from_shapes(&shapes()).map(Config::Vae),
        _ => Ok(Config::Other),
    };
    // The file is at fault, not the request.
    config.map_err(|error| Failure::Run(error.into()))
}

fn wrap1(config: Stdit1) -> Config {
    Config::Stdit(Transformer::Stdit1(config))
}

fn wrap2(config: Stdit2) -> Config {
    Config::Stdit(Transformer::Stdit2(config))
}

fn push(text: &mut String, args: std::fmt::Arguments<'_>) {
    writeln!(text, "{args}").expect("a string takes any text");
}
