//! The noise process: betas, which of its steps a sampler visits, and every table derived from them.
//!
//! Denoising diffusion (Ho et al., 2020) in the form of "Improved DDPM" (Nichol and Dhariwal,
//! 2021). Upstream's releases differ in rounding only: 1.0 keeps tables in f64, from 1.1 on each
//! table is f32, computed from f32. Both are reproduced, since a table entry near 1 loses digits.

use crate::Error;

/// Steps of the process that models are trained with.
pub const TRAIN_STEPS: usize = 1000;

/// The most steps a process may have; bounds what a config can make us allocate.
const MAX_STEPS: usize = 100_000;

/// Variances `β` of a linear schedule, from 1e-4 to 0.02 when `steps` is 1000; scaled so that fewer
/// steps end as noisy.
///
/// # Errors
/// Refuses a count of 0 or so small that a variance would pass 1, and one above 100,000.
pub fn linear_betas(steps: usize) -> Result<Vec<f64>, Error> {
    let scale = 1000.0 / steps as f64;
    let (first, last) = (scale * 1e-4, scale * 0.02);
    if steps == 0 || steps > MAX_STEPS || last > 1.0 {
        return Err(Error::Schedule(format!("{steps} steps, expected 20 to {MAX_STEPS}")));
    }
    let step = (last - first) / (steps - 1).max(1) as f64;
    let mut betas: Vec<f64> = (0..steps).map(|k| first + k as f64 * step).collect();
    betas[steps - 1] = last;
    Ok(betas)
}

/// Which steps of the process a sampler visits, ascending.
///
/// `respacing` is upstream's text: `""` for all, `"100"` for 100 spread evenly from first to last,
/// `"10,15,20"` for so many in each of three equal sections, `"ddim25"` for 25 at a fixed stride.
///
/// # Errors
/// Says which part of the text is no count, or which section is too short.
pub fn respaced_steps(train_steps: usize, respacing: &str) -> Result<Vec<usize>, Error> {
    let bad = |reason: String| Error::Steps { given: respacing.to_string(), reason };
    if train_steps == 0 || train_steps > MAX_STEPS {
        return Err(bad(format!("the process has {train_steps} steps, expected 1 to {MAX_STEPS}")));
    }
    if respacing.is_empty() {
        return Ok((0..train_steps).collect());
    }
    let number = |text: &str| -> Result<usize, Error> {
        match text.trim().parse::<usize>() {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(bad(format!("`{text}` is not a count above 0"))),
        }
    };
    if let Some(count) = respacing.strip_prefix("ddim") {
        let count = number(count)?;
        let stride = (1..train_steps)
            .find(|&stride| train_steps.div_ceil(stride) == count)
            .ok_or_else(|| bad(format!("no stride gives {count} of {train_steps} steps")))?;
        return Ok((0..train_steps).step_by(stride).collect());
    }
    let counts: Vec<usize> = respacing.split(',').map(number).collect::<Result<_, _>>()?;
    let (size, longer) = (train_steps / counts.len(), train_steps % counts.len());
    let mut steps = Vec::new();
    let mut start = 0;
    for (section, &count) in counts.iter().enumerate() {
        let size = size + usize::from(section < longer);
        if count > size {
            return Err(bad(format!("{count} steps of a section of {size}")));
        }
        let stride = if count > 1 { (size - 1) as f64 / (count - 1) as f64 } else { 1.0 };
        // Summed, not multiplied, and rounded half to even: that is upstream's choice of steps.
        let mut position = 0f64;
        for _ in 0..count {
            steps.push(start + position.round_ties_even() as usize);
            position += stride;
        }
        start += size;
    }
    steps.dedup();
    Ok(steps)
}

/// In which precision [`Tables`] are computed and kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precision {
    /// Everything f64, rounded to f32 where used: Open-Sora 1.0.
    F64,
    /// Betas rounded to f32 and all else derived in f32: Open-Sora 1.1 and 1.2.
    F32,
}

impl Precision {
    fn round(self, x: f64) -> f64 {
        match self {
            Precision::F64 => x,
            Precision::F32 => f64::from(x as f32),
        }
    }
}

