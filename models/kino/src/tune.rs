//! `kino tune`: which tile is fastest for each product of a model on the GPU at hand, and whether cuBLASLt is faster
//! still, as a table that `kino compile --tiles` uses in place of its cost model.
//!
//! Every way to compute a product is tried on the whole model at once: plans in which each product takes it, one
//! engine, the time of each step on the device. So each is measured with its own epilogue, beside the caches that
//! its neighbours leave. Then, where the machine has cuBLASLt, all plain products by it, in the plan of the fastest.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::anyhow;
use aot::{Builder, Cache};
use clap::Args;
use cuda::{Device, Driver, Products, Session};
use cuda_kernels::Nvrtc;
use engine::Engine;
use kernels::Kernel;
use kernels::cuda::tiles::{Library, Measured, Tiles, Tuning};
use kernels::cuda::{CudaKernel, Gpu};
use measure::MadeUp;
use ops::DType;
use runtime::WeightStore;
use serde_json::json;

use crate::dump::{ModelOptions, StageName};
use crate::failure::{Failure, Outcome};
use crate::options::Storage;
use crate::parts::Parts;
use crate::plan::StagePlan;
use crate::progress::Console;
use crate::report::line;
use crate::{VERSION, compile, device, machine, progress, units};

/// Runs that do not count: clocks and caches settle.
const WARM_UPS: usize = 2;

/// What to measure.
#[derive(Args, Debug)]
pub(crate) struct TuneOptions {
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
    /// Storage type of weights and activations, bf16 or f16: f32 has no tiles to choose from
    #[arg(long, default_value = "bf16")]
    dtype: Storage,
    /// The GPU: cuda:0, cuda:1, …
    #[arg(long, default_value = "cuda:0", value_name = "DEVICE")]
    device: String,
    /// Timed runs of each way; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// The table; one that exists gets its other products kept
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
    /// Show errors only
    #[arg(long)]
    quiet: bool,
}

/// The command. Compiled functions are kept below `cache`, the user's cache folder.
pub(crate) fn run(
    options: &TuneOptions,
    cache: Option<PathBuf>,
    interrupt: &AtomicBool,
) -> Outcome<()> {
    let Some(index) = device::gpu_index(&options.device)? else {
        return Err(Failure::usage(format!(
            "--device {}; an emulated device has no speed to measure: expected cuda:0, cuda:1, …",
            options.device
        )));
    };
    let known =
        if options.output.exists() { compile::tiles(&options.output)? } else { Tiles::default() };
    let failed = |error: cuda::Error| Failure::Run(error.into());
    let mut driver = Driver::open(index).map_err(failed)?;
    let (name, arch) = (driver.name().to_owned(), driver.arch());
    let missing = match driver.open_library() {
        Ok(()) => None,
        Err(error @ cuda::Error::NoLibrary { .. }) => Some(error.to_string()),
        Err(error) => return Err(failed(error)),
    };
    let gpu = Gpu::from_name(&arch.to_string())
        .ok_or_else(|| anyhow!("{name} is {arch}, for which kernels cannot be compiled"))?;
    drop(driver);
    let nvrtc = Nvrtc::find().map_err(|error| Failure::Run(error.into()))?;
    let cache = cache.map(|folder| Cache::in_folder(folder.join("kinograph").join("cuda")));
    let parts = Parts::find(&options.model)?;
    let trial = Trial { options, parts: &parts, gpu, index, nvrtc, cache, interrupt };
    let methods = Tiles::methods(gpu);
    let mut console = Console::new(options.quiet, options.json);
    let n_trials = methods.len() + usize::from(missing.is_none());
    let mut stage = console.stage("tune", n_trials as u64);
    let mut tuning = Tuning::default();
    for method in methods {
        stage.time(|bar| -> Outcome<()> {
            let of_all = trial.run(Tiles::trial(method), Products::Own)?;
            of_all.for_each_kernel(|kernel, timed| tuning.add(kernel, gpu, timed.time));
            bar.advance();
            Ok(())
        })?;
    }
    if missing.is_none() {
        stage.time(|bar| -> Outcome<()> {
            let of_library = trial.run(tuning.tiles(), Products::Library)?;
            of_library.for_each_kernel(|kernel, timed| {
                if timed.by_library {
                    tuning.add_library(kernel, gpu, timed.time);
                }
            });
            bar.advance();
            Ok(())
        })?;
    }
    stage.finish();
    if let Some(missing) = missing {
        console.warn(format!("cuBLASLt is not measured: {missing}"));
    }
    let measured = tuning.measured();
    let mut tiles = known;
    tiles.extend(tuning.tiles());
    let header =
        format!("# The fastest tile of each product on {name}, measured by kinograph {VERSION}.\n");
    media::write_file(&options.output, (header + &tiles.to_string()).as_bytes())?;
    if options.json {
        progress::write_out(&format!("{:#}\n", to_json(options, &name, &measured)));
    } else {
        console.print(&to_text(&measured));
        console.print(&format!(
            "{}: {}\n",
            options.output.display(),
            units::counted(tiles.len(), "product")
        ));
    }
    Ok(())
}

/// What a trial needs.
struct Trial<'a> {
    options: &'a TuneOptions,
    parts: &'a Parts,
    gpu: Gpu,
    /// Number of the GPU.
    index: usize,
    nvrtc: Nvrtc,
    cache: Option<Cache>,
    interrupt: &'a AtomicBool,
}

/// A step of one plan.
#[derive(Clone, Copy, Debug)]
struct Timed {
    time: Duration,
    /// Whether the library computed a product of it.
    by_library: bool,
}

/// The steps of each plan.
#[derive(Debug)]
struct TimedPlans(Vec<(StagePlan, Vec<Timed>)>);

