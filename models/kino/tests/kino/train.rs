//! `kino train`: runs that are killed, stopped, gone on with and refused, and what they leave.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use media::{Clip, Format, Fps, Metadata};
use training::run_log::{Event, read};

use crate::program::{Program, Ran};

/// A model of a block that is 24 wide, on two frames of 32x32.
pub(crate) const RECIPE: &str = "\
about = \"the smallest run that has everything\"
masks = [{ name = \"identity\", share = 0.5 }, { name = \"image_head\", share = 0.5 }]

[fixed]
frames = 2
height = 32
width = 32
batch = 2

[model]
architecture = \"stdit2-xl\"
dtype = \"f32\"

[model.config]
hidden_size = 24
depth = 1
num_heads = 2
patch_size = [1, 4, 4]
input_sq_size = 32
caption_channels = 128
model_max_length = 6

[data]
frame_interval = 1
transform = \"resize-crop\"
horizontal_flip = true
workers = 2

[loss]
kind = \"iddpm\"
tables = \"f32\"
caption_dropout = 0.2

[optimizer]
lr = 0.001
max_norm = 1.0
ema_decay = 0.9

[schedule]
kind = \"cosine-warmup\"
steps = 5
start = 1e-5

[run]
seed = 7
epochs = 1000
steps = 6
log_every = 1
checkpoint_every = 1
gradient_checkpointing = false
";

/// A program beside a recipe `tiny.toml` and a table `set/table.csv` of five clips.
pub(crate) fn prepared(recipe: &str) -> Program {
    let program = Program::new();
    fs::create_dir(program.path("set")).unwrap();
    let mut table = String::from("path,text,num_frames,height,width,fps\n");
    for row in 0..5usize {
        write_clip(&program.path(format!("set/{row}")), row);
        table += &format!("{row},a zombie runs to the left {row},4,32,32,8\n");
    }
    fs::write(program.path("set/table.csv"), table).unwrap();
    fs::write(program.path("tiny.toml"), recipe).unwrap();
    program
}

/// A folder of four frames.
fn write_clip(path: &Path, row: usize) {
    let rgb: Vec<u8> = (0..4 * 32 * 32 * 3).map(|i| (i * (row + 3) / 7 % 251) as u8).collect();
    let clip = Clip::new(4, 32, 32, &rgb, Fps::new(8, 1).unwrap()).unwrap();
    media::write(path, &clip, &Metadata::new(), Format::Folder).unwrap();
}

pub(crate) fn with_steps(steps: u64) -> String {
    RECIPE.replace("steps = 6\n", &format!("steps = {steps}\n"))
}

/// Arguments of a run into `folder`.
pub(crate) fn train<'a>(folder: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = ["train", "tiny.toml", "--data", "set/table.csv", "--output", folder];
    [&args[..], &["--init", "random", "--threads", "2"], more].concat()
}

pub(crate) fn resume<'a>(folder: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--resume", folder, "--threads", "2"][..], more].concat()
}

/// Every update that the log has: its number, loss, norm and rate, bit for bit.
pub(crate) fn updates(program: &Program, folder: &str) -> Vec<(u64, u32, u32, u64)> {
    let history = read(&program.path(folder)).unwrap();
    let of_step = |event| match event {
        Event::Step(step) => {
            let bits = (step.loss.to_bits(), step.grad_norm.to_bits(), step.lr.to_bits());
            Some((step.step, bits.0, bits.1, bits.2))
        }
        _ => None,
    };
    history.records.into_iter().filter_map(|record| of_step(record.event)).collect()
}

/// Weights of the model, and the newest snapshot.
pub(crate) fn result(program: &Program, folder: &str) -> [Vec<u8>; 2] {
    let run = program.path(folder);
    let newest = fs::read_to_string(run.join("snapshots/latest")).unwrap();
    let files =
        ["model/transformer/model.safetensors".into(), format!("snapshots/{}", newest.trim())];
    files.map(|file: String| fs::read(run.join(file)).unwrap())
}

/// Snapshots that are being written, or were when the process was killed.
fn parts(run: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(run.join("snapshots")) else { return vec![] };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|ending| ending == "part")).collect()
}

