//! `kino sample`: prompts to video files.
//!
//! Order matters: everything that can be refused is refused before the first long computation, and the
//! plan is printed before it runs. `run.rs` runs it.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Context;
use kernels::{Pool, Target};
use pipeline::{Plans, Request};
use runtime::{Backend, Cpu};

use crate::calibrate::Calibration;
use crate::failure::{Failure, Outcome};
use crate::noise::Noise;
use crate::options::SampleOptions;
use crate::progress::Console;
use crate::report::{Planned, Report};
use crate::run::Run;
use crate::settings::{self, Settings};
use crate::{VERSION, layers, machine, outputs, prompts, references, source};

/// The command.
pub(crate) fn run(
    flags: SampleOptions,
    forced_isa: Option<&str>,
    calibration: &Calibration,
    interrupt: &AtomicBool,
) -> Outcome<()> {
    let start = Instant::now();
    let (mut options, earlier) = layers::gather(flags)?;
    let mut console = Console::new(options.quiet, options.json);
    settings::check(&options)?;
    let (prompts, n_listed) = prompts::gather(&options)?;
    source::check(&options)?;
    let n_videos = prompts.len().saturating_mul(options.num_sample.unwrap_or(1));
    outputs::check(&options, n_videos)?;
    let target = machine::target(forced_isa, options.threads)?;
    let (engine, target) = on_device(&mut options, target)?;
    let references = references::gather(&options, &prompts, n_listed, interrupt)?;
    if let Some(earlier) = earlier {
        let isa = target.isa.name();
        if (earlier.version.as_str(), earlier.isa.as_str()) != (VERSION, isa) {
            console.warn(format!(
                "made by version {} with {}, this is version {VERSION} with {isa}: frames may \
                 differ in their last bits",
                earlier.version, earlier.isa
            ));
        }
    }

    let mut report = Report::default();
    let model = source::load(&options)?;
    report.seconds.push(("load", start.elapsed().as_secs_f64()));
    let settings = Settings::resolve(&options, &model)?;
    let scheduler = settings.scheduler(&model)?;
    let frame = settings.request.frame_size(&model)?;
    let (jobs, folders) = outputs::jobs(&options, &prompts, settings.total_frames(), frame)?;
    let limit = model.transformer.common().model_max_length;
    for warning in prompts::truncations(&prompts, &model.tokenizer, limit)? {
        console.warn(warning);
    }
    let placed = references.place(settings.request.num_frames, settings.n_loops)?;
    let request = Request {
        rows: settings.request.rows.min(jobs.len()),
        frame_mask: placed.n_pictures() > 0 || settings.n_loops > 1,
        ..settings.request.clone()
    };
    machine::check_memory(request.floor_bytes(&model)?, "at least ")?;
    let [t, h, w] = request.latent(&model)?;
    let shape = [model.transformer.common().in_channels, t, h, w];
    let noise = Noise::new(settings.seed, shape, options.initial_noise.as_deref())?;
    jobs.iter().try_for_each(|job| noise.check(job.sample_index))?;

    let compile = Instant::now();
    let limit = compiler::Options { memory: settings::memory(&options)? };
    let plans = Plans::compile_with(&model, &scheduler, &request, &target, &limit)?;
    report.seconds.push(("compile", compile.elapsed().as_secs_f64()));
    report.describe(&Planned {
        model: &model,
        settings: &settings,
        request: &request,
        plans: &plans,
        target: &target,
        placed: &placed,
        n_texts: prompts::texts(&prompts).len(),
        n_videos: jobs.len(),
    })?;
    if engine.is_none() {
        machine::check_memory(report.peak_bytes as f64, "")?;
    }
    console.print(&report.plan_text(&jobs));

    let pool = Pool::new(target.threads).context("cannot start threads")?;
    let backend = engine.unwrap_or_else(|| Box::new(Cpu::new(Arc::new(pool))));
    let run = Run {
        options: &options,
        model: &model,
        settings: &settings,
        scheduler,
        target: &target,
        limit,
        prompts: &prompts,
        references: &references,
        placed: &placed,
        noise,
        backend: &*backend,
        interrupt,
        times: RefCell::default(),
    };
    let outcome = run.sample(&jobs, &request, plans, &console, &mut report);
    backend.take_notes().into_iter().for_each(|note| console.warn(note));
    outcome.map_err(|failure| match failure {
        Failure::Interrupted { .. } => Failure::Interrupted { written: report.outputs.len() },
        other => other,
    })?;
    if let Some(path) = &options.profile {
        // What was measured is this CPU.
        let model = if target.gpu.is_none() { calibration.load(&target)? } else { None };
        let text = run.times.into_inner().to_json(&options, &target, model.as_ref());
        media::write_file(path, text.as_bytes())?;
    }
    drop(folders);
    report.seconds.push(("total", start.elapsed().as_secs_f64()));
    if options.json {
        crate::progress::write_out(&report.to_json(console.warnings()));
    } else {
        console.print(&report.result_text());
    }
    Ok(())
}

/// The engine that runs instead of this CPU, if there is one, and what plans are made for. Storage types are
/// the engine's.
#[cfg(feature = "cuda")]
fn on_device(
    options: &mut SampleOptions,
    target: Target,
) -> Outcome<(Option<Box<dyn Backend>>, Target)> {
    let Some(path) = &options.engine else { return Ok((None, target)) };
    let products = options.products.map(crate::options::ProductsName::products);
    let products = products.unwrap_or_default();
    let times_steps = options.profile.is_some();
    let crate::device::OnDevice { backend, gpu, dtype } =
        crate::device::open(path, options.device.as_deref(), times_steps, products)?;
    match options.dtype {
        Some(storage) if storage.dtype() != dtype => {
            return Err(Failure::usage(format!(
                "--dtype {}, but {} is compiled for {dtype}: leave --dtype out, or compile another engine",
                storage.dtype(),
                path.display()
            )));
        }
        _ => options.dtype = Some(crate::options::Storage::of(dtype)),
    }
    // As `kino compile` has it where it is not told otherwise; T5 exceeds the range of f16.
    if dtype != ops::DType::F16 {
        options.text_dtype = options.text_dtype.or(options.dtype);
    }
    Ok((Some(Box::new(backend)), Target { gpu: Some(gpu), ..target }))
}

/// This build has none.
#[cfg(not(feature = "cuda"))]
fn on_device(_: &mut SampleOptions, target: Target) -> Outcome<(Option<Box<dyn Backend>>, Target)> {
    Ok((None, target))
}
