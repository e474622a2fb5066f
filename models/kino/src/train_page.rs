//! A run of training as one page: pictures are SVG and inside, nothing is fetched and no script is needed.
//!
//! The page is a pure function of the log and of the files that the log names below the run's folder; names and
//! messages in it come from outside and are text, never markup.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use training::Recipe;
use training::run_log::{BucketPlan, Start, Step, Stop, StopReason};

use crate::svg::xml;
use crate::train_axis::{StepAxis, Unit};
use crate::train_chart::{self, Chart, Curve};
use crate::train_samples::{self, below};
use crate::train_summary::{BucketUse, Summary, Turn, smoothed};
use crate::units;

/// Width and height of a picture over the whole page, and of one of two beside each other.
const WIDE: [f64; 2] = [1152.0, 300.0];
const LOW: [f64; 2] = [1152.0, 190.0];
const HALF: [f64; 2] = [568.0, 220.0];

/// Curves: each value, and their means.
const RAW: &str = "#9fbfe3";
const SMOOTH: &str = "#17498c";

/// Most rows of a table that grows with the run.
const MAX_ROWS: usize = 200;

const STYLE: &str = "\
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1d1d1d; font: 14px/1.45 Helvetica, Arial, sans-serif; }
main { max-width: 1152px; margin: 0 auto; padding: 20px 24px 48px; }
h1 { margin: 0 0 4px; font-size: 24px; overflow-wrap: anywhere; }
h2 { margin: 32px 0 8px; font-size: 18px; border-bottom: 1px solid #ccc; padding-bottom: 4px; }
h3 { margin: 18px 0 6px; font-size: 14px; }
p { margin: 4px 0; }
p.note { color: #555; }
p.bad { color: #a00000; font-weight: bold; }
svg { display: block; margin: 8px 0; width: 100%; height: auto; }
div.wide { overflow-x: auto; }
div.wide svg { min-width: 860px; }
div.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 0 16px; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 3px 20px; margin: 12px 0; }
dl div { display: flex; gap: 12px; }
dt { color: #555; flex: 0 0 120px; }
dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 8px 0; }
th, td { text-align: left; vertical-align: top; padding: 3px 14px 3px 0; border-bottom: 1px solid #e2e2e2; }
th, td { white-space: nowrap; }
td.text { white-space: normal; overflow-wrap: anywhere; min-width: 14em; }
th { color: #555; font-weight: normal; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
i.swatch { display: inline-block; width: 11px; height: 11px; margin-right: 6px; border-radius: 2px; }
div.samples { display: flex; flex-wrap: wrap; gap: 8px 16px; }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; image-rendering: pixelated; }
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
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}: training run</title>\n\
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
    page += &train_samples::html(folder, summary);
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
    let trained = if trained_params == params { "all".into() } else { millions(*trained_params) };
    let epoch = summary.steps.last().map_or(0, |step| step.epoch.saturating_add(1));
    let started = summary.course.first().map_or(0.0, |(time, _)| *time);
    let each = summary.seconds_of_update().map_or("unknown".into(), units::seconds);
    let mut facts = vec![
        ("model", xml(model)),
        ("parameters", format!("{}, {trained} trained", millions(*params))),
        ("started", units::date(started)),
        ("time", units::seconds(summary.elapsed())),
        ("an update", each),
        ("logged", format!("{} updates", units::grouped(summary.steps.len() as u128))),
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
        let _ = writeln!(text, "<div><dt>{name}</dt><dd>{fact}</dd></div>");
    }
    text + "</dl>\n"
}

/// Each value and their means; the values alone where so few are their own means.
fn curves(summary: &Summary<'_>, points: Vec<(u64, f64)>) -> Vec<Curve> {
    let means = smoothed(&points);
    if means == points {
        return vec![Curve { name: "", color: SMOOTH, width: 1.5, points }];
    }
    let is_all = summary.steps.len() as u64 >= summary.step;
    let name = if is_all { "each update" } else { "logged updates" };
    vec![
        Curve { name, color: RAW, width: 1.0, points },
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

/// A picture over the whole width of the page, which a narrow one scrolls.
fn wide(svg: &str) -> String {
    format!("<div class=\"wide\">\n{svg}</div>\n")
}

fn loss(summary: &Summary<'_>, axis: &StepAxis) -> String {
    let loss = Chart {
        title: "Loss",
        size: WIDE,
        unit: Unit::Plain,
        from_zero: false,
        curves: curves(summary, summary.losses()),
        level: None,
    };
    let rates = values(summary, |step| Some(step.lr));
    let rate = Curve { name: "", color: SMOOTH, width: 2.0, points: rates };
    let norms = values(summary, |step| Some(f64::from(step.grad_norm)));
    // Where nothing is clipped, the limit may be far from all that is to be seen.
    let limit = Recipe::parse(&summary.start.recipe_text).ok();
    let limit = limit.and_then(|recipe| recipe.optimizer.max_norm);
    let limit = limit.filter(|limit| norms.iter().any(|(_, norm)| norm > limit));
    let norm = Chart {
        from_zero: false,
        level: limit.map(|limit| (format!("clip at {limit}"), limit)),
        ..half("Gradient norm", curves(summary, norms))
    };
    wide(&loss.svg(axis)) + &pair(&half("Learning rate", vec![rate]), &norm, axis)
}

fn speed(summary: &Summary<'_>, axis: &StepAxis) -> String {
    let mut text = String::new();
    if let Some(speed) = summary.speed() {
        let _ = writeln!(text, "<p>{speed}</p>");
    }
    let samples = curves(summary, values(summary, |step| step.per_second(step.samples)));
    let tokens = curves(summary, values(summary, |step| step.per_second(step.tokens)));
    let percent = |share: Option<f64>| share.map(|share| share * 100.0);
    let limit = summary.start.limit_gflops.filter(|limit| *limit > 0.0);
    let shares = |limit: f64| values(summary, |step| percent(step.share_of(limit)));
    let work = match limit {
        Some(limit) => Chart {
            unit: Unit::Percent,
            ..half("Share of the machine's limit", curves(summary, shares(limit)))
        },
        None => {
            let rates = values(summary, |step| Some(step.per_second(step.flops)? / 1e9));
            half("GFLOP/s (the limit was not measured)", curves(summary, rates))
        }
    };
    let waits = values(summary, |step| {
        (step.seconds > 0.0).then(|| step.data_wait_seconds / step.seconds * 100.0)
    });
    let wait =
        Chart { unit: Unit::Percent, ..half("Time waiting for data", curves(summary, waits)) };
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
        curves: vec![Curve { name: "process", color: SMOOTH, width: 1.5, points }],
        level: summary
            .planned_bytes()
            .map(|bytes| (format!("planned {}", units::bytes(bytes as f64)), bytes as f64)),
    };
    let text = summary.memory().map_or(String::new(), |text| format!("<p>{text}</p>\n"));
    let note = "<p class=\"note\">The plan is of weights, their moments and averages, and the buffers of updates. The \
                program, batches that are read ahead, encoders and the making of samples come on top.</p>\n";
    text + &wide(&chart.svg(axis)) + note
}

fn buckets(summary: &Summary<'_>, axis: &StepAxis) -> String {
    let buckets = summary.buckets();
    let place_of = |name: &String| buckets.iter().position(|bucket| bucket.name == *name);
    let updates: Vec<(u64, Vec<usize>)> = summary
        .steps
        .iter()
        .map(|step| (step.step, step.buckets.iter().filter_map(place_of).collect()))
        .collect();
    // One bucket is no mix.
    let text = match buckets.len() {
        0 | 1 => String::new(),
        n_buckets => wide(&train_chart::mix(LOW, axis, n_buckets, &updates)),
    };
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
        ("time of one", true),
        ("of limit", true),
        ("planned memory", true),
        ("planned work", true),
        ("computed twice", true),
    ];
    text + &table(&heads, rows)
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
            text_cell(&xml(&first.path)),
            text_cell(&xml(&first.by)),
            text_cell(&xml(&first.reason)),
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
        [cell(&units::date(*time)), number(&step.to_string()), text_cell(&xml(&what))].concat()
    });
    newest(&[("when", false), ("updates", true), ("what", false)], rows)
}

fn cell(html: &str) -> String {
    format!("<td>{html}</td>")
}

/// A cell that may be of many lines.
fn text_cell(html: &str) -> String {
    format!("<td class=\"text\">{html}</td>")
}

fn number(text: &str) -> String {
    format!("<td class=\"n\">{text}</td>")
}

/// A table of rows of cells; `heads` are names of columns and whether they are of numbers.
fn table(heads: &[(&str, bool)], rows: impl Iterator<Item = String>) -> String {
    let mut text = String::from("<div class=\"wide\"><table>\n<tr>");
    for (head, is_number) in heads {
        let class = if *is_number { " class=\"n\"" } else { "" };
        let _ = write!(text, "<th{class}>{head}</th>");
    }
    text += "</tr>\n";
    for row in rows {
        let _ = writeln!(text, "<tr>{row}</tr>");
    }
    text + "</table></div>\n"
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
