//! Which timesteps training draws. A draw is a function of seed, draw number and row, so that a resumed
//! run, or a run on other hardware, draws the same.

use diffusion::schedule::{Precision, SpeedTables, TRAIN_STEPS, Tables};
use ops::philox::philox4x32;

use crate::{Error, Weighting};

/// Set in the counters of timesteps and not in those of noise, which share seeds and draw numbers.
const STREAM: u32 = 1 << 31;

/// A distribution of timesteps.
#[derive(Clone, PartialEq, Debug)]
pub enum TimestepSampler {
    /// All alike.
    Uniform,
    /// More where the noise level changes fast, and in pairs: `iddpm-speed`.
    Speed {
        /// Probability that a draw is at most each timestep; the last is 1.
        cumulative: Vec<f64>,
        /// What a timestep and its partner differ by, see [`SpeedTables`].
        meaningful_steps: usize,
    },
}

impl TimestepSampler {
    /// The distribution that goes with a weighting of the loss.
    ///
    /// # Errors
    /// As [`Tables::linear`].
    pub fn new(precision: Precision, weighting: Weighting) -> Result<TimestepSampler, Error> {
        Ok(match weighting {
            Weighting::Uniform | Weighting::MinSnr { .. } => TimestepSampler::Uniform,
            Weighting::Speed => {
                TimestepSampler::speed(&SpeedTables::new(&Tables::linear("", precision)?))
            }
        })
    }

    /// The distribution of these tables.
    pub fn speed(tables: &SpeedTables) -> TimestepSampler {
        let mut sum = 0.0;
        let running = |p: &f64| {
            sum += p;
            sum
        };
        let mut cumulative: Vec<f64> = tables.probabilities.iter().map(running).collect();
        if let Some(last) = cumulative.last_mut() {
            *last = 1.0;
        }
        TimestepSampler::Speed { cumulative, meaningful_steps: tables.meaningful_steps }
    }

    /// Timesteps below 1000 for `rows` rows.
    pub fn draw(&self, seed: u64, draw: u64, rows: usize) -> Vec<i64> {
        match self {
            TimestepSampler::Uniform => {
                let steps = TRAIN_STEPS as f64;
                (0..rows).map(|row| (uniform(seed, draw, row) * steps) as i64).collect()
            }
            TimestepSampler::Speed { cumulative, meaningful_steps } => {
                let meaningful = *meaningful_steps as i64;
                let mut drawn: Vec<i64> = (0..rows / 2 + 1)
                    .map(|row| {
                        let u = uniform(seed, draw, row);
                        cumulative.partition_point(|&up_to| up_to <= u) as i64
                    })
                    .collect();
                let partner =
                    |t: &i64| if *t < meaningful { meaningful - t } else { t - meaningful };
                let partners: Vec<i64> = drawn.iter().map(partner).collect();
                drawn.extend(partners);
                drawn.truncate(rows);
                drawn
            }
        }
    }
}

/// A number in [0, 1) of 53 bits: element `row` of draw `draw`.
pub(crate) fn uniform(seed: u64, draw: u64, row: usize) -> f64 {
    let halves = |word: u64| [word as u32, (word >> 32) as u32];
    let ([row_low, row_high], [draw_low, draw_high]) = (halves(row as u64), halves(draw));
    let words = philox4x32([row_low, row_high, draw_low, draw_high ^ STREAM], halves(seed));
    let bits = ((u64::from(words[0]) << 32) | u64::from(words[1])) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_draws_cover_all_timesteps_evenly() {
        const COUNT: usize = 200_000;
        let drawn = TimestepSampler::Uniform.draw(42, 3, COUNT);
        assert!(drawn.iter().all(|t| (0..1000).contains(t)));
        assert!(drawn.contains(&0) && drawn.contains(&999));
        let mut counts = [0f64; 1000];
        drawn.iter().for_each(|&t| counts[t as usize] += 1.0);
        let expected = COUNT as f64 / 1000.0;
        let chi_square: f64 = counts.iter().map(|n| (n - expected).powi(2) / expected).sum();
        // 999 degrees of freedom: mean 999, deviation 45; five deviations either way.
        assert!((774.0..1224.0).contains(&chi_square), "{chi_square}");
    }

    #[test]
    fn speed_draws_follow_the_tables_in_pairs() {
        let tables = SpeedTables::new(&Tables::linear("", Precision::F32).unwrap());
        let sampler = TimestepSampler::speed(&tables);
        let meaningful = tables.meaningful_steps as i64;
        const COUNT: usize = 200_001;
        let drawn = sampler.draw(7, 0, COUNT);
        assert_eq!(drawn.len(), COUNT);
        assert!(drawn.iter().all(|t| (0..1000).contains(t)));
        let half = COUNT / 2 + 1;
        for (t, partner) in drawn.iter().zip(&drawn[half..]) {
            assert_eq!(*partner, if *t < meaningful { meaningful - t } else { t - meaningful });
        }
        let early = drawn[..half].iter().filter(|&&t| t < 300).count() as f64 / half as f64;
        let expected: f64 = tables.probabilities[..300].iter().sum();
        // Five standard errors.
        let error = 5.0 * (expected * (1.0 - expected) / half as f64).sqrt();
        assert!((early - expected).abs() < error, "{early}, expected {expected}");
    }

    #[test]
    fn a_draw_depends_on_seed_number_and_row_only() {
        let sampler = TimestepSampler::Uniform;
        assert_eq!(sampler.draw(1, 2, 8)[..3], sampler.draw(1, 2, 3));
        assert_ne!(sampler.draw(1, 2, 8), sampler.draw(1, 3, 8));
        assert_ne!(sampler.draw(1, 2, 8), sampler.draw(2, 2, 8));
        assert_eq!(TimestepSampler::Uniform.draw(0, 0, 0), [0i64; 0]);
    }
}
