//! Values over the updates of a run as a picture, and which buckets its batches were of.
//!
//! A picture takes as much text for a million updates as for a thousand: of what falls into one column of pixels
//! only the lowest and the highest are drawn. Whatever numbers a log has, the text is XML.

use std::fmt::Write;

use crate::svg::{HALO, byte_ticks, round_step, step_ticks, xml};

/// Pixels around the plot.
const LEFT: f64 = 74.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 38.0;

/// Pixels of a letter at the size of labels, about.
const LETTER: f64 = 6.4;

/// Share of the values at either end that may lie outside: a few outliers would flatten all others.
const OUTSIDE: f64 = 0.005;

/// From this ratio on, positive values are drawn on a logarithmic axis.
const WIDE: f64 = 40.0;

/// Values from here on are drawn no more than infinite ones are: arithmetic with them would overflow.
const ENDLESS: f64 = 1e100;

/// Parts of the run that the mix of buckets is told of.
const MIX_PARTS: u64 = 96;

/// Colors of buckets; more of them share the last.
const COLORS: [&str; 10] = [
    "#2a6fbb", "#d9742b", "#3c9a52", "#b23a48", "#7a5aa8", "#8a6240", "#c65f9e", "#5f8f96",
    "#a8a032", "#8c8c8c",
];

/// The color of the bucket at `place`.
pub(crate) fn color(place: usize) -> &'static str {
    COLORS[place.min(COLORS.len() - 1)]
}

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

/// Values over updates.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    /// For the legend; empty for none.
    pub name: &'static str,
    /// Color of the line.
    pub color: &'static str,
    /// Pixels of the line.
    pub width: f64,
    /// Update and value, in the order of updates.
    pub points: Vec<(u64, f64)>,
}

/// Curves with their axes.
#[derive(Clone, Debug)]
pub(crate) struct Chart<'a> {
    /// What it shows.
    pub title: &'a str,
    /// Width and height in pixels.
    pub size: [f64; 2],
    /// What values are.
    pub unit: Unit,
    /// Whether the axis begins at 0.
    pub from_zero: bool,
    /// The curves, the last on top.
    pub curves: Vec<Curve>,
    /// A value to compare with, and what it is.
    pub level: Option<(String, f64)>,
}

/// From values to pixels.
#[derive(Clone, Copy, Debug)]
struct Scale {
    low: f64,
    high: f64,
    is_log: bool,
}

impl StepAxis {
    /// Where on the axis an update is, from 0 to 1.
    fn share(&self, step: u64) -> f64 {
        if self.is_log {
            // At least one decade, so that a single update has a place.
            (step.max(1) as f64).log10() / (self.last.max(10) as f64).log10()
        } else {
            step as f64 / self.last.max(1) as f64
        }
    }

    fn ticks(&self) -> Vec<u64> {
        if !self.is_log {
            let last = usize::try_from(self.last).unwrap_or(usize::MAX);
            return step_ticks(last.max(1)).into_iter().map(|step| step as u64).collect();
        }
        let decades = (0..20).map(|exponent| 10u64.saturating_pow(exponent));
        decades.take_while(|step| *step <= self.last.max(10)).collect()
    }
}

impl Scale {
    /// A scale on which the curves and the level are seen; `None` if there is nothing to see.
    fn of(chart: &Chart<'_>) -> Option<Scale> {
        let points = chart.curves.iter().flat_map(|curve| &curve.points);
        let mut values: Vec<f64> =
            points.map(|(_, value)| *value).filter(|value| is_drawn(*value)).collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let outside = (last as f64 * OUTSIDE) as usize;
        let (mut low, mut high) = (values[outside], values[last - outside]);
        if let Some((_, level)) = chart.level {
            (low, high) = (low.min(level), high.max(level));
        }
        if chart.from_zero {
            low = low.min(0.0);
        }
        if low > 0.0 && high / low >= WIDE {
            return Some(Scale { low: low / 1.15, high: high * 1.15, is_log: true });
        }
        let most = high.abs().max(low.abs());
        let is_constant = high - low <= most * 1e-9;
        // A constant is drawn in the middle.
        let air = if is_constant { (most * 0.1).max(1e-12) } else { (high - low) * 0.06 };
        let low = if chart.from_zero && low == 0.0 { 0.0 } else { low - air };
        Some(Scale { low, high: high + air, is_log: false })
    }

