//! The index of an MP4 file with one H.264 track, at a constant frame rate.
//!
//! Box layouts from ISO/IEC 14496-12 (base media), 14496-15 (AVC). All times are zero, so equal input
//! gives equal bytes. Invariant: all samples are one chunk, so one offset locates them all.

use super::color::Matrix;
use super::tags;
use crate::{Fps, Metadata};

/// What the index says.
#[derive(Debug)]
pub(crate) struct Track<'a> {
    /// Visible `[width, height]`.
    pub(crate) size: [u32; 2],
    pub(crate) fps: Fps,
    pub(crate) matrix: Matrix,
    pub(crate) sps: &'a [u8],
    pub(crate) pps: &'a [u8],
    /// Bytes of each sample, in order.
    pub(crate) sample_bytes: &'a [u32],
    /// One-based numbers of the keyframes.
    pub(crate) keyframes: &'a [u32],
    pub(crate) metadata: &'a Metadata,
}

/// The `ftyp` box.
pub(crate) fn ftyp() -> Vec<u8> {
    let mut out = Vec::new();
    boxed(&mut out, b"ftyp", |b| b.extend(b"isom\0\0\x02\0isomiso2avc1mp41"));
    out
}

/// The `moov` box, where the first sample is at byte `first_sample` of the file. Its length does not
/// depend on `first_sample`, except through `wide_offset`, which must be set when it passes 32 bits.
pub(crate) fn moov(track: &Track<'_>, first_sample: u64, wide_offset: bool) -> Vec<u8> {
    let (timescale, frame_ticks) = clock(track.fps);
    let duration = track.sample_bytes.len() as u64 * u64::from(frame_ticks);
    let mut out = Vec::new();
    boxed(&mut out, b"moov", |b| {
        timed_box(b, b"mvhd", 0, duration, |b, put| {
            b.extend(timescale.to_be_bytes());
            put(b);
            b.extend(0x0001_0000u32.to_be_bytes()); // rate 1
            b.extend(0x0100u16.to_be_bytes()); // volume 1
            b.extend([0; 10]);
            b.extend(unity_matrix());
            b.extend([0; 24]);
            b.extend(2u32.to_be_bytes()); // next track
        });
        boxed(b, b"trak", |b| {
            // Enabled, in the movie, in the preview.
            timed_box(b, b"tkhd", 7, duration, |b, put| {
                b.extend(1u32.to_be_bytes()); // track
                b.extend([0; 4]);
                put(b);
                b.extend([0; 16]); // layer, group, volume
                b.extend(unity_matrix());
                for dim in track.size {
                    b.extend((dim << 16).to_be_bytes());
                }
            });
            boxed(b, b"mdia", |b| {
                timed_box(b, b"mdhd", 0, duration, |b, put| {
                    b.extend(timescale.to_be_bytes());
                    put(b);
                    b.extend(0x55c4u16.to_be_bytes()); // language: undetermined
                    b.extend([0; 2]);
                });
                full_box(b, b"hdlr", 0, |b| {
                    b.extend(b"\0\0\0\0vide\0\0\0\0\0\0\0\0\0\0\0\0VideoHandler\0");
                });
                boxed(b, b"minf", |b| {
                    media_information(b, track, frame_ticks, first_sample, wide_offset);
                });
            });
        });
        boxed(b, b"udta", |b| tags::write(b, track.metadata));
    });
    out
}

/// Ticks per second and per frame: the exact rate, doubled until players round seek times finely enough.
fn clock(fps: Fps) -> (u32, u32) {
    let (mut timescale, mut frame_ticks) = (fps.num(), fps.den());
    while timescale < 10_000 {
        (timescale, frame_ticks) = (timescale * 2, frame_ticks * 2);
    }
    (timescale, frame_ticks)
}

