//! What a run logs comes back, resuming takes back what came after, and `TensorBoard`'s files are read by rules of
//! their own: frames, checksums and fields are decoded here from their definition, not by the writer's code.
#![expect(clippy::unwrap_used, reason = "an error in a test is a failure of the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tempfile::TempDir;
use training::Error;
use training::run_log::{
    self, BucketPlan, Event, LOG, Replaced, RunLog, Snapshot, Start, Step, Stop, StopReason,
    TENSORBOARD, Validation,
};

fn start(step: u64) -> Event {
    Event::Start(Start {
        step,
        version: "1.2.3".into(),
        recipe: "tiny".into(),
        recipe_text: "about = \"a <recipe>\"\n".into(),
        model: "stdit2".into(),
        params: 3_700_000,
        trained_params: u64::MAX,
        buckets: vec![BucketPlan {
            name: "8x64x64, 4 rows".into(),
            peak_bytes: 1 << 30,
            flops: 4_000_000_000,
            recomputed_flops: 0,
        }],
        steps: 100,
        seed: 42,
        threads: 2,
        limit_gflops: Some(100.0),
    })
}

fn step(step: u64, loss: f32) -> Event {
    Event::Step(Step {
        step,
        epoch: step / 10,
        buckets: vec!["8x64x64, 4 rows".into()],
        loss,
        lr: 1e-4,
        grad_norm: 2.5,
        samples: 4,
        tokens: 1024,
        seconds: 0.5,
        flops: 4_000_000_000,
        data_wait_seconds: 0.125,
        rss_bytes: 1 << 29,
    })
}

fn replaced(step: u64) -> Event {
    let (path, by) = ("clips/a \"b\"\n.mp4".into(), "clips/c.mp4".into());
    Event::Replaced(Replaced { step, path, by, reason: "it is empty".into() })
}

fn snapshot(step: u64) -> Event {
    let file = format!("step-{step:08}.safetensors");
    Event::Snapshot(Snapshot { step, file, bytes: 1000, seconds: 0.25 })
}

/// The log of `events` in a folder of its own.
fn logged(events: &[Event]) -> TempDir {
    let folder = TempDir::new().unwrap();
    let mut log = RunLog::open(folder.path(), None).unwrap();
    for event in events {
        log.write(event).unwrap();
    }
    log.flush().unwrap();
    folder
}

fn events(folder: &Path) -> Vec<Event> {
    run_log::read(folder).unwrap().records.into_iter().map(|record| record.event).collect()
}

#[test]
fn every_event_comes_back_as_it_was_written() {
    let stop = |reason| Event::Stop(Stop { step: 3, reason });
    let written = [
        start(0),
        step(1, 0.1),
        replaced(1),
        step(2, f32::INFINITY),
        step(3, f32::NEG_INFINITY),
        Event::Validation(Validation {
            step: 3,
            prompt: "a \u{1f9df} runs".into(),
            file: "a.mp4".into(),
            frames_png: None,
        }),
        snapshot(3),
        stop(StopReason::Interrupted),
        start(3),
        stop(StopReason::Failed { message: "no \"space\"\nleft".into() }),
        start(3),
        stop(StopReason::Finished),
    ];
    let folder = logged(&written);
    assert_eq!(events(folder.path()), written);
    let text = fs::read_to_string(folder.path().join(LOG)).unwrap();
    assert_eq!(text.lines().count(), written.len());
    assert!(text.lines().all(|line| line.starts_with("{\"time\":")), "{text}");
    // The one value that is not equal to itself.
    let folder = logged(&[start(0), step(1, f32::NAN)]);
    let Event::Step(step) = &events(folder.path())[1] else { panic!("it was a step") };
    assert!(step.loss.is_nan());
}

