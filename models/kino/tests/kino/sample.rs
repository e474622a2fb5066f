//! `kino sample` with the embedded model: outputs, reproduction, determinism, configuration.

use std::fs;

use crate::program::{PROMPT, Program};
use serde_json::Value;

#[test]
fn writes_every_format_with_its_metadata() {
    let program = Program::new();
    for (file, start) in [
        ("a.mp4", &b"\0\0\0"[..]),
        ("a.gif", b"GIF89a"),
        ("a.webp", b"RIFF"),
        ("a.sheet.png", b"\x89PNG"),
    ] {
        let ran = program.sample(&["--output", file]).done();
        assert!(ran.stdout.contains("wrote") && ran.stdout.contains(file), "{ran:?}");
        assert!(fs::read(program.path(file)).unwrap().starts_with(start), "{file}");
        let metadata = media::read_metadata(&program.path(file)).unwrap();
        assert_eq!(metadata.get("prompt"), Some(PROMPT));
        assert_eq!(metadata.get("seed"), Some("42"));
        assert_eq!(metadata.get("version"), Some(env!("CARGO_PKG_VERSION")));
    }
    program.sample(&["--output", "a/"]).done();
    assert!(program.path("a/frame_0001.png").is_file());
    program
        .sample(&["--num-frames", "1", "--output", "a.png"])
        .failed(2, "cannot be used multiple");
    program.run(&["sample", PROMPT, "--num-sampling-steps", "2", "--num-frames", "1"]).done();
    assert!(program.path("samples/sample_0000.png").is_file());
    assert_eq!(program.files(), ["a", "a.gif", "a.mp4", "a.sheet.png", "a.webp", "samples"]);
}

#[test]
fn an_output_reproduces_itself() {
    let program = Program::new();
    let settings = ["--seed", "7", "--cfg-scale", "2.5", "--scheduler", "dpm-solver"];
    program
        .sample(
            &[&settings[..], &["--save-dir", "many", "--num-sample", "2", "--format", "gif"]]
                .concat(),
        )
        .done();
    // The second video has other noise than the first, and both know theirs.
    let files = ["many/sample_0000-0.gif", "many/sample_0000-1.gif"]
        .map(|name| fs::read(program.path(name)).unwrap());
    assert_ne!(files[0], files[1]);
    for (number, file) in files.iter().enumerate() {
        let from = format!("many/sample_0000-{number}.gif");
        program.run(&["sample", "--from", &from, "--output", "again.gif"]).done();
        assert_eq!(&fs::read(program.path("again.gif")).unwrap(), file, "{from}");
    }
    for (file, copy) in [("b.mp4", "c.mp4"), ("b.webp", "c.webp"), ("b/", "c/")] {
        program.sample(&["--output", file]).done();
        program.run(&["sample", "--from", file, "--output", copy]).done();
        let [file, copy] = [file, copy].map(|name| {
            let name =
                if name.ends_with('/') { format!("{name}frame_0001.png") } else { name.into() };
            fs::read(program.path(name)).unwrap()
        });
        assert_eq!(file, copy);
    }
    let changed = ["sample", "--from", "b.webp", "--seed", "8", "--output", "d.webp"];
    program.run(&changed).done();
    let bytes = |name| fs::read(program.path(name)).unwrap();
    assert_ne!(bytes("b.webp"), bytes("d.webp"));
}

#[test]
fn latents_do_not_depend_on_threads_or_batches() {
    let program = Program::new();
    let latents = |name: &str, args: &[&str]| {
        let file = format!("{name}.safetensors");
        let common = ["sample", PROMPT, "a fire ant attacks", "a minotaur stands"];
        let few = ["--num-sampling-steps", "2", "--num-frames", "2", "--save-latents", &file];
        program.run(&[&common, &few[..], args].concat()).done();
        fs::read(program.path(file)).unwrap()
    };
    let one = latents("one", &["--threads", "1"]);
    assert!(one.len() > 3 * 4 * 2 * 16 * 16 * 4);
    assert_eq!(one, latents("two", &["--threads", "2"]));
    assert_eq!(one, latents("four", &["--threads", "4"]));
    assert_eq!(one, latents("batch", &["--batch-size", "2"]));
}

#[test]
fn initial_noise_comes_from_a_file() {
    let program = Program::new();
    // The latents of one run are a tensor of the right shape under another name.
    program.sample(&["--save-latents", "latents.safetensors", "--output", "a.gif"]).done();
    program
        .sample(&["--initial-noise", "latents.safetensors", "--output", "b.gif"])
        .failed(1, "no tensor `z` or `noise`; it has latents");
    let write = |name: &str, shape: &[usize]| {
        let n: usize = shape.iter().product();
        let bytes: Vec<u8> = (0..n).flat_map(|i| ((i as f32).sin()).to_le_bytes()).collect();
        let view = checkpoint::TensorView {
            dtype: checkpoint::DType::F32,
            shape: shape.to_vec(),
            bytes: bytes.into(),
        };
        let tensors = std::collections::BTreeMap::from([("z".to_string(), view)]);
        checkpoint::write_safetensors(&program.path(name), &tensors, &Default::default()).unwrap();
    };
    write("good.safetensors", &[4, 2, 16, 16]);
    write("bad.safetensors", &[4, 2, 16, 15]);
    program
        .sample(&["--initial-noise", "bad.safetensors", "--output", "b.gif"])
        .failed(1, "is [4, 2, 16, 15], expected the latent's shape [4, 2, 16, 16]");
    program.sample(&["--initial-noise", "good.safetensors", "--output", "b.gif"]).done();
    let bytes = |name| fs::read(program.path(name)).unwrap();
    assert_ne!(bytes("a.gif"), bytes("b.gif"));
    program.run(&["sample", "--from", "b.gif", "--output", "c.gif"]).done();
    assert_eq!(bytes("b.gif"), bytes("c.gif"));
}

