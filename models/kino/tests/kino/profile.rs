//! `kino profile`, `kino calibrate` and `kino sample --profile`.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::program::{Program, Ran};

const SMALL: [&str; 5] = ["tiny-flare-1.1", "--bucket", "2x64x64", "--threads", "2"];

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn profile(program: &Program, args: &[&str]) -> Value {
    let args = [&["profile"], &SMALL[..], &["--json", "--repeat", "1"], args].concat();
    json(program, &args)
}

fn json(program: &Program, args: &[&str]) -> Value {
    serde_json::from_str(&program.run(args).done().stdout).unwrap()
}

/// A cost model of a machine that does everything at 1 GFLOP/s and 1 GB/s.
fn write_slow_machine(program: &Program, change: impl FnOnce(&mut Value)) -> PathBuf {
    let doctor = json(program, &["doctor", "--json"]);
    let words = doctor["cpu"].as_str().unwrap().split(|c: char| !c.is_ascii_alphanumeric());
    let cpu = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-").to_lowercase();
    let isa = doctor["isa"].as_str().unwrap();
    let sample = |kernel: &str, shape: &[u32]| json!({ "kernel": kernel, "dtype": "f32", "shape": shape, "rate": 1e9 });
    let mut document = json!({
        "version": doctor["version"], "kernels": doctor["kernels_key"], "cpu": doctor["cpu"], "isa": isa, "threads": 2,
        "launch_seconds": 1e-9, "wake_seconds": 1e-9, "peak_f32": 1e9, "peak_bf16": null, "elementwise": 1e9,
        "levels": [{ "name": "memory", "bytes": u64::MAX, "read": 1e9, "write": 1e9 }],
        "samples": [
            sample("matmul", &[1, 1, 1]), sample("attention", &[1, 1, 1]),
            sample("conv", &[1, 1, 1, 1]), sample("map", &[1]),
        ],
    });
    change(&mut document);
    let folder = program.path("cache/kinograph");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("calibration-{cpu}-{isa}-2.json"));
    fs::write(&path, document.to_string()).unwrap();
    path
}