#[test]
fn a_resumed_log_has_what_happened_up_to_the_snapshot() {
    let written = [start(0), step(1, 3.0), step(2, 2.0), snapshot(2), step(3, 9.0), replaced(3)];
    let folder = logged(&written);
    let before = fs::read(folder.path().join(LOG)).unwrap();
    let mut log = RunLog::open(folder.path(), Some(2)).unwrap();
    log.write(&start(2)).unwrap();
    log.write(&step(3, 1.0)).unwrap();
    let expected = [&written[..4], &[start(2), step(3, 1.0)]].concat();
    assert_eq!(events(folder.path()), expected);
    let after = fs::read(folder.path().join(LOG)).unwrap();
    let kept = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
    let n_lines = before[..kept].iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(n_lines, 4, "what stays keeps its bytes");
    // From the beginning again.
    let mut log = RunLog::open(folder.path(), Some(0)).unwrap();
    log.write(&step(1, 5.0)).unwrap();
    assert_eq!(events(folder.path()), [start(0), step(1, 5.0)]);
}

#[test]
fn a_line_that_was_not_finished_is_dropped() {
    let folder = logged(&[start(0), step(1, 3.0), step(2, 2.0)]);
    let path = folder.path().join(LOG);
    let whole = fs::read(&path).unwrap();
    let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for end in second..whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        let n_lines = whole[..end].iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(events(folder.path()).len(), n_lines, "{end} bytes");
    }
    let mut log = RunLog::open(folder.path(), Some(2)).unwrap();
    log.write(&step(2, 7.0)).unwrap();
    assert_eq!(events(folder.path()), [start(0), step(1, 3.0), step(2, 7.0)]);
}

#[test]
fn a_new_run_does_not_write_into_the_log_of_another() {
    let folder = logged(&[start(0)]);
    let error = RunLog::open(folder.path(), None).unwrap_err().to_string();
    assert!(error.contains("log.jsonl: it is the log of a run already: resume that"), "{error}");
    assert_eq!(events(folder.path()), [start(0)]);
    // A run that was killed before it said anything is none.
    fs::write(folder.path().join(LOG), "{\"time\":").unwrap();
    RunLog::open(folder.path(), None).unwrap().write(&start(0)).unwrap();
    assert_eq!(events(folder.path()), [start(0)]);
}

#[test]
fn steps_never_go_back() {
    let folder = TempDir::new().unwrap();
    let mut log = RunLog::open(folder.path(), None).unwrap();
    let mut refused = |event: &Event| log.write(event).unwrap_err().to_string();
    assert!(refused(&step(1, 1.0)).contains("a log begins with a start"));
    let mut log = RunLog::open(folder.path(), None).unwrap();
    log.write(&start(0)).unwrap();
    log.write(&step(5, 1.0)).unwrap();
    log.write(&snapshot(5)).unwrap();
    let mut refused = |event: &Event| log.write(event).unwrap_err().to_string();
    assert!(refused(&snapshot(4)).contains("an event of step 4 after one of step 5"));
    assert!(refused(&step(5, 1.0)).contains("update 5 after update 5"));
    assert_eq!(events(folder.path()).len(), 3);
}

#[test]
fn a_broken_line_is_named() {
    let folder = logged(&[start(0), step(1, 3.0), step(2, 2.0)]);
    let path = folder.path().join(LOG);
    let whole = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    for (changed, message) in [
        (whole.replacen("\"loss\":3.0", "\"loss\":three", 1), "line 2: expected ident at column"),
        (
            whole.replacen("\"loss\":3.0", "\"loss\":\"3.0\"", 1),
            "line 2: `3.0`, expected a number, NaN, inf or -inf",
        ),
        (
            whole.replacen("\"event\":\"step\"", "\"event\":\"leap\"", 1),
            "line 2: unknown variant `leap`",
        ),
        (whole.replace("\"lr\":0.0001,", ""), "line 2: missing field `lr`"),
        (
            whole.replace("\"seconds\":0.5", "\"seconds\":-1"),
            "line 2: update 1 took a negative time",
        ),
        (format!("{}\n{}\n", lines[1], lines[0]), "line 1: a log begins with a start"),
        (
            [lines[0], lines[2], lines[1], ""].join("\n"),
            "line 3: an event of step 1 after one of step 2",
        ),
        ([lines[0], lines[1], lines[1], ""].join("\n"), "line 3: update 1 after update 1"),
        (format!("{whole}\n"), "line 4: EOF while parsing a value"),
    ] {
        assert_ne!(changed, whole, "{message}");
        fs::write(&path, &changed).unwrap();
        for error in [
            run_log::read(folder.path()).unwrap_err(),
            RunLog::open(folder.path(), Some(1)).unwrap_err(),
        ] {
            assert!(matches!(error, Error::RunLog { .. }), "{error:?}");
            assert!(error.to_string().contains(message), "{error}\nis not\n{message}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), changed, "it was left alone");
    }
    let error = run_log::read(&folder.path().join("nowhere")).unwrap_err().to_string();
    assert!(error.contains("the folder is not that of a run"), "{error}");
}

/// One event of `TensorBoard`, as far as it is written here.
#[derive(Debug, Default)]
struct Seen {
    wall_time: f64,
    step: u64,
    version: Option<String>,
    is_start: bool,
    scalars: Vec<(String, f32)>,
    /// Tag, height, width, file.
    images: Vec<(String, [u64; 2], Vec<u8>)>,
    /// Tag, plugin, text.
    texts: Vec<(String, String, String)>,
}

/// The fields of a message: number, and either an integer's bits or bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return value;
            }
        }
        panic!("a varint has at most ten bytes");
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let (field, wire) = (key >> 3, key & 7);
        let n_bytes = match wire {
            0 => {
                fields.push((field, varint(&mut bytes), vec![]));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (value, rest) = bytes.split_at(n_bytes);
        fields.push((field, 0, value.to_vec()));
        bytes = rest;
    }
    fields
}

