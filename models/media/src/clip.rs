//! Frames in memory, and the step from a model's floats to 8-bit RGB.
//!
//! Invariant: a [`Clip`]'s bytes are exactly `frames * height * width * 3`, checked when it is built.

use crate::{Error, Fps, Result};

/// Order of the axes of a decoded video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[T, H, W, 3]`, channels last.
    Thwc,
    /// `[3, T, H, W]`, as the VAE's decoder gives it for one sample.
    Cthw,
}

/// A video: RGB bytes `[T, H, W, 3]`, sRGB-encoded, row 0 on top.
#[derive(Clone, Copy, Debug)]
pub struct Clip<'a> {
    frames: usize,
    height: usize,
    width: usize,
    rgb: &'a [u8],
    fps: Fps,
}

impl<'a> Clip<'a> {
    /// A clip over `rgb`, `[frames, height, width, 3]`.
    ///
    /// # Errors
    /// [`Error::FrameLength`] when `rgb` has another length.
    pub fn new(
        frames: usize,
        height: usize,
        width: usize,
        rgb: &'a [u8],
        fps: Fps,
    ) -> Result<Self> {
        check_length(rgb.len(), frames, height, width)?;
        Ok(Self { frames, height, width, rgb, fps })
    }

    /// Number of frames.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Frame rate.
    pub fn fps(&self) -> Fps {
        self.fps
    }

    /// Frame `index`, `[H, W, 3]`; `index` must be below [`Clip::frames`].
    pub fn frame(&self, index: usize) -> &'a [u8] {
        let len = self.height * self.width * 3;
        &self.rgb[index * len..(index + 1) * len]
    }
}

/// A whole video of floats in [-1, 1] as RGB bytes `[T, H, W, 3]`.
///
/// `[frames, height, width]` is the shape without the channel axis. Values outside [-1, 1] are clamped.
///
/// # Errors
/// [`Error::FrameLength`] for a wrong length, [`Error::NotFinite`] for a NaN or an infinity.
pub fn rgb_from_f32(
    values: &[f32],
    layout: Layout,
    [frames, height, width]: [usize; 3],
) -> Result<Vec<u8>> {
    check_length(values.len(), frames, height, width)?;
    let mut rgb = Vec::with_capacity(values.len());
    for frame in 0..frames {
        push_frame(values, layout, [frames, height, width], frame, &mut rgb)?;
    }
    Ok(rgb)
}

/// One frame of a video of floats as RGB bytes `[H, W, 3]`, written to `rgb`, whose old content is dropped.
///
/// For streaming into a [`crate::MediaWriter`] without holding the bytes of all frames.
///
/// # Errors
/// As for [`rgb_from_f32`]; [`Error::FrameLength`] also for an index at or past `frames`.
pub fn frame_from_f32(
    values: &[f32],
    layout: Layout,
    [frames, height, width]: [usize; 3],
    index: usize,
    rgb: &mut Vec<u8>,
) -> Result<()> {
    check_length(values.len(), frames, height, width)?;
    if index >= frames {
        return Err(Error::FrameLength {
            expected: (index as u64 + 1) * (height * width * 3) as u64,
            found: values.len(),
            shape: format!("at least {} frames of {height}x{width}x3", index + 1),
        });
    }
    rgb.clear();
    push_frame(values, layout, [frames, height, width], index, rgb)
}

fn push_frame(
    values: &[f32],
    layout: Layout,
    [frames, height, width]: [usize; 3],
    index: usize,
    rgb: &mut Vec<u8>,
) -> Result<()> {
    let pixels = height * width;
    // Offset of the frame, step from pixel to pixel, step from channel to channel.
    let (start, pixel_stride, channel_stride) = match layout {
        Layout::Thwc => (index * pixels * 3, 3, 1),
        Layout::Cthw => (index * pixels, 1, frames * pixels),
    };
    rgb.reserve(pixels * 3);
    for pixel in 0..pixels {
        for channel in 0..3 {
            let value = values[start + pixel * pixel_stride + channel * channel_stride];
            if !value.is_finite() {
                let (y, x) = (pixel / width, pixel % width);
                return Err(Error::NotFinite { frame: index, y, x, channel, value });
            }
            rgb.push(byte_from_f32(value));
        }
    }
    Ok(())
}

/// `trunc(clamp((x + 1) / 2, 0, 1) * 255 + 0.5)`, the rounding of upstream's image and video saving.
fn byte_from_f32(value: f32) -> u8 {
    (((value + 1.0) / 2.0).clamp(0.0, 1.0) * 255.0 + 0.5) as u8
}

pub(crate) fn check_length(found: usize, frames: usize, height: usize, width: usize) -> Result<()> {
    let expected = [height, width, 3]
        .iter()
        .try_fold(frames as u64, |product, &dim| product.checked_mul(dim as u64))
        .unwrap_or(u64::MAX);
    if expected != found as u64 {
        let shape = format!("{frames} frames of {height}x{width}x3");
        return Err(Error::FrameLength { expected, found, shape });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_round_as_upstream() {
        for (value, byte) in [
            (-1.0, 0),
            (1.0, 255),
            (0.0, 128),
            (-7.0, 0),
            (3.0, 255),
            // 0.5/255 above a step rounds up, just below rounds down.
            (2.0 * (99.5001 / 255.0) - 1.0, 100),
            (2.0 * (99.4999 / 255.0) - 1.0, 99),
        ] {
            assert_eq!(byte_from_f32(value), byte, "{value}");
        }
    }

    #[test]
    fn both_layouts_give_the_same_bytes() {
        let shape = [2, 3, 5];
        let value = |t: usize, y: usize, x: usize, c: usize| {
            ((t * 97 + y * 31 + x * 7 + c * 53) % 101) as f32 / 50.0 - 1.0
        };
        let (mut thwc, mut cthw) = (Vec::new(), vec![0.0; 2 * 3 * 5 * 3]);
        for t in 0..2 {
            for y in 0..3 {
                for x in 0..5 {
                    for c in 0..3 {
                        thwc.push(value(t, y, x, c));
                        cthw[((c * 2 + t) * 3 + y) * 5 + x] = value(t, y, x, c);
                    }
                }
            }
        }
        let a = rgb_from_f32(&thwc, Layout::Thwc, shape).unwrap();
        let b = rgb_from_f32(&cthw, Layout::Cthw, shape).unwrap();
        assert_eq!(a, b);
        let mut frame = vec![9];
        frame_from_f32(&cthw, Layout::Cthw, shape, 1, &mut frame).unwrap();
        assert_eq!(frame, a[45..]);
        assert!(frame_from_f32(&cthw, Layout::Cthw, shape, 2, &mut frame).is_err());
    }

    #[test]
    fn nan_is_named_by_its_place() {
        let mut values = vec![0.0; 2 * 2 * 2 * 3];
        values[12 + 3 * 3 + 2] = f32::NAN;
        let error = rgb_from_f32(&values, Layout::Thwc, [2, 2, 2]).unwrap_err();
        assert!(
            matches!(error, Error::NotFinite { frame: 1, y: 1, x: 1, channel: 2, .. }),
            "{error}"
        );
    }

    #[test]
    fn rejects_a_wrong_length() {
        assert!(Clip::new(1, 2, 2, &[0; 11], Fps::new(8, 1).unwrap()).is_err());
        assert!(Clip::new(usize::MAX, 2, 2, &[0; 12], Fps::new(8, 1).unwrap()).is_err());
    }
}
