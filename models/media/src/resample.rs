//! Pictures at another size: which pixels make a pixel, and with which weights.
//!
//! [`Scaling::Image`] is the Pillow library's: a filter that widens where a picture shrinks, one axis
//! after the other, weights in fixed point and bytes after each axis. [`Scaling::VideoFrame`] is plain
//! bilinear interpolation in floats, without widening.

use crate::clip::check_length;
use crate::frames::Picture;
use crate::{Error, Result};

/// Bits after the point of Pillow's weights.
const WEIGHT_BITS: i32 = 22;

/// A filter of the Pillow library.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filter {
    /// The mean of what a pixel covers.
    Box,
    /// Keys' cubic convolution with parameter -0.5.
    Cubic,
    /// A sinc in the window of a wider sinc, three lobes.
    Lanczos,
}

/// How a picture is scaled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scaling {
    /// As Pillow scales images.
    Image(Filter),
    /// Bilinear, as frames of videos are.
    VideoFrame,
}

/// Output positions `from_position..from_position + n_positions` of an axis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    /// Extent of the input.
    pub(crate) from: usize,
    /// Input positions that one output position spans.
    pub(crate) scale: f64,
    /// The first output position that is wanted.
    pub(crate) from_position: usize,
    /// How many are wanted.
    pub(crate) n_positions: usize,
}

impl Axis {
    /// All of `to` positions along an axis of `from`.
    pub(crate) fn whole(from: usize, to: usize) -> Axis {
        Axis { from, scale: from as f64 / to as f64, from_position: 0, n_positions: to }
    }
}

/// Input positions that make one output position: the first, and the weight of each from there on.
type Taps = (usize, Vec<f64>);

/// `picture` as `[rows, columns, 3]`, from 0 to 255.
pub(crate) fn scale(picture: &Picture, rows: Axis, columns: Axis, scaling: Scaling) -> Vec<f64> {
    let (from_h, from_w, width) = (picture.height, picture.width, columns.n_positions);
    let (rows, columns) = (taps(rows, scaling), taps(columns, scaling));
    // [from_h, width, 3], then [height, width, 3].
    let mut wide = vec![0f64; from_h * width * 3];
    for (line, pixels) in wide.chunks_exact_mut(width * 3).zip(picture.rgb.chunks_exact(from_w * 3))
    {
        for (pixel, (first, weights)) in line.chunks_exact_mut(3).zip(&columns) {
            for (channel, value) in pixel.iter_mut().enumerate() {
                let taken = weights.iter().zip(pixels[first * 3 + channel..].iter().step_by(3));
                let sum = taken.map(|(weight, &byte)| weight * f64::from(byte)).sum();
                *value = scaling.stored(sum);
            }
        }
    }
    let mut out = Vec::with_capacity(rows.len() * width * 3);
    for (first, weights) in &rows {
        for at in 0..width * 3 {
            let taken =
                weights.iter().zip(wide[first * width * 3 + at..].iter().step_by(width * 3));
            out.push(scaling.stored(taken.map(|(weight, value)| weight * value).sum()));
        }
    }
    out
}

/// `rgb`, bytes `[height, width, 3]` of a picture of size `from`, at size `to` (heights first), as
/// Pillow's `resize` makes it.
///
/// # Errors
/// [`Error::FrameLength`] when `rgb` has another length or a side is 0.
pub fn resample(rgb: &[u8], from: [usize; 2], to: [usize; 2], filter: Filter) -> Result<Vec<u8>> {
    check_length(rgb.len(), 1, from[0], from[1])?;
    if from.contains(&0) || to.contains(&0) {
        let shape = format!("a picture of {}x{} for one of {}x{}", from[0], from[1], to[0], to[1]);
        return Err(Error::FrameLength { expected: 3, found: 0, shape });
    }
    let picture = Picture { height: from[0], width: from[1], rgb: rgb.to_vec() };
    Ok(resample_picture(&picture, to, filter).rgb)
}

/// `picture` at size `to`, height first.
pub(crate) fn resample_picture(picture: &Picture, to: [usize; 2], filter: Filter) -> Picture {
    let [height, width] = to;
    let (rows, columns) = (Axis::whole(picture.height, height), Axis::whole(picture.width, width));
    let values = scale(picture, rows, columns, Scaling::Image(filter));
    // What Pillow's scaling stores are whole numbers from 0 to 255.
    Picture { width, height, rgb: values.into_iter().map(|value| value as u8).collect() }
}

impl Scaling {
    /// A sum of weighted pixels as it is kept.
    fn stored(self, sum: f64) -> f64 {
        match self {
            Scaling::Image(_) => (sum + 0.5).floor().clamp(0.0, 255.0),
            Scaling::VideoFrame => sum,
        }
    }
}

