//! Torch files written by torch itself (`fixtures/make.py`), and hand-made pickles that must be refused.

#![allow(clippy::unwrap_used, reason = "clippy exempts tests, but not the functions they share")]

mod torch_file;

use std::borrow::Cow;
use std::path::PathBuf;

use checkpoint::{Checkpoint, DType, Error, Format};
use torch_file::{Zip, archive, state_dict, tensor};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn ramp(start: i32, n: i32) -> Vec<f32> {
    (start..start + n).map(|x| x as f32).collect()
}

/// The values that `plain()` in make.py puts into every layout.
fn check_plain(checkpoint: &Checkpoint) {
    assert_eq!(checkpoint.len(), 16);
    assert_eq!(checkpoint.taken(), None);
    let f32s = |name| checkpoint.to_f32(name).unwrap();
    assert_eq!(f32s("a.f32"), ramp(1, 6));
    assert_eq!(f32s("b.f16"), ramp(2, 3));
    assert_eq!(f32s("c.bf16"), ramp(3, 4));
    assert_eq!(f32s("d.f64"), ramp(4, 2));
    assert_eq!(f32s("h.scalar"), [7.0]);
    assert!(f32s("i.empty").is_empty());
    let transposed: Vec<f32> =
        (0..6).flat_map(|c| (0..4).map(move |r| (100 + 6 * r + c) as f32)).collect();
    assert_eq!(f32s("j.transposed"), transposed);
    assert_eq!(f32s("k.columns"), [101., 102., 107., 108., 113., 114., 119., 120.]);
    assert_eq!(f32s("l.rows"), ramp(106, 12));
    assert_eq!(f32s("m.shared"), ramp(0, 8));
    assert_eq!(f32s("n.shared_view"), ramp(2, 4));
    assert_eq!(f32s("o.parameter"), ramp(8, 2));
    let shape = |name| checkpoint.info(name).unwrap().shape.to_vec();
    assert_eq!(shape("i.empty"), [0, 3]);
    assert_eq!(shape("j.transposed"), [6, 4]);
    assert_eq!(shape("n.shared_view"), [2, 2]);
    assert!(shape("h.scalar").is_empty());
    let view = checkpoint.tensor("e.i64").unwrap();
    assert_eq!(view.dtype, DType::I64);
    assert_eq!(*view.bytes, [5i64, 6, 7].map(i64::to_le_bytes).concat());
    assert_eq!(*checkpoint.tensor("f.bool").unwrap().bytes, [1, 0, 1]);
    assert_eq!(*checkpoint.tensor("g.u8").unwrap().bytes, [6, 7, 8, 9]);
    assert_eq!(checkpoint.tensor("p.i32").unwrap().dtype, DType::I32);
}

#[test]
fn reads_zip_archives_borrowing_what_is_contiguous() {
    let checkpoint = Checkpoint::open(fixture("plain.zip.pt")).unwrap();
    assert_eq!(checkpoint.format(), Format::TorchZip);
    check_plain(&checkpoint);
    for (name, is_borrowed) in
        [("a.f32", true), ("l.rows", true), ("n.shared_view", true), ("k.columns", false)]
    {
        let view = checkpoint.tensor(name).unwrap();
        assert_eq!(matches!(view.bytes, Cow::Borrowed(_)), is_borrowed, "{name}");
    }
}

#[test]
fn reads_legacy_files() {
    let checkpoint = Checkpoint::open(fixture("plain.legacy.pt")).unwrap();
    assert_eq!(checkpoint.format(), Format::TorchLegacy);
    check_plain(&checkpoint);
}

#[test]
fn reads_deflated_archives() {
    check_plain(&Checkpoint::open(fixture("plain.deflated.pt")).unwrap());
}

#[test]
fn reads_later_pickle_protocols() {
    for protocol in 3..=5 {
        let path = fixture(&format!("protocol{protocol}.zip.pt"));
        assert_eq!(Checkpoint::open(path).unwrap().to_f32("w").unwrap(), ramp(1, 4));
    }
}

