//! Metadata in `moov/udta/meta/ilst`, the list that players show.
//!
//! Each entry is a freeform `----` item of mean `kinograph`, which players pass over. The prompt is also a
//! comment (`©cmt`) and the version the encoder (`©too`), for people; these two are not read back.

use std::io::{Read, Seek};

use super::moov::{boxed, full_box};
use crate::Metadata;
use crate::error::Fault;
use crate::metadata::MAX_BYTES;
use crate::source::Source;

const MEAN: &[u8] = b"kinograph";

/// Data type of UTF-8 text in a `data` box.
const UTF8: u32 = 1;

/// Bytes of version and flags in a full box.
const FULL: u64 = 4;

/// Appends the `meta` box.
pub(crate) fn write(out: &mut Vec<u8>, metadata: &Metadata) {
    full_box(out, b"meta", 0, |b| {
        full_box(b, b"hdlr", 0, |b| b.extend(b"\0\0\0\0mdirappl\0\0\0\0\0\0\0\0\0"));
        boxed(b, b"ilst", |b| {
            for (key, kind) in [("prompt", b"\xa9cmt"), ("version", b"\xa9too")] {
                if let Some(text) = metadata.get(key) {
                    let shown =
                        if key == "version" { format!("Kinograph {text}") } else { text.into() };
                    boxed(b, kind, |b| data(b, &shown));
                }
            }
            for (key, text) in metadata.iter() {
                boxed(b, b"----", |b| {
                    full_box(b, b"mean", 0, |b| b.extend(MEAN));
                    full_box(b, b"name", 0, |b| b.extend(key.as_bytes()));
                    data(b, text);
                });
            }
        });
    });
}

fn data(out: &mut Vec<u8>, text: &str) {
    boxed(out, b"data", |b| {
        b.extend(UTF8.to_be_bytes());
        b.extend([0; 4]); // any locale
        b.extend(text.as_bytes());
    });
}

/// A box's type and where its payload ends.
struct Header {
    kind: [u8; 4],
    end: u64,
}

/// Reads our items; a file without them gives no entries.
pub(crate) fn read_metadata(input: impl Read + Seek) -> Result<Metadata, Fault> {
    let mut source = Source::new(input)?;
    let mut metadata = Metadata::new();
    let end = source.end();
    let Some(mut end) = find(&mut source, end, b"moov")? else { return Ok(metadata) };
    for kind in [b"udta", b"meta", b"ilst"] {
        let Some(inner) = find(&mut source, end, kind)? else { return Ok(metadata) };
        end = inner;
        if kind == b"meta" {
            skip_within(&mut source, end, FULL)?;
        }
    }
    while let Some(item) = next_box(&mut source, end)? {
        if &item.kind == b"----"
            && let Some((key, text)) = freeform(&mut source, item.end)?
        {
            metadata.push_read(&key, &text)?;
        }
        let rest = item.end - source.pos();
        source.skip(rest, "metadata item")?;
    }
    Ok(metadata)
}

/// The key and text of a freeform item, if it is ours.
fn freeform(
    source: &mut Source<impl Read + Seek>,
    end: u64,
) -> Result<Option<(String, String)>, Fault> {
    let [mut mean, mut name, mut value] = [None, None, None];
    while let Some(part) = next_box(source, end)? {
        let (slot, prefix) = match &part.kind {
            b"mean" => (&mut mean, FULL),
            b"name" => (&mut name, FULL),
            b"data" => (&mut value, 8),
            _ => {
                source.skip(part.end - source.pos(), "part of a metadata item")?;
                continue;
            }
        };
        skip_within(source, part.end, prefix)?;
        let bytes = source.bytes(part.end - source.pos(), MAX_BYTES, "metadata text")?;
        if slot.replace(bytes).is_some() {
            return Err(Fault::Malformed("a metadata item has a part twice".into()));
        }
    }
    if mean.as_deref() != Some(MEAN) {
        return Ok(None);
    }
    let text = |bytes: Option<Vec<u8>>, what| {
        let bytes =
            bytes.ok_or_else(|| Fault::Malformed(format!("a metadata item has no {what}")))?;
        String::from_utf8(bytes)
            .map_err(|_| Fault::Malformed(format!("a metadata item's {what} is not UTF-8")))
    };
    Ok(Some((text(name, "name")?, text(value, "text")?)))
}

/// Passes over boxes up to one of type `kind` and stays at its payload, whose end it returns.
fn find(
    source: &mut Source<impl Read + Seek>,
    end: u64,
    kind: &[u8; 4],
) -> Result<Option<u64>, Fault> {
    while let Some(header) = next_box(source, end)? {
        if &header.kind == kind {
            return Ok(Some(header.end));
        }
        source.skip(header.end - source.pos(), "box")?;
    }
    Ok(None)
}

/// Reads the header of the next box that must end by `end`; `None` at `end`.
fn next_box(source: &mut Source<impl Read + Seek>, end: u64) -> Result<Option<Header>, Fault> {
    let start = source.pos();
    if start == end {
        return Ok(None);
    }
    source.count_part()?;
    if end - start < 8 {
        return Err(Fault::Malformed(format!("{} stray bytes at byte {start}", end - start)));
    }
    let [l0, l1, l2, l3, kind @ ..]: [u8; 8] = source.array("box header")?;
    let len = match u32::from_be_bytes([l0, l1, l2, l3]) {
        // To the end of the surroundings.
        0 => end - start,
        // A 64-bit length follows.
        1 => u64::from_be_bytes(source.array("box length")?),
        len => len.into(),
    };
    match start.checked_add(len).filter(|&box_end| box_end >= source.pos() && box_end <= end) {
        Some(end) => Ok(Some(Header { kind, end })),
        None => Err(Fault::Malformed(format!(
            "box at byte {start} is {len} bytes long, {} are left around it",
            end - start
        ))),
    }
}

fn skip_within(source: &mut Source<impl Read + Seek>, end: u64, len: u64) -> Result<(), Fault> {
    if end - source.pos() < len {
        return Err(Fault::Malformed(format!("box ending at byte {end} is too short")));
    }
    source.skip(len, "box")
}
