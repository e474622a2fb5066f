//! A small classifier on clips of made-up art: it learns, its file is the classifier, and threads change nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use judge::augment::augment;
use judge::classifier::{Classifier, Machine, Settings};
use judge::clips::{Clip, RoundTrip, draw, psnr};
use judge::draws::{Draws, Purpose};
use judge::generator::{Generator, Sampling, open};
use judge::labels::{HEADS, Head, Subjects, mirrored};
use judge::network::Network;
use judge::report::{FirstFrames, Judged};
use judge::sheet::{self, Section};
use kernels::{Isa, Pool, Target};
use runtime::Cpu;

const ART: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/data/tests/fixtures/flare/art");
const EMBEDDED: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/kino/embedded/tiny-flare-1.1");

const SETTINGS: Settings = Settings {
    network: Network { width: 32, heads: 2, space_blocks: 1, time_blocks: 1 },
    steps: 60,
    rows: 8,
    lr: 4e-3,
    seed: 42,
};

fn target(threads: usize) -> Target {
    Target {
        isa: Isa::detect(),
        threads,
        l1_bytes: 48 << 10,
        l2_bytes: 1 << 20,
        l3_bytes: 32 << 20,
        gpu: None,
        tiles: None,
    }
}

fn cpu(threads: usize) -> Cpu {
    Cpu::new(Arc::new(Pool::new(threads).unwrap()))
}

fn clips() -> Vec<Clip> {
    let creatures = ["goblin", "zombie", "skeleton"].map(String::from);
    let subjects = Subjects::new(&creatures, 4).unwrap();
    draw(Path::new(ART), subjects.all(), 2).unwrap()
}

/// A classifier after `steps` steps, and the loss of each.
fn trained(clips: &[Clip], threads: usize, steps: u64) -> (Classifier, Vec<f32>) {
    let (target, backend) = (target(threads), cpu(threads));
    let example = |step: u64, row: usize, out: &mut [f32]| {
        let mut draws = Draws::new(1, Purpose::Augmentation, [step, row as u64]);
        let clip = &clips[draws.below(clips.len())];
        match augment(&clip.pixels, &mut draws, out) {
            true => mirrored(clip.subject),
            false => clip.subject,
        }
    };
    let mut losses = Vec::new();
    let machine = Machine { target: &target, backend: &backend };
    let settings = Settings { steps, ..SETTINGS };
    let mut on_step = |_: u64, loss: f32| losses.push(loss);
    let classifier = Classifier::train(&settings, machine, &example, &mut on_step).unwrap();
    (classifier, losses)
}

#[test]
fn a_small_classifier_learns_what_clips_show() {
    let clips = clips();
    let (mut classifier, losses) = trained(&clips, 2, SETTINGS.steps);
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let (first, last) = (mean(&losses[..5]), mean(&losses[losses.len() - 10..]));
    // 6.5 nats are a guess of four heads.
    assert!((5.0..9.0).contains(&first), "{losses:?}");
    assert!(last < 0.75 * first, "{losses:?}");

    let (target, backend) = (target(2), cpu(2));
    let machine = Machine { target: &target, backend: &backend };
    let pixels = || clips.iter().map(|clip| &clip.pixels[..]);
    let verdicts = classifier.judge(machine, pixels()).unwrap();
    let judged = Judged {
        title: "training".into(),
        verdicts: clips.iter().map(|clip| clip.subject).zip(verdicts.clone()).collect(),
    };
    assert!(judged.agreement(Head::Ground).share() > 0.8, "{:?}", judged.confusion(Head::Ground));
    for head in HEADS {
        for verdict in &verdicts {
            let sum: f32 = verdict.probabilities(head).iter().sum();
            assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        }
        let counted: usize = judged.confusion(head).concat().iter().sum();
        assert_eq!(counted, clips.len());
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("judge.safetensors");
    classifier.note("clips", clips.len().to_string());
    classifier.save(&path).unwrap();
    let read = Classifier::open(&path).unwrap();
    assert!(read == classifier, "the file holds another classifier");
    assert!(read.judge(machine, pixels()).unwrap() == verdicts);
    fs::write(&path, b"no classifier").unwrap();
    assert!(Classifier::open(&path).is_err());
    let vae = Path::new(EMBEDDED).join("vae/diffusion_pytorch_model.safetensors");
    let error = Classifier::open(&vae).unwrap_err().to_string();
    assert!(error.contains("no classifier of this version"), "{error}");
}

#[test]
fn threads_do_not_change_a_classifier() {
    let clips = clips();
    assert!(trained(&clips, 1, 3) == trained(&clips, 2, 3));
}

/// Clips of the embedded model, one after a real first frame, on a sheet.
#[test]
fn clips_of_a_model_are_sampled_continued_and_shown() {
    let (target, backend) = (target(2), cpu(2));
    let machine = Machine { target: &target, backend: &backend };
    let model = open(Path::new(EMBEDDED)).unwrap();
    let sampling = |rows| Sampling { steps: Some(2), cfg_scale: None, seed: 3, rows };
    let generator = Generator::new(&model, machine, sampling(2)).unwrap();
    assert_eq!(generator.settings, (2, 2.0));
    let clips = clips();
    let some = [clips[70].clone(), clips[100].clone(), clips[101].clone()];
    let subjects = some.each_ref().map(|clip| clip.subject);
    let mut done = Vec::new();
    let made = generator.clips(&subjects, &mut |n| done.push(n)).unwrap();
    assert_eq!((made.len(), done), (3, vec![2, 3]));
    let alone = Generator::new(&model, machine, sampling(1)).unwrap();
    assert!(alone.clips(&subjects[..1], &mut |_| {}).unwrap()[..] == made[..1], "batches matter");

    let continued = generator.continued(&some, &mut |_| {}).unwrap();
    let kept = FirstFrames::of(&continued);
    // The last step, at no noise, goes over given frames too.
    assert!(kept.latent_error < 0.2, "the first latents are not those given: {kept:?}");
    let mut round_trip = RoundTrip::new(&model, &backend, &target).unwrap();
    let frame = |clip: &Clip| judge::clips::frame_rgb(&clip.pixels, 0);
    for (real, one) in some.iter().zip(&continued) {
        let passed = round_trip.run(real, 0.0, 0, 0).unwrap();
        let best = psnr(&frame(&passed), &frame(real));
        assert!((one.psnr - best).abs() < 2.0, "{} dB, the autoencoder leaves {best}", one.psnr);
        let noisy = round_trip.run(real, 0.5, 0, 0).unwrap();
        assert!(psnr(&frame(&noisy), &frame(&passed)) < 40.0, "noise has no effect");
    }

    let (classifier, _) = trained(&clips, 2, 1);
    let verdicts = classifier.judge(machine, made.iter().map(|clip| &clip.pixels[..])).unwrap();
    let shown: Vec<_> = made.into_iter().zip(verdicts).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sheet.png");
    sheet::write(&path, &[Section { title: "embedded", clips: &shown }]).unwrap();
    let picture = media::read_rgba_png(&path).unwrap();
    assert_eq!(picture.width, 8 * 64 * 2 + 16);
    assert!(picture.height > 3 * 128 && picture.height < 3 * 200, "{}", picture.height);
}
