//! Animated WebP: lossless (VP8L) frames in a VP8X, ANIM, ANMF container, metadata in an XMP chunk.
//!
//! Chunk layout from the WebP Container Specification. Frames go straight to the file; only the RIFF size
//! is patched at the end. The XMP packet holds the metadata's JSON in one element, `kinograph:metadata`.

use std::io::{BufWriter, Read, Seek, SeekFrom, Write};

use image_webp::{ColorType, WebPEncoder};

use crate::error::Fault;
use crate::metadata::MAX_JSON_BYTES;
use crate::part_file::PartFile;
use crate::source::Source;
use crate::{Fps, Metadata};

/// Flags of the VP8X chunk.
const HAS_ANIMATION: u8 = 1 << 1;
const HAS_XMP: u8 = 1 << 2;

/// A frame replaces the canvas (no alpha blending) and stays (no disposal).
const NO_BLENDING: u8 = 1 << 1;

const OPEN: &str = "<kinograph:metadata>";
const CLOSE: &str = "</kinograph:metadata>";

/// Streams frames into an animated WebP.
#[derive(Debug)]
pub(crate) struct WebPWriter {
    out: BufWriter<PartFile>,
    size: [u32; 2],
    fps: Fps,
    xmp: Vec<u8>,
    frames: u64,
    /// Bytes written so far, the RIFF header included.
    bytes: u64,
}

impl WebPWriter {
    pub(crate) fn new(
        part: PartFile,
        size: [u32; 2],
        fps: Fps,
        metadata: &Metadata,
    ) -> Result<Self, Fault> {
        let xmp = xmp_packet(metadata).into_bytes();
        let mut writer = Self { out: BufWriter::new(part), size, fps, xmp, frames: 0, bytes: 12 };
        writer.out.write_all(b"RIFF\0\0\0\0WEBP")?;
        let mut vp8x = vec![HAS_ANIMATION | HAS_XMP, 0, 0, 0];
        vp8x.extend(u24(size[0] - 1));
        vp8x.extend(u24(size[1] - 1));
        writer.chunk(b"VP8X", &[&vp8x])?;
        // Background color, unused because every frame covers the canvas, and 0 for endless loops.
        writer.chunk(b"ANIM", &[&[0; 6]])?;
        Ok(writer)
    }

