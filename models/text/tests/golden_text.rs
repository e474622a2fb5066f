//! Token ids and cleaned captions against upstream's own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use serde_json::Value;
use text::{Tokenizer, clean_caption, text_preprocessing};

/// The folder of golden cases: `KINO_GOLDENS`, or the workspace's copy.
fn goldens() -> PathBuf {
    std::env::var_os("KINO_GOLDENS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden")),
        PathBuf::from,
    )
}

fn read(name: &str) -> Vec<u8> {
    let path = goldens().join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&read(name)).unwrap()
}

fn rows<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    let rows = value[key].as_array().unwrap();
    assert!(!rows.is_empty(), "{key} has no rows");
    rows
}

fn ids(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

fn check_t5(tokenizer: &Tokenizer) {
    let golden = json("t5_tokenizer/tokenized.json");
    for row in rows(&golden, "unpadded") {
        let text = row["text"].as_str().unwrap();
        let got: Vec<i64> = tokenizer.ids(text).unwrap().into_iter().map(i64::from).collect();
        assert_eq!(got, ids(&row["ids"]), "{text:?}");
    }
    for row in rows(&golden, "padded") {
        let text = row["text"].as_str().unwrap();
        let max_length = row["max_length"].as_u64().unwrap() as usize;
        let encoded = tokenizer.encode(text, max_length).unwrap();
        assert_eq!(encoded.ids, ids(&row["input_ids"]), "{text:?}");
        assert_eq!(encoded.mask, ids(&row["attention_mask"]), "{text:?}");
        assert_eq!(encoded.n_tokens as i64, encoded.mask.iter().sum::<i64>());
    }
}

#[test]
fn t5_ids_are_upstreams() {
    let tokenizer = Tokenizer::from_tokenizer_json(&read("t5_tokenizer/tokenizer.json")).unwrap();
    assert_eq!(tokenizer.vocab_size(), 32_100);
    check_t5(&tokenizer);
}

/// The tokenizer that comes with the embedded model: NFKC, words as pieces, 24 tokens.
#[test]
fn a_hand_assembled_tokenizer_gives_its_models_ids() {
    let file = include_bytes!("data/tiny-flare-1.1-tokenizer.json");
    let tokenizer = Tokenizer::from_tokenizer_json(file).unwrap();
    let encoded = tokenizer.encode("a zombie runs to the left on green grass", 24).unwrap();
    let mut ids = vec![5, 39, 25, 27, 4, 8, 7, 13, 12, 1];
    assert_eq!(encoded.n_tokens, ids.len());
    ids.resize(24, 0);
    assert_eq!(encoded.ids, ids);
}

#[test]
fn captions_are_cleaned_as_upstream_cleans_them() {
    let golden = json("text/text_preprocessing.json");
    for row in rows(&golden, "cases") {
        let text = row["text"].as_str().unwrap();
        assert_eq!(clean_caption(text), row["once"].as_str().unwrap(), "{text:?}");
        assert_eq!(text_preprocessing(text, true), row["out"].as_str().unwrap(), "{text:?}");
        let plain = row["lower_strip"].as_str().unwrap();
        assert_eq!(text_preprocessing(text, false), plain, "{text:?}");
    }
}

/// Just enough of protocol buffers to write a `spiece.model`.
mod protobuf {
    pub(super) fn varint(mut value: u64, out: &mut Vec<u8>) {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    pub(super) fn bytes(field: u64, bytes: &[u8], out: &mut Vec<u8>) {
        varint(field << 3 | 2, out);
        varint(bytes.len() as u64, out);
        out.extend(bytes);
    }

    pub(super) fn number(field: u64, value: u64, out: &mut Vec<u8>) {
        varint(field << 3, out);
        varint(value, out);
    }
}

fn piece(text: &str, score: f64, kind: u64, out: &mut Vec<u8>) {
    let mut piece = Vec::new();
    protobuf::bytes(1, text.as_bytes(), &mut piece);
    piece.push(2 << 3 | 5);
    piece.extend((score as f32).to_le_bytes());
    protobuf::number(3, kind, &mut piece);
    protobuf::bytes(1, &piece, out);
}

fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for digit in text.bytes().filter(|&b| b != b'=') {
        let value = DIGITS.iter().position(|&d| d == digit).unwrap() as u32;
        bits = (bits << 6 | value) & 0xFFFF;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    out
}

/// T5's sentencepiece model, written from its `tokenizer.json`.
fn spiece_model() -> Vec<u8> {
    let file = json("t5_tokenizer/tokenizer.json");
    let mut model = Vec::new();
    for (id, entry) in file["model"]["vocab"].as_array().unwrap().iter().take(32_000).enumerate() {
        let kind = [3, 3, 2].get(id).copied().unwrap_or(1);
        piece(entry[0].as_str().unwrap(), entry[1].as_f64().unwrap(), kind, &mut model);
    }
    let mut trainer = Vec::new();
    protobuf::number(3, 1, &mut trainer);
    protobuf::bytes(2, &trainer, &mut model);
    let map = file["normalizer"]["normalizers"][0]["precompiled_charsmap"].as_str().unwrap();
    let mut normalizer = Vec::new();
    protobuf::bytes(1, b"nmt_nfkc", &mut normalizer);
    protobuf::bytes(2, &base64(map), &mut normalizer);
    protobuf::number(3, 1, &mut normalizer);
    protobuf::number(4, 1, &mut normalizer);
    protobuf::bytes(3, &normalizer, &mut model);
    model
}

#[test]
fn a_sentencepiece_model_gives_the_same_ids() {
    let model = spiece_model();
    let tokenizer = Tokenizer::from_spiece(&model).unwrap();
    assert_eq!(tokenizer.vocab_size(), 32_100);
    check_t5(&tokenizer);
    let json = Tokenizer::from_tokenizer_json(&read("t5_tokenizer/tokenizer.json")).unwrap();
    for text in ["<extra_id_0> and </s>", "\u{ad}ﬃ ①  x", "a\nb\tc", "𝒳 e\u{301} カﾞ"] {
        assert_eq!(tokenizer.ids(text).unwrap(), json.ids(text).unwrap(), "{text:?}");
    }
}

#[test]
fn the_seeds_of_fuzzing_are_tokenizers() {
    // Pieces: <pad> </s> <unk> \u{2581} \u{2581}a a cat c t e\u{301}.
    let seed = |name: &str| {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fuzz/seeds");
        std::fs::read(format!("{seeds}/{name}")).unwrap()
    };
    let ids = |name: &str, text: &str| {
        Tokenizer::from_spiece(&seed(&format!("spiece/{name}"))).unwrap().ids(text).unwrap()
    };
    assert_eq!(ids("plain", "a  cat"), [4, 3, 6, 1]);
    assert_eq!(ids("plain", "A cat"), [3, 2, 3, 6, 1]);
    // Its character map says `A` for `a`, and spaces are not folded.
    assert_eq!(ids("with_charsmap", "A cat"), ids("plain", "a cat"));
    assert_ne!(ids("with_charsmap", "a  cat"), ids("plain", "a  cat"));
    // Pieces: <pad> </s> <unk> \u{2581} \u{2581}a cat; </s> is appended though the file does not ask
    // for it.
    let json = Tokenizer::from_tokenizer_json(&seed("tokenizer_json/small")).unwrap();
    assert_eq!(json.ids("a  cat").unwrap(), [4, 3, 5, 1]);
}

#[test]
fn a_damaged_sentencepiece_model_is_an_error() {
    let model = spiece_model();
    // Every cut of the first pieces and some of the rest: the unknown piece is the third.
    for length in (0..200).chain((200..model.len()).step_by(40_009)) {
        let _ = Tokenizer::from_spiece(&model[..length]);
    }
    for (bytes, expected) in [
        (&model[..3], "fields"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f".as_slice(), "bytes where 0 are left"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "longer than 10 bytes"),
        (b"\x0b", "wire type 3"),
        (b"", "0 pieces, none of them unknown"),
        (b"\x12\x02\x18\x02", "model type 2, expected 1"),
        (b"\x0a\x07\x0a\x00\x15\0\0\0\0", "piece 0 is not UTF-8 text"),
        (b"\x0a\x08\x0a\x01a\x15\0\0\xc0\x7f", "score NaN"),
    ] {
        let error = Tokenizer::from_spiece(bytes).unwrap_err().to_string();
        let cut = expected == "fields" && error.contains("a field of");
        assert!(cut || error.contains(expected), "{error}");
    }
}

#[test]
fn a_tokenizer_json_that_asks_for_more_is_an_error() {
    let model = r#""model":{"type":"Unigram","unk_id":2,"vocab":[["<pad>",0],["</s>",0],["<unk>",0],["▁a",-1]]}"#;
    let with = |parts: &str| {
        let text = format!("{{{parts}{model}}}");
        Tokenizer::from_tokenizer_json(text.as_bytes())
    };
    assert_eq!(with("").unwrap().vocab_size(), 4);
    for (parts, expected) in [
        (
            r#""normalizer":{"type":"Replace","pattern":{"Regex":"(a*)*b"},"content":""},"#,
            "Replace",
        ),
        (r#""normalizer":{"type":"Precompiled","precompiled_charsmap":"/////w=="},"#, "a trie of"),
        (r#""normalizer":{"type":"Precompiled","precompiled_charsmap":"~"},"#, "not base64"),
        (r#""pre_tokenizer":{"type":"ByteLevel"},"#, "pre_tokenizer ByteLevel"),
        (r#""added_tokens":[{"id":9,"content":"<x>"}],"#, "has id 9, expected Some(4)"),
    ] {
        let error = with(parts).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    for (text, expected) in [
        ("{}", "missing field `model`"),
        (r#"{"model":{"type":"BPE","vocab":[]}}"#, "model type BPE, expected Unigram"),
        (r#"{"model":{"vocab":[["",0]],"unk_id":0}}"#, "piece 0 is \"\""),
        (r#"{"model":{"vocab":[["a",0]],"unk_id":3}}"#, "unk_id"),
        (r#"{"model":{"vocab":[["a",0]],"unk_id":0}}"#, "no token <pad>"),
    ] {
        let error = Tokenizer::from_tokenizer_json(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_prompt_is_bounded() {
    let tokenizer = Tokenizer::from_tokenizer_json(&read("t5_tokenizer/tokenizer.json")).unwrap();
    let error = tokenizer.encode(&"word ".repeat(10_000), 120).unwrap_err().to_string();
    assert!(error.contains("50000 bytes, expected at most 16384"), "{error}");
    assert!(tokenizer.encode("a", 0).unwrap_err().to_string().contains("max_length is 0"));
    let one = tokenizer.encode("a cat", 1).unwrap();
    assert_eq!((one.ids, one.n_tokens), (vec![1], 1));
    assert_eq!(tokenizer.encode("", 3).unwrap().ids, [1, 0, 0]);
}
