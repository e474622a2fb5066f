//! `kino profile --scaling`: how a transformer block's time grows with tokens and threads, and what
//! attention over space and over time saves against attention over all tokens at once.
//!
//! Each line has what the cost model expects and, where that is short enough, what was measured.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use compiler::Plan;
use compiler::cost::CostModel;
use kernels::{Pool, Target};
use measure::Rehearsal;
use models::config::{Stdit1, Stdit2};
use models::nn::{self, Over, QkNorm, SelfAttention};
use models::{Bucket, Net, stdit1, stdit2};
use ops::{Builder, DType, Graph, TensorType};
use pipeline::Transformer;
use serde_json::{Value, json};

use crate::calibrate::Calibration;
use crate::dump::ModelOptions;
use crate::failure::{Failure, Outcome};
use crate::parts::Parts;
use crate::profile::ProfileOptions;
use crate::profile_report::error_of;
use crate::progress::{Console, Stage};
use crate::report::line;
use crate::{VERSION, machine, progress, units};

/// Frames, height and width in tokens: 1 k to 64 k of them.
const SIZES: [[usize; 3]; 7] =
    [[16, 8, 8], [16, 8, 16], [16, 16, 16], [16, 16, 32], [16, 32, 32], [16, 32, 64], [16, 64, 64]];

/// Lengths at which both kinds of attention are compared, and the tokens of a frame: 256x256 pixels.
const FRAMES: [usize; 3] = [16, 64, 256];
const FRAME_TOKENS: usize = 256;

/// A graph's time.
struct Timing {
    flops: u64,
    expected: Option<f64>,
    measured: Option<f64>,
}

struct BlockRow {
    threads: usize,
    tokens: usize,
    timing: Timing,
}

struct AttentionRow {
    frames: usize,
    /// Over space and time, over all tokens.
    timings: [Timing; 2],
}

/// The command.
pub(crate) fn run(
    options: &ProfileOptions,
    target: &Target,
    calibration: &Calibration,
    interrupt: &AtomicBool,
) -> Outcome<()> {
    let parts = Parts::find(&options.model.model)?;
    let transformer = parts.transformer.as_ref().ok_or_else(|| {
        Failure::usage(format!("{} has no transformer to scale", options.model.model))
    })?;
    let console = Console::new(options.json, false);
    let threads = thread_counts(target.threads);
    let units = threads.len() * SIZES.len() + 2 * FRAMES.len();
    let mut bar = console.stage("scaling", units as u64);
    let dtype = options.model.dtype.dtype();
    let mut blocks = Vec::new();
    for &threads in &threads {
        let target = Target { threads, ..target.clone() };
        let clock = Clock::new(options, &target, calibration, interrupt)?;
        for size in SIZES {
            let graph = block(transformer, size, dtype)?;
            let tokens = size.iter().product();
            let timing = bar.time(|bar| clock.time(bar, graph))?;
            blocks.push(BlockRow { threads, tokens, timing });
        }
    }
    let clock = Clock::new(options, target, calibration, interrupt)?;
    let mut attention = Vec::new();
    for frames in FRAMES {
        let apart = attention_graph(transformer, frames, dtype, false)?;
        let at_once = attention_graph(transformer, frames, dtype, true)?;
        let timings =
            bar.time(|bar| Ok::<_, Failure>([clock.time(bar, apart)?, clock.time(bar, at_once)?]))?;
        attention.push(AttentionRow { frames, timings });
    }
    bar.finish();
    if options.json {
        progress::write_out(&to_json(&options.model, target, &blocks, &attention));
    } else {
        progress::write_out(&to_text(&options.model, target, &blocks, &attention));
    }
    Ok(())
}

/// 1, 2, 4, ... and all.
fn thread_counts(most: usize) -> Vec<usize> {
    let mut counts: Vec<usize> = std::iter::successors(Some(1), |count| Some(2 * count))
        .take_while(|count| *count < most)
        .collect();
    counts.push(most);
    counts
}

/// Expects and measures on one count of threads.
struct Clock<'a> {
    options: &'a ProfileOptions,
    target: Target,
    pool: Arc<Pool>,
    model: Option<CostModel>,
    interrupt: &'a AtomicBool,
}