    /// Where on the axis a value is, from 0 to 1; what is outside is at the end.
    fn share(&self, value: f64) -> f64 {
        let share = if self.is_log {
            // No value that the scale was made for is below 0, but one may be.
            let low = self.low.log10();
            (value.max(self.low).log10() - low) / (self.high.log10() - low)
        } else {
            (value - self.low) / (self.high - self.low)
        };
        share.clamp(0.0, 1.0)
    }

    fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    fn ticks(&self, unit: Unit) -> Vec<(f64, String)> {
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

impl Chart<'_> {
    /// The picture.
    pub(crate) fn svg(&self, axis: &StepAxis) -> String {
        let mut text = open(self.title, self.size);
        self.legend(&mut text);
        frame(&mut text, self.size, axis);
        match Scale::of(self) {
            Some(scale) => self.plot(&mut text, axis, scale),
            None => {
                let [width, height] = self.size.map(|pixels| pixels / 2.0);
                let _ = writeln!(
                    text,
                    "<text x=\"{width}\" y=\"{height}\" text-anchor=\"middle\" fill=\"#666\">nothing \
                     was logged</text>"
                );
            }
        }
        text + "</svg>\n"
    }

    fn legend(&self, text: &mut String) {
        let mut x = LEFT + LETTER * 1.25 * self.title.chars().count() as f64 + 24.0;
        for Curve { name, color, width, .. } in self.curves.iter().filter(|c| !c.name.is_empty()) {
            let _ = writeln!(
                text,
                "<path d=\"M{x:.1} 16h18\" stroke=\"{color}\" stroke-width=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"20\">{name}</text>",
                width.max(1.5),
                x + 24.0
            );
            x += 44.0 + LETTER * name.len() as f64;
        }
    }

    fn plot(&self, text: &mut String, axis: &StepAxis, scale: Scale) {
        let [width, height] = self.size;
        let (plot, right) = (height - TOP - BOTTOM, width - RIGHT);
        let y = |value: f64| TOP + plot * (1.0 - scale.share(value));
        for (value, label) in scale.ticks(self.unit) {
            let y = y(value);
            let _ = writeln!(
                text,
                "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#e4e4e4\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 8.0,
                y + 4.0
            );
        }
        for curve in &self.curves {
            for path in paths(curve, |step| x(self.size, axis, step), y) {
                let _ = writeln!(
                    text,
                    "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" \
                     stroke-linejoin=\"round\" stroke-linecap=\"round\"/>",
                    curve.color, curve.width
                );
            }
        }
        if let Some((name, level)) = &self.level {
            let y = y(*level);
            let _ = writeln!(
                text,
                "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#b00\" stroke-width=\"1.2\" \
                 stroke-dasharray=\"6 4\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#b00\" \
                 {HALO}>{}</text>",
                right - 4.0,
                // Below the line where the title would be above it.
                if y < TOP + 16.0 { y + 15.0 } else { y - 6.0 },
                xml(name)
            );
        }
        let all = self.curves.iter().flat_map(|curve| &curve.points);
        let n_outside = all.filter(|(_, v)| is_drawn(*v) && !scale.contains(*v)).count();
        if n_outside > 0 {
            let values = if n_outside == 1 { "value lies" } else { "values lie" };
            let _ = writeln!(
                text,
                "<text x=\"{right}\" y=\"20\" text-anchor=\"end\" fill=\"#666\">{n_outside} {values} \
                 outside</text>"
            );
        }
    }
}

/// Which buckets the batches of each part of the run were of, by their place in `n_buckets`: a stack of shares.
/// `batches` has the update and the bucket of each. The axis is never logarithmic.
pub(crate) fn mix(
    size: [f64; 2],
    axis: &StepAxis,
    n_buckets: usize,
    batches: impl Iterator<Item = (u64, usize)>,
) -> String {
    let axis = &StepAxis { is_log: false, ..axis.clone() };
    let n_parts = axis.last.clamp(1, MIX_PARTS);
    let mut counts = vec![vec![0u64; n_buckets]; n_parts as usize];
    for (step, bucket) in batches {
        let before = u128::from(step.saturating_sub(1)) * u128::from(n_parts);
        let part = before / u128::from(axis.last.max(1));
        counts[part.min(u128::from(n_parts) - 1) as usize][bucket] += 1;
    }
    let mut text = open("Buckets of the batches", size);
    let [width, height] = size;
    let (plot, column) = (height - TOP - BOTTOM, (width - LEFT - RIGHT) / n_parts as f64);
    for (part, counts) in counts.iter().enumerate() {
        let all: u64 = counts.iter().sum();
        let mut below = 0;
        for (place, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let [bottom, top] = [below, below + count].map(|n| n as f64 / all as f64 * plot);
            let _ = writeln!(
                text,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{column:.2}\" height=\"{:.1}\" fill=\"{}\"/>",
                LEFT + column * part as f64,
                TOP + plot - top,
                top - bottom,
                color(place)
            );
            below += count;
        }
    }
    for percent in [0, 50, 100] {
        let y = TOP + plot * (1.0 - f64::from(percent) / 100.0) + 4.0;
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{y:.1}\" text-anchor=\"end\">{percent} %</text>",
            LEFT - 8.0
        );
    }
    frame(&mut text, size, axis);
    text + "</svg>\n"
}

