//! Digits of f32 (see [`super`]), in AVX-512.

use std::arch::x86_64::*;

use crate::isa::Tiles;
use crate::simd::{TILE_WORDS, prefetch};

use super::{DEPTHS_OF_DIGITS, DIGITS, DigitRow, GROUPS, LOW_SPREAD, Lines, Scales, WORDS_OF_UNIT};

const LANES: usize = TILE_WORDS;
/// How many lines of the cache ahead counting asks for.
const LINES_AHEAD: usize = 64;
/// Depths of a group that are counted before the next group is.
const DEPTHS_TOGETHER: usize = 4;
/// Blocks of a row that are counted before the first of them is split: each count ends in a chain of operations.
const BLOCKS_TOGETHER: usize = 4;
/// Every other one of 32 or 64 elements.
const ODD_16: u32 = 0xaaaa_aaaa;
const ODD_8: u64 = 0xaaaa_aaaa_aaaa_aaaa;
/// Numbers are whole multiples of the largest one's exponent, less this: 23 bits and a sign, and no digit above 127.
const NUMBER_EXPONENT: f32 = 22.0;
/// What is left of an element is at most half of a number's unit, and so has numbers of one bit less.
const LOW_EXPONENT: f32 = 23.0;
/// Half of the exponent of what sums of products of digits are counted in: `2^8` times `2^8` of the numbers' units.
const UNIT_EXPONENT: f32 = 8.0;
/// The largest number of three digits is 0.99609 of a power of two: one above it has the next exponent. Half of that, as
/// the product stays finite.
const FIT: f32 = 0.502;

/// How sixteen lines are turned into digits.
#[derive(Clone, Copy, Debug)]
pub struct Splitting {
    /// What an element's exponent grows by to become a number: zero for lines without.
    to_number: __m512,
    /// See [`Scales`].
    high: __m512,
    low: __m512,
    spread: __m512,
    has_low: bool,
}

/// What is counted of sixteen lines.
#[derive(Clone, Copy)]
struct Count {
    /// Bits of the largest absolute value.
    largest: __m512i,
    /// Sum of the biased exponents of what is not zero, and how many those are.
    exponents: __m512i,
    nonzero: __m512i,
}

impl Count {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new() -> Self {
        let zero = _mm512_setzero_si512();
        Self { largest: zero, exponents: zero, nonzero: zero }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add(&mut self, x: __m512) {
        let bits = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fff_ffff));
        let is_nonzero = _mm512_test_epi32_mask(bits, bits);
        // As whole numbers NaN is the largest.
        self.largest = _mm512_max_epi32(self.largest, bits);
        let exponent = _mm512_srli_epi32::<23>(bits);
        self.exponents =
            _mm512_mask_add_epi32(self.exponents, is_nonzero, self.exponents, exponent);
        let one = _mm512_set1_epi32(1);
        self.nonzero = _mm512_mask_add_epi32(self.nonzero, is_nonzero, self.nonzero, one);
    }

    /// All lanes counted together, in each.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn together(self) -> Self {
        Self {
            largest: _mm512_set1_epi32(_mm512_reduce_max_epi32(self.largest)),
            exponents: _mm512_set1_epi32(_mm512_reduce_add_epi32(self.exponents)),
            nonzero: _mm512_set1_epi32(_mm512_reduce_add_epi32(self.nonzero)),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn splitting(&self) -> Splitting {
        let is_some = _mm512_test_epi32_mask(self.largest, self.largest);
        let infinite = _mm512_set1_epi32(0x7f80_0000);
        let is_finite = _mm512_cmplt_epi32_mask(self.largest, infinite);
        let largest = _mm512_mul_ps(_mm512_castsi512_ps(self.largest), _mm512_set1_ps(FIT));
        let exponent = _mm512_add_ps(_mm512_getexp_ps(largest), _mm512_set1_ps(1.0));
        let to_number = _mm512_sub_ps(_mm512_set1_ps(NUMBER_EXPONENT), exponent);
        let none = _mm512_set1_ps(f32::NEG_INFINITY);
        let high = _mm512_sub_ps(_mm512_set1_ps(UNIT_EXPONENT), to_number);
        let high = _mm512_mask_blend_ps(is_some, none, high);
        let high = _mm512_mask_blend_ps(is_finite, _mm512_set1_ps(f32::NAN), high);
        let top = _mm512_cvtepi32_ps(_mm512_srli_epi32::<23>(self.largest));
        let mean =
            _mm512_div_ps(_mm512_cvtepi32_ps(self.exponents), _mm512_cvtepi32_ps(self.nonzero));
        let spread = _mm512_maskz_sub_ps(is_some & is_finite, top, mean);
        let is_wide = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(spread, _mm512_set1_ps(LOW_SPREAD));
        let low = _mm512_mask_sub_ps(none, is_wide, high, _mm512_set1_ps(LOW_EXPONENT));
        let to_number = _mm512_maskz_mov_ps(is_some & is_finite, to_number);
        Splitting { to_number, high, low, spread, has_low: is_wide != 0 }
    }
}

