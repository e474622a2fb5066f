//! Values over the updates of a run as a picture, and which buckets its batches were of.
//!
//! A picture takes as much text for a million updates as for a thousand: of what falls into one column of pixels
//! only the lowest and the highest are drawn. Whatever numbers a log has, the text is XML.

use std::fmt::Write;

use crate::svg::{HALO, xml};
use crate::train_axis::{Scale, StepAxis, Unit, is_drawn};

/// Pixels around the plot.
const LEFT: f64 = 74.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 38.0;

/// Pixels of a letter at the size of labels, about.
const LETTER: f64 = 6.4;

/// Parts of the run that the mix of buckets is told of.
const MIX_PARTS: usize = 96;

/// Points of a curve are dots, too, where there are no more of them.
const MAX_DOTS: usize = 60;

/// Pixels that the label of a resumption takes.
const RESUMED: f64 = 54.0;

/// A value to compare with: its color, and what its line is like.
const LEVEL: &str = "#b00000";
const LEVEL_LINE: &str = "stroke-width=\"1.2\" stroke-dasharray=\"6 4\"";

/// Colors of buckets; more of them share the last.
const COLORS: [&str; 10] = [
    "#2a6fbb", "#d9742b", "#3c9a52", "#b23a48", "#7a5aa8", "#8a6240", "#c65f9e", "#5f8f96",
    "#a8a032", "#8c8c8c",
];

/// The color of the bucket at `place`.
pub(crate) fn color(place: usize) -> &'static str {
    COLORS[place.min(COLORS.len() - 1)]
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
    /// A value to compare with, and what it is, for the legend.
    pub level: Option<(String, f64)>,
}

