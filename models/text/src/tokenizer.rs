//! Prompt to token ids: the Unigram tokenizer of T5, from `tokenizer.json` or `spiece.model`.
//!
//! Both loaders build the same pipeline (character map, space folding, space marks, best path
//! through the pieces), so both give the same ids. A file that asks for anything else is refused
//! by name. Ids follow upstream's call: truncation keeps the final `</s>`, padding is on the right.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{self, NormalizerWrapper, Precompiled, Replace};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, Tokenizer as Pipeline};

use crate::{Error, MAX_PROMPT_BYTES, charsmap, spiece};

/// The most bytes of a `tokenizer.json`; T5's has 2.4 million.
const MAX_JSON_BYTES: usize = 64 << 20;
/// Stand-in tokens that T5 appends after the pieces of `spiece.model`.
const EXTRA_IDS: usize = 100;
/// The regular expression that T5's `tokenizer.json` folds spaces with.
const SPACES: &str = " {2,}";

/// A prompt as the text encoder reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, padded on the right to the length asked for.
    pub ids: Vec<i64>,
    /// 1 for each real token, the end token included; 0 for padding. As long as `ids`.
    pub mask: Vec<i64>,
    /// Count of real tokens, at least 1.
    pub n_tokens: usize,
}

/// Splits prompts into the pieces that a T5 text encoder was trained with.
pub struct Tokenizer {
    pipeline: Pipeline,
    pad: u32,
    end: u32,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("pad", &self.pad)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// The parts of `tokenizer.json` that decide ids. Its post-processor and decoder are not read:
/// the end token and padding are T5's.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Option<Value>,
    #[serde(default)]
    pre_tokenizer: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    unk_id: Option<usize>,
    #[serde(default)]
    byte_fallback: bool,
    vocab: Vec<(String, f64)>,
}

fn bad<T>(what: impl fmt::Display) -> Result<T, Error> {
    Err(Error::TokenizerJson(what.to_string()))
}

impl Tokenizer {
    /// Reads a Hugging Face `tokenizer.json` that holds a Unigram model.
    ///
    /// # Errors
    /// Names what is malformed, or what the file asks for that a T5 tokenizer never does.
    pub fn from_tokenizer_json(bytes: &[u8]) -> Result<Tokenizer, Error> {
        if bytes.len() > MAX_JSON_BYTES {
            return bad(format!("{} bytes, expected at most {MAX_JSON_BYTES}", bytes.len()));
        }
        let file: File = serde_json::from_slice(bytes)
            .map_err(|e| Error::TokenizerJson(format!("not a Unigram tokenizer: {e}")))?;
        if let Some(kind) = file.model.kind.filter(|kind| kind != "Unigram") {
            return bad(format!("model type {kind}, expected Unigram"));
        }
        if let Some((id, (piece, score))) = file
            .model
            .vocab
            .iter()
            .enumerate()
            .find(|(_, (piece, score))| piece.is_empty() || !score.is_finite())
        {
            return bad(format!(
                "piece {id} is {piece:?} with score {score}, expected text and a finite score"
            ));
        }
        if file.model.unk_id.is_none() {
            return bad("unk_id is missing, so unknown characters have no token");
        }
        let mut normalizers = Vec::new();
        if let Some(value) = file.normalizer.filter(|value| !value.is_null()) {
            append_normalizers(&value, &mut normalizers)?;
        }
        let pre_tokenizer = match file.pre_tokenizer.filter(|value| !value.is_null()) {
            Some(value) => {
                check_pre_tokenizer(&value)?;
                let wrapper: PreTokenizerWrapper = serde_json::from_value(value)
                    .map_err(|e| Error::TokenizerJson(format!("pre_tokenizer: {e}")))?;
                Some(wrapper)
            }
            None => None,
        };
        let model = Unigram::from(file.model.vocab, file.model.unk_id, file.model.byte_fallback)
            .map_err(|e| Error::TokenizerJson(e.to_string()))?;
        Tokenizer::assemble(model, normalizers, pre_tokenizer, &file.added_tokens)
            .map_err(Error::TokenizerJson)
    }

