//! Operands of fused code: a slot for each, and what a thread reads of them.

use cubecl::prelude::*;
use kernels::cuda::{Access, Code};

use crate::evaluate::evaluate;
use crate::position::position;
use crate::slot::{Slot, SlotExpand, load, load_run};

/// Declares a pointer for each access.
pub(crate) fn declare<'a>(
    accesses: impl Iterator<Item = &'a Access>,
    builder: &mut KernelBuilder,
) -> SequenceExpand<Slot> {
    let mut slots = Sequence::__expand_new(&builder.scope);
    for access in accesses {
        let slot = SlotExpand::declare(builder, access.dtype.size());
        slots.__expand_push_method(&builder.scope, slot);
    }
    slots
}

/// Where each operand's row starts, given the coordinates of all dims but the last.
#[cube]
pub(crate) fn starts(outer: &Array<usize>, #[comptime] code: Code) -> Sequence<usize> {
    let mut starts = Sequence::<usize>::new();
    let accesses = comptime!(code.memory().cloned().collect::<Vec<Access>>());
    #[unroll]
    for i in 0..comptime!(accesses.len()) {
        let strides = comptime!(outer_strides(&accesses[i]));
        starts.push(position(outer, strides));
    }
    starts
}

/// Strides of all dims but the last.
pub(crate) fn outer_strides(access: &Access) -> Vec<u32> {
    access.strides[..access.strides.len() - 1].to_vec()
}

/// The `vector` elements from `index` on of the row that starts at `start`.
#[cube]
pub(crate) fn load_elements(
    slot: &Slot,
    start: usize,
    index: usize,
    #[comptime] access: Access,
    #[comptime] vector: usize,
) -> Array<f32> {
    let stride = comptime!(access.strides.last().copied().unwrap_or(0) as usize);
    if comptime!(stride == 1) {
        load_run(slot, start + index, comptime!(access.dtype), vector)
    } else {
        let x = load(slot, start + index * stride, comptime!(access.dtype));
        let mut run = Array::<f32>::new(vector);
        #[unroll]
        for j in 0..vector {
            run[j] = x;
        }
        run
    }
}

/// What the code makes of `vector` elements from `index` on; `computed` is what slots read that are
/// not in memory.
#[cube]
pub(crate) fn run_code(
    slots: &Sequence<Slot>,
    starts: &Sequence<usize>,
    computed: &Array<f32>,
    index: usize,
    #[comptime] code: Code,
    #[comptime] vector: usize,
) -> Array<f32> {
    let n = comptime!(code.slots.len());
    let mut values = Sequence::<Array<f32>>::new();
    #[unroll]
    for i in 0..n {
        let in_memory = comptime!(code.slots[i].is_some());
        if in_memory {
            let at = comptime!(code.slots[..i].iter().flatten().count());
            let access = comptime!(code.slots[i].clone().expect("it is in memory"));
            let start = *starts.index(at);
            values.push(load_elements(slots.index(at), start, index, access, vector));
        } else {
            let mut run = Array::<f32>::new(vector);
            #[unroll]
            for j in 0..vector {
                run[j] = computed[j];
            }
            values.push(run);
        }
    }
    let mut run = Array::<f32>::new(vector);
    #[unroll]
    for j in 0..vector {
        let mut elements = Sequence::<f32>::new();
        #[unroll]
        for i in 0..n {
            elements.push(values.index(i)[j]);
        }
        run[j] = evaluate(&elements, comptime!(code.program.clone()));
    }
    run
}