impl Chart<'_> {
    /// The picture.
    pub(crate) fn svg(&self, axis: &StepAxis) -> String {
        let mut text = open(self.title, self.size);
        let scale = self.scale();
        self.legend(&mut text);
        frame(&mut text, self.size, axis);
        match scale {
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

    fn scale(&self) -> Option<Scale> {
        let points = self.curves.iter().flat_map(|curve| &curve.points);
        let level = self.level.as_ref().map(|(_, level)| *level);
        Scale::of(points.map(|(_, value)| *value), level.as_slice(), self.unit, self.from_zero)
    }

    /// What is drawn, behind the title.
    fn legend(&self, text: &mut String) {
        let mut x = LEFT + LETTER * 1.4 * self.title.chars().count() as f64 + 24.0;
        let mut entry = |name: &str, color: &str, line: &str| {
            let _ = writeln!(
                text,
                "<path d=\"M{x:.1} 16h18\" stroke=\"{color}\" {line}/>\
                 <text x=\"{:.1}\" y=\"20\">{}</text>",
                x + 24.0,
                xml(name)
            );
            x += 44.0 + LETTER * name.chars().count() as f64;
        };
        for Curve { name, color, width, .. } in self.curves.iter().filter(|c| !c.name.is_empty()) {
            entry(name, color, &format!("stroke-width=\"{}\"", width.max(1.5)));
        }
        if let Some((name, _)) = &self.level {
            entry(name, LEVEL, LEVEL_LINE);
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
        if let Some((_, level)) = &self.level {
            let y = y(*level);
            let _ = writeln!(
                text,
                "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"{LEVEL}\" {LEVEL_LINE}/>"
            );
        }
        for curve in &self.curves {
            let x = |step| x(self.size, axis, step);
            for path in paths(curve, x, y) {
                let _ = writeln!(
                    text,
                    "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" \
                     stroke-linejoin=\"round\" stroke-linecap=\"round\"/>",
                    curve.color, curve.width
                );
            }
            if curve.points.len() <= MAX_DOTS {
                dots(text, curve, x, y);
            }
        }
        let all = self.curves.iter().flat_map(|curve| &curve.points);
        let n_outside = all.filter(|(_, v)| is_drawn(*v) && !scale.contains(*v)).count();
        let mut notes = Vec::new();
        if scale.is_log {
            notes.push("logarithmic".to_string());
        }
        if n_outside > 0 {
            let values = if n_outside == 1 { "value lies" } else { "values lie" };
            notes.push(format!("{n_outside} {values} outside"));
        }
        if !notes.is_empty() {
            let _ = writeln!(
                text,
                "<text x=\"{LEFT}\" y=\"{}\" fill=\"#666\">{}</text>",
                height - 5.0,
                notes.join(", ")
            );
        }
    }
}

/// Marks each value of a curve.
fn dots(text: &mut String, curve: &Curve, x: impl Fn(u64) -> f64, y: impl Fn(f64) -> f64) {
    let mut path = String::new();
    for &(step, value) in curve.points.iter().filter(|(_, value)| is_drawn(*value)) {
        let _ = write!(path, "M{:.1} {:.1}h0", x(step), y(value));
    }
    if !path.is_empty() {
        let _ = writeln!(
            text,
            "<path d=\"{path}\" stroke=\"{}\" stroke-width=\"{}\" stroke-linecap=\"round\"/>",
            curve.color,
            curve.width + 3.0
        );
    }
}

/// Which buckets the batches of each part of the run were of, by their place in `n_buckets`: a stack of shares.
/// `updates` has the buckets of each logged update, which stand for those since the one before. The axis is never
/// logarithmic.
pub(crate) fn mix(
    size: [f64; 2],
    axis: &StepAxis,
    n_buckets: usize,
    updates: &[(u64, Vec<usize>)],
) -> String {
    let axis = &StepAxis { is_log: false, ..axis.clone() };
    let mut text = open("Buckets of the batches", size);
    let [_, height] = size;
    let plot = height - TOP - BOTTOM;
    let mut left = 0;
    for part in updates.chunks(updates.len().div_ceil(MIX_PARTS).max(1)) {
        let right = part.last().map_or(left, |(step, _)| *step);
        let mut counts = vec![0u64; n_buckets];
        for &bucket in part.iter().flat_map(|(_, buckets)| buckets) {
            counts[bucket] += 1;
        }
        let all: u64 = counts.iter().sum();
        let [from, to] = [left, right].map(|step| x(size, axis, step));
        let mut below = 0;
        for (place, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let [bottom, top] = [below, below + count].map(|n| n as f64 / all as f64 * plot);
            let _ = writeln!(
                text,
                "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\" \
                 shape-rendering=\"crispEdges\"/>",
                TOP + plot - top,
                to - from,
                top - bottom,
                color(place)
            );
            below += count;
        }
        left = right;
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
    // A run that went on often has its labels where there is room.
    let mut free = LEFT;
    for resume in &axis.resumes {
        let x = x(size, axis, *resume);
        let _ = writeln!(
            text,
            "<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#8a4b00\" stroke-dasharray=\"2 3\">\
             <title>went on after update {resume}</title></path>"
        );
        if x >= free && x + RESUMED < right {
            let _ = writeln!(
                text,
                "<text x=\"{:.1}\" y=\"{}\" font-size=\"11\" fill=\"#8a4b00\" {HALO}>resumed</text>",
                x + 4.0,
                bottom - 6.0
            );
            free = x + RESUMED;
        }
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
        let scale = chart.scale().unwrap();
        assert!(!scale.contains(2.2) && !scale.contains(0.9), "{scale:?}");
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
    fn a_mix_is_a_stack_of_shares() {
        let updates: Vec<_> =
            (1..=48).map(|step| (step, vec![usize::from(step % 2 == 0)])).collect();
        let text = mix([1000.0, 168.0], &axis(48), 2, &updates);
        // One batch for every update: a full column each.
        assert_eq!(text.matches("height=\"96.0\" fill").count(), 48);
        assert_eq!(text.matches(color(0)).count(), 24);
    }

    #[test]
    fn a_logged_update_stands_for_those_before_it() {
        let updates = [(4, vec![0]), (8, vec![0, 1]), (12, vec![1])];
        let text = mix([1000.0, 168.0], &axis(12), 2, &updates);
        // The plot is 912 pixels wide, and no column is empty.
        assert_eq!(text.matches("width=\"304.0\" height=\"96.0\"").count(), 2);
        assert_eq!(text.matches("width=\"304.0\" height=\"48.0\"").count(), 2);
    }

    #[test]
    fn few_values_are_dots_and_a_level_is_in_the_legend() {
        let mut few = chart(&[1.0, 2.0, 1.5]);
        few.level = Some(("clipped above 1.2".into(), 1.2));
        let svg = few.svg(&axis(3));
        assert!(svg.contains(">clipped above 1.2</text>"), "{svg}");
        assert_eq!(svg.matches("h0").count(), 3);
        assert_eq!(chart(&[1.0; 100]).svg(&axis(100)).matches("h0").count(), 0);
        assert!(chart(&[0.01, 10.0]).svg(&axis(2)).contains(">logarithmic</text>"));
    }

    #[test]
    fn labels_of_a_run_that_went_on_often_do_not_cover_each_other() {
        let axis = StepAxis { last: 1000, is_log: false, resumes: (500..600).collect() };
        let svg = chart(&[1.0, 2.0]).svg(&axis);
        assert_eq!(svg.matches("went on after").count(), 100);
        assert_eq!(svg.matches(">resumed</text>").count(), 1);
    }
}