/// The field of a number, which is there once.
fn only(bytes: &[u8], number: u64) -> Vec<u8> {
    let found: Vec<_> = fields(bytes).into_iter().filter(|field| field.0 == number).collect();
    assert_eq!(found.len(), 1, "field {number}");
    found[0].2.clone()
}

fn utf8(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// CRC-32C bit by bit: the remainder of the message's bits, the lowest first.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for bit in bytes.iter().flat_map(|byte| (0..8).map(move |bit| u32::from(byte >> bit & 1))) {
        let is_odd = (crc ^ bit) & 1 == 1;
        crc = (crc >> 1) ^ if is_odd { 0x82f6_3b78 } else { 0 };
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Every event of a file.
fn seen_in(path: &Path) -> Vec<Seen> {
    let bytes = fs::read(path).unwrap();
    let mut rest = bytes.as_slice();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(rest[8..12], masked_crc(&rest[..8]).to_le_bytes());
        let event = &rest[12..12 + length];
        assert_eq!(rest[12 + length..16 + length], masked_crc(event).to_le_bytes());
        rest = &rest[16 + length..];
        let mut seen = Seen::default();
        for (field, number, value) in fields(event) {
            match field {
                1 => seen.wall_time = f64::from_le_bytes(value.try_into().unwrap()),
                2 => seen.step = number,
                3 => seen.version = Some(utf8(&value)),
                5 => fields(&value).into_iter().for_each(|value| see(&mut seen, &value.2)),
                7 => seen.is_start = fields(&value) == [(1, 1, vec![])],
                other => panic!("field {other} of an event"),
            }
        }
        all.push(seen);
    }
    all
}

/// Adds a value of a summary.
fn see(seen: &mut Seen, value: &[u8]) {
    let tag = utf8(&only(value, 1));
    for (field, _, content) in fields(value) {
        match field {
            1 | 9 => {}
            2 => {
                let number = f32::from_le_bytes(content.try_into().unwrap());
                seen.scalars.push((tag.clone(), number));
            }
            4 => {
                let size = [1, 2].map(|number| {
                    fields(&content).into_iter().find(|field| field.0 == number).unwrap().1
                });
                seen.images.push((tag.clone(), size, only(&content, 4)));
            }
            8 => {
                let plugin = utf8(&only(&only(&only(value, 9), 1), 1));
                seen.texts.push((tag.clone(), plugin, utf8(&only(&content, 8))));
            }
            other => panic!("field {other} of a value"),
        }
    }
}

