//! Who is in the arena when: a plan's buffers with the values that they hold, and the bytes that
//! are live at each step.
//!
//! A buffer that kernels write in place holds several values, one after the other. Everything here
//! is derived from the plan, for people and tools to look at; no compilation depends on it.

use std::sync::Arc;

use ops::{TensorType, ValueId};

use crate::place_buffers::live_bytes;
use crate::{BufferId, Plan};

/// What a buffer is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Purpose {
    /// The caller writes it before the run.
    Input,
    /// The result of one or more steps.
    Value,
    /// Working memory of one step.
    Scratch,
}

/// One thing that a buffer holds.
#[derive(Clone, PartialEq, Debug)]
pub struct Content {
    /// The step that writes it; 0 for an input, which is there before.
    pub step: usize,
    /// The value of the plan's graph; for scratch, the value that its step computes.
    pub value: ValueId,
    /// The part of the model that the value is from; empty outside of every part.
    pub scope: Arc<str>,
    /// What makes it: the kernel's name, or `input`.
    pub origin: &'static str,
    /// Its type; `None` for scratch.
    pub ty: Option<TensorType>,
}

/// A buffer and what it holds.
#[derive(Clone, PartialEq, Debug)]
pub struct Resident {
    /// The buffer.
    pub buffer: BufferId,
    /// What it is for.
    pub purpose: Purpose,
    /// What it holds, in order of time; never empty in a plan of this compiler.
    pub contents: Vec<Content>,
}

impl Resident {
    /// What the buffer holds at `step`: the last that was written by then.
    pub fn content_at(&self, step: usize) -> Option<&Content> {
        self.contents.iter().rfind(|content| content.step <= step).or(self.contents.first())
    }
}

impl Plan {
    /// What each buffer holds, by buffer.
    pub fn residents(&self) -> Vec<Resident> {
        let mut residents: Vec<Resident> = (0..self.buffers.len())
            .map(|index| Resident {
                buffer: BufferId(index as u32),
                purpose: Purpose::Value,
                contents: vec![],
            })
            .collect();
        for (value, name) in self.graph.inputs() {
            let Some(port) = self.inputs.iter().find(|port| *port.name == *name) else { continue };
            let resident = &mut residents[port.buffer.index()];
            resident.purpose = Purpose::Input;
            resident.contents.push(Content {
                step: 0,
                value,
                scope: name.into(),
                origin: "input",
                ty: Some(port.ty.clone()),
            });
        }
        for (index, step) in self.steps.iter().enumerate() {
            let node = self.graph.node(step.value);
            let content = |ty| Content {
                step: index,
                value: step.value,
                scope: Arc::clone(&node.scope),
                origin: step.kernel.def().name(),
                ty,
            };
            residents[step.result.index()].contents.push(content(Some(node.ty.clone())));
            if let Some(scratch) = step.scratch {
                let resident = &mut residents[scratch.index()];
                resident.purpose = Purpose::Scratch;
                resident.contents.push(content(None));
            }
        }
        residents
    }

    /// Bytes of the arena that are live at each step, and once more after the last, where the
    /// outputs wait for the caller.
    pub fn live_bytes(&self) -> Vec<usize> {
        let mut live = live_bytes(&self.buffers);
        live.resize(self.steps.len() + 1, 0);
        live
    }

    /// The first step at which the most bytes are live.
    pub fn fullest_step(&self) -> usize {
        let live = self.live_bytes();
        let most = live.iter().max().copied().unwrap_or(0);
        live.iter().position(|&bytes| bytes == most).unwrap_or(0)
    }
}
