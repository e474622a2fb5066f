//! Pictures brought to the size of a video: scaled to cover it, then cropped in the middle.
//!
//! As upstream prepares images and videos, in its two ways ([`Fit`]). How an image and a frame of a video
//! are scaled is in `resample.rs`.

use crate::frames::Picture;
use crate::resample::{Axis, Filter, Scaling, resample_picture, scale};

/// How a picture is brought to a size of another aspect.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Fit {
    /// Upstream's `resize_crop`: the side that has to grow the most, or shrink the least, becomes exact.
    #[default]
    Cover,
    /// Upstream's `center`, which it uses for squares: the short side becomes exact, images are halved
    /// first while they are twice as large, and offsets are rounded in other ways.
    Center,
}

/// `picture` as f32 `[3, height, width]`, -1 for black and 1 for white.
pub(crate) fn fit(picture: &Picture, size: [usize; 2], scaling: Scaling, fit: Fit) -> Vec<f32> {
    let halved;
    let picture = match (fit, scaling) {
        (Fit::Center, Scaling::Image(_)) => {
            halved = halve(picture, size);
            halved.as_ref().unwrap_or(picture)
        }
        (Fit::Cover, _) | (_, Scaling::VideoFrame) => picture,
    };
    let from = [picture.height, picture.width];
    let [rows, columns] = match fit {
        Fit::Cover => cover(from, size, scaling),
        Fit::Center => center(from, size, scaling),
    };
    let values = scale(picture, rows, columns, scaling);
    let mut out = Vec::with_capacity(values.len());
    for channel in 0..3 {
        let plane = values.iter().skip(channel).step_by(3);
        out.extend(plane.map(|value| (value / 255.0 * 2.0 - 1.0) as f32));
    }
    out
}

/// Rows and columns of [`Fit::Cover`].
fn cover(from: [usize; 2], [height, width]: [usize; 2], scaling: Scaling) -> [Axis; 2] {
    let [from_h, from_w] = from;
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
        Scaling::Image(_) => half_to_even(scaled - to),
        Scaling::VideoFrame => (scaled - to) / 2,
    };
    [(from_h, scaled_h, height), (from_w, scaled_w, width)].map(|(from, scaled, to)| Axis {
        from_position: offset(scaled, to),
        n_positions: to,
        ..Axis::whole(from, scaled)
    })
}

/// Rows and columns of [`Fit::Center`].
fn center(from: [usize; 2], [height, width]: [usize; 2], scaling: Scaling) -> [Axis; 2] {
    let ratio = (height as f64 / from[0] as f64).max(width as f64 / from[1] as f64);
    [(from[0], height), (from[1], width)].map(|(from, to)| {
        let exact = from as f64 * ratio;
        let (scaled, scale) = match scaling {
            Scaling::Image(_) => {
                let scaled = (exact.round_ties_even() as usize).max(to);
                (scaled, from as f64 / scaled as f64)
            }
            // Interpolation by a factor: the ratio itself, not that of the rounded sides.
            Scaling::VideoFrame => ((exact.floor() as usize).max(to), 1.0 / ratio),
        };
        let from_position = match scaling {
            Scaling::Image(_) => (scaled - to) / 2,
            Scaling::VideoFrame => half_to_even(scaled - to),
        };
        Axis { from, scale, from_position, n_positions: to }
    })
}

/// Half of `n`, the even one of two equally near.
fn half_to_even(n: usize) -> usize {
    (n as f64 / 2.0).round_ties_even() as usize
}

