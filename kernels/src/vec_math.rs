//! Elementary functions on vectors of f32, written once over [`Simd`]; no table, no branch but for
//! huge angles.
//!
//! Polynomials are those of the Cephes library (single precision). Largest errors, over all paths,
//! in units in the last place of the exact result, checked by the tests against f64:
//! `exp` 2, `log` 2, `rsqrt` 2, `tanh` 4, `sigmoid` 4, `silu` 4 (below -87 its sigmoid is
//! subnormal, and the error is up to `|x|` times that one's). `gelu_tanh` is within 4 ulp of the
//! larger of the result and `|x| / 8`: in the negative tail its exponent amplifies the rounding of
//! `x^3`. `sin` and `cos` are within 1.2e-7 of the exact value for every finite angle.

use half::{bf16, f16};

use crate::isa::Isa;
use crate::simd::{Simd, SimdJob, dispatch};

/// `1.5 * 2^23`: adding and subtracting it rounds to the nearest integer, and in between the low
/// mantissa bits hold that integer.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// Largest angle the vector code reduces; beyond it lanes are computed one by one in f64.
const MAX_ANGLE: f32 = 1e5;

/// `((c0 x + c1) x + c2) x + ...`.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::F, coefficients: [f32; N]) -> S::F {
    let mut sum = s.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        sum = s.mul_add(sum, x, s.splat(c));
    }
    sum
}

/// Nearest integer, ties to even, for `|x| < 2^22`.
#[inline(always)]
fn round<S: Simd>(s: S, x: S::F) -> S::F {
    let magic = s.splat(ROUND_MAGIC);
    s.sub(s.add(x, magic), magic)
}

/// `2^n` for an integer `n` in `-126..=127`.
#[inline(always)]
fn exp2_integer<S: Simd>(s: S, n: S::F) -> S::F {
    s.shl::<23>(s.add(n, s.splat(8_388_608.0 + 127.0)))
}

/// `e^x`; exact zero and infinity beyond the range of f32, gradual underflow in between.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // The second operand of min and max is the one that passes NaN on.
    let x = s.max(s.splat(-105.0), s.min(s.splat(89.0), x));
    let n = round(s, s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts; the first has few bits, so that n times it is exact.
    let r = s.neg_mul_add(n, s.splat(0.693_359_4), x);
    let r = s.neg_mul_add(n, s.splat(-2.121_944_4e-4), r);
    let p = polynomial(
        s,
        r,
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5],
    );
    let y = s.add(s.mul_add(s.mul(r, r), p, r), s.splat(1.0));
    // Two factors, because 2^n itself may be subnormal or infinite.
    let n1 = round(s, s.mul(n, s.splat(0.5)));
    s.mul(s.mul(y, exp2_integer(s, n1)), exp2_integer(s, s.sub(n, n1)))
}

/// `2^x` for `x <= 128`, within 2 ulp, infinite at 128; below -126 it is `2^-126`, give or take a half.
/// NaN stays NaN.
#[inline(always)]
pub fn exp2<S: Simd>(s: S, x: S::F) -> S::F {
    exp2_with(
        s,
        x,
        [
            1.535_336_2e-4,
            1.339_887_4e-3,
            9.618_437e-3,
            5.550_332_5e-2,
            2.402_264_8e-1,
            6.931_472e-1,
            1.0,
        ],
    )
}

/// As [`exp2`], within 8e-5 of the result: a twentieth of what rounding to bf16 then costs. The
/// cubic is the one with the least relative error.
#[inline(always)]
pub fn exp2_coarse<S: Simd>(s: S, x: S::F) -> S::F {
    exp2_with(s, x, [5.517_167e-2, 2.426_111_3e-1, 6.932_61e-1, 9.999_281e-1])
}