fn log_bytes(run: &Path) -> u64 {
    fs::metadata(run.join("log.jsonl")).map_or(0, |found| found.len())
}

/// Waits until `is_reached`, at most a minute; `false` if the program ended before.
pub(crate) fn wait_for(child: &mut Child, is_reached: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !is_reached() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "the moment never came");
    }
    true
}

/// Numbers below `below` that only look random.
fn pseudo_random(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % below
}

/// Kills come anywhere: while features are made, in an update, between two, and while a snapshot is written.
#[test]
fn a_run_that_is_killed_twenty_times_is_the_run_that_never_was() {
    const KILLS: u64 = 20;
    const STEPS: u64 = 96;
    let program = prepared(&with_steps(STEPS));
    let (start, mut whole) = (Instant::now(), program.spawn(&train("whole", &["--quiet"])));
    assert!(wait_for(&mut whole, || log_bytes(&program.path("whole")) > 0));
    let to_start = start.elapsed().as_millis() as u64;
    Ran::of(whole.wait_with_output().unwrap()).done();
    let run = program.path("killed");
    let mut state = 1;
    let (mut n_killed, mut n_while_writing) = (0, 0);
    for kill in 0..KILLS {
        let args = match run.join("run.json").exists() {
            true => resume("killed", &["--quiet"]),
            false => train("killed", &["--quiet"]),
        };
        let (before, mut child) = (log_bytes(&run), program.spawn(&args));
        match kill % 3 {
            // Within what it takes to start.
            0 => thread::sleep(Duration::from_millis(pseudo_random(&mut state, to_start))),
            // Some time after it began to train.
            1 => {
                wait_for(&mut child, || log_bytes(&run) > before);
                thread::sleep(Duration::from_micros(pseudo_random(&mut state, 40_000)));
            }
            // As soon as a snapshot is begun. What the kill before left is swept away first.
            _ => {
                let old = parts(&run);
                wait_for(&mut child, || parts(&run).iter().any(|part| !old.contains(part)));
            }
        }
        child.kill().unwrap();
        n_killed += u64::from(child.wait().unwrap().code().is_none());
        n_while_writing += u64::from(!parts(&run).is_empty());
    }
    assert_eq!(n_killed, KILLS, "the run was over too early for this test");
    assert!(n_while_writing > 0, "no kill came while a snapshot was written");
    program.run(&resume("killed", &["--quiet"])).done();
    assert_eq!(updates(&program, "killed"), updates(&program, "whole"));
    assert_eq!(updates(&program, "whole").len() as u64, STEPS);
    assert!(result(&program, "killed") == result(&program, "whole"), "other weights");
    assert_eq!(parts(&run), Vec::<PathBuf>::new(), "what was half-written is gone");
    // There is nothing left to do.
    program.run(&resume("killed", &["--quiet"])).done();
    assert!(result(&program, "killed") == result(&program, "whole"));
}

#[test]
fn ctrl_c_finishes_the_update_and_tells_how_to_go_on() {
    let program = prepared(&with_steps(100_000));
    let run = program.path("run");
    let mut child = program.spawn(&train("run", &[]));
    let has_updates = || {
        let log = fs::read_to_string(run.join("log.jsonl")).unwrap_or_default();
        log.matches("\"event\":\"step\"").count() >= 3
    };
    assert!(wait_for(&mut child, has_updates));
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let ran = Ran::of(child.wait_with_output().unwrap());
    let ran = ran.failed(130, "go on with: kino train --resume run");
    let done = updates(&program, "run").len() as u64;
    assert!(ran.stderr.contains(&format!("interrupted after update {done}")), "{ran:?}");
    let history = read(&run).unwrap();
    let last = &history.records.last().unwrap().event;
    assert!(matches!(last, Event::Stop(stop) if stop.step == done), "{last:?}");
    // How long a run is may change.
    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    let steps = done + 3;
    let config = config.replace("steps = 100000\n", &format!("steps = {steps}\n"));
    fs::write(run.join("config.toml"), config).unwrap();
    // From any folder.
    let absolute = run.display().to_string();
    let mut command = program.command(&resume(&absolute, &["--json"]));
    let ran = Ran::of(command.current_dir(program.path("set")).output().unwrap()).done();
    let events: Vec<serde_json::Value> =
        ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["event"], "plan");
    assert_eq!(events.iter().filter(|event| event["event"] == "step").count(), 3);
    assert_eq!(events.last().unwrap()["reason"], "finished", "{ran:?}");
    fs::write(program.path("tiny.toml"), with_steps(steps)).unwrap();
    program.run(&train("whole", &["--quiet"])).done();
    assert_eq!(updates(&program, "run"), updates(&program, "whole"));
    assert!(result(&program, "run") == result(&program, "whole"), "other weights");
}

