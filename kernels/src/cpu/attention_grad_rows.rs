//! How the rows of a (batch, head) pair become words on their way into the gradients of attention, and how
//! their gradients become rows of the result.
//!
//! Keys and values are packed once per pair, queries, results and cotangents once per block. What is missing to
//! a whole word is zero.

use std::ops::Range;

use ops::DType;

use crate::attention_site::Side;
use crate::head_rows::HeadRows;
use crate::program::store;
use crate::simd::{Simd, TILE_WORDS};

use super::attention_grad::AttentionGrad;
use super::attention_grad_area::Area;
use super::attention_pack::turn_across;
use super::attention_softmax::Packed;
use super::lanes::{copy, load_from, load_from_bf16, prefetch_row};
use super::shared::Shared;
use super::transpose::transpose_in;

// Positions in [`AttentionGrad::rows`].
pub(super) const ROWS_Q: usize = 0;
pub(super) const ROWS_K: usize = 1;
pub(super) const ROWS_V: usize = 2;
pub(super) const ROWS_OUT: usize = 3;
pub(super) const ROWS_GRAD: usize = 4;

/// One head of one batch entry.
pub(super) struct Pair<'a, A> {
    pub(super) kernel: &'a AttentionGrad,
    pub(super) arithmetic: A,
    pub(super) shared: Shared<'a>,
    pub(super) area: Area,
    /// First element of the rows of each operand.
    pub(super) starts: [usize; 5],
    /// The same of the pair that comes next, if its rows are to be asked for.
    pub(super) next: Option<[usize; 5]>,
    pub(super) mask_start: usize,
    pub(super) result_start: usize,
    pub(super) n_kept: usize,
}

/// `n` elements from element `i` on of a row of words that start at `row`; zero elsewhere.
///
/// # Safety
/// The row is readable for the elements.
#[inline(always)]
pub(super) unsafe fn load_elements<S: Simd, A: Packed>(
    s: S,
    row: *const f32,
    i: usize,
    n: usize,
) -> S::F {
    // SAFETY: the caller's promise; a word of two elements has bf16.
    unsafe {
        if A::ELEMENTS == 1 {
            return load_from(s, row)(i, n);
        }
        load_from_bf16(s, row.cast())(i, n)
    }
}

/// Stores the first `n <= LANES` lanes as floats of type `dtype`.
///
/// # Safety
/// `to` is writable for the elements.
#[inline(always)]
unsafe fn store_as<S: Simd>(s: S, dtype: DType, to: *mut u8, x: S::F, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match (dtype, n == S::LANES) {
            (DType::Bf16, true) => s.store_bf16(to.cast(), x),
            (DType::Bf16, false) => s.store_bf16_n(to.cast(), x, n),
            (DType::F16, true) => s.store_f16(to.cast(), x),
            (DType::F16, false) => s.store_f16_n(to.cast(), x, n),
            (_, true) => s.store(to.cast(), x),
            (_, false) => s.store_n(to.cast(), x, n),
        }
    }
}

