//! `gather`: copies of rows of a table.

use cubecl::prelude::*;
use kernels::cuda::gather::Gather;

use crate::emit::pointer;
use crate::position::{coordinates, position, thread_index};
use crate::slot::{Slot, copy_run, load_row_id, store_zeros};

/// Declares the pointers and the body; returns how many pointers there are.
pub(crate) fn define(gather: &Gather, builder: &mut KernelBuilder) -> usize {
    let mut result = pointer(builder, gather.result.dtype.size());
    let table = pointer(builder, gather.table.dtype.size());
    let ids = pointer(builder, gather.ids.dtype.size());
    body::expand(&builder.scope, &mut result, &table, &ids, gather.clone());
    3
}

#[cube]
fn body(result: &mut Slot, table: &Slot, ids: &Slot, #[comptime] gather: Gather) {
    let vector = comptime!(gather.vector as usize);
    let thread = thread_index(comptime!(gather.block()[0] as usize));
    if thread < comptime!(gather.threads() as usize) {
        let at = coordinates(thread * vector, comptime!(gather.dims.clone()));
        let to = position(&at, comptime!(gather.result.strides.clone()));
        let within = position(&at, comptime!(gather.table.strides.clone()));
        let row = load_row_id(ids, position(&at, comptime!(gather.ids.strides.clone())));
        if row < comptime!(gather.n_rows) {
            let from = row as usize * comptime!(gather.row_stride as usize) + within;
            copy_run(result, to, table, from, vector);
        } else {
            store_zeros(result, to, vector);
        }
    }
}
