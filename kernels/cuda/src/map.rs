//! `map`: elementwise code over strided operands.

use cubecl::prelude::*;
use kernels::cuda::map::Map;

use crate::emit::pointer;
use crate::operands::{declare, run_code, starts};
use crate::position::{coordinates, position, thread_index};
use crate::slot::{Slot, copy_run, store_run};

/// Declares the pointers and the body; returns how many pointers there are.
pub(crate) fn define(map: &Map, builder: &mut KernelBuilder) -> usize {
    let mut result = pointer(builder, map.result.dtype.size());
    let slots = declare(map.code.memory(), builder);
    body::expand(&builder.scope, &mut result, &slots, map.clone());
    1 + map.code.memory().count()
}

#[cube]
fn body(result: &mut Slot, slots: &Sequence<Slot>, #[comptime] map: Map) {
    let vector = comptime!(map.vector as usize);
    let threads = comptime!(map.threads() as usize);
    let thread = thread_index(comptime!(map.block()[0] as usize));
    if thread < threads {
        let at = coordinates(thread * vector, comptime!(map.dims.clone()));
        let index = at[comptime!(map.dims.len() - 1)];
        let to = position(&at, comptime!(map.result.strides.clone()));
        let from = starts(&at, comptime!(map.code.clone()));
        if comptime!(map.keeps_bits()) {
            let stride =
                comptime!(map.code.memory().next().map_or(0, kernels::cuda::Access::inner_stride));
            let start = *from.index(0usize) + index * stride;
            let times = comptime!(if stride == 0 { vector } else { 1 });
            let n = comptime!(vector / times);
            #[unroll]
            for i in 0..times {
                copy_run(result, to + i, slots.index(0usize), start, n);
            }
        } else {
            let nothing = Array::<f32>::new(1usize);
            let run = run_code(slots, &from, &nothing, index, comptime!(map.code.clone()), vector);
            store_run(result, to, &run, comptime!(map.result.dtype), vector);
        }
    }
}
