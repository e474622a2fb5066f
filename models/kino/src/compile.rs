//! `kino compile`: a model's plans for some buckets, with their kernels, as one engine file.
//!
//! No weight is read, and no GPU is needed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow};
use aot::{Builder, Cache};
use clap::Args;
use cuda_kernels::Nvrtc;
use kernels::Target;
use kernels::cuda::tiles::Tiles;
use serde_json::json;

use crate::dump::{ModelOptions, StageName};
use crate::failure::{Failure, Outcome};
use crate::options::Storage;
use crate::parts::Parts;
use crate::progress::Console;
use crate::{VERSION, gpus, inspect_engine, machine, plan, progress, settings, units};

/// What to compile.
#[derive(Args, Debug)]
pub(crate) struct CompileOptions {
    /// tiny-flare-1.1, stdit-xl, stdit2-xl, t5-large, t5-xl, t5-xxl, sd-vae, or a checkpoint or
    /// pipeline folder
    model: String,
    /// Sizes: 240p:16f:9:16 (name, frames, aspect) or 16x256x256 (frames, height, width)
    #[arg(long, default_value = "240p:16f:9:16", value_name = "BUCKET")]
    bucket: Vec<String>,
    /// One part of sampling, where the model has several
    #[arg(long)]
    stage: Option<StageName>,
    /// Videos at once
    #[arg(long, default_value_t = 1)]
    batch_size: usize,
    /// Storage type of weights and activations
    #[arg(long, default_value = "bf16")]
    dtype: Storage,
    /// Storage type of a pipeline's text encoder, f32 or bf16 [default: that of the rest]
    #[arg(long, value_name = "TYPE")]
    text_dtype: Option<Storage>,
    /// Generation of GPUs: `sm_80`, `sm_86`, `sm_89` or `sm_90a`
    #[arg(long, default_value = "sm_90a", value_name = "ARCH")]
    target: String,
    /// Most memory for arena and weights of a plan, such as 80GiB
    #[arg(long, value_name = "BYTES")]
    memory: Option<String>,
    /// Measured tiles of products, as `kino tune` writes them, in place of modelled ones
    #[arg(long, value_name = "FILE")]
    tiles: Option<PathBuf>,
    /// The engine
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Compile everything again
    #[arg(long)]
    no_cache: bool,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
    /// Show errors only
    #[arg(long)]
    quiet: bool,
}

/// The command. Compiled functions are kept below `cache`, the user's cache folder.
pub(crate) fn run(options: &CompileOptions, cache: Option<PathBuf>) -> Outcome<()> {
    let start = Instant::now();
    let gpu = gpus::generation("--target", &options.target)?;
    let memory = options.memory.as_deref().map(settings::parse_memory).transpose()?;
    let tiles = options.tiles.as_ref().map(|path| tiles(path)).transpose()?;
    let target = Target { tiles: tiles.map(Arc::new), ..machine::gpu_target(gpu) };
    let nvrtc = Nvrtc::find().map_err(|error| Failure::Run(error.into()))?;
    let parts = Parts::find(&options.model)?;
    let mut builder = Builder::new(gpu);
    let mut stages: Vec<StageName> =
        options.stage.map_or_else(|| parts.stages(), |stage| vec![stage]);
    for bucket in &options.bucket {
        let model = options.model(bucket);
        let size = model.size()?;
        for &stage in &stages {
            let graph = parts.graph(&model, stage, size)?;
            let limit = compiler::Options { memory };
            let planned = plan::StagePlan::compile(stage, graph, &target, &limit, None)?;
            let name = format!("{} {bucket}", stage.name());
            builder.add(&name, &planned.plan).map_err(|error| Failure::Run(error.into()))?;
        }
        // Prompts are as long for every size.
        stages.retain(|stage| *stage != StageName::Text);
    }
    let console = Console::new(options.quiet, options.json);
    let stage = console.stage("kernels", builder.kernels() as u64);
    let cache = cache.filter(|_| !options.no_cache);
    let cache = cache.map(|folder| Cache::in_folder(folder.join("kinograph").join("cuda")));
    let about = (format!("kinograph {VERSION}"), options.model.clone(), options.dtype.dtype());
    let engine = builder
        .build(about, &nvrtc, cache.as_ref(), machine::cores(), &|progress| {
            stage.set(progress.done as u64);
        })
        .map_err(|error| Failure::Run(error.into()))?;
    stage.finish();
    engine.save(&options.output).map_err(|error| Failure::Run(error.into()))?;
    let bytes = std::fs::metadata(&options.output)?.len();
    let seconds = start.elapsed().as_secs_f64();
    if options.json {
        let kernels = engine.kernels.iter().map(|kernel| {
            let image = kernel.images.last();
            json!({
                "name": kernel.name, "block": kernel.block, "shared_bytes": kernel.shared_bytes,
                "registers": image.map(|image| image.registers),
                "spill_bytes": image.map(|image| image.spill_bytes),
            })
        });
        let document = json!({
            "version": VERSION, "model": options.model, "target": gpu.code_name(),
            "bytes": bytes, "seconds": seconds, "kernels": kernels.collect::<Vec<_>>(),
        });
        progress::write_out(&format!("{document:#}\n"));
    } else {
        console.print(&inspect_engine::kernels_text(&engine));
        for program in &engine.programs {
            console.print(&inspect_engine::program_text(program));
        }
        console.print(&format!(
            "{} in {}: {}\n",
            options.output.display(),
            units::seconds(seconds),
            units::bytes(bytes as f64)
        ));
    }
    Ok(())
}

/// The table of tiles in a file.
pub(crate) fn tiles(path: &Path) -> Outcome<Tiles> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let tiles = text.parse().map_err(|reason: String| anyhow!("{}: {reason}", path.display()))?;
    Ok(tiles)
}

impl CompileOptions {
    fn model(&self, bucket: &str) -> ModelOptions {
        ModelOptions {
            model: self.model.clone(),
            bucket: bucket.to_owned(),
            stage: self.stage,
            batch_size: self.batch_size,
            dtype: self.dtype,
            text_dtype: Some(self.text_dtype.unwrap_or(self.dtype)),
            threads: None,
        }
    }
}
