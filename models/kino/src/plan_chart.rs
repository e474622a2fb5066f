//! The arena over time as a picture: steps across, bytes up, each buffer a box.
//!
//! The text is XML 1.0 whatever names a checkpoint brings, and the same plan gives the same bytes.

use std::fmt::Write;

use crate::dump::ModelOptions;
use crate::plan::{StagePlan, name_of};
use crate::plan_boxes::{Boxed, KINDS, boxes, parts};
use crate::svg::{HALO, byte_ticks, step_ticks, xml};
use crate::units;

/// Pixels of the picture and of what is around the plot of one stage.
const WIDTH: f64 = 1200.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 92.0;
const PLOT: f64 = 430.0;
const BOTTOM: f64 = 74.0;

/// Pixels of a letter at the size of labels, about.
const LETTER: f64 = 6.0;

/// The picture of every stage, one below the other.
pub(crate) fn svg(options: &ModelOptions, size: [usize; 3], stages: &[StagePlan]) -> String {
    let stage_height = TOP + PLOT + BOTTOM;
    let height = stage_height * stages.len() as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"Helvetica, Arial, sans-serif\" \
         font-size=\"11\" fill=\"#333\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (number, stage) in stages.iter().enumerate() {
        let top = stage_height * number as f64;
        let _ = writeln!(text, "<g transform=\"translate(0 {top})\">");
        Drawing::of(stage).draw(&mut text, &heading(options, size, stage));
        text += "</g>\n";
    }
    text + "</svg>\n"
}

/// The first line above a picture.
pub(crate) fn heading(
    options: &ModelOptions,
    [frames, height, width]: [usize; 3],
    stage: &StagePlan,
) -> String {
    let frames = units::counted(frames, "frame");
    let (model, stage, dtype) = (&options.model, stage.stage.name(), options.dtype.dtype());
    format!("{model} {stage}: {frames} of {height}x{width}, {dtype}")
}

/// The second line above a picture.
pub(crate) fn summary(stage: &StagePlan) -> String {
    let bytes = |count: usize| units::bytes(count as f64);
    let plan = &stage.plan;
    format!(
        "arena {}, lower bound {}, weights {}, {} buffers, {} steps, {}",
        bytes(plan.arena_bytes),
        bytes(plan.lower_bound_bytes),
        bytes(plan.weight_bytes()),
        plan.buffers.len(),
        plan.steps.len(),
        units::flops(plan.flops())
    )
}

/// One stage with the scales of its axes.
struct Drawing<'a> {
    stage: &'a StagePlan,
    columns: f64,
    most_bytes: f64,
}

