//! The second level: buffers at byte offsets of one arena, and steps that run kernels on them.

use std::collections::BTreeMap;
use std::sync::Arc;

use kernels::{Kernel, Layout, Packing, Target};
use ops::{Graph, TensorType, ValueId};

/// Every buffer starts at a multiple of this many bytes: one cache line, one AVX-512 register.
pub const ALIGN_BYTES: usize = 64;

/// Names one buffer of a plan. Prints as `b3`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BufferId(pub u32);

impl BufferId {
    /// The buffer's position in [`Plan::buffers`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What memory a buffer is a range of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// The arena, whose contents are of one run.
    Arena,
    /// All of the memory that a carried input has for itself, which outlives runs. Whoever runs the plan gives it.
    Carried,
}

/// A range of memory, live from the step that first writes it to the last that reads it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Buffer {
    /// Bytes, a multiple of [`ALIGN_BYTES`].
    pub bytes: usize,
    /// Where it is.
    pub memory: Memory,
    /// First byte in the arena; 0 in memory of its own.
    pub offset: usize,
    /// First step at which the contents matter; inputs are written before step 0.
    pub first_step: usize,
    /// Last step at which the contents matter; for an output, one past the last step of the plan.
    pub last_step: usize,
}

/// Where the elements of a value are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the arena.
    Buffer(BufferId),
    /// A weight, by checkpoint name; dense as the graph declares it, or packed for a kernel.
    Param {
        /// Checkpoint name.
        name: Arc<str>,
        /// Type the graph declares.
        ty: TensorType,
        /// How the kernel wants it.
        packing: Option<Packing>,
    },
    /// A constant of the graph, by the value that defines it.
    Constant(ValueId),
}

/// What a step reads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operand {
    /// Base of the elements.
    pub place: Place,
    /// The elements within it.
    pub layout: Layout,
}

/// One kernel launch.
#[derive(Clone, Debug)]
pub struct Step {
    /// The value of the plan's graph that this computes.
    pub value: ValueId,
    /// What runs.
    pub kernel: Kernel,
    /// What it reads, in the order of the node's operands.
    pub operands: Vec<Operand>,
    /// Where the result goes.
    pub result: BufferId,
    /// The elements of that buffer: all of it, dense, or the part of a value that several steps
    /// write.
    pub result_layout: Layout,
    /// Working memory, live at this step only.
    pub scratch: Option<BufferId>,
    /// Whether it runs together with the step before it, so that what they share is read from memory once: both do
    /// one run of elements after the other, or the one before adds up the columns that it reads for this one.
    pub joins: bool,
}

/// An input or output of the plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// The input's name; `"0"`, `"1"`, … for outputs.
    pub name: Arc<str>,
    /// Its type, stored dense.
    pub ty: TensorType,
    /// Where the caller writes or reads it.
    pub buffer: BufferId,
}

/// An input that keeps its value from run to run, and the output that replaces it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Carry {
    /// Name of the input.
    pub input: Arc<str>,
    /// Position of the output, which is of the input's type; `None` if runs only read the input.
    pub output: Option<usize>,
}

/// A compiled graph: everything about a run is known here but the numbers.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it was compiled for.
    pub target: Target,
    /// The fused graph, with a copy node wherever a view had to be stored.
    pub graph: Graph,
    /// In order of execution.
    pub steps: Vec<Step>,
    /// Ranges of the arena.
    pub buffers: Vec<Buffer>,
    /// What the caller writes before a run.
    pub inputs: Vec<Port>,
    /// What the caller reads after a run.
    pub outputs: Vec<Port>,
    /// The inputs that are in memory of their own, in the order of [`Plan::inputs`].
    pub carries: Vec<Carry>,
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// Bytes that are live at the fullest step: no arena can be smaller for this order of steps.
    pub lower_bound_bytes: usize,
}

impl Plan {
    /// FLOPs of one run.
    pub fn flops(&self) -> u64 {
        self.graph.flops()
    }

    /// Bytes of the arena, of weights and constants, and of carried inputs.
    pub fn held_bytes(&self) -> usize {
        self.arena_bytes + self.weight_bytes() + self.carried_bytes()
    }

    /// Bytes of the inputs that are in memory of their own.
    pub fn carried_bytes(&self) -> usize {
        let carried = self.buffers.iter().filter(|buffer| buffer.memory == Memory::Carried);
        carried.map(|buffer| buffer.bytes).sum()
    }

    /// Whether `carry` happens as the run goes: the step that makes the output writes over the input, whose
    /// last reader it is or comes after. Otherwise the output has to be copied after the run.
    pub fn is_in_place(&self, carry: &Carry) -> bool {
        let input = self.inputs.iter().find(|port| port.name == carry.input);
        let output = carry.output.and_then(|output| self.outputs.get(output));
        input.zip(output).is_some_and(|(input, output)| input.buffer == output.buffer)
    }

    /// One past the last of the steps that run together, of which `step` is the first.
    pub fn joined_end(&self, step: usize) -> usize {
        let others = self.steps.get(step + 1..).unwrap_or_default();
        step + 1 + others.iter().take_while(|step| step.joins).count()
    }

    /// Whether what `step` adds up is read, and added up, by the step before it.
    pub fn is_summed_before(&self, step: usize) -> bool {
        let Step { kernel, joins, .. } = &self.steps[step];
        *joins && kernel.def().column_sums().is_some()
    }

    /// Bytes of weights and constants as they are held for this plan: packed where a kernel packs.
    pub fn weight_bytes(&self) -> usize {
        let operands = self.steps.iter().flat_map(|step| &step.operands);
        let constants: BTreeMap<ValueId, usize> = operands
            .filter_map(|operand| match operand.place {
                Place::Constant(value) => Some((value, self.graph.ty(value).bytes())),
                Place::Param { .. } | Place::Buffer(_) => None,
            })
            .collect();
        self.param_bytes().values().chain(constants.values()).sum()
    }

    /// Bytes of each weight in each form that it is held in, by name, type and packing: plans that run on one store
    /// of weights share those that are alike.
    pub fn param_bytes(&self) -> BTreeMap<String, usize> {
        let operands = self.steps.iter().flat_map(|step| &step.operands);
        let held = operands.filter_map(|operand| match &operand.place {
            Place::Param { name, ty, packing: Some(packing) } => {
                Some((format!("{name} {} {}", ty.dtype(), packing.name), packing.bytes))
            }
            Place::Param { name, ty, packing: None } => {
                Some((format!("{name} {}", ty.dtype()), ty.bytes()))
            }
            Place::Constant(_) | Place::Buffer(_) => None,
        });
        held.collect()
    }
}