impl Clock<'_> {
    fn new<'a>(
        options: &'a ProfileOptions,
        target: &Target,
        calibration: &Calibration,
        interrupt: &'a AtomicBool,
    ) -> Outcome<Clock<'a>> {
        let pool = Arc::new(Pool::new(target.threads).context("cannot start threads")?);
        let model = calibration.load(target)?;
        Ok(Clock { options, target: target.clone(), pool, model, interrupt })
    }

    fn time(&self, bar: &Stage, graph: Graph) -> Outcome<Timing> {
        let plan = Arc::new(compiler::compile(graph, &self.target)?);
        let expected = self.model.as_ref().map(|model| model.plan_seconds(&plan));
        let measured =
            if self.is_short(&plan, expected) { Some(self.measure(&plan)?) } else { None };
        bar.advance();
        Ok(Timing { flops: plan.flops(), expected, measured })
    }

    /// Whether a run can be waited for, and held: without a cost model, by a guess of its speed.
    fn is_short(&self, plan: &Plan, expected: Option<f64>) -> bool {
        let guess = plan.flops() as f64 / (GUESSED_RATE * self.target.threads as f64);
        let need = plan.held_bytes() as f64;
        expected.unwrap_or(guess) <= self.options.at_most && machine::check_memory(need, "").is_ok()
    }

    fn measure(&self, plan: &Arc<Plan>) -> Outcome<f64> {
        let interrupt = Some(self.interrupt);
        let mut rehearsal = Rehearsal::new(Arc::clone(plan), Arc::clone(&self.pool))?;
        rehearsal.warm_up(interrupt)?;
        let mut passed = 0.0;
        // Long runs need no repetition: they are their own mean.
        while rehearsal.runs() < self.options.repeat && passed < LONG_SECONDS {
            passed += rehearsal.run(interrupt, &mut |_| {})?;
        }
        Ok(rehearsal.steps().iter().map(|step| step.least).sum())
    }
}

/// FLOP/s of a thread, for a machine that was not measured.
const GUESSED_RATE: f64 = 5e10;

/// Seconds after which a graph is not run once more.
const LONG_SECONDS: f64 = 1.0;

/// The model with one block, for one video of so many tokens.
fn block(transformer: &Transformer, tokens: [usize; 3], dtype: DType) -> Outcome<Graph> {
    let patch = transformer.common().patch_size;
    let latent = [0, 1, 2].map(|axis| tokens[axis] * patch[axis]);
    let pixels = [latent[1] as f64 * 8.0, latent[2] as f64 * 8.0];
    let captions = transformer.common().model_max_length;
    let bucket = Bucket { dtype, ..Bucket::new(1, latent, pixels, captions) };
    Ok(match transformer {
        Transformer::Stdit1(config) => {
            let mut config: Stdit1 = config.clone();
            config.common.depth = 1;
            stdit1::graph(&config, &bucket)?
        }
        Transformer::Stdit2(config) => {
            let mut config: Stdit2 = config.clone();
            config.common.depth = 1;
            stdit2::graph(&config, &bucket)?
        }
    })
}

/// Self attention of a block with its linear layers: over the tokens of a frame and then over
/// frames, as the model has it, or once over all tokens.
fn attention_graph(
    transformer: &Transformer,
    frames: usize,
    dtype: DType,
    at_once: bool,
) -> Outcome<Graph> {
    let build = || -> Result<Graph, ops::Error> {
        let (heads, width) = (transformer.common().num_heads, transformer.common().hidden_size);
        let how = |over| SelfAttention { over, heads, qk_norm: QkNorm::Off, angles: None };
        let mut b = Builder::new(if at_once { "attention_over_all" } else { "attention_apart" });
        let grid = if at_once { [1, 1, frames * FRAME_TOKENS] } else { [1, frames, FRAME_TOKENS] };
        let shape = [&grid[..], &[width]].concat();
        let x = b.input("x", TensorType::new(dtype, shape)?);
        let net = &mut Net::new(&mut b, dtype);
        let mut y = net.at("attn", |net| nn::self_attention(net, x, &how(Over::Space)))?;
        if !at_once {
            y = net.at("attn_temp", |net| nn::self_attention(net, y, &how(Over::Time)))?;
        }
        Ok(b.finish(&[y]))
    };
    Ok(build().map_err(models::Error::from)?)
}

fn time_of(seconds: Option<f64>) -> String {
    seconds.map_or("-".into(), units::seconds)
}

fn off_by(timing: &Timing) -> String {
    let both = timing.expected.zip(timing.measured);
    both.map_or("-".into(), |(expected, measured)| error_of(expected, measured))
}

