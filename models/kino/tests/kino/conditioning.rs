//! `kino sample` with given frames: images, folders and videos, kept or edited.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use media::FrameSource;

use crate::program::{PROMPT, Program, Ran};

/// Samples two small frames in `source/`, to take references of.
fn with_source() -> Program {
    let program = Program::new();
    program.sample(&["--output", "source/"]).done();
    program
}

/// Samples with `args`, another seed and `output` and gives the latents.
fn latents(program: &Program, output: &str, args: &[&str]) -> Vec<u8> {
    let file = format!("{output}.safetensors");
    let common = ["--seed", "7", "--save-latents", &file, "--output", output];
    program.sample(&[&common, args].concat()).done();
    fs::read(program.path(file)).unwrap()
}

/// The pixels of a PNG of 64x64.
fn pixels(path: &Path) -> Vec<f32> {
    let mut pixels = Vec::new();
    let stop = AtomicBool::new(false);
    let source = FrameSource::open(path, &stop).unwrap();
    source
        .read::<media::Error>(&[0], [64, 64], &stop, |_, frame| {
            pixels = frame;
            Ok(())
        })
        .unwrap();
    pixels
}

/// Mean distance of the values of two PNGs, of 255.
fn distance(program: &Program, a: &str, b: &str) -> f32 {
    let [a, b] = [a, b].map(|name| pixels(&program.path(name)));
    let sum: f32 = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum();
    sum / a.len() as f32 * 127.5
}

#[test]
fn a_given_image_is_the_first_frame() {
    let program = Program::new();
    // Of another ground, so that a frame which is not given is far from it.
    let other = ["sample", "a fire ant stands facing left on yellow sand", "--output", "source/"];
    let few = ["--num-sampling-steps", "2", "--num-frames", "2"];
    program.run(&[&other[..], &few].concat()).done();
    let image = ["--reference-path", "source/frame_0001.png", "--mask-strategy", "0"];
    let ran = program.sample(&[&["--seed", "7", "--output", "given/"][..], &image].concat()).done();
    for line in ["given    1 of 2 frames", "  condition "] {
        assert!(ran.stdout.contains(line), "no {line:?}: {ran:?}");
    }
    program.sample(&["--seed", "7", "--output", "free/"]).done();
    let first = distance(&program, "source/frame_0001.png", "given/frame_0000.png");
    let free = distance(&program, "source/frame_0001.png", "free/frame_0000.png");
    // What the autoencoder loses of a picture of noise, which two steps leave, remains.
    assert!(first < 16.0, "the given frame is off by {first}");
    assert!(free > 3.0 * first, "another frame is off by {free} only");
}

#[test]
fn one_picture_has_one_latent_however_it_is_given() {
    let program = with_source();
    let from = |output: &str, path: &str, strategy: &str| {
        latents(&program, output, &["--reference-path", path, "--mask-strategy", strategy])
    };
    let image = from("a.gif", "source/frame_0001.png", "0");
    assert!(image == from("b.gif", "source", "0,0,1"), "of a folder");
    assert!(image == from("c.gif", "source", "0,0,-1,-2"), "counted from the end");
    assert!(image == from("d.gif", "source;source/frame_0001.png", "0,1"), "of the second path");
    assert!(image == from("e.gif", "source", "0;0,0,-1"), "the last rule holds");
    let suffix = format!(
        "{PROMPT} {{\"reference_path\": \"source/frame_0001.png\", \"mask_strategy\": \"0\"}}"
    );
    let few = ["--num-sampling-steps", "2", "--num-frames", "2", "--threads", "2", "--seed", "7"];
    let output = ["--save-latents", "f.safetensors", "--output", "f.gif"];
    program.run(&[&["sample", suffix.as_str()][..], &few, &output].concat()).done();
    assert!(image == fs::read(program.path("f.safetensors")).unwrap(), "named by the prompt");

    // Other rules are other videos.
    let free = latents(&program, "g.gif", &[]);
    let others = [
        image,
        from("h.gif", "source", "0"),
        from("i.gif", "source", "0,0,0,0,2"),
        from("j.gif", "source", "0,0,0,0,2,0.5"),
        from("k.gif", "source/frame_0001.png", "0,0,0,0,2"),
        // An edit ratio of 1 leaves nothing of the frame but the draws of a masked run.
        from("l.gif", "source", "0,0,0,0,2,1"),
    ];
    for (at, video) in others.iter().enumerate() {
        assert!(*video != free, "rule {at} has no effect");
        assert!(!others[..at].contains(video), "rule {at} gives the video of another");
    }

    // Outputs know what they were made of.
    for file in ["a.gif", "f.gif", "j.gif"] {
        program.run(&["sample", "--from", file, "--output", "again.gif"]).done();
        let [again, file] = ["again.gif", file].map(|name| fs::read(program.path(name)).unwrap());
        assert!(again == file);
    }
}

