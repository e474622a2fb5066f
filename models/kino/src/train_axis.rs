//! Axes of pictures over a run: where a value is, and what is written beside it.

use crate::svg::{byte_ticks, round_step, step_ticks};

/// Share of the values at either end that may lie outside: a few outliers would flatten all others.
const OUTSIDE: f64 = 0.005;

/// From this ratio on, positive values are drawn on a logarithmic axis.
const WIDE: f64 = 10.0;

/// Values from here on are drawn no more than infinite ones are: arithmetic with them would overflow.
const ENDLESS: f64 = 1e100;

/// The axis that all pictures of a run share.
#[derive(Clone, Debug)]
pub(crate) struct StepAxis {
    /// The newest update.
    pub last: u64,
    /// Whether it is logarithmic.
    pub is_log: bool,
    /// Updates after which the run went on again.
    pub resumes: Vec<u64>,
}

/// What values are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    /// Numbers.
    Plain,
    /// Bytes.
    Bytes,
    /// Hundredths.
    Percent,
}

/// The axis of values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    /// Whether it is logarithmic.
    pub is_log: bool,
}

impl StepAxis {
    /// Where on the axis an update is, from 0 to 1.
    pub(crate) fn share(&self, step: u64) -> f64 {
        if self.is_log {
            // At least one decade, so that a single update has a place.
            (step.max(1) as f64).log10() / (self.last.max(10) as f64).log10()
        } else {
            step as f64 / self.last.max(1) as f64
        }
    }

    /// Updates with a label.
    pub(crate) fn ticks(&self) -> Vec<u64> {
        if !self.is_log {
            let last = usize::try_from(self.last).unwrap_or(usize::MAX);
            return step_ticks(last.max(1)).into_iter().map(|step| step as u64).collect();
        }
        let decades = (0..20).map(|exponent| 10u64.saturating_pow(exponent));
        decades.take_while(|step| *step <= self.last.max(10)).collect()
    }
}

impl Scale {
    /// A scale on which `values` are seen, but for a few outliers, and all `levels`; it begins at 0 if `from_zero`.
    /// `None` if there is nothing to see.
    pub(crate) fn of(
        values: impl Iterator<Item = f64>,
        levels: &[f64],
        unit: Unit,
        from_zero: bool,
    ) -> Option<Scale> {
        let mut values: Vec<f64> = values.filter(|value| is_drawn(*value)).collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let outside = (last as f64 * OUTSIDE) as usize;
        let (mut low, mut high) = (values[outside], values[last - outside]);
        for level in levels {
            (low, high) = (low.min(*level), high.max(*level));
        }
        if from_zero {
            low = low.min(0.0);
        }
        if unit == Unit::Percent {
            // Thousandths of a hundredth are nothing, and look like it.
            high = high.max(1.0);
        }
        if low > 0.0 && high / low >= WIDE {
            return Some(Scale { low: low / 1.15, high: high * 1.15, is_log: true });
        }
        let most = high.abs().max(low.abs());
        let is_constant = high - low <= most * 1e-9;
        // A constant is drawn in the middle.
        let air = if is_constant { (most * 0.1).max(1e-12) } else { (high - low) * 0.06 };
        let low = if from_zero && low == 0.0 { 0.0 } else { low - air };
        Some(Scale { low, high: high + air, is_log: false })
    }

    /// Where on the axis a value is, from 0 to 1; what is outside is at the end.
    pub(crate) fn share(&self, value: f64) -> f64 {
        let share = if self.is_log {
            // No value that the scale was made for is below 0, but one may be.
            let low = self.low.log10();
            (value.max(self.low).log10() - low) / (self.high.log10() - low)
        } else {
            (value - self.low) / (self.high - self.low)
        };
        share.clamp(0.0, 1.0)
    }

    /// Whether a value is neither below nor above.
    pub(crate) fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    /// Values with a label, and the labels.
    pub(crate) fn ticks(&self, unit: Unit) -> Vec<(f64, String)> {
        let ticks = match (self.is_log, unit) {
            (false, Unit::Bytes) => byte_ticks(self.high),
            (false, Unit::Plain | Unit::Percent) => self.even_ticks(unit),
            (true, _) => self.decades(unit),
        };
        ticks.into_iter().filter(|(value, _)| self.contains(*value)).collect()
    }

