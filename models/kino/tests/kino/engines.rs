//! Engine files: what `kino inspect` and `kino roofline` say of them, whole and damaged.

use std::fs;

use engine::Engine;
use serde_json::Value;

use crate::program::Program;

// The one that the engine's own tests read and write.
#[path = "../../../../runtime/engine/tests/common/mod.rs"]
mod common;

/// A program in a folder with `engine` as `x.engine`.
fn with_engine(engine: &Engine) -> Program {
    let program = Program::new();
    engine.save(&program.path("x.engine")).unwrap();
    program
}

fn document(program: &Program, args: &[&str]) -> Value {
    let ran = program.run(&[args, &["--json"]].concat()).done();
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn an_engine_tells_what_it_is() {
    let engine = common::small();
    let program = with_engine(&engine);
    let found = document(&program, &["inspect", "x.engine"]);
    assert_eq!(found["engine"], "a test");
    assert_eq!(found["dtype"], "bf16");
    assert_eq!(found["targets"], serde_json::json!(["sm_80", "sm_90a"]));
    assert_eq!(found["code"], serde_json::json!(["sm_80 (PTX)", "sm_80", "sm_90a"]));
    assert_eq!(found["weights"], serde_json::json!({ "count": 1, "bytes": 64, "permuted": 1 }));
    assert_eq!(found["constants"], serde_json::json!({ "count": 2, "bytes": 20 }));
    let code: usize = engine.kernels[0].images[..2].iter().map(|image| image.bytes.len()).sum();
    let kernel = &found["kernels"][0];
    assert_eq!((&kernel["kernel"], &kernel["registers"]), (&"matmul".into(), &32.into()));
    assert_eq!((&kernel["launches"], &kernel["code_bytes"]), (&2.into(), &code.into()));
    let of = &found["programs"][0];
    assert_eq!((&of["arena_bytes"], &of["lower_bound_bytes"]), (&256.into(), &200.into()));
    assert_eq!((&of["target"], &of["scratch_bytes"]), (&"sm_80".into(), &48.into()));
    let plain = &of["cublaslt"];
    assert_eq!((&plain["steps"], &plain["workspace_bytes"]), (&1.into(), &4096.into()));
    let product = serde_json::json!({
        "product": "1 x 4 x 4 x 6 bf16 to f32 + bias + residual", "steps": [0],
        "scopes": ["blocks.*.attn"], "flops": 192, "is_faster": true,
    });
    assert_eq!(plain["products"], serde_json::json!([product]));
    let other = &found["programs"][1];
    assert_eq!((&other["name"], &other["target"]), (&of["name"], &"sm_90a".into()));
    assert_eq!(of["inputs"][0], serde_json::json!({ "name": "x", "type": "bf16[4, 6]" }));
    let text = program.run(&["inspect", "x.engine"]).done().stdout;
    for words in [
        "kino 0.1.0",
        "targets    sm_80, sm_90a",
        "step 240p:16f:9:16, sm_90a: 1 step, 1 launch,",
        "64.0 KiB",
        "in   x : bf16[4, 6]",
        "  cublaslt could compute 1 of 1 step, 100.0 % of the FLOPs, with up to 4.0 KiB beside the arena\n",
        "1 x 4 x 4 x 6 bf16 to f32 + bias + residual  blocks.*.attn, measured to be faster\n",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn damaged_engines_are_refused_by_their_reader() {
    let bytes = common::small().to_bytes().unwrap();
    let program = Program::new();
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut older = bytes.clone();
    older[8] = 1;
    for damaged in [&flipped[..], &older, &bytes[..bytes.len() - 1], &bytes[..100]] {
        fs::write(program.path("x.engine"), damaged).unwrap();
        let expected = Engine::from_bytes(damaged.to_vec()).unwrap_err().to_string();
        program.run(&["inspect", "x.engine"]).failed(1, &expected);
        program.run(&["roofline", "x.engine", "--gpu", "h100"]).failed(1, &expected);
    }
}

#[test]
fn a_roofline_of_an_engine_is_that_of_its_steps() {
    let mut engine = common::small();
    // One ms of products at the rate measured on an H100.
    engine.programs[1].steps[0].flops = 520_000_000_000;
    let mut other = engine.programs[1].clone();
    other.name = "other".into();
    engine.programs.push(other);
    let program = with_engine(&engine);
    let args = ["roofline", "x.engine", "--gpu", "h100"];
    let found = document(&program, &args);
    assert_eq!(found["programs"].as_array().unwrap().len(), 2);
    let seconds = found["programs"][0]["seconds"].as_f64().unwrap();
    assert!((seconds - 1e-3 - 1.5e-6).abs() < 1e-9, "{seconds}");
    assert_eq!(found["programs"][0]["limit"], "compute");
    let one = document(&program, &[&args[..], &["--program", "other"]].concat());
    assert_eq!(one["programs"].as_array().unwrap().len(), 1);
    assert_eq!(one["programs"][0]["name"], "other");
    program
        .run(&[&args[..], &["--program", "none"]].concat())
        .failed(2, "step 240p:16f:9:16, other");
    program.run(&[&args[..], &["--all-buckets"]].concat()).failed(2, "--all-buckets plans a model");
}

#[test]
fn a_device_that_cannot_run_an_engine_has_no_roofline_of_it() {
    let mut engine = common::small();
    engine.programs.remove(0);
    engine.kernels[0].images.retain(|image| image.arch.is_specific);
    let program = with_engine(&engine);
    let args = ["roofline", "x.engine", "--gpu", "a100"];
    program.run(&args).failed(2, "is for sm_90a, and the A100 80GB SXM is sm_80");
    program.run(&["roofline", "x.engine", "--gpu", "h200"]).done();
    // More shared memory than a block of this device has, though its generation runs the code.
    let mut engine = common::small();
    engine.programs.truncate(1);
    engine.kernels[0].shared_bytes = 120 << 10;
    let program = with_engine(&engine);
    program.run(&["roofline", "x.engine", "--gpu", "a100"]).done();
    program.run(&["roofline", "x.engine", "--gpu", "l40s"]).failed(2, "is for sm_80");
}

#[test]
fn scratch_is_moved_twice_in_a_roofline() {
    let mut engine = common::small();
    engine.programs.truncate(1);
    engine.programs[0].arena_bytes = 1 << 40;
    let seconds = |engine: &Engine| {
        let found = document(&with_engine(engine), &["roofline", "x.engine", "--gpu", "a100"]);
        found["programs"][0]["seconds"].as_f64().unwrap()
    };
    let without = seconds(&engine);
    engine.programs[0].steps[0].scratch_bytes = 1 << 30;
    let moved = 2.0 * f64::from(1 << 30) / (2039e9 * 2700.0 / 3350.0);
    let more = seconds(&engine) - without;
    assert!((more / moved - 1.0).abs() < 1e-3, "{more} s for {moved}");
}