/// Tables of a process, one entry per visited step. Field names are upstream's.
#[derive(Clone, Debug, PartialEq)]
pub struct Tables {
    /// Index of each step in the process that the model was trained with.
    pub timesteps: Vec<usize>,
    /// `β`, the variance that a step adds.
    pub betas: Vec<f64>,
    /// `ᾱ = Π (1 - β)`, the share of the signal.
    pub alphas_cumprod: Vec<f64>,
    /// `ᾱ` of the step before; 1 before the first.
    pub alphas_cumprod_prev: Vec<f64>,
    /// `ᾱ` of the step after; 0 after the last.
    pub alphas_cumprod_next: Vec<f64>,
    /// `√ᾱ`.
    pub sqrt_alphas_cumprod: Vec<f64>,
    /// `√(1 - ᾱ)`.
    pub sqrt_one_minus_alphas_cumprod: Vec<f64>,
    /// `ln(1 - ᾱ)`.
    pub log_one_minus_alphas_cumprod: Vec<f64>,
    /// `√(1 / ᾱ)`.
    pub sqrt_recip_alphas_cumprod: Vec<f64>,
    /// `√(1 / ᾱ - 1)`.
    pub sqrt_recipm1_alphas_cumprod: Vec<f64>,
    /// Variance of `q(x[i-1] | x[i], x0)`; 0 for the first step.
    pub posterior_variance: Vec<f64>,
    /// Its logarithm, the first entry replaced by the second.
    pub posterior_log_variance_clipped: Vec<f64>,
    /// Weight of `x0` in the mean of `q(x[i-1] | x[i], x0)`.
    pub posterior_mean_coef1: Vec<f64>,
    /// Weight of `x[i]` in that mean.
    pub posterior_mean_coef2: Vec<f64>,
    /// `ln β`.
    pub log_betas: Vec<f64>,
    /// `ln` of the larger fixed variance: `β`, the first entry from the posterior.
    pub log_variance_large: Vec<f64>,
}

impl Tables {
    /// Tables for the steps `timesteps` (ascending) of the process `betas`.
    ///
    /// # Errors
    /// Refuses an empty or descending list of steps, and variances outside (0, 1].
    pub fn new(betas: &[f64], timesteps: &[usize], precision: Precision) -> Result<Tables, Error> {
        if let Some(beta) = betas.iter().find(|beta| !(**beta > 0.0 && **beta <= 1.0)) {
            return Err(Error::Schedule(format!(
                "variance {beta}, expected above 0 and at most 1"
            )));
        }
        let ascending = timesteps.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || timesteps.last().is_none_or(|&last| last >= betas.len()) {
            return Err(Error::Schedule(format!(
                "steps {timesteps:?}, expected ascending numbers below {}",
                betas.len()
            )));
        }
        let round = |x: f64| precision.round(x);
        let mut full = 1.0;
        let full: Vec<f64> = betas
            .iter()
            .map(|beta| {
                full *= 1.0 - beta;
                full
            })
            .collect();
        let mut last = 1.0;
        let betas: Vec<f64> = timesteps
            .iter()
            .map(|&step| {
                let beta = 1.0 - full[step] / last;
                last = full[step];
                round(beta)
            })
            .collect();
        // The running product stays f64 in either precision; its entries are rounded.
        let mut product = 1.0;
        let alphas_cumprod: Vec<f64> = betas
            .iter()
            .map(|beta| {
                product *= round(1.0 - beta);
                round(product)
            })
            .collect();
        let count = betas.len();
        let mut prev = vec![1.0];
        prev.extend_from_slice(&alphas_cumprod[..count - 1]);
        let mut next = alphas_cumprod[1..].to_vec();
        next.push(0.0);
        let map = |table: &[f64], f: &dyn Fn(f64) -> f64| -> Vec<f64> {
            table.iter().map(|&x| round(f(x))).collect()
        };
        let one_minus = map(&alphas_cumprod, &|x| 1.0 - x);
        let recip = map(&alphas_cumprod, &|x| 1.0 / x);
        let recipm1 = map(&recip, &|x| x - 1.0);
        let each = |f: &dyn Fn(usize) -> f64| -> Vec<f64> { (0..count).map(f).collect() };
        let posterior_variance =
            each(&|k| round(round(betas[k] * round(1.0 - prev[k])) / one_minus[k]));
        // A process of one step has no second entry; its variance is 0 and unused.
        let first = posterior_variance[1.min(count - 1)].max(f64::from(f32::MIN_POSITIVE));
        let replaced = |rest: &[f64]| -> Vec<f64> {
            let list: Vec<f64> = std::iter::once(first).chain(rest[1..].iter().copied()).collect();
            map(&list, &f64::ln)
        };
        Ok(Tables {
            timesteps: timesteps.to_vec(),
            sqrt_alphas_cumprod: map(&alphas_cumprod, &f64::sqrt),
            sqrt_one_minus_alphas_cumprod: map(&one_minus, &f64::sqrt),
            log_one_minus_alphas_cumprod: map(&one_minus, &f64::ln),
            sqrt_recip_alphas_cumprod: map(&recip, &f64::sqrt),
            sqrt_recipm1_alphas_cumprod: map(&recipm1, &f64::sqrt),
            posterior_log_variance_clipped: replaced(&posterior_variance),
            posterior_mean_coef1: each(&|k| {
                round(round(betas[k] * round(prev[k].sqrt())) / one_minus[k])
            }),
            posterior_mean_coef2: each(&|k| {
                let alpha = round(1.0 - betas[k]);
                round(round(round(1.0 - prev[k]) * round(alpha.sqrt())) / one_minus[k])
            }),
            log_betas: map(&betas, &f64::ln),
            log_variance_large: replaced(&betas),
            posterior_variance,
            alphas_cumprod_prev: prev,
            alphas_cumprod_next: next,
            alphas_cumprod,
            betas,
        })
    }

