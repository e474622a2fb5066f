//! `judge`: counts what of their prompts the clips of models show. See the library for how.
#![allow(clippy::print_stdout, reason = "a program says what it finds")]
#![allow(clippy::print_stderr, reason = "and how far it is")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use data::flare;
use judge::augment::augment;
use judge::classifier::{Classifier, Machine, Settings, Verdict};
use judge::clips::{self, Clip, RoundTrip};
use judge::draws::{Draws, Purpose};
use judge::generator::{self, Continued, Generator, Sampling};
use judge::labels::{Subjects, mirrored};
use judge::network::Network;
use judge::report::{FirstFrames, Judged, ModelReport, Report};
use judge::sheet::{self, Section};
use kernels::{Isa, Pool, Target};
use runtime::Cpu;

/// The model in the program `kino`, whose autoencoder the classifier learns to see through.
const EMBEDDED: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/kino/embedded/tiny-flare-1.1");
/// What it knows.
const EMBEDDED_CREATURES: [&str; 4] = ["zombie", "minotaur", "fire ant", "hobgoblin"];

/// Share of the clips of a batch that an autoencoder has been at.
const DECODED: f64 = 0.6;
/// Of real clips, each so manyth goes through it; grounds come in fours.
const DECODED_EVERY: usize = 3;
/// Of those, how many had noise in their latents, and its largest deviation.
const LATENT_NOISY: f64 = 0.6;
const LATENT_NOISE: f64 = 0.3;
/// Highest learning rate of the classifier.
const LEARNING_RATE: f64 = 2e-3;

/// Counts by a classifier what of their prompts the clips of models show.
#[derive(Parser, Debug)]
#[command(name = "judge", max_term_width = 100)]
struct Options {
    /// A pipeline folder; may be given several times [default: the embedded model]
    #[arg(long, value_name = "FOLDER")]
    model: Vec<PathBuf>,
    /// The classifier: read if it is there, else trained and written
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Folder with the mods of the Flare game [default: where the package flare-game installs them]
    #[arg(long, value_name = "FOLDER")]
    flare: Option<PathBuf>,
    /// Steps that the classifier is trained for
    #[arg(long, value_name = "N", default_value_t = 3000)]
    steps: u64,
    /// Clips in a step of training
    #[arg(long, value_name = "N", default_value_t = 16)]
    rows: usize,
    /// Clips that are sampled of each model; 0 for none
    #[arg(long, value_name = "N", default_value_t = 200)]
    clips: usize,
    /// Clips of which the first frame is given besides; 0 for none
    #[arg(long, value_name = "N", default_value_t = 48)]
    given: usize,
    /// Creatures of prompts [default: those that the embedded model knows]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    creatures: Vec<String>,
    /// Directions of prompts: 8, or the 4 that are not diagonal
    #[arg(long, value_name = "N", default_value_t = 4)]
    directions: usize,
    /// Seed of prompts, noise and training
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Steps of the sampler [default: as the model's folder says]
    #[arg(long, value_name = "N")]
    num_sampling_steps: Option<usize>,
    /// Guidance scale [default: as the model's folder says]
    #[arg(long, value_name = "SCALE")]
    cfg_scale: Option<f64>,
    /// Clips that are sampled at once; does not change them
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    /// Write some clips of each model with their verdicts as a PNG
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Clips of each model on the sheet
    #[arg(long, value_name = "N", default_value_t = 12)]
    sheet_clips: usize,
    /// Threads; do not change a number [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
    /// Do not say how far it is
    #[arg(long, short)]
    quiet: bool,
}

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(message) => {
            let _ = message.print();
            return ExitCode::from(u8::from(message.use_stderr()) * 2);
        }
    };
    match run(&options) {
        Ok(text) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            let is_usage = error.downcast_ref::<data::Error>().is_some_and(data::Error::is_usage);
            ExitCode::from(if is_usage { 2 } else { 1 })
        }
    }
}