    /// Reads a sentencepiece `spiece.model` of T5's kind: Unigram, `<pad>` `</s>` `<unk>` first.
    ///
    /// # Errors
    /// Names what is malformed, or what the file asks for that a T5 tokenizer never does.
    pub fn from_spiece(bytes: &[u8]) -> Result<Tokenizer, Error> {
        let read = spiece::read(bytes)?;
        let mut normalizers = Vec::new();
        if !read.charsmap.is_empty() {
            normalizers.push(precompiled(read.charsmap)?.into());
        }
        if read.remove_extra_whitespaces {
            normalizers.push(fold_spaces()?.into());
        }
        let scheme =
            if read.add_dummy_prefix { PrependScheme::Always } else { PrependScheme::Never };
        let mut vocab: Vec<(String, f64)> = read
            .pieces
            .iter()
            .map(|&(piece, score)| (piece.to_string(), f64::from(score)))
            .collect();
        let mut added: Vec<Added> = ["<pad>", "</s>", "<unk>"]
            .into_iter()
            .filter_map(|name| {
                let id = read.pieces.iter().position(|(piece, _)| *piece == name)?;
                Some(Added::special(id, name.to_string()))
            })
            .collect();
        for n in (0..EXTRA_IDS).rev() {
            let name = format!("<extra_id_{n}>");
            added.push(Added::special(vocab.len(), name.clone()));
            vocab.push((name, 0.0));
        }
        let model = Unigram::from(vocab, Some(read.unknown), false)
            .map_err(|e| Error::SentencePiece(e.to_string()))?;
        let marks = Metaspace::new('▁', scheme, true).into();
        Tokenizer::assemble(model, normalizers, Some(marks), &added).map_err(Error::SentencePiece)
    }

    fn assemble(
        model: Unigram,
        normalizers: Vec<NormalizerWrapper>,
        pre_tokenizer: Option<PreTokenizerWrapper>,
        added: &[Added],
    ) -> Result<Tokenizer, String> {
        let mut pipeline = Pipeline::new(model);
        pipeline
            .with_normalizer(Some(normalizers::Sequence::new(normalizers)))
            .map_err(|e| e.to_string())?;
        pipeline.with_pre_tokenizer(pre_tokenizer);
        for token in added {
            let entry = AddedToken {
                content: token.content.clone(),
                single_word: token.single_word,
                lstrip: token.lstrip,
                rstrip: token.rstrip,
                normalized: token.normalized,
                special: token.special,
            };
            let outcome = if token.special {
                pipeline.add_special_tokens([entry])
            } else {
                pipeline.add_tokens([entry])
            };
            outcome.map_err(|e| format!("added token {:?}: {e}", token.content))?;
            let id = pipeline.token_to_id(&token.content);
            if id != Some(token.id) {
                return Err(format!(
                    "added token {:?} has id {}, expected {id:?} from its place in the vocabulary",
                    token.content, token.id
                ));
            }
        }
        let id = |name: &str| {
            pipeline.token_to_id(name).ok_or_else(|| format!("no token {name}; a T5 model has one"))
        };
        let (pad, end) = (id("<pad>")?, id("</s>")?);
        Ok(Tokenizer { pipeline, pad, end })
    }

    /// Count of token ids; the text encoder's embedding has at least as many rows.
    pub fn vocab_size(&self) -> usize {
        self.pipeline.get_vocab_size(true)
    }

    /// Ids of `text` with the end token, neither cut nor padded.
    ///
    /// # Errors
    /// Refuses a text longer than [`MAX_PROMPT_BYTES`].
    pub fn ids(&self, text: &str) -> Result<Vec<u32>, Error> {
        if text.len() > MAX_PROMPT_BYTES {
            return Err(Error::LongPrompt { bytes: text.len(), limit: MAX_PROMPT_BYTES });
        }
        let encoding =
            self.pipeline.encode_fast(text, false).map_err(|e| Error::Tokenize(e.to_string()))?;
        let mut ids = encoding.get_ids().to_vec();
        ids.push(self.end);
        Ok(ids)
    }

