//! DPM-Solver++ of second order, multistep, at uniform times: one step as graph nodes, and the
//! host's numbers for each step.
//!
//! "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models" (Lu et al.,
//! 2022), algorithm 2, on the discrete linear process. The model sees fractional timesteps. As in
//! [`crate::Iddpm`], rows of the prompts come first in a guided batch.

use ops::{Builder, ValueId};

use crate::coefficients::Coefficients;
use crate::guidance::{Guidance, append_guidance};
use crate::schedule::{TRAIN_STEPS, linear_betas};
use crate::{Error, Step};

/// A sampler: guidance and what each step multiplies with.
#[derive(Clone, Debug)]
pub struct DpmSolver {
    guidance: Option<Guidance>,
    steps: Vec<Step>,
}

/// The results of one step.
#[derive(Clone, Copy, Debug)]
pub struct DpmStep {
    /// The next latent.
    pub x: ValueId,
    /// The clean latent that this step predicts; the next step reads it.
    pub start: ValueId,
}

// Places in the coefficient vector.
const SIGNAL: usize = 0;
const LEVEL: usize = 1;
const X: usize = 2;
const START: usize = 3;
const EXTRAPOLATION: usize = 4;
const SCALE: usize = 5;

impl DpmSolver {
    /// Length of the coefficient vector.
    pub const N_COEFFICIENTS: usize = 6;

    /// A sampler of `n_steps` steps of the linear process.
    ///
    /// # Errors
    /// Refuses a count outside 1 to 1000 and a scale that is no number.
    pub fn new(n_steps: usize, guidance: Option<Guidance>) -> Result<DpmSolver, Error> {
        if n_steps == 0 || n_steps > TRAIN_STEPS {
            return Err(Error::Steps {
                given: n_steps.to_string(),
                reason: format!("expected 1 to {TRAIN_STEPS}"),
            });
        }
        if let Some(guidance) = &guidance {
            guidance.check()?;
        }
        let process = Process::linear()?;
        let scale = guidance.as_ref().map_or(1.0, |guidance| guidance.scale);
        let (first, last) = (1.0, 1.0 / TRAIN_STEPS as f64);
        let time = |k: usize| first + (last - first) * k as f64 / n_steps as f64;
        let mut steps = Vec::with_capacity(n_steps);
        let mut stride_before = None;
        for number in 0..n_steps {
            let (from, to) = (process.at(time(number)), process.at(time(number + 1)));
            let stride = to.log_snr_half - from.log_snr_half;
            // Few steps end in one of first order: the last extrapolation would be too bold.
            let lower_order = n_steps < 10 && number + 1 == n_steps;
            let extrapolation = match stride_before {
                Some(before) if !lower_order => 0.5 * stride / before,
                _ => 0.0,
            };
            stride_before = Some(stride);
            let mut c = [0f64; Self::N_COEFFICIENTS];
            c[SIGNAL] = from.signal;
            c[LEVEL] = from.level;
            c[X] = to.level / from.level;
            c[START] = -to.signal * (-stride).exp_m1();
            c[EXTRAPOLATION] = extrapolation;
            c[SCALE] = scale;
            steps.push(Step {
                timestep: ((time(number) - last) * TRAIN_STEPS as f64) as f32,
                coefficients: c.iter().map(|&x| x as f32).collect(),
            });
        }
        Ok(DpmSolver { guidance, steps })
    }

    /// Count of steps.
    pub fn n_steps(&self) -> usize {
        self.steps.len()
    }

    /// The inputs of step `number`. Panics if it is not below [`DpmSolver::n_steps`].
    pub fn step(&self, number: usize) -> Step {
        self.steps[number].clone()
    }

    /// Appends the step from `x` to the next `x`, given the model's output for it.
    ///
    /// `x` and `start_before` f32 `[rows, channels, ..]`, the latter the step before's
    /// [`DpmStep::start`] (at the first step anything finite); `model_out` f32
    /// `[2 * rows, at least channels, ..]`, once the rows without guidance; `coefficients` f32
    /// `[N_COEFFICIENTS]`.
    pub fn append_step(
        &self,
        b: &mut Builder,
        x: ValueId,
        start_before: ValueId,
        model_out: ValueId,
        coefficients: ValueId,
    ) -> Result<DpmStep, ops::Error> {
        let channels = b.shape(x).get(1).copied().unwrap_or(0);
        let c = Coefficients::new(b, coefficients, x);
        let out = b.slice_axis(model_out, 1, 0, channels)?;
        let noise = match &self.guidance {
            Some(guidance) => append_guidance(b, out, channels, guidance, &c, SCALE)?,
            None => out,
        };
        let noise = c.scaled(b, LEVEL, noise)?;
        let clean = b.sub(x, noise)?;
        let signal = c.get(b, SIGNAL)?;
        let start = b.div(clean, signal)?;
        let change = b.sub(start, start_before)?;
        let change = c.scaled(b, EXTRAPOLATION, change)?;
        let target = b.add(start, change)?;
        let target = c.scaled(b, START, target)?;
        let x = c.scaled(b, X, x)?;
        Ok(DpmStep { x: b.add(x, target)?, start })
    }
}

/// `ln √ᾱ` of the discrete process, linear between its steps.
struct Process {
    log_signal: Vec<f64>,
}

/// The process at one time.
struct Moment {
    signal: f64,
    level: f64,
    log_snr_half: f64,
}

impl Process {
    fn linear() -> Result<Process, Error> {
        let mut sum = 0.0;
        let halves = linear_betas(TRAIN_STEPS)?.into_iter().map(|beta| {
            sum += 0.5 * (1.0 - beta).ln();
            sum
        });
        Ok(Process { log_signal: halves.collect() })
    }

    /// At `time` in `1 / TRAIN_STEPS` to 1.
    fn at(&self, time: f64) -> Moment {
        let place = (time * TRAIN_STEPS as f64 - 1.0).clamp(0.0, (TRAIN_STEPS - 1) as f64);
        let low = (place as usize).min(TRAIN_STEPS - 2);
        let share = place - low as f64;
        let log_signal = self.log_signal[low] * (1.0 - share) + self.log_signal[low + 1] * share;
        let level = (-(2.0 * log_signal).exp_m1()).sqrt();
        Moment { signal: log_signal.exp(), level, log_snr_half: log_signal - level.ln() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_counts_that_do_not_fit() {
        for count in [0, 1001] {
            assert!(DpmSolver::new(count, None).is_err());
        }
        let odd = Guidance { scale: f64::NAN, channels: None };
        assert!(DpmSolver::new(20, Some(odd)).is_err());
    }

    #[test]
    fn few_steps_end_in_first_order() {
        let last = |count: usize| DpmSolver::new(count, None).unwrap().step(count - 1);
        assert_eq!(last(9).coefficients[EXTRAPOLATION], 0.0);
        assert!(last(10).coefficients[EXTRAPOLATION] > 0.0);
    }
}
