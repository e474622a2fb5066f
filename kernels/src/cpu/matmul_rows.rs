//! Rows of operands: where they are, and how rows of A are packed with norm and prologue applied.
//!
//! Invariant: a row's statistics are computed from the whole row, in a fixed order, before its
//! first element is packed.

use ops::DType;

use crate::isa::Tiles;
use crate::program::{CHUNK, MAX_SLOTS, Program, SlotPtr, load_f32, store};
use crate::simd::digits::{DigitRow, Scales};
use crate::simd::{MAX_LANES, Simd, TILE_ROWS};

use super::lanes::{each, load_from, load_from_bf16, prefetch_row};
use super::matmul_across::PackAcross;
use super::reduce_columns::ColumnSums;
use super::words::Words;

/// A matrix whose rows are numbered over several dims; strides and offset count elements.
#[derive(Clone, Debug, PartialEq)]
pub struct RowView {
    /// Element type.
    pub dtype: DType,
    /// One for each dim that rows are numbered over; 0 repeats.
    pub row_strides: Vec<usize>,
    /// From one element of a row to the next; 0 repeats.
    pub column_stride: usize,
    /// Position of the first element.
    pub offset: usize,
}

impl RowView {
    /// The elements from `column` on of the row at `row_offset`.
    ///
    /// # Safety
    /// The element lies within `buffer`.
    #[inline(always)]
    pub(super) unsafe fn slot(
        &self,
        buffer: *const u8,
        row_offset: usize,
        column: usize,
    ) -> SlotPtr {
        let at = self.offset + row_offset + column * self.column_stride;
        // SAFETY: the caller's promise.
        let ptr = unsafe { buffer.add(at * self.dtype.size()) };
        SlotPtr { ptr, stride: self.column_stride.cast_signed() }
    }
}

/// Normalization of a row `x` of length K, without weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// `(x - mean) / sqrt(variance + eps)`, the variance over K.
    Layer {
        /// Added to the variance.
        eps: f32,
    },
    /// `x / sqrt(mean(x^2) + eps)`.
    Rms {
        /// Added to the mean square.
        eps: f32,
    },
}

/// Offsets in elements of consecutive rows from number `first` on, rows numbered over `dims`.
pub(super) fn row_offsets(dims: &[usize], strides: &[usize], first: usize, table: &mut [usize]) {
    // Divisions are slow: only the first row of a run along the last dim is computed.
    let (inner_dim, inner_stride) = match (dims, strides) {
        ([.., dim], [.., stride]) => (*dim, *stride),
        _ => (1, 0),
    };
    let mut at = 0;
    while at < table.len() {
        let mut rest = first + at;
        let len = (inner_dim - rest % inner_dim).min(table.len() - at);
        let mut offset = 0;
        for (&dim, &stride) in dims.iter().zip(strides).rev() {
            offset += rest % dim * stride;
            rest /= dim;
        }
        for entry in &mut table[at..at + len] {
            *entry = offset;
            offset += inner_stride;
        }
        at += len;
    }
}

/// Packs rows of A as words.
pub(super) struct PackRows<'a> {
    pub(super) a: *const u8,
    pub(super) view: &'a RowView,
    pub(super) norm: Option<Norm>,
    pub(super) prologue: Option<&'a Program>,
    pub(super) operands: &'a [RowView],
    pub(super) operand_buffers: &'a [*const u8],
    /// Row offsets of A, then of each operand, `offsets_stride` apart.
    pub(super) offsets: *const usize,
    pub(super) offsets_stride: usize,
    /// Length of a whole row.
    pub(super) depth: usize,
    /// What is packed; the prologue's result has their type.
    pub(super) words: Words,
    /// Mean and reciprocal deviation of each row, kept between calls.
    pub(super) stats: *mut [f32; 2],
    /// Words of a block of the depth, whose digits have one exponent.
    pub(super) depth_block: usize,
    /// Words from digits to low ones.
    pub(super) low: usize,
    /// Scales of the first sixteen rows in the first block of a call, those of the next rows behind them.
    pub(super) scales: *mut Scales,
    /// From those of one block to the next.
    pub(super) scales_step: usize,
    /// A row of one call in f32, where words are not single ones.
    pub(super) wide: *mut f32,
    /// At least [`PackRows::SCRATCH_LEN`] values, and what the prologue needs.
    pub(super) scratch: *mut f32,
    /// The word that the first call is from.
    pub(super) begin: usize,
    /// What rows that lie across are added to.
    pub(super) sums: Option<ColumnSums<'a>>,
    /// The first row, among all.
    pub(super) first: usize,
}

