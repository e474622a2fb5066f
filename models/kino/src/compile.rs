//! `kino compile`: a model's plans for some buckets and generations of GPUs, with their kernels, as one
//! engine file.
//!
//! No weight is read, and no GPU is needed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow};
use aot::{Builder, Cache};
use clap::Args;
use cuda_kernels::Nvrtc;
use engine::ImageKind;
use kernels::Target;
use kernels::cuda::tiles::Tiles;
use serde_json::json;

use crate::bucket_table;
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
    /// Sizes: 240p:16f:9:16 (name, frames, aspect) or 16x256x256 (frames, height, width); may be given
    /// several times [default: 240p:16f:9:16, without --buckets]
    #[arg(long, value_name = "BUCKET")]
    bucket: Vec<String>,
    #[arg(
        long,
        value_name = "FILE",
        help = "Buckets, as TOML: a recipe of training, or a list such as buckets = [{ resolution = \"240p\", \
                frames = 16, keep = 1.0, batch = 2 }]; what keeps a share is compiled at its batch size"
    )]
    buckets: Option<PathBuf>,
    /// Heights to widths of the buckets of --buckets; may be given several times, or `all`
    #[arg(long, default_value = "9:16", value_name = "H:W", requires = "buckets")]
    aspect_ratio: Vec<String>,
    /// One part of sampling, where the model has several
    #[arg(long)]
    stage: Option<StageName>,
    /// Videos at once of the sizes of --bucket
    #[arg(long, default_value_t = 1)]
    batch_size: usize,
    /// Storage type of weights and activations
    #[arg(long, default_value = "bf16")]
    dtype: Storage,
    /// Storage type of a pipeline's text encoder, f32 or bf16 [default: that of the rest]
    #[arg(long, value_name = "TYPE")]
    text_dtype: Option<Storage>,
    /// Generations of GPUs: `sm_80`, `sm_86`, `sm_89`, `sm_90a`, or several of them with commas between
    #[arg(long, default_value = "sm_90a", value_name = "ARCH", value_delimiter = ',')]
    target: Vec<String>,
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

/// One size to compile.
#[derive(Debug)]
struct Size {
    /// As `--bucket` takes it.
    bucket: String,
    /// Videos at once.
    batch_size: usize,
}

impl Size {
    /// What a program of it is called, after the stage.
    fn name(&self) -> String {
        match self.batch_size {
            1 => self.bucket.clone(),
            several => format!("{}, batch {several}", self.bucket),
        }
    }
}

/// The command. Compiled functions are kept below `cache`, the user's cache folder.
pub(crate) fn run(options: &CompileOptions, cache: Option<PathBuf>) -> Outcome<()> {
    let start = Instant::now();
    let gpus = gpus::generations_of("--target", &options.target)?;
    let memory = options.memory.as_deref().map(settings::parse_memory).transpose()?;
    let sizes = options.sizes()?;
    let tiles = options.tiles.as_ref().map(|path| tiles(path)).transpose()?.map(Arc::new);
    let parts = Parts::find(&options.model)?;
    let nvrtc = Nvrtc::find().map_err(|error| Failure::Run(error.into()))?;
    let mut builder = Builder::new();
    for &gpu in &gpus {
        let target = Target { tiles: tiles.clone(), ..machine::gpu_target(gpu) };
        options.add_programs(&mut builder, &parts, &sizes, &target, memory)?;
    }
    let console = Console::new(options.quiet, options.json);
    let stage = console.stage("kernels", builder.compilations() as u64);
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
            let images = kernel.images.iter().filter(|image| image.kind == ImageKind::Cubin);
            let code = images.map(|image| {
                json!({
                    "target": image.arch.to_string(), "registers": image.registers,
                    "spill_bytes": image.spill_bytes,
                })
            });
            json!({
                "name": kernel.name, "block": kernel.block, "shared_bytes": kernel.shared_bytes,
                "code": code.collect::<Vec<_>>(),
            })
        });
        let targets: Vec<String> = engine.targets().iter().map(ToString::to_string).collect();
        let document = json!({
            "version": VERSION, "model": options.model, "targets": targets,
            "programs": engine.programs.len(), "bytes": bytes, "seconds": seconds,
            "kernels": kernels.collect::<Vec<_>>(),
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
    /// What is compiled.
    fn sizes(&self) -> Outcome<Vec<Size>> {
        let mut sizes = vec![];
        let usual = ["240p:16f:9:16".to_owned()];
        let named = match (&self.bucket[..], &self.buckets) {
            ([], None) => &usual[..],
            (named, _) => named,
        };
        for bucket in named {
            sizes.push(Size { bucket: bucket.clone(), batch_size: self.batch_size });
        }
        if let Some(path) = &self.buckets {
            sizes.extend(self.sizes_of_table(path)?);
        }
        Ok(sizes)
    }

    fn sizes_of_table(&self, path: &Path) -> Outcome<Vec<Size>> {
        let named = bucket_table::read(path, &self.aspect_ratio)?;
        let size = |entry: &bucket_table::TableBucket| {
            let [frames, height, width] = entry.size;
            Size { bucket: format!("{frames}x{height}x{width}"), batch_size: entry.batch_size }
        };
        Ok(named.iter().map(size).collect())
    }

    /// Plans all stages of all sizes for `target`.
    fn add_programs(
        &self,
        builder: &mut Builder,
        parts: &Parts,
        sizes: &[Size],
        target: &Target,
        memory: Option<usize>,
    ) -> Outcome<()> {
        let stages = self.stage.map_or_else(|| parts.stages(), |stage| vec![stage]);
        // Prompts are as long for every size, and a frame is decoded alike in every video.
        let mut made = BTreeSet::new();
        for size in sizes {
            let model = self.model(size);
            let [frames, height, width] = model.size()?;
            for &stage in &stages {
                let of = match stage {
                    StageName::Text => [0; 4],
                    StageName::Condition | StageName::Decode => [0, height, width, 0],
                    StageName::Denoise => [frames, height, width, size.batch_size],
                };
                if !made.insert((stage.name(), of)) {
                    continue;
                }
                let graph = parts.graph(&model, stage, [frames, height, width], target)?;
                let limit = compiler::Options { memory };
                let planned = plan::StagePlan::compile(stage, graph, target, &limit, None)?;
                let name = format!("{} {}", stage.name(), size.name());
                let added = builder.add_within(&name, &planned.plan, memory);
                added.map_err(|error| Failure::Run(error.into()))?;
            }
        }
        Ok(())
    }

    fn model(&self, size: &Size) -> ModelOptions {
        ModelOptions {
            model: self.model.clone(),
            bucket: size.bucket.clone(),
            stage: self.stage,
            batch_size: size.batch_size,
            dtype: self.dtype,
            text_dtype: Some(self.text_dtype.unwrap_or(self.dtype)),
            threads: None,
        }
    }
}
