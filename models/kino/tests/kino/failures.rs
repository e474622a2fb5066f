//! Bad input: one clear message, the right exit code, nothing left behind.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command};

use crate::program::{PROMPT, Program, Ran};

#[test]
fn requests_that_cannot_be_are_usage_errors() {
    let program = Program::new();
    let words = "word ".repeat(10_000);
    let cases: &[(&[&str], &str)] = &[
        (&["sample"], "no prompt"),
        (&["sample", ""], "the prompt is empty"),
        (&["sample", " \u{a0}"], "the prompt is empty"),
        (&["sample", &words], "expected at most 16384"),
        (&["sample", "@bob"], "--no-clean-caption"),
        (&["sample", "a", "--model", "sora"], "--model sora is unknown"),
        (&["sample", "a", "--model", "STDiT-XL/2"], "give its weights with --ckpt-path"),
        (&["sample", "a", "--num-frames", "0"], "number of frames `0`"),
        (&["sample", "a", "--num-frames", "two"], "number of frames `two`"),
        (&["sample", "a", "--image-size", "0", "64"], "both above 0"),
        (&["sample", "a", "--image-size", "2", "2"], "too small"),
        (&["sample", "a", "--image-size", "8", "8"], "16x16"),
        (&["sample", "a", "--image-size", "64"], "2 values required"),
        (&["sample", "a", "--resolution", "9p"], "resolution `9p` is unknown"),
        (&["sample", "a", "--resolution", "240p", "--aspect-ratio", "7:3"], "aspect ratio `7:3`"),
        (&["sample", "a", "--aspect-ratio", "1:1"], "--aspect-ratio needs --resolution"),
        (&["sample", "a", "--num-sampling-steps", "0"], "--num-sampling-steps 0"),
        (&["sample", "a", "--num-sampling-steps", "1001"], "1001"),
        (&["sample", "a", "--num-sample", "18446744073709551615"], "videos"),
        (&["sample", "a", "--threads", "0"], "--threads 0"),
        (&["sample", "a", "--text-dtype", "f16"], "expected f32 or bf16"),
        (&["sample", "a", "--memory", "lots"], "--memory lots; expected bytes"),
        (&["sample", "a", "--memory", "1MiB"], "allow "),
        (&["sample", "a", "--fps", "nan"], "expected a finite number"),
        (&["sample", "a", "--fps", "0"], "--fps"),
        (&["sample", "a", "--frame-interval", "100"], "--frame-interval 100"),
        (&["sample", "a", "--output", "a.avi"], "a.avi: no format"),
        (&["sample", "a", "--output", "a.png"], "holds one frame"),
        (&["sample", "a", "b", "--output", "a.mp4"], "2 videos are asked for"),
        (&["sample", "a", "--sample-name", "../x"], "expected a plain file name"),
        (&["sample", "a", "--start-index", "1"], "are none of the 1"),
        (&["sample", "a", "--scheduler", "euler"], "invalid value 'euler'"),
        (&["sample", "a", "--cfg-scal", "1"], "--cfg-scale"),
        (&["sample", "a", "--vae", "x"], "give --ckpt-path too"),
        (&["sample", "a {\"reference_path\": \"x.png\"}"], "needs --mask-strategy"),
        (&["sample", "|0|a|1|b"], "a text is for loop 1, the video has 1"),
        (&["dump", "sora"], "no model of this name"),
        (&["dump", "sd-vae", "--bucket", "1x2"], "--bucket 1x2"),
        (&["dump", "tiny-flare-1.1", "--bucket", "2x64x64", "--after", "x"], "no pass `x`"),
        (&["dump", "sd-vae", "--stage", "text"], "has no text encoder"),
    ];
    for (args, message) in cases {
        program.run(args).failed(2, message);
        assert_eq!(program.files(), [""; 0], "{args:?}");
    }
    fs::write(program.path("a.toml"), "cgf_scale = 3\n").unwrap();
    program.run(&["sample", "a", "--config", "a.toml"]).failed(2, "did you mean `cfg_scale`?");
    assert_eq!(program.files(), ["a.toml"]);
}

