//! A session within a limit of memory: weights are held where they fit and streamed where they do not.

use std::sync::Arc;

use compiler::Plan;
use kernels::Pool;

use crate::{Control, Error, Session, StreamedSession, WeightStore};

/// A plan that can run, whichever way its weights are in memory. The numbers are the same.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one per stage, made once: a box would save nothing")]
pub enum LimitedSession<'w> {
    /// All weights are in memory.
    Held(Session),
    /// Most weights are read in every run.
    Streamed(StreamedSession<'w>),
}

impl<'w> LimitedSession<'w> {
    /// Binds `plan` so that arena and weights take at most `memory` bytes; without a limit, all
    /// weights are held.
    ///
    /// # Errors
    /// As [`Session::new`] and [`StreamedSession::new`].
    pub fn new(
        plan: Arc<Plan>,
        weights: &'w WeightStore,
        pool: Arc<Pool>,
        memory: Option<usize>,
    ) -> Result<LimitedSession<'w>, Error> {
        match memory.filter(|&memory| plan.held_bytes() > memory) {
            None => Session::new(plan, weights, pool).map(LimitedSession::Held),
            Some(memory) => {
                StreamedSession::new(plan, weights, pool, memory).map(LimitedSession::Streamed)
            }
        }
    }

    /// [`Session::run_with`].
    ///
    /// # Errors
    /// As there, and what the source of streamed weights says.
    pub fn run_with(
        &mut self,
        inputs: &[(&str, &[u8])],
        control: Control<'_>,
    ) -> Result<(), Error> {
        match self {
            LimitedSession::Held(session) => session.run_with(inputs, control),
            LimitedSession::Streamed(session) => session.run_with(inputs, control),
        }
    }

    /// What has the plan, the outputs and the times of the steps.
    pub fn session(&self) -> &Session {
        match self {
            LimitedSession::Held(session) => session,
            LimitedSession::Streamed(session) => session.session(),
        }
    }

    /// Bytes of arena and weights.
    pub fn held_bytes(&self) -> usize {
        match self {
            LimitedSession::Held(session) => session.plan().held_bytes(),
            LimitedSession::Streamed(session) => session.held_bytes(),
        }
    }
}