/// `picture` halved until it is less than twice as large as `size`; `None` if it is already.
fn halve(picture: &Picture, [height, width]: [usize; 2]) -> Option<Picture> {
    let is_twice = |picture: &Picture| picture.height >= 2 * height && picture.width >= 2 * width;
    let half = |picture: &Picture| {
        resample_picture(picture, [picture.height / 2, picture.width / 2], Filter::Box)
    };
    let mut halved = is_twice(picture).then(|| half(picture))?;
    while is_twice(&halved) {
        halved = half(&halved);
    }
    Some(halved)
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
        for scaling in [Scaling::Image(Filter::Cubic), Scaling::VideoFrame] {
            assert_eq!(bytes(&fit(&picture, [4, 5], scaling, Fit::Cover)), expected, "{scaling:?}");
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
            let found =
                fit(&picture(width, height), target, Scaling::Image(Filter::Cubic), Fit::Cover);
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
        let found = fit(&picture(7, 5), [3, 4], Scaling::VideoFrame, Fit::Cover);
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            let found = (found + 1.0) / 2.0 * 255.0;
            assert!((found - expected as f32).abs() < 0.501, "{at}: {found}, expected {expected}");
        }
    }

    /// Values of Pillow's halvings and cubic filter.
    #[test]
    fn centered_images_are_pillows_to_the_byte() {
        let cases: [([usize; 2], usize, &[u8]); 2] = [
            (
                [21, 14],
                3,
                &[
                    120, 122, 141, 129, 111, 104, 113, 116, 136, 125, 86, 116, 121, 131, 118, 137,
                    116, 147, 129, 143, 105, 126, 112, 146, 144, 103, 93,
                ],
            ),
            (
                [9, 8],
                5,
                &[
                    98, 80, 114, 89, 188, 92, 118, 153, 131, 135, 100, 102, 157, 132, 112, 96, 159,
                    147, 105, 180, 143, 139, 100, 99, 188, 76, 113, 75, 187, 96, 117, 162, 129,
                    126, 71, 216, 181, 132, 87, 43, 128, 109, 177, 139, 101, 130, 121, 153, 131,
                    99, 145, 151, 110, 101, 95, 105, 111, 90, 96, 92, 122, 139, 110, 144, 122, 150,
                    165, 105, 134, 50, 115, 156, 214, 141, 35,
                ],
            ),
        ];
        for ([width, height], side, expected) in cases {
            let picture = picture(width, height);
            let found = fit(&picture, [side; 2], Scaling::Image(Filter::Cubic), Fit::Center);
            assert_eq!(bytes(&found), expected, "{width}x{height} to {side}");
        }
    }

    /// Values of torch's `interpolate` by a factor, rounded, and of a crop after it.
    #[test]
    fn centered_frames_are_torchs() {
        let cases: [([usize; 2], usize, &[u8]); 2] = [
            (
                [11, 7],
                3,
                &[
                    28, 123, 123, 111, 222, 126, 161, 120, 152, 49, 158, 117, 39, 248, 167, 79, 53,
                    71, 140, 124, 97, 65, 37, 54, 179, 167, 60,
                ],
            ),
            (
                [5, 8],
                4,
                &[
                    81, 123, 79, 142, 180, 88, 48, 115, 148, 222, 127, 84, 180, 124, 53, 131, 167,
                    46, 153, 131, 97, 58, 71, 190, 207, 140, 98, 108, 27, 94, 193, 132, 162, 140,
                    84, 158, 41, 101, 49, 48, 87, 73, 83, 118, 107, 144, 158, 122,
                ],
            ),
        ];
        for ([width, height], side, expected) in cases {
            let picture = picture(width, height);
            let found = fit(&picture, [side; 2], Scaling::VideoFrame, Fit::Center);
            for (at, (found, &expected)) in found.iter().zip(expected).enumerate() {
                let found = (found + 1.0) / 2.0 * 255.0;
                assert!(
                    (found - f32::from(expected)).abs() < 0.501,
                    "{width}x{height} {at}: {found}"
                );
            }
        }
    }

    #[test]
    fn extreme_sizes_stay_inside() {
        for (width, height) in [(1, 1), (1, 64), (64, 1), (3, 1000)] {
            for target in [[1, 1], [2, 7], [16, 16]] {
                for scaling in [Scaling::Image(Filter::Cubic), Scaling::VideoFrame] {
                    for way in [Fit::Cover, Fit::Center] {
                        let found = fit(&picture(width, height), target, scaling, way);
                        assert_eq!(found.len(), 3 * target[0] * target[1]);
                        assert!(found.iter().all(|x| (-1.0..=1.0).contains(x)), "{width}x{height}");
                    }
                }
            }
        }
    }
}
