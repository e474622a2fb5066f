//! An independent checker of plans: replays the steps over a map of who owns which bytes.
//!
//! It shares no code with the planner and trusts none of its live ranges. A read is right only if
//! every byte of it was last written as a value that the graph means to read there, and if sampled
//! elements, followed through the graph's movement ops to the step that made them, lie just where
//! the operand's layout looks for them. Carried inputs are checked as the arena is: their memory is in
//! the map too, behind the arena, and at the end it must hold what replaces them. Steps that run
//! together may meet in memory only where each reads and writes the same elements.

mod joined;

use std::collections::{BTreeMap, BTreeSet};

use kernels::Layout;
use ops::{Op, Role, ValueId};

use crate::plan::{ALIGN_BYTES, BufferId, Carry, Memory, Place, Plan, Step};

/// Elements of each operand that are followed to their origin, besides the first and the last.
const N_SAMPLES: usize = 6;

/// All mistakes found in `plan`; empty for a right plan.
pub fn check_plan(plan: &Plan) -> Vec<String> {
    let n = plan.graph.nodes.len();
    let mut checker = Checker {
        plan,
        homes: vec![None; n],
        roots: vec![None; n],
        starts: starts(plan),
        owners: BTreeMap::new(),
        problems: Vec::new(),
    };
    for step in &plan.steps {
        let home = Home { buffer: step.result, layout: step.result_layout.clone() };
        checker.homes[step.value.index()] = Some(home);
    }
    checker.find_roots();
    checker.buffers();
    checker.carries();
    for (value, name) in plan.graph.inputs() {
        match plan.inputs.iter().find(|port| *port.name == *name) {
            Some(port) => {
                let layout = Layout::dense(&port.ty);
                checker.write(port.buffer, &layout, Owner::Value(value));
                checker.homes[value.index()] = Some(Home { buffer: port.buffer, layout });
            }
            None => checker.problems.push(format!("input `{name}` has no port")),
        }
    }
    for index in 0..plan.steps.len() {
        checker.step(index);
        checker.joined(index);
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

/// Where the step or the caller that makes a value writes it.
#[derive(Clone)]
struct Home {
    buffer: BufferId,
    layout: Layout,
}

struct Checker<'a> {
    plan: &'a Plan,
    /// For each value that a step computes or the caller gives.
    homes: Vec<Option<Home>>,
    /// For each value that a step writes as part of a concat: the outermost such concat.
    roots: Vec<Option<ValueId>>,
    /// First byte of each buffer: in the arena, or behind it.
    starts: Vec<usize>,
    /// Disjoint ranges by first byte: one past the last byte, and the owner.
    owners: BTreeMap<usize, (usize, Owner)>,
    problems: Vec<String>,
}

impl Checker<'_> {
    fn find_roots(&mut self) {
        for value in self.plan.graph.values().rev() {
            let is_concat = matches!(self.plan.graph.op(value), Some(Op::Concat(_)));
            if is_concat && self.homes[value.index()].is_none() {
                let root = self.roots[value.index()].unwrap_or(value);
                for &arg in &self.plan.graph.node(value).args {
                    self.roots[arg.index()] = Some(root);
                    let mut parts = BTreeSet::new();
                    self.origins(arg, &mut parts);
                    for part in parts {
                        self.roots[part.index()] = Some(root);
                    }
                }
            }
        }
    }

    fn buffers(&mut self) {
        for (i, buffer) in self.plan.buffers.iter().enumerate() {
            let end = buffer.offset.checked_add(buffer.bytes);
            let is_outside = match buffer.memory {
                Memory::Arena => end.is_none_or(|end| end > self.plan.arena_bytes),
                Memory::Carried => buffer.offset != 0,
            };
            if is_outside {
                self.problems.push(format!("b{i} ends outside its memory"));
            }
            if !buffer.offset.is_multiple_of(ALIGN_BYTES) {
                self.problems.push(format!("b{i} is not aligned"));
            }
        }
    }

    /// Each buffer in memory of its own is that of one carried input, and nothing else is written there but what
    /// replaces the input.
    fn carries(&mut self) {
        let plan = self.plan;
        let mut homes: BTreeMap<BufferId, &Carry> = BTreeMap::new();
        for carry in &plan.carries {
            let Carry { input, output } = carry;
            let Some(port) = plan.inputs.iter().find(|port| port.name == *input) else {
                self.problems.push(format!("`{input}` is carried, but there is no such input"));
                continue;
            };
            let home = plan.buffers.get(port.buffer.index());
            let has_memory = home.is_some_and(|home| home.memory == Memory::Carried);
            if homes.insert(port.buffer, carry).is_some() || !has_memory {
                self.problems.push(format!("`{input}` is carried, but has no memory of its own"));
            }
            let Some(new) = output.map(|output| plan.outputs.get(output)) else { continue };
            if new.is_none_or(|new| new.ty != port.ty) {
                self.problems.push(format!("`{input}` is replaced by what is no {}", port.ty));
            }
        }
        let n_own = plan.buffers.iter().filter(|buffer| buffer.memory == Memory::Carried).count();
        if n_own != homes.len() {
            self.problems.push(format!("{n_own} buffers are carried, {} inputs are", homes.len()));
        }
        for (index, step) in plan.steps.iter().enumerate() {
            let Some(Carry { input, output }) = homes.get(&step.result) else { continue };
            let new = output.and_then(|output| plan.graph.outputs.get(output));
            let whole = self.roots[step.value.index()].unwrap_or(step.value);
            if new != Some(&whole) {
                self.problems.push(format!("step {index} overwrites `{input}`, which stays"));
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
        let ty = (node.ty.dtype(), node.ty.shape());
        if (step.result_layout.dtype, &step.result_layout.shape[..]) != ty {
            self.problems.push(format!("step {index} writes {}", step.result_layout));
        }
        for position in 0..node.args.len() {
            self.operand(index, step, position);
        }
        if let Some(scratch) = step.scratch {
            let need = step.kernel.def().scratch_bytes(self.plan.target.threads);
            if self.overlap(scratch, step.result) {
                self.problems.push(format!("step {index}: scratch and result share bytes"));
            }
            match self.plan.buffers.get(scratch.index()) {
                Some(place) if place.bytes >= need => {
                    let low = self.starts[scratch.index()];
                    let high = low + place.bytes;
                    self.claim(low, high, Owner::Scratch(index));
                }
                _ => self.problems.push(format!("step {index} needs {need} bytes of scratch")),
            }
        }
        self.write(step.result, &step.result_layout, Owner::Value(step.value));
    }

    fn operand(&mut self, index: usize, step: &Step, position: usize) {
        let what = format!("step {index} operand {position}");
        let arg = self.plan.graph.node(step.value).args[position];
        let operand = &step.operands[position];
        let layout = &operand.layout;
        let (origin, _) = self.trace(arg, vec![0; self.plan.graph.ty(arg).rank()]);
        let node = self.plan.graph.node(origin);
        match (&operand.place, &node.role) {
            (Place::Buffer(buffer), Role::Input(_) | Role::Op(_)) => {
                self.read(&what, *buffer, layout, arg);
                let is_same = *buffer == step.result && *layout == step.result_layout;
                let (read, written) = (
                    self.bytes_of(*buffer, layout),
                    self.bytes_of(step.result, &step.result_layout),
                );
                let is_shared = read.0 < written.1 && written.0 < read.1;
                if is_shared && !(is_same && step.kernel.def().may_alias(position)) {
                    self.problems.push(format!("{what} is overwritten while it is read"));
                }
                if step.scratch.is_some_and(|s| self.overlap(*buffer, s)) {
                    self.problems.push(format!("{what} shares bytes with the scratch"));
                }
            }
            (Place::Param { name, ty, packing }, Role::Param(expected)) => {
                if name != expected || *ty != node.ty {
                    self.problems.push(format!("{what} is `{name}`, expected `{expected}`"));
                }
                if packing.is_none() {
                    self.elements(&what, 0, layout, arg);
                }
            }
            (Place::Constant(value), Role::Constant(_)) if *value == origin => {
                self.elements(&what, 0, layout, arg);
            }
            _ => self.problems.push(format!("{what} is not where {arg} is")),
        }
    }

    /// The element of a step's result, an input, a parameter or a constant that element `index` of
    /// `value` is: follows movement ops that have no step.
    fn trace(&self, mut value: ValueId, mut index: Vec<usize>) -> (ValueId, Vec<usize>) {
        let graph = &self.plan.graph;
        while let (Some(op), None) = (graph.op(value), &self.homes[value.index()]) {
            let args = &graph.node(value).args;
            let mut from = args[0];
            index = match op {
                Op::Reshape(_) => {
                    let shape = graph.ty(value).shape();
                    let at = shape.iter().zip(&index).fold(0, |at, (dim, i)| at * dim + i);
                    coordinates(at, graph.ty(from).shape())
                }
                Op::Permute(op) => {
                    let mut moved = vec![0; index.len()];
                    op.axes.iter().zip(&index).for_each(|(&axis, &i)| moved[axis] = i);
                    moved
                }
                Op::Slice(op) => {
                    let at = |axis: usize| op.start[axis] + index[axis] * op.step[axis];
                    (0..index.len()).map(at).collect()
                }
                Op::Broadcast(_) => {
                    let dims = graph.ty(from).shape().iter().zip(&index);
                    dims.map(|(&dim, &i)| if dim == 1 { 0 } else { i }).collect()
                }
                Op::Concat(op) => {
                    for &arg in args {
                        from = arg;
                        let dim = graph.ty(arg).shape()[op.axis];
                        if index[op.axis] < dim {
                            break;
                        }
                        index[op.axis] -= dim;
                    }
                    index
                }
                _ => break,
            };
            value = from;
        }
        (value, index)
    }

    /// The values whose bytes a read of `value` may find.
    fn origins(&self, value: ValueId, found: &mut BTreeSet<ValueId>) {
        let moves = matches!(
            self.plan.graph.op(value),
            Some(Op::Reshape(_) | Op::Permute(_) | Op::Slice(_) | Op::Broadcast(_) | Op::Concat(_))
        );
        if !moves || self.homes[value.index()].is_some() {
            found.insert(value);
            return;
        }
        for &arg in &self.plan.graph.node(value).args {
            self.origins(arg, found);
        }
    }

    fn write(&mut self, buffer: BufferId, layout: &Layout, owner: Owner) {
        let Some(place) = self.plan.buffers.get(buffer.index()) else {
            self.problems.push(format!("b{} does not exist", buffer.0));
            return;
        };
        let size = layout.dtype.size();
        let (bytes, need) = (place.bytes, layout.extent() * size);
        if need > bytes {
            self.problems.push(format!("b{} has {bytes} bytes, {need} are written", buffer.0));
        }
        let offset = self.starts[buffer.index()];
        let is_part = matches!(owner, Owner::Value(value) if self.roots[value.index()].is_some());
        if !is_part && layout.is_dense() && layout.offset == 0 {
            // All of it, with the padding at its end.
            self.claim(offset, offset + bytes, owner);
            return;
        }
        runs(layout, &mut |first, len| {
            self.claim(offset + first * size, offset + (first + len) * size, owner);
            true
        });
    }

    /// First byte of a read or write, and one past the last.
    fn bytes_of(&self, buffer: BufferId, layout: &Layout) -> (usize, usize) {
        let start = self.starts.get(buffer.index()).copied().unwrap_or(0);
        let size = layout.dtype.size();
        (start + layout.offset * size, start + layout.extent() * size)
    }

    fn overlap(&self, a: BufferId, b: BufferId) -> bool {
        let range = |buffer: BufferId| {
            let start = *self.starts.get(buffer.index())?;
            Some((start, start + self.plan.buffers[buffer.index()].bytes))
        };
        range(a).zip(range(b)).is_some_and(|(a, b)| a.0 < b.1 && b.0 < a.1)
    }

    /// Makes `owner` own bytes `low..high`.
    fn claim(&mut self, low: usize, high: usize, owner: Owner) {
        // Cut what was there before, keeping the parts outside.
        let before = self.owners.range(..low).next_back().map(|(&start, &entry)| (start, entry));
        let inside = self.owners.range(low..high).map(|(&start, &entry)| (start, entry));
        let overlapping: Vec<(usize, (usize, Owner))> =
            before.into_iter().chain(inside).filter(|&(_, (end, _))| end > low).collect();
        for (start, (end, old)) in overlapping {
            if let (Owner::Value(old), Owner::Value(new)) = (old, owner) {
                let root = self.roots[new.index()];
                if root.is_some() && self.roots[old.index()] == root && old != new {
                    self.problems.push(format!("{new} is written over {old} of the same concat"));
                }
            }
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
        let start = self.starts[buffer.index()];
        let (low, high) = self.bytes_of(buffer, layout);
        if high > start + place.bytes {
            self.problems.push(format!("{what} reads past the end of b{}", buffer.0));
        }
        let mut origins = BTreeSet::new();
        self.origins(value, &mut origins);
        // Gaps between the elements may hold anything.
        if self.foreign(low, high, &origins).is_some() {
            let mut foreign = None;
            runs(layout, &mut |first, len| {
                let low = start + first * size;
                foreign = self.foreign(low, low + len * size, &origins);
                foreign.is_none()
            });
            if let Some((at, found)) = foreign {
                self.problems.push(format!("{what} reads {value}, byte {at} holds {found}"));
            }
        }
        self.elements(what, start, layout, value);
    }

    /// The first of bytes `low..high` that none of `origins` owns, and who does.
    fn foreign(
        &self,
        low: usize,
        high: usize,
        origins: &BTreeSet<ValueId>,
    ) -> Option<(usize, String)> {
        let mut at = low;
        while at < high {
            match self.owners.range(..=at).next_back() {
                Some((_, &(end, Owner::Value(owner)))) if end > at && origins.contains(&owner) => {
                    at = end;
                }
                found => {
                    let found = found
                        .filter(|(_, (end, _))| *end > at)
                        .map_or("nothing".to_string(), |(_, (_, owner))| format!("{owner:?}"));
                    return Some((at, found));
                }
            }
        }
        None
    }

    /// Follows some elements of `value`, which is read at byte `offset` by `layout`, to where they
    /// were written.
    fn elements(&mut self, what: &str, offset: usize, layout: &Layout, value: ValueId) {
        let ty = self.plan.graph.ty(value);
        if (layout.dtype, &layout.shape[..]) != (ty.dtype(), ty.shape()) {
            self.problems.push(format!("{what} reads {layout}, {value} is {ty}"));
            return;
        }
        let last = ty.count() - 1;
        // Multiples of a large odd number spread over all axes.
        let spread = (1..=N_SAMPLES).map(|i| (i * 2_654_435_761) % ty.count());
        for at in [0, last].into_iter().chain(spread) {
            let index = coordinates(at, ty.shape());
            let read = offset + position(layout, &index) * layout.dtype.size();
            let (origin, index) = self.trace(value, index);
            let written = match &self.homes[origin.index()] {
                Some(home) => {
                    let start = self.starts.get(home.buffer.index()).copied().unwrap_or(0);
                    start + position(&home.layout, &index) * home.layout.dtype.size()
                }
                None => {
                    let dense = Layout::dense(self.plan.graph.ty(origin));
                    position(&dense, &index) * dense.dtype.size()
                }
            };
            if read != written {
                self.problems.push(format!(
                    "{what} looks for element {at} of {value} at byte {read}, {origin} has it at \
                     {written}"
                ));
                return;
            }
        }
    }
}

/// The element at position `at` in row-major order.
fn coordinates(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, dim) in index.iter_mut().zip(shape).rev() {
        *i = at % dim;
        at /= dim;
    }
    index
}

fn position(layout: &Layout, index: &[usize]) -> usize {
    layout.offset + index.iter().zip(&layout.strides).map(|(i, stride)| i * stride).sum::<usize>()
}

/// Hands every contiguous range of a layout's elements to `visit`, as first position and length,
/// until that returns `false`.
fn runs(layout: &Layout, visit: &mut dyn FnMut(usize, usize) -> bool) {
    let mut axes: Vec<(usize, usize)> = Vec::new();
    let mut len = 1;
    for (&dim, &stride) in layout.shape.iter().zip(&layout.strides).rev() {
        if axes.is_empty() && stride == len {
            len *= dim;
        } else if stride > 0 && dim > 1 {
            axes.push((dim, stride));
        }
    }
    let n_runs = axes.iter().map(|(dim, _)| dim).product();
    for run in 0..n_runs {
        let (mut at, mut left) = (layout.offset, run);
        for &(dim, stride) in &axes {
            at += left % dim * stride;
            left /= dim;
        }
        if !visit(at, len) {
            return;
        }
    }
}

/// First byte of each buffer in one space of addresses: the arena, and behind it what has memory of its own.
fn starts(plan: &Plan) -> Vec<usize> {
    let mut end = plan.arena_bytes;
    let start = |buffer: &crate::Buffer| match buffer.memory {
        Memory::Arena => buffer.offset,
        Memory::Carried => {
            end += buffer.bytes;
            end - buffer.bytes
        }
    };
    plan.buffers.iter().map(start).collect()
}
