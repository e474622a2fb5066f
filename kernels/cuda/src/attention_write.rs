//! Rows of the result, from the registers of a warp.

use cubecl::prelude::*;
use kernels::cuda::Access;
use ops::DType;

use crate::attention_copy::{CHUNK_BYTES, row_bytes};
use crate::attention_operands::{half_name, row_address};
use crate::ptx::{
    Sums, load_shared_words, pack_halves, store_global_float, store_global_half, store_global_pair,
    store_global_words, store_shared_word,
};
use crate::slot::Slot;

/// Where a warp's rows go.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Target {
    /// The first query.
    pub(crate) query: usize,
    /// The first element of the head.
    pub(crate) dim: usize,
    /// Shared memory of the warp alone, for all its rows.
    pub(crate) staged: u32,
    /// Number within the warp.
    pub(crate) lane: usize,
}

/// Which rows they are.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Written {
    /// Times 16 rows.
    pub(crate) heights: usize,
    /// Times 8 elements.
    pub(crate) chunks: usize,
    /// Queries that there are.
    pub(crate) n: usize,
    /// Strides of pairs, then of rows.
    pub(crate) access: Access,
    /// Whether rows are aligned to 16 bytes.
    pub(crate) in_vectors: bool,
}

/// Writes the rows.
#[cube]
pub(crate) fn write(
    target: &Target,
    result: &Slot,
    at: &Array<usize>,
    outputs: &Array<Sums>,
    #[comptime] written: Written,
) {
    if comptime!(written.in_vectors && written.access.dtype == DType::F32) {
        write_pairs(target, result, at, outputs, written);
    } else if comptime!(written.in_vectors) {
        write_staged(target, result, at, outputs, written);
    } else {
        write_elements(target, result, at, outputs, written);
    }
}

/// Where the lane's first element of a row is: query `row` of the lane's rows.
#[cube]
fn own_address(
    target: &Target,
    result: &Slot,
    at: &Array<usize>,
    query: usize,
    #[comptime] written: Written,
) -> u64 {
    let size = comptime!(written.access.dtype.size() as u32);
    let element = target.dim + target.lane % 4 * 2;
    row_address(result, at, query, comptime!(written.access.clone()))
        + (element as u32 * size) as u64
}

/// Rows of f32: what a lane has in a row is 8 bytes, and four lanes have 32 of them.
#[cube]
fn write_pairs(
    target: &Target,
    result: &Slot,
    at: &Array<usize>,
    outputs: &Array<Sums>,
    #[comptime] written: Written,
) {
    let chunks = comptime!(written.chunks);
    #[unroll]
    for row in 0..comptime!(2 * written.heights) {
        let (height, half) = comptime!((row / 2, row % 2));
        let query = target.query + target.lane / 4 + comptime!(8 * row);
        if query < comptime!(written.n) {
            let to = own_address(target, result, at, query, comptime!(written.clone()));
            #[unroll]
            for chunk in 0..chunks {
                let tile = outputs[height * chunks + chunk];
                let (low, high) = (tile.extract(2 * half), tile.extract(2 * half + 1));
                store_global_pair(to, comptime!(chunk as u32 * 32), low, high);
            }
        }
    }
}

/// Rows of half types: through shared memory, so that lanes write 16 bytes beside each other.
#[cube]
fn write_staged(
    target: &Target,
    result: &Slot,
    at: &Array<usize>,
    outputs: &Array<Sums>,
    #[comptime] written: Written,
) {
    let element = comptime!(half_name(written.access.dtype));
    let chunks = comptime!(written.chunks);
    let row_bytes = comptime!(row_bytes(chunks as u32));
    let lane = target.lane as u32;
    let own = target.staged + lane / 4 * row_bytes + lane % 4 * 4;
    #[unroll]
    for row in 0..comptime!(2 * written.heights) {
        let (height, half) = comptime!((row / 2, row % 2));
        #[unroll]
        for chunk in 0..chunks {
            let tile = outputs[height * chunks + chunk];
            let (low, high) = (tile.extract(2 * half), tile.extract(2 * half + 1));
            let offset = comptime!(row as u32 * 8 * row_bytes + chunk as u32 * CHUNK_BYTES);
            store_shared_word(own, offset, pack_halves(low, high, element));
        }
    }
    sync_plane();
    let pieces = comptime!(16 * written.heights * chunks);
    #[unroll]
    for pass in 0..comptime!(pieces.div_ceil(32)) {
        let piece = target.lane + comptime!(32 * pass);
        let (row, column) = (piece / chunks, (piece % chunks) as u32 * CHUNK_BYTES);
        let query = target.query + row;
        if query < comptime!(written.n) && piece < pieces {
            let from = target.staged + row as u32 * row_bytes + column;
            let size = comptime!(written.access.dtype.size() as u32);
            let to = row_address(result, at, query, comptime!(written.access.clone()))
                + (target.dim as u32 * size + column) as u64;
            store_global_words(to, load_shared_words(from));
        }
    }
}

/// Rows that are not aligned.
#[cube]
fn write_elements(
    target: &Target,
    result: &Slot,
    at: &Array<usize>,
    outputs: &Array<Sums>,
    #[comptime] written: Written,
) {
    let chunks = comptime!(written.chunks);
    let dtype = comptime!(written.access.dtype);
    #[unroll]
    for row in 0..comptime!(2 * written.heights) {
        let (height, half) = comptime!((row / 2, row % 2));
        let query = target.query + target.lane / 4 + comptime!(8 * row);
        if query < comptime!(written.n) {
            let to = own_address(target, result, at, query, comptime!(written.clone()));
            #[unroll]
            for i in 0..comptime!(2 * chunks) {
                let (chunk, part) = comptime!((i / 2, i % 2));
                let offset = comptime!((8 * chunk + part) as u32 * dtype.size() as u32);
                let x = outputs[height * chunks + chunk].extract(comptime!(2 * half + part));
                if comptime!(dtype == DType::F32) {
                    store_global_float(to, offset, x);
                } else {
                    let word = pack_halves(x, 0.0f32, comptime!(half_name(dtype)));
                    store_global_half(to, offset, word);
                }
            }
        }
    }
}
