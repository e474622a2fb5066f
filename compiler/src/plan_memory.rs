//! Lowered graph to [`Plan`]: live ranges and in-place reuse; [`place_buffers`] gives the offsets.

use std::sync::Arc;

use kernels::Layout;
use ops::{Role, ValueId};

use crate::lower::{Lowered, LoweredStep};
use crate::place_buffers::{lower_bound, place_buffers};
use crate::plan::{ALIGN_BYTES, Buffer, BufferId, Operand, Place, Plan, Port, Step};

/// Assigns buffers and offsets.
pub(crate) fn plan_memory(lowered: Lowered, target: &kernels::Target) -> Plan {
    let mut storage = Storage::new(&lowered);
    let mut steps = Vec::with_capacity(lowered.steps.len());
    for (index, step) in lowered.steps.iter().enumerate() {
        let result = storage.result(&lowered, step, index);
        let scratch_bytes = step.kernel.def().scratch_bytes(target.threads);
        let scratch = (scratch_bytes > 0).then(|| storage.add(scratch_bytes, index, index));
        let operands = (0..lowered.graph.node(step.value).args.len())
            .map(|position| storage.operand(&lowered, step, position))
            .collect();
        steps.push(Step {
            value: step.value,
            kernel: step.kernel.clone(),
            operands,
            result,
            result_layout: Layout::dense(lowered.graph.ty(step.value)),
            scratch,
        });
    }
    let Storage { mut buffers, of_value, .. } = storage;
    let arena_bytes = place_buffers(&mut buffers);
    let port = |name: Arc<str>, value: ValueId| Port {
        name,
        ty: lowered.graph.ty(value).clone(),
        buffer: of_value[value.index()].expect("inputs and outputs are in the arena"),
    };
    let inputs = lowered.graph.inputs().map(|(value, name)| port(name.into(), value)).collect();
    let outputs = lowered
        .graph
        .outputs
        .iter()
        .enumerate()
        .map(|(i, &value)| port(i.to_string().into(), value))
        .collect();
    Plan {
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

/// Buffers as they are handed out, in step order.
struct Storage {
    buffers: Vec<Buffer>,
    /// The buffer of each value that owns storage in the arena.
    of_value: Vec<Option<BufferId>>,
    /// The last step that needs the storage of each base value.
    last_use: Vec<usize>,
}

impl Storage {
    fn new(lowered: &Lowered) -> Storage {
        let n = lowered.graph.nodes.len();
        let mut last_use = vec![0; n];
        for (index, step) in lowered.steps.iter().enumerate() {
            last_use[step.value.index()] = index;
            for arg in &lowered.graph.node(step.value).args {
                last_use[lowered.views[arg.index()].base.index()] = index;
            }
        }
        // Outputs are read after the last step.
        for output in &lowered.graph.outputs {
            last_use[lowered.views[output.index()].base.index()] = lowered.steps.len();
        }
        let mut storage = Storage { buffers: Vec::new(), of_value: vec![None; n], last_use };
        for value in lowered.graph.values() {
            let node = lowered.graph.node(value);
            if matches!(node.role, Role::Input(_)) {
                let buffer = storage.add(node.ty.bytes(), 0, storage.last_use[value.index()]);
                storage.of_value[value.index()] = Some(buffer);
            }
        }
        storage
    }

    fn add(&mut self, bytes: usize, first_step: usize, last_step: usize) -> BufferId {
        let bytes = bytes.next_multiple_of(ALIGN_BYTES);
        self.buffers.push(Buffer { bytes, offset: 0, first_step, last_step });
        BufferId(self.buffers.len() as u32 - 1)
    }

    /// The buffer for the result of `step`: an operand's where the kernel writes in place and the
    /// operand is not needed afterwards, else a new one.
    fn result(&mut self, lowered: &Lowered, step: &LoweredStep, index: usize) -> BufferId {
        let ty = lowered.graph.ty(step.value);
        let last_use = self.last_use[step.value.index()];
        let dense = Layout::dense(ty);
        let args = &lowered.graph.node(step.value).args;
        let in_place = (0..args.len()).find_map(|position| {
            let view = &lowered.views[args[position].index()];
            let buffer = self.of_value[view.base.index()]?;
            // Other operands may read the same buffer through another view.
            let sole = (0..args.len()).all(|other| {
                other == position || lowered.views[args[other].index()].base != view.base
            });
            let fits = step.kernel.def().may_alias(position)
                && self.last_use[view.base.index()] == index
                && self.buffers[buffer.index()].last_step == index
                && view.layout == dense
                && sole;
            fits.then_some(buffer)
        });
        let buffer = match in_place {
            Some(buffer) => {
                self.buffers[buffer.index()].last_step = last_use;
                buffer
            }
            None => self.add(ty.bytes(), index, last_use),
        };
        self.of_value[step.value.index()] = Some(buffer);
        buffer
    }

    fn operand(&self, lowered: &Lowered, step: &LoweredStep, position: usize) -> Operand {
        let value = lowered.graph.node(step.value).args[position];
        let view = &lowered.views[value.index()];
        let place = lowered.fixed_place(step, position).unwrap_or_else(|| {
            Place::Buffer(self.of_value[view.base.index()].expect("operands are made before use"))
        });
        Operand { place, layout: view.layout.clone() }
    }
}
