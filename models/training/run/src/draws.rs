//! The random numbers of a run: each a function of the run's seed, the epoch, the batch in it, and what it is
//! for. So a run that goes on draws what it would have drawn, and nothing has to be stored.

use data::{MaskRatios, PythonRandom, TorchRandom};
use ops::philox::philox4x32;
use training::TimestepSampler;

/// What a number is for. Where videos are cut is drawn with the same seed and small numbers in this place.
#[derive(Clone, Copy)]
enum Purpose {
    Posterior = 1 << 16,
    Noise,
    Timesteps,
    Captions,
    Masks,
    Mirrored,
}

/// The draws of one batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draws {
    pub(crate) seed: u64,
    pub(crate) epoch: u64,
    /// Number of the batch in the epoch.
    pub(crate) batch: u64,
}

impl Draws {
    /// A seed that no other purpose, batch or epoch has.
    fn key(self, purpose: Purpose) -> u64 {
        let halves = |word: u64| [word as u32, (word >> 32) as u32];
        let ([batch, high], [epoch, _]) = (halves(self.batch), halves(self.epoch));
        let words = philox4x32([batch, high, epoch, purpose as u32], halves(self.seed));
        u64::from(words[0]) | (u64::from(words[1]) << 32)
    }

    /// Standard normal numbers that latents are drawn from their posteriors with.
    pub(crate) fn posterior(self, count: usize) -> Vec<f32> {
        self.normal(Purpose::Posterior, count)
    }

    /// Standard normal numbers that latents are noised with.
    pub(crate) fn noise(self, count: usize) -> Vec<f32> {
        self.normal(Purpose::Noise, count)
    }

    fn normal(self, purpose: Purpose, count: usize) -> Vec<f32> {
        let mut values = vec![0f32; count];
        diffusion::fill_normal(self.key(purpose), 0, 0, &mut values);
        values
    }

    /// A timestep for each row.
    pub(crate) fn timesteps(self, sampler: &TimestepSampler, rows: usize) -> Vec<i64> {
        sampler.draw(self.key(Purpose::Timesteps), 0, rows)
    }

    /// Which rows lose their caption.
    pub(crate) fn dropped_captions(self, share: f64, rows: usize) -> Vec<u8> {
        let mut random = PythonRandom::new(self.key(Purpose::Captions));
        (0..rows).map(|_| u8::from(random.random() < share)).collect()
    }

    /// Which of its frames each row learns, `[rows, frames]`.
    pub(crate) fn masks(self, ratios: &MaskRatios, rows: usize, frames: usize) -> Vec<u8> {
        let key = self.key(Purpose::Masks);
        let (mut python, mut torch) = (PythonRandom::new(key), TorchRandom::new(key));
        let row = |_| ratios.draw(frames, &mut python, &mut torch);
        (0..rows).flat_map(row).map(u8::from).collect()
    }

    /// Whether the video of the table's row `batch` is mirrored in this epoch.
    pub(crate) fn is_mirrored(self) -> bool {
        self.key(Purpose::Mirrored) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_purpose_batch_or_epoch_shares_a_key() {
        let mut keys = vec![];
        for seed in [0, 42] {
            for epoch in 0..3 {
                for batch in 0..3 {
                    let draws = Draws { seed, epoch, batch };
                    keys.extend(
                        [Purpose::Posterior, Purpose::Noise, Purpose::Masks].map(|p| draws.key(p)),
                    );
                }
            }
        }
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }

    #[test]
    fn captions_are_dropped_by_their_share() {
        let dropped = |share, batch| Draws { seed: 1, epoch: 0, batch }.dropped_captions(share, 50);
        let count =
            |share| (0..40).flat_map(|batch| dropped(share, batch)).filter(|d| *d == 1).count();
        assert_eq!(count(0.0), 0);
        // 2000 draws: within five deviations of 200, which are 13 each.
        assert!((133..267).contains(&count(0.1)), "{}", count(0.1));
        assert_eq!(dropped(0.5, 3), dropped(0.5, 3));
        assert_ne!(dropped(0.5, 3), dropped(0.5, 4));
    }
}
