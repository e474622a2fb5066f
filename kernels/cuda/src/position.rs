//! From a number in loop order to positions.

use cubecl::prelude::*;

/// Number of the thread in a grid along x of blocks of `block` threads along x.
#[cube]
pub(crate) fn thread_index(#[comptime] block: usize) -> usize {
    CUBE_POS_X as usize * block + UNIT_POS as usize
}

/// The coordinates of element `index` of the loops over `dims`, outermost first.
#[cube]
pub(crate) fn coordinates(index: usize, #[comptime] dims: Vec<u32>) -> Array<usize> {
    let n = comptime!(dims.len());
    let mut at = Array::<usize>::new(n);
    let mut rest = index;
    #[unroll]
    for i in 0..n {
        let axis = comptime!(n - 1 - i);
        let dim = comptime!(dims[axis] as usize);
        if comptime!(axis == 0) {
            at[axis] = rest;
        } else {
            at[axis] = rest % dim;
            rest /= dim;
        }
    }
    at
}

/// Where the element at `coordinates` lies, by strides.
#[cube]
pub(crate) fn position(coordinates: &Array<usize>, #[comptime] strides: Vec<u32>) -> usize {
    let mut at = 0usize;
    #[unroll]
    for axis in 0..comptime!(strides.len()) {
        let stride = comptime!(strides[axis] as usize);
        if comptime!(stride != 0) {
            at += coordinates[axis] * stride;
        }
    }
    at
}