/// Whether a value has a place at all.
fn is_drawn(value: f64) -> bool {
    value.abs() < ENDLESS
}

/// Where an update is drawn.
fn x([width, _]: [f64; 2], axis: &StepAxis, step: u64) -> f64 {
    LEFT + (width - LEFT - RIGHT) * axis.share(step)
}

/// The picture's beginning, with its title.
fn open(title: &str, [width, height]: [f64; 2]) -> String {
    let title = xml(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\" aria-label=\"{title}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\" font-weight=\"bold\">{title}</text>\n"
    )
}

/// The axis of updates, and where the run went on again.
fn frame(text: &mut String, size: [f64; 2], axis: &StepAxis) {
    let [width, height] = size;
    let (bottom, right) = (height - BOTTOM, width - RIGHT);
    let _ = writeln!(text, "<path d=\"M{LEFT} {bottom}H{right}\" stroke=\"#666\"/>");
    let ticks = axis.ticks();
    // Narrow pictures have room for every other.
    let widest = ticks.iter().map(|step| step.to_string().len()).max().unwrap_or(1) as f64;
    let room = (right - LEFT) / ticks.len().max(1) as f64;
    let stride = if widest * LETTER + 12.0 > room { 2 } else { 1 };
    for step in ticks.into_iter().step_by(stride) {
        let x = x(size, axis, step);
        let _ = writeln!(
            text,
            "<path d=\"M{x:.1} {bottom}v5\" stroke=\"#666\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{step}</text>",
            bottom + 18.0
        );
    }
    let _ = writeln!(
        text,
        "<text x=\"{right}\" y=\"{}\" text-anchor=\"end\" fill=\"#555\">update</text>",
        bottom + 33.0
    );
    for resume in &axis.resumes {
        let x = x(size, axis, *resume);
        let _ = writeln!(
            text,
            "<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#8a4b00\" stroke-dasharray=\"2 3\">\
             <title>went on after update {resume}</title></path>\
             <text x=\"{:.1}\" y=\"{}\" font-size=\"11\" fill=\"#8a4b00\" {HALO}>resumed</text>",
            x + 4.0,
            bottom - 6.0
        );
    }
}

