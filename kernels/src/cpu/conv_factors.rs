//! What a filtered convolution multiplies: the words of its transformed inputs and weights.
//!
//! f32 always will do. Where operands are bf16 and the CPU multiplies pairs, words are pairs of
//! neighboring channels, at twice the rate:
//! - bf16, for [`super::conv_transform::Doubled`], whose transforms amplify no rounding;
//! - i16 with scales ([`Fixed`]), for [`super::conv_transform::Quad`], whose output transform makes some seven
//!   times the error of bf16 factors. A weight has a scale for each point and column, an input for
//!   each tile and *chunk* of the channels. By the Cauchy-Schwarz inequality no sum of a chunk leaves
//!   i32 if the norms of its factors have a product below 2^31; scales are the least that ensure it.
//!   On the normalized inputs they are used for, the result is as close as that of a direct
//!   convolution with inputs in bf16.

use ops::DType;

use crate::isa::Bf16Dot;
use crate::simd::{Simd, SimdJob};

use super::conv::Spec;
use super::conv_winograd::Algorithm;
use super::matmul_tile::{self, Scaled, Tile};
use super::words::Words;

/// Most channels of a chunk.
pub(super) const CHUNK: usize = 128;
/// Largest i16, less what rounding adds.
const LARGEST: f32 = 32767.0 * 0.999;
/// Most that the norm of a chunk's transformed inputs may be, less what rounding adds; 2^16.5.
const INPUT_NORM: f32 = 92681.9 * 0.999;
/// The same of a weight's; 2^14.5.
const WEIGHT_NORM: f32 = 23170.475 * 0.999;
/// Inputs whose scale is below count as zero.
const LEAST_SCALE: f32 = 1e-18;

/// A kind of words.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Factors {
    F32,
    Bf16(Bf16Dot),
    I16(Bf16Dot),
}

impl Factors {
    /// The fastest that are exact enough.
    pub(super) fn of(spec: &Spec, algorithm: Algorithm) -> Factors {
        let is_bf16 = spec.input.dtype == DType::Bf16 && spec.weight.layout.dtype == DType::Bf16;
        match (spec.isa.bf16_dot(), algorithm) {
            (Some(dot), Algorithm::Doubled) if is_bf16 => Factors::Bf16(dot),
            (Some(dot), Algorithm::Quad) if is_bf16 && spec.input.is_normalized() => {
                Factors::I16(dot)
            }
            _ => Factors::F32,
        }
    }

    /// Channels of a word.
    pub(super) fn channels(self) -> usize {
        match self {
            Factors::F32 => 1,
            Factors::Bf16(_) | Factors::I16(_) => 2,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Factors::F32 => "f32",
            Factors::Bf16(_) => "bf16",
            Factors::I16(_) => "i16",
        }
    }

    pub(super) fn is_scaled(self) -> bool {
        matches!(self, Factors::I16(_))
    }
}

/// Where the scales of a tile of the product are.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    pub(super) rows: *const f32,
    pub(super) columns: *const f32,
}

/// [`Factors`] as a type.
pub(super) trait Factor: Copy {
    /// Channels of a word.
    const CHANNELS: usize;
    /// Whether factors are multiples of scales.
    const IS_SCALED: bool = false;

    /// Writes `n` channels of a point.
    ///
    /// # Safety
    /// `to` is writable for the words that hold them.
    unsafe fn store<S: Simd>(self, s: S, to: *mut u8, value: S::F, n: usize);

    /// Words of two channels of the weight, or of `low` alone where a word has one.
    fn word<S: Simd>(self, s: S, low: S::F, high: S::F) -> S::F;

    /// Runs `job` in a function of its own that has the instructions.
    fn outline<S: Simd, J: SimdJob>(self, s: S, job: J) -> J::Output;

    /// As [`matmul_tile::run`].
    ///
    /// # Safety
    /// As there; the scales are readable for the tile's rows and the panel's columns.
    unsafe fn multiply<S: Simd>(self, s: S, shape: (usize, usize), tile: &Tile, scales: Scales);
}

