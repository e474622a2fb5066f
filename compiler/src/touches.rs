//! How long ago a step's memory was last touched, in bytes that were moved since: what decides which cache still
//! has it. In a step of training most of what the backward part reads was left long before.

use kernels::Layout;

use crate::plan::{Buffer, BufferId, Memory};
use crate::{Place, Plan};

/// Parts that the arena is seen in.
const BLOCKS: usize = 4096;

/// When memory was last touched: bytes that had been moved until then.
struct Clock<'a> {
    plan: &'a Plan,
    moved: u64,
    /// Bytes of a block of the arena.
    block: usize,
    blocks: Vec<u64>,
    /// Of buffers with memory of their own.
    carried: Vec<u64>,
}

impl Clock<'_> {
    /// The blocks of what `layout` has of a buffer.
    fn range(&self, buffer: &Buffer, layout: &Layout) -> std::ops::Range<usize> {
        let size = layout.dtype.size();
        let span: usize = layout
            .shape
            .iter()
            .zip(&layout.strides)
            .map(|(&dim, &stride)| dim.saturating_sub(1) * stride)
            .sum();
        let first = buffer.offset + layout.offset * size;
        let end = ((first + span * size) / self.block + 1).min(self.blocks.len());
        (first / self.block).min(end)..end
    }

    /// Bytes that were moved since all of it was touched last.
    fn since(&self, id: BufferId, layout: &Layout) -> u64 {
        let buffer = &self.plan.buffers[id.index()];
        let touched = match buffer.memory {
            Memory::Carried => self.carried[id.index()],
            Memory::Arena => {
                let blocks = self.blocks[self.range(buffer, layout)].iter();
                blocks.min().copied().unwrap_or(0)
            }
        };
        self.moved.saturating_sub(touched)
    }

    fn touch(&mut self, id: BufferId, layout: &Layout) {
        let buffer = &self.plan.buffers[id.index()];
        match buffer.memory {
            Memory::Carried => self.carried[id.index()] = self.moved,
            Memory::Arena => {
                let range = self.range(buffer, layout);
                self.blocks[range].fill(self.moved);
            }
        }
    }
}

/// How long ago a step's memory was touched, in bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Since {
    /// What it reads, but for weights.
    pub(crate) operands: Vec<u64>,
    /// What it writes.
    pub(crate) result: u64,
}

/// Of each step of a plan that is run again and again, how long ago its memory was touched; `bytes` are what steps
/// move.
pub(crate) fn touches(plan: &Plan, bytes: &[u64]) -> Vec<Since> {
    let block = plan.arena_bytes.div_ceil(BLOCKS).max(1);
    let mut clock = Clock {
        plan,
        moved: 0,
        block,
        blocks: vec![0; plan.arena_bytes / block + 2],
        carried: vec![0; plan.buffers.len()],
    };
    let mut touches = vec![Since::default(); plan.steps.len()];
    // What a run finds is what the one before it left.
    for _ in 0..2 {
        for ((step, since), &bytes) in plan.steps.iter().zip(&mut touches).zip(bytes) {
            let places = || {
                step.operands.iter().filter_map(|operand| match operand.place {
                    Place::Param { .. } => None,
                    Place::Constant(_) => Some(None),
                    Place::Buffer(id) => Some(Some((id, &operand.layout))),
                })
            };
            let of_place = |place: Option<(BufferId, &Layout)>| {
                place.map_or(0, |(id, layout)| clock.since(id, layout))
            };
            since.operands = places().map(of_place).collect();
            since.result = clock.since(step.result, &step.result_layout);
            clock.moved = clock.moved.saturating_add(bytes);
            for (id, layout) in places().flatten().chain([(step.result, &step.result_layout)]) {
                clock.touch(id, layout);
            }
        }
    }
    touches
}

#[cfg(test)]
mod tests {
    use kernels::{Isa, Target};
    use ops::{Builder, DType, TensorType};

    #[test]
    fn what_was_just_left_is_near_and_what_waits_is_far() {
        let mut b = Builder::new("g");
        let ty = TensorType::new(DType::F32, [256, 256]).expect("the shape is valid");
        let x = b.input("x", ty.clone());
        let first = b.permute(x, &[1, 0]).expect("the axes are two");
        let mut y = first;
        for _ in 0..4 {
            y = b.softmax(y, 1).expect("the axis exists");
        }
        let last = b.add(y, first).expect("the shapes are the same");
        let graph = b.finish(&[last]);
        let target = Target {
            isa: Isa::PORTABLE,
            threads: 1,
            l1_bytes: 32 << 10,
            l2_bytes: 1 << 20,
            l3_bytes: 16 << 20,
            gpu: None,
            tiles: None,
        };
        let plan = crate::compile(graph, &target).expect("every op has a kernel");
        let bytes = ty.bytes() as u64;
        let since: Vec<Vec<u64>> = plan
            .works()
            .iter()
            .map(|work| work.activations.iter().map(|touch| touch.since / bytes).collect())
            .collect();
        // All that a step reads was just left, the input by the run before, which reads it last. The last step adds
        // the input, too: two steps that read and write lie between.
        assert_eq!(since, [vec![0], vec![0], vec![0], vec![0, 4]]);
    }
}