fn to_text(
    options: &ModelOptions,
    target: &Target,
    blocks: &[BlockRow],
    attention: &[AttentionRow],
) -> String {
    let mut text = String::new();
    let (model, dtype, isa) = (&options.model, options.dtype.dtype(), target.isa);
    line(&mut text, format_args!("model    {model}, one block, {dtype}"));
    line(&mut text, format_args!("machine  {}, {isa}\n", machine::cpu_name()));
    line(
        &mut text,
        format_args!(
            "{:>7} {:>8} {:>13} {:>11} {:>11} {:>8} {:>9} {:>9}",
            "threads", "tokens", "work", "expected", "measured", "off by", "GFLOP/s", "speed-up"
        ),
    );
    let alone: BTreeMap<usize, f64> = blocks
        .iter()
        .filter(|row| row.threads == 1)
        .filter_map(|row| Some((row.tokens, row.timing.measured?)))
        .collect();
    for BlockRow { threads, tokens, timing } in blocks {
        let rate = timing.measured.map(|seconds| timing.flops as f64 / seconds / 1e9);
        let gain = timing.measured.zip(alone.get(tokens)).map(|(time, alone)| alone / time);
        line(
            &mut text,
            format_args!(
                "{threads:>7} {tokens:>8} {:>13} {:>11} {:>11} {:>8} {:>9} {:>9}",
                units::flops(timing.flops),
                time_of(timing.expected),
                time_of(timing.measured),
                off_by(timing),
                rate.map_or("-".into(), |rate| format!("{rate:.0}")),
                gain.map_or("-".into(), |gain| format!("{gain:.2}x"))
            ),
        );
    }
    let threads = units::counted(target.threads, "thread");
    line(
        &mut text,
        format_args!(
            "\nself attention of one block, {FRAME_TOKENS} tokens a frame, {threads}\n{:>7} {:>8}  {:<16} {:>13} {:>11} {:>11} {:>8}",
            "frames", "tokens", "over", "work", "expected", "measured", "off by"
        ),
    );
    for AttentionRow { frames, timings } in attention {
        for (over, timing) in ["space, then time", "all tokens"].iter().zip(timings) {
            line(
                &mut text,
                format_args!(
                    "{frames:>7} {:>8}  {over:<16} {:>13} {:>11} {:>11} {:>8}",
                    frames * FRAME_TOKENS,
                    units::flops(timing.flops),
                    time_of(timing.expected),
                    time_of(timing.measured),
                    off_by(timing)
                ),
            );
        }
    }
    if blocks.iter().any(|row| row.timing.expected.is_none()) {
        text += "\n`kino calibrate --threads N` measures this machine: then the expected time is known\n";
    }
    text
}

fn to_json(
    options: &ModelOptions,
    target: &Target,
    blocks: &[BlockRow],
    attention: &[AttentionRow],
) -> String {
    let timing = |timing: &Timing| -> Value {
        json!({
            "flops": timing.flops, "expected_seconds": timing.expected,
            "measured_seconds": timing.measured,
        })
    };
    let blocks: Vec<Value> = blocks
        .iter()
        .map(|row| json!({ "threads": row.threads, "tokens": row.tokens, "time": timing(&row.timing) }))
        .collect();
    let attention: Vec<Value> = attention
        .iter()
        .map(|row| {
            json!({
                "frames": row.frames, "tokens": row.frames * FRAME_TOKENS,
                "space_then_time": timing(&row.timings[0]), "all_tokens": timing(&row.timings[1]),
            })
        })
        .collect();
    let document = json!({
        "version": VERSION, "model": options.model, "dtype": options.dtype,
        "threads": target.threads, "isa": target.isa.name(), "block": blocks,
        "attention": attention,
    });
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_are_among_the_counts() {
        assert_eq!(thread_counts(1), [1]);
        assert_eq!(thread_counts(2), [1, 2]);
        assert_eq!(thread_counts(6), [1, 2, 4, 6]);
        assert_eq!(thread_counts(8), [1, 2, 4, 8]);
    }

    #[test]
    fn both_kinds_of_attention_take_the_same_tokens() {
        let transformer = Transformer::Stdit2(Stdit2::from_json(&json!({})).unwrap());
        let [apart, at_once] =
            [false, true].map(|all| attention_graph(&transformer, 16, DType::F32, all).unwrap());
        let count = |graph: &Graph| graph.ty(graph.outputs[0]).count();
        assert_eq!(count(&apart), count(&at_once));
        assert!(at_once.flops() > apart.flops());
    }
}
