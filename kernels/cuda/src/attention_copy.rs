//! Rows of queries, keys and values on their way to shared memory, in pieces of 16 bytes.

use cubecl::prelude::*;
use kernels::cuda::Access;

use crate::attention_operands::{row_address, row_stride};
use crate::ptx::{copy_16, copy_16_of};
use crate::slot::Slot;

/// Bytes of an element.
pub(crate) const SIZE: u32 = 2;
/// Bytes of a piece.
pub(crate) const CHUNK_BYTES: u32 = 16;
/// Its elements.
pub(crate) const CHUNK: u32 = CHUNK_BYTES / SIZE;

/// How the threads of a group copy rows.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Rows {
    /// Threads.
    pub(crate) group: u32,
    /// Pieces of a row.
    pub(crate) chunks: u32,
    /// Rows at a time.
    pub(crate) rows: u32,
    /// Rows that there are.
    pub(crate) n: u32,
    /// Strides of pairs, then of rows.
    pub(crate) access: Access,
}

impl Rows {
    /// Bytes from one row to the next in shared memory: an odd number of pieces, so that 8 rows meet
    /// all banks.
    pub(crate) fn row_bytes(&self) -> u32 {
        row_bytes(self.chunks)
    }
}

/// Bytes from one row of `chunks` pieces to the next in shared memory.
pub(crate) fn row_bytes(chunks: u32) -> u32 {
    (chunks | 1) * CHUNK_BYTES
}

/// What one thread copies.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Piece {
    /// Its first row; further ones follow evenly.
    row: usize,
    /// Where that row's piece is, of the tile that is copied next.
    from: u64,
    /// Where it goes, from the tile's start.
    to: u32,
}

/// The piece of thread `member` of the group, of the tile that begins with row `first`.
#[cube]
pub(crate) fn piece(
    member: usize,
    slot: &Slot,
    at: &Array<usize>,
    first: usize,
    #[comptime] rows: Rows,
) -> Piece {
    let chunks = comptime!(rows.chunks as usize);
    let row = member / chunks;
    let offset = (member % chunks) as u32 * CHUNK_BYTES;
    let from = row_address(slot, at, first + row, comptime!(rows.access.clone())) + offset as u64;
    Piece { row, from, to: row as u32 * comptime!(rows.row_bytes()) + offset }
}

/// Goes on to the next tile.
#[cube]
pub(crate) fn advance(piece: &mut Piece, #[comptime] rows: Rows) {
    piece.from += comptime!((rows.rows * row_stride(&rows.access) * SIZE) as u64);
}

/// Starts the copy of a tile, which begins with row `first`, to `to`. Rows beyond the last become
/// zeros.
#[cube]
pub(crate) fn copy_tile(
    piece: &Piece,
    to: u32,
    #[comptime] to_offset: u32,
    first: usize,
    #[comptime] rows: Rows,
) {
    let at_once = comptime!(rows.group / rows.chunks);
    let is_ragged = comptime!(!rows.n.is_multiple_of(rows.rows));
    let has_idle = comptime!(!rows.group.is_multiple_of(rows.chunks));
    let to = to + piece.to;
    #[unroll]
    for pass in 0..comptime!(rows.rows.div_ceil(at_once)) {
        let to_offset = comptime!(to_offset + pass * at_once * rows.row_bytes());
        let from_offset = comptime!(pass * at_once * row_stride(&rows.access) * SIZE);
        let row = piece.row + comptime!((pass * at_once) as usize);
        let is_last = comptime!((pass + 1) * at_once > rows.rows);
        // A thread beyond the last whole row of a pass has none, nor one beyond the tile.
        let limit = comptime!(rows.rows.min((pass + 1) * at_once) as usize);
        let n = comptime!(rows.n as usize);
        if comptime!(has_idle || is_last) {
            if row < limit {
                copy_chunk(to, to_offset, piece.from, from_offset, first + row < n, is_ragged);
            }
        } else {
            copy_chunk(to, to_offset, piece.from, from_offset, first + row < n, is_ragged);
        }
    }
}

#[cube]
fn copy_chunk(
    to: u32,
    #[comptime] to_offset: u32,
    from: u64,
    #[comptime] from_offset: u32,
    is_row: bool,
    #[comptime] is_ragged: bool,
) {
    if comptime!(is_ragged) {
        copy_16_of(to, to_offset, from, from_offset, select(is_row, CHUNK_BYTES, 0u32));
    } else {
        copy_16(to, to_offset, from, from_offset);
    }
}