impl TimedPlans {
    fn for_each_kernel(&self, mut each: impl FnMut(&CudaKernel, Timed)) {
        for (planned, steps) in &self.0 {
            for (step, timed) in planned.plan.steps.iter().zip(steps) {
                if let Kernel::Cuda(kernel) = &step.kernel {
                    each(kernel, *timed);
                }
            }
        }
    }
}

impl Trial<'_> {
    /// The median time of each step of the plans with these tiles.
    fn run(&self, tiles: Tiles, products: Products) -> Outcome<TimedPlans> {
        let plans = self.options.plans(self.parts, self.gpu, tiles)?;
        let mut builder = Builder::new();
        for (number, planned) in plans.iter().enumerate() {
            let added = builder.add(&number.to_string(), &planned.plan);
            added.map_err(|error| Failure::Run(error.into()))?;
        }
        let about = (format!("kinograph {VERSION}"), self.options.model.clone(), DType::Bf16);
        let cache = self.cache.as_ref();
        let built = builder.build(about, &self.nvrtc, cache, machine::cores(), &|_| ());
        let engine = Arc::new(built.map_err(|error| Failure::Run(error.into()))?);
        let times = self.times(&engine, products)?;
        Ok(TimedPlans(plans.into_iter().zip(times).collect()))
    }

    /// The median time of each step of each program, on made-up numbers.
    fn times(&self, engine: &Arc<Engine>, products: Products) -> Outcome<Vec<Vec<Timed>>> {
        let failed = |error: cuda::Error| Failure::Run(error.into());
        let device = Box::new(Driver::open(self.index).map_err(failed)?);
        let weights = engine.weights.iter().map(|weight| (weight.name.clone(), weight.ty.clone()));
        let store = WeightStore::new(weights.collect::<MadeUp>());
        let session = Session::with_products(device, Arc::clone(engine), &[], &store, products);
        let mut session = session.map_err(failed)?;
        let mut all = Vec::with_capacity(engine.programs.len());
        for program in &engine.programs {
            let id = session.find(&program.name).map_err(failed)?;
            let mut steps: Vec<Vec<Duration>> = vec![vec![]; program.steps.len()];
            for run in 0..WARM_UPS + self.options.runs as usize {
                if self.interrupt.load(Ordering::Relaxed) {
                    return Err(Failure::Interrupted { written: 0 });
                }
                for port in &program.inputs {
                    let made_up = MadeUp::input(&port.ty);
                    session.write_input(id, &port.name, &made_up).map_err(failed)?;
                }
                let times = session.profile(id).map_err(failed)?;
                if run >= WARM_UPS {
                    steps.iter_mut().zip(times).for_each(|(step, time)| step.push(time));
                }
            }
            let timed = steps.into_iter().enumerate().map(|(step, times)| Timed {
                time: median(times),
                by_library: session.uses_library(id, step),
            });
            all.push(timed.collect());
        }
        Ok(all)
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn to_text(measured: &[Measured]) -> String {
    let mut text = String::new();
    line(
        &mut text,
        format_args!(
            "{:<44} {:<24} {:>9} {:>9} {:>9} {:>9}",
            "product", "fastest", "time", "slowest", "plain", "cublaslt"
        ),
    );
    let seconds = |time: Duration| units::seconds(time.as_secs_f64());
    for Measured { product, method, time, slowest, library } in measured {
        let of_library = |time: fn(&Library) -> Duration| library.as_ref().map(time).map(seconds);
        line(
            &mut text,
            format_args!(
                "{:<44} {:<24} {:>9} {:>9} {:>9} {:>9}",
                product.to_string(),
                method.to_string(),
                seconds(*time),
                seconds(*slowest),
                of_library(|library| library.own).unwrap_or_default(),
                of_library(|library| library.time).unwrap_or_default()
            ),
        );
    }
    text
}

fn to_json(options: &TuneOptions, device: &str, measured: &[Measured]) -> serde_json::Value {
    let products = measured.iter().map(|row| {
        json!({
            "product": row.product.to_string(), "method": row.method.to_string(),
            "seconds": row.time.as_secs_f64(), "slowest_seconds": row.slowest.as_secs_f64(),
            "plain_seconds": row.library.map(|library| library.own.as_secs_f64()),
            "cublaslt_seconds": row.library.map(|library| library.time.as_secs_f64()),
        })
    });
    json!({
        "version": VERSION, "model": options.model, "device": device,
        "path": options.output.display().to_string(), "products": products.collect::<Vec<_>>(),
    })
}

impl TuneOptions {
    /// The plan of every stage and size with these tiles.
    fn plans(&self, parts: &Parts, gpu: Gpu, tiles: Tiles) -> Outcome<Vec<StagePlan>> {
        let target = kernels::Target { tiles: Some(Arc::new(tiles)), ..machine::gpu_target(gpu) };
        let mut stages = self.stage.map_or_else(|| parts.stages(), |stage| vec![stage]);
        let mut plans = Vec::new();
        for bucket in &self.bucket {
            let model = ModelOptions {
                model: self.model.clone(),
                bucket: bucket.clone(),
                stage: self.stage,
                batch_size: self.batch_size,
                dtype: self.dtype,
                text_dtype: Some(self.dtype),
                threads: None,
            };
            let size = model.size()?;
            for &stage in &stages {
                let graph = parts.graph(&model, stage, size, &target)?;
                let limit = compiler::Options { memory: None };
                plans.push(StagePlan::compile(stage, graph, &target, &limit, None)?);
            }
            // Prompts are as long for every size.
            stages.retain(|stage| *stage != StageName::Text);
        }
        Ok(plans)
    }
}
