//! Rows of A that lie across memory: neighbors there are the same depth of the next row, as in the gradient of
//! a weight, whose A is a cotangent `[tokens, columns]` read by columns. They are packed by whole vectors of
//! rows, which squares of a vector's length turn into rows of words; a row at a time would read a cache line
//! for each element.

use ops::DType;

use crate::isa::Tiles;
use crate::simd::digits::{DIGITS, GROUPS, Lines, Scales, WORDS_OF_UNIT};
use crate::simd::{MAX_LANES, Simd, SimdJob, TILE_WORDS, prefetch_l2};

use super::lanes::{join_halves, load_as_f32};
use super::matmul_rows::PackRows;
use super::transpose::transpose;

/// Words of rows that are added to sums at a time.
const ADDED_AT_ONCE: usize = 64;

impl PackRows<'_> {
    /// Whether the rows are such, and packed as they are.
    ///
    /// # Safety
    /// There are offsets of `n_rows` rows.
    #[inline(always)]
    pub(super) unsafe fn lie_across(&self, n_rows: usize) -> bool {
        // SAFETY: the caller's promise.
        let is_next = |row: usize| unsafe { *self.offsets.add(row) == *self.offsets + row };
        let is_plain = self.norm.is_none() && self.prologue.is_none();
        let is_plain = is_plain && (self.words.digits().is_none() || self.view.dtype == DType::F32);
        is_plain && self.view.column_stride > 1 && n_rows > 1 && (1..n_rows).all(is_next)
    }
}

/// [`PackRows::run`] of rows that lie across, in a function of its own.
pub(super) struct PackAcross<'a> {
    pub(super) rows: &'a PackRows<'a>,
    pub(super) n_rows: usize,
    /// First and one past the last word.
    pub(super) words: (usize, usize),
    pub(super) packed: *mut f32,
    pub(super) stride: usize,
}

impl SimdJob for PackAcross<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackAcross { rows, n_rows, words: (from, to), packed, stride } = self;
        if let Some(tiles) = rows.words.digits() {
            let block = rows.depth_block;
            for (index, start) in (from..to).step_by(block).enumerate() {
                let end = to.min(start + block);
                // SAFETY: the caller of `PackRows::run` promises the rows, and room for their words and scales.
                unsafe {
                    let scales = rows.scales.add(index * rows.scales_step);
                    self.pack_digits(s, tiles, (start, end), packed.add(start - from), scales);
                }
            }
            return;
        }
        let dtype = rows.view.dtype;
        let depth_bytes = rows.view.column_stride * dtype.size();
        // SAFETY: the caller of `PackRows::run` promises the rows, and room for their words.
        unsafe {
            let first = rows.a.add((rows.view.offset + *rows.offsets) * dtype.size());
            let mut added = from;
            for start in (from..to).step_by(S::LANES) {
                let end = to.min(start + S::LANES);
                let depth = (rows.words.depth(start), rows.words.depth(end));
                let coming = depth.1..depth.1 + rows.words.depth(S::LANES);
                for row in (0..n_rows).step_by(S::LANES) {
                    let n = S::LANES.min(n_rows - row);
                    // Depths are far apart: without this, each waits for memory by itself. All of a depth's rows at
                    // once would be more than is on its way at a time.
                    for depth in coming.clone() {
                        let at = depth * depth_bytes + row * dtype.size();
                        prefetch_l2(first.wrapping_add(at));
                    }
                    let to = packed.add(row * stride + start - from);
                    let at = first.add(depth.0 * depth_bytes + row * dtype.size());
                    self.pack_words(s, at, depth, n, to);
                }
                // Some at a time, as long as they are in cache.
                if end - added >= ADDED_AT_ONCE || end == to {
                    rows.add_to_sums(s, (added, end), (0, n_rows));
                    added = end;
                }
            }
        }
    }
}