#[test]
fn missing_and_damaged_files_are_run_errors() {
    let program = Program::new();
    let huge_header = [(1u64 << 30).to_le_bytes().as_slice(), b"{}"].concat();
    let safetensors = |header: &str, data: usize| {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
    };
    let one = |begin: u64, end: u64| {
        format!("{{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[{begin},{end}]}}")
    };
    let overlap = safetensors(&format!("{{\"a\":{},\"b\":{}}}", one(0, 8), one(4, 12)), 12);
    let outside = safetensors(&format!("{{\"a\":{}}}", one(8, 16)), 8);
    let strange = safetensors(&format!("{{\"a\":{}}}", one(0, 8)), 8);
    // posix.system("x"), as a pickle of protocol 2.
    let forbidden = b"\x80\x02cposix\nsystem\nq\x00X\x01\x00\x00\x00xq\x01\x85q\x02Rq\x03.";
    let cases: &[(&str, &[u8], &str)] = &[
        ("huge.safetensors", &huge_header, "huge.safetensors"),
        ("cut.safetensors", &overlap[..10], "cut.safetensors"),
        ("overlap.safetensors", &overlap, "overlap"),
        ("outside.safetensors", &outside, "outside"),
        ("text.bin", b"hello, this is not a checkpoint", "not a checkpoint"),
        ("empty.pth", b"", "empty.pth"),
        ("bad.pth", forbidden, "bad.pth"),
    ];
    for (name, bytes, message) in cases {
        fs::write(program.path(name), bytes).unwrap();
        let args = ["--vae", name, "--text-encoder", name, "--tokenizer", name];
        program.run(&[&["sample", "a", "--ckpt-path", name][..], &args].concat()).failed(1, "");
        program.run(&["inspect", name]).failed(1, message);
    }
    fs::write(program.path("strange.safetensors"), strange).unwrap();
    program.run(&["inspect", "strange.safetensors"]).done();
    program.run(&["sample", "a", "--ckpt-path", "no.pth"]).failed(1, "no.pth: no such file");
    program.run(&["sample", "--prompt-path", "no.txt"]).failed(1, "no.txt");
    program.run(&["sample", "a", "--config", "no.toml"]).failed(1, "no.toml");
    program.run(&["sample", "--from", "no.mp4"]).failed(1, "no.mp4");
    program.run(&["sample", "--from", "text.bin"]).failed(1, "text.bin");
    program.run(&["sample", "a", "--output", "no/a.mp4"]).failed(1, "no/a.mp4");
    program.run(&["sample", "a", "--output", "/proc/a.mp4"]).failed(1, "/proc/a.mp4");
    program.run(&["sample", "a", "--save-dir", "text.bin/x"]).failed(1, "text.bin/x");
    program.run(&["inspect", "no"]).failed(1, "no: no such file");
    assert!(program.files().iter().all(|name| !name.ends_with(".part")), "{:?}", program.files());
    assert!(!program.path("samples").exists());
}

#[test]
fn sizes_beyond_memory_are_refused_before_work() {
    let program = Program::new();
    for args in [
        &["--image-size", "30000", "30000", "--output", "a/"][..],
        &["--num-frames", "1000000000000"],
        &["--image-size", "4000000000000", "4000000000000"],
        &["--batch-size", "18446744073709551615", "--num-frames", "100000000"],
    ] {
        let ran = program.run(&[&["sample", PROMPT][..], args].concat());
        assert!(ran.code == Some(1) || ran.code == Some(2), "{args:?}: {ran:?}");
        assert!(!ran.stderr.contains("panicked"), "{ran:?}");
        assert_eq!(program.files(), [""; 0], "{args:?}");
    }
    let args = ["--image-size", "30000", "30000", "--output", "a/"];
    program.run(&[&["sample", PROMPT][..], &args].concat()).failed(1, "of memory");
}

#[test]
fn a_full_disk_leaves_nothing() {
    let program = Program::new();
    // A limit of 512 bytes for any file stands for a full disk; the signal is ignored, so that the
    // program sees an error.
    let sampling = "--num-sampling-steps 2 --num-frames 8";
    for file in ["a.mp4", "a.gif", "a.webp", "a.sheet.png", "a/"] {
        let kino = env!("CARGO_BIN_EXE_kino");
        let command = format!(
            "trap '' XFSZ; ulimit -f 1; exec {kino} sample '{PROMPT}' {sampling} --output {file}"
        );
        let output = Command::new("sh")
            .args(["-c", &command])
            .current_dir(program.path(""))
            .output()
            .unwrap();
        Ran::of(output).failed(1, "a");
        assert_eq!(program.files(), [""; 0], "{file}");
    }
}

#[test]
fn a_misfit_lists_every_tensor() {
    let program = Program::new();
    let embedded = concat!(env!("CARGO_MANIFEST_DIR"), "/embedded/tiny-flare-1.1/vae/");
    fs::create_dir(program.path("vae")).unwrap();
    let config = fs::read_to_string(format!("{embedded}config.json")).unwrap();
    let wider = config.replace("64\n ]", "128\n ]").replace("64\n  ]", "128\n  ]");
    assert_ne!(config, wider);
    fs::write(program.path("vae/config.json"), wider).unwrap();
    let weights = "diffusion_pytorch_model.safetensors";
    fs::copy(format!("{embedded}{weights}"), program.path(format!("vae/{weights}"))).unwrap();
    let ran = program.run(&["inspect", "vae"]).failed(1, "misshapen");
    assert!(ran.stderr.matches("\n  misshapen").count() > 10, "{ran:?}");
}