/// Two batches make an update, threads and a limit of memory change nothing, and neither do features that are there.
#[test]
fn what_does_not_decide_a_run_does_not_change_it() {
    let recipe = with_steps(3).replace("ema_decay = 0.9\n", "ema_decay = 0.9\nmicro_batches = 2\n");
    let program = prepared(&recipe);
    let ran = program.run(&train("first", &["--cache", "features"])).done();
    for expected in ["2x32x32 x2", "memory ", "time     unknown", "trained  3 updates"] {
        assert!(ran.stdout.contains(expected), "{expected:?}: {}", ran.stdout);
    }
    assert!(ran.stderr.contains("update 3/3  loss "), "{}", ran.stderr);
    let shards = || fs::read_dir(program.path("features")).unwrap().count();
    let before = shards();
    // One thread needs less scratch than two: the limit is the smallest of that one.
    let again = |memory: &str| {
        let args = ["train", "tiny.toml", "--data", "set/table.csv", "--output", "again"];
        let how = ["--cache", "features", "--memory", memory, "--threads", "1", "--init", "random"];
        program.run(&[&args[..], &how].concat())
    };
    let message = again("1KiB").failed(2, "training needs ").stderr;
    let smallest = message.split_once("allow ").unwrap().1.split(',').next().unwrap();
    let ran = again(smallest).done();
    assert!(!ran.stdout.contains("+0 %"), "nothing is made again: {}", ran.stdout);
    assert_eq!(shards(), before, "features were made again");
    assert!(result(&program, "first") == result(&program, "again"), "other weights");
}

