//! f32 as the sum of three bf16, so that tile registers multiply what vector registers would take longer for (Henry,
//! Tang, Heinecke 2019, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations").
//!
//! The first part `h` is the number rounded to 8 bits, the second, `m`, what is left of it, rounded to 8 bits, and the
//! third, `l`, the rest, which is exact. Of the nine products of two numbers' parts, the six of `hh`, `hm`, `mh`, `mm`,
//! `hl` and `lh` are summed, each exact in f32. The other three are at most `2^-24` of the product and of either sign, so
//! that a sum of products is as near to the right one as a chain of f32 multiply-adds is, which rounds at each step.
//!
//! What differs from f32: a number below `2^-110` has fewer than 24 bits, as the registers take denormal parts for zero;
//! one above `3.39e38` is infinite, and products with infinities are NaN.

use crate::simd::{Simd, SimdJob, TILE_WORDS};

/// Elements of the depth whose parts follow each other: those of a tile register's row.
pub(super) const DEPTHS_OF_PARTS: usize = 2 * TILE_WORDS;
/// Words of their parts.
pub(super) const WORDS_OF_PARTS: usize = 3 * TILE_WORDS;

/// The parts of two neighbors of the depth, lane by lane, as pairs of bf16.
#[inline(always)]
fn split<S: Simd>(s: S, low: S::F, high: S::F) -> [S::F; 3] {
    let upper = s.splat_bits(0xffff_0000);
    let half = s.splat_bits(0x8000);
    let join = |low: S::F, high: S::F| s.or(s.shr::<16>(low), high);
    // Half is rounded away from zero: it is the next part's then, with one sign or the other.
    let round = |x: S::F| s.and(s.add_bits(x, half), upper);
    let (low_first, high_first) = (round(low), round(high));
    let (low, high) = (s.sub(low, low_first), s.sub(high, high_first));
    let (low_second, high_second) = (round(low), round(high));
    let (low_third, high_third) = (s.sub(low, low_second), s.sub(high, high_second));
    [
        join(low_first, high_first),
        join(low_second, high_second),
        join(low_third, s.and(high_third, upper)),
    ]
}

/// Splits a row of A, whole units of the depth.
///
/// # Safety
/// `from` is readable for [`DEPTHS_OF_PARTS`] and `to` writable for [`WORDS_OF_PARTS`] times `units`.
#[inline(always)]
pub(super) unsafe fn split_row<S: Simd>(s: S, from: *const f32, units: usize, to: *mut f32) {
    for unit in 0..units {
        // SAFETY: a unit of the row. The odd elements' last vector ends with the unit: `load_alternate` reads nothing
        // behind its last element.
        unsafe {
            let (from, to) = (from.add(unit * DEPTHS_OF_PARTS), to.add(unit * WORDS_OF_PARTS));
            for at in (0..TILE_WORDS).step_by(S::LANES) {
                let (low, high) =
                    (s.load_alternate(from.add(2 * at)), s.load_alternate(from.add(2 * at + 1)));
                for (part, words) in split(s, low, high).into_iter().enumerate() {
                    s.store(to.add(part * TILE_WORDS + at), words);
                }
            }
        }
    }
}

/// Splits a panel of B, `width` columns of whole units of the depth, depth by depth.
pub(super) struct SplitPanel {
    /// `[depth, width]`.
    pub(super) from: *const f32,
    /// Whole vectors.
    pub(super) width: usize,
    pub(super) units: usize,
    /// Words of the panel.
    pub(super) to: *mut f32,
}

