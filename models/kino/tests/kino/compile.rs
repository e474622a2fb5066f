//! `kino compile` and what runs of its engine, on the emulated device. Needs NVIDIA's compiler, as the tests of
//! kernels do.

use std::fs;
use std::sync::LazyLock;

use engine::{Engine, ImageKind};
use ops::TensorType;
use serde_json::Value;

use crate::program::{PROMPT, Program};

/// One frame of the embedded model for two generations.
static ENGINE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let program = Program::new();
    let size = ["compile", "tiny-flare-1.1", "--bucket", "1x64x64", "--quiet"];
    let args = ["--target", "sm_80,sm_90a", "--output", "x.engine"];
    program.run(&[&size[..], &args].concat()).done();
    fs::read(program.path("x.engine")).unwrap()
});

fn document(program: &Program, args: &[&str]) -> Value {
    let ran = program.run(&[args, &["--json"]].concat()).done();
    serde_json::from_str(&ran.stdout).unwrap()
}

/// A program in a folder with the engine as `x.engine`, after a change.
fn with_engine(change: impl FnOnce(&mut Engine)) -> Program {
    let mut engine = Engine::from_bytes(ENGINE.clone()).unwrap();
    change(&mut engine);
    let program = Program::new();
    engine.save(&program.path("x.engine")).unwrap();
    program
}

/// One step of one frame.
fn sample(program: &Program, args: &[&str]) -> crate::program::Ran {
    let few = ["sample", PROMPT, "--num-sampling-steps", "1", "--num-frames", "1", "--engine"];
    program.run(&[&few[..], &["x.engine", "--output", "a.png"], args].concat())
}

#[test]
fn one_engine_runs_on_every_generation_that_it_is_for() {
    let program = with_engine(|_| {});
    let found = document(&program, &["inspect", "x.engine"]);
    assert_eq!(found["targets"], serde_json::json!(["sm_80", "sm_90a"]));
    let programs = found["programs"].as_array().unwrap();
    let named = |target: &str| -> Vec<&str> {
        let of_target = programs.iter().filter(|program| program["target"] == target);
        of_target.map(|program| program["name"].as_str().unwrap()).collect()
    };
    assert_eq!(named("sm_80"), ["text 1x64x64", "denoise 1x64x64", "decode 1x64x64"]);
    assert_eq!(named("sm_80"), named("sm_90a"));
    // Of a prompt's tokens, every product but those with an activation is plain.
    let plain = &programs[0]["cublaslt"];
    assert!(plain["steps"].as_u64().unwrap() > 0 && plain["workspace_bytes"] == 4 << 20, "{plain}");
    // What both generations launch is there once, with the PTX of the first.
    let engine = Engine::from_bytes(ENGINE.clone()).unwrap();
    let [first, second] = engine.targets()[..] else { panic!("{:?}", engine.targets()) };
    let shared = engine
        .kernels_of(first)
        .filter(|kernel| engine.kernels_of(second).any(|other| std::ptr::eq(*kernel, other)));
    let mut n_shared = 0;
    for kernel in shared {
        let kinds: Vec<_> = kernel.images.iter().map(|image| (image.arch, image.kind)).collect();
        let (ptx, cubin) = (ImageKind::Ptx, ImageKind::Cubin);
        assert_eq!(kinds, [(first, ptx), (first, cubin), (second, cubin)]);
        n_shared += 1;
    }
    // Where products are this small, both generations may multiply alike throughout.
    assert!(n_shared > 10, "{n_shared}");
    for device in ["cuda-emulated", "cuda-emulated:sm_86", "cuda-emulated:sm_100"] {
        sample(&program, &["--device", device]).done();
        fs::remove_file(program.path("a.png")).unwrap();
    }
    let by = |products| sample(&program, &["--device", "cuda-emulated", "--products", products]);
    by("auto").done();
    fs::remove_file(program.path("a.png")).unwrap();
    by("cublaslt")
        .failed(1, "--products cublaslt: the emulated device computes no products by cuBLASLt");
    sample(&program, &["--device", "cuda-emulated:sm_75"])
        .failed(1, "has compute capability 7.5, and the engine is for sm_80, sm_90a");
}

#[test]
fn a_roofline_of_an_engine_is_that_of_the_model() {
    let program = with_engine(|_| {});
    for gpu in ["h100", "a100", "l40s"] {
        let of_engine = document(&program, &["roofline", "x.engine", "--gpu", gpu]);
        // A device of a later generation runs what the engine has for an earlier one.
        let target = if gpu == "h100" { "sm_90a" } else { "sm_80" };
        let model = ["roofline", "tiny-flare-1.1", "--bucket", "1x64x64", "--gpu", gpu];
        let of_model = document(&program, &[&model[..], &["--target", target]].concat());
        assert_eq!(of_engine["programs"], of_model["programs"], "{gpu}");
    }
}

