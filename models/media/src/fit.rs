//! Pictures brought to the size of a video: scaled to cover it, then cropped in the middle.
//!
//! As upstream prepares images and videos. An image is scaled by Keys' cubic convolution with
//! parameter -0.5, widened where it shrinks and rounded to bytes after each axis, in the fixed point
//! of the Pillow library; a frame of a video bilinearly, without widening and in floats.

use crate::frames::Picture;

/// Bits after the point of Pillow's weights.
const WEIGHT_BITS: i32 = 22;

/// How a picture is scaled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scaling {
    /// Cubic, as images are.
    Image,
    /// Bilinear, as frames of videos are.
    VideoFrame,
}

/// Input positions that make one output position: the first, and the weight of each from there on.
type Taps = (usize, Vec<f64>);

/// `picture` as f32 `[3, height, width]`, -1 for black and 1 for white.
pub(crate) fn fit(picture: &Picture, [height, width]: [usize; 2], scaling: Scaling) -> Vec<f32> {
    let (from_h, from_w) = (picture.height, picture.width);
    let [ratio_h, ratio_w] =
        [(height, from_h), (width, from_w)].map(|(to, from)| to as f64 / from as f64);
    let scaled = |from: usize, ratio: f64, to: usize| {
        // The rounded side covers the target up to rounding; it may not fall below it.
        ((from as f64 * ratio).round_ties_even() as usize).max(to)
    };
    let (scaled_h, scaled_w) = if ratio_h > ratio_w {
        (height, scaled(from_w, ratio_h, width))
    } else {
        (scaled(from_h, ratio_w, height), width)
    };
    let offset = |scaled: usize, to: usize| match scaling {
        Scaling::Image => ((scaled - to) as f64 / 2.0).round_ties_even() as usize,
        Scaling::VideoFrame => (scaled - to) / 2,
    };
    let (top, left) = (offset(scaled_h, height), offset(scaled_w, width));
    let columns = &taps(from_w, scaled_w, scaling)[left..left + width];
    let rows = &taps(from_h, scaled_h, scaling)[top..top + height];

    // [from_h, width, 3], then [3, height, width].
    let mut wide = vec![0f64; from_h * width * 3];
    for (line, pixels) in wide.chunks_exact_mut(width * 3).zip(picture.rgb.chunks_exact(from_w * 3))
    {
        for (pixel, (first, weights)) in line.chunks_exact_mut(3).zip(columns) {
            for (channel, value) in pixel.iter_mut().enumerate() {
                let taken = weights.iter().zip(pixels[first * 3 + channel..].iter().step_by(3));
                let sum = taken.map(|(weight, &byte)| weight * f64::from(byte)).sum();
                *value = scaling.stored(sum);
            }
        }
    }
    let mut out = vec![0f32; 3 * height * width];
    for (y, (first, weights)) in rows.iter().enumerate() {
        for x in 0..width {
            for channel in 0..3 {
                let at = |row: usize| wide[((first + row) * width + x) * 3 + channel];
                let sum = weights.iter().enumerate().map(|(row, weight)| weight * at(row)).sum();
                out[(channel * height + y) * width + x] =
                    (scaling.stored(sum) / 255.0 * 2.0 - 1.0) as f32;
            }
        }
    }
    out
}

impl Scaling {
    /// A sum of weighted pixels as it is kept.
    fn stored(self, sum: f64) -> f64 {
        match self {
            Scaling::Image => (sum + 0.5).floor().clamp(0.0, 255.0),
            Scaling::VideoFrame => sum,
        }
    }
}

/// The taps of each of `to` positions along an axis of `from`.
fn taps(from: usize, to: usize, scaling: Scaling) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let one = |position: usize| match scaling {
        Scaling::Image => cubic_taps(from, scale, position),
        Scaling::VideoFrame => {
            let center = ((position as f64 + 0.5) * scale - 0.5).max(0.0);
            let first = (center as usize).min(from - 1);
            let part = center - first as f64;
            if first + 1 < from { (first, vec![1.0 - part, part]) } else { (first, vec![1.0]) }
        }
    };
    (0..to).map(one).collect()
}

