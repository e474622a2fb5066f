//! Rounding of exact values to floating-point formats, in the four directions.
//!
//! A sum or quotient is first *rounded to odd* in f64: if inexact, its last bit is set. Rounding that to a
//! format with at least two bits less gives what rounding the exact value would.

/// Direction of a rounding.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Rounding {
    /// To nearest, ties to even.
    Nearest,
    /// To nearest, ties away from zero.
    Away,
    Zero,
    Down,
    Up,
}

impl Rounding {
    /// The direction that a modifier names, as of `rn` or `rni`.
    pub(crate) fn parse(modifier: &str) -> Option<Self> {
        Some(match modifier {
            "rn" | "rni" => Self::Nearest,
            "rna" => Self::Away,
            "rz" | "rzi" => Self::Zero,
            "rm" | "rmi" => Self::Down,
            "rp" | "rpi" => Self::Up,
            _ => return None,
        })
    }

    /// To an integer.
    pub(crate) fn integral(self, x: f64) -> f64 {
        match self {
            Self::Nearest => x.round_ties_even(),
            Self::Away => x.round(),
            Self::Zero => x.trunc(),
            Self::Down => x.floor(),
            Self::Up => x.ceil(),
        }
    }
}

/// A binary format: bits of the exponent and of the fraction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    exponent_bits: u32,
    fraction_bits: u32,
}

pub(crate) const F16: Format = Format { exponent_bits: 5, fraction_bits: 10 };
pub(crate) const BF16: Format = Format { exponent_bits: 8, fraction_bits: 7 };
pub(crate) const TF32: Format = Format { exponent_bits: 8, fraction_bits: 10 };
pub(crate) const F32: Format = Format { exponent_bits: 8, fraction_bits: 23 };

impl Format {
    /// The bits of `x` rounded to this format. NaN becomes the device's, with all bits but the sign set.
    pub(crate) fn round(self, x: f64, rounding: Rounding) -> u32 {
        let Self { exponent_bits, fraction_bits } = self;
        let sign = u32::from(x.is_sign_negative()) << (exponent_bits + fraction_bits);
        let infinity = ((1 << exponent_bits) - 1) << fraction_bits;
        if x.is_nan() {
            return infinity | ((1 << fraction_bits) - 1);
        }
        if x.is_infinite() {
            return sign | infinity;
        }
        if x == 0.0 {
            return sign;
        }
        let bits = x.to_bits() & (u64::MAX >> 1);
        // x = significand * 2^(exponent - 52), with bit 52 set; a subnormal f64 is scaled up.
        let (mut significand, mut exponent) = (bits & ((1 << 52) - 1), (bits >> 52) as i32 - 1023);
        if exponent == -1023 {
            let n_zeros = significand.leading_zeros().saturating_sub(11);
            significand <<= n_zeros;
            exponent = -1022 - n_zeros.cast_signed();
        } else {
            significand |= 1 << 52;
        }
        let least = 2 - (1 << (exponent_bits - 1));
        let below = (least - exponent).max(0).cast_unsigned();
        let dropped = (52 - fraction_bits + below).min(54);
        let (kept, rest) = (significand >> dropped, significand & ((1 << dropped) - 1));
        let half = 1_u64 << (dropped - 1);
        let is_up = match rounding {
            Rounding::Nearest => rest > half || rest == half && kept & 1 == 1,
            Rounding::Away => rest >= half,
            Rounding::Zero => false,
            Rounding::Down => sign != 0 && rest != 0,
            Rounding::Up => sign == 0 && rest != 0,
        };
        let magnitude = u64::from((exponent - least).max(0).cast_unsigned());
        let magnitude = (magnitude << fraction_bits) + kept + u64::from(is_up);
        if magnitude >= u64::from(infinity) {
            let is_infinite = match rounding {
                Rounding::Nearest | Rounding::Away => true,
                Rounding::Zero => false,
                Rounding::Down => sign != 0,
                Rounding::Up => sign == 0,
            };
            return sign | if is_infinite { infinity } else { infinity - 1 };
        }
        sign | magnitude as u32
    }
}

