//! Learning rates by step: host side, f64.

use std::f64::consts::PI;

use crate::Error;

/// How the learning rate goes from step to step. Steps are counted from 0.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum LrSchedule {
    /// The base rate.
    Constant,
    /// `(step + 1) / (steps + 1)` of the base rate for `steps` steps, then the base rate.
    LinearWarmup {
        /// Steps below the base rate.
        steps: u64,
    },
    /// From `start` to the base rate along half a cosine in `steps` steps, then the base rate.
    CosineWarmup {
        /// Rate of step 0.
        start: f64,
        /// Steps below the base rate.
        steps: u64,
    },
    /// From the base rate to `end` along half a cosine in `steps` steps, then `end`.
    CosineAnnealing {
        /// Rate from step `steps` on.
        end: f64,
        /// Steps above it.
        steps: u64,
    },
    /// Up to the base rate and down to almost nothing within `steps` steps, along half cosines; then the
    /// last rate. "Super-Convergence" (Smith and Topin, 2018), as `PyTorch` has it.
    OneCycle {
        /// Steps of the cycle.
        steps: u64,
        /// Share of them on the way up.
        warmup_share: f64,
        /// The base rate over that of step 0.
        divisor: f64,
        /// The rate of step 0 over that of the last step.
        final_divisor: f64,
    },
}

impl LrSchedule {
    /// `PyTorch`'s defaults of a cycle: 30 % on the way up, from 1/25, to 1e-4 of that.
    pub fn one_cycle(steps: u64) -> LrSchedule {
        LrSchedule::OneCycle { steps, warmup_share: 0.3, divisor: 25.0, final_divisor: 1e4 }
    }

    /// The rate of step `step`, given the base rate.
    pub fn rate(&self, base: f64, step: u64) -> f64 {
        match *self {
            LrSchedule::Constant => base,
            LrSchedule::LinearWarmup { steps } if step < steps => {
                base * (step + 1) as f64 / (steps + 1) as f64
            }
            LrSchedule::CosineWarmup { start, steps } if step < steps => {
                cosine(start, base, step as f64 / steps as f64)
            }
            LrSchedule::LinearWarmup { .. } | LrSchedule::CosineWarmup { .. } => base,
            LrSchedule::CosineAnnealing { end, steps } if step < steps => {
                cosine(base, end, step as f64 / steps as f64)
            }
            LrSchedule::CosineAnnealing { end, .. } => end,
            LrSchedule::OneCycle { steps, warmup_share, divisor, final_divisor } => {
                let first = base / divisor;
                let last = first / final_divisor;
                let peak = warmup_share * steps as f64 - 1.0;
                let end = steps.saturating_sub(1) as f64;
                let step = (step as f64).min(end);
                if step <= peak && peak > 0.0 {
                    cosine(first, base, step / peak)
                } else if end > peak {
                    cosine(base, last, (step - peak) / (end - peak))
                } else {
                    last
                }
            }
        }
    }

    /// Fails for numbers that no schedule can have.
    ///
    /// # Errors
    /// Names the number and what was expected.
    pub fn check(&self) -> Result<(), Error> {
        let fail = |reason: String| Err(Error::option("lr_schedule", reason));
        match *self {
            LrSchedule::Constant => Ok(()),
            LrSchedule::LinearWarmup { steps } if steps > 0 => Ok(()),
            LrSchedule::CosineWarmup { start: rate, steps }
            | LrSchedule::CosineAnnealing { end: rate, steps }
                if steps > 0 =>
            {
                let is_rate = rate >= 0.0 && rate.is_finite();
                if is_rate { Ok(()) } else { fail(format!("rate {rate}, expected 0 or more")) }
            }
            LrSchedule::OneCycle { steps, warmup_share, divisor, final_divisor } if steps > 0 => {
                if !(0.0..=1.0).contains(&warmup_share) {
                    return fail(format!("warm-up share {warmup_share}, expected 0 to 1"));
                }
                match [divisor, final_divisor].iter().find(|d| !(**d >= 1.0 && d.is_finite())) {
                    Some(divisor) => fail(format!("divisor {divisor}, expected 1 or more")),
                    None => Ok(()),
                }
            }
            LrSchedule::LinearWarmup { .. }
            | LrSchedule::CosineWarmup { .. }
            | LrSchedule::CosineAnnealing { .. }
            | LrSchedule::OneCycle { .. } => fail("0 steps, expected 1 or more".into()),
        }
    }
}

