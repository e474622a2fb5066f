//! A step that is planned and not yet bound: what it takes is known before a weight is read.

use std::collections::{BTreeMap, BTreeSet};

use compiler::{Plan, TrainingPlan, compile_training_carrying};
use kernels::Target;

use crate::step::{accumulation_step, training_step, update_step};
use crate::stored::{Stored, WithStored};
use crate::{Error, Objective, Options, Program};

/// A program of training with its plan; [`crate::Trainer::add`] binds it.
#[derive(Debug)]
pub struct PlannedStep {
    pub(crate) program: Program,
    pub(crate) training: TrainingPlan,
    /// The weights in other types than those of masters that it reads, and that it makes.
    pub(crate) reads: BTreeSet<Stored>,
    pub(crate) makes: BTreeSet<Stored>,
}

impl PlannedStep {
    /// What runs for each batch of `bucket`. Arena, frozen weights and state take at most `memory` bytes: what would
    /// not fit is made again in the backward pass.
    ///
    /// # Errors
    /// As [`training_step`], and [`compiler::Error::Memory`] with the smallest limit that works.
    pub fn of_bucket<O: Objective>(
        objective: &O,
        bucket: &O::Bucket,
        options: &Options,
        target: &Target,
        memory: Option<usize>,
    ) -> Result<PlannedStep, Error> {
        let is_part = options.micro_batches > 1;
        let build = if is_part { accumulation_step::<O> } else { training_step::<O> };
        let program = build(objective, bucket, options)?;
        let with_stored = match memory {
            None => WithStored::new(program, [].into_iter())?,
            // Within a limit the compiler decides whether casts are kept or made again.
            Some(_) => WithStored::none(program),
        };
        PlannedStep::of(with_stored, target, memory)
    }

    /// What runs after the batches of an update, where they are several. It makes the weights that `steps` read.
    ///
    /// # Errors
    /// As [`update_step`].
    pub fn of_update_after<'s, O: Objective>(
        objective: &O,
        options: &Options,
        target: &Target,
        steps: impl IntoIterator<Item = &'s PlannedStep>,
    ) -> Result<Option<PlannedStep>, Error> {
        let reads = steps.into_iter().flat_map(|step| &step.reads);
        PlannedStep::of_update(objective, options, target, reads)
    }

    pub(crate) fn of_update<'s, O: Objective>(
        objective: &O,
        options: &Options,
        target: &Target,
        reads: impl Iterator<Item = &'s Stored>,
    ) -> Result<Option<PlannedStep>, Error> {
        if options.micro_batches == 1 {
            return Ok(None);
        }
        let with_stored = WithStored::new(update_step(objective, options)?, reads)?;
        PlannedStep::of(with_stored, target, None).map(Some)
    }

    fn of(
        with_stored: WithStored,
        target: &Target,
        memory: Option<usize>,
    ) -> Result<PlannedStep, Error> {
        let WithStored { program, reads, makes, carries } = with_stored;
        let mut carried = program.carried();
        carried.extend(carries);
        let graph = program.graph.clone();
        let training = compile_training_carrying(graph, target, memory, &carried)?;
        Ok(PlannedStep { program, training, reads, makes })
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Its plan.
    pub fn plan(&self) -> &Plan {
        &self.training.plan
    }

    /// Bytes that are of this step alone: its arena and constants.
    pub fn own_bytes(&self) -> usize {
        let plan = self.plan();
        plan.held_bytes() - plan.carried_bytes() - self.frozen_bytes()
    }

    /// Bytes of the weights that it reads and nobody trains.
    pub fn frozen_bytes(&self) -> usize {
        self.plan().param_bytes().values().sum()
    }

    /// Bytes of the weights that `steps` read and nobody trains: those that are alike are held once.
    pub fn frozen_bytes_of<'s>(steps: impl IntoIterator<Item = &'s PlannedStep>) -> usize {
        let weights = steps.into_iter().flat_map(|step| step.plan().param_bytes());
        weights.collect::<BTreeMap<_, _>>().values().sum()
    }

    /// Bytes of weights in other types than those of masters, which steps share as they share the state.
    pub fn stored_bytes(&self) -> usize {
        let stored: BTreeSet<String> = self.reads.union(&self.makes).map(Stored::input).collect();
        let inputs = self.plan().inputs.iter().filter(|port| stored.contains(&*port.name));
        inputs.map(|port| self.plan().buffers[port.buffer.index()].bytes).sum()
    }

    /// What is made again instead of kept: bytes, and the FLOPs that it takes, which the plan's include.
    pub fn recomputed(&self) -> (usize, u64) {
        (self.training.recomputed_bytes, self.training.added_flops)
    }
}
