//! A stream of PPM images, as `ffmpeg` writes frames: `P6`, width, height, 255, then the bytes.

use std::io::BufRead;

use crate::error::Fault;
use crate::frames::Picture;
use crate::image::png::MAX_PIXELS;

/// Longest header: two numbers of 10 digits and what is around them.
const MAX_HEADER_BYTES: usize = 64;

/// The next image; `None` at the end of the stream.
pub(crate) fn read(input: &mut impl BufRead) -> Result<Option<Picture>, Fault> {
    if input.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut numbers = [0usize; 3];
    let bad = |what: &str| Fault::Malformed(format!("{what} in a frame of ffmpeg's"));
    let mut header = Vec::new();
    // `P6`, then three numbers, each ended by one white space.
    for field in 0..4 {
        let start = header.len();
        loop {
            let mut byte = [0];
            input.read_exact(&mut byte).map_err(|_| bad("a cut header"))?;
            if byte[0].is_ascii_whitespace() {
                break;
            }
            header.push(byte[0]);
            if header.len() > MAX_HEADER_BYTES {
                return Err(bad("a long header"));
            }
        }
        let word = std::str::from_utf8(&header[start..]).map_err(|_| bad("no text"))?;
        match field {
            0 if word == "P6" => {}
            0 => return Err(bad("no PPM")),
            _ => numbers[field - 1] = word.parse().map_err(|_| bad("no number"))?,
        }
    }
    let [width, height, white] = numbers;
    let pixels = width.checked_mul(height).filter(|&pixels| (1..=MAX_PIXELS).contains(&pixels));
    let (Some(pixels), 255) = (pixels, white) else {
        return Err(bad(&format!("{width}x{height} pixels up to {white}")));
    };
    let mut rgb = vec![0; pixels * 3];
    input.read_exact(&mut rgb).map_err(|_| bad("cut pixels"))?;
    Ok(Some(Picture { width, height, rgb }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_follow_each_other() {
        let mut stream = &b"P6\n1 2\n255\nabcdefP6 2 1 255\nABCDEF"[..];
        let first = read(&mut stream).unwrap().unwrap();
        assert_eq!((first.width, first.height, &first.rgb[..]), (1, 2, &b"abcdef"[..]));
        let second = read(&mut stream).unwrap().unwrap();
        assert_eq!((second.width, second.height, &second.rgb[..]), (2, 1, &b"ABCDEF"[..]));
        assert!(read(&mut stream).unwrap().is_none());
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for (stream, expected) in [
            (&b"P5\n1 1\n255\na"[..], "no PPM"),
            (b"P6\n1 1\n255\nab", "cut pixels"),
            (b"P6\n1 1", "a cut header"),
            (b"P6\n99999 99999\n255\n", "99999x99999 pixels"),
            (b"P6\n1 0\n255\n", "1x0 pixels"),
            (b"P6\n1 1\n65535\nabcdef", "up to 65535"),
            (b"P6\n-1 1\n255\n", "no number"),
            (&[b'x'; 100], "a long header"),
        ] {
            let Err(Fault::Malformed(message)) = read(&mut { stream }) else {
                panic!("{} was read", stream.escape_ascii());
            };
            assert!(message.contains(expected), "{message}");
        }
    }
}
