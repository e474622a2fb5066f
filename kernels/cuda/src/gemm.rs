//! Products and convolutions on tensor cores, and what all their methods share: which tile a block
//! computes, and where finished sums go.
//!
//! Steps along the depth are copied to shared memory asynchronously, some ahead of the one that is
//! multiplied. A warp takes 32 columns at a time in an order of its own: column `8 q + 2 j + e` is
//! column `2 q + e` of the hardware's product `j`, so that a lane ends up with 8 neighbors of a row,
//! and the epilogue reads and writes 16 bytes at once without a way through shared memory.

use cubecl::prelude::*;
use kernels::cuda::gemm::{Gemm, Method, Tile};

use crate::gemm_few::few;
use crate::gemm_fill::{Side, element, fill, lines, swizzle_left, swizzle_right};
use crate::gemm_group::group;
use crate::gemm_scalar::scalar;
use crate::operands::{declare, outer_strides, run_code, starts};
use crate::position::{coordinates, position};
use crate::ptx::{Sums, Words4, commit_copies, load_matrices, mma_16, shared_address, wait_copies};
use crate::slot::{Slot, SlotExpand, store_run};

/// Rows of blocks that take turns along the columns, so that what they read stays in the L2 cache.
const GROUP: u32 = 8;

/// Declares the pointers and the body; returns how many pointers there are.
pub(crate) fn define(gemm: &Gemm, builder: &mut KernelBuilder) -> usize {
    let left = SlotExpand::declare(builder, gemm.left.dtype().size());
    let right = SlotExpand::declare(builder, gemm.right.dtype.size());
    let mut result = SlotExpand::declare(builder, gemm.result.dtype.size());
    let slots = declare(gemm.epilogue.memory(), builder);
    match gemm.method {
        Method::Tensor(tile) => {
            tensor::expand(&builder.scope, &left, &right, &mut result, &slots, gemm.clone(), tile);
        }
        Method::Group(tile) => {
            let (left, right, gemm) = (&left, &right, gemm.clone());
            match tile.columns {
                256 => group::expand::<Const<128>>(
                    &builder.scope,
                    left,
                    right,
                    &mut result,
                    &slots,
                    gemm,
                    tile,
                ),
                _ => group::expand::<Const<64>>(
                    &builder.scope,
                    left,
                    right,
                    &mut result,
                    &slots,
                    gemm,
                    tile,
                ),
            }
        }
        Method::Scalar => {
            scalar::expand(&builder.scope, &left, &right, &mut result, &slots, gemm.clone());
        }
        Method::Few => {
            few::expand(&builder.scope, &left, &right, &mut result, &slots, gemm.clone());
        }
    }
    3 + gemm.epilogue.memory().count()
}

/// The first row and column of this block's tile: groups of rows of tiles, in them column by column.
#[cube]
pub(crate) fn first_of_tile(
    #[comptime] gemm: Gemm,
    #[comptime] rows: u32,
    #[comptime] columns: u32,
) -> (u32, u32) {
    let n_row_tiles = comptime!(gemm.n_rows().div_ceil(rows));
    let n_column_tiles = comptime!(gemm.columns.div_ceil(columns));
    let index = CUBE_POS_X;
    let group = index / comptime!(GROUP * n_column_tiles);
    let within = index % comptime!(GROUP * n_column_tiles);
    let first = group * GROUP;
    let last = comptime!(n_row_tiles % GROUP);
    if comptime!(last == 0) {
        ((first + within % GROUP) * rows, within / GROUP * columns)
    } else {
        // The last group has fewer rows of tiles.
        let n = select(first + GROUP > n_row_tiles, last.runtime(), GROUP.runtime());
        ((first + within % n) * rows, within / n * columns)
    }
}

/// Coordinates of a row: those of the batch, then those that number rows.
#[cube]
pub(crate) fn row_coordinates(row: u32, #[comptime] gemm: Gemm) -> Array<usize> {
    let n_batch = comptime!(gemm.batch.len());
    let n_rows = comptime!(gemm.rows.len());
    let mut at = Array::<usize>::new(comptime!(n_batch + n_rows));
    let batch = coordinates(CUBE_POS_Z as usize, comptime!(gemm.batch.clone()));
    #[unroll]
    for i in 0..n_batch {
        at[i] = batch[i];
    }
    let rows = coordinates(row as usize, comptime!(gemm.rows.clone()));
    #[unroll]
    for i in 0..n_rows {
        at[comptime!(n_batch + i)] = rows[i];
    }
    at
}