impl SimdJob for SplitPanel {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let SplitPanel { from, width, units, to } = self;
        for unit in 0..units {
            for pair in 0..TILE_WORDS {
                for v in (0..width).step_by(S::LANES) {
                    // SAFETY: whoever made this has the depths' rows and room for their words.
                    unsafe {
                        let from = from.add((unit * DEPTHS_OF_PARTS + 2 * pair) * width + v);
                        let to = to.add((unit * WORDS_OF_PARTS + pair) * width + v);
                        let words = split(s, s.load(from), s.load(from.add(width)));
                        for (part, words) in words.into_iter().enumerate() {
                            s.store(to.add(part * TILE_WORDS * width), words);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::Isa;
    use crate::simd::dispatch;

    struct SplitRow<'a>(&'a [f32], &'a mut [f32]);

    impl SimdJob for SplitRow<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let units = self.0.len() / DEPTHS_OF_PARTS;
            assert_eq!(self.1.len(), units * WORDS_OF_PARTS);
            // SAFETY: the lengths are right.
            unsafe { split_row(s, self.0.as_ptr(), units, self.1.as_mut_ptr()) }
        }
    }

    /// Numbers of all sizes whose three parts are normal.
    fn numbers(count: usize) -> Vec<f32> {
        let number = |i: u32| {
            let bits = i.wrapping_mul(0x9e37_79b9) ^ i.wrapping_mul(0x85eb_ca6b) >> 7;
            let exponent = 20 + bits.rotate_left(9) % 234;
            f32::from_bits(bits & 0x807f_ffff | exponent << 23)
        };
        (0..count as u32).map(number).chain([0.0, -0.0, 1.0, 3.38e38, -1.0 / 3.0]).collect()
    }

    #[test]
    fn parts_sum_to_the_number_and_are_where_they_belong() {
        let mut row = numbers(16 * DEPTHS_OF_PARTS);
        row.resize(17 * DEPTHS_OF_PARTS, 0.0);
        for isa in Isa::available() {
            let mut words = vec![f32::NAN; 17 * WORDS_OF_PARTS];
            dispatch(isa, SplitRow(&row, &mut words));
            for (at, &x) in row.iter().enumerate() {
                let word = at / DEPTHS_OF_PARTS * WORDS_OF_PARTS + at % DEPTHS_OF_PARTS / 2;
                let part = |part: usize| {
                    let bits = words[word + part * TILE_WORDS].to_bits() >> (16 * (at % 2));
                    bf16::from_bits(bits as u16).to_f64()
                };
                let [first, second, third] = [0, 1, 2].map(part);
                assert_eq!(first + second + third, f64::from(x), "{isa}: {x:e}");
                assert!(second.abs() <= first.abs() / 256.0, "{isa}: {x:e}");
                assert!(third.abs() <= first.abs() / 131_072.0, "{isa}: {x:e}");
            }
        }
    }

    #[test]
    fn a_panel_has_the_words_of_its_columns() {
        let (width, units) = (2 * crate::simd::MAX_LANES, 3);
        let mut panel = numbers(units * DEPTHS_OF_PARTS * width);
        panel.truncate(units * DEPTHS_OF_PARTS * width);
        for isa in Isa::available() {
            let mut words = vec![f32::NAN; units * WORDS_OF_PARTS * width];
            let (from, to) = (panel.as_ptr(), words.as_mut_ptr());
            dispatch(isa, SplitPanel { from, width, units, to });
            for column in 0..width {
                let column_of =
                    |of: &[f32]| of.iter().skip(column).step_by(width).copied().collect();
                let row: Vec<f32> = column_of(&panel);
                let mut expected = vec![f32::NAN; units * WORDS_OF_PARTS];
                dispatch(isa, SplitRow(&row, &mut expected));
                let found: Vec<f32> = column_of(&words);
                let bits = |words: &[f32]| words.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&found), bits(&expected), "{isa}: {column}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let nan = [0x7f80_0001, 0x7fff_ffff, 0xffc0_0000].map(f32::from_bits);
        for x in [f32::INFINITY, f32::NEG_INFINITY].into_iter().chain(nan) {
            for isa in Isa::available() {
                let mut words = vec![0.0; WORDS_OF_PARTS];
                dispatch(isa, SplitRow(&[x; DEPTHS_OF_PARTS], &mut words));
                let part = |part: usize| bf16::from_bits(words[part * TILE_WORDS].to_bits() as u16);
                assert!((0..3).map(part).any(bf16::is_nan), "{isa}: {x}");
            }
        }
    }
}
