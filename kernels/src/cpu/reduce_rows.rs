//! Folds rows into a strip of results, some rows at a time, so that sums stay in registers meanwhile. Each sum
//! takes its rows in order, so their number at a time changes nothing.

use ops::DType;

use crate::simd::Simd;

use super::lanes::load_as_f32;
use super::sum::Sum;

/// Most rows at a time.
pub(super) const ROWS: usize = 8;
/// Vectors of sums that are kept in registers: the additions of one wait for each other.
const VECTORS: usize = 4;

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
        let whole = self.n - self.n % S::LANES;
        let to = (count, sums, lost);
        // SAFETY: the caller's promise; vectors before `whole` are whole.
        unsafe {
            match self.dtype {
                DType::Bf16 => self.add_whole(
                    s,
                    whole,
                    to,
                    #[inline(always)]
                    |from, i| s.load_bf16(from.cast::<u16>().add(i)),
                ),
                DType::F16 => self.add_whole(
                    s,
                    whole,
                    to,
                    #[inline(always)]
                    |from, i| s.load_f16(from.cast::<u16>().add(i)),
                ),
                _ => self.add_whole(
                    s,
                    whole,
                    to,
                    #[inline(always)]
                    |from, i| s.load(from.cast::<f32>().add(i)),
                ),
            }
            if whole < self.n {
                self.add_vectors::<S, 1>(
                    s,
                    whole,
                    to,
                    #[inline(always)]
                    |from, i| load_as_f32(s, self.dtype, from.add(i * size), self.n - whole),
                );
            }
        }
    }

    /// The same of the first `whole` elements, whole vectors.
    ///
    /// # Safety
    /// As [`Rows::add_to`]; `load` gives a vector of a row, from an element on.
    #[inline(always)]
    unsafe fn add_whole<S: Simd>(
        &self,
        s: S,
        whole: usize,
        to: (usize, *mut f32, *mut f32),
        load: impl Fn(*const u8, usize) -> S::F + Copy,
    ) {
        let mut i = 0;
        // SAFETY: passed on.
        unsafe {
            while i + VECTORS * S::LANES <= whole {
                self.add_vectors::<S, VECTORS>(s, i, to, load);
                i += VECTORS * S::LANES;
            }
            while i < whole {
                self.add_vectors::<S, 1>(s, i, to, load);
                i += S::LANES;
            }
        }
    }

    /// The same of `V` vectors from element `i` on.
    ///
    /// # Safety
    /// As [`Rows::add_whole`].
    #[inline(always)]
    unsafe fn add_vectors<S: Simd, const V: usize>(
        &self,
        s: S,
        i: usize,
        (count, sums, lost): (usize, *mut f32, *mut f32),
        load: impl Fn(*const u8, usize) -> S::F + Copy,
    ) {
        let mut folded = [Sum::zero(s); V];
        // SAFETY: the caller's promise.
        unsafe {
            for (v, folded) in folded.iter_mut().enumerate() {
                let at = i + v * S::LANES;
                *folded = Sum::of(s.load(sums.add(at)), s.load(lost.add(at)));
            }
            for &from in &self.from[..count] {
                for (v, folded) in folded.iter_mut().enumerate() {
                    folded.add(s, load(from, i + v * S::LANES));
                }
            }
            for (v, folded) in folded.into_iter().enumerate() {
                let at = i + v * S::LANES;
                let (sum, error) = folded.parts();
                s.store(sums.add(at), sum);
                s.store(lost.add(at), error);
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
