//! Loaders on folders of PNGs: order, values, what cannot be read, and the end of a loader.

#![allow(clippy::unwrap_used, reason = "the functions shared by tests are tests too")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use data::{
    Ahead, BucketEntry, Buckets, Epoch, Error, Keep, LoadedBatch, Loader, Loading, SampleSettings,
    SamplerSettings, Table, check_files,
};
use diffusion::Release;
use media::{Clip, Fit, Format, Fps, Metadata};

const SIDE: usize = 16;

/// Row `row` is a clip whose frame `t` has the one gray `10 * row + t`.
fn gray(row: usize, t: usize) -> u8 {
    (10 * row + t) as u8
}

/// A table of `n` clips of 6 frames.
fn clips(folder: &Path, n: usize) -> Table {
    let mut csv = String::from("path,text,num_frames,height,width,fps\n");
    for row in 0..n {
        let rgb: Vec<u8> = (0..6).flat_map(|t| vec![gray(row, t); SIDE * SIDE * 3]).collect();
        let clip = Clip::new(6, SIDE, SIDE, &rgb, Fps::new(8, 1).unwrap()).unwrap();
        let path = folder.join(format!("clip{row}"));
        media::write(&path, &clip, &Metadata::new(), Format::Folder).unwrap();
        csv += &format!("clip{row},caption {row},6,{SIDE},{SIDE},8\n");
    }
    Table::parse(csv.as_bytes(), Path::new("clips.csv"), Some(folder)).unwrap()
}

fn loading(table: Table, rank: usize, n_ranks: usize) -> Loading {
    let entry = BucketEntry {
        resolution: "16x16".into(),
        num_frames: 4,
        keep: Keep { probability: 1.0, of_length: None },
        batch_size: Some(2),
    };
    let buckets = Buckets::new(&[entry], Release::V1_1).unwrap();
    let sampler =
        SamplerSettings { seed: 3, frame_interval: 1, is_shuffled: true, drops_last: true };
    let epoch = Epoch::new(&buckets, &table.sizes().unwrap(), sampler, 2).unwrap();
    let settings =
        SampleSettings { release: Release::V1_1, frame_interval: 1, fit: Fit::Cover, seed: 3 };
    let (table, buckets, epoch) = (Arc::new(table), Arc::new(buckets), Arc::new(epoch));
    Loading { table, buckets, epoch, settings, rank, n_ranks }
}

fn load(loading: &Loading, first_step: usize, n_workers: usize) -> Vec<LoadedBatch> {
    let loader = Loader::start(loading.clone(), first_step, Ahead { n_workers, n_ready: 1 });
    loader.unwrap().map(Result::unwrap).collect()
}

#[test]
fn batches_come_in_order_for_any_number_of_workers() {
    let folder = tempfile::tempdir().unwrap();
    let loading = loading(clips(folder.path(), 11), 0, 1);
    let batches = load(&loading, 0, 1);
    assert_eq!(batches.len(), 5);
    for (step, batch) in batches.iter().enumerate() {
        let rows: Vec<u32> = batch.samples.iter().map(|sample| sample.row as u32).collect();
        assert_eq!((batch.step, &rows[..]), (step, loading.epoch.batch(step, 0, 1).rows));
        for sample in &batch.samples {
            assert_eq!(sample.text, format!("caption {}", sample.row));
            assert_eq!((sample.fps, sample.aspect_ratio), (8.0, 1.0));
            // [3, T, H, W]: every frame is one gray, and frames follow each other.
            let first = (sample.pixels[0] + 1.0) / 2.0 * 255.0;
            let begin = first.round() as usize - 10 * sample.row;
            for (index, &value) in sample.pixels.iter().enumerate() {
                let t = begin + index / (SIDE * SIDE) % 4;
                let expected = f32::from(gray(sample.row, t)) / 255.0 * 2.0 - 1.0;
                assert!((value - expected).abs() < 1e-6, "row {} value {index}", sample.row);
            }
        }
    }
    for n_workers in [2, 3, 7] {
        assert_eq!(load(&loading, 0, n_workers), batches, "{n_workers} workers");
    }
    assert_eq!(load(&loading, 3, 2), batches[3..]);
    let ranks: Vec<Vec<LoadedBatch>> =
        (0..2).map(|rank| load(&Loading { rank, n_ranks: 2, ..loading.clone() }, 0, 2)).collect();
    for (step, batch) in batches[..4].iter().enumerate() {
        assert_eq!(ranks[step % 2][step / 2].samples, batch.samples);
    }
}

#[test]
fn what_cannot_be_read_is_replaced_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let loading = loading(clips(folder.path(), 8), 0, 1);
    fs::write(folder.path().join("clip5/frame_0003.png"), b"no picture").unwrap();
    fs::remove_dir_all(folder.path().join("clip2")).unwrap();
    let batches = load(&loading, 0, 2);
    let replaced: Vec<_> = batches.iter().flat_map(|batch| batch.replaced.clone()).collect();
    let mut rows: Vec<usize> = replaced.iter().map(|replaced| replaced.row).collect();
    rows.sort_unstable();
    assert_eq!(rows, [2, 5], "{replaced:?}");
    for replaced in &replaced {
        assert!(![2, 5].contains(&replaced.by), "{replaced:?}");
        assert!(replaced.reason.contains(&format!("clip{}", replaced.row)), "{replaced:?}");
    }
    assert_eq!(load(&loading, 0, 3), batches);

    let bad = check_files(&loading.table, 2, &AtomicBool::new(false), |_| {}).unwrap();
    let lines: Vec<u64> = bad.iter().map(|row| row.line).collect();
    assert_eq!(lines, [4], "the frame in the middle is not looked at: {bad:?}");
    fs::remove_file(folder.path().join("clip5/frame_0003.png")).unwrap();
    let bad = check_files(&loading.table, 1, &AtomicBool::new(false), |_| {}).unwrap();
    assert!(bad[1].reason.contains("has 5 frames, the table says 6"), "{bad:?}");
}

#[test]
fn nothing_to_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let loading = loading(clips(folder.path(), 4), 0, 1);
    for row in 0..4 {
        fs::remove_dir_all(folder.path().join(format!("clip{row}"))).unwrap();
    }
    let mut loader = Loader::start(loading.clone(), 0, Ahead { n_workers: 2, n_ready: 1 }).unwrap();
    let error = loader.next().unwrap().unwrap_err();
    assert!(matches!(error, Error::Unreadable { n_tried: 4, .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("bucket 16x16, 4 frames") && message.contains("clip"), "{message}");
    assert!(loader.next().is_none());
    let few = Loading { n_ranks: 3, ..loading };
    let error = Loader::start(few, 0, Ahead { n_workers: 1, n_ready: 1 }).unwrap_err();
    assert!(error.to_string().contains("use fewer ranks"), "{error}");
}

#[test]
fn a_loader_can_be_dropped_early() {
    let folder = tempfile::tempdir().unwrap();
    let loading = loading(clips(folder.path(), 20), 0, 1);
    let mut loader = Loader::start(loading, 0, Ahead { n_workers: 3, n_ready: 1 }).unwrap();
    assert!(loader.next().unwrap().is_ok());
    drop(loader);
}
