//! Sums and maxima over the threads that share a row: a power of two of neighbors in a warp, or all
//! warps of a block. Every thread gets the same bits, whatever the order of warps.

use cubecl::prelude::*;
use kernels::cuda::WARP;

use crate::ptx::max;

/// How two partial results become one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Join {
    /// Their sum.
    Sum,
    /// The larger.
    Max,
}

#[cube]
fn join(x: f32, y: f32, #[comptime] how: Join) -> f32 {
    if comptime!(how == Join::Sum) { x + y } else { max(x, y) }
}

/// `x` of `threads` neighboring lanes, joined as a tree.
#[cube]
pub(crate) fn join_lanes(x: f32, #[comptime] threads: usize, #[comptime] how: Join) -> f32 {
    let mut joined = x;
    #[unroll]
    for i in 0..comptime!(threads.ilog2() as usize) {
        let distance = comptime!(1u32 << i);
        joined = join(joined, plane_shuffle_xor(joined, distance), how);
    }
    joined
}

/// `x` of the `threads` threads of a row, joined. Beyond a warp, they are the block; all of them must
/// come here.
#[cube]
pub(crate) fn join_row(x: f32, #[comptime] threads: usize, #[comptime] how: Join) -> f32 {
    let warp = comptime!(WARP as usize);
    if comptime!(threads <= warp) {
        join_lanes(x, threads, how)
    } else {
        let warps = comptime!(threads / warp);
        let mut parts = Shared::<[f32]>::new_slice(warps);
        let joined = join_lanes(x, warp, how);
        let unit = UNIT_POS as usize;
        if unit % warp == 0 {
            parts[unit / warp] = joined;
        }
        sync_cube();
        join_lanes(parts[unit % warps], warps, how)
    }
}