/// Does what is asked for; what is said of it.
fn run(options: &Options) -> Result<String> {
    let creatures = match options.creatures.is_empty() {
        true => EMBEDDED_CREATURES.map(String::from).to_vec(),
        false => options.creatures.iter().map(|name| name.trim().to_owned()).collect(),
    };
    let asked = Subjects::new(&creatures, options.directions)?;
    let art = flare::find_art(options.flare.as_deref())?;
    if let Some(path) = &options.sheet {
        media::check_writable(path, media::Format::Png)?;
    }
    let target = target(options.threads)?;
    let pool = Pool::new(target.threads).context("cannot start threads")?;
    let backend = Cpu::new(Arc::new(pool));
    let machine = Machine { target: &target, backend: &backend };
    let watch = Progress { is_quiet: options.quiet };

    let start = Instant::now();
    let every = Subjects::new(&[], flare::DIRECTIONS.len())?;
    let real = clips::draw(&art, every.all(), target.threads)?;
    watch.say(&format!("drawn: {} clips", real.len()), start);
    let (held_out, seen): (Vec<Clip>, Vec<Clip>) =
        real.into_iter().partition(|clip| every.is_held_out(clip.subject));
    let embedded = generator::open(Path::new(EMBEDDED))?;
    let mut round_trip = RoundTrip::new(&embedded, &backend, &target)?;
    let classifier = classifier(options, machine, &seen, &mut round_trip, &watch)?;

    let judge_all = |title: &str, clips: &[Clip]| -> Result<Judged> {
        let found = classifier.judge(machine, clips.iter().map(|clip| &clip.pixels[..]))?;
        let verdicts = clips.iter().map(|clip| clip.subject).zip(found).collect();
        Ok(Judged { title: title.to_owned(), verdicts })
    };
    let passed: Vec<Clip> =
        held_out.iter().map(|clip| round_trip.run(clip, 0.0, 0, 0)).collect::<Result<_>>()?;
    let mut report = Report {
        n_parameters: classifier.n_parameters(),
        about: classifier.about().clone().into_iter().collect(),
        held_out: vec![
            judge_all("real, poses it was not trained with", &held_out)?,
            judge_all("  through the embedded model's VAE", &passed)?,
        ],
        chance: Report::chance_of(&asked),
        models: Vec::new(),
    };
    drop(round_trip);

    let own = [PathBuf::from(EMBEDDED)];
    let is_own = options.model.is_empty();
    let paths = if is_own { &own[..] } else { &options.model[..] };
    let mut shown: Vec<(String, Vec<(Clip, Verdict)>)> = Vec::new();
    for path in paths.iter().filter(|_| options.clips + options.given > 0) {
        let model = generator::open(path)?;
        let name = match is_own {
            true => format!("embedded {}", model.name),
            false => path.display().to_string(),
        };
        let sampling = Sampling {
            steps: options.num_sampling_steps,
            cfg_scale: options.cfg_scale,
            seed: options.seed,
            rows: options.batch_size,
        };
        let generator = Generator::new(&model, machine, sampling)?;
        let mut of_model = ModelReport {
            name: name.clone(),
            settings: generator.settings,
            judged: Vec::new(),
            first_frames: None,
        };
        if options.clips > 0 {
            let start = Instant::now();
            let subjects = asked.balanced(options.clips, options.seed)?;
            let each =
                |n: usize| watch.say(&format!("{name}: {n} of {} clips", subjects.len()), start);
            let clips = generator.clips(&subjects, &mut { each })?;
            let judged = judge_all(&name, &clips)?;
            let verdicts = judged.verdicts.iter().map(|(_, verdict)| verdict.clone());
            let some = clips.into_iter().zip(verdicts).take(options.sheet_clips);
            shown.push((name.clone(), some.collect()));
            of_model.judged.push(judged);
        }
        if options.given > 0 {
            let start = Instant::now();
            let subjects = asked.balanced(options.given, options.seed)?;
            let given = clips::draw(&art, &distinct(&subjects), target.threads)?;
            let of = |subject: &flare::Subject| {
                given.iter().find(|clip| clip.subject == *subject).cloned()
            };
            let given: Vec<Clip> = subjects.iter().filter_map(of).collect();
            let each =
                |n: usize| watch.say(&format!("{name}: {n} of {} continued", given.len()), start);
            let continued = generator.continued(&given, &mut { each })?;
            let clips: Vec<Clip> =
                continued.iter().map(|one: &Continued| one.clip.clone()).collect();
            of_model.judged.push(judge_all("  with the first frame given", &clips)?);
            of_model.first_frames = Some(FirstFrames::of(&continued));
        }
        report.models.push(of_model);
    }
    if let Some(path) = &options.sheet {
        let sections: Vec<Section<'_>> =
            shown.iter().map(|(title, clips)| Section { title, clips }).collect();
        sheet::write(path, &sections)?;
    }
    Ok(if options.json { format!("{:#}", report.to_json()) } else { report.to_text() })
}

