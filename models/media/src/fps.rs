//! Frame rates as fractions, and when each frame starts in a container's clock.
//!
//! Invariant: a start time is rounded from the exact fraction, so rounding errors never add up.

use crate::{Error, Result};

/// Frames per second, a reduced fraction between 1/1000 and 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fps {
    num: u32,
    den: u32,
}

impl Fps {
    /// The rate `num / den` frames per second.
    ///
    /// # Errors
    /// [`Error::FrameRate`] when it is not between 1/1000 and 1000, or a reduced term exceeds one million.
    pub fn new(num: u32, den: u32) -> Result<Self> {
        let bad = || Error::FrameRate { found: format!("{num}/{den}") };
        let divisor = gcd(num, den);
        if num == 0 || den == 0 {
            return Err(bad());
        }
        let (num, den) = (num / divisor, den / divisor);
        let in_range = u64::from(num) <= 1000 * u64::from(den)
            && u64::from(num) * 1000 >= u64::from(den)
            && num <= 1_000_000
            && den <= 1_000_000;
        if in_range { Ok(Self { num, den }) } else { Err(bad()) }
    }

    /// The nearest rate to `value`: whole numbers stay whole, 23.976, 29.97 and 59.94 become the broadcast
    /// fractions over 1001, anything else is rounded to thousandths.
    ///
    /// # Errors
    /// [`Error::FrameRate`] as for [`Fps::new`], and for NaN and infinities.
    pub fn from_f64(value: f64) -> Result<Self> {
        if !(0.001..=1000.0).contains(&value) {
            return Err(Error::FrameRate { found: value.to_string() });
        }
        let broadcast = (value * 1.001).round();
        // Written with two or three decimals, so within half of the second decimal.
        if value.fract() != 0.0 && broadcast >= 24.0 && (broadcast / 1.001 - value).abs() < 0.005 {
            return Self::new(broadcast as u32 * 1000, 1001);
        }
        Self::new((value * 1000.0).round() as u32, 1000)
    }

    /// Numerator: frames in [`Fps::den`] seconds.
    pub fn num(self) -> u32 {
        self.num
    }

    /// Denominator, in seconds.
    pub fn den(self) -> u32 {
        self.den
    }

    /// Frames per second, rounded to f64.
    pub fn as_f64(self) -> f64 {
        f64::from(self.num) / f64::from(self.den)
    }

    /// When frame `index` starts, in ticks of `1 / ticks_per_second`, rounded to nearest.
    pub(crate) fn start(self, index: u64, ticks_per_second: u32) -> u64 {
        let num = u128::from(self.num);
        let ticks = u128::from(index) * u128::from(self.den) * u128::from(ticks_per_second);
        u64::try_from((ticks + num / 2) / num).unwrap_or(u64::MAX)
    }

    /// How long frame `index` lasts, in ticks: the difference of two rounded starts.
    pub(crate) fn duration(self, index: u64, ticks_per_second: u32) -> u64 {
        self.start(index + 1, ticks_per_second) - self.start(index, ticks_per_second)
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up_to_the_exact_length() {
        let fps = Fps::new(24, 1).unwrap();
        let total: u64 = (0..48).map(|i| fps.duration(i, 100)).sum();
        assert_eq!(total, 200);
        // 100/24 = 4.17 ticks, so some frames last 4 and some 5.
        assert!((0..48).all(|i| matches!(fps.duration(i, 100), 4 | 5)));
    }

    #[test]
    fn decimals_become_broadcast_fractions() {
        for (value, num, den) in
            [(23.976, 24000, 1001), (29.97, 30000, 1001), (8.0, 8, 1), (12.5, 25, 2), (0.5, 1, 2)]
        {
            assert_eq!(Fps::from_f64(value).unwrap(), Fps { num, den }, "{value}");
        }
    }

    #[test]
    fn rejects_rates_out_of_range() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1000.5] {
            assert!(Fps::from_f64(bad).is_err(), "{bad}");
        }
        for (num, den) in [(0, 1), (1, 0), (0, 0), (1001, 1), (1, 1001), (1_000_001, 1_000_000)] {
            assert!(Fps::new(num, den).is_err(), "{num}/{den}");
        }
    }
}
