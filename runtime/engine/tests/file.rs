//! The engine file: round trips, damage of every kind, and records that are wrong behind a right hash.

#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

mod common;

use std::fs;
use std::path::Path;

use common::{cubin, small};
use engine::{Arch, Blob, Engine, Error, ImageKind, Kernel, Product, Space};
use ops::DType;
use xxhash_rust::xxh3::Xxh3;

/// Where the hash is in the header.
const HASH: std::ops::Range<usize> = 24..40;

fn bytes() -> Vec<u8> {
    small().to_bytes().unwrap()
}

/// Makes the hash right again.
fn rehash(bytes: &mut [u8]) {
    let mut state = Xxh3::new();
    state.update(&bytes[..HASH.start]);
    state.update(&bytes[HASH.end..]);
    bytes[HASH].copy_from_slice(&state.digest128().to_le_bytes());
}

fn message(bytes: Vec<u8>) -> String {
    Engine::from_bytes(bytes).unwrap_err().to_string()
}

#[test]
fn a_file_is_read_as_it_was_written_and_written_as_it_was_read() {
    assert_eq!(Engine::from_bytes(bytes()).unwrap(), small());
    assert_eq!(Engine::from_bytes(bytes()).unwrap().to_bytes().unwrap(), bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.engine");
    small().save(&path).unwrap();
    // Replacing the file does not disturb who has it open.
    let opened = Engine::open(&path).unwrap();
    let mut other = small();
    other.constants[0] = Blob::from(vec![9; 4]);
    other.save(&path).unwrap();
    assert_eq!(opened, small());
    assert_eq!(Engine::open(&path).unwrap(), other);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn an_engine_of_nothing_is_an_engine() {
    let mut engine = small();
    engine.kernels.clear();
    engine.weights.clear();
    engine.constants.clear();
    engine.programs.clear();
    assert_eq!(Engine::from_bytes(engine.to_bytes().unwrap()).unwrap(), engine);
}

#[test]
fn blobs_are_aligned_in_the_file() {
    let bytes = bytes();
    let find = |part: &[u8]| bytes.windows(part.len()).position(|window| window == part).unwrap();
    assert!(find(&cubin()).is_multiple_of(64));
    assert!(find(b".version 8.0").is_multiple_of(64));
}

#[test]
fn every_changed_byte_is_found() {
    for at in 0..bytes().len() {
        let mut damaged = bytes();
        damaged[at] ^= 0x10;
        let error = Engine::from_bytes(damaged).unwrap_err();
        let is_expected = match at {
            0..8 => matches!(error, Error::NotAnEngine { .. }),
            8..12 => matches!(error, Error::Version { .. }),
            16..24 => matches!(error, Error::Length { .. }),
            _ => matches!(error, Error::Hash { .. }),
        };
        assert!(is_expected, "byte {at}: {error}");
    }
}

#[test]
fn a_file_of_every_other_length_is_refused() {
    for n in 0..bytes().len() {
        let error = Engine::from_bytes(bytes()[..n].to_vec()).unwrap_err();
        assert!(matches!(error, Error::Length { .. }), "{n}: {error}");
    }
    let mut longer = bytes();
    longer.push(0);
    assert!(matches!(Engine::from_bytes(longer), Err(Error::Length { .. })));
}

#[test]
fn sections_that_end_early_are_not_well_formed() {
    for index in 0..6 {
        let at = 40 + 24 * index + 16;
        let length = u64::from_le_bytes(bytes()[at..at + 8].try_into().unwrap());
        for shorter in 0..length {
            let mut cut = bytes();
            cut[at..at + 8].copy_from_slice(&shorter.to_le_bytes());
            rehash(&mut cut);
            let error = Engine::from_bytes(cut).unwrap_err();
            assert!(matches!(error, Error::Malformed { .. }), "{index} of {shorter}: {error}");
        }
    }
}

#[test]
fn wrong_bytes_behind_a_right_hash_never_panic() {
    let (mut n_refused, mut state) = (0, 1u64);
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % below
    };
    const N: usize = 20_000;
    for _ in 0..N {
        let mut wrong = bytes();
        for _ in 0..=next(3) {
            let at = next(wrong.len());
            wrong[at] = [0, 1, 0x7f, 0x80, 0xff, next(256) as u8][next(6)];
        }
        rehash(&mut wrong);
        match Engine::from_bytes(wrong.clone()) {
            // What is accepted has one form.
            Ok(engine) => assert_eq!(engine.to_bytes().unwrap(), wrong),
            Err(_) => n_refused += 1,
        }
    }
    // Names, numbers of FLOPs and the like may be anything.
    assert!(n_refused > N / 2, "{n_refused}");
}

#[test]
fn messages_say_what_to_do() {
    let mut other_version = bytes();
    other_version[8] = 2;
    assert_eq!(
        message(other_version),
        "the engine file has format version 2, this program reads 3: compile the model again with this program"
    );
    assert_eq!(
        message(b"\x7fELF and more".to_vec()),
        "not an engine file: it is a program; compile the model to get one"
    );
    let n = bytes().len();
    assert_eq!(
        message(bytes()[..n - 1].to_vec()),
        format!(
            "the engine file has {} bytes, expected {n}: copy it again, or compile the model again",
            n - 1
        )
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.engine");
    fs::write(&path, "").unwrap();
    let error = Engine::open(&path).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: not an engine file", path.display())), "{error}");
    let error = small().save(&folder.path().join("missing/model.engine")).unwrap_err();
    assert!(error.to_string().contains("cannot write it"), "{error}");
}

/// What is said of the small engine after a change.
fn invalid(change: impl FnOnce(&mut Engine)) -> String {
    let mut engine = small();
    change(&mut engine);
    match engine.to_bytes() {
        Err(Error::Invalid(what)) => what,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the engine was accepted"),
    }
}

#[test]
fn contradictions_are_refused() {
    type Change = fn(&mut Engine);
    let cases: &[(Change, &str)] = &[
        (|e| e.kernels[0].entry = "a b".into(), "is no symbol"),
        (|e| e.kernels[0].block = [1024, 2, 1], "block [1024, 2, 1]"),
        (|e| e.kernels[0].block = [0, 1, 1], "block [0, 1, 1]"),
        (|e| e.kernels[0].shared_bytes = 300_000, "300000 bytes of shared memory"),
        (|e| e.kernels[0].n_pointers = 5000, "bytes of parameters"),
        (|e| e.kernels[0].images.clear(), "has no image"),
        (|e| e.kernels[0].images[1].arch.minor = 12, "has no such architecture"),
        (|e| e.kernels[0].images[1].arch = e.kernels[0].images[0].arch, "is there twice"),
        (|e| e.kernels[0].images[0].bytes = Blob::from(vec![0; 99]), "is no 64-bit"),
        (|e| e.kernels[0].images[2].bytes = Blob::from(b"a\0b".to_vec()), "has a NUL"),
        (|e| e.kernels[0].images[2].bytes = Blob::from(vec![0xff]), "is no text"),
        (|e| e.weights[0].axes = vec![0, 0], "expected a permutation"),
        (|e| e.weights[0].bytes = 47, "47 bytes, bf16[4, 6] has 48"),
        (|e| e.weights.push(e.weights[0].clone()), "is listed twice"),
        (|e| e.constants[0] = Blob::from(vec![]), "constant 0 is empty"),
        (|e| e.programs.push(e.programs[0].clone()), "is there twice"),
        (|e| e.programs[0].name = "x".repeat(5000), "is a text of 5000 bytes"),
        (|e| e.programs[1].target = e.programs[0].target, "is there twice"),
        (|e| e.programs[0].target.minor = 12, "there is no such architecture"),
        (|e| e.programs[0].target.major = 7, "kernel 0 (`matmul`) has no code for sm_70"),
        (|e| e.programs[1].inputs[1].name = "t".into(), "other inputs or outputs than for sm_80"),
        (|e| e.programs[0].steps[0].scratch_bytes = 257, "257 bytes of scratch"),
        (|e| e.programs[0].lower_bound_bytes = 257, "below the bound"),
        (|e| e.programs[0].arena_bytes = 1 << 50, "an arena of"),
        (|e| e.programs[0].inputs[0].offset = 1, "no multiple of an element"),
        (|e| e.programs[0].inputs[0].offset = 210, "at byte 210 of an arena of 256"),
        (|e| e.programs[0].inputs[0].offset = u64::MAX - 1, "of an arena of 256"),
        (|e| e.programs[0].inputs[1].offset = 44, "inputs `x` and `timestep` overlap"),
        (|e| e.programs[0].inputs[1].name = "x".into(), "input `x` is there twice"),
        (|e| e.programs[0].steps[0].launches[0].kernel = 1, "kernel 1, of 1"),
        (|e| e.programs[0].steps[0].launches[0].grid[1] = 65_536, "grid [1, 65536, 3]"),
        (|e| e.programs[0].steps[0].launches[0].grid[2] = 0, "grid [1, 2, 0]"),
        (|e| e.programs[0].steps[0].launches[0].args.truncate(2), "2 pointers"),
        (|e| e.programs[0].steps[0].launches[0].args[0].offset = 256, "which has 256"),
        (|e| e.programs[0].steps[0].launches[0].args[1].offset = 64, "which has 64"),
        (|e| e.programs[0].steps[0].launches[0].args[2].space = Space::Constant(2), "not there"),
        (|e| e.programs[0].workspace_bytes = 1 << 50, "a workspace of"),
    ];
    for (change, expected) in cases {
        let found = invalid(change);
        assert!(found.contains(expected), "{found}; expected {expected}");
    }
}

#[test]
fn a_product_that_leaves_its_memory_is_refused() {
    type Change = fn(&mut Product);
    let cases: &[(Change, &str)] = &[
        (|p| p.factors = DType::F32, "f32 to f32, expected bf16 or f16"),
        (|p| p.sums = DType::F16, "bf16 to f16, expected bf16 or f16 to the same or f32"),
        (|p| p.rows = 0, "dims [1, 0, 4, 6]"),
        (|p| p.depth = 1 << 31, "dims [1, 4, 4, 2147483648]"),
        (|p| p.rows = 6, "96 bytes at byte 176 of Arena, which has 256"),
        (|p| p.columns = 8, "lines of 8 elements 4 apart"),
        (|p| p.left.leading = 5, "lines of 6 elements 5 apart"),
        (|p| p.left.leading = 64, "396 bytes at byte 128 of Arena, which has 256"),
        (|p| p.left.leading = 1 << 63, "lines of 6 elements 9223372036854775808 apart"),
        (|p| p.left.leading = (1 << 63) - 1, "larger than any memory"),
        (|p| p.right.is_transposed = false, "lines of 6 elements 4 apart"),
        (|p| p.right.pointer = 4, "pointer 4, of 4"),
        (|p| p.right.leading = 6, "68 bytes at byte 0 of Weight(0), which has 64"),
        (|p| p.result.pointer = 2, "64 bytes at byte 0 of Constant(1), which has 16"),
        (|p| p.result.is_transposed = true, "a result or residual that is transposed"),
        (|p| p.residual = Some(p.right), "a result or residual that is transposed"),
        (|p| p.bias = Some(9), "pointer 9, of 4"),
        (|p| (p.batch, p.left.batch_stride) = (2, 100), "248 bytes at byte 128 of Arena"),
        (|p| (p.sums, p.result.pointer) = (DType::Bf16, 1), "writes to Weight(0)"),
    ];
    for (change, expected) in cases {
        let found = invalid(|engine| {
            let launch = &mut engine.programs[0].steps[0].launches[0];
            change(launch.product.as_mut().unwrap());
        });
        assert!(
            found.contains("product: ") && found.contains(expected),
            "{found}; expected {expected}"
        );
    }
}

#[test]
fn a_device_gets_the_best_code_that_it_runs() {
    let engine = small();
    let best = |major, minor| {
        let image = engine.kernels[0].image_for(Arch::of_device(major, minor))?;
        Some((image.arch.to_string(), image.kind))
    };
    let is = |arch: &str, kind| Some((arch.to_string(), kind));
    assert_eq!(best(8, 0), is("sm_80", ImageKind::Cubin));
    assert_eq!(best(8, 6), is("sm_80", ImageKind::Cubin));
    assert_eq!(best(9, 0), is("sm_90a", ImageKind::Cubin));
    assert_eq!(best(10, 0), is("sm_80", ImageKind::Ptx));
    assert_eq!(best(7, 5), None);
    assert_eq!(engine.code(), ["sm_80 (PTX)", "sm_80", "sm_90a"]);
}

#[test]
fn a_device_gets_the_programs_of_the_best_target() {
    let mut engine = small();
    let chosen = |engine: &Engine, major, minor| {
        let device = Arch::of_device(major, minor);
        let target = engine.target_for(device, &|kernel| kernel.image_for(device).is_some());
        target.map(|target| target.to_string())
    };
    let is = |name: &str| Some(name.to_string());
    for (device, expected) in
        [((8, 0), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90a"), ((10, 0), "sm_80")]
    {
        assert_eq!(chosen(&engine, device.0, device.1), is(expected), "{device:?}");
    }
    assert_eq!(chosen(&engine, 7, 5), None);
    // Later before earlier, and what the device does not run is not chosen, however new.
    engine.programs[1].target = "sm_89".parse().unwrap();
    assert_eq!(chosen(&engine, 8, 6), is("sm_80"));
    assert_eq!(chosen(&engine, 9, 0), is("sm_89"));
    let names = |targets: Vec<Arch>| targets.iter().map(Arch::to_string).collect::<Vec<_>>();
    assert_eq!(names(engine.targets()), ["sm_80", "sm_89"]);
    let nothing = |_: &Kernel| false;
    assert_eq!(engine.target_for(Arch::of_device(9, 0), &nothing), None);
    assert_eq!(engine.kernels_of(engine.programs[0].target).count(), 1);
}

#[test]
fn every_field_of_the_header_is_checked_behind_a_right_hash() {
    const HEADER: usize = 40 + 24 * 6;
    for at in (0..HEADER).filter(|at| !HASH.contains(at)) {
        for bit in 0..8 {
            let mut wrong = bytes();
            wrong[at] ^= 1 << bit;
            rehash(&mut wrong);
            let error = Engine::from_bytes(wrong).unwrap_err();
            let is_expected = match at {
                0..8 => matches!(error, Error::NotAnEngine { .. }),
                8..12 => matches!(error, Error::Version { .. }),
                16..24 => matches!(error, Error::Length { .. }),
                // Number, names, offsets and lengths of sections.
                _ => matches!(error, Error::Malformed { .. }),
            };
            assert!(is_expected, "byte {at}, bit {bit}: {error}");
        }
    }
}

#[test]
fn the_seed_of_the_fuzzer_is_a_file_of_this_version() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/seeds/engine/small");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        small().save(&path).unwrap();
    }
    let is_current = fs::read(&path).is_ok_and(|found| found == bytes());
    assert!(is_current, "UPDATE_EXPECT=1 writes {} again", path.display());
}
