//! `kino plan`: its numbers are the plan's, its pictures are well formed.

use std::fs;

use serde_json::Value;

use crate::program::Program;

const SMALL: [&str; 3] = ["tiny-flare-1.1", "--bucket", "2x64x64"];

fn plan(program: &Program, args: &[&str]) -> Value {
    let ran = program.run(&[&["plan"][..], args, &["--json"]].concat()).done();
    serde_json::from_str(&ran.stdout).unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

#[test]
fn the_numbers_are_those_of_the_dumped_plan() {
    let program = Program::new();
    let document = plan(&program, &SMALL);
    assert_eq!(document["calibrated"], false);
    let stages = document["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
    assert_eq!(names, ["text", "denoise", "decode"]);
    for stage in stages {
        let name = stage["stage"].as_str().unwrap();
        let dump = [&["dump"], &SMALL[..], &["--plan", "--stage", name]].concat();
        let text = program.run(&dump).done().stdout;
        let arena = format!(
            "  arena {} (lower bound {})",
            stage["arena_bytes"], stage["lower_bound_bytes"]
        );
        assert!(text.contains(&arena), "{arena}");
        assert_eq!(text.matches("\n  step ").count() as u64, number(&stage["steps"]));
        assert_eq!(
            number(&stage["gap_bytes"]),
            number(&stage["arena_bytes"]) - number(&stage["lower_bound_bytes"])
        );
        // What is held at the fullest step is the lower bound, by its definition.
        let held = stage["held"].as_array().unwrap();
        let sum: u64 = held.iter().map(|held| number(&held["bytes"])).sum();
        assert_eq!(sum, number(&stage["lower_bound_bytes"]), "{name}");
        for held in held {
            let line = format!(
                "  buffer b{} : {} @ {} live {}..{}",
                held["buffer"],
                held["bytes"],
                held["offset"],
                held["first_step"],
                held["last_step"]
            );
            assert!(text.contains(&line), "{line}");
            let live = number(&held["first_step"])..=number(&held["last_step"]);
            assert!(live.contains(&number(&stage["fullest_step"])), "{line}");
        }
        let of = |key: &str| -> u64 {
            stage["kernels"].as_array().unwrap().iter().map(|kernel| number(&kernel[key])).sum()
        };
        assert_eq!(of("steps"), number(&stage["steps"]));
        assert_eq!(of("flops"), number(&stage["flops"]));
        assert_eq!(of("bytes"), number(&stage["bytes_moved"]));
        assert!(stage["seconds"].is_null(), "nothing was calibrated");
    }
}

#[test]
fn the_page_for_people_says_what_matters() {
    let program = Program::new();
    let ran = program.run(&[&["plan"], &SMALL[..], &["--stage", "denoise"]].concat()).done();
    for word in ["memory ", "bound ", "peak ", "matmul", "MFLOP", "kino calibrate"] {
        assert!(ran.stdout.contains(word), "{word}: {}", ran.stdout);
    }
    let ran = program.run(&["plan", "stdit2-xl", "--threads", "1", "--dtype", "bf16"]).done();
    assert!(ran.stdout.contains("1 thread,") && ran.stdout.contains("bf16["), "{}", ran.stdout);
}

#[test]
fn a_bigger_video_takes_more() {
    let program = Program::new();
    let flops = |bucket: &str| {
        let args = ["tiny-flare-1.1", "--stage", "denoise", "--bucket", bucket];
        number(&plan(&program, &args)["stages"][0]["flops"])
    };
    assert!(flops("4x64x64") > flops("2x64x64"));
}

/// Fails unless every element that opens closes, in order.
fn assert_well_formed(svg: &str) {
    let mut open: Vec<&str> = vec![];
    for tag in svg.split('<').skip(1) {
        let (tag, text) = tag.split_once('>').unwrap_or_else(|| panic!("<{tag} has no end"));
        assert!(!text.contains('>'), "a bare > behind <{tag}>");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().unwrap());
        }
    }
    assert_eq!(open, [""; 0]);
}

