//! Reads a sentencepiece model file (`spiece.model`), as far as a T5 Unigram tokenizer needs it.
//!
//! The file is one protocol-buffer message, `ModelProto` of sentencepiece's
//! `sentencepiece_model.proto`. Everything is borrowed from the bytes; nothing is allocated for a
//! length that the file only claims.

use crate::Error;

/// The most pieces a model may have; T5 has 32,000, the largest published models 256,000.
const MAX_PIECES: usize = 1 << 20;
/// The most bytes of one piece.
const MAX_PIECE_BYTES: usize = 1 << 10;

/// What a sentencepiece model says about tokenizing.
#[derive(Debug)]
pub(crate) struct Model<'a> {
    /// Pieces in id order, with their log probabilities.
    pub(crate) pieces: Vec<(&'a str, f32)>,
    /// Id of the piece that stands for unknown characters.
    pub(crate) unknown: usize,
    /// Compiled character map of the normalizer; empty for none.
    pub(crate) charsmap: &'a [u8],
    /// Whether a text starts with a space mark.
    pub(crate) add_dummy_prefix: bool,
    /// Whether runs of spaces are one space.
    pub(crate) remove_extra_whitespaces: bool,
}

/// One protocol-buffer field.
enum Field<'a> {
    Varint(u64),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
    Skipped,
}

/// Fields of one message, in file order.
struct Fields<'a> {
    rest: &'a [u8],
}

fn bad<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::SentencePiece(what.into()))
}

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let Some((head, rest)) = self.rest.split_at_checked(count) else {
            return bad(format!(
                "a field of {count} bytes where {} are left; the file is damaged or no SentencePiece model",
                self.rest.len()
            ));
        };
        self.rest = rest;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        bad("a number longer than 10 bytes; the file is damaged or no SentencePiece model")
    }

    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Skipped
            }
            2 => {
                let count = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                Field::Bytes(self.take(count)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Fixed32([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
            wire => {
                return bad(format!(
                    "wire type {wire}; the file is damaged or no SentencePiece model"
                ));
            }
        };
        Ok(Some((key >> 3, field)))
    }
}

/// Piece kinds of `SentencePiece.Type`.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const BYTE: u64 = 6;

fn piece(bytes: &[u8], id: usize) -> Result<((&str, f32), u64), Error> {
    let (mut text, mut score, mut kind) = ("", 0f32, NORMAL);
    let mut fields = Fields { rest: bytes };
    while let Some(field) = fields.next()? {
        match field {
            (1, Field::Bytes(bytes)) => {
                text = match std::str::from_utf8(bytes) {
                    Ok(text) if !text.is_empty() && text.len() <= MAX_PIECE_BYTES => text,
                    _ => {
                        return bad(format!(
                            "piece {id} is not UTF-8 text of 1 to {MAX_PIECE_BYTES} bytes"
                        ));
                    }
                };
            }
            (2, Field::Fixed32(bytes)) => score = f32::from_le_bytes(bytes),
            (3, Field::Varint(value)) => kind = value,
            _ => {}
        }
    }
    if text.is_empty() {
        return bad(format!("piece {id} has no text"));
    }
    if !score.is_finite() {
        return bad(format!("piece {id} has score {score}, expected a finite number"));
    }
    Ok(((text, score), kind))
}

/// Reads the pieces and the normalizer's settings.
pub(crate) fn read(bytes: &[u8]) -> Result<Model<'_>, Error> {
    let mut model = Model {
        pieces: Vec::new(),
        unknown: usize::MAX,
        charsmap: &[],
        add_dummy_prefix: true,
        remove_extra_whitespaces: true,
    };
    let mut fields = Fields { rest: bytes };
    while let Some(field) = fields.next()? {
        match field {
            (1, Field::Bytes(bytes)) => {
                let id = model.pieces.len();
                if id == MAX_PIECES {
                    return bad(format!("more than {MAX_PIECES} pieces"));
                }
                let (entry, kind) = piece(bytes, id)?;
                match kind {
                    UNKNOWN if model.unknown != usize::MAX => {
                        return bad(format!("pieces {} and {id} are both unknown", model.unknown));
                    }
                    UNKNOWN => model.unknown = id,
                    BYTE => return bad("byte fallback pieces; a T5 model has none"),
                    _ => {}
                }
                model.pieces.push(entry);
            }
            (2, Field::Bytes(bytes)) => {
                let mut trainer = Fields { rest: bytes };
                while let Some(field) = trainer.next()? {
                    if let (3, Field::Varint(kind)) = field
                        && kind != 1
                    {
                        return bad(format!("model type {kind}, expected 1 (unigram)"));
                    }
                }
            }
            (3, Field::Bytes(bytes)) => {
                let mut normalizer = Fields { rest: bytes };
                while let Some(field) = normalizer.next()? {
                    match field {
                        (2, Field::Bytes(map)) => model.charsmap = map,
                        (3, Field::Varint(on)) => model.add_dummy_prefix = on != 0,
                        (4, Field::Varint(on)) => model.remove_extra_whitespaces = on != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if model.unknown == usize::MAX {
        return bad(format!("{} pieces, none of them unknown", model.pieces.len()));
    }
    Ok(model)
}
