//! `kino plan --all-buckets`: one plan for each of upstream's resolutions and lengths.

use compiler::cost::CostModel;
use kernels::Target;
use kernels::cuda::Gpu;
use models::nn;
use serde_json::json;

use crate::dump::{ModelOptions, StageName};
use crate::failure::Outcome;
use crate::parts::Parts;
use crate::plan::{PlanOptions, StagePlan, percent};
use crate::progress::Console;
use crate::report::line;
use crate::{VERSION, machine, progress, units};

/// Resolutions of the table: those that upstream trains videos at.
const RESOLUTIONS: [&str; 5] = ["144p", "240p", "360p", "480p", "720p"];

/// Lengths of the table: an image, and upstream's names for videos.
const LENGTHS: [&str; 5] = ["1", "2s", "4s", "8s", "16s"];

/// Landscape, as upstream's commands have it.
const ASPECT: &str = "9:16";

/// A size of the table and its plan.
#[derive(Debug)]
pub(crate) struct Row {
    /// As `--bucket` takes it.
    pub bucket: String,
    /// Frames, height and width in pixels.
    pub size: [usize; 3],
    /// Tokens of the transformer, or elements of the latent's grid.
    pub tokens: usize,
    /// The plan.
    pub plan: StagePlan,
}

/// The command.
pub(crate) fn run(
    options: &PlanOptions,
    target: &Target,
    model: Option<&CostModel>,
    advice: &str,
) -> Outcome<()> {
    let parts = Parts::find(&options.model.model)?;
    let stage = options.model.stage.unwrap_or(parts.usual_stage());
    let limit = options.limit()?;
    let console = Console::new(options.json, false);
    let rows = rows(&options.model, (&parts, stage), target, &limit, model, &console)?;
    if options.json {
        progress::write_out(&to_json(options, stage, target, &rows));
    } else {
        progress::write_out(&to_text(options, stage, target, &rows, advice));
    }
    Ok(())
}

/// The plans of all sizes, by resolution, then by length.
pub(crate) fn rows(
    options: &ModelOptions,
    (parts, stage): (&Parts, StageName),
    target: &Target,
    limit: &compiler::Options,
    model: Option<&CostModel>,
    console: &Console,
) -> Outcome<Vec<Row>> {
    let mut bar = console.stage("plan", (RESOLUTIONS.len() * LENGTHS.len()) as u64);
    let mut rows = Vec::new();
    for resolution in RESOLUTIONS {
        for length in LENGTHS {
            rows.push(bar.time(|bar| -> Outcome<Row> {
                let bucket = [resolution, length];
                let row = row(options, parts, stage, bucket, target, limit, model)?;
                bar.advance();
                Ok(row)
            })?);
        }
    }
    bar.finish();
    Ok(rows)
}

impl Row {
    /// The bucket without its aspect, which is the same for all.
    pub(crate) fn short_name(&self) -> &str {
        self.bucket.strip_suffix(ASPECT).map_or("", |name| name.trim_end_matches(':'))
    }
}

fn row(
    options: &ModelOptions,
    parts: &Parts,
    stage: StageName,
    [resolution, length]: [&str; 2],
    target: &Target,
    limit: &compiler::Options,
    model: Option<&CostModel>,
) -> Outcome<Row> {
    let bucket = format!("{resolution}:{length}:{ASPECT}");
    let options = ModelOptions { bucket: bucket.clone(), ..options.clone() };
    let size = options.size()?;
    let graph = parts.graph(&options, stage, size, target)?;
    let plan = StagePlan::compile(stage, graph, target, limit, model)?;
    let patch = parts.transformer.as_ref().map_or([1; 3], |config| config.common().patch_size);
    let tokens = nn::token_grid(parts.latent(size), patch).iter().product();
    Ok(Row { bucket, size, tokens, plan })
}

fn to_text(
    options: &PlanOptions,
    stage: StageName,
    target: &Target,
    rows: &[Row],
    advice: &str,
) -> String {
    let bytes = |count: usize| units::bytes(count as f64);
    let mut text = String::new();
    let (model, dtype, batch) =
        (&options.model.model, options.model.dtype.dtype(), options.model.batch_size);
    line(
        &mut text,
        format_args!("model    {model} {}, {ASPECT}, batch {batch}, {dtype}", stage.name()),
    );
    line(&mut text, format_args!("machine  {}\n", machine::describe(target)));
    let [a, b, c, d, e, f, g, h] =
        ["bucket", "frames", "tokens", "work", "arena", "bound", "gap", "weights"];
    line(
        &mut text,
        format_args!(
            "{a:<10} {b:>6} {c:>9} {d:>13} {e:>10} {f:>10} {g:>7} {h:>10} {:>10}",
            "expected"
        ),
    );
    for row in rows {
        let plan = &row.plan.plan;
        let name = row.short_name();
        let gap = percent(row.plan.gap_bytes() as f64, plan.lower_bound_bytes as f64);
        let time = row.plan.total_seconds().map_or("-".into(), units::seconds);
        line(
            &mut text,
            format_args!(
                "{name:<10} {:>6} {:>9} {:>13} {:>10} {:>10} {gap:>7} {:>10} {time:>10}",
                row.size[0],
                row.tokens,
                units::flops(plan.flops()),
                bytes(plan.arena_bytes),
                bytes(plan.lower_bound_bytes),
                bytes(plan.weight_bytes())
            ),
        );
    }
    if rows.iter().all(|row| row.plan.seconds.is_none()) {
        line(&mut text, format_args!("\ntime is unknown: {advice}"));
    }
    text
}

fn to_json(options: &PlanOptions, stage: StageName, target: &Target, rows: &[Row]) -> String {
    let buckets: Vec<serde_json::Value> = rows
        .iter()
        .map(|row| {
            let plan = &row.plan.plan;
            json!({
                "bucket": row.bucket, "num_frames": row.size[0], "height": row.size[1],
                "width": row.size[2], "tokens": row.tokens, "flops": plan.flops(),
                "bytes_moved": plan.bytes_moved(), "arena_bytes": plan.arena_bytes,
                "lower_bound_bytes": plan.lower_bound_bytes, "gap_bytes": row.plan.gap_bytes(),
                "weight_bytes": plan.weight_bytes(), "peak_bytes": row.plan.held_bytes(),
                "seconds": row.plan.total_seconds(),
            })
        })
        .collect();
    let document = json!({
        "version": VERSION, "model": options.model.model, "stage": stage.name(),
        "batch_size": options.model.batch_size, "dtype": options.model.dtype,
        "threads": target.threads, "isa": target.isa.name(),
        "gpu": target.gpu.map(Gpu::code_name), "buckets": buckets,
    });
    format!("{document:#}\n")
}
