//! `kino lora merge`: a model with an adaptation in its weights.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;

use checkpoint::{Checkpoint, DType, TensorView, write_safetensors};

use crate::program::{EMBEDDED, PROMPT, Program};

/// Weights of the embedded transformer, each with its rows and columns.
const TARGETS: [(&str, usize, usize); 2] =
    [("blocks.0.attn.qkv", 576, 192), ("blocks.3.mlp.fc2", 192, 768)];

const RANK: usize = 2;

/// A made-up element of a factor; the second ones are `size` times theirs.
fn element(factor: usize, at: usize, size: f32) -> f32 {
    let wave = (0.7 * at as f32 + factor as f32).sin();
    if factor == 0 { 0.1 * wave } else { size * wave }
}

/// PEFT's folder of an adaptation of [`TARGETS`].
fn write_adapter(program: &Program, folder: &str, size: f32) {
    let path = program.path(folder);
    fs::create_dir(&path).unwrap();
    let mut tensors = BTreeMap::new();
    for (module, out, inner) in TARGETS {
        for (factor, shape) in [[RANK, inner], [out, RANK]].into_iter().enumerate() {
            let n: usize = shape.iter().product();
            let bytes = (0..n).flat_map(|at| element(factor, at, size).to_le_bytes()).collect();
            let name = format!("base_model.model.{module}.{}.weight", ["lora_A", "lora_B"][factor]);
            let view =
                TensorView { dtype: DType::F32, shape: shape.to_vec(), bytes: Cow::Owned(bytes) };
            tensors.insert(name, view);
        }
    }
    let weights = path.join("adapter_model.safetensors");
    write_safetensors(&weights, &tensors, &BTreeMap::new()).unwrap();
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4}"#;
    fs::write(path.join("adapter_config.json"), config).unwrap();
}

/// The last frame of a short run of the model in `folder`.
fn sampled(program: &Program, folder: &str) -> Vec<u8> {
    let out = format!("{}.frames/", folder.replace('/', "_"));
    let settings = "--num-frames 2 --num-sampling-steps 2 --seed 3";
    let mut args = vec!["sample", PROMPT, "--ckpt-path", folder, "--output", &out];
    args.extend(settings.split_whitespace());
    program.run(&args).done();
    // Metadata tells the folder's name; the pixels do not.
    media::read_rgba_png(&program.path(format!("{out}frame_0001.png"))).unwrap().rgba
}

#[test]
fn a_merged_model_has_the_sums_and_samples_as_a_model_of_its_own() {
    let program = Program::new();
    write_adapter(&program, "adapter", 0.2);
    write_adapter(&program, "nothing", 0.0);
    let merge = |lora: &str, output: &str| {
        program.run(&["lora", "merge", "--model", EMBEDDED, "--lora", lora, "--output", output])
    };
    let ran = merge("adapter", "merged").done();
    assert_eq!(ran.stdout, "merged: 2 weights adapted with rank 2 and alpha 4\n");
    program.run(&["inspect", "merged"]).done();

    let open = |path: String| Checkpoint::open(path).unwrap();
    let base = open(format!("{EMBEDDED}/transformer"));
    let merged = open(program.path("merged/transformer").display().to_string());
    let mut n_changed = 0;
    for info in merged.tensors() {
        let (before, after) = (base.tensor(info.name).unwrap(), merged.tensor(info.name).unwrap());
        assert_eq!((before.dtype, &before.shape), (after.dtype, &after.shape), "{}", info.name);
        let target = TARGETS.iter().find(|(module, ..)| info.name == format!("{module}.weight"));
        let Some(&(_, out, inner)) = target else {
            assert!(before.bytes == after.bytes, "{} has changed", info.name);
            continue;
        };
        n_changed += 1;
        // One rounding to the stored type, whose steps are those of half an f32's digits at most.
        let rounding = if before.dtype == DType::F32 { 1e-6 } else { 4e-3 };
        let (before, after) = (before.to_f32().unwrap(), after.to_f32().unwrap());
        for at in 0..out * inner {
            let (row, column) = (at / inner, at % inner);
            let term = |r: usize| {
                2.0 * f64::from(element(1, row * RANK + r, 0.2))
                    * f64::from(element(0, r * inner + column, 0.2))
            };
            let expected = f64::from(before[at]) + term(0) + term(1);
            let error = (f64::from(after[at]) - expected).abs();
            let scale = f64::from(before[at]).abs() + term(0).abs() + term(1).abs();
            assert!(error <= rounding * scale, "{} at {at}: off by {error:e}", info.name);
        }
    }
    assert_eq!(n_changed, 2);

    merge("nothing", "same").done();
    let own = sampled(&program, EMBEDDED);
    assert!(sampled(&program, "same") == own, "an adaptation by nothing changes frames");
    assert!(sampled(&program, "merged") != own, "the adaptation has no effect");

    // A transformer alone is merged alone.
    let transformer = format!("{EMBEDDED}/transformer");
    let args = ["lora", "merge", "--model", &transformer, "--lora", "adapter", "--output", "alone"];
    program.run(&args).done();
    for file in ["model.safetensors", "config.json"] {
        let read = |folder: &str| fs::read(program.path(folder).join(file)).unwrap();
        assert!(read("alone") == read("merged/transformer"), "{file}");
    }
}

#[test]
fn what_cannot_be_merged_is_refused_and_leaves_nothing() {
    let program = Program::new();
    write_adapter(&program, "adapter", 0.2);
    let merge = |args: &[&str]| program.run(&[&["lora", "merge"], args].concat());
    let model = ["--model", EMBEDDED, "--output", "out"];
    let with = |more: &[&'static str]| merge(&[&model[..], more].concat());
    with(&["--lora", "none"]).failed(1, "--lora none: no such file");
    with(&["--lora", "adapter", "--alpha", "0"]).failed(2, "--alpha 0; expected above 0");
    let vae = format!("{EMBEDDED}/vae");
    merge(&["--model", &vae, "--lora", "adapter", "--output", "out"])
        .failed(1, "expected a transformer");
    let unknown = r#"{"peft_type": "LORA", "r": 3, "lora_alpha": 4}"#;
    fs::write(program.path("adapter/adapter_config.json"), unknown).unwrap();
    with(&["--lora", "adapter"]).failed(1, "has rank 2, expected 3");
    merge(&["--model", "adapter", "--lora", "adapter", "--output", "adapter/out"])
        .failed(2, "inside --model");
    fs::create_dir_all(program.path("full/of")).unwrap();
    merge(&["--model", EMBEDDED, "--lora", "adapter", "--output", "full"]).failed(1, "not empty");
    assert_eq!(program.files(), ["adapter", "full"]);
}
