//! The numbers of Python's `random` module, which upstream draws training masks with.

use crate::mersenne_twister::MersenneTwister;

/// A `random.Random`.
#[derive(Clone, Debug)]
pub struct PythonRandom(MersenneTwister);

impl PythonRandom {
    /// As `random.seed(seed)`.
    pub fn new(seed: u64) -> PythonRandom {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        let key = [low, high];
        PythonRandom(MersenneTwister::from_key(if high == 0 { &key[..1] } else { &key }))
    }

    /// As `random.random()`: 53 bits, in 0..1.
    pub fn random(&mut self) -> f64 {
        let (high, low) = (self.0.word() >> 5, self.0.word() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// As `random.randint(low, high)`: both ends are included, and `low` may not be above `high`.
    pub fn randint(&mut self, low: u32, high: u32) -> u32 {
        let count = u64::from(high - low) + 1;
        let n_bits = u64::BITS - count.leading_zeros();
        loop {
            // Upstream's generator takes words for bits from the lowest on; 33 bits need two.
            let bits = match n_bits {
                33 => u64::from(self.0.word()) | (u64::from(self.0.word() >> 31) << 32),
                n => u64::from(self.0.word() >> (32 - n)),
            };
            if bits < count {
                return low + bits as u32;
            }
        }
    }

    /// As `random.uniform(low, high)`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.random()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of Python after `seed(2**64 - 1)`.
    #[test]
    fn a_seed_of_two_words_is_pythons() {
        let mut random = PythonRandom::new(u64::MAX);
        assert_eq!(random.random(), 0.021825695401270107);
        assert_eq!(random.randint(0, u32::MAX), 910_393_425);
        assert_eq!(random.randint(3, 3), 3);
        assert_eq!(random.uniform(0.1, 0.9), 0.8356567853737586);
    }

    #[test]
    fn whole_numbers_reach_both_ends_and_stay_inside() {
        let mut random = PythonRandom::new(7);
        let mut seen = [0usize; 3];
        for _ in 0..300 {
            seen[random.randint(5, 7) as usize - 5] += 1;
        }
        assert!(seen.iter().all(|&n| n > 50), "{seen:?}");
        assert_eq!(random.randint(9, 9), 9);
        for _ in 0..100 {
            random.randint(0, u32::MAX);
        }
    }
}