#[test]
fn a_trained_model_is_sampled_and_is_a_start() {
    let validation = "[validation]\nevery = 2\nprompts = [\"a zombie\", \"a fire ant\"]\nsteps = 2\n\
                      cfg_scale = 2.0\nframes = 2\nheight = 32\nwidth = 32\nfps = 8\n\n[run]";
    let program = prepared(&with_steps(4).replace("[run]", validation));
    program.run(&train("run", &["--keep-last", "1", "--keep-every", "2"])).done();
    let names = |folder: &str| {
        let entries = fs::read_dir(program.path(folder)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let file = |step: u32| format!("step-{step:08}.safetensors");
    assert_eq!(names("run/snapshots"), ["latest".into(), file(2), file(4)]);
    let videos = [2, 4].map(|step| {
        [0, 1].map(|i| ["mp4", "sheet.png"].map(|ending| format!("step-{step:08}-{i}.{ending}")))
    });
    assert_eq!(names("run/samples"), videos.as_flattened().as_flattened());
    let history = read(&program.path("run")).unwrap();
    let videos =
        history.records.iter().filter(|record| matches!(record.event, Event::Validation(_)));
    assert_eq!(videos.count(), 4);
    // A sample of the exported model is the last one of the run.
    let sample = [
        "sample",
        "a zombie",
        "--ckpt-path",
        "run/model",
        "--num-sampling-steps",
        "2",
        "--num-frames",
        "2",
        "--image-size",
        "32",
        "32",
        "--fps",
        "8",
        "--cfg-scale",
        "2.0",
        "--seed",
        "7",
        "--output",
        "sample.sheet.png",
    ];
    program.run(&sample).done();
    let frames = |path: &str| {
        let png = media::read_rgba_png(&program.path(path)).unwrap();
        (png.width, png.height, png.rgba)
    };
    assert!(frames("sample.sheet.png") == frames("run/samples/step-00000004-0.sheet.png"));
    let ran = program.run(&["inspect", "run/model"]).done();
    assert!(ran.stdout.contains("STDiT2"), "{}", ran.stdout);
    // The model may be asked for between, and be a start of another run.
    fs::remove_dir_all(program.path("run/model")).unwrap();
    program.run(&resume("run", &["--export"])).done();
    let start = ["--model", "run/model", "--init", "model"];
    let args =
        ["train", "tiny.toml", "--data", "set/table.csv", "--output", "more", "--threads", "2"];
    program.run(&[&args[..], &start].concat()).done();
    assert!(result(&program, "run")[0] != result(&program, "more")[0]);
    assert!(program.path("more/model/vae/config.json").exists());
}

/// The pipeline of the second run has the autoencoder of the first, and what comes of both is sampled.
#[test]
fn an_autoencoder_and_a_transformer_with_its_text_encoder_are_trained_one_after_the_other() {
    let program = prepared(&with_steps(3));
    let section = |name: &str| {
        let rest = RECIPE.split_once(&format!("[{name}]")).unwrap().1;
        format!("[{name}]{}", rest.split_once("\n\n").unwrap().0)
    };
    let images = format!(
        "about = \"images\"\n{}\n\n[model]\narchitecture = \"sd-vae\"\ndtype = \"f32\"\n\n[model.config]\n\
         block_out_channels = [8, 16]\ndown_block_types = [\"DownEncoderBlock2D\", \"DownEncoderBlock2D\"]\n\
         up_block_types = [\"UpDecoderBlock2D\", \"UpDecoderBlock2D\"]\nlayers_per_block = 1\n\
         norm_num_groups = 4\n\n{}\n\n[loss]\nkind = \"reconstruction\"\nl1 = 1.0\nkl = 1e-6\n\n{}\n\n\
         [schedule]\nkind = \"constant\"\n\n[run]\nseed = 3\nepochs = 9\nsteps = 3\nlog_every = 1\n\
         checkpoint_every = 2\ngradient_checkpointing = false\n",
        section("fixed"),
        section("data"),
        section("optimizer")
    );
    fs::write(program.path("images.toml"), images).unwrap();
    let args = ["--data", "set/table.csv", "--init", "random", "--threads", "2"];
    program.run(&[&["train", "images.toml", "--output", "vae"][..], &args].concat()).done();
    assert_eq!(updates(&program, "vae").len(), 3);
    let text = "[text]\narchitecture = \"t5-large\"\n\n[text.config]\nvocab_size = 512\nd_model = 16\nd_kv = 8\n\
                d_ff = 16\nnum_layers = 1\nnum_heads = 2\n\n[loss]";
    let joint = with_steps(3).replace("caption_channels = 128", "caption_channels = 16");
    fs::write(program.path("tiny.toml"), joint.replace("[loss]", text)).unwrap();
    program.run(&train("run", &["--model", "vae/model"])).done();
    let sample = ["sample", "a zombie", "--ckpt-path", "run/model", "--num-sampling-steps", "2"];
    let size = ["--num-frames", "2", "--image-size", "32", "32", "--output", "a.mp4"];
    program.run(&[&sample[..], &size].concat()).done();
    let weights = |path: &str| fs::metadata(program.path(path)).unwrap().len();
    let own = weights("run/model/text_encoder/model.safetensors");
    assert!(own < weights("vae/model/text_encoder/model.safetensors"), "{own} bytes");
}

#[test]
fn files_that_cannot_be_used_are_replaced_and_told() {
    let program = prepared(&with_steps(4));
    let table = fs::read_to_string(program.path("set/table.csv")).unwrap();
    fs::write(program.path("set/notes.txt"), "no video").unwrap();
    fs::create_dir(program.path("set/empty")).unwrap();
    let bad = "notes.txt,a,4,32,32,8\nempty,b,4,32,32,8\nmissing.mp4,c,4,32,32,8\n0,d,0,32,32,8\n";
    fs::write(program.path("set/table.csv"), table + bad).unwrap();
    let ran = program.run(&train("run", &[])).done();
    let history = read(&program.path("run")).unwrap();
    let mut replaced: Vec<String> = vec![];
    for record in history.records {
        if let Event::Replaced(event) = record.event {
            assert!(["0", "1", "2", "3", "4"].contains(&event.by.as_str()), "{event:?}");
            assert!(ran.stderr.contains(&event.path), "{}", ran.stderr);
            replaced.push(event.path);
        }
    }
    replaced.sort();
    replaced.dedup();
    assert_eq!(replaced, ["empty", "missing.mp4", "notes.txt"]);
    // The same ones when there are features already.
    program.run(&train("again", &["--cache", "run/cache", "--quiet"])).done();
    assert!(result(&program, "run") == result(&program, "again"));
}

#[test]
fn requests_that_cannot_be_are_refused_before_anything_is_made() {
    let program = prepared(RECIPE);
    let replaced = |name: &str, old: &str, new: &str| {
        assert!(RECIPE.contains(old), "{old}");
        fs::write(program.path(name), RECIPE.replacen(old, new, 1)).unwrap();
    };
    replaced("long.toml", "frames = 2", "frames = 64");
    replaced("wide.toml", "caption_channels = 128", "caption_channels = 64");
    replaced("many.toml", "batch = 2", "batch = 9");
    replaced("updates.toml", "ema_decay = 0.9\n", "ema_decay = 0.9\nmicro_batches = 9\n");
    replaced("key.toml", "max_norm", "max_nrom");
    fs::write(program.path("set/columns.csv"), "path,text\n0,a\n").unwrap();
    fs::write(program.path("set/names.csv"), "path,caption\n0,a\n").unwrap();
    fs::create_dir(program.path("full")).unwrap();
    fs::write(program.path("full/thesis.tex"), "").unwrap();
    let before = program.files();
    let run = |recipe: &str, table: &str, more: &[&str]| {
        let args = ["train", recipe, "--data", table, "--threads", "2", "--init", "random"];
        let output: &[&str] = if more.contains(&"--output") { &[] } else { &["--output", "run"] };
        program.run(&[&args[..], output, more].concat())
    };
    let table = "set/table.csv";
    run("tiny.toml", "set/columns.csv", &[]).failed(1, "line 2 has no `num_frames`");
    run("tiny.toml", "set/names.csv", &[]).failed(1, "has no column `text`");
    run("tiny.toml", "set/no.csv", &[]).failed(1, "no.csv");
    run("no.toml", table, &[]).failed(1, "no.toml");
    run("tiny-flair", table, &[]).failed(2, "did you mean tiny-flare?");
    run("key.toml", table, &[]).failed(2, "did you mean `max_norm`?");
    let ran = run("long.toml", table, &[]);
    ran.failed(1, "none of 5 videos of its resolution has more than 63 frames");
    run("many.toml", table, &[]).failed(1, "none of its aspects has the 9 of a batch");
    run("updates.toml", table, &[]).failed(2, "an epoch has 2 batches, an update takes 9");
    run("wide.toml", table, &[])
        .failed(2, "caption_channels 64, the encoders of tiny-flare-1.1 give 128");
    run("tiny.toml", table, &["--memory", "9kB"]).failed(2, "--memory 9kB");
    run("tiny.toml", table, &["--memory", "9000"]).failed(2, "training needs ");
    run("tiny.toml", table, &["--model", "set"]).failed(2, "expected a pipeline folder");
    run("tiny.toml", table, &["--output", "full"]).failed(1, "it has `thesis.tex`");
    let args = ["train", "tiny.toml", "--data", table, "--output", "run"];
    program
        .run(&args)
        .failed(1, "do not fit the recipe's model; random weights do (--init random)");
    program.run(&[&args[..], &["--init", "no.pth"]].concat()).failed(1, "no.pth");
    program.run(&["train", "--resume", "set"]).failed(1, "it is not the folder of a run");
    program.run(&["train", "--resume", "nowhere"]).failed(1, "it is not the folder of a run");
    program.run(&["train", "--resume", "set", "--data", table]).failed(2, "cannot be used with");
    program.run(&["train", "tiny.toml"]).failed(2, "--data");
    assert_eq!(program.files(), before);
    // A plan is all that there is to see.
    let plan = ["train", "tiny.toml", "--data", table, "--init", "random", "--plan", "--json"];
    let ran = program.run(&plan).done();
    let plan: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&plan["updates"], &plan["buckets"][0]["batches"]), (&6.into(), &2.into()));
    assert!(plan["peak_bytes"].as_u64().unwrap() > plan["state_bytes"].as_u64().unwrap());
    assert_eq!(program.files(), before);
}

