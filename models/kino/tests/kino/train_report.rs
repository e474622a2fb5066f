//! `kino report`: a run's page and summary, and folders that are no run.

use std::fs;

use media::{Clip, Format, Fps, Metadata};
use serde_json::Value;
use training::run_log::{
    BucketPlan, Event, LOG, Replaced, RunLog, Snapshot, Start, Step, Stop, StopReason, Validation,
};

use crate::program::Program;

fn start(step: u64) -> Event {
    let bucket = |name: &str, peak_bytes| BucketPlan {
        name: name.into(),
        peak_bytes,
        flops: 3_000_000_000,
        recomputed_flops: 600_000_000,
    };
    Event::Start(Start {
        step,
        version: "1.0".into(),
        recipe: "flare <tiny>".into(),
        recipe_text: "about = \"a & b\"\n".into(),
        model: "stdit2".into(),
        params: 3_700_000,
        trained_params: 1_200_000,
        buckets: vec![bucket("8x64x64, 4 rows", 3 << 29), bucket("1x64x64, 16 rows", 1 << 30)],
        steps: 200,
        seed: 7,
        threads: 2,
        limit_gflops: Some(12.0),
    })
}

fn step(step: u64, loss: f32) -> Event {
    let bucket = if step.is_multiple_of(4) { "1x64x64, 16 rows" } else { "8x64x64, 4 rows" };
    Event::Step(Step {
        step,
        epoch: step / 50,
        buckets: vec![bucket.into()],
        loss,
        lr: 1e-4 * (step as f64 / 20.0).min(1.0),
        grad_norm: 3.0 / (step as f32).sqrt(),
        samples: 4,
        tokens: 1000,
        seconds: 0.5,
        flops: 3_000_000_000,
        data_wait_seconds: 0.05,
        rss_bytes: (1 << 30) + (step << 20),
    })
}

/// A run of 100 updates that was resumed after 60, below `run`, and its validation's frames.
fn logged(program: &Program) {
    let folder = program.path("run");
    let loss = |step: u64| 0.2 + 1.0 / step as f32;
    let mut log = RunLog::open(&folder, None).unwrap();
    log.write(&start(0)).unwrap();
    for n in 1..=70 {
        log.write(&step(n, loss(n))).unwrap();
    }
    let mut log = RunLog::open(&folder, Some(60)).unwrap();
    log.write(&start(60)).unwrap();
    for n in 61..=100 {
        log.write(&step(n, if n == 77 { f32::NAN } else { loss(n) })).unwrap();
    }
    let rgb = vec![90; 2 * 8 * 8 * 3];
    let clip = Clip::new(2, 8, 8, &rgb, Fps::new(8, 1).unwrap()).unwrap();
    let frames = folder.join("frames.sheet.png");
    media::write(&frames, &clip, &Metadata::new(), Format::ContactSheet).unwrap();
    for (path, by) in [("a.mp4", "b.mp4"), ("a.mp4", "c.mp4")] {
        let reason = "it is <empty>".into();
        let replaced = Replaced { step: 100, path: path.into(), by: by.into(), reason };
        log.write(&Event::Replaced(replaced)).unwrap();
    }
    for (prompt, frames_png) in
        [("a \"zombie\" runs", Some("frames.sheet.png")), ("a minotaur", None)]
    {
        log.write(&Event::Validation(Validation {
            step: 100,
            prompt: prompt.into(),
            file: "../secret.png".into(),
            frames_png: frames_png.map(Into::into),
        }))
        .unwrap();
    }
    fs::write(program.path("secret.png"), fs::read(&frames).unwrap()).unwrap();
    let file = "step-00000100.safetensors".into();
    log.write(&Event::Snapshot(Snapshot { step: 100, file, bytes: 12345, seconds: 0.5 })).unwrap();
    log.write(&Event::Stop(Stop { step: 100, reason: StopReason::Interrupted })).unwrap();
}

