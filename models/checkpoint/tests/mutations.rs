//! Seeded damage to valid files: every mutant gives a checkpoint or an error, never a panic, and memory stays bounded.

#![allow(clippy::unwrap_used, reason = "clippy exempts tests, but not the functions they share")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use checkpoint::{Checkpoint, DType, ShardIndex, TensorView, identify, safetensors_bytes};

/// The system's allocator, counting bytes.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counters do not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `dealloc`'s contract, and `alloc` above got the memory from the same place.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// More than any mutant of a file of a few kilobytes may hold at once: small expanded tensors (64 Ki elements) are
/// the largest thing such a file can ask for; inflation is limited to 16 MiB.
const MOST_BYTES: usize = 40 << 20;

/// A xorshift generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    const EDGES: [u8; 6] = [0, 1, 0x7f, 0x80, 0xfe, 0xff];
    for _ in 0..1 + random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = EDGES[random.below(6)],
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..(at + 1 + random.below(8)).min(bytes.len()))),
            4 => {
                let piece = bytes[at..(at + 1 + random.below(16)).min(bytes.len())].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => {
                let end = (at + 8).min(bytes.len());
                bytes[at..end].fill(EDGES[random.below(6)]);
            }
        }
    }
}

/// Does with a mutant what the program would; the mutant's name is told if it panics.
fn exercise(name: &str, bytes: Vec<u8>) -> bool {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let outcome = std::panic::catch_unwind(|| {
        let Ok(checkpoint) = Checkpoint::from_bytes(bytes) else { return false };
        for info in checkpoint.tensors() {
            let view = checkpoint.tensor(info.name).unwrap();
            assert_eq!(view.bytes.len(), info.bytes);
            drop(view.to_f32());
        }
        identify(&checkpoint);
        true
    });
    let peak = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    assert!(peak < MOST_BYTES, "{name} took {peak} bytes");
    outcome.unwrap_or_else(|_| panic!("{name} panicked"))
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let view = |shape: &[usize], bytes: Vec<u8>| TensorView {
        dtype: DType::F32,
        shape: shape.to_vec(),
        bytes: Cow::Owned(bytes),
    };
    let tensors = BTreeMap::from([
        ("x_embedder.proj.weight".to_string(), view(&[2, 1, 1, 1, 1], vec![0; 8])),
        ("blocks.0.attn_temp.b".to_string(), view(&[], vec![0; 4])),
    ]);
    let mut seeds =
        vec![("safetensors".to_string(), safetensors_bytes(&tensors, &BTreeMap::new()).unwrap())];
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for entry in std::fs::read_dir(fixtures).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "pt") {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            seeds.push((name, std::fs::read(&path).unwrap()));
        }
    }
    seeds.sort();
    seeds
}

// One test, because the counters are the process's.
#[test]
fn damaged_files_never_panic_and_never_take_much_memory() {
    let seeds = seeds();
    assert!(seeds.len() > 10, "the fixtures are missing");
    let mut n_accepted = 0;
    for (file, (name, whole)) in seeds.iter().enumerate() {
        for mutant in 0..400 {
            let mut random = Random((file as u64 + 1) << 32 | (mutant + 1));
            let mut bytes = whole.clone();
            mutate(&mut bytes, &mut random);
            n_accepted += usize::from(exercise(&format!("mutant {mutant} of {name}"), bytes));
        }
    }
    // Damage to tensor bytes goes unseen, damage to structure does not: both kinds must have been tried.
    assert!((200..4500).contains(&n_accepted), "{n_accepted} mutants were accepted");

    let index =
        br#"{"metadata":{"total_size":8},"weight_map":{"a":"m-1.safetensors","b":"m-2.bin"}}"#;
    for mutant in 0..2000 {
        let mut bytes = index.to_vec();
        mutate(&mut bytes, &mut Random(mutant + 1));
        drop(ShardIndex::parse(&bytes));
    }
}