/// Each subject once, grouped by creature, as they are drawn.
fn distinct(subjects: &[flare::Subject]) -> Vec<flare::Subject> {
    let mut distinct: Vec<flare::Subject> = Vec::new();
    for subject in subjects {
        if !distinct.contains(subject) {
            distinct.push(*subject);
        }
    }
    distinct.sort_by_key(|subject| subject.creature);
    distinct
}

/// The classifier of the file, or a new one.
fn classifier(
    options: &Options,
    machine: Machine<'_>,
    seen: &[Clip],
    round_trip: &mut RoundTrip<'_>,
    watch: &Progress,
) -> Result<Classifier> {
    if let Some(path) = options.weights.as_ref().filter(|path| path.exists()) {
        return Classifier::open(path);
    }
    let start = Instant::now();
    let seed = options.seed;
    let mut decoded = Vec::with_capacity(seen.len());
    for (number, clip) in (0u64..).zip(seen.iter().step_by(DECODED_EVERY)) {
        let mut draws = Draws::new(seed, Purpose::LatentNoise, [number, 0]);
        let is_noisy = draws.happens(LATENT_NOISY);
        let strength = if is_noisy { draws.between(0.0, LATENT_NOISE) } else { 0.0 };
        decoded.push(round_trip.run(clip, strength, seed, number)?);
    }
    watch.say(&format!("decoded: {} clips", decoded.len()), start);
    let example = |step: u64, row: usize, out: &mut [f32]| {
        let mut draws = Draws::new(seed, Purpose::Augmentation, [step, row as u64]);
        let clips = if draws.happens(DECODED) { &decoded[..] } else { seen };
        let clip = &clips[draws.below(clips.len())];
        match augment(&clip.pixels, &mut draws, out) {
            true => mirrored(clip.subject),
            false => clip.subject,
        }
    };
    let settings = Settings {
        network: Network::default(),
        steps: options.steps,
        rows: options.rows,
        lr: LEARNING_RATE,
        seed,
    };
    let start = Instant::now();
    let mut losses = Vec::new();
    let mut on_step = |step: u64, loss: f32| {
        losses.push(loss);
        if (step + 1).is_multiple_of(50) || step + 1 == options.steps {
            let mean = losses.iter().sum::<f32>() / losses.len() as f32;
            losses.clear();
            watch.say(&format!("step {} of {}: loss {mean:.3}", step + 1, options.steps), start);
        }
    };
    let classifier = Classifier::train(&settings, machine, &example, &mut on_step)?;
    if let Some(path) = &options.weights {
        classifier.save(path)?;
    }
    Ok(classifier)
}

/// What plans are made for: this CPU, with caches of usual sizes, which affect speed only.
fn target(threads: Option<usize>) -> Result<Target> {
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = threads.unwrap_or(available);
    ensure!((1..=1024).contains(&threads), "--threads {threads}; expected 1 to 1024");
    Ok(Target {
        isa: Isa::detect(),
        threads,
        l1_bytes: 48 << 10,
        l2_bytes: 1 << 20,
        l3_bytes: 32 << 20,
        gpu: None,
        tiles: None,
    })
}

/// Says how far it is, on standard error.
struct Progress {
    is_quiet: bool,
}

impl Progress {
    fn say(&self, what: &str, start: Instant) {
        if !self.is_quiet {
            eprintln!("{what} ({:.1} s)", start.elapsed().as_secs_f64());
        }
    }
}