#[test]
fn an_interrupt_in_any_stage_leaves_nothing() {
    // Many prompts, steps or frames, so that a stage lasts long enough to be interrupted.
    let program = Program::new();
    // Each text is encoded once, so they must differ.
    let prompts: String = (0..4000).map(|i| format!("{PROMPT} {i}\n")).collect();
    fs::write(program.path("prompts.txt"), prompts).unwrap();
    let args = ["--prompt-path", "prompts.txt", "--num-frames", "1"];
    let stderr = interrupted(&program, &args, |child| {
        // The last line of the plan, after which the text stage begins.
        wait_for_line(child.stdout.as_mut().unwrap(), "memory ");
    });
    assert!(!stderr.contains("text "), "the text stage ended: {stderr}");
    assert_eq!(program.files(), ["prompts.txt"]);

    let program = Program::new();
    let args = [PROMPT, "--num-sampling-steps", "1000", "--num-frames", "16", "--output", "a.mp4"];
    let stderr = interrupted(&program, &args, |child| {
        wait_for_line(child.stderr.as_mut().unwrap(), "text ");
    });
    assert!(!stderr.contains("denoise "), "the denoise stage ended: {stderr}");
    assert_eq!(program.files(), [""; 0]);

    let args = [PROMPT, "--num-sampling-steps", "2", "--num-frames", "600", "--output", "a.mp4"];
    let stderr = interrupted(&program, &args, |child| {
        wait_for_line(child.stderr.as_mut().unwrap(), "denoise ");
    });
    assert!(!stderr.contains("decode "), "the decode stage ended: {stderr}");
    assert_eq!(program.files(), [""; 0]);
}

#[test]
fn an_interrupt_while_encoding_leaves_complete_outputs_only() {
    // A GIF is encoded once all frames are in its spool, which has a known size then.
    let program = Program::new();
    let frames: u64 = 600;
    let few = ["--num-sampling-steps", "2", "--num-frames", "600", "--image-size", "64", "64"];
    let args = [&[PROMPT, "--output", "a.gif"][..], &few].concat();
    let stderr = interrupted(&program, &args, |child| {
        wait_until(child, || largest_file(&program.path("")) >= frames * 64 * 64 * 3);
    });
    assert!(stderr.contains("nothing was written"), "{stderr}");
    assert_eq!(program.files(), [""; 0]);

    // A video that was complete before stays.
    let few = ["--num-sampling-steps", "1", "--num-frames", "64"];
    let many = ["--num-sample", "20", "--format", "gif"];
    let args = [&[PROMPT][..], &few, &many].concat();
    let stderr = interrupted(&program, &args, |child| {
        wait_until(child, || program.path("samples/sample_0000-0.gif").exists());
    });
    assert!(stderr.contains("complete"), "{stderr}");
    let files = fs::read_dir(program.path("samples")).unwrap();
    let names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    assert!((1..20).contains(&names.len()), "{names:?}");
    assert!(names.iter().all(|name| name.to_string_lossy().ends_with(".gif")), "{names:?}");
}

/// Samples with `args`, waits for a moment of the run and presses Ctrl-C. What the program says from
/// then on; it must end as interrupted.
fn interrupted(program: &Program, args: &[&str], moment: impl FnOnce(&mut Child)) -> String {
    let mut child = program.spawn(&[&["sample"][..], args].concat());
    moment(&mut child);
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{stderr}");
    assert!(stderr.contains("error: interrupted"), "{stderr}");
    stderr
}

/// Reads up to the first line with `text`, byte by byte, so that the rest stays in the pipe.
fn wait_for_line(pipe: &mut impl Read, text: &str) {
    let mut line = Vec::new();
    let mut byte = [0];
    while pipe.read(&mut byte).unwrap() == 1 {
        match byte[0] {
            b'\n' if String::from_utf8_lossy(&line).contains(text) => return,
            b'\n' => line.clear(),
            byte => line.push(byte),
        }
    }
    panic!("the program ended before it said {text:?}");
}

/// Looks until `is_reached`, while the program runs.
fn wait_until(child: &mut Child, is_reached: impl Fn() -> bool) {
    while !is_reached() {
        assert_eq!(child.try_wait().unwrap(), None, "the program ended too early");
    }
}

/// Bytes of the largest file of a folder in which files come and go.
fn largest_file(folder: &Path) -> u64 {
    let sizes = fs::read_dir(folder).unwrap().flatten().filter_map(|entry| entry.metadata().ok());
    sizes.map(|metadata| metadata.len()).max().unwrap_or(0)
}
