//! The Flare data set, from made-up art whose clips Pillow has made too.
//!
//! `fixtures/flare/art` has three figures, of which one grows, one shrinks, and one shrinks by more than a half;
//! the strips beside it are clips of theirs, frame by frame from the left, as the first data set's own code
//! makes them with Pillow.

#![allow(clippy::unwrap_used, reason = "the functions shared by tests are tests too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use data::flare::{ClipFormat, N_FRAMES, SIDE, SetSettings, write_set};
use data::{BucketFile, Error, Survey, Table, check_files};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/flare");
static NEVER: AtomicBool = AtomicBool::new(false);

fn settings(creatures: &[&str], format: ClipFormat) -> SetSettings {
    let creatures = creatures.iter().map(ToString::to_string).collect();
    SetSettings { creatures, n_directions: 4, format }
}

/// Every file below a folder with its bytes, by name.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push((
                    path.strip_prefix(folder).unwrap().to_owned(),
                    fs::read(&path).unwrap(),
                ));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn clips_are_pillows_to_the_byte_and_can_be_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("set");
    let art = Path::new(FIXTURES).join("art");
    let settings = settings(&["goblin", "zombie", "skeleton"], ClipFormat::Folder);
    let written = write_set(&art, &out, &settings, 2, &NEVER, |_, _| {}).unwrap();
    assert_eq!(written.n_train + written.n_held_out, 192);
    let mut n_strips = 0;
    for entry in fs::read_dir(FIXTURES).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        n_strips += 1;
        let strip = media::read_rgba_png(&path).unwrap();
        assert_eq!((strip.height, strip.width), (SIDE, SIDE * N_FRAMES));
        for t in 0..N_FRAMES {
            let name =
                format!("clips/{}/frame_{t:04}.png", path.file_stem().unwrap().to_str().unwrap());
            let frame = media::read_rgba_png(&out.join(&name)).unwrap();
            for y in 0..SIDE {
                let at = (y * strip.width + t * SIDE) * 4;
                let expected = &strip.rgba[at..at + SIDE * 4];
                assert_eq!(&frame.rgba[y * SIDE * 4..][..SIDE * 4], expected, "{name} row {y}");
            }
        }
    }
    assert_eq!(n_strips, 6);

    let table = Table::read(&out.join("train.csv"), Some(&out)).unwrap();
    assert_eq!(table.rows().len(), written.n_train);
    assert_eq!(check_files(&table, 2, &NEVER, |_| {}).unwrap(), []);
    let BucketFile { buckets, frame_interval } =
        BucketFile::read(&out.join("buckets.toml")).unwrap();
    let survey = Survey::new(&buckets, &table.sizes().unwrap(), frame_interval, [42, 0]);
    assert!(survey.left_out.is_empty(), "{survey}");
    let held_out = Table::read(&out.join("held_out.csv"), None).unwrap();
    assert_eq!(held_out.rows().len(), written.n_held_out);
    assert!(fs::read_to_string(out.join("README.md")).unwrap().contains("CC-BY-SA"));
}

#[test]
fn a_set_is_the_same_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let art = Path::new(FIXTURES).join("art");
    let make = |name: &str, n_threads: usize| {
        let out = folder.path().join(name);
        let most = AtomicUsize::new(0);
        let settings = settings(&["zombie", "goblin"], ClipFormat::Mp4);
        let written = write_set(&art, &out, &settings, n_threads, &NEVER, |done, total| {
            most.fetch_max(done, Ordering::Relaxed);
            assert_eq!(total, 128);
        });
        assert_eq!(most.into_inner(), 128);
        (files(&out), written.unwrap())
    };
    assert!(make("one", 1) == make("three", 3));
}

#[test]
fn what_goes_wrong_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (art, out) = (Path::new(FIXTURES).join("art"), folder.path().join("set"));
    let stop = AtomicBool::new(true);
    let error =
        write_set(&art, &out, &settings(&["zombie"], ClipFormat::Folder), 2, &stop, |_, _| {})
            .unwrap_err();
    assert!(error.is_interrupt(), "{error}");
    let error =
        write_set(&art, &out, &settings(&["wyvern"], ClipFormat::Mp4), 1, &NEVER, |_, _| {})
            .unwrap_err();
    assert!(error.to_string().contains("wyvern.txt"), "{error}");
    // An animation that points outside its atlas.
    let broken = folder.path().join("art");
    let enemies = broken.join("fantasycore/animations/enemies");
    fs::create_dir_all(&enemies).unwrap();
    fs::create_dir_all(broken.join("fantasycore/images/enemies")).unwrap();
    let atlas = "fantasycore/images/enemies/zombie.png";
    fs::copy(art.join(atlas), broken.join(atlas)).unwrap();
    let text = "image=images/enemies/zombie.png\n[stance]\nframe=0,0,9000,0,10,10,5,5\n";
    fs::write(enemies.join("zombie.txt"), text).unwrap();
    let error =
        write_set(&broken, &out, &settings(&["zombie"], ClipFormat::Folder), 1, &NEVER, |_, _| {})
            .unwrap_err();
    assert!(matches!(error, Error::Flare { .. }), "{error}");
    assert!(error.to_string().contains("ends outside"), "{error}");
    fs::remove_dir_all(&broken).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