fn media_information(
    out: &mut Vec<u8>,
    track: &Track<'_>,
    frame_ticks: u32,
    first_sample: u64,
    wide_offset: bool,
) {
    full_box(out, b"vmhd", 1, |b| b.extend([0; 8]));
    boxed(out, b"dinf", |b| {
        full_box(b, b"dref", 0, |b| {
            b.extend(1u32.to_be_bytes());
            full_box(b, b"url ", 1, |_| ()); // in this file
        });
    });
    boxed(out, b"stbl", |b| {
        full_box(b, b"stsd", 0, |b| {
            b.extend(1u32.to_be_bytes());
            boxed(b, b"avc1", |b| sample_entry(b, track));
        });
        let samples = track.sample_bytes.len() as u32;
        full_box(b, b"stts", 0, |b| {
            put_u32s(b, &[1, samples, frame_ticks]);
        });
        full_box(b, b"stss", 0, |b| {
            put_u32s(b, &[track.keyframes.len() as u32]);
            put_u32s(b, track.keyframes);
        });
        full_box(b, b"stsc", 0, |b| put_u32s(b, &[1, 1, samples, 1]));
        full_box(b, b"stsz", 0, |b| {
            put_u32s(b, &[0, samples]);
            put_u32s(b, track.sample_bytes);
        });
        if wide_offset {
            full_box(b, b"co64", 0, |b| {
                put_u32s(b, &[1]);
                b.extend(first_sample.to_be_bytes());
            });
        } else {
            full_box(b, b"stco", 0, |b| put_u32s(b, &[1, first_sample as u32]));
        }
    });
}

fn sample_entry(out: &mut Vec<u8>, track: &Track<'_>) {
    out.extend([0, 0, 0, 0, 0, 0, 0, 1]);
    out.extend([0; 16]);
    for dim in track.size {
        out.extend((dim as u16).to_be_bytes());
    }
    put_u32s(out, &[72 << 16, 72 << 16, 0]); // dots per inch
    out.extend(1u16.to_be_bytes()); // frames in a sample
    out.extend([0; 32]);
    out.extend([0, 24, 0xff, 0xff]); // depth, no color table
    boxed(out, b"avcC", |b| {
        b.push(1);
        b.extend(&track.sps[1..4]); // profile, compatibility, level
        b.push(0xff); // 4-byte lengths
        b.push(0xe1); // one SPS
        b.extend((track.sps.len() as u16).to_be_bytes());
        b.extend(track.sps);
        b.push(1); // one PPS
        b.extend((track.pps.len() as u16).to_be_bytes());
        b.extend(track.pps);
    });
    boxed(out, b"colr", |b| {
        // Primaries BT.709, transfer sRGB, limited range: as in the SPS.
        b.extend(b"nclx");
        b.extend([0, 1, 0, 13, 0, track.matrix.code(), 0]);
    });
    boxed(out, b"pasp", |b| put_u32s(b, &[1, 1]));
}

/// Appends a box whose payload is written by `body`.
pub(crate) fn boxed(out: &mut Vec<u8>, kind: &[u8; 4], body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 4]);
    out.extend(kind);
    body(out);
    let len = u32::try_from(out.len() - start).expect("an index stays below 4 GiB");
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

/// A box with version 0 and flags.
pub(crate) fn full_box(
    out: &mut Vec<u8>,
    kind: &[u8; 4],
    flags: u8,
    body: impl FnOnce(&mut Vec<u8>),
) {
    boxed(out, kind, |b| {
        b.extend([0, 0, 0, flags]);
        body(b);
    });
}

/// A box with creation and modification times, which are zero, and a duration, which `body` places with
/// its second argument; version 1 with wide fields if the duration needs them.
fn timed_box(
    out: &mut Vec<u8>,
    kind: &[u8; 4],
    flags: u8,
    duration: u64,
    body: impl FnOnce(&mut Vec<u8>, &dyn Fn(&mut Vec<u8>)),
) {
    boxed(out, kind, |b| match u32::try_from(duration) {
        Ok(duration) => {
            b.extend([0, 0, 0, flags]);
            b.extend([0; 8]);
            body(b, &|b| b.extend(duration.to_be_bytes()));
        }
        Err(_) => {
            b.extend([1, 0, 0, flags]);
            b.extend([0; 16]);
            body(b, &|b| b.extend(duration.to_be_bytes()));
        }
    });
}

fn unity_matrix() -> Vec<u8> {
    let mut out = Vec::new();
    put_u32s(&mut out, &[1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30]);
    out
}

fn put_u32s(out: &mut Vec<u8>, values: &[u32]) {
    out.extend(values.iter().flat_map(|value| value.to_be_bytes()));
}
