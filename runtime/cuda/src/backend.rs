//! An engine as a place where plans run: each plan by the program that was compiled of it.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use compiler::Plan;
use engine::{Engine, Program};
use ops::DType;
use runtime::{Backend, Control, Runner, StepTime, WeightStore};

use crate::{Device, Error, Products, ProgramId, Session};

/// Makes a device with nothing in it.
pub type OpenDevice = dyn Fn() -> Result<Box<dyn Device>, Error> + Send + Sync;

/// What users should know, shared by a backend and its runners.
type Notes = Arc<Mutex<Vec<String>>>;

/// An engine and the device that runs it. A program is found by what goes in and out of it.
pub struct EngineBackend {
    engine: Arc<Engine>,
    open: Box<OpenDevice>,
    times_steps: bool,
    products: Products,
    notes: Notes,
}

impl Debug for EngineBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineBackend").field("model", &self.engine.model).finish_non_exhaustive()
    }
}

impl EngineBackend {
    /// Runs `engine` on devices that `open` makes, one for each plan, given back with it.
    pub fn new(engine: Arc<Engine>, open: Box<OpenDevice>) -> EngineBackend {
        let (products, notes) = (Products::Own, Notes::default());
        EngineBackend { engine, open, times_steps: false, products, notes }
    }

    /// Times every step on the device, for which runs go launch by launch, one after the other.
    #[must_use]
    pub fn with_step_times(self) -> EngineBackend {
        EngineBackend { times_steps: true, ..self }
    }

    /// Has `products` compute what a library can compute as well.
    #[must_use]
    pub fn with_products(self, products: Products) -> EngineBackend {
        EngineBackend { products, ..self }
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
        let engine = Arc::clone(&self.engine);
        let session = Session::with_products(device, engine, &[name], weights, self.products);
        let session = session.map_err(failed)?;
        if let Some(note) = session.note() {
            let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
            notes.push(format!("`{name}`: {note}"));
        }
        let id = session.find(name).map_err(failed)?;
        let times = if self.times_steps {
            check_steps(&plan, session.program(id))?;
            Some(vec![StepTime::default(); plan.steps.len()])
        } else {
            None
        };
        let notes = Arc::clone(&self.notes);
        let (is_captured, output) = (false, vec![]);
        Ok(Box::new(EngineRunner { plan, session, id, times, is_captured, output, notes }))
    }

    fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Refuses a program whose steps are not those of `plan`: times are told by the plan's.
fn check_steps(plan: &Plan, program: &Program) -> Result<(), runtime::Error> {
    let of_plan = plan.steps.iter().map(|step| {
        let scope = &plan.graph.node(step.value).scope;
        (step.kernel.def().name(), &**scope)
    });
    let of_program = program.steps.iter().map(|step| (step.label.as_str(), step.scope.as_str()));
    if of_plan.eq(of_program) {
        return Ok(());
    }
    Err(runtime::Error::Device(format!(
        "the steps of program `{}` cannot be timed: they are not those that this version plans with these \
         options; compile the engine again",
        program.name
    )))
}

/// One program on one device.
#[derive(Debug)]
struct EngineRunner {
    plan: Arc<Plan>,
    session: Session,
    id: ProgramId,
    /// Of all runs, if steps are timed.
    times: Option<Vec<StepTime>>,
    /// Whether recording the launches was tried.
    is_captured: bool,
    /// The output that was read last.
    output: Vec<f32>,
    notes: Notes,
}

impl EngineRunner {
    /// Records the launches before the first run.
    fn capture(&mut self) {
        if std::mem::replace(&mut self.is_captured, true) {
            return;
        }
        match self.session.capture(self.id) {
            // The emulated device runs launch by launch.
            Ok(()) | Err(Error::NoGraphs { .. }) => {}
            Err(error) => {
                let name = &self.session.program(self.id).name;
                let note = format!("`{name}` runs launch by launch, which is slower: {error}");
                self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
            }
        }
    }
}

impl Runner for EngineRunner {
    fn write_input(&mut self, name: &str, bytes: &[u8]) -> Result<(), runtime::Error> {
        self.session.write_input(self.id, name, bytes).map_err(failed)
    }

    fn carry(&mut self, output: usize, input: &str) -> Result<(), runtime::Error> {
        let output = self.plan.outputs[output].name.clone();
        // What was recorded does not end with this.
        self.is_captured = false;
        self.session.carry(self.id, &output, input).map_err(failed)
    }

    fn run(&mut self, mut control: Control<'_>) -> Result<(), runtime::Error> {
        if control.interrupt.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            return Err(runtime::Error::Interrupted);
        }
        let done = if let Some(times) = &mut self.times {
            let of_run = self.session.profile(self.id).map_err(failed)?;
            for (sum, time) in times.iter_mut().zip(of_run) {
                sum.seconds += time.as_secs_f64();
                sum.runs += 1;
            }
            self.plan.flops()
        } else {
            self.capture();
            self.session.start(self.id).map_err(failed)?;
            // The runs before this one are done.
            0
        };
        if let Some(on_step) = &mut control.on_step {
            on_step(done);
        }
        Ok(())
    }

    fn output_f32(&mut self, index: usize) -> Result<&[f32], runtime::Error> {
        let port = &self.plan.outputs[index];
        assert_eq!(port.ty.dtype(), DType::F32, "output {index}");
        self.output.resize(port.ty.count(), 0.0);
        let bytes = bytemuck::cast_slice_mut(&mut self.output);
        self.session.read_output_into(self.id, &port.name, bytes).map_err(failed)?;
        Ok(&self.output)
    }

    fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    fn times(&self) -> &[StepTime] {
        self.times.as_deref().unwrap_or_default()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it stands where errors are mapped")]
fn failed(error: Error) -> runtime::Error {
    runtime::Error::Device(error.to_string())
}