/// How many rows ahead packing asks for: each is read from the middle of a longer one, so nothing else does.
const ROWS_AHEAD: usize = 4;

impl PackRows<'_> {
    /// Least length of `scratch`.
    pub(super) const SCRATCH_LEN: usize = CHUNK;

    /// Packs words `from..to` of each row; the first call must be from `begin` on.
    ///
    /// # Safety
    /// All pointers are valid for what is read and written; `packed` for `n_rows` rows, `stride`
    /// words apart.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(
        &self,
        s: S,
        n_rows: usize,
        (from, to): (usize, usize),
        packed: *mut f32,
        stride: usize,
    ) {
        // SAFETY: there are offsets of all rows.
        if unsafe { self.lie_across(n_rows) } {
            s.outline(PackAcross { rows: self, n_rows, words: (from, to), packed, stride });
            return;
        }
        // SAFETY: the caller's promise. A row by itself, which any of those that lie across may be.
        unsafe { self.add_to_sums(s, (from, to), (0, n_rows)) };
        let is_first = from == self.begin;
        let (from, padded) = (self.words.depth(from), self.words.depth(to));
        let n = padded.min(self.depth) - from;
        let dtype = self.words.dtype();
        let digits = self.words.digits();
        let is_plain = self.norm.is_none() && self.prologue.is_none() && self.view.dtype == dtype;
        let mut slots = [SlotPtr { ptr: self.a, stride: 0 }; MAX_SLOTS];
        for row in 0..n_rows {
            // SAFETY: the caller's promise; rows are within their views.
            unsafe {
                let row_offset = *self.offsets.add(row);
                let words = packed.add(row * stride);
                let packed = if digits.is_some() { self.wide } else { words };
                // F32 is made where it is wanted, anything else rounded from `wide`.
                let wide = if dtype == DType::F32 { packed } else { self.wide };
                slots[0] = self.view.slot(self.a, row_offset, from);
                if slots[0].stride == 1 && row + ROWS_AHEAD < n_rows {
                    let coming = *self.offsets.add(row + ROWS_AHEAD);
                    let coming = self.view.slot(self.a, coming, from).ptr;
                    prefetch_row(coming, n * self.view.dtype.size());
                }
                if let Some(tiles) = digits.filter(|_| is_plain && slots[0].stride == 1) {
                    self.split(tiles, slots[0].ptr.cast(), n, words, row);
                    continue;
                }
                if let Some(norm) = self.norm {
                    if is_first {
                        let whole = self.view.slot(self.a, row_offset, 0);
                        *self.stats.add(row) = self.row_stats(s, norm, whole);
                    }
                    self.normalize(s, *self.stats.add(row), slots[0], n, wide);
                    slots[0] = SlotPtr { ptr: wide.cast_const().cast(), stride: 1 };
                }
                if let Some(prologue) = self.prologue {
                    for (index, view) in self.operands.iter().enumerate() {
                        let offset = *self.offsets.add((1 + index) * self.offsets_stride + row);
                        let buffer = self.operand_buffers[index];
                        slots[1 + index] = view.slot(buffer, offset, from);
                    }
                    prologue.run_row_in(s, n, &slots, packed.cast(), self.scratch);
                } else if self.norm.is_some() {
                    if dtype != DType::F32 {
                        store(s, dtype, wide, n, packed.cast());
                    }
                } else if is_plain && (slots[0].stride == 1 || n == 1) {
                    let bytes = n * dtype.size();
                    std::ptr::copy_nonoverlapping(slots[0].ptr, packed.cast::<u8>(), bytes);
                } else {
                    let x = load_f32(s, self.view.dtype, slots[0], n, wide);
                    if dtype != DType::F32 || x != packed.cast_const() {
                        store(s, dtype, x, n, packed.cast());
                    }
                }
                if let Some(tiles) = digits {
                    self.split(tiles, packed, n, words, row);
                    continue;
                }
                // A word that the depth ends in: B has zeros there, which NaN would not become.
                let end = packed.cast::<u8>().add(n * dtype.size());
                std::ptr::write_bytes(end, 0, (padded - from - n) * dtype.size());
            }
        }
    }

    /// Adds words `words` of rows `rows` to their sums, if these are made.
    ///
    /// # Safety
    /// The rows are those of A, and all words before have been added.
    #[inline(always)]
    pub(super) unsafe fn add_to_sums<S: Simd>(
        &self,
        s: S,
        words: (usize, usize),
        rows: (usize, usize),
    ) {
        // Only a build that trains has such sums.
        let Some(sums) = self.sums.filter(|_| cfg!(feature = "training")) else { return };
        let depth = (self.words.depth(words.0), self.words.depth(words.1).min(self.depth));
        // SAFETY: the caller's promise; a row has one task that adds to its sum.
        unsafe { sums.add(s, depth, (self.first + rows.0, self.first + rows.1)) };
    }

    /// Writes the digits of `n` elements of row `row`, block by block of the depth.
    ///
    /// # Safety
    /// `from` is readable for `n` elements, `to` writable for the words of the units that hold them.
    #[inline(always)]
    unsafe fn split(&self, tiles: Tiles, from: *const f32, n: usize, to: *mut f32, row: usize) {
        // SAFETY: the row has its elements, words and scales.
        unsafe {
            let row_words = DigitRow {
                from,
                depth: n,
                block: self.words.depth(self.depth_block),
                to,
                low: self.low,
                scales: self.scales.add(row / TILE_ROWS),
                scales_step: self.scales_step,
                line: row % TILE_ROWS,
            };
            row_words.split(tiles);
        }
    }

    /// Mean (zero for RMS) and reciprocal deviation of the row at `x`.
    ///
    /// # Safety
    /// The row has `depth` elements; `scratch` is as long as [`PackRows::SCRATCH_LEN`].
    #[inline(always)]
    unsafe fn row_stats<S: Simd>(&self, s: S, norm: Norm, x: SlotPtr) -> [f32; 2] {
        let n = self.depth as f32;
        // SAFETY: the row has `depth` elements.
        unsafe {
            match norm {
                Norm::Layer { eps } => {
                    let mean = self.row_sum(
                        s,
                        x,
                        #[inline(always)]
                        |x| x,
                    ) / n;
                    let center = s.splat(mean);
                    let squares = self.row_sum(
                        s,
                        x,
                        #[inline(always)]
                        |x| {
                            let d = s.sub(x, center);
                            s.mul(d, d)
                        },
                    );
                    [mean, 1.0 / (squares / n + eps).sqrt()]
                }
                Norm::Rms { eps } => {
                    let squares = self.row_sum(
                        s,
                        x,
                        #[inline(always)]
                        |x| s.mul(x, x),
                    );
                    [0.0, 1.0 / (squares / n + eps).sqrt()]
                }
            }
        }
    }

    /// Sum of `f` over the whole row.
    ///
    /// # Safety
    /// As [`PackRows::row_stats`].
    #[inline(always)]
    unsafe fn row_sum<S: Simd>(&self, s: S, x: SlotPtr, f: impl Fn(S::F) -> S::F) -> f32 {
        // Four chains hide the latency of the addition.
        let mut sums = [s.splat(0.0); 4];
        // SAFETY: chunks lie within the row, and within the scratch.
        unsafe {
            if self.is_bf16_row(x) {
                let load = load_from_bf16(s, x.ptr.cast());
                add_up(s, self.depth, load, f, &mut sums);
            } else {
                for start in (0..self.depth).step_by(CHUNK) {
                    let n = CHUNK.min(self.depth - start);
                    let x = self.advance(x, start);
                    let chunk = load_f32(s, self.view.dtype, x, n, self.scratch);
                    add_up(s, n, load_from(s, chunk), &f, &mut sums);
                }
            }
        }
        s.reduce_add(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
    }

    /// Whether elements from `x` on are read without a detour through the scratch.
    fn is_bf16_row(&self, x: SlotPtr) -> bool {
        self.view.dtype == DType::Bf16 && x.stride == 1
    }

    /// Writes `(x - mean) * scale` of `n` elements.
    ///
    /// # Safety
    /// `n` elements can be read from `x` on and written to `packed`.
    #[inline(always)]
    unsafe fn normalize<S: Simd>(
        &self,
        s: S,
        stats: [f32; 2],
        x: SlotPtr,
        n: usize,
        packed: *mut f32,
    ) {
        // SAFETY: chunks lie within the row, the scratch and the packed row.
        unsafe {
            if self.is_bf16_row(x) {
                center(s, stats, n, load_from_bf16(s, x.ptr.cast()), packed);
                return;
            }
            for start in (0..n).step_by(CHUNK) {
                let len = CHUNK.min(n - start);
                let x = self.advance(x, start);
                let chunk = load_f32(s, self.view.dtype, x, len, self.scratch);
                center(s, stats, len, load_from(s, chunk), packed.add(start));
            }
        }
    }

    /// The slot `n` elements further.
    ///
    /// # Safety
    /// The row has more than `n` elements from `x` on, or exactly `n`.
    #[inline(always)]
    unsafe fn advance(&self, x: SlotPtr, n: usize) -> SlotPtr {
        let step = self.view.column_stride * self.view.dtype.size();
        // SAFETY: the caller stays within the row.
        SlotPtr { ptr: unsafe { x.ptr.add(n * step) }, stride: x.stride }
    }
}