/// Curves of a folder as `TensorBoard` joins them: files in the order of their names, and a start drops what came at
/// its step and later.
fn curves(folder: &Path) -> BTreeMap<String, Vec<(u64, f32)>> {
    let entries = fs::read_dir(folder.join(TENSORBOARD)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut curves: BTreeMap<String, Vec<(u64, f32)>> = BTreeMap::new();
    for path in paths {
        let events = seen_in(&path);
        assert_eq!(events[0].version.as_deref(), Some("brain.Event:2"));
        for event in events {
            if event.is_start {
                curves.values_mut().for_each(|curve| curve.retain(|point| point.0 < event.step));
            }
            for (tag, value) in event.scalars {
                curves.entry(tag).or_default().push((event.step, value));
            }
        }
    }
    curves
}

#[test]
fn tensorboard_gets_every_number_of_an_update() {
    let folder = logged(&[start(0), step(1, 3.0), replaced(1), step(2, f32::NAN), snapshot(2)]);
    let curves = curves(folder.path());
    let expected = [
        ("epoch", 0.0),
        ("gradient_norm", 2.5),
        ("learning_rate", 1e-4),
        ("memory/resident_bytes", (1 << 29) as f32),
        ("speed/data_wait_seconds", 0.125),
        ("speed/samples_per_second", 8.0),
        // 4 GFLOP in half a second of 100 GFLOP/s.
        ("speed/share_of_limit", 0.08),
        ("speed/step_seconds", 0.5),
        ("speed/tokens_per_second", 2048.0),
    ];
    for (tag, value) in expected {
        assert_eq!(curves[tag], [(1, value), (2, value)], "{tag}");
    }
    assert_eq!(curves["loss"][0], (1, 3.0));
    assert!(curves["loss"][1].1.is_nan());
    assert_eq!(curves.len(), expected.len() + 1);
}

#[test]
fn tensorboard_sees_one_curve_of_a_run_that_was_resumed() {
    let folder = logged(&[start(0), step(1, 5.0), step(2, 4.0), step(3, 99.0), step(4, 99.0)]);
    // Both within the second of the first start.
    for (after, loss) in [(2, 3.0), (3, 2.0)] {
        let mut log = RunLog::open(folder.path(), Some(after)).unwrap();
        log.write(&start(after)).unwrap();
        log.write(&step(after + 1, loss)).unwrap();
        log.write(&step(after + 2, loss + 90.0)).unwrap();
    }
    let losses = &curves(folder.path())["loss"];
    assert_eq!(*losses, [(1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0), (5, 92.0)]);
    let names = fs::read_dir(folder.path().join(TENSORBOARD)).unwrap();
    let names: Vec<_> = names.map(|name| name.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "a file for each start: {names:?}");
    let is_found = |name: &std::ffi::OsString| name.to_str().unwrap().contains(".tfevents.");
    assert!(names.iter().all(is_found), "{names:?}");
}

#[test]
fn tensorboard_gets_the_recipe_and_samples() {
    let folder = TempDir::new().unwrap();
    // A header is all that is looked at: 513 x 65.
    let png =
        [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x02\x01\0\0\0\x41".as_slice(), &[7; 200]].concat();
    fs::write(folder.path().join("frames.png"), &png).unwrap();
    let validation = |file: &str| {
        Event::Validation(Validation {
            step: 7,
            prompt: "a zombie runs".into(),
            file: "a.mp4".into(),
            frames_png: Some(file.into()),
        })
    };
    let mut log = RunLog::open(folder.path(), None).unwrap();
    log.write(&start(0)).unwrap();
    log.write(&validation("frames.png")).unwrap();
    let entry = fs::read_dir(folder.path().join(TENSORBOARD)).unwrap().next().unwrap();
    let seen = seen_in(&entry.unwrap().path());
    let [version, recipe, sample] = &seen[..] else { panic!("{seen:?}") };
    assert!(version.wall_time > 1.6e9 && recipe.wall_time >= version.wall_time);
    let text = "```toml\nabout = \"a <recipe>\"\n\n```";
    assert_eq!(recipe.texts, [("recipe".to_string(), "text".to_string(), text.to_string())]);
    assert_eq!(sample.step, 7);
    assert_eq!(sample.images, [("validation/a zombie runs".to_string(), [65, 513], png)]);
    fs::write(folder.path().join("bad.png"), "GIF89a").unwrap();
    let error = log.write(&validation("bad.png")).unwrap_err().to_string();
    assert!(error.contains("bad.png: it is no PNG"), "{error}");
    assert!(matches!(log.write(&validation("gone.png")), Err(Error::File { .. })));
    assert_eq!(events(folder.path()).len(), 2, "what is refused is not logged");
}
