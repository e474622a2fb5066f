//! An engine of the embedded model, compiled and sampled on the emulated device. Needs NVIDIA's compiler, which
//! `kernels/cuda/install` fetches.

use std::fs;

use serde_json::Value;

use crate::program::Program;

#[test]
fn a_run_on_a_device_is_profiled_step_by_step() {
    let program = Program::new();
    let model = ["tiny-flare-1.1", "--bucket", "2x64x64", "--target", "sm_80"];
    let compile = [&["compile"], &model[..], &["--output", "tiny.engine"]].concat();
    program.run(&compile).done();
    let on = ["--engine", "tiny.engine", "--device", "cuda-emulated"];
    let sample = |args: &[&str]| program.sample(&[&on, args].concat());
    sample(&["--output", "a.gif", "--profile", "profile.json"]).done();
    let text = fs::read(program.path("profile.json")).unwrap();
    let document: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(document["device"], "cuda-emulated");
    let stages = document["stages"].as_array().unwrap();
    let runs: Vec<(&str, u64)> = stages
        .iter()
        .map(|stage| (stage["stage"].as_str().unwrap(), stage["runs"].as_u64().unwrap()))
        .collect();
    assert_eq!(runs, [("text", 1), ("denoise", 2), ("decode", 2)]);
    for stage in stages {
        for step in stage["steps"].as_array().unwrap() {
            assert!(step["seconds"].as_f64().unwrap() > 0.0, "{step}");
            assert!(step["expected_seconds"].is_null(), "the CPU's cost model says nothing of it");
        }
    }
    let kernels = stages[1]["kernels"].as_array().unwrap();
    assert!(kernels.iter().any(|kernel| kernel["kernel"] == "normal"), "noise is drawn there");
    // The same video without times.
    sample(&["--output", "b.gif"]).done();
    assert_eq!(fs::read(program.path("a.gif")).unwrap(), fs::read(program.path("b.gif")).unwrap());
    // Steps of another plan are not given the times of these.
    let args = ["--text-dtype", "f32", "--output", "c.gif", "--profile", "profile.json"];
    sample(&args).failed(1, "compile the engine again");
}
