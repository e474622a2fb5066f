//! Where plans run, as their callers see it: a [`Backend`] makes a [`Runner`] of a plan.

use std::fmt::Debug;
use std::sync::Arc;

use compiler::Plan;
use kernels::Pool;

use crate::{Control, Error, LimitedSession, Session, WeightStore};

/// A plan bound to memory and weights, wherever that is.
pub trait Runner: Debug {
    /// Runs once; as [`Session::run_with`].
    ///
    /// # Errors
    /// As there, and what a device says.
    fn run_with(&mut self, inputs: &[(&str, &[u8])], control: Control<'_>) -> Result<(), Error>;

    /// Output `index` of the last run, which must be f32.
    fn output_f32(&self, index: usize) -> &[f32];

    /// The session that has the times of the steps, where this CPU runs them.
    fn session(&self) -> Option<&Session> {
        None
    }
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
        Ok(Box::new(LimitedSession::new(plan, weights, Arc::clone(&self.pool), memory)?))
    }
}

impl Runner for LimitedSession<'_> {
    fn run_with(&mut self, inputs: &[(&str, &[u8])], control: Control<'_>) -> Result<(), Error> {
        LimitedSession::run_with(self, inputs, control)
    }

    fn output_f32(&self, index: usize) -> &[f32] {
        LimitedSession::session(self).output_f32(index)
    }

    fn session(&self) -> Option<&Session> {
        Some(LimitedSession::session(self))
    }
}