#[test]
fn a_run_is_told_of_in_a_few_lines_and_a_page() {
    let program = Program::new();
    logged(&program);
    let ran = program.run(&["report", "run"]).done();
    for line in [
        "run      flare <tiny> (stdit2, 3.70M parameters, 1.20M trained)",
        "state    100 of 200 updates, interrupted",
        "resumed  after update 60",
        "loss     1.2000 to ",
        "smoothed, lowest 0.2100 in update 100",
        "diverged loss or gradient is no number in 1 update, first in update 77",
        ", 500.0 ms an update",
        // 6 of 12 GFLOP/s.
        "speed    8.00 samples/s, 2000 tokens/s, 50.0 % of the machine's limit, 10.0 % of the time",
        "memory   1.1 GiB resident at the most, 1.5 GiB planned",
        "data     2 samples replaced, 1 that cannot be read",
        "wrote    run/report.html",
    ] {
        assert!(ran.stdout.contains(line), "{line:?} is not in:\n{}", ran.stdout);
    }
    let page = fs::read_to_string(program.path("run/report.html")).unwrap();
    for outside in ["<script", "http:", "https:", "@import", "url("] {
        let page = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!page.contains(outside), "{outside}");
    }
    assert_eq!(page.matches("src=").count(), page.matches("src=\"data:").count());
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    // Loss, rate, norm, four of speed, memory, buckets; each marks where the run went on.
    assert_eq!(page.matches("<svg").count(), 9);
    assert_eq!(page.matches("went on after update 60").count(), 9);
    assert!(!page.contains("NaN"), "no number is drawn where there is none");
    for text in [
        "<h1>flare &lt;tiny&gt;</h1>",
        "alt=\"a &quot;zombie&quot; runs, update 100\" src=\"data:image/png;base64,iVBORw0KGgo",
        "../secret.png: not in the run's folder",
        "<td class=\"text\">it is &lt;empty&gt;</td>",
        "planned 1.5 GiB",
        "<td>removed</td>",
        "about = &quot;a &amp; b&quot;",
    ] {
        assert!(page.contains(text), "{text:?} is not in the page");
    }
    // The same log gives the same page; another place and another axis on request.
    program.run(&["report", "run", "--output", "same.html"]).done();
    assert_eq!(fs::read_to_string(program.path("same.html")).unwrap(), page);
    program.run(&["report", "run", "--output", "log.html", "--log-x"]).done();
    assert_ne!(fs::read_to_string(program.path("log.html")).unwrap(), page);
}

#[test]
fn the_summary_is_a_document_too() {
    let program = Program::new();
    logged(&program);
    let ran = program.run(&["report", "run", "--json"]).done();
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["step"], 100);
    assert_eq!(json["stopped"], "interrupted");
    assert_eq!(json["resumed_after"], serde_json::json!([60]));
    assert_eq!(json["loss"]["lowest_step"], 100);
    assert_eq!(json["loss"]["diverged_steps"], 1);
    assert_eq!(json["logged"]["samples"], 400);
    assert_eq!(json["speed"]["share_of_limit"], 0.5);
    assert_eq!(json["memory"]["planned_bytes"], 3 << 29);
    assert_eq!(json["buckets"][1]["batches"], 25);
    assert_eq!(json["buckets"][0]["seconds"], 37.5);
    assert_eq!(json["snapshots"][0]["bytes"], 12345);
    assert_eq!(json["replaced"][0]["count"], 2);
    assert!(!program.path("run/report.html").exists(), "a page is written only if it is named");
}

#[test]
fn a_folder_that_is_no_run_and_a_broken_log_are_refused() {
    let program = Program::new();
    program.run(&["report", "nowhere"]).failed(1, "the folder is not that of a run");
    program.run(&["report"]).failed(2, "<RUN>");
    logged(&program);
    let path = program.path("run").join(LOG);
    let whole = fs::read_to_string(&path).unwrap();
    // A run that is under way, or was killed in the middle of a line.
    let cut = whole.find("\"step\":42").unwrap();
    fs::write(&path, &whole[..cut]).unwrap();
    let ran = program.run(&["report", "run"]).done();
    assert!(ran.stdout.contains("41 of 200 updates, under way, or killed"), "{}", ran.stdout);
    fs::write(&path, whole.replacen("\"lr\":", "\"rl\":", 1)).unwrap();
    program.run(&["report", "run"]).failed(1, "line 2: missing field `lr`");
    fs::write(&path, "").unwrap();
    program.run(&["report", "run"]).failed(1, "run: the run has logged nothing yet");
}
