//! `model_table [THREADS]`: whole models as `kino` runs them, on made-up weights, beside the
//! multiply-add peak measured in the same run. One line per model, then where its time goes.
#![allow(clippy::print_stdout, reason = "the table is the program's output")]

use std::sync::Arc;

use benches::model::{self, Measured};
use kernels::Pool;
use models::config::{AutoencoderKl, Stdit2, T5};
use models::vae::FrameBucket;
use models::{Bucket, stdit2, t5, vae};
use ops::{DType, Graph};

const REPETITIONS: usize = 5;

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
    let pool = Arc::new(Pool::new(threads)?);
    let isa = model::target(threads).isa;
    println!("{isa}, {threads} threads, f32, best of {REPETITIONS}\n");
    println!("| model | GFLOP | compile ms | seconds | GFLOP/s | % of peak | arena MiB | bound |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut profiles = String::new();
    for (name, graph) in models()? {
        let measured = model::measure(graph, &pool, REPETITIONS)?;
        let Measured { flops, compile_seconds, seconds, peak, arena_bytes, .. } = measured;
        println!(
            "| {name} | {:.0} | {:.0} | {seconds:.3} | {:.0} | {:.0} | {:.1} | {:.3} |",
            flops / 1e9,
            compile_seconds * 1e3,
            flops / seconds / 1e9,
            100.0 * flops / seconds / peak,
            arena_bytes as f64 / f64::from(1 << 20),
            arena_bytes as f64 / measured.lower_bound_bytes.max(1) as f64,
        );
        profiles += &model::profile(name, &measured);
    }
    println!("\n{profiles}");
    Ok(())
}