#[test]
fn a_video_does_not_depend_on_what_is_given_to_others() {
    let program = with_source();
    let prompts = [PROMPT, "a fire ant attacks", "a minotaur stands"];
    let few = ["--num-sampling-steps", "2", "--num-frames", "2"];
    let run = |name: &str, prompts: &[&str], args: &[&str]| {
        let file = format!("{name}.safetensors");
        let all = [&["sample"][..], prompts, &few, &["--save-latents", &file, "--save-dir", name]];
        program.run(&[&all.concat()[..], args].concat()).done();
        let values = checkpoint::Checkpoint::open(program.path(file)).unwrap();
        values.to_f32("latents").unwrap()
    };
    let given = ["--reference-path", "", "source", "source/frame_0000.png"];
    let rules = ["--mask-strategy", "", "0,0,0,0,2,0.5", "0"];
    let all = run("all", &prompts, &[&given[..], &rules].concat());
    let batched = run("batched", &prompts, &[&given[..], &rules, &["--batch-size", "3"]].concat());
    assert!(all == batched, "batches change videos");
    let n = all.len() / 3;
    for (index, prompt) in prompts.iter().enumerate() {
        let number = index.to_string();
        let one = ["--sample-index", &number];
        let (path, rule) = (given[index + 1], rules[index + 1]);
        let given = ["--reference-path", path, "--mask-strategy", rule];
        let alone = run(&format!("alone{index}"), &[prompt], &[&one[..], &given].concat());
        assert!(alone == all[index * n..][..n], "video {index} depends on others");
    }
}

#[test]
fn loops_go_on_from_each_others_end() {
    let program = Program::new();
    let few = ["--num-sampling-steps", "2", "--num-frames", "4", "--seed", "7"];
    let run = |prompt: &str, output: &str, args: &[&str]| {
        program.run(&[&["sample", prompt, "--output", output][..], &few, args].concat()).done()
    };
    let frame =
        |folder: &str, t: usize| pixels(&program.path(format!("{folder}/frame_{t:04}.png")));
    let long = ["--loop", "3", "--condition-frame-length", "1"];
    let ran = run(PROMPT, "long/", &long);
    assert!(ran.stdout.contains("loops    3, which share 1 frame: 10 frames in all"), "{ran:?}");
    assert!(program.path("long/frame_0009.png").is_file());
    assert!(!program.path("long/frame_0010.png").exists());

    // Another text for the last loop changes its frames only: 4 of the first loop, 3 of the next.
    run(&format!("|0|{PROMPT}|2|a minotaur stands in a blue night"), "changed/", &long);
    for t in 0..10 {
        assert_eq!(frame("long", t) == frame("changed", t), t < 7, "frame {t}");
    }
    // An end that is edited, not kept, changes what comes after it.
    run(PROMPT, "edited/", &[&long[..], &["--condition-frame-edit", "0.5"]].concat());
    for t in 0..10 {
        assert_eq!(frame("long", t) == frame("edited", t), t < 4, "frame {t}");
    }
    program.run(&["sample", "--from", "edited/", "--output", "again/"]).done();
    for t in [0, 9] {
        assert!(frame("again", t) == frame("edited", t), "frame {t}");
    }

    // Rules give frames to any loop: here, the first frame of all to the end of the second.
    let rules = ["--reference-path", "long/frame_0000.png", "--mask-strategy", "1,0,0,-1"];
    let shared = ["--loop", "2", "--condition-frame-length", "2"];
    run(PROMPT, "ruled/", &[&rules[..], &shared].concat());
    let near = distance(&program, "ruled/frame_0005.png", "long/frame_0000.png");
    assert!(near < 16.0, "the given frame is off by {near}");
}

#[test]
fn a_loop_is_a_video_that_is_given_the_end_of_the_one_before() {
    let program = Program::new();
    let few = ["--num-sampling-steps", "2", "--num-frames", "4"];
    let run = |output: &str, args: &[&str]| {
        program.run(&[&["sample", PROMPT, "--output", output][..], &few, args].concat()).done();
    };
    run("long/", &["--loop", "2", "--condition-frame-length", "2"]);
    // The first loop is the video of a masked run to which nothing is given.
    let image = ["--reference-path", "long/frame_0000.png"];
    run("first/", &[&image[..], &["--mask-strategy", "0,0,0,0,4,1"]].concat());
    for t in 0..4 {
        let [a, b] = ["long", "first"].map(|folder| format!("{folder}/frame_000{t}.png"));
        assert!(distance(&program, &a, &b) == 0.0, "frame {t}");
    }
}

#[test]
fn batches_of_long_videos_are_those_of_single_ones() {
    let program = Program::new();
    let few = ["--num-sampling-steps", "2", "--num-frames", "2", "--loop", "2", "--format", "gif"];
    let run = |folder: &str, args: &[&str]| {
        let prompts = ["sample", PROMPT, "a fire ant attacks", "a minotaur stands"];
        program.run(&[&prompts, &few[..], &["--save-dir", folder], args].concat()).done();
        ["0000", "0001", "0002"]
            .map(|name| fs::read(program.path(format!("{folder}/sample_{name}.gif"))).unwrap())
    };
    let one = run("one", &["--threads", "1"]);
    assert!(one[0] != one[1]);
    assert!(one == run("batched", &["--batch-size", "2", "--threads", "2"]));
}