impl Splitting {
    /// That of lines there are not.
    // SAFETY: vectors of zeros.
    const NONE: Self = unsafe { std::mem::zeroed() };

    /// The whole numbers of `x`: high ones, and low ones of what is left.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn numbers(&self, x: __m512) -> __m512i {
        _mm512_cvtps_epi32(_mm512_scalef_ps(x, self.to_number))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn low_numbers(&self, x: __m512) -> __m512i {
        let back = _mm512_sub_ps(_mm512_setzero_ps(), self.to_number);
        let high = _mm512_scalef_ps(_mm512_cvtepi32_ps(self.numbers(x)), back);
        let more = _mm512_add_ps(self.to_number, _mm512_set1_ps(LOW_EXPONENT));
        _mm512_cvtps_epi32(_mm512_scalef_ps(_mm512_sub_ps(x, high), more))
    }

    /// Whether any of the lines has low digits.
    pub fn has_low(&self) -> bool {
        self.has_low
    }

    /// The lines' scales.
    pub fn scales(&self) -> Scales {
        // SAFETY: vectors of sixteen f32.
        [self.high, self.low, self.spread].map(|v| unsafe { std::mem::transmute(v) })
    }
}

/// The digits of numbers, each in a byte: the third in the lowest one, the first in the third.
#[inline]
#[target_feature(enable = "avx512f")]
fn digits(numbers: __m512i) -> __m512i {
    // A digit is from -128 on: what is half of the next one's unit or more belongs to that. To add half a unit makes it
    // so, and changes no more of a digit than its sign's bit.
    let halves = _mm512_set1_epi32(0x8080);
    _mm512_xor_si512(_mm512_add_epi32(numbers, halves), halves)
}

/// The first to the third digits of four vectors of numbers, which follow each other: a unit's.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn digits_of_unit(numbers: [__m512i; 4]) -> [__m512i; DIGITS] {
    // In each quarter of a vector, the third digits of its four numbers, their second ones, their first ones.
    let by_digit = _mm512_set4_epi32(0x0f0b_0703, 0x0e0a_0602, 0x0d09_0501, 0x0c08_0400);
    let [a, b, c, d] = numbers.map(|numbers| _mm512_shuffle_epi8(digits(numbers), by_digit));
    let third_second = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    let second_third = _mm512_setr_epi32(1, 5, 9, 13, 17, 21, 25, 29, 0, 4, 8, 12, 16, 20, 24, 28);
    let first_first = _mm512_setr_epi32(2, 6, 10, 14, 18, 22, 26, 30, 2, 6, 10, 14, 18, 22, 26, 30);
    let of_ab = _mm512_permutex2var_epi32(a, third_second, b);
    let of_cd = _mm512_permutex2var_epi32(c, second_third, d);
    let first_of_ab = _mm512_permutex2var_epi32(a, first_first, b);
    let first_of_cd = _mm512_permutex2var_epi32(c, first_first, d);
    [
        _mm512_mask_blend_epi32(0xff00, first_of_ab, first_of_cd),
        _mm512_alignr_epi64::<4>(of_cd, of_ab),
        _mm512_mask_blend_epi32(0xff00, of_ab, of_cd),
    ]
}

impl DigitRow {
    /// Splits the row.
    ///
    /// # Safety
    /// The elements are readable, and the words of the units that hold them writable, low ones, too; the scales of each
    /// block are readable and writable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub unsafe fn split(&self, _: Tiles) {
        let n_blocks = self.depth.div_ceil(self.block);
        for first in (0..n_blocks).step_by(BLOCKS_TOGETHER) {
            let blocks = first..n_blocks.min(first + BLOCKS_TOGETHER);
            let mut splittings = [Splitting::NONE; BLOCKS_TOGETHER];
            for (splitting, block) in splittings.iter_mut().zip(blocks.clone()) {
                let mut count = Count::new();
                for at in self.depths(block).step_by(LANES) {
                    count.add(self.load(at));
                }
                *splitting = count.together().splitting();
            }
            for (splitting, block) in splittings.iter().zip(blocks) {
                let depths = self.depths(block);
                for start in depths.clone().step_by(DEPTHS_OF_DIGITS) {
                    self.write(start, 0, |x| splitting.numbers(x));
                }
                if splitting.has_low() {
                    for start in depths.step_by(DEPTHS_OF_DIGITS) {
                        self.write(start, self.low, |x| splitting.low_numbers(x));
                    }
                }
                // SAFETY: the caller promises the scales.
                unsafe {
                    let scales = &mut *self.scales.add(block * self.scales_step);
                    for (to, of) in scales.iter_mut().zip(splitting.scales()) {
                        to[self.line] = of[0];
                    }
                }
            }
        }
    }

    /// The depths of a block.
    fn depths(&self, block: usize) -> std::ops::Range<usize> {
        let start = block * self.block;
        start..self.depth.min(start + self.block)
    }

    /// Elements from `at` on, zeros behind the last one.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(&self, at: usize) -> __m512 {
        let n = self.depth.saturating_sub(at).min(LANES);
        // SAFETY: whoever splits the row has its elements; the mask leaves out what is behind them.
        unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as u16, self.from.wrapping_add(at)) }
    }

    /// Writes the digits of the numbers that `numbers` makes of a unit's elements, those from `start` on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn write(&self, start: usize, low: usize, numbers: impl Fn(__m512) -> __m512i) {
        let numbers = [0, 1, 2, 3].map(|part| numbers(self.load(start + part * LANES)));
        let word = start / DEPTHS_OF_DIGITS * WORDS_OF_UNIT;
        for (digit, bytes) in digits_of_unit(numbers).into_iter().enumerate() {
            // SAFETY: whoever splits the row has the unit's words.
            unsafe {
                let to = self.to.add(low + word + digit * TILE_WORDS);
                _mm512_storeu_si512(to.cast(), bytes);
            }
        }
    }
}