fn cubic_taps(from: usize, scale: f64, position: usize) -> Taps {
    let widening = scale.max(1.0);
    let reach = 2.0 * widening;
    let center = (position as f64 + 0.5) * scale;
    // Pillow rounds both ends, and drops what lies outside the image.
    let first = (center - reach + 0.5).max(0.0) as usize;
    let end = ((center + reach + 0.5) as usize).min(from);
    let narrowing = 1.0 / widening;
    let weights: Vec<f64> =
        (first..end).map(|at| cubic((at as f64 - center + 0.5) * narrowing)).collect();
    let norm = 1.0 / weights.iter().sum::<f64>();
    let one = f64::from(1 << WEIGHT_BITS);
    (first, weights.into_iter().map(|weight| (weight * norm * one).round() / one).collect())
}

/// Keys' cubic convolution with parameter -0.5 (Cubic Convolution Interpolation for Digital Image
/// Processing, equation 15).
fn cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        (1.5 * x - 2.5) * x * x + 1.0
    } else if x < 2.0 {
        ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture whose bytes are a fixed pattern.
    fn picture(width: usize, height: usize) -> Picture {
        let byte = |i: usize| ((i * i * 7 + i * 13) % 251) as u8;
        Picture { width, height, rgb: (0..width * height * 3).map(byte).collect() }
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().map(|x| ((x + 1.0) / 2.0 * 255.0).round() as u8).collect()
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let picture = picture(5, 4);
        let expected: Vec<u8> =
            (0..3).flat_map(|c| picture.rgb.iter().skip(c).step_by(3).copied()).collect();
        for scaling in [Scaling::Image, Scaling::VideoFrame] {
            assert_eq!(bytes(&fit(&picture, [4, 5], scaling)), expected, "{scaling:?}");
        }
    }

    /// `(width, height)` of the picture, `[height, width]` of the target, and the values of Pillow's
    /// resize with its cubic filter.
    #[test]
    fn images_are_pillows_to_the_byte() {
        let cases: [([usize; 2], [usize; 2], &[u8]); 2] = [
            (
                [7, 5],
                [3, 4],
                &[
                    57, 140, 99, 102, 160, 146, 69, 109, 155, 101, 159, 117, 123, 134, 81, 111,
                    161, 90, 45, 179, 170, 117, 58, 71, 145, 146, 151, 85, 73, 76, 89, 75, 123,
                    141, 168, 107,
                ],
            ),
            (
                [3, 4],
                [6, 5],
                &[
                    0, 26, 97, 94, 83, 53, 80, 122, 83, 52, 174, 174, 159, 65, 3, 235, 197, 128,
                    69, 38, 253, 193, 98, 77, 74, 208, 186, 141, 73, 32, 4, 69, 169, 182, 178, 32,
                    73, 141, 186, 208, 74, 77, 98, 193, 253, 38, 69, 128, 197, 235, 3, 65, 159,
                    174, 174, 52, 83, 122, 80, 53, 23, 125, 255, 122, 19, 112, 140, 175, 138, 109,
                    248, 162, 51, 161, 247, 142, 142, 142, 142, 143, 37, 124, 235, 125, 39, 179,
                    152, 116, 155, 181,
                ],
            ),
        ];
        for ([width, height], target, expected) in cases {
            let found = fit(&picture(width, height), target, Scaling::Image);
            assert_eq!(bytes(&found), expected, "{width}x{height} to {target:?}");
        }
    }

    /// Values of a plain evaluation of the bilinear formula, rounded.
    #[test]
    fn video_frames_are_bilinear() {
        let expected = [
            55, 121, 121, 128, 134, 168, 32, 132, 129, 111, 204, 106, 105, 140, 67, 105, 162, 113,
            50, 224, 176, 127, 74, 70, 138, 121, 121, 87, 46, 71, 81, 78, 132, 157, 178, 90,
        ];
        let found = fit(&picture(7, 5), [3, 4], Scaling::VideoFrame);
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            let found = (found + 1.0) / 2.0 * 255.0;
            assert!((found - expected as f32).abs() < 0.501, "{at}: {found}, expected {expected}");
        }
    }

    #[test]
    fn extreme_sizes_stay_inside() {
        for (width, height) in [(1, 1), (1, 64), (64, 1), (3, 1000)] {
            for target in [[1, 1], [2, 7], [16, 16]] {
                for scaling in [Scaling::Image, Scaling::VideoFrame] {
                    let found = fit(&picture(width, height), target, scaling);
                    assert_eq!(found.len(), 3 * target[0] * target[1]);
                    assert!(found.iter().all(|x| (-1.0..=1.0).contains(x)), "{width}x{height}");
                }
            }
        }
    }
}