#[test]
fn a_profile_has_every_step_of_the_plan() {
    let program = Program::new();
    let document = profile(&program, &["--trace", "trace.json"]);
    let stages = document["stages"].as_array().unwrap();
    assert_eq!(stages.len(), 3);
    let trace: Value =
        serde_json::from_slice(&fs::read(program.path("trace.json")).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let slices: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
    let steps: Vec<&Value> =
        stages.iter().flat_map(|stage| stage["steps"].as_array().unwrap()).collect();
    assert_eq!(slices.len(), steps.len());
    let mut end = 0.0;
    for (slice, step) in slices.iter().zip(&steps) {
        assert_eq!(slice["args"]["kernel"], step["kernel"]);
        assert_eq!(slice["args"]["flops"], step["flops"]);
        assert!(number(&slice["ts"]) >= end - 1e-6, "{slice} begins before the last one ends");
        end = number(&slice["ts"]) + number(&slice["dur"]);
    }
    assert!(events.iter().any(|event| event["ph"] == "C"));
    for stage in stages {
        let sum = |key: &str, of: &str| -> f64 {
            stage[of].as_array().unwrap().iter().map(|row| number(&row[key])).sum()
        };
        assert_eq!(sum("flops", "steps"), number(&stage["flops"]));
        assert!((sum("seconds", "kernels") / number(&stage["seconds"]) - 1.0).abs() < 1e-9);
        assert!(number(&stage["seconds"]) > 0.0);
        assert!(stage["expected_seconds"].is_null());
    }
}

#[test]
fn published_names_run_on_made_up_weights() {
    let program = Program::new();
    let args = ["profile", "sd-vae", "--bucket", "1x16x16", "--repeat", "1", "--top", "2"];
    let ran = program.run(&args).done();
    for word in ["decode", "conv", "GFLOP/s", "slowest steps", "memory "] {
        assert!(ran.stdout.contains(word), "{word}: {}", ran.stdout);
    }
}

#[test]
fn expectations_follow_the_cost_model() {
    let program = Program::new();
    write_slow_machine(&program, |_| {});
    let document = profile(&program, &["--stage", "denoise"]);
    let stage = &document["stages"][0];
    // At 1 GFLOP/s and 1 GB/s, work and bytes are nanoseconds.
    for step in stage["steps"].as_array().unwrap() {
        let least = number(&step["flops"]).max(number(&step["bytes"])) * 1e-9;
        let expected = number(&step["expected_seconds"]);
        assert!(expected >= 0.999 * least && expected <= 2.001 * least + 2e-9, "{step}");
        assert!((number(&step["limit_seconds"]) / least - 1.0).abs() < 1e-6, "{step}");
    }
    let args = [&["plan"], &SMALL[..], &["--stage", "denoise", "--json"]].concat();
    let plan = json(&program, &args);
    assert_eq!(plan["calibrated"], true);
    let (planned, expected) = (&plan["stages"][0]["seconds"], &stage["expected_seconds"]);
    assert!((number(planned) / number(expected) - 1.0).abs() < 1e-9, "{planned} {expected}");
}

#[test]
fn damaged_and_foreign_cost_models_are_not_used() {
    let program = Program::new();
    let args = [&["plan"], &SMALL[..], &["--json"]].concat();
    write_slow_machine(&program, |document| document["version"] = json!("0.0.0"));
    assert_eq!(json(&program, &args)["calibrated"], false);
    write_slow_machine(&program, |document| document["kernels"] = json!("0123456789abcdef"));
    assert_eq!(json(&program, &args)["calibrated"], false);
    let text = program.run(&[&["plan"], &SMALL[..]].concat()).done().stdout;
    assert!(text.contains("measured with other kernels"), "{text}");
    write_slow_machine(&program, |document| document["peak_f32"] = json!(-1.0));
    program.run(&args).failed(1, "run `kino calibrate` again");
    let path = write_slow_machine(&program, |_| {});
    fs::write(&path, "{").unwrap();
    program.run(&args).failed(1, path.to_str().unwrap());
}

#[test]
fn calibrate_needs_a_cache_folder() {
    let program = Program::new();
    let mut command = program.command(&["calibrate"]);
    command.env_remove("XDG_CACHE_HOME").env_remove("HOME");
    Ran::of(command.output().unwrap()).failed(1, "XDG_CACHE_HOME");
}

#[test]
fn calibrate_keeps_what_was_measured() {
    let program = Program::new();
    write_slow_machine(&program, |_| {});
    let args = ["calibrate", "--if-missing", "--json", "--threads", "2"];
    let document = json(&program, &args);
    assert_eq!(document["measured"], false);
    assert_eq!(document["model"]["peak_f32"], 1e9);
    let text = program.run(&["calibrate", "--if-missing", "--threads", "2"]).done();
    assert!(text.stdout.contains("1.0 GFLOP/s in f32, "), "{}", text.stdout);
}

#[test]
fn a_sampling_run_is_profiled() {
    let program = Program::new();
    program.sample(&["--output", "a.gif", "--profile", "profile.json"]).done();
    let text = fs::read(program.path("profile.json")).unwrap();
    let document: Value = serde_json::from_slice(&text).unwrap();
    let stages = document["stages"].as_array().unwrap();
    let runs: Vec<(&str, u64)> = stages
        .iter()
        .map(|stage| (stage["stage"].as_str().unwrap(), stage["runs"].as_u64().unwrap()))
        .collect();
    // One prompt, two steps, two frames.
    assert_eq!(runs, [("text", 1), ("denoise", 2), ("decode", 2)]);
    for stage in stages {
        assert!(number(&stage["seconds"]) > 0.0, "{stage}");
    }
}

#[test]
fn scaling_expects_what_it_does_not_measure() {
    let program = Program::new();
    write_slow_machine(&program, |_| {});
    let args = ["profile", "tiny-flare-1.1", "--scaling", "--threads", "2", "--at-most", "0"];
    let document = json(&program, &[&args[..], &["--json"]].concat());
    let rows = document["block"].as_array().unwrap();
    let of = |threads: u64| -> Vec<&Value> {
        rows.iter().filter(|row| row["threads"] == threads).collect()
    };
    let tokens: Vec<u64> = of(2).iter().map(|row| row["tokens"].as_u64().unwrap()).collect();
    assert_eq!(tokens, [1024, 2048, 4096, 8192, 16384, 32768, 65536]);
    assert_eq!(of(1).len(), tokens.len());
    for row in rows {
        assert!(row["time"]["measured_seconds"].is_null(), "{row}");
        // Two threads were measured here, one was not.
        assert_eq!(row["time"]["expected_seconds"].is_null(), row["threads"] == 1, "{row}");
    }
    let gain = |row: &Value| {
        number(&row["all_tokens"]["flops"]) / number(&row["space_then_time"]["flops"])
    };
    let attention = document["attention"].as_array().unwrap();
    assert_eq!(attention.len(), 3);
    assert!(attention.windows(2).all(|pair| gain(&pair[1]) > gain(&pair[0])), "{attention:?}");
    let text = program.run(&args).done().stdout;
    assert!(text.contains("65536") && text.contains("all tokens"), "{text}");
}

#[test]
fn a_text_encoder_above_the_limit_has_its_weights_streamed() {
    let program = Program::new();
    let text = |args: &[&str]| {
        let document = profile(&program, &[&["--stage", "text"], args].concat());
        document["stages"][0].clone()
    };
    let held = text(&[]);
    assert!(held["streamed"].is_null(), "all weights are held without a limit");
    let limit = number(&held["expected_bytes"]) * 0.8;
    let streamed = text(&["--memory", &format!("{limit:.0}")]);
    assert!(number(&streamed["expected_bytes"]) <= limit);
    assert!(number(&streamed["streamed"]["bytes"]) > limit / 4.0);
    assert!(number(&streamed["streamed"]["making_seconds"]) > 0.0);
    let half = text(&["--text-dtype", "bf16"]);
    let ratio = number(&half["weight_bytes"]) / number(&held["weight_bytes"]);
    assert!(ratio < 0.6, "bf16 weights have {ratio} of the bytes");
}

#[test]
fn profiles_that_cannot_be_are_usage_errors() {
    let program = Program::new();
    let cases: &[(&[&str], &str)] = &[
        (&["profile", "sora"], "no model of this name"),
        (&["profile", "sd-vae", "--stage", "text"], "has no text encoder"),
        (&["profile", "sd-vae", "--repeat", "0"], "--repeat 0"),
        (&["profile", "sd-vae", "--memory", "lots"], "--memory lots"),
        (&["profile", "t5-large", "--dtype", "f16"], "expected f32 or bf16"),
        (&["profile", "sd-vae", "--scaling"], "has no transformer"),
        (&["profile", "sd-vae", "--at-most", "1"], "--scaling"),
        (&["calibrate", "--threads", "0"], "--threads 0"),
    ];
    for (args, message) in cases {
        program.run(args).failed(2, message);
        assert_eq!(program.files(), [""; 0], "{args:?}");
    }
}
