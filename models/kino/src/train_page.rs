//! A run of training as one page: pictures are SVG and inside, nothing is fetched and no script is needed.
//!
//! The page is a pure function of the log and of the files that the log names below the run's folder; names and
//! messages in it come from outside and are text, never markup.

use std::fmt::Write;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use training::run_log::{BucketPlan, Start, Step, Stop, StopReason, Validation, png_size};

use crate::base64;
use crate::svg::xml;
use crate::train_chart::{self, Chart, Curve, StepAxis, Unit};
use crate::train_summary::{BucketUse, Summary, Turn, smoothed};
use crate::units;

/// Width and height of a picture over the whole page, and of one of two beside each other.
const WIDE: [f64; 2] = [1152.0, 300.0];
const LOW: [f64; 2] = [1152.0, 190.0];
const HALF: [f64; 2] = [568.0, 220.0];

/// Curves: each value, and their means.
const RAW: &str = "#9fbfe3";
const SMOOTH: &str = "#17498c";

/// Most bytes of pictures inside the page. The newest are inside, others are named.
const MAX_PICTURES: u64 = 32 << 20;

/// Most rows of a table that grows with the run.
const MAX_ROWS: usize = 200;

const STYLE: &str = "\
body { margin: 0; background: #fff; color: #1d1d1d; font: 14px/1.45 Helvetica, Arial, sans-serif; }
main { width: 1152px; margin: 0 auto; padding: 20px 24px 48px; }
h1 { margin: 0 0 4px; font-size: 24px; }
h2 { margin: 32px 0 8px; font-size: 18px; border-bottom: 1px solid #ccc; padding-bottom: 4px; }
h3 { margin: 18px 0 6px; font-size: 14px; }
p { margin: 4px 0; }
p.bad { color: #a00000; font-weight: bold; }
svg { display: block; margin: 8px 0; }
div.pair { display: flex; gap: 16px; }
dl { display: grid; grid-template-columns: repeat(4, auto 1fr); gap: 3px 12px; margin: 12px 0; }
dt { color: #555; }
dd { margin: 0; }
table { border-collapse: collapse; margin: 8px 0; }
th, td { text-align: left; vertical-align: top; padding: 3px 14px 3px 0; border-bottom: 1px solid #e2e2e2;
  overflow-wrap: anywhere; }
th { color: #555; font-weight: normal; overflow-wrap: normal; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
i.swatch { display: inline-block; width: 11px; height: 11px; margin-right: 6px; border-radius: 2px; }
div.samples { display: flex; flex-wrap: wrap; gap: 8px 16px; }
figure { margin: 0; }
figure img { display: block; max-width: 1152px; image-rendering: pixelated; border: 1px solid #ddd; }
figcaption { color: #555; font-size: 12px; }
pre { background: #f5f5f5; padding: 12px; overflow-x: auto; font-size: 12px; }
@media print { h2 { break-after: avoid; } svg, figure, tr { break-inside: avoid; } }
";

/// The page of the run in `folder`; updates are on a logarithmic axis if `is_log`.
pub(crate) fn html(folder: &Path, summary: &Summary<'_>, is_log: bool) -> String {
    let axis = StepAxis { last: summary.step, is_log, resumes: summary.resumes() };
    let title = xml(&summary.start.recipe);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=1200\">\n<title>{title}: training run</title>\n\
         <style>\n{STYLE}</style>\n<main>\n"
    );
    page += &head(summary);
    page += "<h2>Loss and gradient</h2>\n";
    page += &loss(summary, &axis);
    page += "<h2>Speed</h2>\n";
    page += &speed(summary, &axis);
    page += "<h2>Memory</h2>\n";
    page += &memory(summary, &axis);
    page += "<h2>Buckets</h2>\n";
    page += &buckets(summary, &axis);
    page += "<h2>Samples</h2>\n";
    page += &samples(folder, summary);
    page += "<h2>Snapshots</h2>\n";
    page += &snapshots(folder, summary);
    page += "<h2>Replaced data</h2>\n";
    page += &replaced(summary);
    page += "<h2>Course</h2>\n";
    page += &course(summary);
    let recipe = xml(&summary.start.recipe_text);
    let _ = write!(
        page,
        "<h2>Recipe</h2>\n<details><summary>{title}</summary>\n<pre>{recipe}</pre></details>\n\
         </main>\n</html>\n"
    );
    page
}

/// Name, state and numbers of the whole run.
fn head(summary: &Summary<'_>) -> String {
    let Start { recipe, model, version, params, trained_params, steps, seed, threads, .. } =
        summary.start;
    let mut text = format!("<h1>{}</h1>\n", xml(recipe));
    let _ = writeln!(text, "<p>{} of {steps} updates; {}</p>", summary.step, xml(&summary.state()));
    let diverged = summary.diverged();
    if let Some(first) = diverged.first() {
        let n = units::counted(diverged.len(), "update");
        let _ = writeln!(
            text,
            "<p class=\"bad\">Loss or gradient is no number in {n}, first in update {first}.</p>"
        );
    }
    let millions = |count: u64| format!("{:.2}M", count as f64 / 1e6);
    let epoch = summary.steps.last().map_or(0, |step| step.epoch.saturating_add(1));
    let mut facts = vec![
        ("model", xml(model)),
        ("parameters", format!("{}, {} trained", millions(*params), millions(*trained_params))),
        ("time", units::seconds(summary.elapsed())),
        ("logged updates", summary.steps.len().to_string()),
        ("epoch", epoch.to_string()),
        ("samples", summary.total_text(|step| step.samples)),
        ("tokens", summary.total_text(|step| step.tokens)),
        ("threads", threads.to_string()),
        ("seed", seed.to_string()),
        ("kino", xml(version)),
    ];
    if let Some(limit) = summary.start.limit_gflops {
        facts.push(("machine's limit", format!("{limit:.0} GFLOP/s")));
    }
    text += "<dl>\n";
    for (name, fact) in facts {
        let _ = writeln!(text, "<dt>{name}</dt><dd>{fact}</dd>");
    }
    text + "</dl>\n"
}

/// Each value and their means.
fn curves(points: Vec<(u64, f64)>) -> Vec<Curve> {
    let means = smoothed(&points);
    vec![
        Curve { name: "each update", color: RAW, width: 1.0, points },
        Curve { name: "smoothed", color: SMOOTH, width: 2.0, points: means },
    ]
}

/// A number of each update, where it has one.
fn values(summary: &Summary<'_>, of: impl Fn(&Step) -> Option<f64>) -> Vec<(u64, f64)> {
    summary.steps.iter().filter_map(|step| Some((step.step, of(step)?))).collect()
}

fn pair(left: &Chart<'_>, right: &Chart<'_>, axis: &StepAxis) -> String {
    format!("<div class=\"pair\">\n{}{}</div>\n", left.svg(axis), right.svg(axis))
}

fn half(title: &str, curves: Vec<Curve>) -> Chart<'_> {
    Chart { title, size: HALF, unit: Unit::Plain, from_zero: true, curves, level: None }
}

fn loss(summary: &Summary<'_>, axis: &StepAxis) -> String {
    let loss = Chart {
        title: "Loss",
        size: WIDE,
        unit: Unit::Plain,
        from_zero: false,
        curves: curves(summary.losses()),
        level: None,
    };
    let rates = values(summary, |step| Some(step.lr));
    let rate = Curve { name: "", color: SMOOTH, width: 2.0, points: rates };
    let norms = curves(values(summary, |step| Some(f64::from(step.grad_norm))));
    let norm = Chart { from_zero: false, ..half("Gradient norm before clipping", norms) };
    loss.svg(axis) + &pair(&half("Learning rate", vec![rate]), &norm, axis)
}

fn speed(summary: &Summary<'_>, axis: &StepAxis) -> String {
    let mut text = String::new();
    if let Some(speed) = summary.speed() {
        let _ = writeln!(text, "<p>{speed}</p>");
    }
    let samples = curves(values(summary, |step| step.per_second(step.samples)));
    let tokens = curves(values(summary, |step| step.per_second(step.tokens)));
    let percent = |share: Option<f64>| share.map(|share| share * 100.0);
    let limit = summary.start.limit_gflops.filter(|limit| *limit > 0.0);
    let shares = |limit: f64| values(summary, |step| percent(step.share_of(limit)));
    let work = match limit {
        Some(limit) => Chart {
            unit: Unit::Percent,
            ..half("Share of the machine's limit", curves(shares(limit)))
        },
        None => {
            let rates = values(summary, |step| Some(step.per_second(step.flops)? / 1e9));
            half("GFLOP/s (the limit was not measured)", curves(rates))
        }
    };
    let waits = values(summary, |step| {
        (step.seconds > 0.0).then(|| step.data_wait_seconds / step.seconds * 100.0)
    });
    let wait = Chart { unit: Unit::Percent, ..half("Time waiting for data", curves(waits)) };
    text += &pair(&half("Samples per second", samples), &half("Tokens per second", tokens), axis);
    text + &pair(&work, &wait, axis)
}

fn memory(summary: &Summary<'_>, axis: &StepAxis) -> String {
    let points = values(summary, |step| Some(step.rss_bytes as f64));
    let chart = Chart {
        title: "Resident memory",
        size: LOW,
        unit: Unit::Bytes,
        from_zero: true,
        curves: vec![Curve { name: "", color: SMOOTH, width: 1.5, points }],
        level: summary
            .planned_bytes()
            .map(|bytes| (format!("planned {}", units::bytes(bytes as f64)), bytes as f64)),
    };
    let text = summary.memory().map_or(String::new(), |text| format!("<p>{text}</p>\n"));
    text + &chart.svg(axis)
}

fn buckets(summary: &Summary<'_>, axis: &StepAxis) -> String {
    let buckets = summary.buckets();
    let place_of = |name: &String| buckets.iter().position(|bucket| bucket.name == *name);
    let batches = summary.steps.iter().flat_map(|step| {
        step.buckets.iter().filter_map(move |name| Some((step.step, place_of(name)?)))
    });
    let text = train_chart::mix(LOW, axis, buckets.len(), batches);
    let n_batches: u64 = buckets.iter().map(|bucket| bucket.n_batches).sum();
    let seconds = summary.seconds();
    let limit = summary.start.limit_gflops.filter(|limit| *limit > 0.0);
    let percent = |part: f64, all: f64| {
        if all > 0.0 { format!("{:.1} %", part / all * 100.0) } else { String::new() }
    };
    let rows = buckets.iter().enumerate().map(|(place, bucket)| {
        let BucketUse { name, n_batches: n, seconds: time, plan } = bucket;
        let planned = |of: &dyn Fn(&BucketPlan) -> String| plan.as_ref().map_or(String::new(), of);
        let color = train_chart::color(place);
        let swatch = format!("<i class=\"swatch\" style=\"background: {color}\"></i>");
        let rate = plan.as_ref().map_or(0.0, |plan| plan.flops as f64 * *n as f64);
        let share = limit.map(|limit| percent(rate, limit * 1e9 * time)).unwrap_or_default();
        [
            cell(&format!("{swatch}{}", xml(name))),
            number(&n.to_string()),
            number(&percent(*n as f64, n_batches as f64)),
            number(&percent(*time, seconds)),
            number(&if *n > 0 { units::seconds(time / *n as f64) } else { String::new() }),
            number(&share),
            number(&planned(&|plan| units::bytes(plan.peak_bytes as f64))),
            number(&planned(&|plan| units::flops(plan.flops))),
            number(&planned(&|plan| percent(plan.recomputed_flops as f64, plan.flops as f64))),
        ]
        .concat()
    });
    let heads = [
        ("bucket", false),
        ("batches", true),
        ("of batches", true),
        ("of time", true),
        ("a batch", true),
        ("of limit", true),
        ("planned bytes", true),
        ("planned work", true),
        ("made again", true),
    ];
    text + &table(&heads, rows)
}

/// Sampled videos: a heading for each prompt, below it what was sampled from update to update.
fn samples(folder: &Path, summary: &Summary<'_>) -> String {
    let mut room = MAX_PICTURES;
    // The newest are inside where not all can be.
    let mut figures: Vec<(&Validation, String)> = Vec::new();
    for &validation in summary.validations.iter().rev() {
        figures.push((validation, figure(folder, validation, &mut room)));
    }
    figures.reverse();
    let mut prompts: Vec<&str> = Vec::new();
    for (validation, _) in &figures {
        if !prompts.contains(&validation.prompt.as_str()) {
            prompts.push(&validation.prompt);
        }
    }
    let mut text = String::new();
    for prompt in prompts {
        let _ = writeln!(text, "<h3>{}</h3>\n<div class=\"samples\">", xml(prompt));
        for (_, figure) in figures.iter().filter(|(of, _)| of.prompt == prompt) {
            text += figure;
        }
        text += "</div>\n";
    }
    if text.is_empty() { "<p>None were taken.</p>\n".into() } else { text }
}

fn figure(folder: &Path, validation: &Validation, room: &mut u64) -> String {
    let Validation { step, prompt, file, frames_png } = validation;
    let image = match picture(folder, frames_png.as_ref().unwrap_or(file), *room) {
        Ok((kind, bytes)) => {
            *room -= bytes.len() as u64;
            // Frames of a small model are a few pixels on most screens.
            let width = png_size(&bytes).map(|[width, _]| width).filter(|width| *width > 0);
            let doubled = width.filter(|width| *width <= 560).map(|width| width * 2);
            let width = doubled.map_or(String::new(), |width| format!(" width=\"{width}\""));
            format!(
                "<img{width} alt=\"{}, update {step}\" src=\"data:{kind};base64,{}\">",
                xml(prompt),
                base64::encode(&bytes)
            )
        }
        Err(reason) => format!("<p>{}</p>", xml(&reason)),
    };
    let file = xml(file);
    format!("<figure>{image}<figcaption>update {step}: {file}</figcaption></figure>\n")
}

/// The bytes of a picture below `folder` and what kind it is, or why it is not in the page.
fn picture(folder: &Path, name: &str, room: u64) -> Result<(&'static str, Vec<u8>), String> {
    let path = below(folder, name).ok_or_else(|| format!("{name}: not in the run's folder"))?;
    let read = || {
        let mut bytes = Vec::new();
        File::open(&path)?.take(room.saturating_add(1)).read_to_end(&mut bytes)?;
        std::io::Result::Ok(bytes)
    };
    let bytes = read().map_err(|error| format!("{name}: {error}"))?;
    if bytes.len() as u64 > room {
        return Err(format!("{name}: left out, the page has many pictures"));
    }
    let kind = match bytes.as_slice() {
        [b'G', b'I', b'F', b'8', ..] => "image/gif",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
        bytes if png_size(bytes).is_some() => "image/png",
        _ => return Err(format!("{name}: no picture")),
    };
    Ok((kind, bytes))
}

/// The path of `name` if it cannot be outside of `folder`: a log may come from anybody.
fn below(folder: &Path, name: &str) -> Option<PathBuf> {
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    Path::new(name).components().all(is_plain).then(|| folder.join(name))
}

fn snapshots(folder: &Path, summary: &Summary<'_>) -> String {
    if summary.snapshots.is_empty() {
        return "<p>None were written.</p>\n".into();
    }
    let rows = summary.snapshots.iter().map(|snapshot| {
        let path = below(folder, &snapshot.file);
        let is_there = path.is_some_and(|path| fs::exists(path).unwrap_or(false));
        [
            number(&snapshot.step.to_string()),
            cell(&xml(&snapshot.file)),
            number(&units::bytes(snapshot.bytes as f64)),
            number(&units::seconds(snapshot.seconds)),
            cell(if is_there { "kept" } else { "removed" }),
        ]
        .concat()
    });
    let heads =
        [("update", true), ("file", false), ("size", true), ("written in", true), ("now", false)];
    newest(&heads, rows)
}

fn replaced(summary: &Summary<'_>) -> String {
    let causes = summary.causes();
    if causes.is_empty() {
        return "<p>Every sample could be read.</p>\n".into();
    }
    let rows = causes.iter().map(|cause| {
        let first = cause.first;
        [
            number(&first.step.to_string()),
            number(&cause.count.to_string()),
            cell(&xml(&first.path)),
            cell(&xml(&first.by)),
            cell(&xml(&first.reason)),
        ]
        .concat()
    });
    let heads = [
        ("first after", true),
        ("times", true),
        ("sample", false),
        ("first replaced by", false),
        ("why", false),
    ];
    newest(&heads, rows)
}

/// Starts and stops.
fn course(summary: &Summary<'_>) -> String {
    let rows = summary.course.iter().enumerate().map(|(index, (time, turn))| {
        let (step, what) = match turn {
            Turn::Start(Start { step, version, threads, .. }) => {
                let verb = if index == 0 { "started" } else { "resumed" };
                let threads = units::counted(*threads, "thread");
                (step, format!("{verb}, kino {version}, {threads}"))
            }
            Turn::Stop(Stop { step, reason }) => {
                let what = match reason {
                    StopReason::Finished => "finished".into(),
                    StopReason::Interrupted => "interrupted".into(),
                    StopReason::Failed { message } => format!("failed: {message}"),
                };
                (step, what)
            }
        };
        [cell(&units::date(*time)), number(&step.to_string()), cell(&xml(&what))].concat()
    });
    newest(&[("when", false), ("updates", true), ("what", false)], rows)
}

fn cell(html: &str) -> String {
    format!("<td>{html}</td>")
}

fn number(text: &str) -> String {
    format!("<td class=\"n\">{text}</td>")
}

/// A table of rows of cells; `heads` are names of columns and whether they are of numbers.
fn table(heads: &[(&str, bool)], rows: impl Iterator<Item = String>) -> String {
    let mut text = String::from("<table>\n<tr>");
    for (head, is_number) in heads {
        let class = if *is_number { " class=\"n\"" } else { "" };
        let _ = write!(text, "<th{class}>{head}</th>");
    }
    text += "</tr>\n";
    for row in rows {
        let _ = writeln!(text, "<tr>{row}</tr>");
    }
    text + "</table>\n"
}

/// A table that grows with the run: the newest rows of it.
fn newest(heads: &[(&str, bool)], rows: impl ExactSizeIterator<Item = String>) -> String {
    let n_rows = rows.len();
    let n_left_out = n_rows.saturating_sub(MAX_ROWS);
    let mut text = String::new();
    if n_left_out > 0 {
        let _ = writeln!(text, "<p>The newest {MAX_ROWS} of {n_rows} rows.</p>");
    }
    text + &table(heads, rows.skip(n_left_out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_run_get_into_the_page() {
        let folder = Path::new("run");
        assert_eq!(below(folder, "samples/a.png"), Some(folder.join("samples/a.png")));
        for name in ["../a.png", "samples/../../a.png", "/a.png", "./a.png"] {
            assert_eq!(below(folder, name), None, "{name}");
        }
    }
}
