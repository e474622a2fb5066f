//! `kino train` with `[lora]`: what is trained, what is left as it is, and what comes of it.

use std::collections::BTreeSet;
use std::fs;

use checkpoint::{Checkpoint, write_safetensors};
use training::PUBLISHED;
use training::run_log::{Event, read};

use crate::program::Program;
use crate::train::{RECIPE, prepared, result, resume, train, updates, wait_for, with_steps};

const LORA: &str = "[lora]\nrank = 3\nalpha = 60.0\ntargets = [\"attn.qkv\", \"mlp.fc1\", \"x_embedder\"]\n\n[run]";

/// The weights that [`LORA`] adapts of a model of one block; the last is a convolution's.
const ADAPTED: [&str; 3] =
    ["blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "x_embedder.proj.weight"];

/// Arguments of a run into `folder` that adapts the model of the run `base`.
fn adapt<'a>(folder: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = ["train", "tiny.toml", "--data", "set/table.csv", "--output", folder];
    [&args[..], &["--model", "base/model", "--threads", "2"], more].concat()
}

/// A program with the run `base`, whose model is adapted by `recipe`.
fn with_base(recipe: &str) -> Program {
    let program = prepared(&with_steps(2));
    program.run(&train("base", &["--quiet"])).done();
    fs::write(program.path("tiny.toml"), recipe).unwrap();
    program
}

fn open(program: &Program, path: &str) -> Checkpoint {
    Checkpoint::open(program.path(path)).unwrap()
}

/// What PEFT reads.
fn adaptation(program: &Program, run: &str) -> [Vec<u8>; 2] {
    let folder = program.path(run).join("adaptation");
    let mut names: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors"]);
    ["adapter_config.json", "adapter_model.safetensors"]
        .map(|name| fs::read(folder.join(name)).unwrap())
}

/// In bf16, with two batches for an update.
#[test]
fn an_adaptation_that_is_killed_is_the_one_that_never_was_and_merges_into_its_model() {
    let recipe = with_steps(60)
        .replace("[run]", LORA)
        .replace("\"f32\"\n\n[model.config]", "\"bf16\"\n\n[model.config]")
        .replace("ema_decay = 0.9\n", "ema_decay = 0.9\nmicro_batches = 2\n");
    let program = with_base(&recipe);
    let ran = program.run(&adapt("whole", &[])).done();
    assert!(ran.stdout.contains("frozen weights + steps"), "{}", ran.stdout);
    assert!(ran.stdout.contains("its adaptation alone whole/adaptation"), "{}", ran.stdout);

    let mut child = program.spawn(&adapt("cut", &["--quiet"]));
    let run = program.path("cut");
    let has_updates = || {
        let log = fs::read_to_string(run.join("log.jsonl")).unwrap_or_default();
        log.matches("\"event\":\"step\"").count() >= 3
    };
    assert!(wait_for(&mut child, has_updates));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!run.join("model").exists(), "the run was over too early for this test");
    program.run(&resume("cut", &["--quiet"])).done();
    assert_eq!(updates(&program, "cut").len(), 60);
    assert_eq!(updates(&program, "cut"), updates(&program, "whole"));
    assert!(result(&program, "cut") == result(&program, "whole"), "other weights");
    let written = adaptation(&program, "whole");
    assert!(adaptation(&program, "cut") == written, "another adaptation");

    // Only factors have a state: masters, two moments, averages, and sums of gradients.
    let newest = fs::read_to_string(program.path("whole/snapshots/latest")).unwrap();
    let state = open(&program, &format!("whole/snapshots/{}", newest.trim()));
    assert_eq!(state.tensors().count(), ADAPTED.len() * 2 * 5);
    let history = read(&program.path("whole")).unwrap();
    let Event::Start(start) = &history.records[0].event else { panic!("it begins with a start") };
    let elements: usize = state
        .tensors()
        .filter(|tensor| tensor.name.starts_with("master."))
        .map(|tensor| tensor.shape.iter().product::<usize>())
        .sum();
    assert_eq!(start.trained_params, elements as u64);

    // The averages of the factors are the adaptation, in PEFT's form.
    let config: serde_json::Value = serde_json::from_slice(&written[0]).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&3.into(), &60.into()));
    assert_eq!(
        config["target_modules"],
        serde_json::json!(ADAPTED.map(|name| &name[..name.len() - 7]))
    );
    let factors = open(&program, "whole/adaptation/adapter_model.safetensors");
    assert_eq!(factors.tensors().count(), ADAPTED.len() * 2);
    for tensor in factors.tensors() {
        let own = tensor.name.strip_prefix("base_model.model.").unwrap();
        let average = state.tensor(&format!("ema.{own}")).unwrap();
        assert!(factors.tensor(tensor.name).unwrap().bytes == average.bytes, "{own}");
    }
    let shape = |name: &str| {
        factors.tensor(&format!("base_model.model.x_embedder.proj.{name}.weight")).unwrap().shape
    };
    assert_eq!((shape("lora_A"), shape("lora_B")), (vec![3, 4, 1, 4, 4], vec![24, 3, 1, 1, 1]));

    // What is adapted differs from the base, all else has its bits.
    let base = open(&program, "base/model/transformer");
    let adapted = open(&program, "whole/model/transformer");
    let same = |name: &str| {
        base.tensor(name).unwrap().to_f32().unwrap().iter().map(|x| x.to_bits()).eq(adapted
            .tensor(name)
            .unwrap()
            .to_f32()
            .unwrap()
            .iter()
            .map(|x| x.to_bits()))
    };
    let names = |model: &Checkpoint| -> BTreeSet<String> {
        model.tensors().map(|tensor| tensor.name.to_string()).collect()
    };
    assert_eq!(names(&base), names(&adapted));
    let changed: Vec<String> = names(&base).into_iter().filter(|name| !same(name)).collect();
    assert_eq!(changed, ADAPTED);
    let merge = ["lora", "merge", "--model", "base/model", "--lora", "whole/adaptation"];
    let ran = program.run(&[&merge[..], &["--output", "merged"]].concat()).done();
    assert_eq!(ran.stdout, "merged: 3 weights adapted with rank 3 and alpha 60\n");
    let file =
        |model: &str| fs::read(program.path(model).join("transformer/model.safetensors")).unwrap();
    assert!(file("merged") == file("whole/model"), "another model");

    // Between updates, too.
    fs::remove_dir_all(program.path("cut/adaptation")).unwrap();
    fs::remove_dir_all(program.path("cut/model")).unwrap();
    let ran = program.run(&resume("cut", &["--export"])).done();
    assert!(ran.stdout.contains("wrote    cut/adaptation\nwrote    cut/model\n"), "{}", ran.stdout);
    assert!(adaptation(&program, "cut") == written && file("cut/model") == file("whole/model"));
}

