//! Products of f32, exactly: each thread holds a square of sums, and reads its factors from shared
//! memory, where depth is the slow axis.

use cubecl::prelude::*;
use kernels::cuda::Access;
use kernels::cuda::gemm::{Gemm, Left, SCALAR_DEPTH, SCALAR_RUN, SCALAR_TILE, Windows};

use crate::gemm::{finish, first_of_tile};
use crate::gemm_windows::{seen_element, stand};
use crate::position::{coordinates, position};
use crate::slot::{Slot, load};

/// Threads along a side of the block.
const THREADS: u32 = SCALAR_TILE / SCALAR_RUN;
/// Elements of one step of one factor.
const ELEMENTS: u32 = SCALAR_TILE * SCALAR_DEPTH;

/// Sums of a block's tile, finished.
#[cube]
pub(crate) fn scalar(
    left: &Slot,
    right: &Slot,
    result: &mut Slot,
    slots: &Sequence<Slot>,
    #[comptime] gemm: Gemm,
) {
    let run = comptime!(SCALAR_RUN as usize);
    let mut rows = Shared::<[f32]>::new_slice(comptime!(ELEMENTS as usize));
    let mut columns = Shared::<[f32]>::new_slice(comptime!(ELEMENTS as usize));
    let (first_row, first_column) =
        first_of_tile(comptime!(gemm.clone()), comptime!(SCALAR_TILE), comptime!(SCALAR_TILE));
    let (y, x) = (UNIT_POS / THREADS * SCALAR_RUN, UNIT_POS % THREADS * SCALAR_RUN);
    let (left_access, windows) = comptime!(match &gemm.left {
        Left::Matrix { access, copies: _ } => (access.clone(), None),
        Left::Windows(windows) => (windows.access.clone(), Some(windows.clone())),
    });
    let mut sums = Array::<f32>::new(comptime!(run * run));
    #[unroll]
    for i in 0..comptime!(run * run) {
        sums[i] = 0.0;
    }
    for step in 0..comptime!(gemm.depth.div_ceil(SCALAR_DEPTH)) {
        let k = step * SCALAR_DEPTH;
        sync_cube();
        fill(
            left,
            &mut rows,
            first_row,
            k,
            comptime!(left_access.clone()),
            comptime!(windows.clone()),
            comptime!(gemm.rows.clone()),
            comptime!(gemm.clone()),
        );
        fill(
            right,
            &mut columns,
            first_column,
            k,
            comptime!(gemm.right.clone()),
            comptime!(None::<Windows>),
            comptime!(vec![gemm.columns]),
            comptime!(gemm.clone()),
        );
        sync_cube();
        #[unroll]
        for depth in 0..SCALAR_DEPTH {
            let at = comptime!((depth * SCALAR_TILE) as usize);
            #[unroll]
            for i in 0..run {
                let a = rows[at + y as usize + i];
                #[unroll]
                for j in 0..run {
                    let b = columns[at + x as usize + j];
                    let sum = comptime!(i * run + j);
                    sums[sum] = fma(a, b, sums[sum]);
                }
            }
        }
    }
    #[unroll]
    for i in 0..run {
        let row = first_row + y + comptime!(i as u32);
        if row < comptime!(gemm.n_rows()) {
            let mut of_row = Array::<f32>::new(run);
            #[unroll]
            for j in 0..run {
                of_row[j] = sums[comptime!(i * run + j)];
            }
            finish(
                &of_row,
                row,
                first_column + x,
                result,
                slots,
                SCALAR_RUN,
                comptime!(gemm.clone()),
            );
        }
    }
}

/// Copies the step at depth `k` of the lines from `first` on; zeros beyond the last.
#[cube]
fn fill(
    slot: &Slot,
    to: &mut Shared<[f32]>,
    first: u32,
    k: u32,
    #[comptime] access: Access,
    #[comptime] windows: Option<Windows>,
    #[comptime] dims: Vec<u32>,
    #[comptime] gemm: Gemm,
) {
    let n_batch = comptime!(gemm.batch.len());
    let batch = coordinates(CUBE_POS_Z as usize, comptime!(gemm.batch.clone()));
    let of_batch = position(&batch, comptime!(access.strides[..n_batch].to_vec()));
    let stride = comptime!(access.strides.last().copied().unwrap_or(0) as usize);
    #[unroll]
    for i in 0..comptime!(ELEMENTS / (THREADS * THREADS)) {
        let index = UNIT_POS + comptime!(i * THREADS * THREADS);
        // Neighboring threads read along whatever is contiguous.
        let (line, depth) = if comptime!(stride == 1) {
            (index / SCALAR_DEPTH, index % SCALAR_DEPTH)
        } else {
            (index % SCALAR_TILE, index / SCALAR_TILE)
        };
        let number = first + line;
        let mut element = 0.0f32;
        if number < comptime!(dims.iter().product::<u32>()) && k + depth < comptime!(gemm.depth) {
            if comptime!(windows.is_some()) {
                let windows = comptime!(windows.clone().expect("it is some"));
                let stand = stand(number, comptime!(windows.clone()));
                element = seen_element(slot, &stand, k + depth, windows);
            } else {
                let at = coordinates(number as usize, comptime!(dims.clone()));
                let strides = comptime!(access.strides[n_batch..n_batch + dims.len()].to_vec());
                let from = of_batch + position(&at, strides) + (k + depth) as usize * stride;
                element = load(slot, from, comptime!(access.dtype));
            }
        }
        to[(depth * SCALAR_TILE + line) as usize] = element;
    }
}
