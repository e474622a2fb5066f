//! Random numbers by place: each stream is a function of a seed and of what it is for.

use ops::philox::philox4x32;

/// What a stream is for; streams of different purposes have no number in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Which prompts are asked for.
    Prompts,
    /// Which clips are in a batch.
    Order,
    /// How a clip is augmented.
    Augmentation,
    /// How much noise latents get before they are decoded.
    LatentNoise,
}

/// The numbers of one stream, one after the other.
#[derive(Clone, Debug)]
pub struct Draws {
    key: [u32; 2],
    /// Words 1 to 3 of the counter; word 0 counts groups of four.
    place: [u32; 3],
    n_groups: u32,
    words: [u32; 4],
    n_left: usize,
}

impl Draws {
    /// The stream of `purpose` at a place.
    pub fn new(seed: u64, purpose: Purpose, [a, b]: [u64; 2]) -> Draws {
        Draws {
            key: [seed as u32, (seed >> 32) as u32],
            place: [a as u32, b as u32, purpose as u32],
            n_groups: 0,
            words: [0; 4],
            n_left: 0,
        }
    }

    fn word(&mut self) -> u32 {
        if self.n_left == 0 {
            let [a, b, c] = self.place;
            self.words = philox4x32([self.n_groups, a, b, c], self.key);
            self.n_groups += 1;
            self.n_left = 4;
        }
        self.n_left -= 1;
        self.words[self.n_left]
    }

    /// A number from 0 to below 1.
    pub fn uniform(&mut self) -> f64 {
        f64::from(self.word()) / 4_294_967_296.0
    }

    /// A number from `low` to below `high`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// A number below `n`, which is above 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.word()) * n as u64) >> 32) as usize
    }

    /// Whether something does that happens in this share of the cases.
    pub fn happens(&mut self, share: f64) -> bool {
        self.uniform() < share
    }

    /// About standard normal: the sum of four bytes, cheap enough for every pixel.
    pub fn about_normal(&mut self) -> f32 {
        let sum: u32 = self.word().to_le_bytes().into_iter().map(u32::from).sum();
        // Four times the mean and twice the deviation of an even number from 0 to 255.
        (sum as f32 - 510.0) / 147.8
    }

    /// Brings `items` into a drawn order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last + 1);
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_distributions_and_streams_differ() {
        let mut draws = Draws::new(7, Purpose::Augmentation, [3, 4]);
        let values: Vec<f64> = (0..4000).map(|_| f64::from(draws.about_normal())).collect();
        let mean = values.iter().sum::<f64>() / 4000.0;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 4000.0;
        assert!(mean.abs() < 0.06 && (variance - 1.0).abs() < 0.08, "{mean} {variance}");
        let mut counts = [0usize; 5];
        (0..5000).for_each(|_| counts[draws.below(5)] += 1);
        assert!(counts.iter().all(|n| (880..1120).contains(n)), "{counts:?}");
        let first = |purpose, place| Draws::new(7, purpose, place).uniform();
        assert_ne!(first(Purpose::Order, [3, 4]), first(Purpose::Augmentation, [3, 4]));
        assert_ne!(first(Purpose::Order, [3, 4]), first(Purpose::Order, [4, 3]));
        let mut items: Vec<usize> = (0..50).collect();
        draws.shuffle(&mut items);
        assert!(!items.is_sorted());
        items.sort_unstable();
        assert!(items.into_iter().eq(0..50));
    }
}
