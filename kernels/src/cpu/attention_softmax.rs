//! The softmax of attention, where a tile's scores are still in registers: they become weights
//! without going through memory, beside the next tile's multiply-adds.
//!
//! Weights are `2^(score - reference)`. The reference of a query is the largest score so far, but
//! follows it only when a score lies more than [`HEADROOM`] above: any reference gives the same
//! softmax, and this one hardly ever moves, so that outputs hardly ever need another scale.

use crate::simd::{MAX_LANES, Simd, SimdJob};
use crate::vec_math;

use super::attention_tile::Finish;
use super::matmul_tile::{Arithmetic, InTiles, Single};

/// Most vectors of queries in a block.
pub(super) const MAX_VECTORS: usize = 4;
/// How far scores, in units of log 2, may be above the reference; sums of weights of up to
/// `2^HEADROOM` stay far from the end of f32.
const HEADROOM: f32 = 8.0;
/// Lowest reference, so that differences to it are never NaN.
pub(super) const LOWEST: f32 = -1e30;

/// How elements are packed into words, and what that asks of the exponential.
pub(super) trait Packed: Arithmetic {
    /// Elements of a word.
    const ELEMENTS: usize;
    /// The sign bits of a word.
    const SIGNS: u32;

    /// `2^x`, as exact as a word can tell.
    fn exp2<S: Simd>(self, s: S, x: S::F) -> S::F;

    /// Words of `low` and `high`; of `low` alone where there is room for one.
    fn join<S: Simd>(self, s: S, low: S::F, high: S::F) -> S::F;

    /// Writes `n` elements of a row from element `i` on, as the words that start at `row` hold them.
    ///
    /// # Safety
    /// The row is writable for the elements.
    unsafe fn put<S: Simd>(self, s: S, row: *mut f32, i: usize, x: S::F, n: usize);

    /// The elements of words.
    fn split<S: Simd>(self, s: S, words: S::F) -> (S::F, S::F);
}

impl Packed for Single {
    const ELEMENTS: usize = 1;
    const SIGNS: u32 = 0x8000_0000;

    #[inline(always)]
    fn exp2<S: Simd>(self, s: S, x: S::F) -> S::F {
        vec_math::exp2(s, x)
    }

    #[inline(always)]
    fn join<S: Simd>(self, _: S, low: S::F, _: S::F) -> S::F {
        low
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(self, s: S, row: *mut f32, i: usize, x: S::F, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { if n == S::LANES { s.store(row.add(i), x) } else { s.store_n(row.add(i), x, n) } }
    }

    #[inline(always)]
    fn split<S: Simd>(self, s: S, words: S::F) -> (S::F, S::F) {
        (words, s.splat(0.0))
    }
}

impl Packed for InTiles {
    const ELEMENTS: usize = 2;
    const SIGNS: u32 = 0x8000_8000;

    #[inline(always)]
    fn exp2<S: Simd>(self, s: S, x: S::F) -> S::F {
        vec_math::exp2_coarse(s, x)
    }

