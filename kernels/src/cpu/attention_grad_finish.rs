//! What becomes of a tile's sums in the gradients of attention, while they are in registers.

use crate::simd::Simd;
use crate::vec_math;

use super::attention_tile::Finish;

/// Scores to weights, with a known reference and sum.
#[derive(Clone, Copy)]
pub(super) struct WeighAgain {
    /// Factor of the products, times log2 e.
    pub(super) factor: f32,
    /// `[lanes]` each: what scores are relative to, and what weights are multiplied with.
    pub(super) reference: *const f32,
    pub(super) scale: *const f32,
    /// `[keys, lanes]`.
    pub(super) weights: *mut f32,
}

impl Finish for WeighAgain {
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
        for (r, scores) in scores.into_iter().enumerate() {
            for (v, score) in scores.into_iter().enumerate() {
                let lane = v * S::LANES;
                // SAFETY: the caller's promise.
                unsafe {
                    let x = s.mul_add(score, factor, s.neg(s.load(self.reference.add(lane))));
                    let weight = s.mul(vec_math::exp2(s, x), s.load(self.scale.add(lane)));
                    s.store(self.weights.add((row + r) * V * S::LANES + lane), weight);
                }
            }
        }
    }
}

/// Gradients of weights to those of scores.
#[derive(Clone, Copy)]
pub(super) struct ByScores {
    pub(super) scale: f32,
    /// `[keys, lanes]`.
    pub(super) weights: *const f32,
    /// `[lanes]`: the sum of cotangent times result.
    pub(super) delta: *const f32,
    /// `[keys, lanes]`.
    pub(super) by_scores: *mut f32,
}

impl Finish for ByScores {
    /// # Safety
    /// The pointers are valid for the rows and lanes that they are documented with.
    #[inline(always)]
    unsafe fn finish<S: Simd, const R: usize, const V: usize>(
        self,
        s: S,
        row: usize,
        by_weights: [[S::F; V]; R],
    ) {
        let scale = s.splat(self.scale);
        for (r, by_weights) in by_weights.into_iter().enumerate() {
            for (v, by_weight) in by_weights.into_iter().enumerate() {
                let at = (row + r) * V * S::LANES + v * S::LANES;
                // SAFETY: the caller's promise.
                unsafe {
                    let difference = s.sub(by_weight, s.load(self.delta.add(v * S::LANES)));
                    let weight = s.mul(s.load(self.weights.add(at)), scale);
                    s.store(self.by_scores.add(at), s.mul(weight, difference));
                }
            }
        }
    }
}