#[test]
fn the_picture_has_every_buffer() {
    let program = Program::new();
    let document =
        plan(&program, &[&SMALL[..], &["--svg", "all.svg", "--html", "all.html"]].concat());
    let svg = fs::read_to_string(program.path("all.svg")).unwrap();
    assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
    assert_well_formed(&svg);
    let stages = document["stages"].as_array().unwrap();
    let mut buffers = 0;
    for stage in stages {
        let name = stage["stage"].as_str().unwrap();
        let dump = [&["dump"], &SMALL[..], &["--plan", "--stage", name]].concat();
        buffers += program.run(&dump).done().stdout.matches("\n  buffer ").count();
    }
    assert_eq!(svg.matches("class=\"b\"").count(), buffers);
    assert_eq!(svg.matches("class=\"bound\"").count(), stages.len());
    assert_eq!(svg.matches("class=\"peak\"").count(), stages.len());
    assert!(svg.contains("blocks.0") && svg.contains("<title>scratch of matmul"));
    let html = fs::read_to_string(program.path("all.html")).unwrap();
    let start = html.find("const data = ").unwrap() + "const data = ".len();
    let data = &html[start..start + html[start..].find(";\n").unwrap()];
    let data: Value = serde_json::from_str(data).unwrap();
    let boxes = |stage: &Value| stage["boxes"].as_array().unwrap().len();
    assert_eq!(data["stages"].as_array().unwrap().iter().map(boxes).sum::<usize>(), buffers);
    for (drawn, stage) in data["stages"].as_array().unwrap().iter().zip(stages) {
        assert_eq!(drawn["arena"], stage["arena_bytes"]);
        let live = drawn["live"].as_array().unwrap().iter().map(number).max().unwrap();
        assert_eq!(live, number(&stage["lower_bound_bytes"]));
    }
}

#[test]
fn the_table_covers_the_usual_sizes() {
    let program = Program::new();
    let document = plan(&program, &["tiny-flare-1.1", "--all-buckets", "--threads", "1"]);
    let buckets = document["buckets"].as_array().unwrap();
    assert_eq!(buckets.len(), 25);
    assert_eq!(buckets[0]["bucket"], "144p:1:9:16");
    assert_eq!(buckets[24]["bucket"], "720p:16s:9:16");
    assert_eq!(buckets[24]["num_frames"], 408);
    for bucket in buckets {
        assert!(number(&bucket["arena_bytes"]) >= number(&bucket["lower_bound_bytes"]), "{bucket}");
        assert!(number(&bucket["tokens"]) > 0 && number(&bucket["flops"]) > 0);
    }
    let one = plan(
        &program,
        &["tiny-flare-1.1", "--stage", "denoise", "--bucket", "144p:2s", "--threads", "1"],
    );
    assert_eq!(one["stages"][0]["arena_bytes"], buckets[1]["arena_bytes"]);
    assert_eq!(one["stages"][0]["flops"], buckets[1]["flops"]);
}

#[test]
fn plans_that_cannot_be_are_usage_errors() {
    let program = Program::new();
    let cases: &[(&[&str], &str)] = &[
        (&["plan"], "<MODEL>"),
        (&["plan", "sora"], "no model of this name"),
        (&["plan", "sd-vae", "--bucket", "1x2"], "--bucket 1x2"),
        (&["plan", "sd-vae", "--stage", "text"], "has no text encoder"),
        (&["plan", "sd-vae", "--batch-size", "0"], "--batch-size 0"),
        (&["plan", "sd-vae", "--threads", "0"], "--threads 0"),
        (&["plan", "sd-vae", "--all-buckets", "--svg", "a.svg"], "cannot be used with"),
    ];
    for (args, message) in cases {
        program.run(args).failed(2, message);
        assert_eq!(program.files(), [""; 0], "{args:?}");
    }
    let missing = ["plan", "sd-vae", "--bucket", "1x64x64", "--svg", "no/such/folder/a.svg"];
    program.run(&missing).failed(1, "no/such/folder/a.svg");
}

#[test]
fn a_limit_makes_plans_fit_or_names_the_least_that_works() {
    let program = Program::new();
    let video = ["stdit2-xl", "--dtype", "bf16", "--bucket", "240p:4s:9:16"];
    let free = number(&plan(&program, &video)["peak_bytes"]);
    let limit = free - (32 << 20);
    let limit_text = limit.to_string();
    let held = plan(&program, &[&video[..], &["--memory", &limit_text]].concat());
    assert!(number(&held["peak_bytes"]) <= limit);
    let parts = |document: &Value| -> u64 {
        let parts = document["stages"][0]["parts"].as_array().unwrap().iter();
        parts.map(|row| number(&row["parts"]) * number(&row["values"])).sum()
    };
    assert!(parts(&held) > parts(&plan(&program, &video)), "chunks are finer");

    let refused = program.run(&["plan", "stdit2-xl", "--memory", "1GiB"]);
    let refused = refused.failed(2, "1073741824 are allowed");
    let least = refused.stderr.split_once("needs ").unwrap().1.split(' ').next().unwrap();
    let allowed = plan(&program, &["stdit2-xl", "--memory", least]);
    assert_eq!(number(&allowed["peak_bytes"]), least.parse::<u64>().unwrap());
}

#[test]
fn a_text_encoder_larger_than_the_limit_is_streamed() {
    let program = Program::new();
    let document = plan(&program, &["t5-large", "--memory", "200MiB"]);
    let stage = &document["stages"][0];
    assert_eq!(stage["streams_weights"], true);
    assert_eq!(number(&stage["peak_bytes"]), 200 << 20);
    assert!(number(&stage["weight_bytes"]) > 1 << 30);
    program.run(&["plan", "t5-large", "--memory", "1MiB"]).failed(2, "1048576 are allowed");
}
