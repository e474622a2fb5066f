//! How close arenas come to their lower bound, for every architecture that Open-Sora published, at
//! the sizes of its tables. Plans only: no weight is read.
//!
//! A covering part of the tables is compiled, so that the test takes seconds: every resolution up to
//! 720p with the narrowest, widest and a middle aspect at 16 frames; with the middle one also
//! images, 16 s (408 frames), bf16, runs without guidance, and two videos at once.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use compiler::{Plan, check_plan, compile};
use diffusion::Release;
use kernels::Isa;
use models::config::{AutoencoderKl, Stdit1, Stdit2, T5};
use models::{Bucket, stdit1, stdit2, t5, vae};
use ops::{DType, Graph};
use serde_json::json;
use tests::compiled::target;

const RESOLUTIONS: [&str; 7] = ["144p", "256", "240p", "360p", "512", "480p", "720p"];

/// Largest arena over its lower bound.
const MAX_GAP: f64 = 1.02;

/// Pixels of each resolution: the first, middle and last of its aspects.
fn sizes() -> Vec<[usize; 2]> {
    let mut sizes = Vec::new();
    for name in RESOLUTIONS {
        let table = &diffusion::resolution(name, Release::V1_2).expect("the table exists").sizes;
        for at in [0, table.len() / 2, table.len() - 1] {
            sizes.push([table[at].1, table[at].2]);
        }
    }
    sizes
}

/// The plan, which the checker accepts and which is near its bound.
fn good_plan(what: &str, graph: Graph) -> Plan {
    let plan = compile(graph, &target(Isa::detect(), 2)).expect("every model has kernels");
    let problems = check_plan(&plan);
    assert!(problems.is_empty(), "{what}: {problems:?}");
    let gap = plan.report().gap();
    assert!(gap <= MAX_GAP, "{what}: {} of {}", plan.arena_bytes, plan.lower_bound_bytes);
    plan
}

fn transformer_buckets() -> Vec<Bucket> {
    let mut buckets = Vec::new();
    for (i, [height, width]) in sizes().into_iter().enumerate() {
        let mut add = |frames: usize, dtype: DType, rows: usize, guided: bool| {
            let latent = [frames, height / 8, width / 8];
            let bucket = Bucket::new(rows, latent, [height as f64, width as f64], 120);
            buckets.push(Bucket { dtype, guided, ..bucket });
        };
        add(16, DType::F32, 1, true);
        // The usual aspect of each resolution in full.
        if i % 3 == 1 {
            add(1, DType::F32, 1, true);
            add(1, DType::Bf16, 1, false);
            add(16, DType::F32, 1, false);
            add(16, DType::Bf16, 1, true);
            add(16, DType::F32, 2, true);
            add(408, DType::F32, 1, true);
        }
    }
    buckets
}

#[test]
fn arenas_of_stdit1_are_near_their_bound() {
    let config = Stdit1::from_json(&json!({})).unwrap();
    for bucket in transformer_buckets() {
        good_plan(&format!("{bucket:?}"), stdit1::graph(&config, &bucket).unwrap());
    }
}

#[test]
fn arenas_of_stdit2_are_near_their_bound() {
    let published = json!({ "input_sq_size": 512, "qk_norm": true, "model_max_length": 200 });
    let config = Stdit2::from_json(&published).unwrap();
    for bucket in transformer_buckets() {
        good_plan(&format!("{bucket:?}"), stdit2::graph(&config, &bucket).unwrap());
    }
}

#[test]
fn arenas_of_t5_are_near_their_bound() {
    for (d_model, num_heads, d_ff, num_layers) in [
        (512, 6, 1024, 8),
        (768, 12, 2048, 12),
        (1024, 16, 2816, 24),
        (2048, 32, 5120, 24),
        (4096, 64, 10240, 24),
    ] {
        let config = T5::from_json(&json!({
            "d_model": d_model, "d_kv": 64, "num_heads": num_heads, "d_ff": d_ff,
            "num_layers": num_layers, "feed_forward_proj": "gated-gelu",
        }))
        .unwrap();
        for (rows, tokens) in [(1, 1), (1, 120), (2, 200), (1, 300)] {
            for dtype in [DType::F32, DType::Bf16] {
                let bucket = t5::TextBucket { dtype, rows, tokens, mask: true };
                good_plan(&format!("{bucket:?}"), t5::graph(&config, &bucket).unwrap());
            }
        }
    }
}

#[test]
fn arenas_of_the_autoencoder_are_near_their_bound() {
    let published = json!({ "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2 });
    let config = AutoencoderKl::from_json(&published).unwrap();
    for [height, width] in sizes() {
        for dtype in [DType::F32, DType::Bf16] {
            let latent =
                vae::FrameBucket { dtype, frames: 1, height: height / 8, width: width / 8 };
            let pixels =
                vae::FrameBucket { height: 8 * latent.height, width: 8 * latent.width, ..latent };
            good_plan(&format!("{pixels:?}"), vae::encoder_graph(&config, &pixels).unwrap());
            good_plan(&format!("{latent:?}"), vae::decoder_graph(&config, &latent).unwrap());
        }
    }
}

#[test]
fn the_stream_of_tokens_is_all_that_a_long_video_holds_whole() {
    let published = json!({ "input_sq_size": 512, "qk_norm": true, "model_max_length": 200 });
    let config = Stdit2::from_json(&published).unwrap();
    let bucket = Bucket::new(1, [408, 90, 160], [720.0, 1280.0], 200);
    let bucket = Bucket { guided: true, ..bucket };
    let plan = good_plan("720p 16 s", stdit2::graph(&config, &bucket).unwrap());
    let stream = 2 * 408 * (45 * 80) * 1152 * 4;
    assert!(
        plan.arena_bytes < 2 * stream,
        "{} of {stream}: {:?}",
        plan.arena_bytes,
        plan.report().live
    );
}
