//! The written MP4 read back: samples by a demuxer of the tests' own, pictures by the H.264 decoder.

use openh264::OpenH264API;
use openh264::decoder::{Decoder, DecoderConfig, Flush};
use openh264::formats::YUVSource;

use super::color::Matrix;
use crate::{Clip, Format, Fps, Metadata, write};

/// The payload of the box at `path`, where each step is a type and how many bytes to pass over in it.
fn find<'a>(mut bytes: &'a [u8], path: &[(&[u8; 4], usize)]) -> &'a [u8] {
    for (kind, skip) in path {
        loop {
            let len = u32_at(bytes, 0) as usize;
            if &bytes[4..8] == *kind {
                bytes = &bytes[8 + skip..len];
                break;
            }
            bytes = &bytes[len..];
        }
    }
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// A file taken apart.
struct Demuxed {
    size: [u32; 2],
    timescale: u32,
    duration: u32,
    frame_ticks: u32,
    keyframes: Vec<u32>,
    /// Samples as an Annex B stream, parameter sets first.
    samples: Vec<Vec<u8>>,
    color: Vec<u8>,
}

const STBL: [(&[u8; 4], usize); 5] =
    [(b"moov", 0), (b"trak", 0), (b"mdia", 0), (b"minf", 0), (b"stbl", 0)];

fn demux(file: &[u8]) -> Demuxed {
    let stbl = find(file, &STBL);
    let mdhd = find(file, &[(b"moov", 0), (b"trak", 0), (b"mdia", 0), (b"mdhd", 0)]);
    let tkhd = find(file, &[(b"moov", 0), (b"trak", 0), (b"tkhd", 0)]);
    let stts = find(stbl, &[(b"stts", 4)]);
    let stsz = find(stbl, &[(b"stsz", 4)]);
    let stss = find(stbl, &[(b"stss", 4)]);
    let count = u32_at(stsz, 4) as usize;
    assert_eq!((u32_at(stts, 0), u32_at(stts, 4) as usize), (1, count));

    let avc1 = find(stbl, &[(b"stsd", 8), (b"avc1", 78)]);
    let avcc = find(avc1, &[(b"avcC", 0)]);
    let sps_len = usize::from(avcc[7]);
    let (sps, pps) = (&avcc[8..8 + sps_len], &avcc[8 + sps_len + 3..]);
    let mut at = u32_at(find(stbl, &[(b"stco", 8)]), 0) as usize;
    let mut samples = Vec::new();
    for i in 0..count {
        let len = u32_at(stsz, 8 + 4 * i) as usize;
        let mut sample = &file[at..at + len];
        let mut stream = Vec::new();
        if i == 0 {
            stream.extend([&[0, 0, 0, 1], sps, &[0, 0, 0, 1], pps].concat());
        }
        while !sample.is_empty() {
            let nal = u32_at(sample, 0) as usize;
            stream.extend([&[0, 0, 0, 1], &sample[4..4 + nal]].concat());
            sample = &sample[4 + nal..];
        }
        samples.push(stream);
        at += len;
    }
    assert_eq!(at, file.len(), "the samples end where the file ends");
    Demuxed {
        size: [u32_at(tkhd, 76) >> 16, u32_at(tkhd, 80) >> 16],
        timescale: u32_at(mdhd, 12),
        duration: u32_at(mdhd, 16),
        frame_ticks: u32_at(stts, 8),
        keyframes: (0..u32_at(stss, 0) as usize).map(|i| u32_at(stss, 4 + 4 * i)).collect(),
        samples,
        color: find(avc1, &[(b"colr", 0)]).to_vec(),
    }
}

/// A smooth moving picture with a soft disc, RGB `[t, h, w, 3]`.
fn clip(frames: usize, height: usize, width: usize) -> Vec<u8> {
    let mut rgb = Vec::new();
    for t in 0..frames {
        for y in 0..height {
            for x in 0..width {
                // Small clips show a part of the picture, so that it stays smooth at the scale of chroma.
                let (fx, fy) =
                    (x as f32 / width.max(256) as f32, y as f32 / height.max(256) as f32);
                let distance = (fx - 0.3 - 0.02 * t as f32).hypot(fy - 0.5);
                let disc = 1.0 / (1.0 + ((distance - 0.2) * 25.0).exp());
                rgb.push((60.0 + 120.0 * fx + 60.0 * disc) as u8);
                rgb.push((200.0 - 150.0 * fy - 40.0 * disc) as u8);
                rgb.push((100.0 + 60.0 * (fx * 6.0 + t as f32 * 0.1).sin()) as u8);
            }
        }
    }
    rgb
}

/// The decoder's planes as RGB, chroma repeated, visible part `[height, width]`.
fn to_rgb(yuv: &impl YUVSource, matrix: Matrix, height: usize, width: usize) -> Vec<u8> {
    let (kr, kb) = match matrix {
        Matrix::Bt601 => (0.299, 0.114),
        Matrix::Bt709 => (0.2126, 0.0722),
    };
    let (ys, us, vs) = yuv.strides();
    let mut rgb = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let luma = (f64::from(yuv.y()[y * ys + x]) - 16.0) / 219.0;
            let cb = (f64::from(yuv.u()[y / 2 * us + x / 2]) - 128.0) / 224.0;
            let cr = (f64::from(yuv.v()[y / 2 * vs + x / 2]) - 128.0) / 224.0;
            let (r, b) = (luma + cr * (2.0 - 2.0 * kr), luma + cb * (2.0 - 2.0 * kb));
            let g = (luma - kr * r - kb * b) / (1.0 - kr - kb);
            rgb.extend([r, g, b].map(|level| (level * 255.0).round().clamp(0.0, 255.0) as u8));
        }
    }
    rgb
}

fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squared: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * a.len() as f64 / squared.max(1e-9)).log10()
}

/// Writes, demuxes, decodes; the file and the worst frame's PSNR in dB.
fn round_trip(
    rgb: &[u8],
    [frames, height, width]: [usize; 3],
    fps: Fps,
) -> (Vec<u8>, Demuxed, f64) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mp4");
    let clip = Clip::new(frames, height, width, rgb, fps).unwrap();
    let mut metadata = Metadata::new();
    metadata.push("prompt", "a disc").unwrap();
    let written = write(&path, &clip, &metadata, Format::Mp4).unwrap();
    let file = std::fs::read(&path).unwrap();
    assert_eq!(written.bytes, file.len() as u64);
    let demuxed = demux(&file);

    let config = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
    let mut decoder = Decoder::with_api_config(OpenH264API::from_source(), config).unwrap();
    let matrix = Matrix::for_size([width as u32, height as u32]);
    let even = |dim: usize| dim.next_multiple_of(2);
    let mut decoded = Vec::new();
    for sample in &demuxed.samples {
        if let Some(yuv) = decoder.decode(sample).unwrap() {
            assert_eq!(yuv.dimensions(), (even(width), even(height)));
            decoded.push(to_rgb(&yuv, matrix, height, width));
        }
    }
    for yuv in decoder.flush_remaining().unwrap() {
        decoded.push(to_rgb(&yuv, matrix, height, width));
    }
    assert_eq!(decoded.len(), frames);
    let worst = decoded
        .iter()
        .enumerate()
        .map(|(i, frame)| psnr(frame, clip.frame(i)))
        .fold(f64::INFINITY, f64::min);
    (file, demuxed, worst)
}

/// Below this, the quantizer or the color conversion is off; the encoder alone is above 44 dB.
const MIN_PSNR: f64 = 38.0;

#[test]
fn decoded_frames_match_the_clip() {
    let (_, demuxed, worst) =
        round_trip(&clip(20, 240, 426), [20, 240, 426], Fps::new(8, 1).unwrap());
    assert!(worst > MIN_PSNR, "{worst} dB");
    assert_eq!(demuxed.size, [426, 240]);
    // A keyframe every two seconds.
    assert_eq!(demuxed.keyframes, [1, 17]);
    // Primaries BT.709, transfer sRGB, matrix BT.601, limited range.
    assert_eq!(demuxed.color, b"nclx\0\x01\0\x0d\0\x06\0");
}

#[test]
fn odd_small_and_large_sizes_decode() {
    for [frames, height, width] in
        [[1, 16, 16], [3, 17, 33], [2, 64, 64], [2, 16, 255], [2, 719, 1281], [1, 3840, 2160]]
    {
        let rgb = clip(frames, height, width);
        let (_, _, worst) = round_trip(&rgb, [frames, height, width], Fps::new(24, 1).unwrap());
        assert!(worst > MIN_PSNR, "{width}x{height}: {worst} dB");
    }
}

#[test]
fn timing_is_the_exact_fraction() {
    for (num, den, frames) in [(8, 1, 5), (24, 1, 3), (24_000, 1001, 4), (1, 2, 2), (120, 1, 3)] {
        let fps = Fps::new(num, den).unwrap();
        let (_, demuxed, _) = round_trip(&clip(frames, 32, 32), [frames, 32, 32], fps);
        let ticks = u64::from(demuxed.frame_ticks);
        assert_eq!(ticks * u64::from(num), u64::from(demuxed.timescale) * u64::from(den));
        assert_eq!(u64::from(demuxed.duration), ticks * frames as u64);
        assert!(demuxed.timescale >= 10_000);
    }
}

#[test]
fn noise_and_still_frames_are_all_kept() {
    // Noise is the encoder's hardest case for skipping, a still its easiest.
    let mut state = 1u32;
    let noise: Vec<u8> = (0..6 * 128 * 128 * 3)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    // Coded noise passes the encoder's buffer, both at the start and right after a keyframe.
    round_trip(&noise, [6, 128, 128], Fps::new(8, 1).unwrap());
    let late = [&clip(1, 128, 128), &noise[..]].concat();
    round_trip(&late, [7, 128, 128], Fps::new(8, 1).unwrap());
    let still = clip(1, 64, 64).repeat(12);
    let (_, _, worst) = round_trip(&still, [12, 64, 64], Fps::new(8, 1).unwrap());
    assert!(worst > MIN_PSNR, "{worst} dB");
}

#[test]
fn index_comes_first_and_bytes_repeat() {
    let rgb = clip(4, 48, 80);
    let shape = [4, 48, 80];
    let (a, ..) = round_trip(&rgb, shape, Fps::new(8, 1).unwrap());
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let rgb = rgb.clone();
            std::thread::spawn(move || round_trip(&rgb, shape, Fps::new(8, 1).unwrap()).0)
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), a);
    }
    let place = |kind: &[u8]| a.windows(4).position(|window| window == kind).unwrap();
    assert!(place(b"ftyp") < place(b"moov") && place(b"moov") < place(b"mdat"));
}

#[test]
fn large_files_use_wide_offsets() {
    use super::moov::{Track, moov};
    let metadata = Metadata::new();
    let track = Track {
        size: [64, 64],
        fps: Fps::new(8, 1).unwrap(),
        matrix: Matrix::Bt601,
        sps: &[0x67, 66, 0, 30],
        pps: &[0x68],
        sample_bytes: &[7],
        keyframes: &[1],
        metadata: &metadata,
    };
    let bytes = moov(&track, 1 << 33, true);
    let co64 = find(find(&bytes, &STBL), &[(b"co64", 8)]);
    assert_eq!(co64, (1u64 << 33).to_be_bytes());
}
