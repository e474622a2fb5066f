//! The safetensors reader and writer: what is refused and with which error, and agreement with the reference crate.

#![allow(clippy::unwrap_used, reason = "clippy exempts tests, but not the functions they share")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;

use checkpoint::{
    Checkpoint, DType, Error, SafetensorsWriter, TensorSpec, TensorView, safetensors_bytes,
    write_safetensors,
};

/// A file with this header text and `n_data` zero bytes.
fn file(header: &str, n_data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + n_data, 0);
    bytes
}

fn open(bytes: Vec<u8>) -> Result<Checkpoint, Error> {
    Checkpoint::from_safetensors_bytes(bytes)
}

/// The reference crate refuses it as well, so that ours is never the stricter or laxer reader.
fn refused(bytes: Vec<u8>) -> Error {
    assert!(
        safetensors::SafeTensors::deserialize(&bytes).is_err(),
        "the reference accepts this file"
    );
    open(bytes).expect_err("accepted a bad file")
}

#[test]
fn reads_tensors_in_name_order_without_copying() {
    let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"BF16","shape":[],"data_offsets":[8,10]},"z":{"dtype":"I64","shape":[0,3],"data_offsets":[10,10]}}"#;
    let mut bytes = file(header, 0);
    bytes.extend([1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()));
    bytes.extend([0xc0, 0x3f]);
    let checkpoint = open(bytes).unwrap();
    let names: Vec<&str> = checkpoint.tensors().map(|info| info.name).collect();
    assert_eq!(names, ["a", "b", "z"]);
    assert_eq!(checkpoint.to_f32("b").unwrap(), [1.5, -2.0]);
    assert_eq!(checkpoint.to_f32("a").unwrap(), [1.5]);
    assert!(matches!(checkpoint.tensor("b").unwrap().bytes, Cow::Borrowed(_)));
    assert_eq!(checkpoint.tensor("z").unwrap().shape, [0, 3]);
    assert_eq!(checkpoint.metadata()["format"], "pt");
    assert!(matches!(checkpoint.to_f32("z"), Err(Error::NotAFloat { .. })));
    assert!(matches!(checkpoint.tensor("y"), Err(Error::NoSuchTensor { .. })));
}

#[test]
fn rejects_overlapping_offsets() {
    let error = refused(file(
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
        6,
    ));
    let message = "tensor b: starts at byte 2, inside tensor a, which ends at 4";
    assert_eq!(error.to_string(), message);
}

#[test]
fn rejects_offsets_outside_the_file() {
    let header = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    assert!(open(file(header, 4)).is_ok());
    let error = refused(file(header, 3));
    assert!(matches!(&error, Error::OutOfRange { name, end: 4, available: 3, .. } if name == "a"));
    let error = refused(file(
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[18446744073709551612,0]}}"#,
        4,
    ));
    assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
}

#[test]
fn rejects_holes() {
    let a = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    assert!(matches!(refused(file(a, 2)), Error::Hole { begin: 0, count: 1, .. }));
    let a = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    assert!(matches!(refused(file(a, 3)), Error::Hole { begin: 1, count: 2, .. }));
}

#[test]
fn rejects_a_header_of_one_gibibyte_without_reading_it() {
    let mut bytes = (1u64 << 30).to_le_bytes().to_vec();
    bytes.extend(b"{}");
    let error = refused(bytes);
    assert!(matches!(error, Error::TooLarge { found: 1_073_741_824, .. }), "{error}");
}

#[test]
fn rejects_a_header_longer_than_the_file() {
    let mut bytes = 1000u64.to_le_bytes().to_vec();
    bytes.extend(b"{}");
    assert!(matches!(refused(bytes), Error::Truncated { needed: 1000, available: 2, .. }));
    assert!(matches!(refused(vec![1, 2, 3]), Error::Truncated { needed: 8, available: 3, .. }));
}

#[test]
fn rejects_a_name_listed_twice() {
    // The reference crate keeps one of the two here, so only ours is asked.
    let error = open(file(
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
        1,
    ))
    .unwrap_err();
    assert_eq!(error.to_string(), "tensor a: listed twice");
}

