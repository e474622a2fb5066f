//! `kino roofline --all-buckets`: the modelled time of each of upstream's resolutions and lengths.
//!
//! Beside it stand the seconds that upstream reports for sampling with Open-Sora 1.2, which is another
//! model: the report says so, and nothing is derived from the two.

use kernels::Target;
use serde_json::json;

use crate::dump::{ModelOptions, StageName};
use crate::failure::Outcome;
use crate::gpu_model::Roofline;
use crate::parts::Parts;
use crate::plan_table::{Row, rows};
use crate::progress::Console;
use crate::report::line;
use crate::roofline::{Total, header, tasks_of_plan};
use crate::{VERSION, progress, units};

/// Seconds that upstream's README of Open-Sora 1.2 states for one sample of 30 steps on an H100 of
/// 80 GB, text encoder and decoder included.
const UPSTREAM_SECONDS: [(&str, f64); 15] = [
    ("360p:1", 3.0),
    ("360p:2s", 18.0),
    ("360p:4s", 31.0),
    ("360p:8s", 62.0),
    ("360p:16s", 121.0),
    ("480p:1", 2.0),
    ("480p:2s", 29.0),
    ("480p:4s", 55.0),
    ("480p:8s", 108.0),
    ("480p:16s", 219.0),
    ("720p:1", 6.0),
    ("720p:2s", 68.0),
    ("720p:4s", 130.0),
    ("720p:8s", 260.0),
    ("720p:16s", 547.0),
];

/// Steps of the sampler in those.
const UPSTREAM_STEPS: f64 = 30.0;

/// The command.
pub(crate) fn run(
    options: &ModelOptions,
    target: &Target,
    roofline: &Roofline,
    as_json: bool,
) -> Outcome<()> {
    let parts = Parts::find(&options.model)?;
    let stage = options.stage.unwrap_or(parts.usual_stage());
    let console = Console::new(as_json, false);
    let limit = compiler::Options::default();
    let rows = rows(options, (&parts, stage), target, &limit, None, &console)?;
    let upstream = |row: &Row| {
        // What upstream measured is sampling on this device.
        let applies = stage == StageName::Denoise && roofline.sheet.name == "h100";
        let found = UPSTREAM_SECONDS.iter().find(|(bucket, _)| *bucket == row.short_name());
        found.filter(|_| applies).map(|(_, seconds)| *seconds)
    };
    let totals = rows.iter().map(|row| (row, Total::of(&tasks_of_plan(&row.plan), roofline)));
    let dtype = options.dtype.dtype();
    if as_json {
        let buckets = totals.map(|(row, total)| {
            let mut document = total.to_json();
            document["bucket"] = json!(row.bucket);
            document["tokens"] = json!(row.tokens);
            document["peak_bytes"] = json!(row.plan.held_bytes());
            document["open_sora_1_2_seconds"] = json!(upstream(row));
            document
        });
        let document = json!({
            "version": VERSION, "model": options.model, "stage": stage.name(),
            "gpu": roofline.sheet.name, "dtype": dtype.to_string(), "modelled": true,
            "assumptions": roofline.assumptions(dtype), "buckets": buckets.collect::<Vec<_>>(),
        });
        progress::write_out(&format!("{document:#}\n"));
        return Ok(());
    }
    let mut text = header(&options.model, roofline, dtype);
    line(
        &mut text,
        format_args!(
            "\n{:<10} {:>9} {:>13} {:>11} {:>11} {:>8} {:>14} {:>10}",
            stage.name(),
            "tokens",
            "work",
            "memory",
            "modelled",
            "limit",
            "x 30 steps",
            "1.2"
        ),
    );
    let mut has_upstream = false;
    for (row, total) in totals {
        let measured = upstream(row);
        has_upstream |= measured.is_some();
        line(
            &mut text,
            format_args!(
                "{:<10} {:>9} {:>13} {:>11} {:>11} {:>8} {:>14} {:>10}",
                row.short_name(),
                row.tokens,
                units::flops(total.flops),
                units::bytes(row.plan.held_bytes() as f64),
                units::seconds(total.seconds),
                total.limit().name(),
                units::seconds(UPSTREAM_STEPS * total.seconds),
                measured.map_or("-".into(), units::seconds)
            ),
        );
    }
    if has_upstream {
        text += "\n1.2      what upstream reports for a whole sample of Open-Sora 1.2 in 30 steps on an H100: \
                 another model,\n         whose VAE leaves it about a quarter of the frames; no comparison of speed\n";
    }
    progress::write_out(&text);
    Ok(())
}
