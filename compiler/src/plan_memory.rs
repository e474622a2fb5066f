//! Lowered graph to [`Plan`]: live ranges, in-place reuse, and an offset for every buffer.
//!
//! Offsets are a two-dimensional packing problem (bytes x steps), which is NP-hard; several greedy
//! orders are tried and the smallest arena is kept. The lower bound is the largest sum of live
//! bytes at any step.

use std::sync::Arc;

use kernels::Layout;
use ops::{Role, ValueId};

use crate::lower::{Lowered, LoweredStep};
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
    let arena_bytes = place(&mut buffers);
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

/// The largest sum of live bytes at any step.
fn lower_bound(buffers: &[Buffer]) -> usize {
    let steps = buffers.iter().map(|buffer| buffer.last_step + 1).max().unwrap_or(0);
    let mut change = vec![0isize; steps + 1];
    for buffer in buffers {
        change[buffer.first_step] += buffer.bytes as isize;
        change[buffer.last_step + 1] -= buffer.bytes as isize;
    }
    let mut live = 0;
    let mut most = 0;
    for delta in change {
        live += delta;
        most = most.max(live);
    }
    most as usize
}

/// Sets every offset; returns the arena's bytes.
fn place(buffers: &mut [Buffer]) -> usize {
    type Key = fn(&Buffer) -> (usize, usize);
    // Largest first packs big activations tightly; longest-lived first keeps them at the bottom;
    // area balances both; arrival order suits chains.
    let orders: [Key; 4] = [
        |b| (usize::MAX - b.bytes, b.first_step),
        |b| (usize::MAX - (b.last_step - b.first_step), usize::MAX - b.bytes),
        |b| (usize::MAX - b.bytes.saturating_mul(b.last_step - b.first_step + 1), b.first_step),
        |b| (b.first_step, usize::MAX - b.bytes),
    ];
    let bound = lower_bound(buffers);
    let mut best: Option<(usize, Vec<usize>)> = None;
    for key in orders {
        let mut order: Vec<usize> = (0..buffers.len()).collect();
        order.sort_by_key(|&i| (key(&buffers[i]), i));
        let (bytes, offsets) = best_fit(buffers, &order);
        if best.as_ref().is_none_or(|(least, _)| bytes < *least) {
            best = Some((bytes, offsets));
        }
        if bytes == bound {
            break;
        }
    }
    let Some((bytes, offsets)) = best else { return 0 };
    for (buffer, offset) in buffers.iter_mut().zip(offsets) {
        buffer.offset = offset;
    }
    bytes
}

/// Places buffers in `order`, each into the smallest gap that holds it between buffers live at the
/// same time, else on top of them.
fn best_fit(buffers: &[Buffer], order: &[usize]) -> (usize, Vec<usize>) {
    let mut offsets = vec![0; buffers.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(order.len());
    let mut arena = 0;
    for &i in order {
        let buffer = &buffers[i];
        let mut rivals: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&j| {
                buffers[j].first_step <= buffer.last_step
                    && buffer.first_step <= buffers[j].last_step
            })
            .map(|&j| (offsets[j], offsets[j] + buffers[j].bytes))
            .collect();
        rivals.sort_unstable();
        let mut end = 0;
        let mut gap: Option<(usize, usize)> = None;
        for (low, high) in rivals {
            if low > end
                && low - end >= buffer.bytes
                && gap.is_none_or(|(size, _)| low - end < size)
            {
                gap = Some((low - end, end));
            }
            end = end.max(high);
        }
        offsets[i] = gap.map_or(end, |(_, offset)| offset);
        arena = arena.max(offsets[i] + buffer.bytes);
        placed.push(i);
    }
    (arena, offsets)
}
