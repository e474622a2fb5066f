//! Buckets, batches, masks and the generators behind them against upstream's own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt;
use std::path::PathBuf;

use data::{
    BucketEntry, Buckets, Epoch, Keep, MaskRatios, Pcg64, PythonRandom, SamplerSettings,
    TorchRandom, VideoSize,
};
use diffusion::Release;
use serde::Deserialize;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde_json::Value;

/// Both releases, with the name that golden files have for them.
const RELEASES: [(Release, &str); 2] = [(Release::V1_1, "v1_1_0"), (Release::V1_2, "v1_2_0")];

/// A golden file: below the folder `KINO_GOLDENS`, or the workspace's copy.
fn golden<T: DeserializeOwned>(name: &str) -> T {
    let folder = std::env::var_os("KINO_GOLDENS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden")),
        PathBuf::from,
    );
    let path = folder.join(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn count(value: &Value) -> usize {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count")) as usize
}

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Numbers in 0..1 have 53 bits, of which the JSON reader may get the last one wrong.
fn is_same(a: f64, b: f64) -> bool {
    (a - b).abs() <= f64::EPSILON / 2.0
}

fn buckets(config: &Value, release: Release) -> Buckets {
    let mut entries = Vec::new();
    for (resolution, lengths) in config.as_object().unwrap() {
        for (frames, entry) in lengths.as_object().unwrap() {
            let keep = match &entry[0] {
                Value::Array(pair) => {
                    Keep { probability: pair[0].as_f64().unwrap(), of_length: pair[1].as_f64() }
                }
                share => Keep { probability: share.as_f64().unwrap(), of_length: None },
            };
            entries.push(BucketEntry {
                resolution: resolution.clone(),
                num_frames: frames.parse().unwrap(),
                keep,
                batch_size: entry[1].as_u64().map(|size| size as usize),
            });
        }
    }
    Buckets::new(&entries, release).unwrap()
}

fn size(value: &Value, names: [&str; 3]) -> VideoSize {
    let [num_frames, height, width] = names.map(|name| count(&value[name]));
    VideoSize { num_frames, height, width }
}

#[derive(Deserialize)]
struct PcgFile {
    pcg64_random: Vec<PcgCase>,
}

#[derive(Deserialize)]
struct PcgCase {
    seed: u128,
    random: Vec<f64>,
}

#[test]
fn pcg64_is_numpys() {
    for (_, name) in RELEASES {
        let file: PcgFile = golden(&format!("buckets/buckets_{name}.json"));
        for case in file.pcg64_random {
            let mut random = Pcg64::new(case.seed);
            for expected in case.random {
                let found = random.random();
                assert!(
                    is_same(found, expected),
                    "seed {}: {found}, expected {expected}",
                    case.seed
                );
            }
        }
    }
}

#[test]
fn samples_go_to_upstreams_buckets() {
    for (release, name) in RELEASES {
        let file: Value = golden(&format!("buckets/buckets_{name}.json"));
        for (stage, config) in file["configs"].as_object().unwrap() {
            let buckets = buckets(&config["bucket_config"], release);
            assert_eq!(buckets.n_buckets(), config["num_bucket"].as_u64().unwrap());
            for (number, length) in buckets.lengths().enumerate() {
                let expected = &config["bucket_id_numbers"][&*length.resolution]
                    [length.num_frames.to_string()];
                assert_eq!(number, count(expected), "{name} {stage} {length:?}");
            }
            let lookups = config["lookups"].as_array().unwrap();
            assert!(lookups.len() > 200, "{name} {stage}");
            for lookup in lookups {
                let of = size(lookup, ["T", "H", "W"]);
                let seed = lookup["seed"].as_u64().unwrap();
                let found = buckets.assign(of, count(&lookup["frame_interval"]), seed);
                let Some(id) = found else {
                    assert_eq!(lookup["bucket_id"], Value::Null, "{name} {stage} {lookup}");
                    continue;
                };
                let (resolution, num_frames, aspect) = buckets.key(id);
                let key = serde_json::json!([resolution, num_frames, aspect]);
                assert_eq!(key, lookup["bucket_id"], "{name} {stage} {lookup}");
                let shape = buckets.shape(id);
                let thw = serde_json::json!([shape.num_frames, shape.height, shape.width]);
                assert_eq!(thw, lookup["thw"], "{name} {stage} {lookup}");
                assert_eq!(buckets.batch_size(id), count(&lookup["batch_size"]));
            }
        }
    }
}

/// The table of `golden.md`: what the draws of five samples decide.
#[test]
fn draws_decide_as_upstream_has_them() {
    let config = serde_json::json!({
        "144p": {"1": [1.0, 475], "51": [1.0, 51], "102": [[1.0, 0.33], 27], "204": [[1.0, 0.1], 13],
                 "408": [[1.0, 0.1], 6]},
        "240p": {"1": [0.3, 297], "51": [0.4, 20], "102": [[0.4, 0.33], 10]},
        "720p": {"1": [0.05, 36]},
    });
    let buckets = buckets(&config, Release::V1_2);
    assert_eq!(buckets.n_buckets(), 153);
    for (num_frames, height, width, seed, expected) in [
        (1, 720, 1280, 42, Some(("144p", 1, "0.56"))),
        (120, 720, 1280, 42, Some(("240p", 51, "0.56"))),
        (120, 360, 640, 43, Some(("240p", 102, "0.56"))),
        (500, 240, 426, 44, Some(("144p", 51, "0.56"))),
        (51, 240, 426, 45, None),
        (52, 240, 426, 45, Some(("144p", 51, "0.56"))),
        (300, 720, 1280, 50, Some(("144p", 51, "0.56"))),
    ] {
        let id = buckets.assign(VideoSize { num_frames, height, width }, 1, seed);
        assert_eq!(id.map(|id| buckets.key(id)), expected, "seed {seed}");
    }
}

#[test]
fn permutations_are_torchs() {
    for (_, name) in RELEASES {
        let file: Value = golden(&format!("buckets/batch_sampler_{name}.json"));
        for case in file["randperm"].as_array().unwrap() {
            let found =
                TorchRandom::new(case["seed"].as_u64().unwrap()).permutation(count(&case["n"]));
            let expected: Vec<u32> = serde_json::from_value(case["perm"].clone()).unwrap();
            assert_eq!(found, expected, "seed {}", case["seed"]);
        }
    }
}

/// Where upstream fills the last step of all ranks it runs out of samples and gives empty batches; here the
/// first batch comes again.
#[test]
fn batches_are_upstreams() {
    for (release, name) in RELEASES {
        let file: Value = golden(&format!("buckets/batch_sampler_{name}.json"));
        let buckets = buckets(&file["bucket_config"], release);
        let rows = file["dataset"].as_array().unwrap();
        let sizes: Vec<VideoSize> =
            rows.iter().map(|row| size(row, ["num_frames", "height", "width"])).collect();
        let mut n_empty = 0;
        for run in file["runs"].as_array().unwrap() {
            let settings = SamplerSettings {
                seed: run["seed"].as_u64().unwrap(),
                frame_interval: count(&file["frame_interval"]),
                is_shuffled: run["shuffle"].as_bool().unwrap(),
                drops_last: run["drop_last"].as_bool().unwrap(),
            };
            let (rank, n_ranks) = (count(&run["rank"]), count(&run["num_replicas"]));
            let epoch =
                Epoch::new(&buckets, &sizes, settings, run["epoch"].as_u64().unwrap()).unwrap();
            let expected: Vec<Vec<String>> =
                serde_json::from_value(run["batches"].clone()).unwrap();
            assert_eq!(epoch.n_steps(n_ranks), expected.len(), "{name} {settings:?}");
            for (step, expected) in expected.iter().enumerate() {
                let batch = epoch.batch(step, rank, n_ranks);
                if expected.is_empty() {
                    n_empty += 1;
                    assert_eq!(batch, epoch.batch(0, 0, n_ranks), "{name} step {step}");
                    continue;
                }
                let shape = buckets.shape(batch.bucket);
                let text = |row: &u32| {
                    format!("{row}-{}-{}-{}", shape.num_frames, shape.height, shape.width)
                };
                let found: Vec<String> = batch.rows.iter().map(text).collect();
                assert_eq!(&found, expected, "{name} {settings:?} step {step}");
            }
        }
        assert!(n_empty <= 1, "{name}: {n_empty} empty batches");
    }
}

/// Keys and values of a JSON object in the order of the text, in which shares are walked.
struct InOrder(Vec<(String, f64)>);

impl<'de> Deserialize<'de> for InOrder {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<InOrder, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = InOrder;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<InOrder, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(InOrder(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[derive(Deserialize)]
struct MaskFile {
    mask_ratios: InOrder,
    results: Vec<MaskCase>,
    python_random: Vec<Value>,
}

#[derive(Deserialize)]
struct MaskCase {
    seed: u64,
    #[serde(rename = "T")]
    n_frames: usize,
    masks: Vec<Vec<u8>>,
}

#[test]
fn masks_are_upstreams() {
    for (_, name) in RELEASES {
        let file: MaskFile = golden(&format!("masks/mask_generator_{name}.json"));
        let shares = file.mask_ratios.0.iter().map(|(name, share)| (name.as_str(), *share));
        let ratios = MaskRatios::new(shares).unwrap();
        for case in &file.results {
            let (mut python, mut torch) =
                (PythonRandom::new(case.seed), TorchRandom::new(case.seed));
            for expected in &case.masks {
                let found = ratios.draw(case.n_frames, &mut python, &mut torch);
                let found: Vec<u8> = found.into_iter().map(u8::from).collect();
                assert_eq!(&found, expected, "{name} seed {} of {}", case.seed, case.n_frames);
            }
        }
    }
}

#[test]
fn python_random_is_pythons() {
    for (_, name) in RELEASES {
        let file: MaskFile = golden(&format!("masks/mask_generator_{name}.json"));
        for case in &file.python_random {
            let mut random = PythonRandom::new(case["seed"].as_u64().unwrap());
            for expected in numbers(&case["random"]) {
                assert!(is_same(random.random(), expected), "seed {}", case["seed"]);
            }
            for (key, low, high) in [("randint_1_4", 1, 4), ("randint_0_17", 0, 17)] {
                for expected in numbers(&case[key]) {
                    assert_eq!(
                        f64::from(random.randint(low, high)),
                        expected,
                        "seed {}",
                        case["seed"]
                    );
                }
            }
        }
    }
}
