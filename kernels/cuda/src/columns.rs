//! `columns`: sums and maxima over strided terms.

use cubecl::prelude::*;
use kernels::cuda::columns::Columns;
use kernels::cuda::rows::RowOp;

use crate::emit::pointer;
use crate::operands::{declare, run_code, starts};
use crate::position::{coordinates, position, thread_index};
use crate::ptx::max;
use crate::slot::{Slot, store_run};

/// Declares the pointers and the body; returns how many pointers there are.
pub(crate) fn define(columns: &Columns, builder: &mut KernelBuilder) -> usize {
    let mut result = pointer(builder, columns.result.dtype.size());
    let prologue = declare(columns.prologue.memory(), builder);
    let epilogue = declare(columns.epilogue.memory(), builder);
    body::expand(&builder.scope, &mut result, &prologue, &epilogue, columns.clone());
    1 + columns.prologue.memory().count() + columns.epilogue.memory().count()
}

#[cube]
fn body(
    result: &mut Slot,
    prologue: &Sequence<Slot>,
    epilogue: &Sequence<Slot>,
    #[comptime] columns: Columns,
) {
    let vector = comptime!(columns.vector as usize);
    let thread = thread_index(comptime!(columns.block()[0] as usize));
    if thread < comptime!(columns.threads() as usize) {
        let at = coordinates(thread * vector, comptime!(columns.kept.clone()));
        let index = at[comptime!(columns.kept.len() - 1)];
        let first = starts(&at, comptime!(columns.prologue.clone()));
        let is_max = comptime!(columns.op == RowOp::Max);
        let mut folded = Array::<f32>::new(vector);
        let mut lost = Array::<f32>::new(vector);
        if is_max {
            #[unroll]
            for j in 0..vector {
                folded[j] = f32::new(comptime!(f32::NEG_INFINITY));
            }
        }
        for term in 0..comptime!(columns.terms() as usize) {
            let within = coordinates(term, comptime!(columns.reduced.clone()));
            let mut from = Sequence::<usize>::new();
            #[unroll]
            for i in 0..comptime!(columns.steps.len()) {
                from.push(*first.index(i) + position(&within, comptime!(columns.steps[i].clone())));
            }
            let nothing = Array::<f32>::new(1usize);
            let code = comptime!(columns.prologue.clone());
            let x = run_code(prologue, &from, &nothing, index, code, vector);
            #[unroll]
            for j in 0..vector {
                if is_max {
                    folded[j] = max(folded[j], x[j]);
                } else {
                    let x = x[j] - lost[j];
                    let sum = folded[j] + x;
                    lost[j] = (sum - folded[j]) - x;
                    folded[j] = sum;
                }
            }
        }
        let to = position(&at, comptime!(columns.result.strides.clone()));
        let aside = starts(&at, comptime!(columns.epilogue.clone()));
        let code = comptime!(columns.epilogue.clone());
        let y = run_code(epilogue, &aside, &folded, index, code, vector);
        store_run(result, to, &y, comptime!(columns.result.dtype), vector);
    }
}
