//! What a plan costs, for people: what is in memory when it is fullest, and the work of each step.

use std::sync::Arc;

use ops::{Role, ValueId};

use crate::plan::{BufferId, Memory, Plan};
use crate::{Purpose, Resident, Work};

/// The cost of a plan.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// Bytes that are live at the fullest step: a proven lower bound of the arena.
    pub lower_bound_bytes: usize,
    /// Bytes of weights and constants as the plan holds them.
    pub weight_bytes: usize,
    /// The first step at which most bytes are live.
    pub fullest_step: usize,
    /// What is live there, largest first.
    pub live: Vec<Live>,
    /// One per step of the plan.
    pub steps: Vec<StepCost>,
}

/// A buffer that is live at the fullest step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Live {
    /// The buffer.
    pub buffer: BufferId,
    /// Its bytes.
    pub bytes: usize,
    /// What it holds.
    pub holds: Holds,
    /// The part of the model that made it, as `blocks.3.attn`; empty for inputs.
    pub scope: Arc<str>,
}

/// What a buffer holds at some step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Holds {
    /// An input of the plan, by name.
    Input(Arc<str>),
    /// A value, or a part of one that the step writes, of the plan's graph.
    Value(ValueId),
    /// Working memory of the step.
    Scratch,
}

/// The work of one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StepCost {
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes of the elements that it reads and writes, each counted once per operand.
    pub moved_bytes: u64,
    /// Bytes of the arena that are live.
    pub live_bytes: usize,
}

impl Report {
    /// The arena over its lower bound, 1 at best.
    pub fn gap(&self) -> f64 {
        self.arena_bytes as f64 / self.lower_bound_bytes.max(1) as f64
    }
}

impl Plan {
    /// What the plan costs.
    pub fn report(&self) -> Report {
        let fullest_step = self.fullest_step();
        let is_live = |resident: &Resident| {
            let buffer = &self.buffers[resident.buffer.index()];
            buffer.memory == Memory::Arena
                && (buffer.first_step..=buffer.last_step).contains(&fullest_step)
        };
        let residents = self.residents().into_iter().filter(is_live);
        let mut live: Vec<Live> =
            residents.filter_map(|resident| self.live(&resident, fullest_step)).collect();
        live.sort_by_key(|live| (usize::MAX - live.bytes, live.buffer));
        let cost = |(work, live_bytes): (Work, usize)| StepCost {
            flops: work.flops(),
            moved_bytes: work.bytes(),
            live_bytes,
        };
        Report {
            arena_bytes: self.arena_bytes,
            lower_bound_bytes: self.lower_bound_bytes,
            weight_bytes: self.weight_bytes(),
            fullest_step,
            live,
            steps: self.works().into_iter().zip(self.live_bytes()).map(cost).collect(),
        }
    }

    /// What `resident` holds at step `at`.
    fn live(&self, resident: &Resident, at: usize) -> Option<Live> {
        let content = resident.content_at(at)?;
        let nothing: Arc<str> = "".into();
        let (holds, scope) = match (resident.purpose, &self.graph.node(content.value).role) {
            (Purpose::Scratch, _) => (Holds::Scratch, content.scope.clone()),
            (_, Role::Input(name)) => (Holds::Input(name.clone()), nothing),
            (_, Role::Param(_) | Role::Constant(_) | Role::Op(_)) => {
                (Holds::Value(content.value), content.scope.clone())
            }
        };
        let bytes = self.buffers[resident.buffer.index()].bytes;
        Some(Live { buffer: resident.buffer, bytes, holds, scope })
    }
}
