//! Tables and bucket files with damage: thousands of deterministic mutations of the fuzzer's seeds give
//! something sound or a message, never a panic.

#![allow(clippy::unwrap_used, reason = "the functions shared by tests are tests too")]

use std::path::Path;

use data::{BucketFile, Survey, Table, VideoSize};

/// The `SplitMix64` generator.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// Every seed of a fuzz target.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/seeds").join(target);
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 1);
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Calls `read` with mutations of the seeds; how many it took.
fn mutate(target: &str, words: &[&str], mut read: impl FnMut(&[u8]) -> bool) -> usize {
    let mut random = Random(7);
    let mut n_taken = 0;
    for seed in seeds(target) {
        assert!(read(&seed), "{}", seed.escape_ascii());
        for _ in 0..4000 {
            let mut bytes = seed.clone();
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len());
                match random.below(5) {
                    0 => bytes[at] = random.below(256) as u8,
                    4 => {
                        let is_digit = |&at: &usize| bytes[at].is_ascii_digit();
                        let digits: Vec<usize> = (0..bytes.len()).filter(is_digit).collect();
                        if !digits.is_empty() {
                            bytes[digits[random.below(digits.len())]] =
                                b'0' + random.below(10) as u8;
                        }
                    }
                    1 => bytes.truncate(at.max(1)),
                    2 => {
                        let end = (at + 1 + random.below(8)).min(bytes.len());
                        let piece = bytes[at..end].to_vec();
                        bytes.splice(at..at, piece);
                    }
                    _ => {
                        let word = words[random.below(words.len())].bytes();
                        let end = (at + random.below(4)).min(bytes.len());
                        bytes.splice(at..end, word);
                    }
                }
            }
            n_taken += usize::from(read(&bytes));
        }
    }
    n_taken
}

#[test]
fn a_damaged_table_is_rows_or_a_message() {
    let words =
        ["\"", ",", "\n", "\r", "-1", "1e400", "nan", "inf", "99999999999999999999", "path"];
    let n_taken = mutate("table", &words, |csv| {
        let Ok(table) = Table::parse(csv, Path::new("t.csv"), None) else { return false };
        assert!(table.rows().iter().all(|row| !row.path.as_os_str().is_empty()));
        let _ = table.sizes();
        true
    });
    assert!(n_taken > 1000, "{n_taken}");
}

#[test]
fn a_damaged_bucket_file_is_buckets_or_a_message() {
    let words = ["[", "]", "=", "0", "1e9", "nan", "-1", "18446744073709551615", "4k", "x", "{}"];
    let n_taken = mutate("buckets", &words, |text| {
        let Ok(text) = std::str::from_utf8(text) else { return false };
        let Ok(BucketFile { buckets, frame_interval }) = BucketFile::parse(text) else {
            return false;
        };
        let sizes = [(0, 0, 0), (1, 64, 64), (100, 720, 1280), (usize::MAX, 1 << 24, 1 << 24)];
        let sizes =
            sizes.map(|(num_frames, height, width)| VideoSize { num_frames, height, width });
        let survey = Survey::new(&buckets, &sizes, frame_interval, [u64::MAX, 1]);
        let n_taken: usize = survey.occupancies.iter().map(data::Occupancy::n_samples).sum();
        assert_eq!(n_taken + survey.left_out.values().sum::<usize>(), sizes.len(), "{text}");
        true
    });
    assert!(n_taken > 200, "{n_taken}");
}
