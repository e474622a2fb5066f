//! Every image format written and read back with its own decoder, and metadata through all formats.

#![allow(clippy::unwrap_used, reason = "the functions shared by tests are tests too")]

use std::fs;
use std::path::Path;

use media::{Clip, Format, Fps, MediaWriter, Metadata, read_metadata, write};

const FORMATS: [(Format, &str); 6] = [
    (Format::Mp4, "a.mp4"),
    (Format::Png, "a.png"),
    (Format::Gif, "a.gif"),
    (Format::WebP, "a.webp"),
    (Format::Folder, "frames"),
    (Format::ContactSheet, "a.sheet.png"),
];

/// RGB `[t, h, w, 3]` with every channel and position different.
fn clip(frames: usize, height: usize, width: usize) -> Vec<u8> {
    (0..frames * height * width * 3).map(|i| (i * 37 + i / 11 * 5 + i / 101) as u8).collect()
}

/// RGB `[t, h, w, 3]` of 200 colors, a square that moves over a ground.
fn few_colors(frames: usize, height: usize, width: usize) -> Vec<u8> {
    let mut rgb = Vec::new();
    for t in 0..frames {
        for y in 0..height {
            for x in 0..width {
                let in_square = y.abs_diff(height / 2) < 4 && x.abs_diff(4 + t * 3) < 4;
                let level = (x * 7 + y * 3) as u8 % 100;
                rgb.extend(if in_square { [255, level, 0] } else { [level, 40, 90] });
            }
        }
    }
    rgb
}

fn metadata() -> Metadata {
    let mut metadata = Metadata::new();
    for (key, text) in [
        ("prompt", "Ein Zömbie \u{1f9df} läuft\n\tnach <links> & \"rechts\" </x> \u{1}"),
        ("seed", "18446744073709551615"),
        ("settings", "{\"steps\": 30, \"cfg_scale\": 7.0}"),
        ("version", "0.1.0"),
        ("empty", ""),
        ("long", &"word ".repeat(20_000)),
    ] {
        metadata.push(key, text).unwrap();
    }
    metadata
}

fn write_clip(path: &Path, format: Format, rgb: &[u8], [t, h, w]: [usize; 3], fps: Fps) {
    let clip = Clip::new(t, h, w, rgb, fps).unwrap();
    write(path, &clip, &metadata(), format).unwrap();
}

fn png(path: &Path) -> (usize, usize, Vec<u8>) {
    let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(path).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut rgb).unwrap();
    assert_eq!(info.color_type, png::ColorType::Rgb);
    (info.width as usize, info.height as usize, rgb)
}

fn fps(num: u32, den: u32) -> Fps {
    Fps::new(num, den).unwrap()
}

#[test]
fn metadata_comes_back_equal_from_every_format() {
    let folder = tempfile::tempdir().unwrap();
    for (format, name) in FORMATS {
        let path = folder.path().join(name);
        write_clip(&path, format, &clip(1, 20, 24), [1, 20, 24], fps(8, 1));
        assert_eq!(read_metadata(&path).unwrap(), metadata(), "{name}");
    }
}

#[test]
fn equal_input_gives_equal_bytes_and_replaces_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for (format, name) in FORMATS {
        if format == Format::Folder {
            continue;
        }
        let path = folder.path().join(name);
        let mut files = Vec::new();
        for _ in 0..2 {
            write_clip(&path, format, &clip(1, 33, 47), [1, 33, 47], fps(8, 1));
            files.push(fs::read(&path).unwrap());
        }
        assert!(files[0] == files[1], "{name}");
    }
}

#[test]
fn png_is_exact() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let rgb = clip(1, 17, 23);
    write_clip(&path, Format::Png, &rgb, [1, 17, 23], fps(8, 1));
    assert_eq!(png(&path), (23, 17, rgb));
}

#[test]
fn folder_holds_every_frame_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("frames/");
    let rgb = clip(3, 8, 9);
    fs::create_dir(&path).unwrap(); // an empty folder may be there already
    write_clip(&path, Format::Folder, &rgb, [3, 8, 9], fps(8, 1));
    for (i, frame) in rgb.chunks(8 * 9 * 3).enumerate() {
        assert_eq!(png(&path.join(format!("frame_{i:04}.png"))), (9, 8, frame.to_vec()));
    }
    assert_eq!(fs::read_dir(&path).unwrap().count(), 4);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn webp_is_exact_and_keeps_its_length() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.webp");
    // One-color frames take another path through the encoder.
    for rgb in [clip(7, 13, 21), vec![9; 7 * 13 * 21 * 3]] {
        write_clip(&path, Format::WebP, &rgb, [7, 13, 21], fps(24, 1));
        let file = std::io::BufReader::new(fs::File::open(&path).unwrap());
        let mut decoder = image_webp::WebPDecoder::new(file).unwrap();
        assert_eq!((decoder.dimensions(), decoder.num_frames()), ((21, 13), 7));
        assert_eq!(decoder.loop_count(), image_webp::LoopCount::Forever);
        let mut total_ms = 0;
        for frame in rgb.chunks(13 * 21 * 3) {
            let mut found = vec![0; decoder.output_buffer_size().unwrap()];
            total_ms += decoder.read_frame(&mut found).unwrap();
            assert_eq!(found, frame);
        }
        // 7/24 s, rounded once.
        assert_eq!(total_ms, 292);
    }
}