#[test]
fn flags_win_over_the_configuration_file() {
    let program = Program::new();
    let config = "prompt = \"a minotaur stands\"\nseed = 5\nnum-sampling-steps = 2\nnum_frames = 2\n\
                  cfg_scale = 3\nimage_size = [32, 48]\nformat = \"gif\"\n";
    fs::write(program.path("a.toml"), config).unwrap();
    let ran = program.run(&["sample", "--config", "a.toml", "--cfg-scale", "1", "--json"]).done();
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    let request = &document["request"];
    assert_eq!((&request["seed"], &request["cfg_scale"]), (&5.into(), &1.0.into()));
    assert_eq!((&request["height"], &request["width"]), (&32.into(), &48.into()));
    assert_eq!(document["outputs"][0]["prompt"], "a minotaur stands");
    assert_eq!(document["outputs"][0]["path"], "samples/sample_0000.gif");
    assert_eq!(document["outputs"][0]["frames"], 2);
    for stage in ["load", "compile", "text", "denoise", "decode", "encode"] {
        assert!(document["seconds"][stage].as_f64().unwrap() >= 0.0, "{stage}");
    }
    assert!(document["plan"]["peak_bytes"].as_u64().unwrap() > 1_000_000);
    assert!(document["plan"]["stages"][1]["flops"].as_u64().unwrap() > 1_000_000);
    assert_eq!(ran.stderr, "");
}

#[test]
fn a_memory_limit_is_kept_and_does_not_change_the_video() {
    let program = Program::new();
    let request =
        "sample zombie --num-sampling-steps 1 --image-size 128 128 --num-frames 16 --json";
    let request: Vec<&str> = request.split(' ').collect();
    let sample = |memory: &[&str], output: &str| {
        let args = [&request[..], &["--output", output], memory].concat();
        let ran = program.run(&args).done();
        let document: Value = serde_json::from_str(&ran.stdout).unwrap();
        let largest = |document: &Value| {
            let stages = document["plan"]["stages"].as_array().unwrap().iter();
            let held = |stage: &Value| {
                stage["arena_bytes"].as_u64().unwrap() + stage["weight_bytes"].as_u64().unwrap()
            };
            stages.map(held).max().unwrap()
        };
        (largest(&document), document["plan"]["stages"][1]["steps"].as_u64().unwrap())
    };
    let (free, n_steps) = sample(&[], "a.gif");
    let limit = free - 1_000_000;
    let (limited, n_limited_steps) = sample(&["--memory", &limit.to_string()], "b.gif");
    assert!(limited <= limit, "{limited} of {limit}");
    assert!(n_limited_steps > n_steps);
    let bytes = |name| fs::read(program.path(name)).unwrap();
    assert_eq!(bytes("a.gif"), bytes("b.gif"));

    // The refusal names what works.
    let args = [&request[..], &["--memory", "2MiB", "--output", "c.gif"]].concat();
    let refused = program.run(&args).failed(2, "are allowed: allow ");
    let smallest = refused.stderr.split("are allowed: allow ").nth(1).unwrap();
    let smallest = smallest.split(',').next().unwrap();
    let (kept, _) = sample(&["--memory", smallest], "c.gif");
    assert!(kept <= smallest.parse().unwrap());
    assert_eq!(bytes("a.gif"), bytes("c.gif"));
}

#[test]
fn the_plan_comes_first_and_quiet_says_nothing() {
    let program = Program::new();
    let ran = program.sample(&["--output", "a.gif"]).done();
    let at = |word: &str| ran.stdout.find(word).unwrap_or_else(|| panic!("no {word}: {ran:?}"));
    assert!(at("peak") < at("wrote") && at("FLOP") < at("wrote") && at("wrote") < at("time "));
    let quiet = program.sample(&["--output", "a.gif", "--quiet"]).done();
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
}

#[test]
fn prompts_come_from_a_file_and_keep_their_numbers() {
    let program = Program::new();
    fs::write(program.path("prompts.txt"), "a zombie\n\na fire ant\na hobgoblin\n").unwrap();
    let args = ["sample", "--prompt-path", "prompts.txt", "--num-sampling-steps", "2"];
    let few = ["--num-frames", "1", "--sample-name", "x"];
    program.run(&[&args[..], &few].concat()).done();
    let all = fs::read(program.path("samples/x_0001.png")).unwrap();
    let part = ["--start-index", "1", "--end-index", "2", "--save-dir", "part"];
    program.run(&[&args[..], &few, &part].concat()).done();
    assert_eq!(fs::read(program.path("part/x_0001.png")).unwrap(), all);
    assert_eq!(fs::read_dir(program.path("part")).unwrap().count(), 1);
}