/// Finishes `n` sums of a row from `column` on, those of them that the result has.
#[cube]
pub(crate) fn finish(
    sums: &Array<f32>,
    row: u32,
    column: u32,
    result: &mut Slot,
    slots: &Sequence<Slot>,
    #[comptime] n: u32,
    #[comptime] gemm: Gemm,
) {
    let vector = comptime!(gemm.vector.min(n) as usize);
    let at = row_coordinates(row, comptime!(gemm.clone()));
    let access = comptime!(gemm.result.clone());
    let stride = comptime!(access.strides.last().copied().unwrap_or(1) as usize);
    let to = position(&at, comptime!(outer_strides(&access)));
    let from = starts(&at, comptime!(gemm.epilogue.clone()));
    #[unroll]
    for part in 0..comptime!(n as usize / vector) {
        let first = column as usize + comptime!(part * vector);
        let mut run = Array::<f32>::new(vector);
        #[unroll]
        for i in 0..vector {
            run[i] = sums[comptime!(part * vector + i)];
        }
        if first < comptime!(gemm.columns as usize) {
            let code = comptime!(gemm.epilogue.clone());
            let run = run_code(slots, &from, &run, first, code, vector);
            store_run(result, to + first * stride, &run, comptime!(access.dtype), vector);
        }
    }
}

/// Sums of a block's tile on tensor cores, finished.
#[cube]
fn tensor(
    left: &Slot,
    right: &Slot,
    result: &mut Slot,
    slots: &Sequence<Slot>,
    #[comptime] gemm: Gemm,
    #[comptime] tile: Tile,
) {
    let words = comptime!(tile.shared_bytes() as usize / 4);
    let mut memory = Shared::<[u32]>::new_aligned_slice(words, 128usize);
    let base = shared_address(&memory);
    let (first_row, first_column) =
        first_of_tile(comptime!(gemm.clone()), comptime!(tile.rows), comptime!(tile.columns));
    let left_side = comptime!(Side::left(&gemm, tile));
    let right_side = comptime!(Side::right(&gemm, tile));
    let left_lines = lines(left, first_row, comptime!(left_side.clone()));
    let right_lines = lines(right, first_column, comptime!(right_side.clone()));

    let n_steps = comptime!(gemm.depth.div_ceil(tile.depth));
    let stages = comptime!(tile.stages);
    let stage_bytes = comptime!(tile.stage_bytes());
    let last_stage = comptime!((stages - 1) * stage_bytes);
    #[unroll]
    for stage in 0..comptime!(stages - 1) {
        if comptime!(stage < n_steps) {
            let k = comptime!(stage * tile.depth).runtime();
            let to = comptime!(stage * stage_bytes).runtime();
            fill(left, &left_lines, &mut memory, base, to, k, comptime!(left_side.clone()));
            fill(right, &right_lines, &mut memory, base, to, k, comptime!(right_side.clone()));
        }
        commit_copies();
    }

    let lane = UNIT_POS % 32;
    let warp = UNIT_POS / 32;
    let warp_row = warp % comptime!(tile.warp_rows) * comptime!(tile.rows / tile.warp_rows);
    let warp_column =
        warp / comptime!(tile.warp_rows) * comptime!(tile.columns / tile.warp_columns);
    let line_bytes = comptime!(tile.line_bytes());
    let copies = comptime!(tile.line_copies());
    // Where this lane's line of the first matrices is, in the first stage.
    let left_copy = (lane / 16) ^ swizzle_left(lane, copies);
    let left_at = base + (warp_row + lane % 16) * line_bytes + left_copy * 16;
    let right_line = lane % 8 / 2 * 8 + lane / 16 * 2 + lane % 2;
    let right_copy = (lane / 8 % 2) ^ swizzle_right(right_line, copies);
    let right_at = base
        + comptime!(tile.rows * line_bytes)
        + (warp_column + right_line) * line_bytes
        + right_copy * 16;

    let n_left = comptime!((tile.rows / tile.warp_rows / 16) as usize);
    let n_right = comptime!((tile.columns / tile.warp_columns / 8) as usize);
    let mut sums = Array::<Sums>::new(comptime!(n_left * n_right));
    #[unroll]
    for i in 0..comptime!(n_left * n_right) {
        sums[i] = Sums::new(0.0);
    }
    let mut a = Array::<Words4>::new(comptime!(2 * n_left));
    let mut b = Array::<Words4>::new(n_right);
    let n_parts = comptime!(tile.depth / 16);
    let mut read = 0u32;
    let mut write = last_stage.runtime();
    wait_copies(comptime!(stages - 2));
    sync_cube();
    load_part(left_at, right_at, &mut a, &mut b, 0u32, tile);
    for step in 0..n_steps {
        let next = step + comptime!(stages - 1);
        #[unroll]
        for part in 0..n_parts {
            if comptime!(part + 1 == n_parts) {
                // This thread's copies of the next step have landed; after the barrier, all threads'
                // have, and no thread reads the stage any more that is filled next. After the last
                // step there is none: this one's matrices are read again, for nothing.
                wait_copies(comptime!(stages - 2));
                sync_cube();
                let after = select(read == last_stage, 0, read + stage_bytes);
                read = select(step + 1 == n_steps, read, after);
            }
            // Matrices of the next part are on their way while these are multiplied.
            let coming = comptime!((part + 1) % n_parts);
            load_part(left_at + read, right_at + read, &mut a, &mut b, coming, tile);
            if comptime!(part == 0) {
                if next < n_steps {
                    let k = next * comptime!(tile.depth);
                    fill(
                        left,
                        &left_lines,
                        &mut memory,
                        base,
                        write,
                        k,
                        comptime!(left_side.clone()),
                    );
                    fill(
                        right,
                        &right_lines,
                        &mut memory,
                        base,
                        write,
                        k,
                        comptime!(right_side.clone()),
                    );
                }
                commit_copies();
                write = select(write == last_stage, 0, write + stage_bytes);
            }
            #[unroll]
            for pair in 0..comptime!(n_right / 2) {
                let b = b[comptime!(part as usize % 2 * n_right / 2 + pair)];
                #[unroll]
                for i in 0..n_left {
                    let a = a[comptime!(part as usize % 2 * n_left + i)];
                    let at = comptime!(i * n_right + 2 * pair);
                    let (b0, b1) = (b.extract(0usize), b.extract(1usize));
                    sums[at] = mma_16(a, b0, b1, sums[at], comptime!(element(gemm.product)));
                    let at = comptime!(at + 1);
                    let (b0, b1) = (b.extract(2usize), b.extract(3usize));
                    sums[at] = mma_16(a, b0, b1, sums[at], comptime!(element(gemm.product)));
                }
            }
        }
    }

    #[unroll]
    for i in 0..comptime!(2 * n_left) {
        let row = first_row + warp_row + lane / 4 + comptime!(i as u32 * 8);
        if row < comptime!(gemm.n_rows()) {
            #[unroll]
            for group in 0..comptime!(n_right / 4) {
                let mut run = Array::<f32>::new(8usize);
                #[unroll]
                for j in 0..4usize {
                    let four = sums[comptime!(i / 2 * n_right + group * 4 + j)];
                    run[comptime!(2 * j)] = four.extract(comptime!(i % 2 * 2));
                    run[comptime!(2 * j + 1)] = four.extract(comptime!(i % 2 * 2 + 1));
                }
                let column =
                    first_column + warp_column + comptime!(group as u32 * 32) + lane % 4 * 8;
                finish(&run, row, column, result, slots, 8u32, comptime!(gemm.clone()));
            }
        }
    }
}