#[test]
fn a_run_goes_on_with_what_it_began_with() {
    let program = prepared(&with_steps(2));
    program.run(&train("run", &["--quiet"])).done();
    program.run(&train("run", &[])).failed(1, "it is the folder of a run already");
    let run = program.path("run");
    let (config, table) = (run.join("config.toml"), program.path("set/table.csv"));
    let (recipe, rows) =
        (fs::read_to_string(&config).unwrap(), fs::read_to_string(&table).unwrap());
    fs::write(
        &config,
        recipe.replace("steps = 2\n", "steps = 4\n").replace("lr = 0.001", "lr = 0.002"),
    )
    .unwrap();
    program.run(&resume("run", &[])).failed(1, "the recipe (config.toml) changed since");
    fs::write(&config, recipe.replace("steps = 2\n", "steps = 4\n")).unwrap();
    fs::write(&table, rows.replace("left 3", "right 3")).unwrap();
    program.run(&resume("run", &[])).failed(1, "the table or its files changed since");
    write_clip(&program.path("set/5"), 5);
    fs::write(&table, rows + "5,a zombie runs to the right,4,32,32,8\n").unwrap();
    program.run(&resume("run", &[])).failed(1, "the table or its files changed since");
    assert_eq!(updates(&program, "run").len(), 2);
    program.run(&resume("run", &["--allow-changes"])).done();
    assert_eq!(updates(&program, "run").len(), 4);
    // What was allowed is what the run is from now on.
    program.run(&resume("run", &[])).done();
    // A run is one process's.
    fs::write(&config, recipe.replace("steps = 2\n", "steps = 100000\n")).unwrap();
    let mut child = program.spawn(&resume("run", &["--allow-changes"]));
    let before = log_bytes(&run);
    assert!(wait_for(&mut child, || log_bytes(&run) != before));
    program.run(&resume("run", &[])).failed(1, "another process trains in it");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_with_its_rows() {
    // The first update throws every weight out of f32's range.
    let recipe =
        with_steps(50).replace("lr = 0.001", "lr = 1e38").replace("start = 1e-5", "start = 0.0");
    let program = prepared(&recipe);
    let ran = program.run(&train("run", &[]));
    let ran = ran.failed(1, " is kept. A lower learning rate");
    assert!(ran.stderr.contains("its batch has line "), "{}", ran.stderr);
    let history = read(&program.path("run")).unwrap();
    let last = &history.records.last().unwrap().event;
    assert!(format!("{last:?}").contains("Failed"), "{last:?}");
    // The snapshot before is whole, and so is the run: it fails the same way again.
    program.run(&resume("run", &["--export"])).done();
    program.run(&resume("run", &[])).failed(1, " is kept. A lower learning rate");
}

/// Writes fail beyond a file size that a snapshot exceeds and nothing else does.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_snapshot_before() {
    let program = prepared(&with_steps(2));
    program.run(&train("whole", &["--quiet"])).done();
    let config = program.path("whole/config.toml");
    fs::write(&config, with_steps(4)).unwrap();
    let before = fs::read(program.path("whole/snapshots/step-00000002.safetensors")).unwrap();
    let limit = before.len() / 1024 / 2;
    let kino = env!("CARGO_BIN_EXE_kino");
    // Without the signal a write beyond the limit is an error.
    let script =
        format!("trap '' XFSZ; ulimit -f {limit}; exec {kino} train --resume whole --threads 2");
    let limited = Command::new("bash").args(["-c", &script]).current_dir(program.path("")).output();
    let ran = Ran::of(limited.unwrap()).failed(1, "step-00000003.safetensors");
    assert!(ran.stderr.contains("File too large"), "{ran:?}");
    let path = program.path("whole/snapshots/step-00000002.safetensors");
    assert!(fs::read(path).unwrap() == before);
    assert_eq!(parts(&program.path("whole")), Vec::<PathBuf>::new());
    program.run(&resume("whole", &["--quiet"])).done();
    assert_eq!(updates(&program, "whole").len(), 4);
}
