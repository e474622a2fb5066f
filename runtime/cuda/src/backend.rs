//! An engine as a place where plans run: each plan by the program that was compiled of it.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use compiler::Plan;
use engine::Engine;
use ops::DType;
use runtime::{Backend, Control, Runner, WeightStore};

use crate::{Device, Error, ProgramId, Session};

/// Makes a device with nothing in it.
pub type OpenDevice = dyn Fn() -> Result<Box<dyn Device>, Error> + Send + Sync;

/// An engine and the device that runs it. A program is found by what goes in and out of it.
pub struct EngineBackend {
    engine: Arc<Engine>,
    open: Box<OpenDevice>,
}

impl Debug for EngineBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineBackend").field("model", &self.engine.model).finish_non_exhaustive()
    }
}

impl EngineBackend {
    /// Runs `engine` on devices that `open` makes, one for each plan, given back with it.
    pub fn new(engine: Arc<Engine>, open: Box<OpenDevice>) -> EngineBackend {
        EngineBackend { engine, open }
    }

    /// The program with the inputs and outputs of `plan`.
    fn program(&self, plan: &Plan) -> Result<&str, runtime::Error> {
        let ports = |ports: &[compiler::Port]| -> Vec<(String, String)> {
            ports.iter().map(|port| (port.name.to_string(), port.ty.to_string())).collect()
        };
        let of_engine = |ports: &[engine::Port]| -> Vec<(String, String)> {
            ports.iter().map(|port| (port.name.clone(), port.ty.to_string())).collect()
        };
        let (inputs, outputs) = (ports(&plan.inputs), ports(&plan.outputs));
        let found = self.engine.programs.iter().find(|program| {
            of_engine(&program.inputs) == inputs && of_engine(&program.outputs) == outputs
        });
        found.map(|program| program.name.as_str()).ok_or_else(|| {
            // The same names for every target.
            let known: BTreeSet<&str> =
                self.engine.programs.iter().map(|program| program.name.as_str()).collect();
            let known: Vec<&str> = known.into_iter().collect();
            let needed: Vec<String> =
                inputs.iter().map(|(name, ty)| format!("{name} {ty}")).collect();
            runtime::Error::Device(format!(
                "the engine has no program @{} for {}; it has {}: compile the engine for this size",
                plan.graph.name,
                needed.join(", "),
                known.join(", ")
            ))
        })
    }
}

impl Backend for EngineBackend {
    fn bind<'w>(
        &self,
        plan: Arc<Plan>,
        weights: &'w WeightStore,
        _: Option<usize>,
    ) -> Result<Box<dyn Runner + 'w>, runtime::Error> {
        let name = self.program(&plan)?;
        let device = (self.open)().map_err(failed)?;
        let mut session =
            Session::new(device, Arc::clone(&self.engine), &[name], weights).map_err(failed)?;
        let id = session.find(name).map_err(failed)?;
        // Devices without graphs run launch by launch.
        let _ = session.capture(id);
        Ok(Box::new(EngineRunner { session, id, outputs: vec![] }))
    }
}

/// One program on one device.
#[derive(Debug)]
struct EngineRunner {
    session: Session,
    id: ProgramId,
    /// Of the last run.
    outputs: Vec<Vec<f32>>,
}

impl Runner for EngineRunner {
    fn run_with(
        &mut self,
        inputs: &[(&str, &[u8])],
        mut control: Control<'_>,
    ) -> Result<(), runtime::Error> {
        if control.interrupt.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            return Err(runtime::Error::Interrupted);
        }
        for (name, bytes) in inputs {
            self.session.write_input(self.id, name, bytes).map_err(failed)?;
        }
        self.session.run(self.id).map_err(failed)?;
        let program = self.session.program(self.id);
        let flops = program.flops();
        let names: Vec<(String, DType)> =
            program.outputs.iter().map(|port| (port.name.clone(), port.ty.dtype())).collect();
        self.outputs.clear();
        for (name, dtype) in names {
            let bytes = self.session.read_output(self.id, &name).map_err(failed)?;
            let (words, _) = bytes.as_chunks::<4>();
            let is_f32 = dtype == DType::F32;
            let values = words.iter().filter(|_| is_f32).map(|word| f32::from_le_bytes(*word));
            self.outputs.push(values.collect());
        }
        if let Some(on_step) = &mut control.on_step {
            on_step(flops);
        }
        Ok(())
    }

    fn output_f32(&self, index: usize) -> &[f32] {
        &self.outputs[index]
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it stands where errors are mapped")]
fn failed(error: Error) -> runtime::Error {
    runtime::Error::Device(error.to_string())
}