#[test]
fn rejects_a_size_that_contradicts_the_shape() {
    let error = refused(file(r#"{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,20]}}"#, 20));
    assert_eq!(error.to_string(), "tensor w: f32 [2, 3] takes 24 bytes, the file gives it 20");
}

#[test]
fn rejects_shapes_whose_product_overflows() {
    for shape in ["[4294967296,4294967296]", "[4611686018427387904]", "[0,18446744073709551615,2]"]
    {
        let header = format!(r#"{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}"#);
        let error = open(file(&header, 0)).unwrap_err();
        assert!(matches!(error, Error::ShapeOverflow { .. }), "{shape}: {error}");
    }
}

#[test]
fn rejects_unknown_types_and_too_many_axes() {
    let error =
        open(file(r#"{"w":{"dtype":"F7","shape":[1],"data_offsets":[0,1]}}"#, 1)).unwrap_err();
    assert!(
        error.to_string().starts_with("tensor w: dtype F7 is not supported (supported: f64, f32")
    );
    let axes = vec!["1"; 40].join(",");
    let header = format!(r#"{{"w":{{"dtype":"U8","shape":[{axes}],"data_offsets":[0,1]}}}}"#);
    assert!(matches!(open(file(&header, 1)), Err(Error::Json { .. })));
}

#[test]
fn rejects_headers_that_are_not_utf8_or_not_json() {
    let mut bytes = file(r#"{"a":1}"#, 0);
    bytes[10] = 0xff;
    assert!(matches!(refused(bytes), Error::HeaderNotUtf8 { at: 2 }));
    let error = refused(file(r#"{"weight":{"dtype":"F32"}}"#, 0));
    assert!(error.to_string().contains("weight: missing field `shape`"), "{error}");
    assert!(matches!(refused(file("[1]", 0)), Error::Json { .. }));
    let nested = format!("{{\"a\":{}", "[".repeat(100_000));
    assert!(matches!(refused(file(&nested, 0)), Error::Json { .. }));
}

fn sample() -> BTreeMap<String, TensorView<'static>> {
    let view = |dtype, shape: &[usize], bytes: Vec<u8>| TensorView {
        dtype,
        shape: shape.to_vec(),
        bytes: Cow::Owned(bytes),
    };
    BTreeMap::from([
        ("bytes".to_string(), view(DType::U8, &[3], vec![1, 2, 3])),
        ("double".to_string(), view(DType::F64, &[1], 0.1f64.to_le_bytes().to_vec())),
        ("halves".to_string(), view(DType::F16, &[2], vec![0, 0x3c, 0, 0xc0])),
        ("scalar".to_string(), view(DType::F32, &[], 2.5f32.to_le_bytes().to_vec())),
    ])
}

#[test]
fn written_files_are_read_back_here_and_by_the_reference() {
    let metadata = BTreeMap::from([("seed".to_string(), "42".to_string())]);
    let bytes = safetensors_bytes(&sample(), &metadata).unwrap();
    assert_eq!(bytes, safetensors_bytes(&sample(), &metadata).unwrap());
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(reference.tensor("double").unwrap().data(), 0.1f64.to_le_bytes());
    assert_eq!(reference.len(), 4);
    let ours = open(bytes.clone()).unwrap();
    for (name, tensor) in sample() {
        assert_eq!(ours.tensor(&name).unwrap(), tensor);
    }
    assert_eq!(ours.metadata(), &metadata);
    assert_eq!(ours.to_f32("halves").unwrap(), [1.0, -2.0]);
    assert_eq!(ours.to_f32("double").unwrap(), [0.1f64 as f32]);
    // Data starts at a multiple of 8, and the widest type comes first.
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(header % 8, 0);
    assert_eq!(bytes[8 + header as usize..][..8], 0.1f64.to_le_bytes());
}

#[test]
fn writing_replaces_a_file_whole_and_leaves_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents.safetensors");
    fs::write(&path, b"old").unwrap();
    write_safetensors(&path, &sample(), &BTreeMap::new()).unwrap();
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 1);
    let read = Checkpoint::open(&path).unwrap();
    assert_eq!(read.to_f32("scalar").unwrap(), [2.5]);
    assert_eq!(read.path(), Some(path.as_path()));
}

#[test]
fn writing_into_a_missing_folder_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("no/such/latents.safetensors");
    let error = write_safetensors(&path, &sample(), &BTreeMap::new()).unwrap_err();
    assert!(error.to_string().contains("latents.safetensors: cannot write"), "{error}");
}

#[test]
fn refuses_to_write_bytes_that_do_not_match_the_shape() {
    let mut tensors = sample();
    tensors.get_mut("bytes").unwrap().shape = vec![4];
    let error = safetensors_bytes(&tensors, &BTreeMap::new()).unwrap_err();
    assert!(matches!(error, Error::SizeMismatch { expected: 4, found: 3, .. }));
}

#[test]
fn a_file_written_in_pieces_equals_the_one_written_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, pieces) = (folder.path().join("whole"), folder.path().join("pieces"));
    let tensors = sample();
    write_safetensors(&whole, &tensors, &BTreeMap::new()).unwrap();
    let specs = tensors.iter().map(|(name, tensor)| TensorSpec {
        name: name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
    });
    let mut writer = SafetensorsWriter::create(&pieces, specs.collect(), &BTreeMap::new()).unwrap();
    let order: Vec<String> = writer.tensors().iter().map(|spec| spec.name.clone()).collect();
    for name in order {
        for piece in tensors[&name].bytes.chunks(3) {
            writer.write(piece).unwrap();
        }
    }
    let error = writer.write(b"x").unwrap_err().to_string();
    assert!(error.contains("the limit is 0"), "{error}");
    writer.finish().unwrap();
    assert_eq!(fs::read(whole).unwrap(), fs::read(pieces).unwrap());
}

#[test]
fn an_unfinished_file_does_not_appear() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let spec = TensorSpec { name: "a".into(), dtype: DType::F32, shape: vec![2] };
    let create = |specs| SafetensorsWriter::create(&path, specs, &BTreeMap::new());
    let mut writer = create(vec![spec.clone()]).unwrap();
    writer.write(&[0; 7]).unwrap();
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("1 bytes"), "{error}");
    drop(create(vec![spec.clone()]).unwrap());
    let error = create(vec![spec.clone(), spec]).unwrap_err().to_string();
    assert!(error.contains("tensor a: listed twice"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