/// The lines of a curve: one for each stretch of finite values.
fn paths(curve: &Curve, x: impl Fn(u64) -> f64, y: impl Fn(f64) -> f64) -> Vec<String> {
    let mut paths = Vec::new();
    for stretch in curve.points.split(|(_, value)| !is_drawn(*value)) {
        let mut columns: Vec<(f64, [f64; 2])> = Vec::new();
        for &(step, value) in stretch {
            let (x, y) = (x(step), y(value));
            match columns.last_mut() {
                // Half pixels are told apart on most screens.
                Some((at, [top, bottom])) if x - *at < 0.5 => {
                    (*top, *bottom) = (top.min(y), bottom.max(y));
                }
                _ => columns.push((x, [y, y])),
            }
        }
        let mut path = String::new();
        for (x, [top, bottom]) in columns {
            let command = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{command}{x:.1} {top:.1}");
            // A value alone is a dot: of no length, but with round ends.
            if bottom > top || command == 'M' {
                let _ = write!(path, "V{bottom:.1}");
            }
        }
        if !path.is_empty() {
            paths.push(path);
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(values: &[f64]) -> Chart<'static> {
        let points = values.iter().enumerate().map(|(i, value)| (i as u64 + 1, *value)).collect();
        let curve = Curve { name: "raw", color: "#000", width: 1.0, points };
        Chart {
            title: "Loss",
            size: [600.0, 200.0],
            unit: Unit::Plain,
            from_zero: false,
            curves: vec![curve],
            level: None,
        }
    }

    fn axis(last: u64) -> StepAxis {
        StepAxis { last, is_log: false, resumes: vec![] }
    }

    #[test]
    fn an_outlier_does_not_flatten_the_rest_and_is_told_of() {
        let mut values: Vec<f64> = (0..1000).map(|i| 1.0 + f64::from(i) / 1000.0).collect();
        values[500] = 1e30;
        let chart = chart(&values);
        let scale = Scale::of(&chart).unwrap();
        assert!(scale.high < 2.2 && scale.low > 0.9, "{scale:?}");
        // The values at either end of the middle 99 % lie within the air around them.
        assert!(chart.svg(&axis(1000)).contains("1 value lies outside"));
    }

    #[test]
    fn the_text_does_not_grow_with_the_run() {
        let values = |n: u32| -> Vec<f64> { (0..n).map(|i| f64::from(i % 17)).collect() };
        let text = chart(&values(300_000)).svg(&axis(300_000));
        assert!(text.len() < 60_000, "{}", text.len());
        // But what is in a column shows: from the lowest to the highest value.
        let path = text.split("<path d=\"M").last().unwrap();
        assert!(path.contains('V'), "{path}");
    }

    #[test]
    fn values_that_are_no_numbers_leave_a_gap() {
        let gap = chart(&[1.0, 2.0, f64::NAN, 3.0, f64::INFINITY, 2.0]);
        let curve = &gap.curves[0];
        assert_eq!(paths(curve, |step| step as f64 * 10.0, |y| y).len(), 3);
        let svg = gap.svg(&axis(6));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(chart(&[f64::NAN, 1e300]).svg(&axis(2)).contains("nothing was logged"));
    }

    #[test]
    fn axes_have_a_few_round_labels_for_any_values() {
        let labels = |values: &[f64]| -> Vec<String> {
            let scale = Scale::of(&chart(values)).unwrap();
            scale.ticks(Unit::Plain).into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(labels(&[0.0, 1.0]), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&[1e-5, 3e-5]), ["1.0e-5", "1.5e-5", "2.0e-5", "2.5e-5", "3.0e-5"]);
        assert_eq!(labels(&[0.01, 10.0]), ["0.01", "0.1", "1", "10"]);
        for values in [[0.0, 0.0], [1e90, 1e90], [-1e38, 1e38], [5e-324, 1e90], [7.0, 7.0]] {
            let labels = labels(&values);
            assert!((1..=9).contains(&labels.len()), "{values:?}: {labels:?}");
            assert!(labels.iter().all(|label| label.len() <= 12), "{values:?}: {labels:?}");
        }
    }

    #[test]
    fn a_logarithmic_axis_of_updates_begins_with_the_first() {
        let axis = StepAxis { last: 1000, is_log: true, resumes: vec![] };
        assert_eq!(axis.ticks(), [1, 10, 100, 1000]);
        assert_eq!((axis.share(0), axis.share(1), axis.share(1000)), (0.0, 0.0, 1.0));
        let longest = StepAxis { last: u64::MAX, is_log: false, resumes: vec![] };
        assert!(longest.ticks().len() < 16);
    }

    #[test]
    fn a_mix_is_a_stack_of_shares() {
        let batches = (1..=96).map(|step| (step, usize::from(step % 2 == 0)));
        let text = mix([1000.0, 168.0], &axis(48), 2, batches.take(48));
        // One batch for every other part: a full column each.
        assert_eq!(text.matches("height=\"96.0\" fill").count(), 48);
        assert_eq!(text.matches(color(0)).count(), 24);
    }
}
