//! RGB to YUV 4:2:0, limited range, with the chroma siting that H.264 assumes by default.
//!
//! Y' = 16 + 219 (Kr R + Kg G + Kb B), Cb = 128 + 224 (B - Y) / (2 - 2 Kb), Cr alike with R and Kr, on
//! levels divided by 255 (ITU-R BT.601-7 section 2.5, BT.709-6 section 3). Chroma samples sit on every
//! second luma column and between two rows (H.264 figure E-1, type 0), so they are filtered by 1-2-1
//! across and averaged down. Invariant: integers only, and grays have chroma of exactly 128.

/// Which luma weights to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Matrix {
    /// Standard definition.
    Bt601,
    /// High definition.
    Bt709,
}

impl Matrix {
    /// What players assume of a video of this size when they do not read the stream's own description.
    pub(crate) fn for_size([width, height]: [u32; 2]) -> Self {
        if width.max(height) >= 1280 || width.min(height) >= 720 {
            Self::Bt709
        } else {
            Self::Bt601
        }
    }

    /// `(Kr, Kb)`; Kg is what is missing to 1.
    fn weights(self) -> (f64, f64) {
        match self {
            Self::Bt601 => (0.299, 0.114),
            Self::Bt709 => (0.2126, 0.0722),
        }
    }

    /// Value of `matrix_coefficients` in H.264 table E-5 and in `colr` boxes.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Bt601 => 6,
            Self::Bt709 => 1,
        }
    }
}

/// Weights of R, G and B for each plane, times 2^16.
#[derive(Clone, Copy, Debug)]
struct Weights {
    y: [i32; 3],
    cb: [i32; 3],
    cr: [i32; 3],
}

impl Weights {
    fn new(matrix: Matrix) -> Self {
        let (kr, kb) = matrix.weights();
        let fixed = |value: f64| (value * 65_536.0 / 255.0).round() as i32;
        // Green takes the rounding, so that white is exactly 235 and grays have no chroma.
        let y_sum = fixed(219.0);
        let y = [fixed(219.0 * kr), 0, fixed(219.0 * kb)];
        let cb = [fixed(-112.0 * kr / (1.0 - kb)), 0, fixed(112.0)];
        let cr = [fixed(112.0), 0, fixed(-112.0 * kb / (1.0 - kr))];
        let with_green = |[r, _, b]: [i32; 3], sum: i32| [r, sum - r - b, b];
        Self { y: with_green(y, y_sum), cb: with_green(cb, 0), cr: with_green(cr, 0) }
    }
}

/// Planes of one frame, reused from frame to frame. Dims are even; the picture is at the top left, and its
/// last column and row are repeated where it is narrower.
#[derive(Debug)]
pub(crate) struct Planes {
    /// Picture `[width, height]`.
    size: [usize; 2],
    /// Padded `[width, height]`.
    padded: [usize; 2],
    weights: Weights,
    y: Vec<u8>,
    cb: Vec<u8>,
    cr: Vec<u8>,
}

impl Planes {
    pub(crate) fn new(size: [u32; 2], matrix: Matrix) -> Self {
        let size = size.map(|dim| dim as usize);
        let padded = size.map(|dim| dim.next_multiple_of(2));
        let luma = padded[0] * padded[1];
        let (y, cb, cr) = (vec![0; luma], vec![0; luma / 4], vec![0; luma / 4]);
        Self { size, padded, weights: Weights::new(matrix), y, cb, cr }
    }

