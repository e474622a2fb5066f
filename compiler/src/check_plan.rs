//! An independent checker of plans: replays the steps over a map of who owns which bytes.
//!
//! It shares no code with the planner and trusts none of its live ranges: a read is right only if
//! every byte of it was last written as the value that is meant to be read.

use std::collections::BTreeMap;

use kernels::Layout;
use ops::{Role, ValueId};

use crate::plan::{ALIGN_BYTES, BufferId, Place, Plan};

/// All mistakes found in `plan`; empty for a right plan.
pub fn check_plan(plan: &Plan) -> Vec<String> {
    let mut is_step = vec![false; plan.graph.nodes.len()];
    for step in &plan.steps {
        is_step[step.value.index()] = true;
    }
    let mut checker = Checker { plan, is_step, owners: BTreeMap::new(), problems: Vec::new() };
    checker.buffers();
    for (value, name) in plan.graph.inputs() {
        match plan.inputs.iter().find(|port| *port.name == *name) {
            Some(port) => checker.write(port.buffer, port.ty.bytes(), Owner::Value(value)),
            None => checker.problems.push(format!("input `{name}` has no port")),
        }
    }
    for index in 0..plan.steps.len() {
        checker.step(index);
    }
    for (port, &value) in plan.outputs.iter().zip(&plan.graph.outputs) {
        let layout = Layout::dense(&port.ty);
        checker.read(&format!("output {}", port.name), port.buffer, &layout, value);
    }
    if plan.outputs.len() != plan.graph.outputs.len() {
        checker.problems.push("ports and outputs differ in number".into());
    }
    if plan.arena_bytes < plan.lower_bound_bytes {
        checker.problems.push("the arena is below its lower bound".into());
    }
    checker.problems
}

/// What the bytes of a range hold.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Owner {
    Value(ValueId),
    Scratch(usize),
}

struct Checker<'a> {
    plan: &'a Plan,
    /// Which values a step computes.
    is_step: Vec<bool>,
    /// Disjoint ranges by first byte: one past the last byte, and the owner.
    owners: BTreeMap<usize, (usize, Owner)>,
    problems: Vec<String>,
}

impl Checker<'_> {
    fn buffers(&mut self) {
        for (i, buffer) in self.plan.buffers.iter().enumerate() {
            let end = buffer.offset.checked_add(buffer.bytes);
            if end.is_none_or(|end| end > self.plan.arena_bytes) {
                self.problems.push(format!("b{i} ends outside the arena"));
            }
            if !buffer.offset.is_multiple_of(ALIGN_BYTES) {
                self.problems.push(format!("b{i} is not aligned"));
            }
        }
    }

    fn step(&mut self, index: usize) {
        let step = &self.plan.steps[index];
        let node = self.plan.graph.node(step.value);
        if node.args.len() != step.operands.len() {
            self.problems.push(format!("step {index} reads {} operands", step.operands.len()));
            return;
        }
        let result_bytes = node.ty.bytes();
        for (position, (operand, &arg)) in step.operands.iter().zip(&node.args).enumerate() {
            let base = self.base(arg);
            let what = format!("step {index} operand {position}");
            match (&operand.place, &self.plan.graph.node(base).role) {
                (Place::Buffer(buffer), Role::Input(_) | Role::Op(_)) => {
                    self.read(&what, *buffer, &operand.layout, base);
                    let aliased = overlap(self.plan, *buffer, step.result);
                    let allowed = step.kernel.def().may_alias(position)
                        && *buffer == step.result
                        && operand.layout == step.result_layout;
                    if aliased && !allowed {
                        self.problems.push(format!("{what} is overwritten while it is read"));
                    }
                    if step.scratch.is_some_and(|s| overlap(self.plan, *buffer, s)) {
                        self.problems.push(format!("{what} shares bytes with the scratch"));
                    }
                }
                (Place::Param { name, ty, .. }, Role::Param(expected)) => {
                    if name != expected || *ty != self.plan.graph.node(base).ty {
                        self.problems.push(format!("{what} is `{name}`, expected `{expected}`"));
                    }
                }
                (Place::Constant(value), Role::Constant(_)) if *value == base => {}
                _ => self.problems.push(format!("{what} is not where {arg} is")),
            }
        }
        if let Some(scratch) = step.scratch {
            let need = step.kernel.def().scratch_bytes(self.plan.target.threads);
            if overlap(self.plan, scratch, step.result) {
                self.problems.push(format!("step {index}: scratch and result share bytes"));
            }
            self.write(scratch, need, Owner::Scratch(index));
        }
        self.write(step.result, result_bytes, Owner::Value(step.value));
    }

    /// The value whose storage holds `value`: follows movement ops that have no step.
    fn base(&self, mut value: ValueId) -> ValueId {
        while self.plan.graph.op(value).is_some() && !self.is_step[value.index()] {
            value = self.plan.graph.node(value).args[0];
        }
        value
    }

    fn write(&mut self, buffer: BufferId, bytes: usize, owner: Owner) {
        let Some(place) = self.plan.buffers.get(buffer.index()) else {
            self.problems.push(format!("b{} does not exist", buffer.0));
            return;
        };
        if bytes > place.bytes {
            self.problems
                .push(format!("b{} has {} bytes, {bytes} are written", buffer.0, place.bytes));
        }
        let (low, high) = (place.offset, place.offset + place.bytes);
        // Cut what was there before, keeping the parts outside.
        let overlapping: Vec<(usize, (usize, Owner))> = self
            .owners
            .range(..high)
            .filter(|&(_, &(end, _))| end > low)
            .map(|(&start, &entry)| (start, entry))
            .collect();
        for (start, (end, old)) in overlapping {
            self.owners.remove(&start);
            if start < low {
                self.owners.insert(start, (low, old));
            }
            if end > high {
                self.owners.insert(high, (end, old));
            }
        }
        self.owners.insert(low, (high, owner));
    }

    fn read(&mut self, what: &str, buffer: BufferId, layout: &Layout, value: ValueId) {
        let Some(place) = self.plan.buffers.get(buffer.index()) else {
            self.problems.push(format!("{what}: b{} does not exist", buffer.0));
            return;
        };
        let size = layout.dtype.size();
        let mut at = place.offset + layout.offset * size;
        let end = place.offset + layout.extent() * size;
        if end > place.offset + place.bytes {
            self.problems.push(format!("{what} reads past the end of b{}", buffer.0));
        }
        while at < end {
            match self.owners.range(..=at).next_back() {
                Some((_, &(high, Owner::Value(owner)))) if high > at && owner == value => at = high,
                found => {
                    let found = found
                        .filter(|(_, (high, _))| *high > at)
                        .map_or("nothing".to_string(), |(_, (_, owner))| format!("{owner:?}"));
                    self.problems.push(format!("{what} reads {value}, byte {at} holds {found}"));
                    return;
                }
            }
        }
    }
}

fn overlap(plan: &Plan, a: BufferId, b: BufferId) -> bool {
    match (plan.buffers.get(a.index()), plan.buffers.get(b.index())) {
        (Some(a), Some(b)) => a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes,
        _ => false,
    }
}
