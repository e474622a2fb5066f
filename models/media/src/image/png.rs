//! PNG: one 8-bit RGB image tagged sRGB, one uncompressed iTXt chunk per metadata entry.

use std::io::{BufRead, Seek, Write};

use crate::Metadata;
use crate::error::Fault;
use crate::metadata::is_key;

/// Writes `rgb`, `[height, width, 3]`.
pub(crate) fn write(
    out: impl Write,
    [width, height]: [u32; 2],
    rgb: &[u8],
    metadata: &Metadata,
) -> Result<(), Fault> {
    let mut writer = start(out, [width, height], metadata)?;
    writer.write_image_data(rgb)?;
    Ok(writer.finish()?)
}

/// Writes everything that comes before the pixels.
pub(crate) fn start<W: Write>(
    out: W,
    [width, height]: [u32; 2],
    metadata: &Metadata,
) -> Result<::png::Writer<W>, Fault> {
    let mut encoder = ::png::Encoder::new(out, width, height);
    encoder.set_color(::png::ColorType::Rgb);
    encoder.set_depth(::png::BitDepth::Eight);
    encoder.set_source_srgb(::png::SrgbRenderingIntent::Perceptual);
    for (key, text) in metadata.iter() {
        encoder.add_itxt_chunk(key.into(), text.into())?;
    }
    Ok(encoder.write_header()?)
}

/// The entries before the pixels. Other programs' text chunks are passed over.
pub(crate) fn read_metadata(input: impl BufRead + Seek) -> Result<Metadata, Fault> {
    // Room for every text the writer may store, and for other programs' chunks.
    let limits = ::png::Limits { bytes: crate::metadata::MAX_BYTES * 4 };
    let mut decoder = ::png::Decoder::new_with_limits(input, limits);
    decoder.set_ignore_iccp_chunk(true);
    let reader = decoder.read_info().map_err(|error| match error {
        ::png::DecodingError::IoError(error)
            if error.kind() != std::io::ErrorKind::UnexpectedEof =>
        {
            Fault::Io(error)
        }
        other => Fault::Malformed(format!("not a sound PNG: {other}")),
    })?;
    let mut metadata = Metadata::new();
    for chunk in &reader.info().utf8_text {
        if is_key(&chunk.keyword) && !chunk.compressed {
            let text = chunk.get_text().map_err(|error| Fault::Malformed(error.to_string()))?;
            metadata.push_read(&chunk.keyword, &text)?;
        }
    }
    Ok(metadata)
}