#[test]
fn takes_averaged_weights_before_others() {
    for layout in ["zip", "legacy"] {
        let nested = Checkpoint::open(fixture(&format!("nested.{layout}.pt"))).unwrap();
        assert_eq!(nested.taken(), Some("ema"));
        assert_eq!(nested.len(), 1);
        assert_eq!(nested.to_f32("w").unwrap(), ramp(10, 4));
        let state = Checkpoint::open(fixture(&format!("state_dict.{layout}.pt"))).unwrap();
        assert_eq!(state.taken(), Some("state_dict"));
        assert_eq!(state.to_f32("module.w").unwrap(), ramp(1, 4));
    }
}

#[test]
fn refuses_forbidden_globals_by_name() {
    for layout in ["zip", "legacy"] {
        let error = Checkpoint::open(fixture(&format!("evil.{layout}.pt"))).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error.root(), Error::ForbiddenGlobal { name, .. } if name == "system"),
            "{text}"
        );
        assert!(text.contains("posix.system"), "{text}");
    }
}

#[test]
fn refuses_a_tensor_expanded_to_terabytes() {
    let error = Checkpoint::open(fixture("expanded.zip.pt")).unwrap_err();
    assert!(matches!(error.root(), Error::TooLarge { .. }), "{error}");
    assert!(
        error.to_string().contains("tensor w, expanded from a storage of 1 elements"),
        "{error}"
    );
}

#[test]
fn refuses_every_truncation() {
    for name in ["plain.zip.pt", "plain.legacy.pt"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        for length in 0..whole.len() {
            let result = Checkpoint::from_bytes(whole[..length].to_vec());
            assert!(result.is_err(), "{name} cut to {length} bytes was accepted");
        }
    }
}

/// `{"w": tensor}` of an f32 storage that claims `n` elements.
fn tensor_pickle(n: &str, offset: &str, shape: &str, strides: &str) -> Vec<u8> {
    format!("}}S'w'\n{}s.", tensor(["FloatStorage", "0", n], offset, shape, strides)).into_bytes()
}

fn open_tensor(n: &str, offset: &str, shape: &str, strides: &str) -> Result<Checkpoint, Error> {
    Checkpoint::from_bytes(archive(&tensor_pickle(n, offset, shape, strides), &[0; 24]))
}

#[test]
fn reads_a_storage_for_each_tensor() {
    let (halves, floats) = ([0x80, 0x3f, 0, 0xc0], ramp(1, 6));
    let floats: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
    let tensors = [
        ("a", "BFloat16Storage", &[2][..], &halves[..]),
        ("b.c", "FloatStorage", &[3, 2], &floats),
    ];
    let checkpoint = Checkpoint::from_bytes(state_dict(&tensors)).unwrap();
    assert_eq!(checkpoint.len(), 2);
    assert_eq!(checkpoint.to_f32("a").unwrap(), [1.0, -2.0]);
    assert_eq!(checkpoint.info("b.c").unwrap().shape, [3, 2]);
    assert_eq!(checkpoint.to_f32("b.c").unwrap(), ramp(1, 6));
}

#[test]
fn checks_storage_bounds_without_overflow() {
    assert!(open_tensor("6", "0", "2 3", "3 1").is_ok());
    assert!(open_tensor("6", "1", "5", "1").is_ok());
    let huge = "9223372036854775807";
    for (offset, shape, strides) in [
        ("1", "2 3", "3 1"),
        ("6", "1", "1"),
        ("0", "2 2", "5 1"),
        ("0", "2", huge),
        (huge, "3", "1"),
        ("0", "2 3", "1"),
    ] {
        let error = open_tensor("6", offset, shape, strides).unwrap_err();
        assert!(matches!(&error, Error::OutsideStorage { name, .. } if name == "w"), "{error}");
    }
    assert!(matches!(
        open_tensor("6", "0", &format!("{huge} {huge}"), "0 0"),
        Err(Error::ShapeOverflow { .. })
    ));
    assert!(matches!(
        open_tensor("7", "0", "7", "1"),
        Err(Error::Truncated { needed: 28, available: 24, .. })
    ));
    assert!(matches!(open_tensor(huge, "0", "1", "1"), Err(Error::ShapeOverflow { .. })));
    assert!(matches!(open_tensor("6", "-1", "1", "1"), Err(Error::Pickle { .. })));
}

