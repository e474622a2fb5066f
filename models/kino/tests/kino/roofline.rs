//! `kino roofline` and `kino plan --gpu`: plans for GPUs, without one; modelled times beside measured.

use serde_json::Value;

use crate::program::Program;

/// Seconds of a guided step of STDiT-2 XL/2 in bf16, one video of 16 frames, and of decoding a frame of
/// 512x512, measured on an H100 SXM with kernels for `sm_80`; then the GFLOP of those.
const MEASURED: [(&str, &str, f64, f64); 5] = [
    ("stdit2-xl", "144p:16f", 22.0e-3, 6463.0),
    ("stdit2-xl", "240p:16f", 60.0e-3, 18506.0),
    ("stdit2-xl", "480p:16f", 248.0e-3, 80406.0),
    ("stdit2-xl", "720p:16f", 641.0e-3, 212_468.0),
    ("sd-vae", "1x512x512", 8.75e-3, 2520.0),
];

/// Shares of those steps that were measured to be products and attention.
const MEASURED_SHARES: [(&str, f64, f64); 4] = [
    ("144p:16f", 0.82, 0.15),
    ("240p:16f", 0.82, 0.17),
    ("480p:16f", 0.76, 0.24),
    ("720p:16f", 0.64, 0.36),
];

fn document(program: &Program, args: &[&str]) -> Value {
    let ran = program.run(&[args, &["--json"]].concat()).done();
    serde_json::from_str(&ran.stdout).unwrap()
}

fn roofline(program: &Program, args: &[&str]) -> Value {
    document(program, &[&["roofline"], args].concat())
}

/// The modelled seconds of a kind of kernel.
fn seconds_of(modelled: &Value, kernel: &str) -> f64 {
    let mut kernels = modelled["kernels"].as_array().unwrap().iter();
    kernels.find(|row| row["kernel"] == kernel).unwrap()["seconds"].as_f64().unwrap()
}

#[test]
fn modelled_steps_are_near_measured_ones() {
    let program = Program::new();
    for (model, bucket, seconds, gigaflops) in MEASURED {
        let args = [model, "--gpu", "h100", "--target", "sm_80", "--bucket", bucket];
        let modelled = &roofline(&program, &args)["programs"][0];
        let (found, flops) =
            (modelled["seconds"].as_f64().unwrap(), modelled["flops"].as_f64().unwrap());
        assert!((flops / (gigaflops * 1e9) - 1.0).abs() < 0.01, "{bucket}: {flops} FLOP");
        assert!((found / seconds - 1.0).abs() < 0.25, "{bucket}: {found} s, measured {seconds}");
        // Caches, clocks and scratch are not modelled: shares are near, not equal.
        let near = |kernel: &str, share: f64| {
            let modelled = seconds_of(modelled, kernel) / found;
            assert!((modelled - share).abs() < 0.08, "{bucket}: {kernel} takes {modelled}");
        };
        if let Some((_, products, attention)) =
            MEASURED_SHARES.iter().find(|(name, ..)| *name == bucket && model == "stdit2-xl")
        {
            near("matmul", *products);
            near("attention", *attention);
        }
    }
}

#[test]
fn totals_are_those_of_the_kernels_and_the_plan() {
    let program = Program::new();
    let size = ["tiny-flare-1.1", "--bucket", "2x64x64", "--dtype", "bf16"];
    let modelled = roofline(&program, &[&size[..], &["--gpu", "l40s"]].concat());
    assert_eq!(modelled["modelled"], true);
    let planned = document(
        &program,
        &[&["plan"], &size[..], &["--gpu", "l40s", "--text-dtype", "bf16"]].concat(),
    );
    assert_eq!(planned["gpu"], "sm_89");
    let programs = modelled["programs"].as_array().unwrap();
    let stages = planned["stages"].as_array().unwrap();
    assert_eq!((programs.len(), stages.len()), (3, 3));
    for (modelled, stage) in programs.iter().zip(stages) {
        for (key, of_plan) in [("steps", "steps"), ("flops", "flops"), ("bytes", "bytes_moved")] {
            assert_eq!(modelled[key], stage[of_plan], "{key}");
        }
        for key in ["steps", "launches", "flops", "bytes", "seconds"] {
            let kernels = modelled["kernels"].as_array().unwrap().iter();
            let sum: f64 = kernels.map(|kernel| kernel[key].as_f64().unwrap()).sum();
            let all = modelled[key].as_f64().unwrap();
            assert!((sum - all).abs() <= 1e-9 * all, "{key}: {sum} of {all}");
        }
        // A step cannot take less than its launches.
        let launches = modelled["launches"].as_f64().unwrap();
        assert!(modelled["seconds"].as_f64().unwrap() > 1.5e-6 * launches);
    }
}

