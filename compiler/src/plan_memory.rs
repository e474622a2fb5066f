//! Lowered graph to [`Plan`]: live ranges and in-place reuse; [`place_buffers`] gives the offsets.
//!
//! A storage is written by one step, or by several where a concat is put together from their
//! results. It takes over the buffer of an operand where every step of it overwrites just what it
//! reads and nobody else still wants: a residual sum, whole or piece by piece. A carried input has
//! memory of its own, which only the output that replaces it may take over. Steps that run together
//! count as one moment: what is live at one of them is live at all.

use std::sync::Arc;

use ops::{Role, ValueId};

use crate::join_steps::{are_at_same_places, join_steps};
use crate::lower::{Lowered, LoweredStep};
use crate::place_buffers::{lower_bound, place_buffers};
use crate::plan::{ALIGN_BYTES, Buffer, BufferId, Carry, Memory, Operand, Place, Plan, Port, Step};

/// Assigns buffers and offsets. `carries` are of inputs and outputs that there are, of one type.
pub(crate) fn plan_memory(
    mut lowered: Lowered,
    target: &kernels::Target,
    carries: &[Carry],
) -> Plan {
    let joins = join_steps(&mut lowered, !carries.is_empty());
    let mut storages = Storages::new(&lowered, carries, &joins);
    let mut steps = Vec::with_capacity(lowered.steps.len());
    for (index, step) in lowered.steps.iter().enumerate() {
        let result = storages.result(index);
        let scratch_bytes = step.kernel.def().scratch_bytes(target.threads);
        let scratch = (scratch_bytes > 0).then(|| storages.add(scratch_bytes, index, index));
        let operands = (0..lowered.graph.node(step.value).args.len())
            .map(|position| storages.operand(step, position))
            .collect();
        steps.push(Step {
            value: step.value,
            kernel: step.kernel.clone(),
            operands,
            result,
            result_layout: lowered.views[step.value.index()].layout.clone(),
            scratch,
            joins: joins[index],
        });
    }
    let Storages { mut buffers, buffer_of, together, .. } = storages;
    for buffer in &mut buffers {
        let moment = |step: usize| together.get(step).copied().unwrap_or((step, step));
        (buffer.first_step, buffer.last_step) =
            (moment(buffer.first_step).0, moment(buffer.last_step).1);
    }
    let arena_bytes = place_buffers(&mut buffers);
    let port = |name: Arc<str>, value: ValueId| Port {
        name,
        ty: lowered.graph.ty(value).clone(),
        buffer: buffer_of[lowered.views[value.index()].storage]
            .expect("inputs and outputs are in the arena"),
    };
    let inputs: Vec<Port> =
        lowered.graph.inputs().map(|(value, name)| port(name.into(), value)).collect();
    let outputs = lowered
        .graph
        .outputs
        .iter()
        .enumerate()
        .map(|(i, &value)| port(i.to_string().into(), value))
        .collect();
    let carry = |port: &Port| carries.iter().find(|carry| carry.input == port.name).cloned();
    Plan {
        carries: inputs.iter().filter_map(carry).collect(),
        target: target.clone(),
        lower_bound_bytes: lower_bound(&buffers),
        steps,
        buffers,
        inputs,
        outputs,
        arena_bytes,
        graph: lowered.graph,
    }
}

/// What happens to one storage, by position in [`Lowered::steps`].
#[derive(Clone, Debug, Default)]
struct Uses {
    /// Steps that write it, ascending; none for inputs.
    writes: Vec<usize>,
    /// Steps that read it and by which operand, ascending.
    reads: Vec<(usize, usize)>,
    /// The last step that needs it; one past the last step of the plan for outputs.
    last: usize,
}

/// Buffers as they are handed out, in step order.
struct Storages<'a> {
    lowered: &'a Lowered,
    uses: Vec<Uses>,
    buffers: Vec<Buffer>,
    /// The buffer of each storage in the arena that has been reached.
    buffer_of: Vec<Option<BufferId>>,
    /// The storage that each buffer holds or held last; `None` for scratch.
    held: Vec<Option<usize>>,
    /// For each storage that an output replaces a carried input with: the storage of that input.
    replaces: Vec<Option<usize>>,
    /// For each step, the first and the last of those that it runs together with.
    together: Vec<(usize, usize)>,
}