/// `x`, which differs from an exact value by `error` (exact - x, of which only the sign counts), rounded to odd.
pub(crate) fn to_odd(x: f64, error: f64) -> f64 {
    let is_exact = error == 0.0 || error.is_nan() || !x.is_finite();
    if is_exact || x.to_bits() & 1 == 1 {
        return x;
    }
    // The neighbor on the side of the exact value has an odd last bit.
    if error > 0.0 { x.next_up() } else { x.next_down() }
}

/// x + y rounded to odd.
pub(crate) fn add_odd(x: f64, y: f64) -> f64 {
    let sum = x + y;
    let y_part = sum - x;
    let error = (x - (sum - y_part)) + (y - y_part);
    to_odd(sum, error)
}

/// `x` rounded in f64 in a direction, where the exact value is x + error.
pub(crate) fn directed(x: f64, error: f64, rounding: Rounding) -> f64 {
    if error == 0.0 || error.is_nan() || !x.is_finite() {
        return x;
    }
    match rounding {
        Rounding::Nearest | Rounding::Away => x,
        Rounding::Down if error < 0.0 => x.next_down(),
        Rounding::Up if error > 0.0 => x.next_up(),
        Rounding::Zero if error < 0.0 && x > 0.0 => x.next_down(),
        Rounding::Zero if error > 0.0 && x < 0.0 => x.next_up(),
        Rounding::Down | Rounding::Up | Rounding::Zero => x,
    }
}

/// The value of bits of f16.
#[inline]
pub(crate) fn f16_value(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    let sign = u32::from(bits & 0x8000) << 16;
    // 2^112 moves the exponent's bias from 15 to 127, for subnormals too; infinity and NaN are set apart.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    let value = if magnitude >= 0x7c00 { magnitude << 13 | 0x7f80_0000 } else { scaled.to_bits() };
    f32::from_bits(sign | value)
}

/// The value of bits of bf16.
#[inline]
pub(crate) fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// `x` rounded to the nearest bf16, without the detour over f64.
#[inline]
pub(crate) fn nearest_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7fff } else { rounded as u16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_f32_agrees_with_the_processor() {
        for i in 0..200_000_u64 {
            let x = f64::from_bits(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            // Into and around the range of f32.
            let x = if i % 2 == 0 { x } else { x.fract() * 2.0_f64.powi((i % 300) as i32 - 160) };
            if !x.is_nan() {
                assert_eq!(F32.round(x, Rounding::Nearest), (x as f32).to_bits(), "{x:e}");
            }
        }
    }

    #[test]
    fn directions_bracket_the_value() {
        for x in [1.000_000_01, -1.000_000_01, 1e-42, -3e-46, 7e37, -3.3e38, 5e39, -5e39] {
            let [down, up, zero] = [Rounding::Down, Rounding::Up, Rounding::Zero]
                .map(|rounding| f64::from(f32::from_bits(F32.round(x, rounding))));
            assert!(down <= x && x <= up && down < up, "{x}: {down} {up}");
            assert_eq!(zero, if x > 0.0 { down } else { up });
        }
    }

    #[test]
    fn every_f16_survives_a_round_trip() {
        for bits in 0..=u16::MAX {
            let value = f16_value(bits);
            if !value.is_nan() {
                assert_eq!(F16.round(f64::from(value), Rounding::Nearest), u32::from(bits));
            }
        }
        assert_eq!(f16_value(0x3c01), 1.0 + 1.0 / 1024.0);
        assert_eq!(f16_value(1), 2.0_f32.powi(-24));
    }

    #[test]
    fn both_ways_to_bf16_agree() {
        for i in 0..100_000_u32 {
            let x = f32::from_bits(i.wrapping_mul(0x9e37_79b9));
            if !x.is_nan() {
                let expected = BF16.round(f64::from(x), Rounding::Nearest);
                assert_eq!(u32::from(nearest_bf16(x)), expected, "{x:e}");
            }
        }
    }

    #[test]
    fn a_sum_rounded_to_odd_is_rounded_once() {
        // 1 + 2^-8 is a tie of bf16; the small term decides, though f64 alone would lose it.
        let sum = add_odd(1.0 + 2.0_f64.powi(-8), 2.0_f64.powi(-80));
        assert_eq!(BF16.round(sum, Rounding::Nearest), 0x3f81);
        let sum = add_odd(1.0 + 2.0_f64.powi(-8), -2.0_f64.powi(-80));
        assert_eq!(BF16.round(sum, Rounding::Nearest), 0x3f80);
    }
}