/// [`Factors::F32`].
#[derive(Clone, Copy)]
pub(super) struct Single;

impl Factor for Single {
    const CHANNELS: usize = 1;

    #[inline(always)]
    unsafe fn store<S: Simd>(self, s: S, to: *mut u8, value: S::F, n: usize) {
        let to = to.cast::<f32>();
        // SAFETY: passed on.
        unsafe { if n == S::LANES { s.store(to, value) } else { s.store_n(to, value, n) } }
    }

    #[inline(always)]
    fn word<S: Simd>(self, _: S, low: S::F, _: S::F) -> S::F {
        low
    }

    #[inline(always)]
    fn outline<S: Simd, J: SimdJob>(self, s: S, job: J) -> J::Output {
        s.outline(job)
    }

    #[inline(always)]
    unsafe fn multiply<S: Simd>(self, s: S, shape: (usize, usize), tile: &Tile, _: Scales) {
        // SAFETY: passed on.
        unsafe { matmul_tile::run(s, Words::F32, shape.0, shape.1, tile) }
    }
}

/// [`Factors::Bf16`].
#[derive(Clone, Copy)]
pub(super) struct Half(pub(super) Bf16Dot);

impl Factor for Half {
    const CHANNELS: usize = 2;

    #[inline(always)]
    unsafe fn store<S: Simd>(self, s: S, to: *mut u8, value: S::F, n: usize) {
        let to = to.cast::<u16>();
        // SAFETY: passed on.
        unsafe {
            if n == S::LANES {
                s.store_narrow_n(self.0, to, value, S::LANES);
            } else {
                s.store_bf16_n(to, value, n);
                // The other half of the last word meets a weight of zero, and must be a number.
                if n % 2 == 1 {
                    to.add(n).write(0);
                }
            }
        }
    }

    #[inline(always)]
    fn word<S: Simd>(self, s: S, low: S::F, high: S::F) -> S::F {
        s.narrow_pair(self.0, low, high)
    }

    #[inline(always)]
    fn outline<S: Simd, J: SimdJob>(self, s: S, job: J) -> J::Output {
        s.outline_bf16(self.0, job)
    }

    #[inline(always)]
    unsafe fn multiply<S: Simd>(self, s: S, shape: (usize, usize), tile: &Tile, _: Scales) {
        // SAFETY: passed on.
        unsafe { matmul_tile::run(s, Words::Bf16Pairs(self.0), shape.0, shape.1, tile) }
    }
}

/// [`Factors::I16`].
#[derive(Clone, Copy)]
pub(super) struct Fixed(pub(super) Bf16Dot);

impl Factor for Fixed {
    const CHANNELS: usize = 2;
    const IS_SCALED: bool = true;

    #[inline(always)]
    unsafe fn store<S: Simd>(self, s: S, to: *mut u8, value: S::F, n: usize) {
        let to = to.cast::<i16>();
        // SAFETY: passed on; the buffer holds a vector of any instruction set.
        unsafe {
            if n == S::LANES {
                s.store_i16(self.0, to, value);
            } else {
                let mut buffer = [0; crate::simd::MAX_LANES];
                s.store_i16(self.0, buffer.as_mut_ptr(), value);
                std::ptr::copy_nonoverlapping(buffer.as_ptr(), to, n);
            }
        }
    }

    #[inline(always)]
    fn word<S: Simd>(self, s: S, low: S::F, high: S::F) -> S::F {
        s.pair_i16(self.0, low, high)
    }

    #[inline(always)]
    fn outline<S: Simd, J: SimdJob>(self, s: S, job: J) -> J::Output {
        s.outline_bf16(self.0, job)
    }

    #[inline(always)]
    unsafe fn multiply<S: Simd>(self, s: S, shape: (usize, usize), tile: &Tile, scales: Scales) {
        let scaled = Scaled { dot: self.0, rows: scales.rows, columns: scales.columns };
        // SAFETY: passed on.
        unsafe { matmul_tile::run_as(s, scaled, shape.0, shape.1, tile) }
    }
}

