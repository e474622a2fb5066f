//! Our side of a measurement, in a process of its own so that its memory is its own: answers the requests that
//! `peers/serve.py` answers, and two more (`profile`, and what `prepare` tells of the plan).
//!
//! A graph is compiled and run exactly as `kino sample` does it, and one of gradients as training does it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use checkpoint::{Checkpoint, SafetensorsWriter, TensorSpec};
use kernels::{Pool, Target};
use ops::{DType, TensorType};
use pipeline::Part;
use runtime::{Control, Session, WeightSource, WeightStore};
use serde_json::{Value as Json, json};

use crate::inputs::{self, Input};
use crate::{Error, work};

/// Answers one line of JSON on `answers` for each on `requests`, until that ends. Arena and weights of a row take at
/// most `memory` bytes.
///
/// # Errors
/// Those of the two streams; what goes wrong in between is an answer `{"error": TEXT}`.
pub fn serve(
    target: &Target,
    memory: Option<usize>,
    requests: impl BufRead,
    mut answers: impl Write,
) -> std::io::Result<()> {
    let mut ready = None;
    for line in requests.lines() {
        let answer = answer(&line?, target, memory, &mut ready)
            .unwrap_or_else(|error| json!({ "error": error.to_string() }));
        writeln!(answers, "{answer}")?;
        answers.flush()?;
    }
    Ok(())
}

fn answer(
    line: &str,
    target: &Target,
    memory: Option<usize>,
    ready: &mut Option<Ready>,
) -> Result<Json, Error> {
    let request: Json =
        serde_json::from_str(line).map_err(|error| protocol(format!("no JSON: {error}")))?;
    let name = text(&request, "request")?;
    if name == "prepare" {
        let (made, answer) = Ready::prepare(&request, target, memory)?;
        *ready = Some(made);
        return Ok(answer);
    }
    let ready = ready.as_mut().ok_or_else(|| protocol(format!("`{name}` before `prepare`")))?;
    match name {
        "run" => Ok(json!({ "seconds": ready.run()? })),
        "save" => ready.save(Path::new(text(&request, "path")?)).map(|()| json!({})),
        "profile" => Ok(ready.profile()),
        name => Err(protocol(format!("unknown request `{name}`"))),
    }
}

fn protocol(reason: String) -> Error {
    Error::Side { side: "Kinograph".into(), reason }
}

fn text<'a>(object: &'a Json, key: &str) -> Result<&'a str, Error> {
    object[key].as_str().ok_or_else(|| protocol(format!("the request has no text `{key}`")))
}

/// A session with its inputs.
struct Ready {
    session: Session,
    inputs: Vec<Input>,
    /// Seconds of each step before the runs that are profiled.
    warm_up: Vec<f64>,
    runs: usize,
}

impl Ready {
    fn prepare(
        request: &Json,
        target: &Target,
        memory: Option<usize>,
    ) -> Result<(Ready, Json), Error> {
        let name = text(request, "name")?;
        let work = work::find(name).ok_or_else(|| protocol(format!("no work called {name}")))?;
        let dtype = match text(request, "dtype")? {
            "f32" => DType::F32,
            "bf16" => DType::Bf16,
            other => return Err(protocol(format!("dtype {other}; expected f32 or bf16"))),
        };
        let paths = &request["work"];
        let graph = work.graph(dtype)?;
        let inputs = inputs::read(&graph, Path::new(text(paths, "inputs")?))?;
        let start = Instant::now();
        let plan = Arc::new(if work.trains() {
            compiler::compile_training(graph, target, memory)?.plan
        } else {
            compiler::compile_with(graph, target, &compiler::Options { memory })?
        });
        let compile_seconds = start.elapsed().as_secs_f64();
        let pool = Arc::new(Pool::new(target.threads).map_err(Error::Threads)?);
        let session = match work.synthetic(checkpoint::DType::F32)? {
            None => Session::new(Arc::clone(&plan), &WeightStore::new(NoWeights), pool)?,
            Some(made) => {
                let checkpoint = Checkpoint::open(text(paths, "weights")?)?;
                let part = Part::new(checkpoint, &made.params)?;
                Session::new(Arc::clone(&plan), part.weights(), pool)?
            }
        };
        let mut ready = Ready { session, inputs, warm_up: vec![], runs: 0 };
        ready.run()?;
        ready.warm_up = ready.session.times().iter().map(|time| time.seconds).collect();
        ready.runs = 0;
        let answer = json!({
            "version": concat!("kinograph ", env!("CARGO_PKG_VERSION")), "isa": target.isa.name(),
            "compile_seconds": compile_seconds, "arena_bytes": plan.arena_bytes,
            "weight_bytes": plan.weight_bytes(),
        });
        Ok((ready, answer))
    }

    /// Runs once; the seconds it took. Inputs are in place before the clock starts, as a peer's are.
    fn run(&mut self) -> Result<f64, Error> {
        let inputs: Vec<(&str, &[u8])> =
            self.inputs.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        self.session.write_inputs(&inputs)?;
        let start = Instant::now();
        self.session.run_written(Control::default())?;
        self.runs += 1;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Writes the outputs of the last run as f32 tensors: `out`, or `out.0000` and so on if there are several.
    fn save(&self, path: &Path) -> Result<(), Error> {
        let outputs = &self.session.plan().outputs;
        let name = |index: usize| match outputs.len() {
            1 => "out".to_string(),
            _ => format!("out.{index:04}"),
        };
        let specs = outputs.iter().enumerate().map(|(index, port)| TensorSpec {
            name: name(index),
            dtype: checkpoint::DType::F32,
            shape: port.ty.shape().to_vec(),
        });
        let mut writer = SafetensorsWriter::create(path, specs.collect(), &BTreeMap::new())?;
        let order: Vec<String> = writer.tensors().iter().map(|spec| spec.name.clone()).collect();
        for named in order {
            let index = (0..outputs.len()).find(|&index| name(index) == named);
            let index = index.expect("the writer has the names that it was given");
            let bytes = self.session.output(index);
            writer.write(&inputs::to_f32_bytes(&outputs[index].ty, bytes))?;
        }
        Ok(writer.finish()?)
    }

    /// Seconds per run, steps and FLOPs of each kernel, slowest first.
    fn profile(&self) -> Json {
        let plan = self.session.plan();
        let mut kernels: BTreeMap<&str, (f64, u64, usize)> = BTreeMap::new();
        let times = self.session.times().iter().zip(&self.warm_up);
        for (step, (time, warm_up)) in plan.steps.iter().zip(times) {
            let row = kernels.entry(step.kernel.def().name()).or_default();
            row.0 += (time.seconds - warm_up) / self.runs.max(1) as f64;
            row.1 += plan.graph.node_flops(step.value);
            row.2 += 1;
        }
        let mut rows: Vec<_> = kernels.into_iter().collect();
        rows.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        let row = |(kernel, (seconds, flops, steps)): (&str, (f64, u64, usize))| json!({ "kernel": kernel, "seconds": seconds, "flops": flops, "steps": steps });
        json!({ "kernels": rows.into_iter().map(row).collect::<Vec<_>>() })
    }
}

/// For graphs without parameters.
struct NoWeights;

impl WeightSource for NoWeights {
    fn tensor(&self, _: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        Ok(None)
    }
}
