//! What a plan costs, for people: what is in memory when it is fullest, and the work of each step.

use std::sync::Arc;

use ops::ValueId;

use crate::place_buffers::live_bytes;
use crate::plan::{BufferId, Place, Plan};

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
        let live_bytes = live_bytes(&self.buffers);
        let most = live_bytes.iter().copied().max().unwrap_or(0);
        let fullest_step = live_bytes.iter().position(|&bytes| bytes == most).unwrap_or(0);
        let mut live: Vec<Live> = (0..self.buffers.len() as u32)
            .map(BufferId)
            .filter(|buffer| {
                let buffer = &self.buffers[buffer.index()];
                (buffer.first_step..=buffer.last_step).contains(&fullest_step)
            })
            .map(|buffer| self.live(buffer, fullest_step))
            .collect();
        live.sort_by_key(|live| (usize::MAX - live.bytes, live.buffer));
        let cost = |(step, live_bytes): (usize, usize)| StepCost {
            flops: self.graph.node_flops(self.steps[step].value),
            moved_bytes: self.moved_bytes(step),
            live_bytes,
        };
        let n_steps = self.steps.len();
        Report {
            arena_bytes: self.arena_bytes,
            lower_bound_bytes: self.lower_bound_bytes,
            weight_bytes: self.weight_bytes(),
            fullest_step,
            live,
            steps: live_bytes.into_iter().take(n_steps).enumerate().map(cost).collect(),
        }
    }

    /// Bytes of the elements that step `index` reads and writes. Repeated elements count once.
    fn moved_bytes(&self, index: usize) -> u64 {
        let step = &self.steps[index];
        let read = step.operands.iter().map(|operand| match &operand.place {
            Place::Param { packing: Some(packing), .. } => packing.bytes,
            _ => {
                let axes = operand.layout.shape.iter().zip(&operand.layout.strides);
                let distinct: usize =
                    axes.filter(|(_, stride)| **stride > 0).map(|(dim, _)| dim).product();
                distinct * operand.layout.dtype.size()
            }
        });
        let written = self.graph.ty(step.value).bytes();
        (read.sum::<usize>() + written) as u64
    }

    /// What `buffer`, which is live at step `at`, holds there.
    fn live(&self, buffer: BufferId, at: usize) -> Live {
        let bytes = self.buffers[buffer.index()].bytes;
        let nothing: Arc<str> = "".into();
        let last = self.steps.len().min(at + 1);
        let is_scratch = self.steps.get(at).is_some_and(|step| step.scratch == Some(buffer));
        let writer = self.steps[..last].iter().rfind(|step| step.result == buffer);
        let (holds, scope) = match (writer, is_scratch) {
            (_, true) => (Holds::Scratch, self.graph.node(self.steps[at].value).scope.clone()),
            (Some(step), false) => {
                (Holds::Value(step.value), self.graph.node(step.value).scope.clone())
            }
            (None, false) => {
                let port = self.inputs.iter().find(|port| port.buffer == buffer);
                (Holds::Input(port.map_or(nothing.clone(), |port| port.name.clone())), nothing)
            }
        };
        Live { buffer, bytes, holds, scope }
    }
}
