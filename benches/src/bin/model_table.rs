//! `model_table [THREADS]`: whole models as `kino` runs them, on made-up weights, beside the
//! multiply-add peak measured in the same run. One line per model, then where its time goes.
#![allow(clippy::print_stdout, reason = "the table is the program's output")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use benches::peak::fma_peak;
use kernels::{Isa, Pool, Target};
use models::config::{AutoencoderKl, Stdit2, T5};
use models::vae::FrameBucket;
use models::{Bucket, stdit2, t5, vae};
use ops::{DType, Graph, TensorType};
use runtime::{Session, WeightSource, WeightStore};

const REPETITIONS: usize = 5;

/// Small numbers for any tensor that is asked for.
struct MadeUp(BTreeMap<String, TensorType>);

impl WeightSource for MadeUp {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let Some(ty) = self.0.get(name) else { return Ok(None) };
        let wave = |i: usize| (((i * 37) % 101) as f32 - 50.0) * 4e-4;
        let ones =
            name.ends_with("norm.weight") || name.contains("norm1") || name.contains("norm2");
        let value = |i| if ones { 1.0 + wave(i) } else { wave(i) };
        let ty32 = ty.with_dtype(DType::F32);
        let bytes = (0..ty.count()).flat_map(|i| value(i).to_le_bytes()).collect();
        Ok(Some((ty32, Cow::Owned(bytes))))
    }
}

fn models() -> Result<Vec<(&'static str, Graph)>, Box<dyn std::error::Error>> {
    let stdit = |depth: usize| -> Result<Graph, Box<dyn std::error::Error>> {
        let config = serde_json::json!({
            "depth": depth, "hidden_size": 1152, "num_heads": 16, "caption_channels": 4096,
            "model_max_length": 120, "input_sq_size": 512, "qk_norm": true,
        });
        let bucket = Bucket::new(1, [16, 32, 32], [256.0, 256.0], 120);
        Ok(stdit2::graph(&Stdit2::from_json(&config)?, &bucket)?)
    };
    let kl = AutoencoderKl::from_json(&serde_json::json!({
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    }))?;
    let frame =
        |size: usize| FrameBucket { dtype: DType::F32, frames: 1, height: size, width: size };
    let large = T5::from_json(&serde_json::json!({
        "d_model": 1024, "d_kv": 64, "num_heads": 16, "d_ff": 2816, "num_layers": 24,
        "vocab_size": 32128, "feed_forward_proj": "gated-gelu",
    }))?;
    let text = t5::TextBucket { dtype: DType::F32, rows: 1, tokens: 120, mask: true };
    Ok(vec![
        ("STDiT2-XL/2, one block, 16x256x256", stdit(1)?),
        ("STDiT2-XL/2, two blocks", stdit(2)?),
        ("AutoencoderKL decode 256x256", vae::decoder_graph(&kl, &frame(32))?),
        ("AutoencoderKL encode 256x256", vae::encoder_graph(&kl, &frame(256))?),
        ("T5 v1.1-large, 120 tokens", t5::graph(&large, &text)?),
    ])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads: usize = std::env::args().nth(1).map_or(Ok(2), |n| n.parse())?;
    let isa = Isa::detect();
    let pool = Arc::new(Pool::new(threads)?);
    let target = Target { isa, threads, l1_bytes: 48 << 10, l2_bytes: 1 << 20, l3_bytes: 32 << 20 };
    println!("{isa}, {threads} threads, f32, best of {REPETITIONS}\n");
    println!("| model | GFLOP | compile ms | seconds | GFLOP/s | % of peak | arena MiB | bound |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut profiles = String::new();
    for (name, graph) in models()? {
        let start = Instant::now();
        let plan = Arc::new(compiler::compile(graph, &target)?);
        let compile_ms = start.elapsed().as_secs_f64() * 1e3;
        let params = plan
            .graph
            .params()
            .map(|(value, name)| (name.to_string(), plan.graph.ty(value).clone()));
        let weights = WeightStore::new(MadeUp(params.collect()));
        let mut session = Session::new(Arc::clone(&plan), &weights, Arc::clone(&pool))?;
        let inputs: Vec<(String, Vec<u8>)> = plan
            .inputs
            .iter()
            .map(|port| {
                let byte = if port.ty.dtype() == DType::Bool { 1 } else { 0 };
                (port.name.to_string(), vec![byte; port.ty.bytes()])
            })
            .collect();
        let inputs: Vec<(&str, &[u8])> =
            inputs.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        session.run(&inputs)?;
        let before: Vec<f64> = session.times().iter().map(|time| time.seconds).collect();
        let mut best = f64::MAX;
        let mut peak = 0f64;
        for _ in 0..REPETITIONS {
            // In turns: a shared machine's clock changes from second to second.
            peak = peak.max(fma_peak(isa, &pool));
            let start = Instant::now();
            session.run(&inputs)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        let flops = plan.flops() as f64;
        println!(
            "| {name} | {:.0} | {compile_ms:.0} | {best:.3} | {:.0} | {:.0} | {:.1} | {:.3} |",
            flops / 1e9,
            flops / best / 1e9,
            100.0 * flops / best / peak,
            plan.arena_bytes as f64 / f64::from(1 << 20),
            plan.arena_bytes as f64 / plan.lower_bound_bytes.max(1) as f64,
        );
        profiles += &profile(name, &session, &before);
    }
    println!("\n{profiles}");
    Ok(())
}

/// Seconds and GFLOP/s by kernel.
fn profile(name: &str, session: &Session, before: &[f64]) -> String {
    let plan = session.plan();
    let mut kernels: BTreeMap<&str, (f64, u64, usize)> = BTreeMap::new();
    for ((step, time), before) in plan.steps.iter().zip(session.times()).zip(before) {
        let row = kernels.entry(step.kernel.def().name()).or_default();
        row.0 += (time.seconds - before) / REPETITIONS as f64;
        row.1 += plan.graph.node_flops(step.value);
        row.2 += 1;
    }
    let total: f64 = kernels.values().map(|row| row.0).sum();
    let mut rows: Vec<_> = kernels.into_iter().collect();
    rows.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    let mut text = format!("{name}\n");
    for (kernel, (seconds, flops, steps)) in rows {
        text += &format!(
            "  {kernel:<12} {steps:>4} steps  {:>9.3} ms  {:>5.1} %  {:>5.0} GFLOP/s\n",
            seconds * 1e3,
            100.0 * seconds / total,
            flops as f64 / seconds / 1e9
        );
    }
    text
}