/// Half a cosine from `start` at 0 to `end` at 1.
fn cosine(start: f64, end: f64, share: f64) -> f64 {
    end + (start - end) * 0.5 * (1.0 + (PI * share).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_rates(schedule: LrSchedule, base: f64, expected: &[(u64, f64)]) {
        schedule.check().unwrap();
        for &(step, expected) in expected {
            let found = schedule.rate(base, step);
            assert!(
                (found - expected).abs() <= 1e-12 * expected.abs(),
                "{schedule:?} at {step}: {found:e}, expected {expected:e}"
            );
        }
    }

    #[test]
    fn warmups_reach_the_base_rate_and_stay() {
        assert_rates(LrSchedule::Constant, 2e-5, &[(0, 2e-5), (1 << 40, 2e-5)]);
        // (k + 1) / 5
        assert_rates(
            LrSchedule::LinearWarmup { steps: 4 },
            1.0,
            &[(0, 0.2), (1, 0.4), (3, 0.8), (4, 1.0), (9, 1.0)],
        );
        // At a third of the way half a cosine is at a quarter, half way at a half.
        assert_rates(
            LrSchedule::CosineWarmup { start: 1e-7, steps: 1500 },
            1e-4,
            &[
                (0, 1e-7),
                (500, 1e-7 + (1e-4 - 1e-7) / 4.0),
                (750, (1e-4 + 1e-7) / 2.0),
                (1000, 1e-7 + (1e-4 - 1e-7) * 3.0 / 4.0),
                (1500, 1e-4),
                (9999, 1e-4),
            ],
        );
    }

    #[test]
    fn annealing_ends_and_stays() {
        assert_rates(
            LrSchedule::CosineAnnealing { end: 1e-5, steps: 2400 },
            1e-4,
            &[(0, 1e-4), (800, 1e-5 + 9e-5 * 0.75), (1200, 5.5e-5), (2400, 1e-5), (4800, 1e-5)],
        );
    }

    /// Values of `PyTorch`'s `OneCycleLR` with its defaults: the peak is at step 0.3 * 101 - 1 = 29.3.
    #[test]
    fn one_cycle_is_pytorchs() {
        let half = |start: f64, end: f64, share: f64| {
            end + (start - end) / 2.0 * (1.0 + (PI * share).cos())
        };
        assert_rates(
            LrSchedule::one_cycle(101),
            0.1,
            &[
                (0, 0.004),
                (10, half(0.004, 0.1, 10.0 / 29.3)),
                (50, half(0.1, 4e-7, (50.0 - 29.3) / (100.0 - 29.3))),
                (100, 4e-7),
                (500, 4e-7),
            ],
        );
    }

    #[test]
    fn impossible_numbers_are_refused() {
        for (schedule, expected) in [
            (LrSchedule::LinearWarmup { steps: 0 }, "0 steps"),
            (LrSchedule::CosineWarmup { start: f64::NAN, steps: 3 }, "rate NaN"),
            (LrSchedule::CosineAnnealing { end: -1.0, steps: 3 }, "rate -1"),
            (LrSchedule::one_cycle(0), "0 steps"),
            (
                LrSchedule::OneCycle {
                    steps: 9,
                    warmup_share: 1.5,
                    divisor: 25.0,
                    final_divisor: 1e4,
                },
                "share 1.5",
            ),
            (
                LrSchedule::OneCycle {
                    steps: 9,
                    warmup_share: 0.3,
                    divisor: 0.0,
                    final_divisor: 1e4,
                },
                "divisor 0",
            ),
        ] {
            let error = schedule.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