    /// Ids of `text`, cut to `max_length` with the end token kept, and padded to it.
    ///
    /// # Errors
    /// Refuses `max_length` 0 and a text longer than [`MAX_PROMPT_BYTES`].
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Encoded, Error> {
        if max_length == 0 {
            return Err(Error::NoRoom);
        }
        let mut ids = self.ids(text)?;
        if ids.len() > max_length {
            ids.truncate(max_length - 1);
            ids.push(self.end);
        }
        let n_tokens = ids.len();
        let mut ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
        ids.resize(max_length, i64::from(self.pad));
        let mask = (0..max_length).map(|n| i64::from(n < n_tokens)).collect();
        Ok(Encoded { ids, mask, n_tokens })
    }
}

impl Added {
    fn special(id: usize, content: String) -> Added {
        Added {
            id: id as u32,
            content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: true,
        }
    }
}

fn precompiled(map: &[u8]) -> Result<Precompiled, Error> {
    charsmap::check(map)?;
    Precompiled::from(map).map_err(|e| Error::Charsmap(e.to_string()))
}

fn fold_spaces() -> Result<Replace, Error> {
    Replace::new(ReplacePattern::Regex(SPACES.into()), " ")
        .map_err(|e| Error::TokenizerJson(e.to_string()))
}

fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or("without a type")
}

/// Appends what `value` describes, in order. Refuses a kind that is not known to stay inside its
/// bounds: a free regular expression may take exponential time.
fn append_normalizers(value: &Value, list: &mut Vec<NormalizerWrapper>) -> Result<(), Error> {
    match kind(value) {
        "Sequence" => {
            let Some(parts) = value.get("normalizers").and_then(Value::as_array) else {
                return bad("normalizer Sequence has no list `normalizers`");
            };
            parts.iter().try_for_each(|part| append_normalizers(part, list))
        }
        "Precompiled" => {
            let Some(map) = value.get("precompiled_charsmap").and_then(Value::as_str) else {
                return bad("normalizer Precompiled has no text `precompiled_charsmap`");
            };
            list.push(precompiled(&decode_base64(map)?)?.into());
            Ok(())
        }
        "Replace" => {
            let content = value.get("content").and_then(Value::as_str).unwrap_or_default();
            let pattern = value.get("pattern");
            let literal = pattern.and_then(|p| p.get("String")).and_then(Value::as_str);
            let regex = pattern.and_then(|p| p.get("Regex")).and_then(Value::as_str);
            let replace = match (literal, regex) {
                (Some(literal), None) if !literal.is_empty() => {
                    Replace::new(ReplacePattern::String(literal.into()), content)
                        .map_err(|e| Error::TokenizerJson(e.to_string()))?
                }
                (None, Some(SPACES)) if content == " " => fold_spaces()?,
                _ => {
                    return bad(format!(
                        "normalizer Replace {value}, expected a literal text or the expression {SPACES:?}"
                    ));
                }
            };
            list.push(replace.into());
            Ok(())
        }
        "NFC" | "NFD" | "NFKC" | "NFKD" | "Nmt" | "Strip" | "StripAccents" | "Lowercase" => {
            let normalizer: NormalizerWrapper = serde_json::from_value(value.clone())
                .map_err(|e| Error::TokenizerJson(format!("normalizer: {e}")))?;
            list.push(normalizer);
            Ok(())
        }
        other => bad(format!("normalizer {other}, which no T5 tokenizer has")),
    }
}

fn check_pre_tokenizer(value: &Value) -> Result<(), Error> {
    match kind(value) {
        "Metaspace" | "WhitespaceSplit" => Ok(()),
        "Sequence" => {
            let parts = value.get("pretokenizers").and_then(Value::as_array);
            parts.into_iter().flatten().try_for_each(check_pre_tokenizer)
        }
        other => bad(format!("pre_tokenizer {other}, which no T5 tokenizer has")),
    }
}

/// Standard base64 with padding.
fn decode_base64(text: &str) -> Result<Vec<u8>, Error> {
    let digits = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for &digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return bad("precompiled_charsmap is not base64"),
            };
            bits = bits << 6 | u32::from(value);
        }
        if group.len() == 1 {
            return bad("precompiled_charsmap is not base64 (cut short)");
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Ok(bytes)
}