/// `2^x` with a polynomial for the fraction in `-1/2..=1/2`.
#[inline(always)]
fn exp2_with<S: Simd, const N: usize>(s: S, x: S::F, coefficients: [f32; N]) -> S::F {
    let x = s.max(s.splat(-126.0), x);
    let biased = s.add(x, s.splat(ROUND_MAGIC));
    let fraction = s.sub(x, s.sub(biased, s.splat(ROUND_MAGIC)));
    s.add_bits(polynomial(s, fraction, coefficients), s.shl::<23>(biased))
}

/// Natural logarithm; NaN below zero, negative infinity at zero.
#[inline(always)]
pub fn log<S: Simd>(s: S, x: S::F) -> S::F {
    let tiny = s.lt(x, s.splat(f32::MIN_POSITIVE));
    let scaled = s.select(tiny, s.mul(x, s.splat(8_388_608.0)), x);
    let bias = s.select(tiny, s.splat(126.0 + 23.0), s.splat(126.0));
    // x = m 2^e with m in [1/2, 1), then in [sqrt(1/2), sqrt(2)).
    let e = s.sub(s.bits_to_f32(s.shr::<23>(scaled)), bias);
    let m = s.or(s.and(scaled, s.splat_bits(0x007f_ffff)), s.splat(0.5));
    let small = s.lt(m, s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let e = s.select(small, s.sub(e, s.splat(1.0)), e);
    let m = s.sub(s.select(small, s.add(m, m), m), s.splat(1.0));
    let z = s.mul(m, m);
    let p = polynomial(
        s,
        m,
        [
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_8e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333e-1,
        ],
    );
    let y = s.mul(s.mul(m, z), p);
    let y = s.mul_add(e, s.splat(-2.121_944_4e-4), y);
    let y = s.neg_mul_add(s.splat(0.5), z, y);
    let y = s.mul_add(e, s.splat(0.693_359_4), s.add(m, y));
    let zero = s.splat(0.0);
    let y = s.select(s.lt(x, zero), s.splat(f32::NAN), y);
    let y = s.select(s.eq(x, zero), s.splat(f32::NEG_INFINITY), y);
    // Infinity and NaN are their own logarithm.
    s.select(s.le(x, s.splat(f32::MAX)), y, s.select(s.lt(x, zero), y, x))
}

/// `1 / sqrt(x)`.
#[inline(always)]
pub fn rsqrt<S: Simd>(s: S, x: S::F) -> S::F {
    s.div(s.splat(1.0), s.sqrt(x))
}

/// Hyperbolic tangent.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let a = s.abs(x);
    let z = s.mul(x, x);
    let p = polynomial(
        s,
        z,
        [-5.704_988_7e-3, 2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1],
    );
    let near = s.mul_add(s.mul(p, z), x, x);
    let one = s.splat(1.0);
    let e = exp(s, s.add(a, a));
    let far = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    let far = s.or(far, s.and(x, s.splat_bits(0x8000_0000)));
    s.select(s.lt(a, s.splat(0.625)), near, far)
}

/// `1 / (1 + e^-x)`, accurate in both tails.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let e = exp(s, s.or(x, s.splat_bits(0x8000_0000)));
    s.div(s.select(s.lt(x, s.splat(0.0)), e, one), s.add(one, e))
}

/// `x sigmoid(x)`.
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    s.mul(x, sigmoid(s, x))
}

/// GELU in its tanh form, as `x / (1 + 2^y)` with `y = -2 sqrt(2/pi) log2(e) (x + 0.044715 x^3)`.
#[inline(always)]
pub fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    const LINEAR: f32 = -2.302_208_2;
    const CUBIC: f32 = -0.102_943_24;
    let y = s.mul(x, s.mul_add(s.mul(x, x), s.splat(CUBIC), s.splat(LINEAR)));
    // From 128 on the power is infinite, and the result zero.
    let power = exp2(s, s.min(s.splat(128.0), y));
    s.div(x, s.add(s.splat(1.0), power))
}

/// Sine of radians.
#[inline(always)]
pub fn sin<S: Simd>(s: S, x: S::F) -> S::F {
    sin_quadrant(s, x, 0, f64::sin)
}

