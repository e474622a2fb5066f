//! Products and convolutions on the tensor cores of `sm_90a`, which four warps feed together straight
//! from shared memory (`wgmma`): twice what single warps can feed them.
//!
//! A group of four warps sums 64 rows and all columns of the tile in its registers. Lines lie in shared
//! memory as a group reads them: 128 bytes, copies of 16 swizzled over 8 lines. Columns are in an order
//! of their own in each run of 32, as in [`crate::gemm`], so that a lane ends up with 8 neighbors of a
//! row. Two blocks share a multiprocessor: while one waits for its copies, or finishes, the other
//! multiplies.

use cubecl::prelude::*;
use kernels::cuda::gemm::{Gemm, Tile};

use crate::gemm::{finish, first_of_tile};
use crate::gemm_fill::{Side, element, fill, lines};
use crate::ptx::{
    commit_copies, fence_copies, group_mma, matrix_descriptor, shared_address, wait_copies,
};
use crate::slot::Slot;

/// Rows of a group.
const GROUP_ROWS: u32 = 64;

/// Sums of a block's tile, finished; `N` is half the tile's columns: what a lane has of them.
#[cube]
pub(crate) fn group<N: Size>(
    left: &Slot,
    right: &Slot,
    result: &mut Slot,
    slots: &Sequence<Slot>,
    #[comptime] gemm: Gemm,
    #[comptime] tile: Tile,
) {
    let words = comptime!(tile.shared_bytes() as usize / 4);
    let mut memory = Shared::<[u32]>::new_aligned_slice(words, 1024usize);
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

    let line_bytes = comptime!(tile.line_bytes());
    let group_row = UNIT_POS / 128 * GROUP_ROWS;
    let left_at = matrix_descriptor(base + group_row * line_bytes);
    let right_at = matrix_descriptor(base + comptime!(tile.rows * line_bytes));
    let mut sums = Vector::<f32, N>::new(0.0f32);
    let mut read = 0u32;
    let mut write = last_stage.runtime();
    for step in 0..n_steps {
        // This thread's copies of the step have landed; after the barrier, all threads' have, and no
        // group reads the stage any more that is filled next.
        wait_copies(comptime!(stages - 2));
        fence_copies();
        sync_cube();
        let next = step + comptime!(stages - 1);
        if next < n_steps {
            let k = next * comptime!(tile.depth);
            fill(left, &left_lines, &mut memory, base, write, k, comptime!(left_side.clone()));
            fill(right, &right_lines, &mut memory, base, write, k, comptime!(right_side.clone()));
        }
        commit_copies();
        let stage = u64::cast_from(read / 16);
        sums = group_mma::<N>(
            sums,
            left_at + stage,
            right_at + stage,
            comptime!(tile.columns),
            comptime!(tile.depth / 16),
            comptime!(element(gemm.product)),
        );
        read = select(read == last_stage, 0, read + stage_bytes);
        write = select(write == last_stage, 0, write + stage_bytes);
    }

    let lane = UNIT_POS % 32;
    let warp = UNIT_POS / 32;
    #[unroll]
    for half in 0..2usize {
        let row = first_row + warp * 16 + lane / 4 + comptime!(half as u32 * 8);
        if row < comptime!(gemm.n_rows()) {
            #[unroll]
            for run_index in 0..comptime!(tile.columns / 32) {
                let mut run = Array::<f32>::new(8usize);
                #[unroll]
                for i in 0..8usize {
                    let at = comptime!(run_index as usize * 16 + i / 2 * 4 + half * 2 + i % 2);
                    run[i] = sums.extract(at);
                }
                let column = first_column + comptime!(run_index * 32) + lane % 4 * 8;
                finish(&run, row, column, result, slots, 8u32, comptime!(gemm.clone()));
            }
        }
    }
}
