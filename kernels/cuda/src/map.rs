//! `map`: elementwise code over strided operands.

use cubecl::prelude::*;
use kernels::cuda::map::Map;

use crate::emit::pointer;
use crate::evaluate::evaluate;
use crate::position::{coordinates, position};
use crate::slot::{Slot, load, load_run, store_run};

/// Declares the pointers and the body; returns how many pointers there are.
pub(crate) fn define(map: &Map, builder: &mut KernelBuilder) -> usize {
    let mut result = pointer(builder, map.result.dtype.size());
    let mut slots = Sequence::__expand_new(&builder.scope);
    for slot in &map.slots {
        let slot = pointer(builder, slot.dtype.size());
        slots.__expand_push_method(&builder.scope, slot);
    }
    body::expand(&builder.scope, &mut result, &slots, map.clone());
    1 + map.slots.len()
}

#[cube]
fn body(result: &mut Slot, slots: &Sequence<Slot>, #[comptime] map: Map) {
    let vector = comptime!(map.vector as usize);
    let threads = comptime!(map.threads() as usize);
    if ABSOLUTE_POS < threads {
        let at = coordinates(ABSOLUTE_POS * vector, comptime!(map.dims.clone()));
        let to = position(&at, comptime!(map.result.strides.clone()));
        let n = comptime!(map.slots.len());
        let mut values = Sequence::<Array<f32>>::new();
        #[unroll]
        for i in 0..n {
            let access = comptime!(map.slots[i].clone());
            let from = position(&at, comptime!(access.strides.clone()));
            let is_run = comptime!(access.strides.last() == Some(&1u32));
            if is_run {
                values.push(load_run(slots.index(i), from, comptime!(access.dtype), vector));
            } else {
                let x = load(slots.index(i), from, comptime!(access.dtype));
                let mut run = Array::<f32>::new(vector);
                #[unroll]
                for j in 0..vector {
                    run[j] = x;
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
            run[j] = evaluate(&elements, comptime!(map.program.clone()));
        }
        store_run(result, to, &run, comptime!(map.result.dtype), vector);
    }
}
