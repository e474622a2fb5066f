//! Runs engine files on a GPU on made-up numbers, and tells whether they run, how fast, and what came out.
//!
//! `cargo run --release -p cuda --example gpu_smoke -- ENGINE...` Each program runs launch by launch and as a graph;
//! both must give the same bytes every time. `--emulated` runs it on the CPU, `--out` keeps the outputs: numbers
//! are made up the same everywhere, so that those of two devices can be compared.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

mod report;
mod watchdog;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use cuda::{Device, Driver, Emulated, Products, ProgramId, Session};
use engine::{Arch, Engine};
use measure::MadeUp;
use runtime::WeightStore;

use report::Timing;
use watchdog::Watchdog;

/// Runs engine files on made-up numbers.
#[derive(Parser)]
struct Options {
    /// Engine files.
    #[arg(required = true)]
    engines: Vec<PathBuf>,
    /// GPU, from 0.
    #[arg(long, default_value_t = 0)]
    gpu: usize,
    /// Run on the emulated device of this architecture, such as `sm_80`, instead.
    #[arg(long, value_name = "ARCH")]
    emulated: Option<Arch>,
    /// Have cuBLASLt compute the products that it can.
    #[arg(long)]
    cublaslt: bool,
    /// Timed runs of each program.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
    /// Runs before those.
    #[arg(long, default_value_t = 3)]
    warm_up: u32,
    /// Only programs whose name contains this.
    #[arg(long, value_name = "TEXT")]
    program: Option<String>,
    /// Wait after every step of the first run, to tell which one fails.
    #[arg(long)]
    stepwise: bool,
    /// How many of the slowest steps to list.
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Write the outputs to files in this folder.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Seconds after which loading an engine or running a program is given up.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let watchdog = Watchdog::start(Duration::from_secs(options.timeout));
    let mut code = ExitCode::SUCCESS;
    for path in &options.engines {
        watchdog.begin(&format!("opening {}", path.display()));
        let outcome = Engine::open(path).map_err(anyhow::Error::from).and_then(|engine| {
            let outcome = smoke(&options, path, &Arc::new(engine), &watchdog);
            outcome.with_context(|| path.display().to_string())
        });
        if let Err(error) = outcome {
            eprintln!("FAILED: {error:#}");
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn open(options: &Options) -> Result<Box<dyn Device>> {
    Ok(match options.emulated {
        Some(arch) => Box::new(Emulated::new(arch, emulator::Options::default())),
        None => Box::new(Driver::open(options.gpu)?),
    })
}

fn smoke(options: &Options, path: &Path, engine: &Arc<Engine>, watchdog: &Watchdog) -> Result<()> {
    println!("{}", path.display());
    println!("  engine   {} {} by {}", engine.model, engine.dtype, engine.created_by);
    println!("  code     {} kernels for {}", engine.kernels.len(), engine.code().join(", "));
    let device = open(options)?;
    println!("  device   {} ({})", device.name(), device.arch());
    let target = cuda::target_for(engine, &*device)?;
    println!("  target   {target}");
    let chosen = |name: &str| options.program.as_ref().is_none_or(|text| name.contains(text));
    let programs = engine.programs.iter().filter(|program| program.target == target);
    let names = programs.map(|program| program.name.as_str());
    let names: Vec<&str> = names.filter(|name| chosen(name)).collect();
    ensure!(!names.is_empty(), "it has no such program");
    let weights = engine.weights.iter().map(|weight| (weight.name.clone(), weight.ty.clone()));
    let store = WeightStore::new(weights.collect::<MadeUp>());
    let start = Instant::now();
    let products = if options.cublaslt { Products::Library } else { Products::Own };
    let session = Session::with_products(device, Arc::clone(engine), &names, &store, products);
    let mut session = session?;
    let (arena, weights) = (session.arena_bytes(), session.weight_bytes());
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("  memory   {:.1} MiB arena, {:.1} MiB weights", mib(arena), mib(weights));
    if options.cublaslt {
        let note = session.note().unwrap_or_else(|| "all plain products".into());
        println!("  cublaslt {note}, {:.1} MiB workspace", mib(session.workspace_bytes()));
    }
    println!("  ready    in {:.3} s, weights made up and uploaded", start.elapsed().as_secs_f64());
    for name in names {
        watchdog.begin(&format!("running `{name}`"));
        let id = session.find(name)?;
        let outputs = run(options, &mut session, id).with_context(|| format!("`{name}`"))?;
        if let Some(folder) = &options.out {
            write(folder, path, name, &outputs)?;
        }
    }
    Ok(())
}

/// Names and bytes.
type Outputs = Vec<(String, Vec<u8>)>;

/// Every run starts from the same inputs, uploaded anew as a denoising step uploads what changes.
fn write_inputs(session: &mut Session, id: ProgramId) -> Result<()> {
    for port in session.program(id).inputs.clone() {
        session.write_input(id, &port.name, &MadeUp::input(&port.ty))?;
    }
    Ok(())
}

fn read_outputs(session: &mut Session, id: ProgramId) -> Result<Outputs> {
    let names: Vec<String> =
        session.program(id).outputs.iter().map(|port| port.name.clone()).collect();
    names
        .into_iter()
        .map(|name| {
            let bytes = session.read_output(id, &name)?;
            Ok((name, bytes))
        })
        .collect()
}

/// Times a program in its present form, whose results must be `expected`.
fn time(
    options: &Options,
    session: &mut Session,
    id: ProgramId,
    expected: &Outputs,
) -> Result<Timing> {
    let mut times = Vec::new();
    for run in 0..options.warm_up + options.runs {
        write_inputs(session, id)?;
        let start = Instant::now();
        let device = session.run(id)?;
        if run >= options.warm_up {
            times.push((device, start.elapsed()));
        }
    }
    if read_outputs(session, id)? != *expected {
        bail!("the last run gave other bytes than the first");
    }
    Ok(Timing::of(&times))
}

/// Runs one program in every way, and reports.
fn run(options: &Options, session: &mut Session, id: ProgramId) -> Result<Outputs> {
    let program = session.program(id).clone();
    println!("  program  `{}`, {}", program.name, report::work(&program));
    write_inputs(session, id)?;
    if options.stepwise {
        session.run_stepwise(id)?;
    } else {
        session.run(id)?;
    }
    let outputs = read_outputs(session, id)?;
    for (port, (_, bytes)) in program.outputs.iter().zip(&outputs) {
        println!("    output   {}", report::output(port, bytes));
    }
    let launches = time(options, session, id, &outputs)?;
    println!("    launches {}", launches.line(program.flops()));
    let mut steps: Vec<Vec<Duration>> = vec![vec![]; program.steps.len()];
    for _ in 0..options.runs {
        write_inputs(session, id)?;
        for (times, time) in steps.iter_mut().zip(session.profile(id)?) {
            times.push(time);
        }
    }
    if options.emulated.is_none() {
        session.capture(id)?;
        let graph = time(options, session, id, &outputs).context("as a graph")?;
        println!("    graph    {}", graph.line(program.flops()));
    }
    print!("{}", report::steps(&program, &steps, options.steps));
    Ok(outputs)
}

fn write(folder: &Path, engine: &Path, program: &str, outputs: &Outputs) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    let stem = engine.file_stem().unwrap_or_default().to_string_lossy();
    for (name, bytes) in outputs {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
        let file: String = format!("{stem}.{program}.{name}.bin").chars().map(plain).collect();
        let path = folder.join(file);
        std::fs::write(&path, bytes).with_context(|| format!("{}", path.display()))?;
        println!("    written  {}", path.display());
    }
    Ok(())
}