/// Adds `f` of the `n` elements that `load` gives to `sums`; `n` is a whole number of rounds, or the
/// row's end.
#[inline(always)]
fn add_up<S: Simd>(
    s: S,
    n: usize,
    load: impl Fn(usize, usize) -> S::F,
    f: impl Fn(S::F) -> S::F,
    sums: &mut [S::F; 4],
) {
    let mut i = 0;
    while i + 4 * S::LANES <= n {
        for (part, sum) in sums.iter_mut().enumerate() {
            *sum = s.add(*sum, f(load(i + part * S::LANES, S::LANES)));
        }
        i += 4 * S::LANES;
    }
    while i < n {
        let len = S::LANES.min(n - i);
        let mut lanes = [0f32; MAX_LANES];
        // SAFETY: the buffer holds MAX_LANES >= LANES >= len values. Lanes behind the end stay zero,
        // which `f` of zero need not be.
        unsafe {
            s.store_n(lanes.as_mut_ptr(), f(load(i, len)), len);
            sums[0] = s.add(sums[0], s.load(lanes.as_ptr()));
        }
        i += len;
    }
}

/// Writes `(x - mean) * scale` of the `n` elements that `load` gives.
///
/// # Safety
/// `to` is writable for `n` elements.
#[inline(always)]
unsafe fn center<S: Simd>(
    s: S,
    [mean, scale]: [f32; 2],
    n: usize,
    load: impl Fn(usize, usize) -> S::F,
    to: *mut f32,
) {
    let (mean, scale) = (s.splat(mean), s.splat(scale));
    each(
        n,
        S::LANES,
        #[inline(always)]
        |i, n| {
            let y = s.mul(s.sub(load(i, n), mean), scale);
            // SAFETY: the caller's promise.
            unsafe {
                if n == S::LANES { s.store(to.add(i), y) } else { s.store_n(to.add(i), y, n) }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_offsets_count_the_last_dim_fastest() {
        let mut table = [0; 7];
        row_offsets(&[2, 3, 2], &[100, 10, 1], 3, &mut table);
        assert_eq!(table, [11, 20, 21, 100, 101, 110, 111]);
    }

    #[test]
    fn no_dims_are_one_row() {
        let mut table = [9];
        row_offsets(&[], &[], 0, &mut table);
        assert_eq!(table, [0]);
    }
}
