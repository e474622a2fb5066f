//! Products of a few rows: a warp for each column reads its weights once, for all rows.

use cubecl::prelude::*;
use kernels::cuda::Access;
use kernels::cuda::gemm::{FEW_ROWS, FEW_VECTOR, FEW_WARPS, Gemm, Left};

use crate::gemm::{finish, row_coordinates};
use crate::operands::{load_elements, outer_strides};
use crate::position::{coordinates, position};
use crate::ptx::from_lane_xor;
use crate::slot::Slot;

/// Sums of one column for each warp.
#[cube]
pub(crate) fn few(
    left: &Slot,
    right: &Slot,
    result: &mut Slot,
    slots: &Sequence<Slot>,
    #[comptime] gemm: Gemm,
) {
    let lane = UNIT_POS % 32;
    let column = CUBE_POS_X * FEW_WARPS + UNIT_POS / 32;
    if column < comptime!(gemm.columns) {
        let n_rows = comptime!(gemm.n_rows() as usize);
        let (access, vector) = comptime!(shape(&gemm));
        let right_access = comptime!(gemm.right.clone());
        let n_batch = comptime!(gemm.batch.len());
        let batch = coordinates(CUBE_POS_Z as usize, comptime!(gemm.batch.clone()));
        let of_batch = position(&batch, comptime!(right_access.strides[..n_batch].to_vec()));
        let from_right =
            of_batch + column as usize * comptime!(right_access.strides[n_batch] as usize);
        let mut from_left = Sequence::<usize>::new();
        let mut sums = Array::<f32>::new(n_rows);
        #[unroll]
        for row in 0..n_rows {
            let at = row_coordinates(comptime!(row as u32).runtime(), comptime!(gemm.clone()));
            from_left.push(position(&at, comptime!(outer_strides(&access))));
            sums[row] = 0.0;
        }
        let width = comptime!(32 * vector as u32);
        for part in 0..comptime!(gemm.depth.div_ceil(width)) {
            let k = part * width + lane * comptime!(vector as u32);
            if k < comptime!(gemm.depth) {
                let weights = load_elements(
                    right,
                    from_right,
                    k as usize,
                    comptime!(right_access.clone()),
                    vector,
                );
                #[unroll]
                for row in 0..n_rows {
                    let x = load_elements(
                        left,
                        *from_left.index(row),
                        k as usize,
                        comptime!(access.clone()),
                        vector,
                    );
                    #[unroll]
                    for i in 0..vector {
                        sums[row] = fma(x[i], weights[i], sums[row]);
                    }
                }
            }
        }
        let mut mine = Array::<f32>::new(1usize);
        mine[0] = 0.0;
        #[unroll]
        for row in 0..n_rows {
            let mut sum = sums[row];
            #[unroll]
            for lanes in 0..5u32 {
                sum += from_lane_xor(sum, comptime!(16u32 >> lanes));
            }
            mine[0] = select(lane == comptime!(row as u32), sum, mine[0]);
        }
        if lane < comptime!(gemm.n_rows()) {
            finish(&mine, lane, column, result, slots, 1u32, comptime!(gemm.clone()));
        }
    }
}

/// The left factor, and how many elements along the depth are read at once.
fn shape(gemm: &Gemm) -> (Access, usize) {
    assert!(gemm.n_rows() <= FEW_ROWS, "a lane finishes each row");
    let Left::Matrix { access, copies } = &gemm.left else {
        unreachable!("convolutions are tiled")
    };
    let vector = if *copies && gemm.copies_right {
        FEW_VECTOR.min(16 / access.dtype.size() as u32)
    } else {
        1
    };
    (access.clone(), vector as usize)
}
