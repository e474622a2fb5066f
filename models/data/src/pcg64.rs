//! The numbers of numpy's `default_rng`, which upstream draws buckets with.
//!
//! PCG XSL RR 128/64 (O'Neill, "PCG: a family of simple fast space-efficient statistically good algorithms
//! for random number generation", 2014), seeded through numpy's `SeedSequence`, a hash of the seed
//! into four words and of those into as many as are asked for.

const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

/// A `numpy.random.Generator` of the default kind.
#[derive(Clone, Debug)]
pub struct Pcg64 {
    state: u128,
    increment: u128,
}

impl Pcg64 {
    /// As `default_rng(seed)`.
    pub fn new(seed: u128) -> Pcg64 {
        let words = seed_words(seed);
        let wide = |high: usize| (u128::from(words[high]) << 64) | u128::from(words[high + 1]);
        let mut generator = Pcg64 { state: 0, increment: (wide(2) << 1) | 1 };
        generator.step();
        generator.state = generator.state.wrapping_add(wide(0));
        generator.step();
        generator
    }

    /// As `random()`: 53 bits, in 0..1.
    pub fn random(&mut self) -> f64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        let word = folded.rotate_right((self.state >> 122) as u32);
        (word >> 11) as f64 / 9_007_199_254_740_992.0
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }
}

/// A hash whose constant moves on with every word.
struct Hash {
    constant: u32,
    factor: u32,
}

impl Hash {
    fn word(&mut self, value: u32) -> u32 {
        let value = value ^ self.constant;
        self.constant = self.constant.wrapping_mul(self.factor);
        let value = value.wrapping_mul(self.constant);
        value ^ (value >> 16)
    }
}

/// `SeedSequence(seed).generate_state(4, uint64)`.
fn seed_words(seed: u128) -> [u64; 4] {
    let mut hash = Hash { constant: 0x43b0_d7e5, factor: 0x931e_8875 };
    let mut pool = [0, 32, 64, 96].map(|bit| hash.word((seed >> bit) as u32));
    for from in 0..4 {
        for to in 0..4 {
            if from != to {
                let mixed = 0xca01_f9ddu32
                    .wrapping_mul(pool[to])
                    .wrapping_sub(0x4973_f715u32.wrapping_mul(hash.word(pool[from])));
                pool[to] = mixed ^ (mixed >> 16);
            }
        }
    }
    let mut hash = Hash { constant: 0x8b51_f9dd, factor: 0x58f3_8ded };
    let halves: [u32; 8] = std::array::from_fn(|i| hash.word(pool[i % 4]));
    std::array::from_fn(|i| u64::from(halves[2 * i]) | (u64::from(halves[2 * i + 1]) << 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of numpy; more are in the golden files.
    #[test]
    fn seeds_of_several_words_are_numpys() {
        let expected = [
            ((1 << 63) + 12_345, 0.4941863433683745),
            ((1 << 64) - 1, 0.6800266789616931),
            ((1 << 64) + 12_345, 0.9798065138848988),
        ];
        for (seed, first) in expected {
            assert_eq!(Pcg64::new(seed).random(), first, "seed {seed}");
        }
    }
}