impl Drawing<'_> {
    fn of(stage: &StagePlan) -> Drawing<'_> {
        // One column for each step, and one for what waits for the caller after the last.
        let columns = (stage.plan.steps.len() + 1) as f64;
        // Some air above the highest box, for the labels of the lines.
        Drawing { stage, columns, most_bytes: (stage.plan.arena_bytes as f64 * 1.06).max(1.0) }
    }

    fn x(&self, step: usize) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * step as f64 / self.columns
    }

    fn y(&self, bytes: f64) -> f64 {
        TOP + PLOT * (1.0 - bytes / self.most_bytes)
    }

    fn draw(&self, text: &mut String, heading: &str) {
        let _ = writeln!(
            text,
            "<text x=\"{LEFT}\" y=\"28\" font-size=\"17\" font-weight=\"bold\">{}</text>\n\
             <text x=\"{LEFT}\" y=\"48\" font-size=\"12\" fill=\"#666\">{}</text>",
            xml(heading),
            xml(&summary(self.stage))
        );
        let boxes = boxes(&self.stage.plan);
        self.legend(text, &boxes);
        self.axes(text);
        self.parts(text);
        for boxed in &boxes {
            self.rect(text, boxed);
        }
        self.live(text);
        self.marks(text);
        // Above the lines, which would cross them out.
        for boxed in &boxes {
            self.label(text, boxed);
        }
    }

    fn legend(&self, text: &mut String, boxes: &[Boxed]) {
        let mut x = LEFT;
        for (kind, (name, _, color)) in KINDS.iter().enumerate() {
            if boxes.iter().all(|boxed| boxed.kind != kind) {
                continue;
            }
            let _ = writeln!(
                text,
                "<rect x=\"{x}\" y=\"62\" width=\"11\" height=\"11\" rx=\"2\" fill=\"{color}\"/>\
                 <text x=\"{}\" y=\"72\">{name}</text>",
                x + 16.0
            );
            x += 34.0 + LETTER * name.len() as f64;
        }
        let _ = writeln!(
            text,
            "<path d=\"M{x} 68h18\" stroke=\"#111\" stroke-width=\"1.4\"/>\
             <text x=\"{}\" y=\"72\">live bytes</text>",
            x + 24.0
        );
    }

    fn axes(&self, text: &mut String) {
        let (left, right) = (LEFT, WIDTH - RIGHT);
        for (bytes, label) in byte_ticks(self.stage.plan.arena_bytes as f64) {
            let y = self.y(bytes);
            let _ = writeln!(
                text,
                "<path d=\"M{left} {y:.1}H{right}\" stroke=\"#e4e4e4\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                left - 8.0,
                y + 4.0
            );
        }
        let bottom = TOP + PLOT;
        let _ = writeln!(text, "<path d=\"M{left} {bottom}H{right}\" stroke=\"#888\"/>");
        for step in step_ticks(self.stage.plan.steps.len()) {
            let x = self.x(step);
            let _ = writeln!(
                text,
                "<path d=\"M{x:.1} {bottom}v5\" stroke=\"#888\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{step}</text>",
                bottom + 18.0
            );
        }
        let _ = writeln!(
            text,
            "<text x=\"{right}\" y=\"{}\" text-anchor=\"end\" fill=\"#666\">step</text>",
            bottom + 62.0
        );
    }

    /// A band below the axis that tells which part of the model the steps are from.
    fn parts(&self, text: &mut String) {
        let y = TOP + PLOT + 26.0;
        for (number, part) in parts(&self.stage.plan).iter().enumerate() {
            let [from, to] = part.steps.map(|step| self.x(step));
            let fill = if number % 2 == 0 { "#ececec" } else { "#dcdcdc" };
            let width = to - from;
            let _ = write!(
                text,
                "<rect x=\"{from:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"17\" fill=\"{fill}\">\
                 <title>{}</title></rect>",
                xml(name_of(&part.name))
            );
            // The number alone where the whole name does not fit.
            let last = part.name.rsplit('.').next().unwrap_or_default();
            let fits = |name: &&str| !name.is_empty() && LETTER * name.len() as f64 + 4.0 <= width;
            if let Some(name) = [part.name.as_str(), last].into_iter().find(fits) {
                let _ = write!(
                    text,
                    "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" font-size=\"10\">{}</text>",
                    from + width / 2.0,
                    y + 12.0,
                    xml(name)
                );
            }
            text.push('\n');
        }
    }

    /// Left, top, width and height; what is too thin to see is still there.
    fn place(&self, boxed: &Boxed) -> [f64; 4] {
        let [x, end] = boxed.steps.map(|step| self.x(step));
        let (y, bottom) =
            (self.y((boxed.offset + boxed.bytes) as f64), self.y(boxed.offset as f64));
        [x, y, (end - x).max(0.5), (bottom - y).max(0.5)]
    }

    fn rect(&self, text: &mut String, boxed: &Boxed) {
        let [x, y, width, height] = self.place(boxed);
        let opacity = if boxed.light { 0.72 } else { 0.95 };
        let edge =
            if width > 3.0 && height > 3.0 { " stroke=\"#fff\" stroke-width=\".6\"" } else { "" };
        let _ = writeln!(
            text,
            "<rect class=\"b\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
             fill=\"{}\" fill-opacity=\"{opacity}\"{edge}><title>{}</title></rect>",
            KINDS[boxed.kind].2,
            xml(&boxed.title)
        );
    }

    /// Writes what a box holds into it, along its longer side, if there is room.
    fn label(&self, text: &mut String, boxed: &Boxed) {
        let [x, y, width, height] = self.place(boxed);
        let size = units::bytes(boxed.bytes as f64);
        let long = format!("{} {size}", boxed.label);
        let (length, thickness) = (width.max(height), width.min(height));
        let room = |label: &&str| LETTER * label.len() as f64 + 8.0 <= length;
        // A number by itself would name nothing.
        let last = boxed.label.rsplit('.').next().filter(|word| word.parse::<usize>().is_err());
        let choices = [long.as_str(), boxed.label.as_str(), last.unwrap_or_default()];
        let Some(label) = choices.into_iter().find(room) else { return };
        if thickness < 13.0 || boxed.label.is_empty() || label.is_empty() {
            return;
        }
        let (cx, cy) = (x + width / 2.0, y + height / 2.0);
        let turn = if width >= height {
            format!(" y=\"{:.1}\"", cy + 3.8)
        } else {
            format!(" y=\"{cy:.1}\" dy=\"3.8\" transform=\"rotate(-90 {cx:.1} {cy:.1})\"")
        };
        let dark = matches!(KINDS[boxed.kind].0, "elementwise" | "scratch");
        let fill = if dark { "#222" } else { "#fff" };
        let _ = writeln!(
            text,
            "<text x=\"{cx:.1}\"{turn} text-anchor=\"middle\" fill=\"{fill}\" \
             pointer-events=\"none\">{}</text>",
            xml(label)
        );
    }

    fn live(&self, text: &mut String) {
        let mut path = String::new();
        let live = self.stage.plan.live_bytes();
        let mut step = 0;
        while step < live.len() {
            // Of steps within a pixel the fullest: all ups and downs would be one black area.
            let mut end = step + 1;
            while end < live.len() && self.x(end + 1) - self.x(step) <= 1.0 {
                end += 1;
            }
            let most = live[step..end].iter().copied().max().unwrap_or(0);
            let command = if step == 0 { 'M' } else { 'L' };
            let (x, y) = (self.x(step), self.y(most as f64));
            let _ = write!(path, "{command}{x:.1} {y:.1}H{:.1}", self.x(end));
            step = end;
        }
        // A halo sets the line off the boxes, but where steps are narrow it would hide them.
        let is_wide = self.x(1) - self.x(0) > 5.0;
        let strokes: &[(&str, f64)] =
            if is_wide { &[("#fff", 3.0), ("#111", 1.4)] } else { &[("#111", 0.7)] };
        for (color, width) in strokes {
            let _ = writeln!(
                text,
                "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\" \
                 pointer-events=\"none\"/>"
            );
        }
    }

    /// Lower bound, arena, and the fullest step.
    fn marks(&self, text: &mut String) {
        let plan = &self.stage.plan;
        let right = WIDTH - RIGHT;
        let bound = self.y(plan.lower_bound_bytes as f64);
        let _ = writeln!(
            text,
            "<path class=\"bound\" d=\"M{LEFT} {bound:.1}H{right}\" stroke=\"#c00\" \
             stroke-width=\"1.2\" stroke-dasharray=\"6 4\"/>"
        );
        let arena = self.y(plan.arena_bytes as f64);
        let mut label = format!("lower bound {}", units::bytes(plan.lower_bound_bytes as f64));
        if plan.arena_bytes == plan.lower_bound_bytes {
            label = format!("arena = {label}");
        } else {
            let _ = writeln!(
                text,
                "<path class=\"arena\" d=\"M{LEFT} {arena:.1}H{right}\" stroke=\"#c00\" stroke-width=\"1.2\"/>"
            );
            label = format!("arena {}, {label}", units::bytes(plan.arena_bytes as f64));
        }
        let _ = writeln!(
            text,
            "<text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#c00\" {HALO}>{label}</text>",
            arena - 6.0
        );
        let fullest = plan.fullest_step();
        let x = f64::midpoint(self.x(fullest), self.x(fullest + 1));
        // The other label is at the right end.
        let anchor = if x > WIDTH - 480.0 { "end" } else { "start" };
        let shift = if anchor == "end" { -6.0 } else { 6.0 };
        let _ = writeln!(
            text,
            "<path class=\"peak\" d=\"M{x:.1} {}V{:.1}\" stroke=\"#c00\" stroke-dasharray=\"2 3\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"#c00\" {HALO}>fullest at step \
             {fullest}</text>",
            TOP + PLOT,
            TOP + 2.0,
            x + shift,
            arena - 6.0
        );
    }
}
