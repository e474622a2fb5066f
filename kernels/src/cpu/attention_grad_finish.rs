//! What becomes of a tile's sums in the gradients of attention, while they are in registers.

use crate::simd::Simd;

use super::attention_softmax::{Packed, store_words};
use super::attention_tile::Finish;

/// Scores to weights relative to a known reference.
#[derive(Clone, Copy)]
pub(super) struct WeighAgain<A> {
    pub(super) arithmetic: A,
    /// Factor of the products, times log2 e.
    pub(super) factor: f32,
    /// `[lanes]`.
    pub(super) reference: *const f32,
    /// `[keys, lanes]`, f32.
    pub(super) weights: *mut f32,
}

impl<A: Packed> Finish for WeighAgain<A> {
    /// # Safety
    /// The pointers are valid for the rows and lanes that they are documented with.
    #[inline(always)]
    unsafe fn finish<S: Simd, const R: usize, const V: usize>(
        self,
        s: S,
        row: usize,
        scores: [[S::F; V]; R],
    ) {
        let factor = s.splat(self.factor);
        for (r, scores) in scores.iter().enumerate() {
            for (v, &score) in scores.iter().enumerate() {
                let lane = v * S::LANES;
                // SAFETY: the caller's promise.
                unsafe {
                    let x = s.mul_add(score, factor, s.neg(s.load(self.reference.add(lane))));
                    let to = self.weights.add((row + r) * V * S::LANES + lane);
                    s.store(to, self.arithmetic.exp2(s, x));
                }
            }
        }
    }
}

/// Normalizes weights, and turns their gradients into those of scores.
#[derive(Clone, Copy)]
pub(super) struct ByScores<A> {
    pub(super) arithmetic: A,
    pub(super) scale: f32,
    /// `[keys, lanes]`, f32: weights before they are normalized.
    pub(super) raw: *const f32,
    /// `[lanes]`: what they are multiplied with.
    pub(super) normalizer: *const f32,
    /// `[keys, lanes]` in words of lanes; may be `raw` where a word is one element.
    pub(super) weights: *mut f32,
    /// `[lanes]`: the sum of cotangent times result.
    pub(super) delta: *const f32,
    /// `[keys, lanes]` in words of keys.
    pub(super) by_scores: *mut f32,
    /// The same in words of lanes; not written where a word is one element.
    pub(super) by_score_rows: *mut f32,
}

impl<A: Packed> Finish for ByScores<A> {
    /// # Safety
    /// The pointers are valid for the rows and lanes that they are documented with.
    #[inline(always)]
    unsafe fn finish<S: Simd, const R: usize, const V: usize>(
        self,
        s: S,
        row: usize,
        mut by_weights: [[S::F; V]; R],
    ) {
        let scale = s.splat(self.scale);
        for (r, by_weights) in by_weights.iter_mut().enumerate() {
            for (v, by_weight) in by_weights.iter_mut().enumerate() {
                let lane = v * S::LANES;
                let at = (row + r) * V * S::LANES;
                // SAFETY: the caller's promise.
                unsafe {
                    let weight = s.load(self.raw.add(at + lane));
                    let weight = s.mul(weight, s.load(self.normalizer.add(lane)));
                    let at = at / A::ELEMENTS;
                    self.arithmetic.put(s, self.weights.add(at), lane, weight, S::LANES);
                    let difference = s.sub(*by_weight, s.load(self.delta.add(lane)));
                    *by_weight = s.mul(s.mul(weight, scale), difference);
                    if A::ELEMENTS > 1 {
                        let to = self.by_score_rows.add(at);
                        self.arithmetic.put(s, to, lane, *by_weight, S::LANES);
                    }
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { store_words(s, self.arithmetic, row, &by_weights, self.by_scores) };
    }
}
