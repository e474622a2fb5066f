//! `transpose`: copies by tiles in shared memory.

use cubecl::prelude::*;
use kernels::cuda::transpose::{TILE, Transpose};

use crate::emit::pointer;
use crate::operands::outer_strides;
use crate::position::{coordinates, position};
use crate::slot::{Slot, load_bits, store_bits};

/// Declares the pointers and the body; returns how many pointers there are.
pub(crate) fn define(transpose: &Transpose, builder: &mut KernelBuilder) -> usize {
    let mut result = pointer(builder, transpose.result.dtype.size());
    let source = pointer(builder, transpose.source.dtype.size());
    body::expand(&builder.scope, &mut result, &source, transpose.clone());
    2
}

#[cube]
fn body(result: &mut Slot, source: &Slot, #[comptime] transpose: Transpose) {
    let edge = comptime!(TILE as usize);
    let warps = comptime!((transpose.block()[0] / TILE) as usize);
    let rows = comptime!(transpose.rows as usize);
    let columns = comptime!(transpose.columns as usize);
    let tiles = comptime!(transpose.tiles()[1] as usize);
    let all = comptime!((transpose.tiles()[0] * transpose.tiles()[1]) as usize);
    let block = CUBE_POS_X as usize;
    let lane = UNIT_POS as usize % edge;
    let warp = UNIT_POS as usize / edge;
    let at = coordinates(block / all, comptime!(transpose.outer.clone()));
    let first_row = block % all / tiles * edge;
    let first_column = block % all % tiles * edge;
    let from = position(&at, comptime!(outer_strides(&transpose.source)));
    let to = position(&at, comptime!(outer_strides(&transpose.result)));

    // A column more than the edge, so that neither side meets a bank twice.
    let pitch = comptime!(edge + 1);
    let mut tile = Shared::<[u32]>::new_slice(comptime!(edge * pitch));
    #[unroll]
    for turn in 0..comptime!(edge / warps) {
        let line = turn * warps + warp;
        let (row, column) = (first_row + lane, first_column + line);
        if row < rows && column < columns {
            let stride = comptime!(transpose.source.inner_stride());
            tile[line * pitch + lane] = load_bits(source, from + row + column * stride);
        }
    }
    sync_cube();
    #[unroll]
    for turn in 0..comptime!(edge / warps) {
        let line = turn * warps + warp;
        let (row, column) = (first_row + line, first_column + lane);
        if row < rows && column < columns {
            let stride = comptime!(transpose.result.inner_stride());
            store_bits(result, to + row * stride + column, tile[lane * pitch + line]);
        }
    }
}