impl<A: Packed> Pair<'_, A> {
    /// Lists the keys that take part.
    ///
    /// # Safety
    /// As [`crate::KernelDef::run`], like all that follow.
    pub(super) unsafe fn keep_keys(&mut self) {
        let kept = self.area.kept;
        for key in 0..self.kernel.sk {
            let takes_part = match &self.kernel.mask {
                None => true,
                Some(Side { operand, layout }) => {
                    let stride = layout.strides[layout.rank() - 1];
                    let flags = self.shared.operand(*operand);
                    // SAFETY: the mask has a flag for every key.
                    unsafe { *flags.add(self.mask_start + key * stride) != 0 }
                }
            };
            if takes_part {
                // SAFETY: `kept` has room for every key.
                unsafe { *kept.add(self.n_kept) = key as u32 };
                self.n_kept += 1;
            }
        }
    }

    /// Asks for the rows of one operand of the next pair.
    pub(super) fn prefetch_next(&self, operand: usize) {
        let Some(next) = self.next else { return };
        let rows = &self.kernel.rows[operand];
        let size = rows.layout.dtype.size();
        let count = rows.layout.shape[rows.layout.rank() - 3];
        for position in 0..count {
            let at = next[operand] + position * rows.seq_stride();
            prefetch_row(rows.operand_element(self.shared, at), self.kernel.d * size);
        }
    }

    /// Where row `position` of an operand is stored.
    fn stored(&self, operand: usize, position: usize) -> *const u8 {
        let rows = &self.kernel.rows[operand];
        let at = self.starts[operand] + position * rows.seq_stride();
        rows.operand_element(self.shared, at)
    }

    /// Packs row `position` of an operand in words of head dims.
    ///
    /// # Safety
    /// See `keep_keys`; `to` has room for the words.
    #[inline(always)]
    unsafe fn pack_row<S: Simd>(&self, s: S, operand: usize, position: usize, to: *mut f32) {
        let rows: &HeadRows = &self.kernel.rows[operand];
        let d = self.kernel.d;
        let words = d.div_ceil(A::ELEMENTS);
        // SAFETY: passed on.
        unsafe {
            std::ptr::write_bytes(to.add(words), 0, self.kernel.depth() - words);
            if self.kernel.stored[operand] {
                copy(s, self.stored(operand, position).cast(), words, to);
                return;
            }
            let at = self.starts[operand] + position * rows.seq_stride();
            rows.row(
                s,
                self.shared,
                (at, position),
                &[],
                self.area.made,
                #[inline(always)]
                |i, x, n| self.arithmetic.put(s, to, i, x, n),
            );
            if !d.is_multiple_of(A::ELEMENTS) {
                to.cast::<u16>().add(d).write(0);
            }
        }
    }

    /// `n` elements from element `at` on of the rows that start at `row` and `stride` words further, in words
    /// of both; zeros where there is no second row.
    ///
    /// # Safety
    /// See `keep_keys`; the rows are words of head dims.
    #[inline(always)]
    unsafe fn join_rows<S: Simd>(
        &self,
        s: S,
        (row, stride, has_second): (*const f32, usize, bool),
        at: usize,
        n: usize,
    ) -> S::F {
        // SAFETY: passed on.
        unsafe {
            let low = load_elements::<S, A>(s, row, at, n);
            let high = if A::ELEMENTS > 1 && has_second {
                load_elements::<S, A>(s, row.add(stride), at, n)
            } else {
                s.splat(0.0)
            };
            self.arithmetic.join(s, low, high)
        }
    }

    /// Packs the keys that take part and their values.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    pub(super) unsafe fn read_keys<S: Simd>(&self, s: S) {
        let Area { keys, values, key_pairs, kept, rows: joined, .. } = self.area;
        let (d, depth) = (self.kernel.d, self.kernel.depth());
        let across = self.kernel.words.are_tiles();
        let stride = self.kernel.key_stride();
        let n_words = self.n_kept.div_ceil(A::ELEMENTS);
        // SAFETY: there is room for all keys.
        unsafe {
            for i in 0..self.n_kept {
                let key = *kept.add(i) as usize;
                self.pack_row(s, ROWS_K, key, keys.add(i * depth));
                self.pack_row(s, ROWS_V, key, values.add(i * depth));
            }
            if A::ELEMENTS == 1 {
                return;
            }
            for i in (0..self.n_kept).step_by(A::ELEMENTS) {
                let rows = (keys.add(i * depth).cast_const(), depth, i + 1 < self.n_kept);
                let word = i / A::ELEMENTS;
                let to = if across {
                    joined.add(word % TILE_WORDS * d)
                } else {
                    key_pairs.add(word * d)
                };
                for at in (0..d).step_by(S::LANES) {
                    let n = S::LANES.min(d - at);
                    s.store_n(to.add(at), self.join_rows(s, rows, at, n), n);
                }
                if across && (word + 1 == n_words || word % TILE_WORDS == TILE_WORDS - 1) {
                    let first = word / TILE_WORDS * TILE_WORDS;
                    let count = word + 1 - first;
                    turn_across(s, (count, d), joined, key_pairs.add(first), stride);
                }
            }
        }
    }

    /// Rows `start..start + count` of an operand: transposed to `[D, lanes]` in words of head dims, and by
    /// groups of head dims in words of rows.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    pub(super) unsafe fn read_block<S: Simd>(
        &self,
        s: S,
        operand: usize,
        (start, count, lanes): (usize, usize, usize),
        transposed: *mut f32,
        grouped: Option<*mut f32>,
    ) {
        let (d, depth, rows) = (self.kernel.d, self.kernel.depth(), self.area.rows);
        let words = d.div_ceil(A::ELEMENTS);
        // SAFETY: the parts have room for a block.
        unsafe {
            let (from, stride) = if self.kernel.stored[operand] {
                let stride = self.kernel.rows[operand].seq_stride() / A::ELEMENTS;
                (self.stored(operand, start).cast::<f32>(), stride)
            } else {
                for i in 0..count {
                    self.pack_row(s, operand, start + i, rows.add(i * depth));
                }
                (rows.cast_const(), depth)
            };
            if count < lanes {
                for i in (0..depth * lanes).step_by(S::LANES) {
                    s.store(transposed.add(i), s.splat(0.0));
                }
            }
            transpose_in(s, (count, words), from, stride, transposed, lanes);
            for i in (words * lanes..depth * lanes).step_by(S::LANES) {
                s.store(transposed.add(i), s.splat(0.0));
            }
            let Some(mut to) = grouped else { return };
            let mut first = 0;
            for vectors in self.kernel.groups() {
                for i in (0..count).step_by(A::ELEMENTS) {
                    let rows = (from.add(i * stride), stride, i + 1 < count);
                    for v in 0..vectors {
                        let at = first + v * S::LANES;
                        let n = S::LANES.min(d - at);
                        s.store(to, self.join_rows(s, rows, at, n));
                        to = to.add(S::LANES);
                    }
                }
                let words = self.kernel.block() / A::ELEMENTS - count.div_ceil(A::ELEMENTS);
                to = to.add(words * vectors * S::LANES);
                first += vectors * S::LANES;
            }
        }
    }

    /// Where row `position` of the result goes.
    ///
    /// # Safety
    /// See `keep_keys`; the result has the row.
    unsafe fn result_row(&self, position: usize) -> *mut u8 {
        let result = &self.kernel.result;
        let at = self.result_start + position * result.strides[result.rank() - 3];
        // SAFETY: passed on.
        unsafe { self.shared.result().add(at * result.dtype.size()) }
    }

    /// Writes row `position` of the result.
    ///
    /// # Safety
    /// See `keep_keys`; `row` has a row.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd>(&self, s: S, position: usize, row: *const f32) {
        // SAFETY: passed on.
        unsafe {
            let to = self.result_row(position);
            store(s, self.kernel.result.dtype, row, self.kernel.d, to);
        }
    }

    /// Asks for rows of the result that are written soon.
    ///
    /// # Safety
    /// See `keep_keys`; the result has the rows.
    pub(super) unsafe fn prefetch_result(&self, positions: Range<usize>) {
        let bytes = self.kernel.d * self.kernel.result.dtype.size();
        for position in positions {
            // SAFETY: passed on.
            prefetch_row(unsafe { self.result_row(position) }, bytes);
        }
    }

    /// Writes the rows of keys and values, zeros where a key takes no part.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    pub(super) unsafe fn write_keys<S: Simd>(&self, s: S) {
        let AttentionGrad { sq, sk, d, .. } = *self.kernel;
        let Area { by_keys, by_values, kept, .. } = self.area;
        let dtype = self.kernel.result.dtype;
        let size = dtype.size();
        for (part, mut sums) in [(0, by_keys), (1, by_values)] {
            let mut first = 0;
            for vectors in self.kernel.groups() {
                let width = vectors * S::LANES;
                let mut next = 0;
                for key in 0..sk {
                    // SAFETY: there are sums for all kept keys, in whole vectors.
                    unsafe {
                        let is_kept = next < self.n_kept && *kept.add(next) as usize == key;
                        let to = self.result_row(sq + part * sk + key).add(first * size);
                        for at in (0..width.min(d - first)).step_by(S::LANES) {
                            let x = if is_kept {
                                s.load(sums.add(next * width + at))
                            } else {
                                s.splat(0.0)
                            };
                            let n = S::LANES.min(d - first - at);
                            store_as(s, dtype, to.add(at * size), x, n);
                        }
                        next += usize::from(is_kept);
                    }
                }
                sums = sums.wrapping_add(sk * width);
                first += width;
            }
        }
    }
}
