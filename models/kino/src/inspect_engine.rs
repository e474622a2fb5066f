//! `kino inspect FILE.engine`: programs, kernels and weights of an engine.

use std::path::Path;

use engine::{Engine, ImageKind, Kernel, Port, Program};
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::report::line;
use crate::{inspect_products, units};

/// All kernels of one kind: how many, and the most that one of them needs.
#[derive(Clone, Copy, Debug, Default)]
struct KindTotal {
    count: usize,
    launches: usize,
    registers: u32,
    spill_bytes: u32,
    shared_bytes: u32,
    code_bytes: usize,
}

/// The engine in a file.
pub(crate) fn open(path: &Path) -> Outcome<Engine> {
    Engine::open(path).map_err(|error| Failure::Run(error.into()))
}

/// Everything, for people.
pub(crate) fn to_text(path: &Path, engine: &Engine) -> String {
    let mut text = String::new();
    let code = engine.code().join(", ");
    let targets = engine.targets().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    for (key, value) in [
        ("path", path.display().to_string()),
        ("engine", engine.model.clone()),
        ("dtype", engine.dtype.to_string()),
        ("made by", engine.created_by.clone()),
        ("targets", if targets.is_empty() { "none".into() } else { targets }),
        ("code for", if code.is_empty() { "no GPU".into() } else { code }),
        ("weights", weights_text(engine)),
        ("constants", {
            let bytes = units::bytes(constant_bytes(engine) as f64);
            format!("{}, {bytes}", engine.constants.len())
        }),
    ] {
        line(&mut text, format_args!("{key:<10} {value}"));
    }
    text.push('\n');
    text += &kernels_text(engine);
    for program in &engine.programs {
        text.push('\n');
        text += &program_text(program);
        for (role, ports) in [("in", &program.inputs), ("out", &program.outputs)] {
            for port in ports {
                line(&mut text, format_args!("  {role:<4} {} : {}", port.name, port.ty));
            }
        }
        text += &inspect_products::to_text(program);
    }
    text
}

/// Everything, for programs.
pub(crate) fn to_json(path: &Path, engine: &Engine) -> Value {
    let kernels = kind_totals(engine).into_iter().map(|(name, total)| {
        json!({
            "kernel": name, "count": total.count, "launches": total.launches,
            "registers": total.registers, "spill_bytes": total.spill_bytes,
            "shared_bytes": total.shared_bytes, "code_bytes": total.code_bytes,
        })
    });
    let ports = |ports: &[Port]| -> Vec<Value> {
        let port = |port: &Port| json!({ "name": port.name, "type": port.ty.to_string() });
        ports.iter().map(port).collect()
    };
    let programs = engine.programs.iter().map(|program| {
        json!({
            "name": program.name, "target": program.target.to_string(),
            "steps": program.steps.len(), "launches": n_launches(program),
            "flops": program.flops(), "arena_bytes": program.arena_bytes,
            "lower_bound_bytes": program.lower_bound_bytes,
            "scratch_bytes": scratch_bytes(program), "cublaslt": inspect_products::to_json(program),
            "inputs": ports(&program.inputs), "outputs": ports(&program.outputs),
        })
    });
    json!({
        "path": path.display().to_string(), "engine": engine.model,
        "dtype": engine.dtype.to_string(), "created_by": engine.created_by,
        "targets": engine.targets().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "code": engine.code(),
        "weights": {
            "count": engine.weights.len(), "bytes": weight_bytes(engine),
            "permuted": n_permuted(engine),
        },
        "constants": { "count": engine.constants.len(), "bytes": constant_bytes(engine) },
        "kernels": kernels.collect::<Vec<_>>(), "programs": programs.collect::<Vec<_>>(),
    })
}

/// Kernels by kind, one line each below a header.
pub(crate) fn kernels_text(engine: &Engine) -> String {
    let mut text = String::new();
    line(
        &mut text,
        format_args!("kernel         count  launches  registers  spills      shared        code"),
    );
    for (name, total) in kind_totals(engine) {
        let KindTotal { count, launches, registers, spill_bytes, shared_bytes, code_bytes } = total;
        let (shared, code) =
            (units::bytes(f64::from(shared_bytes)), units::bytes(code_bytes as f64));
        line(
            &mut text,
            format_args!(
                "{name:<14} {count:>5}  {launches:>8}  {registers:>9}  {spill_bytes:>6}  \
                 {shared:>10}  {code:>10}"
            ),
        );
    }
    text
}

/// What a program holds and does, in a line.
pub(crate) fn program_text(program: &Program) -> String {
    let bytes = |count: u64| units::bytes(count as f64);
    format!(
        "{}, {}: {}, {}, {}, {} arena (lower bound {}, scratch of a step up to {})\n",
        program.name,
        program.target,
        units::counted(program.steps.len(), "step"),
        // Its plural is no word with an s.
        match n_launches(program) {
            1 => "1 launch".to_owned(),
            n => format!("{n} launches"),
        },
        units::flops(program.flops()),
        bytes(program.arena_bytes),
        bytes(program.lower_bound_bytes),
        bytes(scratch_bytes(program))
    )
}

fn weights_text(engine: &Engine) -> String {
    let bytes = units::bytes(weight_bytes(engine) as f64);
    format!("{}, {bytes}, {} with permuted axes", engine.weights.len(), n_permuted(engine))
}

fn weight_bytes(engine: &Engine) -> u64 {
    engine.weights.iter().fold(0, |sum, weight| sum.saturating_add(weight.bytes))
}

fn n_permuted(engine: &Engine) -> usize {
    engine.weights.iter().filter(|weight| !weight.axes.is_empty()).count()
}

fn constant_bytes(engine: &Engine) -> usize {
    engine.constants.iter().map(|constant| constant.len()).sum()
}

/// Scratch of the step that has the most.
fn scratch_bytes(program: &Program) -> u64 {
    program.steps.iter().map(|step| step.scratch_bytes).max().unwrap_or(0)
}

fn n_launches(program: &Program) -> usize {
    program.steps.iter().map(|step| step.launches.len()).sum()
}

/// Kinds of kernels by name, sorted.
fn kind_totals(engine: &Engine) -> Vec<(&str, KindTotal)> {
    let mut n_launches = vec![0; engine.kernels.len()];
    let steps = engine.programs.iter().flat_map(|program| &program.steps);
    for launch in steps.flat_map(|step| &step.launches) {
        n_launches[launch.kernel as usize] += 1;
    }
    let mut totals: Vec<(&str, KindTotal)> = Vec::new();
    let mut kernels: Vec<(&Kernel, usize)> = engine.kernels.iter().zip(n_launches).collect();
    kernels.sort_by_key(|(kernel, _)| &kernel.name);
    for (kernel, launches) in kernels {
        if totals.last().is_none_or(|(name, _)| *name != kernel.name) {
            totals.push((&kernel.name, KindTotal::default()));
        }
        let Some((_, total)) = totals.last_mut() else { continue };
        total.count += 1;
        total.launches += launches;
        total.shared_bytes = total.shared_bytes.max(kernel.shared_bytes);
        for image in kernel.images.iter().filter(|image| image.kind == ImageKind::Cubin) {
            total.registers = total.registers.max(image.registers);
            total.spill_bytes = total.spill_bytes.max(image.spill_bytes);
            total.code_bytes += image.bytes.len();
        }
    }
    totals
}