#[test]
fn videos_of_validations_are_of_the_adapted_model() {
    let validation = "[validation]\nevery = 4\nprompts = [\"a zombie\"]\nsteps = 2\ncfg_scale = 2.0\n\
                      frames = 2\nheight = 32\nwidth = 32\nfps = 8\n\n[lora]";
    let recipe = with_steps(4)
        .replace("[run]", LORA)
        .replace("[lora]", validation)
        // The last layer of the base is close to 0: nothing before it has an effect on videos yet.
        .replace("\"x_embedder\"", "\"final_layer.linear\"")
        .replace("lr = 0.001", "lr = 0.05");
    let program = with_base(&recipe);
    program.run(&adapt("run", &["--quiet"])).done();
    let sampled = |model: &str, output: &str| {
        let settings = "--num-sampling-steps 2 --num-frames 2 --image-size 32 32 --fps 8 --cfg-scale 2.0 --seed 7";
        let mut args = vec!["sample", "a zombie", "--ckpt-path", model, "--output", output];
        args.extend(settings.split_whitespace());
        program.run(&args).done();
        media::read_rgba_png(&program.path(output)).unwrap().rgba
    };
    let video = program.path("run/samples/step-00000004-0.sheet.png");
    let video = media::read_rgba_png(&video).unwrap().rgba;
    assert!(video == sampled("run/model", "adapted.sheet.png"));
    assert!(video != sampled("base/model", "base.sheet.png"), "the adaptation has no effect");
}

#[test]
fn adaptations_that_cannot_be_are_refused_before_anything_is_made() {
    let recipe = RECIPE.replace("[run]", LORA);
    let program = with_base(&recipe);
    let replaced = |name: &str, old: &str, new: &str| {
        assert!(recipe.contains(old), "{old}");
        fs::write(program.path(name), recipe.replacen(old, new, 1)).unwrap();
    };
    replaced("rank.toml", "rank = 3", "rank = 0");
    replaced("targets.toml", "\"attn.qkv\"", "\"attn.qvk\"");
    replaced("frozen.toml", "ema_decay = 0.9\n", "ema_decay = 0.9\nfreeze = \"not_temporal\"\n");
    replaced("text.toml", "[loss]", "[text]\narchitecture = \"t5-large\"\n\n[loss]");
    let vae = PUBLISHED.iter().find(|(name, _)| *name == "flare-vae").unwrap().1;
    fs::write(program.path("vae.toml"), vae.replace("[run]", LORA)).unwrap();
    // A model without attention over time.
    let base = open(&program, "base/model/transformer");
    let part = base.tensors().filter(|tensor| !tensor.name.contains("attn_temp"));
    let part = part.map(|tensor| (tensor.name.to_string(), base.tensor(tensor.name).unwrap()));
    write_safetensors(&program.path("part.safetensors"), &part.collect(), &[].into()).unwrap();
    let before = program.files();
    let run = |recipe: &str, more: &[&str]| {
        let args =
            ["train", recipe, "--data", "set/table.csv", "--threads", "2", "--output", "run"];
        program.run(&[&args[..], more].concat())
    };
    let base = ["--model", "base/model"];
    run("rank.toml", &base).failed(2, "`lora.rank`: 0, expected 1 or more");
    let ran = run("targets.toml", &base);
    ran.failed(2, "`attn.qvk` is in the name of no weight that can be adapted; did you mean one of `attn.qkv`,");
    run("frozen.toml", &base).failed(2, "did you mean one of `attn_temp.qkv`,");
    run("text.toml", &base).failed(2, "lora adapts the transformer alone");
    run("vae.toml", &base).failed(2, "`sd-vae` is an autoencoder: leave `lora` out");
    // It may be a start where what is new is trained.
    fs::write(program.path("plain.toml"), RECIPE).unwrap();
    let part = ["--init", "part.safetensors", "--plan"];
    run("plain.toml", &part).done();
    fs::remove_file(program.path("plain.toml")).unwrap();
    let message = "blocks.0.attn_temp.qkv.weight";
    let ran = run("tiny.toml", &part).failed(1, message);
    assert!(ran.stderr.contains("do not fit the recipe's model"), "{}", ran.stderr);
    assert_eq!(program.files(), before);
}