    pub(crate) fn push(&mut self, rgb: &[u8]) -> Result<(), Fault> {
        let mut file = Vec::new();
        let [width, height] = self.size;
        WebPEncoder::new(&mut file).encode(rgb, width, height, ColorType::Rgb8)?;
        // A still file is a 12-byte RIFF header and the VP8L chunk, which is what a frame holds.
        let image = file
            .strip_prefix(b"RIFF")
            .and_then(|rest| rest.get(4..)?.strip_prefix(b"WEBP"))
            .filter(|rest| rest.starts_with(b"VP8L"))
            .ok_or_else(|| Fault::Encode("the WebP encoder gave no VP8L image".into()))?;
        let duration = self.fps.duration(self.frames, 1000);
        let duration = u32::try_from(duration)
            .ok()
            .filter(|&ms| ms < 1 << 24)
            .ok_or_else(|| Fault::Encode("a WebP frame cannot last 2^24 ms".into()))?;
        let mut header = vec![0; 6];
        header.extend(u24(width - 1));
        header.extend(u24(height - 1));
        header.extend(u24(duration));
        header.push(NO_BLENDING);
        self.chunk(b"ANMF", &[&header, image])?;
        self.frames += 1;
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<u64, Fault> {
        let xmp = std::mem::take(&mut self.xmp);
        self.chunk(b"XMP ", &[&xmp])?;
        let riff_size = (self.bytes - 8) as u32;
        let mut part = self.out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        part.seek(SeekFrom::Start(4))?;
        part.write_all(&riff_size.to_le_bytes())?;
        Ok(part.commit()?)
    }

    /// Writes one chunk whose payload is `parts` in sequence, padded to an even length.
    fn chunk(&mut self, name: &[u8; 4], parts: &[&[u8]]) -> Result<(), Fault> {
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let total = self.bytes + 8 + len + len % 2;
        // The specification's largest RIFF size is 2^32 - 10.
        if total - 8 > u64::from(u32::MAX) - 9 {
            return Err(Fault::Encode(
                "WebP files end at 4 GiB: choose fewer or smaller frames, or MP4".into(),
            ));
        }
        self.out.write_all(name)?;
        self.out.write_all(&(len as u32).to_le_bytes())?;
        for part in parts {
            self.out.write_all(part)?;
        }
        if len % 2 == 1 {
            self.out.write_all(&[0])?;
        }
        self.bytes = total;
        Ok(())
    }
}

/// Reads the XMP chunk.
pub(crate) fn read_metadata(input: impl Read + Seek) -> Result<Metadata, Fault> {
    let mut source = Source::new(input)?;
    let header: [u8; 12] = source.array("RIFF header")?;
    if &header[..4] != b"RIFF" || &header[8..] != b"WEBP" {
        return Err(Fault::Malformed("not a WebP: expected RIFF....WEBP".into()));
    }
    let riff_size = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    let end = u64::from(riff_size) + 8;
    if end > source.end() || riff_size % 2 == 1 {
        return Err(Fault::Malformed(format!(
            "RIFF size is {riff_size}, expected an even size of at most {}",
            source.end() - 8
        )));
    }
    while source.pos() < end {
        source.count_part()?;
        let [n0, n1, n2, n3, l0, l1, l2, l3]: [u8; 8] = source.array("chunk header")?;
        let len = u64::from(u32::from_le_bytes([l0, l1, l2, l3]));
        if source.pos() + len + len % 2 > end {
            return Err(Fault::Malformed(format!(
                "chunk at byte {} is {len} bytes long, past the end of the RIFF",
                source.pos() - 8
            )));
        }
        if &[n0, n1, n2, n3] == b"XMP " {
            // The escapes of XML make the JSON at most six times longer; the envelope is small.
            let xmp = source.bytes(len, MAX_JSON_BYTES * 6 + 4096, "XMP chunk")?;
            return from_xmp(&xmp);
        }
        source.skip(len + len % 2, "chunk")?;
    }
    Ok(Metadata::new())
}

fn u24(value: u32) -> [u8; 3] {
    let [a, b, c, _] = value.to_le_bytes();
    [a, b, c]
}

fn xmp_packet(metadata: &Metadata) -> String {
    let json = escape(&metadata.to_ascii_json());
    let description = match metadata.get("prompt") {
        // Viewers show this one. XML cannot hold control characters, not even escaped.
        Some(prompt) => format!(
            "<dc:description><rdf:Alt><rdf:li xml:lang=\"x-default\">{}</rdf:li></rdf:Alt></dc:description>",
            escape(
                &prompt.replace(|c: char| c.is_control() || c > '\u{fffd}' && c < '\u{10000}', " ")
            )
        ),
        None => String::new(),
    };
    format!(
        "<x:xmpmeta xmlns:x=\"adobe:ns:meta/\">\
         <rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\
         <rdf:Description rdf:about=\"\" xmlns:dc=\"http://purl.org/dc/elements/1.1/\" \
         xmlns:kinograph=\"urn:kinograph:metadata\">{description}{OPEN}{json}{CLOSE}\
         </rdf:Description></rdf:RDF></x:xmpmeta>"
    )
}

/// The JSON between the one pair of tags; an XMP packet of another program has none.
fn from_xmp(xmp: &[u8]) -> Result<Metadata, Fault> {
    let text =
        std::str::from_utf8(xmp).map_err(|_| Fault::Malformed("XMP chunk is not UTF-8".into()))?;
    let Some((_, rest)) = text.split_once(OPEN) else { return Ok(Metadata::new()) };
    let Some((json, _)) = rest.split_once(CLOSE) else {
        return Err(Fault::Malformed(format!("XMP chunk has {OPEN} without {CLOSE}")));
    };
    Metadata::from_json(unescape(json)?.as_bytes())
}

const ESCAPES: [(char, &str); 4] = [('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;"), ('"', "&quot;")];

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match ESCAPES.iter().find(|(plain, _)| *plain == c) {
            Some((_, entity)) => escaped.push_str(entity),
            None => escaped.push(c),
        }
    }
    escaped
}

fn unescape(text: &str) -> Result<String, Fault> {
    let mut pieces = text.split('&');
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let found = ESCAPES.iter().find(|(_, entity)| piece.starts_with(&entity[1..]));
        let Some((c, entity)) = found else {
            return Err(Fault::Malformed("XMP metadata holds an unknown XML entity".into()));
        };
        plain.push(*c);
        plain.push_str(&piece[entity.len() - 1..]);
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xmp_keeps_markup_in_texts() {
        let mut metadata = Metadata::new();
        metadata.push("prompt", "</kinograph:metadata> & <b> \"&amp;\" \u{1} ü").unwrap();
        assert_eq!(from_xmp(xmp_packet(&metadata).as_bytes()).unwrap(), metadata);
    }

    #[test]
    fn xmp_rejects_unknown_entities_and_a_missing_end() {
        for xmp in ["<kinograph:metadata>{}", "<kinograph:metadata>&copy;</kinograph:metadata>"] {
            assert!(from_xmp(xmp.as_bytes()).is_err(), "{xmp}");
        }
        assert!(from_xmp(b"<x:xmpmeta/>").unwrap().is_empty());
    }
}