impl PackAcross<'_> {
    /// Packs at most a square of words: those of depths `from..to` of `n` rows, the first at `at`.
    ///
    /// # Safety
    /// As [`PackRows::run`].
    #[inline(always)]
    unsafe fn pack_words<S: Simd>(
        &self,
        s: S,
        at: *const u8,
        (from, to): (usize, usize),
        n: usize,
        packed: *mut f32,
    ) {
        let (step, dtype) = (self.rows.words.depths(), self.rows.view.dtype);
        let depth_bytes = self.rows.view.column_stride * dtype.size();
        let n_words = (to - from) / step;
        let is_square = n_words == S::LANES && n == S::LANES;
        // Depth by depth.
        let mut square = [0f32; MAX_LANES * MAX_LANES];
        // SAFETY: the caller's promise.
        unsafe {
            if is_square && step == 1 && dtype == DType::F32 {
                s.transpose_square(at.cast(), self.rows.view.column_stride, packed, self.stride);
                return;
            }
            for word in 0..n_words {
                let at = at.add(word * step * depth_bytes);
                let low = load_as_f32(s, dtype, at, n);
                let words = if step == 1 {
                    low
                } else if from + word * step + 1 < self.rows.depth {
                    join_halves(s, low, load_as_f32(s, dtype, at.add(depth_bytes), n))
                } else {
                    s.shr::<16>(low)
                };
                s.store(square.as_mut_ptr().add(word * S::LANES), words);
            }
            let square = square.as_ptr();
            if is_square {
                s.transpose_square(square, S::LANES, packed, self.stride);
            } else {
                transpose((n_words, n), square, S::LANES, packed, self.stride);
            }
        }
    }

    /// Packs the digits of one block of words of the depth.
    ///
    /// # Safety
    /// As [`PackRows::run`].
    #[inline(always)]
    unsafe fn pack_digits<S: Simd>(
        &self,
        s: S,
        tiles: Tiles,
        (from, to): (usize, usize),
        packed: *mut f32,
        scales: *mut Scales,
    ) {
        let PackAcross { rows, n_rows, stride, .. } = *self;
        let (units, words) = ((to - from) / WORDS_OF_UNIT, (from, to));
        let from = rows.words.depth(from);
        let depth = rows.words.depth(to).min(rows.depth) - from;
        // Digits of a unit of sixteen rows.
        let mut unit_words = [[0f32; TILE_WORDS * TILE_WORDS]; DIGITS];
        // SAFETY: the caller's promise; squares of words lie within the unit's and within the rows'.
        unsafe {
            let start = rows.a.cast::<f32>().add(rows.view.offset + *rows.offsets);
            let start = start.add(from * rows.view.column_stride);
            for first in (0..n_rows).step_by(GROUPS * TILE_WORDS) {
                let count = (GROUPS * TILE_WORDS).min(n_rows - first);
                let stride_of_depth = rows.view.column_stride;
                let start = start.add(first);
                let lines = Lines { start, stride: stride_of_depth, count, depth };
                let splittings = lines.splittings(tiles);
                for (group, splitting) in splittings.iter().enumerate().take(lines.groups()) {
                    let row = first + group * TILE_WORDS;
                    let count = TILE_WORDS.min(n_rows - row);
                    for part in 0..1 + usize::from(splitting.has_low()) {
                        for unit in 0..units {
                            let to = unit_words.each_mut().map(|of| of.as_mut_ptr());
                            lines.split_unit(tiles, group, splitting, unit, part == 1, to);
                            let to = packed.add(part * rows.low + row * stride);
                            let to = to.add(unit * WORDS_OF_UNIT);
                            for (digit, square) in unit_words.iter().enumerate() {
                                let (square, to) = (square.as_ptr(), to.add(digit * TILE_WORDS));
                                if count == S::LANES {
                                    s.transpose_square(square, TILE_WORDS, to, stride);
                                } else {
                                    transpose((TILE_WORDS, count), square, TILE_WORDS, to, stride);
                                }
                            }
                        }
                    }
                    scales.add(row / TILE_WORDS).write(splitting.scales());
                }
                rows.add_to_sums(s, words, (first, first + count));
            }
        }
    }
}