    /// Converts `rgb`, `[height, width, 3]`.
    pub(crate) fn fill(&mut self, rgb: &[u8]) {
        let ([width, height], [padded, _]) = (self.size, self.padded);
        let (pixels, _) = rgb.as_chunks::<3>();
        let row = |y: usize| {
            let y = y.min(height - 1);
            &pixels[y * width..(y + 1) * width]
        };
        for (y, out) in self.y.chunks_exact_mut(padded).enumerate() {
            let row = row(y);
            for (out, &pixel) in out.iter_mut().zip(row) {
                *out = weigh(pixel.map(i32::from), self.weights.y, 16, 16);
            }
            let last = out[width - 1];
            out[width..].fill(last);
        }
        let chroma = self.cb.chunks_exact_mut(padded / 2).zip(self.cr.chunks_exact_mut(padded / 2));
        for (cy, (cb, cr)) in chroma.enumerate() {
            let rows = [row(cy * 2), row(cy * 2 + 1)];
            for (cx, (cb, cr)) in cb.iter_mut().zip(cr).enumerate() {
                let x = (cx * 2).min(width - 1);
                let mut sum = [0; 3];
                for row in rows {
                    let (a, b, c) = (row[x.saturating_sub(1)], row[x], row[(x + 1).min(width - 1)]);
                    for (channel, sum) in sum.iter_mut().enumerate() {
                        *sum += i32::from(a[channel])
                            + 2 * i32::from(b[channel])
                            + i32::from(c[channel]);
                    }
                }
                // The filter's weights add up to 8.
                *cb = weigh(sum, self.weights.cb, 128, 19);
                *cr = weigh(sum, self.weights.cr, 128, 19);
            }
        }
    }
}

/// `base + rgb . weights / 2^shift`, rounded. The weights keep it within 16..=240, so nothing is cut off.
fn weigh(rgb: [i32; 3], weights: [i32; 3], base: i32, shift: u32) -> u8 {
    let sum: i32 = rgb.iter().zip(weights).map(|(level, weight)| level * weight).sum();
    (base + ((sum + (1 << (shift - 1))) >> shift)) as u8
}

impl openh264::formats::YUVSource for Planes {
    fn dimensions(&self) -> (usize, usize) {
        (self.padded[0], self.padded[1])
    }

    fn strides(&self) -> (usize, usize, usize) {
        (self.padded[0], self.padded[0] / 2, self.padded[0] / 2)
    }

    fn y(&self) -> &[u8] {
        &self.y
    }

    fn u(&self) -> &[u8] {
        &self.cb
    }

    fn v(&self) -> &[u8] {
        &self.cr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planes(size: [u32; 2], matrix: Matrix, rgb: &[u8]) -> Planes {
        let mut planes = Planes::new(size, matrix);
        planes.fill(rgb);
        planes
    }

    #[test]
    fn reference_colors_have_the_standards_levels() {
        // Saturated bars in limited range, computed from the formulas in f64.
        for (matrix, rgb, expected) in [
            (Matrix::Bt601, [255, 255, 255], [235, 128, 128]),
            (Matrix::Bt601, [0, 0, 0], [16, 128, 128]),
            (Matrix::Bt601, [255, 0, 0], [81, 90, 240]),
            (Matrix::Bt601, [0, 255, 0], [145, 54, 34]),
            (Matrix::Bt601, [0, 0, 255], [41, 240, 110]),
            (Matrix::Bt709, [255, 0, 0], [63, 102, 240]),
            (Matrix::Bt709, [0, 255, 0], [173, 42, 26]),
            (Matrix::Bt709, [0, 0, 255], [32, 240, 118]),
        ] {
            let p = planes([2, 2], matrix, &rgb.repeat(4));
            assert_eq!([p.y[0], p.cb[0], p.cr[0]], expected, "{matrix:?} {rgb:?}");
        }
    }

    #[test]
    fn grays_have_no_chroma() {
        for matrix in [Matrix::Bt601, Matrix::Bt709] {
            for level in 0..=255 {
                let p = planes([2, 2], matrix, &[level; 12]);
                assert_eq!((p.cb[0], p.cr[0]), (128, 128), "{matrix:?} {level}");
            }
        }
    }

    #[test]
    fn odd_sizes_repeat_the_edge() {
        // 3x1: the padded column and row equal the last ones.
        let p = planes([3, 1], Matrix::Bt601, &[0, 0, 0, 128, 128, 128, 255, 255, 255]);
        assert_eq!(p.padded, [4, 2]);
        assert_eq!(p.y[..4], p.y[4..]);
        assert_eq!((p.y[2], p.y[3]), (235, 235));
    }

    #[test]
    fn chroma_sits_on_even_columns() {
        // A red line in column 2 of 6 belongs to chroma column 1 by half, to its neighbors not at all.
        let mut rgb = vec![0; 6 * 2 * 3];
        for y in 0..2 {
            rgb[(y * 6 + 2) * 3] = 255;
        }
        let p = planes([6, 2], Matrix::Bt601, &rgb);
        assert_eq!(p.cr, [128, 184, 128]);
    }
}