#[test]
fn faster_devices_are_modelled_as_faster() {
    let program = Program::new();
    let seconds = |gpu: &str| {
        let args = ["sd-vae", "--bucket", "1x256x256", "--gpu", gpu];
        roofline(&program, &args)["programs"][0]["seconds"].as_f64().unwrap()
    };
    let order = ["h200", "h100", "a100"].map(seconds);
    assert!(order.is_sorted() && order[0] < order[1], "{order:?}");
    let ran = program.run(&["roofline", "sd-vae", "--bucket", "1x64x64", "--gpu", "a100"]).done();
    for words in ["modelled, not measured", "A100 80GB SXM", "312 TFLOP/s", "of 2.04", "1.5 us"] {
        assert!(ran.stdout.contains(words), "{words}: {}", ran.stdout);
    }
}

#[test]
fn the_table_sets_upstreams_seconds_beside() {
    let program = Program::new();
    let table = |gpu: &str| {
        let table = roofline(&program, &["tiny-flare-1.1", "--all-buckets", "--gpu", gpu]);
        table["buckets"].as_array().unwrap().clone()
    };
    let (h100, a100) = (table("h100"), table("a100"));
    assert_eq!((h100.len(), a100.len()), (25, 25));
    assert_eq!(h100[24]["bucket"], "720p:16s:9:16");
    assert_eq!(h100[24]["open_sora_1_2_seconds"], 547.0);
    assert!(h100[0]["open_sora_1_2_seconds"].is_null(), "upstream states none for 144p");
    assert!(a100.iter().all(|row| row["open_sora_1_2_seconds"].is_null()), "it has an H100");
}

#[test]
fn long_videos_fit_one_device() {
    let program = Program::new();
    for (bucket, most) in [("128x720x1280", 12), ("384x720x1280", 30), ("720p:16s:9:16", 30)] {
        let args = ["plan", "stdit2-xl", "--dtype", "bf16", "--gpu", "h100", "--bucket", bucket];
        let stage = &document(&program, &args)["stages"][0];
        let bytes = |key: &str| stage[key].as_f64().unwrap();
        assert!(bytes("arena_bytes") <= f64::from(most) * 1024f64.powi(3), "{bucket}: {stage}");
        assert!(bytes("arena_bytes") <= 1.02 * bytes("lower_bound_bytes"), "{bucket}");
    }
    let ran = program.run(&["plan", "stdit2-xl", "--dtype", "bf16", "--gpu", "h100"]).done();
    for words in ["a GPU of generation sm_90a", " fits 74.5 GiB of one H100 SXM", "kino roofline"] {
        assert!(ran.stdout.contains(words), "{words}: {}", ran.stdout);
    }
}

#[test]
fn what_cannot_be_modelled_is_a_usage_error() {
    let program = Program::new();
    let cases: &[(&[&str], &str)] = &[
        (&["roofline", "sd-vae"], "--gpu <GPU>"),
        (&["roofline", "sd-vae", "--gpu", "sm_90a"], "expected one of h100, h200"),
        (&["roofline", "sora", "--gpu", "h100"], "no model of this name"),
        (&["roofline", "sd-vae", "--gpu", "a100", "--target", "sm_90a"], "use --target sm_80"),
        (&["roofline", "sd-vae", "--gpu", "h100", "--target", "sm_70"], "expected one of sm_80"),
        (&["roofline", "sd-vae", "--gpu", "h100", "--program", "x"], "decode 240p:16f:9:16"),
        (&["plan", "sd-vae", "--gpu", "sm_70"], "--gpu sm_70"),
        (&["plan", "sd-vae", "--gpu", "h100", "--threads", "2"], "cannot be used with"),
    ];
    for (args, message) in cases {
        program.run(args).failed(2, message);
    }
}