/// The taps of the wanted positions of `axis`.
fn taps(axis: Axis, scaling: Scaling) -> Vec<Taps> {
    let one = |position: usize| match scaling {
        Scaling::Image(filter) => filter.taps(axis.from, axis.scale, position),
        Scaling::VideoFrame => {
            let center = ((position as f64 + 0.5) * axis.scale - 0.5).max(0.0);
            let first = (center as usize).min(axis.from - 1);
            let part = center - first as f64;
            if first + 1 < axis.from { (first, vec![1.0 - part, part]) } else { (first, vec![1.0]) }
        }
    };
    (axis.from_position..axis.from_position + axis.n_positions).map(one).collect()
}

impl Filter {
    fn taps(self, from: usize, scale: f64, position: usize) -> Taps {
        let widening = scale.max(1.0);
        let reach = self.reach() * widening;
        let center = (position as f64 + 0.5) * scale;
        // Pillow rounds both ends, and drops what lies outside the image.
        let first = (center - reach + 0.5).max(0.0) as usize;
        let end = ((center + reach + 0.5) as usize).min(from);
        let narrowing = 1.0 / widening;
        let weights: Vec<f64> =
            (first..end).map(|at| self.at((at as f64 - center + 0.5) * narrowing)).collect();
        let norm = 1.0 / weights.iter().sum::<f64>();
        let one = f64::from(1 << WEIGHT_BITS);
        (first, weights.into_iter().map(|weight| (weight * norm * one).round() / one).collect())
    }

    /// How far from its center the filter is not 0.
    fn reach(self) -> f64 {
        match self {
            Filter::Box => 0.5,
            Filter::Cubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    /// The filter's weight at distance `x` from its center.
    fn at(self, x: f64) -> f64 {
        match self {
            Filter::Box if -0.5 < x && x <= 0.5 => 1.0,
            Filter::Box => 0.0,
            Filter::Cubic => cubic(x),
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }
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

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { x.sin() / x }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a fixed pattern.
    fn rgb([height, width]: [usize; 2]) -> Vec<u8> {
        (0..width * height * 3).map(|i| ((i * i * 7 + i * 13) % 251) as u8).collect()
    }

    /// Sizes, height first, the filter, and the bytes that are expected.
    type Case = ([usize; 2], [usize; 2], Filter, &'static [u8]);

    /// The values of Pillow's `resize`.
    #[test]
    fn filters_are_pillows_to_the_byte() {
        let cases: [Case; 3] = [
            (
                [7, 9],
                [3, 4],
                Filter::Box,
                &[
                    113, 92, 147, 92, 93, 107, 138, 139, 91, 102, 124, 97, 94, 181, 115, 153, 151,
                    106, 113, 75, 136, 182, 62, 122, 102, 88, 152, 138, 146, 168, 177, 123, 82,
                    123, 153, 71,
                ],
            ),
            (
                [8, 11],
                [3, 4],
                Filter::Lanczos,
                &[
                    74, 90, 107, 144, 125, 89, 92, 122, 114, 147, 138, 124, 144, 101, 142, 144,
                    160, 137, 138, 148, 79, 120, 96, 118, 103, 99, 144, 141, 91, 115, 125, 123, 90,
                    145, 128, 148,
                ],
            ),
            (
                [4, 5],
                [6, 7],
                Filter::Lanczos,
                &[
                    5, 0, 7, 49, 89, 186, 83, 214, 218, 75, 181, 28, 166, 90, 209, 188, 72, 177,
                    150, 107, 2, 0, 134, 155, 109, 105, 139, 193, 119, 131, 98, 186, 151, 105, 152,
                    160, 159, 92, 156, 184, 75, 147, 21, 255, 252, 148, 96, 117, 218, 0, 97, 85,
                    140, 236, 50, 211, 59, 122, 150, 95, 180, 82, 255, 150, 142, 76, 91, 49, 176,
                    21, 0, 223, 10, 40, 95, 85, 161, 0, 117, 202, 35, 97, 177, 113, 206, 82, 0,
                    148, 84, 116, 55, 59, 158, 16, 12, 17, 48, 61, 36, 97, 168, 47, 111, 222, 26,
                    197, 97, 6, 220, 133, 41, 171, 113, 49, 52, 30, 22, 0, 8, 85, 82, 121, 79, 159,
                    216, 29,
                ],
            ),
        ];
        for (from, to, filter, expected) in cases {
            let found = resample(&rgb(from), from, to, filter).unwrap();
            assert_eq!(found, expected, "{filter:?} of {from:?} to {to:?}");
        }
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        for (n_bytes, from, to) in [(11, [2, 2], [1, 1]), (0, [0, 2], [1, 1]), (12, [2, 2], [1, 0])]
        {
            assert!(resample(&vec![0; n_bytes], from, to, Filter::Box).is_err(), "{from:?} {to:?}");
        }
    }
}