    /// Tables of the linear process of [`TRAIN_STEPS`] steps, respaced by upstream's text.
    ///
    /// # Errors
    /// As [`respaced_steps`].
    pub fn linear(respacing: &str, precision: Precision) -> Result<Tables, Error> {
        let betas = linear_betas(TRAIN_STEPS)?;
        Tables::new(&betas, &respaced_steps(TRAIN_STEPS, respacing)?, precision)
    }

    /// Count of visited steps, at least 1.
    pub fn n_steps(&self) -> usize {
        self.betas.len()
    }
}

/// How `iddpm-speed` training draws and weighs timesteps.
///
/// Steps where the noise level hardly changes are drawn less often ("A Closer Look at Time Steps is
/// Worthy of Triple Speed-Up for Diffusion Model Training", Wang et al., 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct SpeedTables {
    /// Probability of each timestep.
    pub probabilities: Vec<f64>,
    /// Weight of each timestep's loss, `1 / (1 + snr)`.
    pub weights: Vec<f64>,
    /// Signal-to-noise ratio `ᾱ / (1 - ᾱ)`.
    pub snr: Vec<f64>,
    /// First step from which the noise level changes slowly; draws `t` and `meaningful - t` pair.
    pub meaningful_steps: usize,
}

impl SpeedTables {
    /// From the tables of a process. Slopes are computed in f32 as upstream does: the difference
    /// that decides a probability is close to f32's rounding.
    pub fn new(tables: &Tables) -> SpeedTables {
        let level: Vec<f32> =
            tables.sqrt_one_minus_alphas_cumprod.iter().map(|&x| x as f32).collect();
        let last = level.len() - 1;
        // Central differences, one-sided at the ends.
        let slope = |k: usize| {
            let (low, high) = (k.saturating_sub(1), (k + 1).min(last));
            (level[high] - level[low]) / (high - low).max(1) as f32
        };
        let slopes: Vec<f32> = (0..=last).map(slope).collect();
        let slow = slopes.iter().position(|&slope| slope < 5e-5).unwrap_or(0);
        let raw: Vec<f64> =
            slopes.iter().map(|slope| f64::from((1e6 * (slope - 1e-4)).tanh() + 1.5)).collect();
        let sum: f64 = raw.iter().sum();
        let snr: Vec<f64> = tables.alphas_cumprod.iter().map(|a| a / (1.0 - a)).collect();
        SpeedTables {
            probabilities: raw.iter().map(|p| p / sum).collect(),
            weights: snr.iter().map(|snr| 1.0 / (1.0 + snr)).collect(),
            snr,
            meaningful_steps: slow + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_spread_as_upstream_spreads_them() {
        let steps = respaced_steps(1000, "100").unwrap();
        assert_eq!(steps[..4], [0, 10, 20, 30]);
        assert_eq!(steps[48..52], [484, 494, 505, 515]);
        assert_eq!(respaced_steps(1000, "20").unwrap()[..6], [0, 53, 105, 158, 210, 263]);
        assert_eq!(respaced_steps(1000, "1").unwrap(), [0]);
        assert_eq!(respaced_steps(1000, "ddim25").unwrap()[..3], [0, 40, 80]);
    }

    #[test]
    fn rejects_steps_that_do_not_fit() {
        for (text, expected) in [
            ("0", "`0` is not a count above 0"),
            ("x", "`x` is not a count above 0"),
            ("1001", "1001 steps of a section of 1000"),
            ("10,", "`` is not a count"),
            ("ddim999", "no stride gives 999"),
            ("99999999999999999999", "is not a count"),
        ] {
            let error = respaced_steps(1000, text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(linear_betas(10).is_err());
        assert!(Tables::new(&[0.1, 0.2], &[1, 0], Precision::F64).is_err());
        assert!(Tables::new(&[0.1, f64::NAN], &[0], Precision::F64).is_err());
        assert!(Tables::new(&[0.1], &[], Precision::F32).is_err());
    }

    #[test]
    fn a_process_of_one_step_is_finite() {
        let tables = Tables::linear("1", Precision::F32).unwrap();
        assert!(tables.posterior_log_variance_clipped[0].is_finite());
        // `1 - (1 - 1e-4)` in f32 is off by up to half a unit of 1, 6e-8.
        assert!((tables.posterior_mean_coef1[0] - 1.0).abs() < 1e-3);
    }
}
