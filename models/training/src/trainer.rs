//! Compiled steps and the state that goes from one to the next, on this CPU.

use std::sync::Arc;

use compiler::compile_training;
use kernels::{Pool, Target};
use models::Bucket;
use runtime::{Session, WeightStore};

use crate::step::{OPTIMIZER, accumulation_step, training_step, update_step};
use crate::{Error, Model, Options, Program, State, StateKind};

/// Which of a trainer's buckets a batch is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BucketId(usize);

/// Inputs of a step that are no state, by name, as dense little-endian bytes.
pub type Batch<'a> = [(&'a str, &'a [u8])];

/// What one update reports.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// Mean loss over all rows of all batches that count alike.
    pub loss: f32,
    /// Loss of each row, batch by batch.
    pub row_losses: Vec<f32>,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f32,
}

/// Where steps run.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What steps are compiled for: this CPU.
    pub target: Target,
    /// The threads of `target`.
    pub pool: Arc<Pool>,
    /// Most bytes of a step's arena and frozen weights: what would not fit is made again in the backward
    /// pass. `None` for no limit.
    pub memory: Option<usize>,
}

/// A model in training.
#[derive(Debug)]
pub struct Trainer {
    model: Model,
    options: Options,
    machine: Machine,
    /// Where frozen parameters come from.
    weights: WeightStore,
    state: State,
    buckets: Vec<Compiled>,
    /// The update by summed gradients, if batches are accumulated.
    update: Option<Compiled>,
}

/// A program that can run.
#[derive(Debug)]
struct Compiled {
    program: Program,
    session: Session,
    /// The state that it reads: kind, parameter, name of the input.
    read: Vec<(StateKind, String, String)>,
}

impl Trainer {
    /// A trainer at `state`, which is of the same model and options. `weights` has the parameters that
    /// are not trained.
    ///
    /// # Errors
    /// Refuses options that no step can have.
    pub fn new(
        model: Model,
        options: Options,
        state: State,
        weights: WeightStore,
        machine: Machine,
    ) -> Result<Trainer, Error> {
        let mut trainer =
            Trainer { model, options, machine, weights, state, buckets: Vec::new(), update: None };
        if trainer.options.micro_batches > 1 {
            let program = update_step(&trainer.model, &trainer.options)?;
            trainer.update = Some(trainer.compiled(program)?);
        }
        Ok(trainer)
    }

    /// Compiles the step for batches of `bucket`.
    ///
    /// # Errors
    /// As [`training_step`], and what compiler and runtime refuse.
    pub fn compile(&mut self, bucket: &Bucket) -> Result<BucketId, Error> {
        let build = if self.update.is_some() { accumulation_step } else { training_step };
        let program = build(&self.model, bucket, &self.options)?;
        let compiled = self.compiled(program)?;
        self.buckets.push(compiled);
        Ok(BucketId(self.buckets.len() - 1))
    }

    fn compiled(&self, program: Program) -> Result<Compiled, Error> {
        let graph = program.graph.clone();
        let plan =
            Arc::new(compile_training(graph, &self.machine.target, self.machine.memory)?.plan);
        let read = self.state.tensors().filter_map(|(kind, param, _)| {
            let name = kind.input(param);
            plan.inputs.iter().any(|port| *port.name == *name).then(|| (kind, param.into(), name))
        });
        let read = read.collect();
        let session = Session::new(plan, &self.weights, Arc::clone(&self.machine.pool))?;
        Ok(Compiled { program, session, read })
    }

    /// The state between two updates.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// One update at learning rate `lr` by [`Options::micro_batches`] batches of compiled buckets; what
    /// inputs there are, [`training_step`] says.
    ///
    /// # Errors
    /// Refuses another number of batches, and inputs that are missing, unknown or of another size. After
    /// an error in a batch that is not the first, sums of gradients are of an unfinished update: go on
    /// from a saved state.
    pub fn update(
        &mut self,
        batches: &[(BucketId, &Batch<'_>)],
        lr: f64,
    ) -> Result<Outcome, Error> {
        let expected = self.options.micro_batches;
        if batches.len() != expected {
            let reason = format!("{} batches, expected {expected}", batches.len());
            return Err(Error::option("micro_batches", reason));
        }
        let coefficients = self.options.optimizer.coefficients(lr, self.state.step() + 1);
        let coefficients: &[u8] = bytemuck::cast_slice(&coefficients);
        let (mut loss, mut row_losses, mut grad_norm) = (0.0, Vec::new(), None);
        for &(BucketId(index), batch) in batches {
            let compiled = self.buckets.get_mut(index).ok_or_else(|| {
                Error::State(format!("bucket {index} is of another trainer; compile it first"))
            })?;
            let mut inputs = batch.to_vec();
            if self.update.is_none() {
                inputs.push((OPTIMIZER, coefficients));
            }
            compiled.run(&inputs, &mut self.state)?;
            let Program { loss: place, row_losses: rows, grad_norm: norm, .. } = compiled.program;
            let output = |place: Option<usize>| place.map(|at| compiled.session.output_f32(at));
            loss += output(place).map_or(0.0, |values| f64::from(values[0]));
            row_losses.extend_from_slice(output(rows).unwrap_or_default());
            grad_norm = output(norm).map(|values| values[0]);
        }
        if let Some(update) = &mut self.update {
            update.run(&[(OPTIMIZER, coefficients)], &mut self.state)?;
            let place = update.program.grad_norm;
            grad_norm = place.map(|at| update.session.output_f32(at)[0]);
        }
        self.state.advance();
        let grad_norm = grad_norm.expect("the last program of an update has the norm");
        Ok(Outcome { loss: (loss / expected as f64) as f32, row_losses, grad_norm })
    }
}

impl Compiled {
    /// Runs on `inputs` and `state`, and takes over new state. This is the one place where state is
    /// copied, in and out.
    fn run(&mut self, inputs: &[(&str, &[u8])], state: &mut State) -> Result<(), Error> {
        let mut all = inputs.to_vec();
        for (kind, param, name) in &self.read {
            let values = state.get(*kind, param).expect("it was in the state when compiled");
            all.push((name, bytemuck::cast_slice(values)));
        }
        self.session.run(&all)?;
        for carry in &self.program.carries {
            let new = self.session.output_f32(carry.output);
            let old = state.get_mut(carry.kind, &carry.param);
            let old = old.filter(|old| old.len() == new.len()).ok_or_else(|| {
                Error::State(format!("`{}` is not of this model and options", carry.input()))
            })?;
            old.copy_from_slice(new);
        }
        Ok(())
    }
}