    #[inline(always)]
    fn join<S: Simd>(self, s: S, low: S::F, high: S::F) -> S::F {
        s.narrow_pair(self.dot, low, high)
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(self, s: S, row: *mut f32, i: usize, x: S::F, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { s.store_narrow_n(self.dot, row.cast::<u16>().add(i), x, n) }
    }

    #[inline(always)]
    fn split<S: Simd>(self, s: S, words: S::F) -> (S::F, S::F) {
        (s.shl::<16>(words), s.and(words, s.splat_bits(0xffff_0000)))
    }
}

/// Writes rows of query lanes as words of neighboring rows, from row `row` on, which starts a word.
///
/// # Safety
/// `to` is writable for the words of the rows.
#[inline(always)]
pub(super) unsafe fn store_words<S: Simd, A: Packed, const R: usize, const V: usize>(
    s: S,
    arithmetic: A,
    row: usize,
    rows: &[[S::F; V]; R],
    to: *mut f32,
) {
    for r in (0..R).step_by(A::ELEMENTS) {
        for (v, &low) in rows[r].iter().enumerate() {
            let high = rows.get(r + 1).map_or(s.splat(0.0), |row| row[v]);
            let words = arithmetic.join(s, low, high);
            // SAFETY: the caller's promise.
            unsafe {
                let to = to.add((row + r) / A::ELEMENTS * V * S::LANES);
                s.store(to.add(v * S::LANES), words);
            }
        }
    }
}

/// Turns the scores of a block of keys into weights, which are kept in words of `K`.
#[derive(Clone, Copy)]
pub(super) struct Weigh<A, K = A> {
    pub(super) arithmetic: A,
    pub(super) kept: K,
    /// Factor of the products, times log2 e; not negative.
    pub(super) factor: f32,
    /// `[keys, lanes]`, times log2 e; null for none.
    pub(super) bias: *const f32,
    /// `[keys, lanes]` in words; null where only reference and sum are asked for.
    pub(super) weights: *mut f32,
    /// `[lanes]`.
    pub(super) reference: *mut f32,
    /// `[lanes]`: of the weights so far.
    pub(super) sum: *mut f32,
    /// `[output_rows, lanes]`: of the blocks before.
    pub(super) outputs: *mut f32,
    /// Rows of outputs that there are.
    pub(super) output_rows: usize,
}

impl<A: Packed, K: Packed> Finish for Weigh<A, K> {
    /// # Safety
    /// The pointers are valid for the rows and lanes that they are documented with.
    #[inline(always)]
    unsafe fn finish<S: Simd, const R: usize, const V: usize>(
        self,
        s: S,
        row: usize,
        mut scores: [[S::F; V]; R],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut factor = s.splat(self.factor);
            if !self.bias.is_null() {
                for (r, scores) in scores.iter_mut().enumerate() {
                    for (v, score) in scores.iter_mut().enumerate() {
                        let bias = s.load(self.bias.add((row + r) * V * S::LANES + v * S::LANES));
                        *score = s.mul_add(*score, factor, bias);
                    }
                }
                factor = s.splat(1.0);
            }
            let mut tops = scores[0];
            for scores in &scores[1..] {
                for (top, &score) in tops.iter_mut().zip(scores) {
                    *top = s.max(*top, score);
                }
            }
            let mut reference: [S::F; V] =
                std::array::from_fn(|v| s.load(self.reference.add(v * S::LANES)));
            let mut rise = s.splat(0.0);
            for (top, &reference) in tops.iter_mut().zip(&reference) {
                *top = s.mul(*top, factor);
                rise = s.max(s.sub(*top, reference), rise);
            }
            if s.any(s.lt(s.splat(HEADROOM), rise)) {
                let mut lanes = [0f32; MAX_VECTORS * MAX_LANES];
                for (v, &top) in tops.iter().enumerate() {
                    s.store(lanes.as_mut_ptr().add(v * S::LANES), top);
                }
                self.arithmetic.outline(s, Raise::<A, K, V> { weigh: self, row, tops: &lanes });
                reference = std::array::from_fn(|v| s.load(self.reference.add(v * S::LANES)));
            }
            let mut sums = [s.splat(0.0); V];
            // In two parts, so that compilers unroll both and scores stay in registers.
            let (head, tail) = scores.split_at_mut(R / 2);
            weigh(s, self.arithmetic, head, factor, &reference, &mut sums);
            weigh(s, self.arithmetic, tail, factor, &reference, &mut sums);
            for (v, &sum) in sums.iter().enumerate() {
                let to = self.sum.add(v * S::LANES);
                s.store(to, s.add(s.load(to), sum));
            }
            if !self.weights.is_null() {
                store_words(s, self.kept, row, &scores, self.weights);
            }
        }
    }
}

/// Turns rows of scores into weights and adds them to `sums`.
#[inline(always)]
fn weigh<S: Simd, A: Packed, const V: usize>(
    s: S,
    arithmetic: A,
    scores: &mut [[S::F; V]],
    factor: S::F,
    reference: &[S::F; V],
    sums: &mut [S::F; V],
) {
    for scores in scores {
        for (v, score) in scores.iter_mut().enumerate() {
            let x = s.mul_add(*score, factor, s.neg(reference[v]));
            *score = arithmetic.exp2(s, x);
            sums[v] = s.add(sums[v], *score);
        }
    }
}

/// Brings the references up to `tops`, and with them all that was weighed so far.
struct Raise<'a, A, K, const V: usize> {
    weigh: Weigh<A, K>,
    /// Keys of the block that have weights.
    row: usize,
    tops: &'a [f32],
}

impl<A: Packed, K: Packed, const V: usize> SimdJob for Raise<'_, A, K, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Raise { weigh, row, tops } = self;
        let Weigh { kept, weights, reference, sum, outputs, output_rows, .. } = weigh;
        // SAFETY: the caller of `Weigh::finish` promises the rows and lanes.
        unsafe {
            for v in 0..V {
                let lane = v * S::LANES;
                let old = s.load(reference.add(lane));
                let new = s.max(s.load(tops.as_ptr().add(lane)), old);
                s.store(reference.add(lane), new);
                let scale = vec_math::exp2(s, s.sub(old, new));
                s.store(sum.add(lane), s.mul(s.load(sum.add(lane)), scale));
                let rows = if weights.is_null() { 0 } else { row };
                for words in 0..rows.div_ceil(K::ELEMENTS) {
                    let at = weights.add(words * V * S::LANES + lane);
                    let (low, high) = kept.split(s, s.load(at));
                    s.store(at, kept.join(s, s.mul(low, scale), s.mul(high, scale)));
                }
                for row in 0..output_rows {
                    let at = outputs.add(row * V * S::LANES + lane);
                    s.store(at, s.mul(s.load(at), scale));
                }
            }
        }
    }
}

/// Adds up outputs; after the last keys, divides them by the sums of the weights.
#[derive(Clone, Copy)]
pub(super) struct Accumulate<A> {
    pub(super) arithmetic: A,
    /// `[D, lanes]`; after the last keys in words, if so asked.
    pub(super) outputs: *mut f32,
    /// `[lanes]`: factors to end with; null before the last keys.
    pub(super) scale: *const f32,
    /// Whether to end with words.
    pub(super) words: bool,
}

impl<A: Packed> Finish for Accumulate<A> {
    #[inline(always)]
    fn in_place(self) -> *mut f32 {
        if self.scale.is_null() { self.outputs } else { std::ptr::null_mut() }
    }

    /// # Safety
    /// The outputs are writable for the rows; words are asked for only if D is even.
    #[inline(always)]
    unsafe fn finish<S: Simd, const R: usize, const V: usize>(
        self,
        s: S,
        row: usize,
        mut sums: [[S::F; V]; R],
    ) {
        // SAFETY: the caller's promise. Words lie before the rows that they replace, which rows
        // still to come start from.
        unsafe {
            if !self.scale.is_null() {
                for v in 0..V {
                    let scale = s.load(self.scale.add(v * S::LANES));
                    for sums in &mut sums {
                        sums[v] = s.mul(sums[v], scale);
                    }
                }
                if self.words {
                    store_words(s, self.arithmetic, row, &sums, self.outputs);
                    return;
                }
            }
            super::attention_tile::Store { to: self.outputs }.finish(s, row, sums);
        }
    }
}
