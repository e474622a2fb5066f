//! Folds rows into a strip of results, some rows at a time, so that sums stay in registers meanwhile. Each sum
//! takes its rows in order, so their number at a time changes nothing.

use ops::DType;

use crate::simd::Simd;

use super::lanes::load_as_f32;

/// Most rows at a time.
pub(super) const ROWS: usize = 8;

/// Some rows that are folded into a strip of results, in order.
pub(super) struct Rows {
    /// Where each starts.
    pub(super) from: [*const u8; ROWS],
    pub(super) dtype: DType,
    /// Elements of each.
    pub(super) n: usize,
}

impl Rows {
    /// Adds the first `count` rows to `sums`, and to `lost` what rounding takes.
    ///
    /// # Safety
    /// The rows have their elements, the sums whole vectors.
    #[inline(always)]
    pub(super) unsafe fn add_to<S: Simd>(
        &self,
        s: S,
        count: usize,
        sums: *mut f32,
        lost: *mut f32,
    ) {
        let size = self.dtype.size();
        for i in (0..self.n).step_by(S::LANES) {
            let n = S::LANES.min(self.n - i);
            // SAFETY: the caller's promise.
            unsafe {
                let (mut sum, mut error) = (s.load(sums.add(i)), s.load(lost.add(i)));
                for from in &self.from[..count] {
                    let x = load_as_f32(s, self.dtype, from.add(i * size), n);
                    let new = s.add(sum, x);
                    let added = s.sub(new, sum);
                    let rest = s.add(s.sub(sum, s.sub(new, added)), s.sub(x, added));
                    error = s.add(error, rest);
                    sum = new;
                }
                s.store(sums.add(i), sum);
                s.store(lost.add(i), error);
            }
        }
    }

    /// Raises `tops` to the first `count` rows.
    ///
    /// # Safety
    /// As in `add_to`.
    #[inline(always)]
    pub(super) unsafe fn raise<S: Simd>(&self, s: S, count: usize, tops: *mut f32) {
        let size = self.dtype.size();
        for i in (0..self.n).step_by(S::LANES) {
            let n = S::LANES.min(self.n - i);
            // SAFETY: the caller's promise.
            unsafe {
                let mut top = s.load(tops.add(i));
                for from in &self.from[..count] {
                    top = s.max(top, load_as_f32(s, self.dtype, from.add(i * size), n));
                }
                s.store(tops.add(i), top);
            }
        }
    }
}