#[test]
fn an_engine_that_does_not_fit_is_refused_with_one_message() {
    let program = with_engine(|_| {});
    let emulated = ["--device", "cuda-emulated"];
    // Another size.
    let args = [&emulated[..], &["--resolution", "144p"]].concat();
    sample(&program, &args).failed(1, "the engine has no program @denoise_step for");
    // Damage, and another version.
    for (at, message) in [(8, "this program reads 3"), (16, "bytes, expected"), (300, "is damaged")]
    {
        let mut bytes = ENGINE.clone();
        bytes[at] ^= 0x40;
        fs::write(program.path("x.engine"), bytes).unwrap();
        sample(&program, &emulated).failed(1, message);
    }
    fs::write(program.path("x.engine"), &ENGINE[..ENGINE.len() / 2]).unwrap();
    sample(&program, &emulated).failed(1, "copy it again, or compile the model again");
    // Of a model with other weights.
    let weight = |engine: &mut Engine| {
        let is_projection = |name: &str| name.ends_with("attn.proj.weight");
        engine.weights.iter().position(|weight| is_projection(&weight.name)).unwrap()
    };
    let program = with_engine(|engine| {
        let at = weight(engine);
        engine.weights[at].name = "blocks.9.attn.proj.weight".into();
    });
    sample(&program, &emulated).failed(1, "weight `blocks.9.attn.proj.weight` is missing");
    let program = with_engine(|engine| {
        let at = weight(engine);
        let ty = &engine.weights[at].ty;
        let shape: Vec<usize> = vec![ty.shape().iter().product()];
        engine.weights[at].ty = TensorType::new(ty.dtype(), shape).unwrap();
        engine.weights[at].axes.clear();
    });
    sample(&program, &emulated).failed(1, "expected bf16[36864]");
    // Without PTX, which is all that the emulated device takes.
    let program = with_engine(|engine| {
        for kernel in &mut engine.kernels {
            kernel.images.retain(|image| image.kind == ImageKind::Cubin);
        }
    });
    sample(&program, &emulated).failed(1, "is for it)");
    assert_eq!(program.files(), ["x.engine"]);
}

#[test]
fn a_bucket_table_names_what_is_compiled() {
    let program = Program::new();
    let table = "buckets = [
        { resolution = '144p', frames = 1, keep = 1.0, batch = 2 },
        { resolution = '144p', frames = 16, keep = 0.0 },
        { resolution = '256', frames = 2, keep = 0.5, batch = 1 },
    ]";
    fs::write(program.path("buckets.toml"), table).unwrap();
    let args = ["compile", "tiny-flare-1.1", "--buckets", "buckets.toml", "--output", "x.engine"];
    program.run(&[&args[..], &["--stage", "denoise", "--quiet"]].concat()).done();
    let found = document(&program, &["inspect", "x.engine"]);
    let programs = found["programs"].as_array().unwrap();
    let described: Vec<String> = programs
        .iter()
        .map(|program| format!("{} {}", program["name"], program["inputs"][0]["type"]))
        .collect();
    assert_eq!(
        described,
        [
            r#""denoise 1x144x256, batch 2" "f32[2, 4, 1, 36, 64]""#,
            r#""denoise 2x192x336" "f32[1, 4, 2, 48, 84]""#
        ]
    );
    let failing = |table: &str, message: &str| {
        fs::write(program.path("buckets.toml"), table).unwrap();
        program.run(&args).failed(2, message);
    };
    failing("buckets = [{ resolution = '144p' }]", "buckets.toml: line 1: missing field `frames`");
    failing(&table.replace("144p", "9p"), "resolution `9p` is unknown");
    failing("seed = 42\n", "no buckets; expected a list such as buckets = [{ resolution");
    program
        .run(&["compile", "sd-vae", "--output", "x", "--aspect-ratio", "1:1"])
        .failed(2, "--buckets");
    let missing = ["compile", "sd-vae", "--output", "x", "--buckets", "none.toml"];
    program.run(&missing).failed(1, "none.toml: ");
    let unknown = ["compile", "sd-vae", "--output", "x", "--target", "sm_80,sm_70"];
    program.run(&unknown).failed(2, "--target sm_70; expected one of sm_80, sm_86, sm_89, sm_90a");
}