/// The scale of the transformed inputs of a tile, `n <= CHUNK` channels, before the points' gains:
/// that of a tile of zeros is 0, that of one with a NaN or an infinity is NaN.
pub(super) struct InputScale<const P: usize> {
    pub(super) from: *const f32,
    /// From one row and one column of positions to the next.
    pub(super) row: usize,
    pub(super) column: usize,
    pub(super) n: usize,
}

impl<const P: usize> SimdJob for InputScale<P> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let InputScale { from, row, column, n } = self;
        // A point is a sum of positions, so its norm is at most its gain times the largest norm of
        // one. Squares are summed by lane, and the largest sum of each lane bounds those norms.
        let (mut largest, mut poison) = (s.splat(0.0), s.splat(0.0));
        for y in 0..P {
            for x in 0..P {
                let mut squares = s.splat(0.0);
                for i in (0..n).step_by(S::LANES) {
                    // SAFETY: the creator promises P x P positions of n channels.
                    let v = unsafe {
                        let at = from.add(y * row + x * column + i);
                        if n - i >= S::LANES { s.load(at) } else { s.load_n(at, n - i) }
                    };
                    squares = s.mul_add(v, v, squares);
                }
                largest = s.max(squares, largest);
                poison = s.mul_add(squares, s.splat(0.0), poison);
            }
        }
        let norm = s.reduce_add(largest).sqrt() / INPUT_NORM;
        let scale = norm.max(s.reduce_max(largest).sqrt() / LARGEST);
        let scale = if scale < LEAST_SCALE { 0.0 } else { scale };
        scale + s.reduce_add(poison)
    }
}

/// From the largest norm of a chunk of weights and from the largest weight, their scale.
#[inline(always)]
pub(super) fn weight_scale<S: Simd>(s: S, norm: S::F, largest: S::F) -> S::F {
    let norm = s.mul(norm, s.splat(1.0 / WEIGHT_NORM));
    let scale = s.max(norm, s.mul(largest, s.splat(1.0 / LARGEST)));
    s.max(scale, s.splat(f32::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::simd::dispatch;

    /// The scale of a tile of 6 x 6 positions of `n` channels.
    fn scale(n: usize, tile: &[f32]) -> f32 {
        assert_eq!(tile.len(), 36 * n);
        let job = InputScale::<6> { from: tile.as_ptr(), row: 6 * n, column: n, n };
        dispatch(Isa::PORTABLE, job)
    }

    #[test]
    fn sums_of_a_chunk_stay_within_i32() {
        // Rounding moves each factor by up to a half.
        let rounding = (CHUNK as f64).sqrt() / 2.0;
        let [input, weight] = [INPUT_NORM, WEIGHT_NORM].map(|norm| f64::from(norm) + rounding);
        assert!(input * weight < 2f64.powi(31));
    }

    #[test]
    fn scaled_inputs_stay_within_their_limits() {
        for n in [1, 7, 16, 128] {
            for outlier in [1.0, 1e3] {
                let mut tile: Vec<f32> = (0..36 * n).map(|i| (i as f32 * 0.7).sin()).collect();
                tile[17 * n] = outlier;
                let scale = scale(n, &tile);
                for position in tile.chunks_exact(n) {
                    let scaled = position.iter().map(|x| x / scale);
                    let norm = scaled.clone().map(|x| x * x).sum::<f32>().sqrt();
                    // Sums of squares are rounded.
                    assert!(norm <= INPUT_NORM * 1.0001, "{n} channels, {outlier}: {norm}");
                    assert!(scaled.clone().all(|x| x.abs() <= LARGEST * 1.0001), "{n}, {outlier}");
                }
            }
        }
    }

    #[test]
    fn zeros_have_no_scale_and_what_is_no_number_shows() {
        let mut tile = [0.0; 36 * 20];
        assert_eq!(scale(20, &tile), 0.0);
        for bad in [f32::NAN, f32::INFINITY] {
            tile[300] = bad;
            assert!(scale(20, &tile).is_nan());
        }
    }
}
