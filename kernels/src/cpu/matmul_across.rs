//! Rows of A that lie across memory: neighbors there are the same depth of the next row, as in the gradient of
//! a weight, whose A is a cotangent `[tokens, columns]` read by columns. They are packed by whole vectors of
//! rows, which squares of a vector's length turn into rows of words; a row at a time would read a cache line
//! for each element.

use ops::DType;

use crate::simd::{MAX_LANES, Simd, SimdJob};

use super::lanes::{join_halves, load_as_f32, prefetch_row};
use super::matmul_rows::PackRows;
use super::transpose::transpose;

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
        let step = rows.words.depths();
        let dtype = rows.view.dtype;
        let size = dtype.size();
        let depth_bytes = rows.view.column_stride * size;
        // Words of one square, depth by depth.
        let mut square = [0f32; MAX_LANES * MAX_LANES];
        // SAFETY: the caller of `PackRows::run` promises the rows, and room for their words.
        unsafe {
            let first = rows.a.add((rows.view.offset + *rows.offsets) * size);
            for start in (from..to).step_by(S::LANES) {
                let n_words = S::LANES.min(to - start);
                // Depths are far apart: without this, each waits for memory by itself.
                for depth in (start + n_words) * step..(start + 2 * n_words) * step {
                    prefetch_row(first.wrapping_add(depth * depth_bytes), n_rows * size);
                }
                for row in (0..n_rows).step_by(S::LANES) {
                    let n = S::LANES.min(n_rows - row);
                    let is_square = n_words == S::LANES && n == S::LANES;
                    let to = packed.add(row * stride + start - from);
                    let at = first.add(start * step * depth_bytes + row * size);
                    if is_square && step == 1 && dtype == DType::F32 {
                        s.transpose_square(at.cast(), rows.view.column_stride, to, stride);
                        continue;
                    }
                    for word in 0..n_words {
                        let depth = (start + word) * step;
                        let at = at.add(word * step * depth_bytes);
                        let low = load_as_f32(s, dtype, at, n);
                        let words = if step == 1 {
                            low
                        } else if depth + 1 < rows.depth {
                            join_halves(s, low, load_as_f32(s, dtype, at.add(depth_bytes), n))
                        } else {
                            s.shr::<16>(low)
                        };
                        s.store(square.as_mut_ptr().add(word * S::LANES), words);
                    }
                    let square = square.as_ptr();
                    if is_square {
                        s.transpose_square(square, S::LANES, to, stride);
                    } else {
                        transpose((n_words, n), square, S::LANES, to, stride);
                    }
                }
            }
        }
    }
}
