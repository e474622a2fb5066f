//! Checks engines against what must come out of them: `NAME.engine` or `NAME@WAY.engine` beside `NAME.safetensors` with inputs
//! (`in.NAME`), weights (`w.NAME`), results (`out.INDEX`, f32) and the largest relative distance that is right
//! (`limit`). The crate `cuda-tests` writes such cases.
//!
//! `cargo run --release -p cuda --example gpu_check -- FOLDER/*.engine`; `--emulated ARCH` as first option runs on
//! the CPU. With `--cublaslt` plain products are computed by the library.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use cuda::{Device, Driver, Emulated, Products, Session};
use engine::{Arch, Engine};
use ops::{DType, Tensor, TensorType};
use runtime::{WeightSource, WeightStore};
use safetensors::{Dtype, SafeTensors};

/// Checks engines against recorded results.
#[derive(Parser)]
struct Options {
    /// Engine files.
    #[arg(required = true)]
    engines: Vec<PathBuf>,
    /// GPU, from 0.
    #[arg(long, default_value_t = 0)]
    gpu: usize,
    /// Run on the emulated device of this architecture instead.
    #[arg(long, value_name = "ARCH")]
    emulated: Option<Arch>,
    /// Have cuBLASLt compute the products that it can.
    #[arg(long)]
    cublaslt: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut code = ExitCode::SUCCESS;
    for path in &options.engines {
        match check(&options, path) {
            Ok(line) => println!("{:<44} {line}", name(path)),
            Err(error) => {
                println!("{:<44} FAILED: {error:#}", name(path));
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn name(path: &Path) -> String {
    path.file_stem().map_or(String::new(), |name| name.to_string_lossy().into_owned())
}

/// A case's file.
struct Case(Vec<u8>);

impl Case {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Vec<u8>)>> {
        let file = SafeTensors::deserialize(&self.0)?;
        let Ok(view) = file.tensor(name) else { return Ok(None) };
        let dtype = match view.dtype() {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::Bf16,
            Dtype::I64 => DType::I64,
            Dtype::I32 => DType::I32,
            Dtype::U8 => DType::U8,
            Dtype::BOOL => DType::Bool,
            _ => DType::F32,
        };
        Ok(Some((TensorType::new(dtype, view.shape())?, view.data().to_vec())))
    }

    fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        let (ty, bytes) = self.tensor(name)?.with_context(|| format!("the case has no {name}"))?;
        Ok(Tensor::from_bytes(ty, &bytes)?.as_floats().to_vec())
    }
}

/// The weights of a case.
struct Weights(Arc<Case>);

impl WeightSource for Weights {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let found = self.0.tensor(&format!("w.{name}")).map_err(|error| error.to_string())?;
        Ok(found.map(|(ty, bytes)| (ty, Cow::Owned(bytes))))
    }
}

fn check(options: &Options, path: &Path) -> Result<String> {
    let engine = Arc::new(Engine::open(path)?);
    // Variants `NAME@WAY` of one case have the same numbers.
    let stem = name(path);
    let case = path.with_file_name(stem.split('@').next().unwrap_or(&stem));
    let case = Arc::new(Case(std::fs::read(format!("{}.safetensors", case.display()))?));
    let device: Box<dyn Device> = match options.emulated {
        Some(arch) => Box::new(Emulated::new(arch, emulator::Options::default())),
        None => Box::new(Driver::open(options.gpu)?),
    };
    let store = WeightStore::new(Weights(Arc::clone(&case)));
    let products = if options.cublaslt { Products::Library } else { Products::Own };
    let mut session = Session::with_products(device, Arc::clone(&engine), &[], &store, products)?;
    let program = engine.programs.first().context("the engine has no program")?;
    let id = session.find(&program.name)?;
    let n_products =
        (0..program.steps.len()).filter(|&step| session.uses_library(id, step)).count();
    let limit = case.numbers("limit")?[0];
    let mut worst = 0f64;
    for port in &program.inputs {
        let (_, bytes) = case
            .tensor(&format!("in.{}", port.name))?
            .with_context(|| format!("the case has no in.{}", port.name))?;
        session.write_input(id, &port.name, &bytes)?;
    }
    let time = session.run(id)?;
    for (index, port) in program.outputs.iter().enumerate() {
        let found = Tensor::from_bytes(port.ty.clone(), &session.read_output(id, &port.name)?)?;
        let expected = case.numbers(&format!("out.{index}"))?;
        let found: Vec<f64> = match found.data() {
            ops::Data::Float(values) => values.clone(),
            ops::Data::Int(values) => values.iter().map(|&x| x as f64).collect(),
        };
        ensure!(found.len() == expected.len(), "output {index} has another size");
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
        let distance = square(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
        let scale = square(&mut expected.iter().copied());
        worst = worst.max((distance / scale.max(f64::MIN_POSITIVE)).sqrt());
    }
    let micros = time.as_secs_f64() * 1e6;
    ensure!(worst <= limit, "error {worst:.2e}, at most {limit:.2e} ({micros:.0} us)");
    let by_library = if n_products > 0 { ", by cuBLASLt" } else { "" };
    Ok(format!("error {worst:.2e} of {limit:.2e}, {micros:.0} us{by_library}"))
}