    fn even_ticks(&self, unit: Unit) -> Vec<(f64, String)> {
        let step = round_step(self.high - self.low, 6.0);
        let first = (self.low / step).ceil();
        let exponent = |value: f64| value.abs().log10().floor() as i32;
        // As many digits as tell a tick from the next.
        let most = self.low.abs().max(self.high.abs());
        let places = usize::try_from(exponent(most) - exponent(step)).unwrap_or(0).min(9);
        let decimals = usize::try_from(-exponent(step)).unwrap_or(0).min(9);
        let is_plain = (1e-3..1e7).contains(&most);
        let label = |value: f64| match unit {
            Unit::Percent if value == 0.0 => "0 %".into(),
            Unit::Percent => format!("{value:.decimals$} %"),
            _ if value == 0.0 => "0".into(),
            _ if is_plain => format!("{value:.decimals$}"),
            _ => format!("{value:.places$e}"),
        };
        (0..8).map(|i| (first + f64::from(i)) * step).map(|value| (value, label(value))).collect()
    }

    fn decades(&self, unit: Unit) -> Vec<(f64, String)> {
        let [from, to] = [self.low, self.high].map(|value| value.log10().floor() as i32);
        let (stride, digits): (usize, &[i32]) = match to - from {
            ..=2 => (1, &[1, 2, 5]),
            3..=7 => (1, &[1]),
            many => (many as usize / 6 + 1, &[1]),
        };
        let mut ticks = Vec::new();
        for exponent in (from..=to).step_by(stride) {
            for digit in digits {
                // Exactly the number that the label says.
                let Ok(value) = format!("{digit}e{exponent}").parse::<f64>() else { continue };
                let label = match unit {
                    Unit::Bytes => crate::units::bytes(value),
                    Unit::Percent => format!("{value} %"),
                    Unit::Plain if (-3..6).contains(&exponent) => format!("{value}"),
                    Unit::Plain => format!("{digit}e{exponent}"),
                };
                ticks.push((value, label));
            }
        }
        ticks
    }
}

/// Whether a value has a place at all.
pub(crate) fn is_drawn(value: f64) -> bool {
    value.abs() < ENDLESS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(values: &[f64], unit: Unit) -> Scale {
        Scale::of(values.iter().copied(), &[], unit, unit == Unit::Percent).unwrap()
    }

    #[test]
    fn axes_have_a_few_round_labels_for_any_values() {
        let labels = |values: &[f64]| -> Vec<String> {
            let scale = scale(values, Unit::Plain);
            scale.ticks(Unit::Plain).into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(labels(&[0.0, 1.0]), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&[1e-5, 3e-5]), ["1.0e-5", "1.5e-5", "2.0e-5", "2.5e-5", "3.0e-5"]);
        assert_eq!(labels(&[0.01, 10.0]), ["0.01", "0.1", "1", "10"]);
        assert_eq!(labels(&[0.03, 0.5]), ["0.05", "0.1", "0.2", "0.5"]);
        for values in [[0.0, 0.0], [1e90, 1e90], [-1e38, 1e38], [5e-324, 1e90], [7.0, 7.0]] {
            let labels = labels(&values);
            assert!((1..=9).contains(&labels.len()), "{values:?}: {labels:?}");
            assert!(labels.iter().all(|label| label.len() <= 12), "{values:?}: {labels:?}");
        }
    }

    #[test]
    fn next_to_nothing_does_not_fill_a_picture_of_hundredths() {
        let labels: Vec<String> = scale(&[0.0, 0.003], Unit::Percent)
            .ticks(Unit::Percent)
            .into_iter()
            .map(|(_, label)| label)
            .collect();
        assert_eq!(labels, ["0 %", "0.2 %", "0.4 %", "0.6 %", "0.8 %", "1.0 %"]);
    }

    #[test]
    fn a_logarithmic_axis_of_updates_begins_with_the_first() {
        let axis = StepAxis { last: 1000, is_log: true, resumes: vec![] };
        assert_eq!(axis.ticks(), [1, 10, 100, 1000]);
        assert_eq!((axis.share(0), axis.share(1), axis.share(1000)), (0.0, 0.0, 1.0));
        let longest = StepAxis { last: u64::MAX, is_log: false, resumes: vec![] };
        assert!(longest.ticks().len() < 16);
    }
}
