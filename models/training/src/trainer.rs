//! Compiled steps and the state that goes from one to the next, on this CPU.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kernels::{Pool, Target};
use runtime::{Control, Session, WeightStore};

use crate::step::OPTIMIZER;
use crate::stored::Stored;
use crate::{Error, Model, Objective, Options, PlannedStep, Program, State, StateKind};

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
    /// Most bytes of a step's arena, state and frozen weights: what would not fit is made again in the backward
    /// pass. `None` for no limit.
    pub memory: Option<usize>,
}

/// A model in training.
#[derive(Debug)]
pub struct Trainer<O = Model> {
    objective: O,
    options: Options,
    machine: Machine,
    /// Where frozen parameters come from.
    weights: WeightStore,
    state: State,
    /// The weights that buckets read in other types than those of masters, and whether they are of the masters
    /// as those are now.
    stored: BTreeMap<Stored, bool>,
    buckets: Vec<Compiled>,
    /// The update by summed gradients, if batches are accumulated and there is a bucket.
    update: Option<Compiled>,
}

/// A program that can run.
#[derive(Debug)]
struct Compiled {
    program: Program,
    session: Session,
    reads: BTreeSet<Stored>,
    makes: BTreeSet<Stored>,
}

impl<O: Objective> Trainer<O> {
    /// A trainer at `state`, which is of the same objective and options. `weights` has the parameters that
    /// are not trained.
    ///
    /// # Errors
    /// Refuses options that no step can have.
    pub fn new(
        objective: O,
        options: Options,
        state: State,
        weights: WeightStore,
        machine: Machine,
    ) -> Result<Trainer<O>, Error> {
        options.check()?;
        let (stored, buckets, update) = (BTreeMap::new(), Vec::new(), None);
        Ok(Trainer { objective, options, machine, weights, state, stored, buckets, update })
    }

    /// Compiles the step for batches of `bucket`.
    ///
    /// # Errors
    /// As [`crate::training_step`], and what compiler and runtime refuse.
    pub fn compile(&mut self, bucket: &O::Bucket) -> Result<BucketId, Error> {
        let Machine { target, memory, .. } = &self.machine;
        let step = PlannedStep::of_bucket(&self.objective, bucket, &self.options, target, *memory)?;
        self.add(step)
    }

    /// Takes over a step that was planned for the objective, options and target of this trainer.
    ///
    /// # Errors
    /// What compiler and runtime refuse.
    pub fn add(&mut self, step: PlannedStep) -> Result<BucketId, Error> {
        let compiled = self.bound(step)?;
        let n_stored = self.stored.len();
        for weight in &compiled.reads {
            self.stored.entry(weight.clone()).or_insert(false);
        }
        if self.options.micro_batches > 1 && (self.update.is_none() || self.stored.len() > n_stored)
        {
            // It makes what all buckets read.
            let Trainer { objective, options, machine: Machine { target, .. }, .. } = self;
            let update = PlannedStep::of_update(objective, options, target, self.stored.keys())?;
            self.update = update.map(|update| self.bound(update)).transpose()?;
        }
        self.buckets.push(compiled);
        Ok(BucketId(self.buckets.len() - 1))
    }

    fn bound(&self, step: PlannedStep) -> Result<Compiled, Error> {
        let PlannedStep { program, training, reads, makes } = step;
        let pool = Arc::clone(&self.machine.pool);
        let session = Session::new(Arc::new(training.plan), &self.weights, pool)?;
        Ok(Compiled { program, session, reads, makes })
    }

    /// The state between two updates.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// One update at learning rate `lr` by [`Options::micro_batches`] batches of compiled buckets; what
    /// inputs there are, the objective says.
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
            if expected == 1 {
                inputs.push((OPTIMIZER, coefficients));
            }
            compiled.run(&inputs, &mut self.state, &mut self.stored)?;
            let Program { loss: place, row_losses: rows, grad_norm: norm, .. } = compiled.program;
            let output = |place: Option<usize>| place.map(|at| compiled.session.output_f32(at));
            loss += output(place).map_or(0.0, |values| f64::from(values[0]));
            row_losses.extend_from_slice(output(rows).unwrap_or_default());
            grad_norm = output(norm).map(|values| values[0]);
        }
        if let Some(update) = &mut self.update {
            update.run(&[(OPTIMIZER, coefficients)], &mut self.state, &mut self.stored)?;
            let place = update.program.grad_norm;
            grad_norm = place.map(|at| update.session.output_f32(at)[0]);
        }
        self.state.advance();
        let grad_norm = grad_norm.expect("the last program of an update has the norm");
        Ok(Outcome { loss: (loss / expected as f64) as f32, row_losses, grad_norm })
    }
}

impl Compiled {
    /// Runs on `inputs` and `state`, in whose place the new state is then.
    fn run(
        &mut self,
        inputs: &[(&str, &[u8])],
        state: &mut State,
        stored: &mut BTreeMap<Stored, bool>,
    ) -> Result<(), Error> {
        for (weight, is_current) in stored.iter_mut() {
            if !*is_current && self.reads.contains(weight) {
                state.store_weight(weight)?;
                *is_current = true;
            }
        }
        self.session.run_on(state.store_mut(), inputs, Control::default())?;
        if self.program.carries.iter().any(|carry| carry.kind == StateKind::Master) {
            for (weight, is_current) in stored {
                *is_current = self.makes.contains(weight);
            }
        }
        Ok(())
    }
}
