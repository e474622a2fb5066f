//! The metadata readers on damaged bytes: thousands of deterministic mutations of each format, and the
//! named attacks. A reader may refuse or return; it must not panic, hang or allocate what is not there.

#![allow(clippy::unwrap_used, reason = "the functions shared by tests are tests too")]

use std::sync::atomic::AtomicBool;

use media::{Clip, Format, Fps, FrameSource, Metadata, read_metadata_from_bytes, write};

fn files() -> Vec<(Format, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let mut metadata = Metadata::new();
    metadata.push("prompt", "a zombie runs & <jumps>").unwrap();
    metadata.push("seed", "42").unwrap();
    let rgb: Vec<u8> = (0..2 * 16 * 16 * 3).map(|i| (i * 7) as u8).collect();
    [Format::Mp4, Format::Png, Format::Gif, Format::WebP]
        .into_iter()
        .map(|format| {
            let frames = if format == Format::Png { 1 } else { 2 };
            let path = folder.path().join("a");
            let fps = Fps::new(8, 1).unwrap();
            let clip = Clip::new(frames, 16, 16, &rgb[..frames * 768], fps).unwrap();
            write(&path, &clip, &metadata, format).unwrap();
            (format, std::fs::read(&path).unwrap())
        })
        .collect()
}

/// The `SplitMix64` generator.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] = random.below(256) as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at.max(1)),
            3 => {
                // A length field of an extreme value.
                let value = [0, 1, 7, 8, 9, 0x7fff_ffff, 0x8000_0000, u32::MAX][random.below(8)];
                let value =
                    if random.below(2) == 0 { value.to_be_bytes() } else { value.to_le_bytes() };
                for (byte, new) in bytes[at..].iter_mut().zip(value) {
                    *byte = new;
                }
            }
            4 => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
                if bytes.is_empty() {
                    bytes.push(0);
                }
            }
        }
    }
}

#[test]
fn mutated_files_are_read_or_refused() {
    let mut random = Random(7);
    for (format, original) in files() {
        let (mut refused, mut read) = (0, 0);
        for _ in 0..20_000 {
            let mut bytes = original.clone();
            mutate(&mut bytes, &mut random);
            match read_metadata_from_bytes(&bytes) {
                Ok(_) => read += 1,
                Err(_) => refused += 1,
            }
        }
        // Both outcomes happen, so the mutations reach the readers' checks and do not all break the magic.
        assert!(refused > 500 && read > 500, "{format:?}: {refused} refused, {read} read");
    }
}

#[test]
fn truncation_never_yields_wrong_entries() {
    for (format, original) in files() {
        let whole = read_metadata_from_bytes(&original).unwrap();
        for len in 0..original.len() {
            if let Ok(found) = read_metadata_from_bytes(&original[..len]) {
                // All entries come before the pixels, or none are found.
                assert!(found == whole || found.is_empty(), "{format:?} cut to {len}: {found:?}");
            }
        }
    }
}

#[test]
fn false_lengths_are_refused_with_their_place() {
    let four_gib = u32::MAX.to_be_bytes();
    let mut mp4 = b"\0\0\0\x10ftypisom\0\0\0\0".to_vec();
    mp4.extend([&four_gib[..], b"moov"].concat());
    let mut wide = b"\0\0\0\x10ftypisom\0\0\0\0".to_vec();
    wide.extend([&1u32.to_be_bytes()[..], b"free", &u64::MAX.to_be_bytes()].concat());
    let short = b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\x04moov".to_vec();
    let webp = b"RIFF\x10\0\0\0WEBPXMP \xff\xff\xff\xff\0\0\0\0".to_vec();
    let riff = b"RIFF\xfe\xff\xff\xffWEBPXMP \0\0\0\0".to_vec();
    let gif = b"GIF89a\x01\0\x01\0\0\0\0\x21\xfe\xffabc".to_vec();
    for bytes in [mp4, wide, short, webp, riff, gif] {
        let message = read_metadata_from_bytes(&bytes).unwrap_err().to_string();
        assert!(message.chars().any(|c| c.is_ascii_digit()), "{message}");
    }
}

#[test]
fn endless_chains_of_empty_parts_are_cut_off() {
    // 16 MiB of boxes and chunks without content.
    let mut mp4 = b"\0\0\0\x10ftypisom\0\0\0\0".to_vec();
    mp4.extend(b"\0\0\0\x08free".repeat(2 << 20));
    let mut webp = b"RIFF\0\0\0\x01WEBP".to_vec();
    webp.extend(b"JUNK\0\0\0\0".repeat(2 << 20));
    let len = (webp.len() as u32 - 8).to_le_bytes();
    webp[4..8].copy_from_slice(&len);
    let mut gif = b"GIF89a\x01\0\x01\0\0\0\0".to_vec();
    gif.extend(b"\x21\xf9\0".repeat(2 << 20));
    for bytes in [mp4, webp, gif] {
        let message = read_metadata_from_bytes(&bytes).unwrap_err().to_string();
        assert!(message.contains("parts"), "{message}");
    }
}

/// The frame of a PNG in a file, if it is sound.
fn png_pixels(path: &std::path::Path, bytes: &[u8]) -> media::Result<Vec<f32>> {
    std::fs::write(path, bytes).unwrap();
    let stop = AtomicBool::new(false);
    let mut pixels = Vec::new();
    FrameSource::open(path, &stop)?.read::<media::Error>(&[0], [8, 8], &stop, |_, frame| {
        pixels = frame;
        Ok(())
    })?;
    Ok(pixels)
}

#[test]
fn mutated_images_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let (_, sound) = files().remove(1);
    assert_eq!(png_pixels(&path, &sound).unwrap().len(), 3 * 8 * 8);
    let mut random = Random(11);
    let mut refused = 0;
    for _ in 0..2000 {
        let mut bytes = sound.clone();
        mutate(&mut bytes, &mut random);
        if !bytes.starts_with(&sound[..8]) {
            // Not a PNG any more: it would be handed to ffmpeg.
            continue;
        }
        match png_pixels(&path, &bytes) {
            Ok(pixels) => assert!(pixels.iter().all(|x| (-1.0..=1.0).contains(x))),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 500, "{refused} were refused");
}

#[test]
fn an_image_of_too_many_pixels_is_refused_before_it_is_allocated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let (_, mut bytes) = files().remove(1);
    // Width and height of the header chunk, and its checksum, which is that of these sizes.
    bytes[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let checksum = crc32(&bytes[12..29]).to_be_bytes();
    bytes[29..33].copy_from_slice(&checksum);
    let error = png_pixels(&path, &bytes).unwrap_err().to_string();
    assert!(error.contains("60000x60000 pixels, expected at most"), "{error}");
}

/// The checksum of PNG chunks, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}