/// Loads a warp's matrices of depth `16 part` and the next 15 of the stage where this lane's lines are
/// at `left_at` and `right_at`, to one half or the other of `a` and `b`.
#[cube]
fn load_part(
    left_at: u32,
    right_at: u32,
    a: &mut Array<Words4>,
    b: &mut Array<Words4>,
    #[comptime] part: u32,
    #[comptime] tile: Tile,
) {
    let line_bytes = comptime!(tile.line_bytes());
    let n_left = comptime!((tile.rows / tile.warp_rows / 16) as usize);
    let n_pairs = comptime!((tile.columns / tile.warp_columns / 16) as usize);
    let half = comptime!(part as usize % 2);
    // The number of a copy is in the low bits of an address: lines are aligned to their length.
    let from_left = left_at ^ comptime!(part * 32);
    let from_right = right_at ^ comptime!(part * 32);
    #[unroll]
    for i in 0..n_left {
        a[comptime!(half * n_left + i)] =
            load_matrices(from_left, comptime!(i as u32 * 16 * line_bytes));
    }
    #[unroll]
    for pair in 0..n_pairs {
        let line = comptime!(pair as u32 / 2 * 32 + pair as u32 % 2 * 4);
        b[comptime!(half * n_pairs + pair)] =
            load_matrices(from_right, comptime!(line * line_bytes));
    }
}