#[test]
fn videos_are_decoded_by_ffmpeg() {
    let program = with_source();
    // A stand-in, which writes what ffmpeg would: the frames of the folder.
    let mut stream = Vec::new();
    for name in ["source/frame_0000.png", "source/frame_0001.png"] {
        let planes = pixels(&program.path(name));
        stream.extend(b"P6\n64 64\n255\n");
        for pixel in 0..64 * 64 {
            let channel = |c: usize| ((planes[c * 4096 + pixel] + 1.0) * 127.5).round() as u8;
            stream.extend([0, 1, 2].map(channel));
        }
    }
    fs::write(program.path("frames.ppm"), stream).unwrap();
    fs::write(program.path("a.mp4"), b"a video").unwrap();
    let with_ffmpeg = |script: &str| {
        let bin = program.path("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join("ffmpeg"), format!("#!/bin/sh\n{script}\n")).unwrap();
        let chmod = std::process::Command::new("chmod").arg("+x").arg(bin.join("ffmpeg")).status();
        assert!(chmod.unwrap().success());
        let few = ["--num-sampling-steps", "2", "--num-frames", "2", "--seed", "7"];
        let args = ["sample", PROMPT, "--reference-path", "a.mp4", "--mask-strategy", "0,0,1"];
        let out = ["--save-latents", "video.safetensors", "--output", "video.gif"];
        let mut command = program.command(&[&args[..], &few, &out].concat());
        let path = format!("{}:/usr/bin:/bin", bin.display());
        Ran::of(command.env("PATH", path).output().unwrap())
    };
    with_ffmpeg("cat frames.ppm").done();
    let folder = ["--reference-path", "source", "--mask-strategy", "0,0,1"];
    let expected = latents(&program, "folder.gif", &folder);
    assert!(fs::read(program.path("video.safetensors")).unwrap() == expected);
    fs::remove_file(program.path("video.gif")).unwrap();

    let failing = "cat frames.ppm; echo '[mov @ 0x1234] broken' >&2; exit 1";
    with_ffmpeg(failing).failed(1, "a.mp4: ffmpeg cannot decode it: broken");
    with_ffmpeg("exit 0").failed(1, "a.mp4: ffmpeg cannot decode it: no frame");
    with_ffmpeg("head -c 9999 frames.ppm").failed(1, "cut pixels");
    with_ffmpeg("head -c 12301 frames.ppm").failed(2, "reference 0 has 1 frames");
    assert!(!program.path("video.gif").exists());

    let args = ["sample", PROMPT, "--reference-path", "a.mp4", "--mask-strategy", "0"];
    let none = program.command(&args).env("PATH", program.path("nowhere")).output().unwrap();
    Ran::of(none).failed(1, "needs the program ffmpeg to be decoded, which is not installed");
}

#[test]
fn given_frames_that_cannot_be_are_refused() {
    let program = with_source();
    fs::create_dir(program.path("empty")).unwrap();
    fs::write(program.path("bad.png"), b"\x89PNG\r\n\x1a\nrest").unwrap();
    let path = |path| ["--reference-path", path, "--mask-strategy", "0"];
    let rule = |rule| ["--reference-path", "source", "--mask-strategy", rule];
    for (args, code, message) in [
        (&["--reference-path", "source"][..], 2, "a reference needs --mask-strategy"),
        (&["--mask-strategy", "0"], 2, "needs --reference-path"),
        (&path("no.png"), 1, "no.png"),
        (&path("bad.png"), 1, "bad.png: not a sound PNG"),
        (&path("empty"), 1, "empty: a folder without a PNG"),
        (&path("source;no.png"), 1, "no.png"),
        (&rule("0,0,0,0,one"), 2, "count of frames `one`"),
        (&rule("0,1"), 2, "there are 1 references"),
        (&rule("0,0,2"), 2, "reference 0 has 2 frames"),
        (&rule("0,0,0,2"), 2, "the video has 2 frames"),
        (&rule("1"), 2, "a rule is for loop 1, the video has 1"),
        (&["--loop", "0"], 2, "--loop 0"),
        (&["--loop", "99999"], 2, "--loop 99999; expected at most"),
        (&["--loop", "2", "--condition-frame-length", "2"], 2, "--condition-frame-length 2"),
        (&["--loop", "2", "--condition-frame-edit", "2"], 2, "--condition-frame-edit 2"),
        (&["--loop", "2", "--scheduler", "dpm-solver"], 2, "--loop: dpm-solver"),
        (&["--loop", "2", "--save-latents", "l.safetensors"], 2, "--save-latents is for videos of"),
        (&[&rule("0")[..], &["--scheduler", "dpm-solver"]].concat(), 2, "dpm-solver cannot keep"),
        (&["--reference-path", "a", "b", "--mask-strategy", "0"], 2, "2 entries for 1 prompts"),
    ] {
        program.sample(&[args, &["--output", "x.gif"]].concat()).failed(code, message);
    }
    assert_eq!(program.files(), ["bad.png", "empty", "source"]);
}
