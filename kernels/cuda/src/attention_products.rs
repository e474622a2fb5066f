//! The two products of attention whose left operands are in a warp's registers; the right ones come
//! from shared memory as matrices of 8x8.

use cubecl::prelude::*;

use crate::attention_copy::CHUNK_BYTES;
use crate::ptx::{
    Sums, Words4, load_matrices, load_matrices_transposed, load_matrix_pair,
    load_matrix_pair_transposed, mma_8, mma_16,
};

/// Sizes of both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Product {
    /// Times 16 queries.
    pub(crate) heights: usize,
    /// Times 8 keys, even.
    pub(crate) tiles: usize,
    /// Times 8 elements of a head.
    pub(crate) chunks: usize,
    /// From one key or value to the next.
    pub(crate) row_bytes: u32,
    /// Their type, as instructions name it.
    pub(crate) element: &'static str,
}

/// `scores += queries keys^T`; lanes name rows of keys: `k_lane` for two tiles of 8 keys and both halves
/// of 16 dims, `k_tail` for four tiles of keys and the head's last 8 dims, where it is no multiple of 16.
#[cube]
pub(crate) fn score(
    scores: &mut Array<Sums>,
    queries: &Array<Words4>,
    k_lane: u32,
    k_tail: u32,
    #[comptime] product: Product,
) {
    let (heights, tiles, chunks) = comptime!((product.heights, product.tiles, product.chunks));
    let (row_bytes, element) = comptime!((product.row_bytes, product.element));
    let steps = comptime!(chunks / 2);
    let has_tail = comptime!(chunks % 2 == 1);
    let all_steps = comptime!(chunks.div_ceil(2));
    #[unroll]
    for step in 0..steps {
        #[unroll]
        for pair in 0..comptime!(tiles / 2) {
            let offset = comptime!(pair as u32 * 16 * row_bytes + step as u32 * 2 * CHUNK_BYTES);
            let b = load_matrices(k_lane, offset);
            #[unroll]
            for height in 0..heights {
                let a = queries[height * all_steps + step];
                #[unroll]
                for i in 0..2usize {
                    let to = comptime!(height * tiles + 2 * pair + i);
                    scores[to] =
                        mma_16(a, b.extract(2 * i), b.extract(2 * i + 1), scores[to], element);
                }
            }
        }
    }
    if has_tail {
        // Four tiles of keys at once, or two if there are no more.
        let at_once = comptime!(if tiles % 4 == 0 { 4 } else { 2usize });
        #[unroll]
        for some in 0..comptime!(tiles / at_once) {
            let offset =
                comptime!((some * at_once) as u32 * 8 * row_bytes + 2 * steps as u32 * CHUNK_BYTES);
            let mut b = Sequence::<u32>::new();
            if comptime!(at_once == 4) {
                let words = load_matrices(k_tail, offset);
                #[unroll]
                for i in 0..4usize {
                    b.push(words.extract(i));
                }
            } else {
                let words = load_matrix_pair(k_tail, offset);
                b.push(words.extract(0usize));
                b.push(words.extract(1usize));
            }
            #[unroll]
            for height in 0..heights {
                let a = queries[height * all_steps + steps];
                #[unroll]
                for i in 0..at_once {
                    let to = comptime!(height * tiles + some * at_once + i);
                    let (a0, a1) = (a.extract(0usize), a.extract(1usize));
                    scores[to] = mma_8(a0, a1, *b.index(i), scores[to], element);
                }
            }
        }
    }
}

/// `outputs += weights values`; lanes name rows of values: both halves of 16 keys, two tiles of 8 dims.
#[cube]
pub(crate) fn accumulate(
    outputs: &mut Array<Sums>,
    weights: &Array<Words4>,
    v_lane: u32,
    #[comptime] product: Product,
) {
    let (heights, tiles, chunks) = comptime!((product.heights, product.tiles, product.chunks));
    let (row_bytes, element) = comptime!((product.row_bytes, product.element));
    let steps = comptime!(tiles / 2);
    #[unroll]
    for step in 0..steps {
        #[unroll]
        for pair in 0..comptime!(chunks.div_ceil(2)) {
            let offset = comptime!(step as u32 * 16 * row_bytes + pair as u32 * 2 * CHUNK_BYTES);
            let mut b = Sequence::<u32>::new();
            let n = comptime!(2.min(chunks - 2 * pair));
            if comptime!(n == 2) {
                let words = load_matrices_transposed(v_lane, offset);
                #[unroll]
                for i in 0..4usize {
                    b.push(words.extract(i));
                }
            } else {
                let words = load_matrix_pair_transposed(v_lane, offset);
                b.push(words.extract(0usize));
                b.push(words.extract(1usize));
            }
            #[unroll]
            for height in 0..heights {
                let a = weights[height * steps + step];
                #[unroll]
                for i in 0..n {
                    let to = comptime!(height * chunks + 2 * pair + i);
                    let (b0, b1) = (*b.index(2 * i), *b.index(2 * i + 1));
                    outputs[to] = mma_16(a, b0, b1, outputs[to], element);
                }
            }
        }
    }
}
