//! `kino inspect`, `kino dump`, `kino doctor`.

use crate::program::{EMBEDDED, Program, Ran};
use serde_json::Value;

#[test]
fn inspect_tells_every_part_of_a_pipeline() {
    let program = Program::new();
    let ran = program.run(&["inspect", EMBEDDED]).done();
    for word in ["STDiT2", "T5EncoderModel", "AutoencoderKL", "bf16", "hidden_size = 192"] {
        assert!(ran.stdout.contains(word), "{word}: {ran:?}");
    }
    let json = program.run(&["inspect", EMBEDDED, "--json", "--tensors"]).done().stdout;
    let document: Value = serde_json::from_str(&json).unwrap();
    let parts = document["pipeline"].as_array().unwrap();
    assert_eq!(parts.len(), 3);
    for part in parts {
        assert_eq!(part["checkpoint"]["fit"]["fits"], true, "{part}");
        assert!(part["checkpoint"]["tensors"].as_array().unwrap().len() > 10);
    }
}

#[test]
fn inspect_reads_the_settings_of_an_output() {
    let program = Program::new();
    program.sample(&["--output", "a.gif"]).done();
    let json = program.run(&["inspect", "a.gif", "--json"]).done().stdout;
    let document: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(document["output"]["settings"]["num_sampling_steps"], 2);
}

#[test]
fn dump_prints_graphs_and_plans_that_parse() {
    let program = Program::new();
    for (stage, op) in [("text", "rms_norm"), ("denoise", "attention"), ("decode", "conv")] {
        let args = ["dump", "tiny-flare-1.1", "--bucket", "2x64x64", "--stage", stage];
        let graph = program.run(&args).done().stdout;
        assert!(graph.starts_with("graph @") && graph.contains(op), "{stage}");
        let plan = program.run(&[&args[..], &["--plan"]].concat()).done().stdout;
        assert!(plan.contains("\nplan @") && plan.contains("  arena "), "{stage}");
    }
    let after = ["--after", "eliminate-dead-values"];
    program.run(&[&["dump", "tiny-flare-1.1", "--bucket", "2x64x64"][..], &after].concat()).done();
}

#[test]
fn dump_knows_published_models_without_weights() {
    let program = Program::new();
    let ran = program.run(&["dump", "t5-xxl"]).done();
    assert!(ran.stdout.contains("encoder.block.23.layer.1.DenseReluDense.wo.weight"));
    for (model, word) in
        [("stdit-xl", "blocks.27"), ("stdit2-xl", "attn_temp"), ("sd-vae", "decoder")]
    {
        let ran = program.run(&["dump", model, "--bucket", "2x32x32"]).done();
        assert!(ran.stdout.contains(word), "{model}");
    }
}

#[test]
fn doctor_obeys_the_forced_instruction_set() {
    let program = Program::new();
    let json = |isa: &str| -> Value {
        let output = program.command(&["doctor", "--json"]).env("KINO_CPU", isa).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(json("portable")["isa"], "portable");
    assert!(json("")["threads"].as_u64().unwrap() >= 1);
    let output = program.command(&["doctor"]).env("KINO_CPU", "mmx").output().unwrap();
    Ran::of(output).failed(2, "KINO_CPU");
    assert!(program.run(&["doctor"]).done().stdout.contains("kernels for"));
}