/// The frames of a GIF, composed on its canvas, and their delays in hundredths of a second.
fn gif(path: &Path) -> (Vec<Vec<[u8; 3]>>, Vec<u16>) {
    let mut decoder = gif::Decoder::new(fs::File::open(path).unwrap()).unwrap();
    let width = usize::from(decoder.width());
    let mut canvas = vec![[0; 3]; width * usize::from(decoder.height())];
    let palette = decoder.global_palette().unwrap().to_vec();
    let (mut frames, mut delays) = (Vec::new(), Vec::new());
    while let Some(frame) = decoder.read_next_frame().unwrap() {
        for (i, &index) in frame.buffer.iter().enumerate() {
            let (y, x) = (i / usize::from(frame.width), i % usize::from(frame.width));
            if frame.transparent != Some(index) {
                let color = palette[usize::from(index) * 3..][..3].try_into().unwrap();
                canvas[(usize::from(frame.top) + y) * width + usize::from(frame.left) + x] = color;
            }
        }
        frames.push(canvas.clone());
        delays.push(frame.delay);
    }
    assert_eq!(decoder.repeat(), gif::Repeat::Infinite);
    (frames, delays)
}

#[test]
fn gif_of_few_colors_is_exact() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gif");
    let rgb = few_colors(6, 24, 32);
    write_clip(&path, Format::Gif, &rgb, [6, 24, 32], fps(24, 1));
    let (frames, delays) = gif(&path);
    assert_eq!(frames.concat().as_flattened(), rgb);
    // 6/24 s.
    assert_eq!(delays.iter().sum::<u16>(), 25);
}

#[test]
fn gif_of_many_colors_is_close() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gif");
    let mut rgb = Vec::new();
    for t in 0..4 {
        for y in 0..64 {
            for x in 0..64 {
                rgb.extend([x * 4, y * 4, 128 + t * 8]);
            }
        }
    }
    write_clip(&path, Format::Gif, &rgb, [4, 64, 64], fps(10, 1));
    let (frames, _) = gif(&path);
    let found = frames.concat();
    let squared: f64 = found
        .as_flattened()
        .iter()
        .zip(&rgb)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
        .sum();
    // 255 colors for a face of the color cube: neighbors are about 16 levels apart.
    let rms = (squared / rgb.len() as f64).sqrt();
    assert!(rms < 9.0, "{rms}");
}

#[test]
fn contact_sheet_shows_each_frame_in_reading_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sheet.png");
    let rgb = clip(5, 10, 12);
    write_clip(&path, Format::ContactSheet, &rgb, [5, 10, 12], fps(8, 1));
    let (width, height, sheet) = png(&path);
    let columns = (width - 4) / 16;
    assert_eq!(height, 4 + 5usize.div_ceil(columns) * 14);
    for (i, frame) in rgb.chunks(10 * 12 * 3).enumerate() {
        let (left, top) = (4 + i % columns * 16, 4 + i / columns * 14);
        for (y, row) in frame.chunks(12 * 3).enumerate() {
            assert_eq!(
                &sheet[((top + y) * width + left) * 3..][..12 * 3],
                row,
                "frame {i} row {y}"
            );
        }
    }
    assert_eq!(sheet[..3], [24; 3]);
}

#[test]
fn streaming_equals_writing_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let rgb = clip(3, 20, 24);
    for (format, name) in FORMATS {
        if matches!(format, Format::Folder | Format::Png) {
            continue;
        }
        let (a, b) = (folder.path().join(name), folder.path().join(format!("b{name}")));
        write_clip(&a, format, &rgb, [3, 20, 24], fps(8, 1));
        let mut writer = MediaWriter::create(&b, format, [24, 20], fps(8, 1), &metadata()).unwrap();
        for frame in rgb.chunks(20 * 24 * 3) {
            writer.push(frame).unwrap();
        }
        let written = writer.finish().unwrap();
        assert_eq!((written.frames, written.bytes), (3, fs::metadata(&b).unwrap().len()));
        assert!(fs::read(a).unwrap() == fs::read(b).unwrap(), "{name}");
    }
}