/// Cosine of radians.
#[inline(always)]
pub fn cos<S: Simd>(s: S, x: S::F) -> S::F {
    sin_quadrant(s, x, 1, f64::cos)
}

/// `sin(x + quarter_turns pi / 2)`; `exact` is the same function for huge angles.
#[inline(always)]
fn sin_quadrant<S: Simd>(s: S, x: S::F, quarter_turns: u32, exact: fn(f64) -> f64) -> S::F {
    let sign_bit = s.splat_bits(0x8000_0000);
    let magic = s.splat(ROUND_MAGIC);
    let biased = s.add(s.mul(x, s.splat(std::f32::consts::FRAC_2_PI)), magic);
    let n = s.sub(biased, magic);
    // pi / 2 in four parts; the first three have eight bits, so that n times them is exact up to
    // n = 2^16, with and without a fused multiply-add.
    let r = s.neg_mul_add(n, s.splat_bits(0x3fc9_0000), x);
    let r = s.neg_mul_add(n, s.splat_bits(0x39fd_0000), r);
    let r = s.neg_mul_add(n, s.splat_bits(0x35aa_0000), r);
    let r = s.neg_mul_add(n, s.splat_bits(0x3088_5a30), r);
    let z = s.mul(r, r);
    let p = polynomial(s, z, [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1]);
    let sine = s.mul_add(s.mul(p, z), r, r);
    let p = polynomial(s, z, [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2]);
    let half = s.neg_mul_add(s.splat(0.5), z, s.splat(1.0));
    let cosine = s.mul_add(s.mul(p, z), z, half);
    let turns = s.add_bits(biased, s.splat_bits(quarter_turns));
    // Bit 0 of the quadrant chooses the function, bit 1 the sign.
    let odd = s.lt(s.or(s.shl::<31>(turns), s.splat(1.0)), s.splat(0.0));
    let sign = s.and(s.shl::<30>(turns), sign_bit);
    let y = s.xor(s.select(odd, cosine, sine), sign);
    let huge = s.lt(s.splat(MAX_ANGLE), s.abs(x));
    if s.any(huge) { each_lane(s, x, huge, y, exact) } else { y }
}

/// `f` in f64 on the lanes of `x` in `mask`, `y` elsewhere.
#[inline(always)]
fn each_lane<S: Simd>(s: S, x: S::F, mask: S::M, y: S::F, f: fn(f64) -> f64) -> S::F {
    let mut lanes = [0f32; crate::simd::MAX_LANES];
    // SAFETY: the buffer holds MAX_LANES >= LANES values.
    unsafe {
        s.store(lanes.as_mut_ptr(), x);
        for lane in &mut lanes[..S::LANES] {
            *lane = f(f64::from(*lane)) as f32;
        }
        s.select(mask, s.load(lanes.as_ptr()), y)
    }
}

macro_rules! convert {
    ($($(#[$doc:meta])* $name:ident $from:ty as $from_bits:ty, $to:ty as $to_bits:ty, $load:ident, $load_n:ident, $store:ident, $store_n:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Panics
        /// If the lengths differ.
        pub fn $name(isa: Isa, from: &[$from], to: &mut [$to]) {
            struct Convert<'a>(&'a [$from], &'a mut [$to]);
            impl SimdJob for Convert<'_> {
                type Output = ();
                #[inline(always)]
                fn run<S: Simd>(self, s: S) {
                    let n = self.0.len();
                    let (from, to) = (self.0.as_ptr().cast::<$from_bits>(), self.1.as_mut_ptr().cast::<$to_bits>());
                    let mut i = 0;
                    // SAFETY: both slices have n elements of the types the loads and stores take.
                    unsafe {
                        while i + S::LANES <= n {
                            s.$store(to.add(i), s.$load(from.add(i)));
                            i += S::LANES;
                        }
                        if i < n {
                            s.$store_n(to.add(i), s.$load_n(from.add(i), n - i), n - i);
                        }
                    }
                }
            }
            assert_eq!(from.len(), to.len(), "conversion needs equal lengths");
            dispatch(isa, Convert(from, to));
        }
    )*};
}

