//! Where plans run, as their callers see it: a [`Backend`] makes a [`Runner`] of a plan.

use std::fmt::Debug;
use std::sync::Arc;

use compiler::Plan;
use kernels::Pool;

use crate::{Control, Error, InputStore, LimitedSession, StepTime, WeightStore};

/// A plan bound to memory and weights, wherever that is. Its inputs keep their values from run to run.
pub trait Runner: Debug {
    /// Writes an input as dense little-endian bytes: the value of all runs from the next on, until it is
    /// written again.
    ///
    /// # Errors
    /// [`Error::Input`] if it is unknown or of another size, at the latest when it runs; what a device says.
    fn write_input(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error>;

    /// From now on each run ends by writing its output `output` to `input`, so that the next run starts from
    /// there. Nothing passes through this CPU's memory where the plan runs elsewhere.
    ///
    /// # Errors
    /// [`Error::Input`] if there is no such input, or the output has another type.
    fn carry(&mut self, output: usize, input: &str) -> Result<(), Error>;

    /// Runs once. On a device the run may still be under way when this returns, so that the inputs of the next
    /// one can be prepared; [`Control::on_step`] is told of nothing then that is not done.
    ///
    /// # Errors
    /// [`Error::Input`] if one was never written, and [`Error::Interrupted`]; what a device says.
    fn run(&mut self, control: Control<'_>) -> Result<(), Error>;

    /// Writes `inputs` and runs once.
    ///
    /// # Errors
    /// As [`Runner::write_input`] and [`Runner::run`].
    fn run_with(&mut self, inputs: &[(&str, &[u8])], control: Control<'_>) -> Result<(), Error> {
        for (name, bytes) in inputs {
            self.write_input(name, bytes)?;
        }
        self.run(control)
    }

    /// Output `index` of the last run, which must be f32. Waits for the run.
    ///
    /// # Errors
    /// What a device says, also of the run.
    fn output_f32(&mut self, index: usize) -> Result<&[f32], Error>;

    /// The plan.
    fn plan(&self) -> &Arc<Plan>;

    /// Time of every step since the runner was made, in plan order; none where steps are not timed.
    fn times(&self) -> &[StepTime];
}

/// A place to run plans.
pub trait Backend: Debug {
    /// Binds `plan` to its weights, so that both take at most `memory` bytes if that is given.
    ///
    /// # Errors
    /// As [`LimitedSession::new`], and what a device says.
    fn bind<'w>(
        &self,
        plan: Arc<Plan>,
        weights: &'w WeightStore,
        memory: Option<usize>,
    ) -> Result<Box<dyn Runner + 'w>, Error>;

    /// What users should know of runs so far that went on in spite of it; told once.
    fn take_notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// This CPU.
#[derive(Debug)]
pub struct Cpu {
    pool: Arc<Pool>,
}

impl Cpu {
    /// The CPU with these threads.
    pub fn new(pool: Arc<Pool>) -> Cpu {
        Cpu { pool }
    }
}

impl Backend for Cpu {
    fn bind<'w>(
        &self,
        plan: Arc<Plan>,
        weights: &'w WeightStore,
        memory: Option<usize>,
    ) -> Result<Box<dyn Runner + 'w>, Error> {
        let session =
            LimitedSession::new(Arc::clone(&plan), weights, Arc::clone(&self.pool), memory)?;
        Ok(Box::new(CpuRunner { plan, session, inputs: InputStore::new(), carries: Vec::new() }))
    }
}

/// A plan on this CPU. A run may overwrite its inputs in the arena, so their values are kept beside it.
#[derive(Debug)]
struct CpuRunner<'w> {
    plan: Arc<Plan>,
    session: LimitedSession<'w>,
    /// As far as they were written.
    inputs: InputStore,
    /// Outputs, and the inputs that they are written to.
    carries: Vec<(usize, String)>,
}

impl Runner for CpuRunner<'_> {
    fn write_input(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.inputs.write(name, bytes)
    }

    fn carry(&mut self, output: usize, input: &str) -> Result<(), Error> {
        let wrong = |reason| Error::Input { name: input.to_string(), reason };
        let to = self.plan.inputs.iter().find(|port| *port.name == *input);
        let to = to.ok_or_else(|| wrong("unknown to the plan".to_string()))?;
        let from = &self.plan.outputs[output];
        if from.ty != to.ty {
            let reason = format!("{}, but output {output}, which it takes, is {}", to.ty, from.ty);
            return Err(wrong(reason));
        }
        self.carries.push((output, input.to_string()));
        Ok(())
    }

    fn run(&mut self, control: Control<'_>) -> Result<(), Error> {
        let inputs: Vec<(&str, &[u8])> = self.inputs.iter().collect();
        self.session.run_with(&inputs, control)?;
        for (output, input) in &self.carries {
            self.session.session().copy_output(*output, &mut self.inputs, input);
        }
        Ok(())
    }

    fn output_f32(&mut self, index: usize) -> Result<&[f32], Error> {
        Ok(self.session.session().output_f32(index))
    }

    fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    fn times(&self) -> &[StepTime] {
        self.session.session().times()
    }
}