fn problem(pickle: &[u8]) -> String {
    Checkpoint::from_bytes(archive(pickle, &[])).unwrap_err().to_string()
}

#[test]
fn malformed_pickles_say_what_is_wrong() {
    for (pickle, expected) in [
        (&b"."[..], "stack underflow"),
        (b"h\x05.", "nothing at memo 5"),
        (b"(0t.", "no mark on the stack"),
        (b"}(Nu.", "a key without a value"),
        (b"N)R.", "call of None"),
        (b"Na.", "stack underflow"),
        (b"NNa.", "append to None"),
        (b"\x82\x01.", "instruction 0x82 is not used by torch"),
        (b"X\xff\xff\xff\xffabc", "truncated: pickle instruction needs 4294967295 bytes"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff", "truncated"),
        (b"X\x01\x00\x00\x00\xff.", "text is not UTF-8"),
        (b"cos\nsystem\n.", "os.system"),
        (b"ctorch.storage\n_load_from_bytes\n.", "torch.storage._load_from_bytes"),
        (b"c__builtin__\neval\n.", "__builtin__.eval"),
        (b"\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"I99999999999999999999\n.", "integer"),
        (b"}.", "no tensors found: the pickled object is a dictionary of 0 other values"),
        (b"K\x01.", "no tensors found: the pickled object is an integer"),
        (b"", "truncated"),
    ] {
        let found = problem(pickle);
        assert!(found.contains(expected), "{}: {found}", pickle.escape_ascii());
    }
}

#[test]
fn repeated_growth_is_bounded() {
    // A long list of references to one pair, copied by a call again and again.
    let mut pickle = b"](NN\x86q\x01".to_vec();
    for _ in 0..200_000 {
        pickle.extend(b"h\x01");
    }
    pickle.extend(b"e\x85q\x020ccollections\nOrderedDict\nq\x030");
    for _ in 0..100_000 {
        pickle.extend(b"h\x03h\x02R0");
    }
    pickle.push(b'.');
    assert!(problem(&pickle).contains("items copied"), "{}", problem(&pickle));
    assert!(problem(&b"(".repeat(2_000_000)).contains("more than 1048576 marks"));
    assert!(problem(&b"N".repeat(2_000_000)).contains("more than 524288 values"));
    assert!(problem(&[b"N".to_vec(), b"2".repeat(2_000_000)].concat()).contains("on the stack"));
}

#[test]
fn a_dictionary_that_contains_itself_is_searched_once_per_level() {
    // d = {}; d["ema"] = d["model"] = d
    let error = problem(b"}q\x01(X\x03\x00\x00\x00emah\x01X\x05\x00\x00\x00modelh\x01u.");
    assert!(error.contains("no tensors found"), "{error}");
}

#[test]
fn archives_without_their_parts_are_named() {
    let mut zip = Zip::default();
    zip.add("readme.txt", b"hello");
    let error = Checkpoint::from_bytes(zip.finish()).unwrap_err();
    assert!(error.to_string().contains("no data.pkl"), "{error}");
    let mut zip = Zip::default();
    zip.add("a/data.pkl", &tensor_pickle("6", "0", "6", "1"));
    let error = Checkpoint::from_bytes(zip.finish()).unwrap_err();
    assert!(error.to_string().contains("no entry for storage 0"), "{error}");
    let mut zip = Zip::default();
    zip.add("a/data.pkl", &tensor_pickle("6", "0", "6", "1"));
    zip.add("a/data/0", &[0; 24]);
    zip.add("a/byteorder", b"big");
    let error = Checkpoint::from_bytes(zip.finish()).unwrap_err();
    assert!(error.to_string().contains("byte order is big, expected little"), "{error}");
}
