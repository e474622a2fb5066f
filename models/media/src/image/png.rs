//! PNG: one 8-bit RGB image tagged sRGB, one uncompressed iTXt chunk per metadata entry. Any PNG is read.

use std::io::{BufRead, Seek, Write};

use crate::Metadata;
use crate::error::Fault;
use crate::frames::{Picture, RgbaPicture};
use crate::metadata::is_key;

/// What every PNG begins with.
pub(crate) const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Most pixels of an image that is read.
pub(crate) const MAX_PIXELS: usize = 1 << 26;

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

/// The pixels of any PNG as 8-bit RGB: gray is repeated, 16 bits are cut to 8, transparency is dropped.
pub(crate) fn read(input: impl BufRead + Seek) -> Result<Picture, Fault> {
    let (width, height, samples, bytes) = decode(input)?;
    let mut rgb = Vec::with_capacity(width * height * 3);
    for pixel in bytes.chunks_exact(samples) {
        match *pixel {
            [gray] | [gray, _] => rgb.extend([gray; 3]),
            [r, g, b] | [r, g, b, _] => rgb.extend([r, g, b]),
            _ => unreachable!("a pixel has 1 to 4 samples"),
        }
    }
    Ok(Picture { width, height, rgb })
}

/// As [`read`], with the opacity of each pixel.
pub(crate) fn read_rgba(input: impl BufRead + Seek) -> Result<RgbaPicture, Fault> {
    let (width, height, samples, bytes) = decode(input)?;
    let mut rgba = Vec::with_capacity(width * height * 4);
    for pixel in bytes.chunks_exact(samples) {
        match *pixel {
            [gray] => rgba.extend([gray, gray, gray, 255]),
            [gray, alpha] => rgba.extend([gray, gray, gray, alpha]),
            [r, g, b] => rgba.extend([r, g, b, 255]),
            [r, g, b, alpha] => rgba.extend([r, g, b, alpha]),
            _ => unreachable!("a pixel has 1 to 4 samples"),
        }
    }
    Ok(RgbaPicture { width, height, rgba })
}

/// Width, height, samples per pixel, and 8-bit samples `[height, width, samples]`.
fn decode(input: impl BufRead + Seek) -> Result<(usize, usize, usize, Vec<u8>), Fault> {
    // What the decoder holds besides the pixels, which are bounded below.
    let limits = ::png::Limits { bytes: 64 << 20 };
    let mut decoder = ::png::Decoder::new_with_limits(input, limits);
    decoder.set_transformations(::png::Transformations::normalize_to_color8());
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(fault)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    if width.saturating_mul(height) > MAX_PIXELS {
        return Err(Fault::Malformed(format!(
            "{width}x{height} pixels, expected at most {MAX_PIXELS} in all"
        )));
    }
    let samples = reader.output_color_type().0.samples();
    let mut bytes = vec![0; width * height * samples];
    reader.next_frame(&mut bytes).map_err(fault)?;
    Ok((width, height, samples, bytes))
}

fn fault(error: ::png::DecodingError) -> Fault {
    match error {
        ::png::DecodingError::IoError(error)
            if error.kind() != std::io::ErrorKind::UnexpectedEof =>
        {
            Fault::Io(error)
        }
        other => Fault::Malformed(format!("not a sound PNG: {other}")),
    }
}

/// The entries before the pixels. Other programs' text chunks are passed over.
pub(crate) fn read_metadata(input: impl BufRead + Seek) -> Result<Metadata, Fault> {
    // Room for every text the writer may store, and for other programs' chunks.
    let limits = ::png::Limits { bytes: crate::metadata::MAX_BYTES * 4 };
    let mut decoder = ::png::Decoder::new_with_limits(input, limits);
    decoder.set_ignore_iccp_chunk(true);
    let reader = decoder.read_info().map_err(fault)?;
    let mut metadata = Metadata::new();
    for chunk in &reader.info().utf8_text {
        if is_key(&chunk.keyword) && !chunk.compressed {
            let text = chunk.get_text().map_err(|error| Fault::Malformed(error.to_string()))?;
            metadata.push_read(&chunk.keyword, &text)?;
        }
    }
    Ok(metadata)
}