convert! {
    /// Widens, exactly.
    bf16_to_f32 bf16 as u16, f32 as f32, load_bf16, load_bf16_n, store, store_n;
    /// Rounds to nearest even; NaN stays NaN.
    f32_to_bf16 f32 as f32, bf16 as u16, load, load_n, store_bf16, store_bf16_n;
    /// Widens, exactly.
    f16_to_f32 f16 as u16, f32 as f32, load_f16, load_f16_n, store, store_n;
    /// Rounds to nearest even; NaN stays NaN.
    f32_to_f16 f32 as f32, f16 as u16, load, load_n, store_f16, store_f16_n;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `STEP`-th f32 bit pattern is tried: some 200,000 values of each function.
    const STEP: u32 = 20_011;

    struct Map<'a>(&'static str, &'a [f32], &'a mut [f32]);

    impl SimdJob for Map<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (x, y) in self.1.chunks(S::LANES).zip(self.2.chunks_mut(S::LANES)) {
                // SAFETY: the chunks have the length that is passed.
                unsafe {
                    let v = s.load_n(x.as_ptr(), x.len());
                    let v = match self.0 {
                        "exp" => exp(s, v),
                        "exp2" => exp2(s, v),
                        "exp2_coarse" => exp2_coarse(s, v),
                        "log" => log(s, v),
                        "rsqrt" => rsqrt(s, v),
                        "tanh" => tanh(s, v),
                        "sigmoid" => sigmoid(s, v),
                        "silu" => silu(s, v),
                        "gelu_tanh" => gelu_tanh(s, v),
                        "sin" => sin(s, v),
                        "cos" => cos(s, v),
                        "round_bf16" => s.round_bf16(v),
                        other => panic!("unknown function {other}"),
                    };
                    s.store_n(y.as_mut_ptr(), v, y.len());
                }
            }
        }
    }

    fn map(isa: Isa, name: &'static str, xs: &[f32]) -> Vec<f32> {
        let mut ys = vec![0.0; xs.len()];
        dispatch(isa, Map(name, xs, &mut ys));
        ys
    }

    /// Distance to the next f32 at `x`, that of the smallest normal number below it.
    fn ulp(x: f64) -> f64 {
        let exponent = ((x.abs().to_bits() >> 52) as i32 - 1023).max(-126);
        2f64.powi(exponent - 23)
    }

    fn inputs() -> Vec<f32> {
        let mut xs: Vec<f32> = (0..u32::MAX / STEP)
            .map(|i| f32::from_bits(i * STEP))
            .filter(|x| !x.is_nan())
            .collect();
        // The bit patterns are thin where most activations are.
        xs.extend((-100_000..100_000).map(|i| i as f32 * 1.3e-4));
        xs.extend((-100_000..100_000).map(|i| i as f32 * 0.99));
        xs.extend([0.0, -0.0, 1.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN]);
        xs
    }

    /// `error(x, exact)` is the allowed error.
    fn check(name: &'static str, exact: fn(f64) -> f64, allowed: fn(f64, f64) -> f64) {
        let xs = inputs();
        for isa in Isa::available() {
            for (&x, y) in xs.iter().zip(map(isa, name, &xs)) {
                let expected = exact(f64::from(x));
                if expected.is_nan() {
                    assert!(y.is_nan(), "{isa} {name}({x:e}) is {y:e}, expected NaN");
                } else if expected.abs() > f64::from(f32::MAX) {
                    assert!(f64::from(y) == f64::from(expected as f32) || y.abs() == f32::MAX);
                } else {
                    let error = (f64::from(y) - expected).abs();
                    let limit = allowed(f64::from(x), expected);
                    assert!(error <= limit, "{isa} {name}({x:e}) is {y:e}, expected {expected:e}");
                }
            }
            assert!(map(isa, name, &[f32::NAN])[0].is_nan(), "{isa} {name}(NaN)");
        }
    }

    fn logistic(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    #[test]
    fn exp_is_within_two_ulps() {
        check("exp", f64::exp, |_, y| 2.0 * ulp(y));
    }

    #[test]
    fn exp2_is_within_its_bounds_where_it_is_defined() {
        let xs: Vec<f32> = inputs().into_iter().filter(|x| *x <= 126.0).collect();
        for isa in Isa::available() {
            for (name, bound) in [("exp2", 2.4e-7), ("exp2_coarse", 8e-5)] {
                for (&x, y) in xs.iter().zip(map(isa, name, &xs)) {
                    if x >= -126.0 {
                        let error = f64::from(y) / f64::from(x).exp2() - 1.0;
                        assert!(error.abs() <= bound, "{isa} {name}({x:e}) is {y:e}: {error:e}");
                    } else {
                        assert!((0.0..=1.5 * 2f32.powi(-126)).contains(&y), "{isa} {name}({x:e})");
                    }
                }
                assert!(map(isa, name, &[f32::NAN])[0].is_nan(), "{isa} {name}(NaN)");
            }
        }
    }

    #[test]
    fn log_is_within_two_ulps() {
        check("log", f64::ln, |_, y| 2.0 * ulp(y));
    }

    #[test]
    fn rsqrt_is_within_two_ulps() {
        check("rsqrt", |x| 1.0 / x.sqrt(), |_, y| 2.0 * ulp(y));
    }

    #[test]
    fn tanh_is_within_four_ulps() {
        check("tanh", f64::tanh, |_, y| 4.0 * ulp(y));
    }

    #[test]
    fn sigmoid_and_silu_are_within_four_ulps() {
        check("sigmoid", logistic, |_, y| 4.0 * ulp(y));
        // At negative infinity the product is 0 times infinity, as in the definition.
        check(
            "silu",
            |x| if x == f64::NEG_INFINITY { f64::NAN } else { x * logistic(x) },
            |x, y| 4.0 * ulp(y) + 2.0 * x.abs() * f64::from(f32::from_bits(1)),
        );
    }

    #[test]
    fn gelu_is_within_four_ulps_of_its_scale() {
        let exact = |x: f64| {
            if x == f64::NEG_INFINITY {
                return f64::NAN;
            }
            x * logistic(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x))
        };
        check("gelu_tanh", exact, |x, y| 4.0 * ulp(y.abs().max(x.abs() / 8.0)));
    }

    #[test]
    fn sin_and_cos_are_within_1_2e_7() {
        check("sin", f64::sin, |_, _| 1.2e-7);
        check("cos", f64::cos, |_, _| 1.2e-7);
    }

    #[test]
    fn conversions_round_as_the_scalar_ones() {
        let xs = inputs();
        for isa in Isa::available() {
            let mut narrow = vec![bf16::ZERO; xs.len()];
            f32_to_bf16(isa, &xs, &mut narrow);
            assert!(xs.iter().zip(&narrow).all(|(&x, &y)| bf16::from_f32(x) == y), "{isa}");
            let rounded = map(isa, "round_bf16", &xs);
            let mut wide = vec![0.0; xs.len()];
            bf16_to_f32(isa, &narrow, &mut wide);
            assert_eq!(wide, rounded, "{isa}");
            let mut narrow = vec![f16::ZERO; xs.len()];
            f32_to_f16(isa, &xs, &mut narrow);
            assert!(xs.iter().zip(&narrow).all(|(&x, &y)| f16::from_f32(x) == y), "{isa}");
            f16_to_f32(isa, &narrow, &mut wide);
            assert!(wide.iter().zip(&narrow).all(|(&x, &y)| x == y.to_f32()), "{isa}");
        }
    }
}