impl<'a> Storages<'a> {
    fn new(lowered: &'a Lowered, carries: &[Carry], joins: &[bool]) -> Storages<'a> {
        let mut uses = vec![Uses::default(); lowered.owners.len()];
        let storage_of = |value: ValueId| lowered.views[value.index()].storage;
        for (index, step) in lowered.steps.iter().enumerate() {
            let written = &mut uses[storage_of(step.value)];
            written.writes.push(index);
            written.last = index;
            for (position, &arg) in lowered.graph.node(step.value).args.iter().enumerate() {
                let read = &mut uses[storage_of(arg)];
                read.reads.push((index, position));
                read.last = index;
            }
        }
        // Outputs are read after the last step.
        for &output in &lowered.graph.outputs {
            uses[storage_of(output)].last = lowered.steps.len();
        }
        let mut storages = Storages {
            lowered,
            uses,
            buffers: Vec::new(),
            buffer_of: vec![None; lowered.owners.len()],
            held: Vec::new(),
            replaces: vec![None; lowered.owners.len()],
            together: together(joins),
        };
        for (storage, &owner) in lowered.owners.iter().enumerate() {
            let node = lowered.graph.node(owner);
            let Role::Input(name) = &node.role else { continue };
            let buffer = storages.add(node.ty.bytes(), 0, storages.uses[storage].last);
            storages.hold(buffer, storage);
            if let Some(carry) = carries.iter().find(|carry| carry.input == *name) {
                let buffer = &mut storages.buffers[buffer.index()];
                (buffer.memory, buffer.last_step) = (Memory::Carried, lowered.steps.len());
                if let Some(output) = carry.output {
                    let output = storage_of(lowered.graph.outputs[output]);
                    storages.replaces[output] = Some(storage);
                }
            }
        }
        storages
    }

    fn add(&mut self, bytes: usize, first_step: usize, last_step: usize) -> BufferId {
        let bytes = bytes.next_multiple_of(ALIGN_BYTES);
        let memory = Memory::Arena;
        self.buffers.push(Buffer { bytes, memory, offset: 0, first_step, last_step });
        self.held.push(None);
        BufferId(self.buffers.len() as u32 - 1)
    }

    fn hold(&mut self, buffer: BufferId, storage: usize) {
        self.buffer_of[storage] = Some(buffer);
        self.held[buffer.index()] = Some(storage);
    }

    /// The buffer that step `index` writes: the one its storage has already, or an operand's, or a
    /// new one.
    fn result(&mut self, index: usize) -> BufferId {
        let value = self.lowered.steps[index].value;
        let storage = self.lowered.views[value.index()].storage;
        if let Some(buffer) = self.buffer_of[storage] {
            return buffer;
        }
        let last = self.uses[storage].last;
        let args = &self.lowered.graph.node(value).args;
        let operands = args.iter().map(|arg| self.lowered.views[arg.index()].storage);
        // What is written piece by piece may also go over what other pieces still read.
        let is_in_pieces = self.uses[storage].writes.len() > 1;
        let held = self.held.iter().zip(&self.buffers).filter_map(|(&held, buffer)| {
            held.filter(|_| is_in_pieces && buffer.last_step > index)
        });
        let replaced = self.replaces[storage];
        let taken_over = replaced.into_iter().chain(operands).chain(held).find_map(|old| {
            let buffer = self.buffer_of[old]?;
            let is_free = match self.buffers[buffer.index()].memory {
                Memory::Arena => true,
                Memory::Carried => replaced == Some(old),
            };
            let is_held = self.held[buffer.index()] == Some(old);
            (is_free && is_held && self.can_overwrite(storage, old)).then_some(buffer)
        });
        let buffer = match taken_over {
            Some(buffer) => {
                self.buffers[buffer.index()].last_step = last;
                buffer
            }
            None => {
                let owner = self.lowered.owners[storage];
                self.add(self.lowered.graph.ty(owner).bytes(), index, last)
            }
        };
        self.hold(buffer, storage);
        buffer
    }

    /// Whether `new` may be written over `old` from its first step on.
    fn can_overwrite(&self, new: usize, old: usize) -> bool {
        let bytes = |storage: usize| {
            let owner = self.lowered.owners[storage];
            self.lowered.graph.ty(owner).bytes().next_multiple_of(ALIGN_BYTES)
        };
        let (writes, uses) = (&self.uses[new].writes, &self.uses[old]);
        let (Some(&first), Some(&last)) = (writes.first(), writes.last()) else { return false };
        bytes(new) == bytes(old)
            && uses.writes.last().is_none_or(|&written| written < first)
            && uses.last <= last
            && uses.reads.iter().all(|&read| self.keeps_what_is_read(writes, read))
    }

    /// Whether operand `position` of step `index` finds its elements although `writes` overwrite
    /// the storage that they are in.
    fn keeps_what_is_read(&self, writes: &[usize], (index, position): (usize, usize)) -> bool {
        let Lowered { graph, steps, views, .. } = self.lowered;
        let args = &graph.node(steps[index].value).args;
        let operand = &views[args[position].index()];
        writes.iter().all(|&write| {
            let written = &views[steps[write].value.index()].layout;
            if write < index {
                return operand.layout.is_disjoint_from(written);
            }
            if write > index {
                // It has been read by then, unless both steps do one run of elements after the other.
                let is_before = self.together[index] != self.together[write];
                let is_element = steps[index].kernel.def().elements().is_some();
                return is_before || is_element && are_at_same_places(&operand.layout, written);
            }
            // Other operands may read the same elements through another view.
            let is_sole = (0..args.len()).all(|other| {
                other == position || views[args[other].index()].storage != operand.storage
            });
            operand.layout == *written && is_sole && steps[index].kernel.def().may_alias(position)
        })
    }

    fn operand(&self, step: &LoweredStep, position: usize) -> Operand {
        let value = self.lowered.graph.node(step.value).args[position];
        let view = &self.lowered.views[value.index()];
        let place = self.lowered.fixed_place(step, position).unwrap_or_else(|| {
            Place::Buffer(self.buffer_of[view.storage].expect("operands are made before use"))
        });
        Operand { place, layout: view.layout.clone() }
    }
}

/// For each step, the first and the last of those that it runs together with, by who joins the one before.
fn together(joins: &[bool]) -> Vec<(usize, usize)> {
    let mut together: Vec<(usize, usize)> = Vec::with_capacity(joins.len());
    for (step, &joins) in joins.iter().enumerate() {
        let first = if joins { together[step - 1].0 } else { step };
        together.push((first, step));
        for other in &mut together[first..step] {
            other.1 = step;
        }
    }
    together
}