impl Lines {
    /// Lines of a group that are there.
    fn mask(&self, group: usize) -> u16 {
        let count = self.count.saturating_sub(group * LANES).min(LANES);
        ((1u32 << count) - 1) as u16
    }

    /// One depth of a group of lines.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(&self, depth: usize, group: usize) -> __m512 {
        let mask = if depth < self.depth { self.mask(group) } else { 0 };
        let at = depth * self.stride + group * LANES;
        // SAFETY: whoever made this has the lines; the mask leaves out all else.
        unsafe { _mm512_maskz_loadu_ps(mask, self.start.wrapping_add(at)) }
    }

    /// How each group's lines are split.
    ///
    /// # Safety
    /// The lines are readable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub unsafe fn splittings(&self, _: Tiles) -> [Splitting; GROUPS] {
        let mut counts = [Count::new(); GROUPS];
        let counts = &mut counts[..self.groups()];
        // Depths are far apart: without this, each waits for memory by itself.
        let ahead = LINES_AHEAD.div_ceil(counts.len());
        for depths in (0..self.depth).step_by(DEPTHS_TOGETHER) {
            for (group, count) in counts.iter_mut().enumerate() {
                for depth in depths..depths + DEPTHS_TOGETHER {
                    let ahead = (depth + ahead) * self.stride + group * LANES;
                    prefetch(self.start.wrapping_add(ahead));
                    count.add(self.load(depth, group));
                }
            }
        }
        let mut splittings = [Splitting::NONE; GROUPS];
        for (splitting, count) in splittings.iter_mut().zip(counts) {
            *splitting = count.splitting();
        }
        splittings
    }

    /// Splits one unit of a group: writes its high digits, or its low ones, four depths of a line to a word and sixteen
    /// lines side by side, and this for sixteen times four depths; those of each digit where `to` says.
    ///
    /// # Safety
    /// The lines are readable, and what `to` points to is writable for sixteen times sixteen words.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub unsafe fn split_unit(
        &self,
        _: Tiles,
        group: usize,
        splitting: &Splitting,
        unit: usize,
        is_low: bool,
        to: [*mut f32; DIGITS],
    ) {
        for word in 0..TILE_WORDS {
            let depth = unit * DEPTHS_OF_DIGITS + 4 * word;
            let numbers = |at: usize| {
                let x = self.load(depth + at, group);
                digits(if is_low { splitting.low_numbers(x) } else { splitting.numbers(x) })
            };
            let [a, b, c, d] = [numbers(0), numbers(1), numbers(2), numbers(3)];
            // Of the first and the third depth, and of the second and the fourth: the third and the second digits side
            // by side, and the first ones.
            let ac = _mm512_mask_blend_epi16(ODD_16, a, _mm512_slli_epi32::<16>(c));
            let bd = _mm512_mask_blend_epi16(ODD_16, b, _mm512_slli_epi32::<16>(d));
            let first_ac = _mm512_mask_blend_epi16(ODD_16, _mm512_srli_epi32::<16>(a), c);
            let first_bd = _mm512_mask_blend_epi16(ODD_16, _mm512_srli_epi32::<16>(b), d);
            let words = [
                _mm512_mask_blend_epi8(ODD_8, first_ac, _mm512_slli_epi16::<8>(first_bd)),
                _mm512_mask_blend_epi8(ODD_8, _mm512_srli_epi16::<8>(ac), bd),
                _mm512_mask_blend_epi8(ODD_8, ac, _mm512_slli_epi16::<8>(bd)),
            ];
            for (words, to) in words.into_iter().zip(to) {
                // SAFETY: within the unit's words.
                unsafe { _mm512_storeu_si512(to.add(word * LANES).cast(), words) }
            }
        }
    }
}
