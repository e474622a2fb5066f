//! One palette for a whole clip, from a histogram that is filled frame by frame.
//!
//! A clip of few colors keeps them exactly. Otherwise: variance-based median cut (split the box with the
//! largest squared error at its mean) on 5-bit bins that remember their mean color, then Lloyd steps.
//! Mapping uses an 8x8 ordered dither, which stays still where the picture does, so unchanged areas
//! compress. Invariant: no randomness and no dependence on thread count.

use std::collections::BTreeSet;

/// Colors of a clip, counted.
#[derive(Debug)]
pub(crate) struct Histogram {
    bins: Vec<Bin>,
    /// The distinct colors, until there are more than `MAX_COLORS`.
    exact: Option<BTreeSet<[u8; 3]>>,
}

/// Colors whose upper five bits agree.
#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    count: u64,
    sums: [u64; 3],
}

/// Most palette entries; index 255 is kept for "unchanged".
pub(crate) const MAX_COLORS: usize = 255;

/// Lloyd steps after the median cut; the error changes little after these.
const LLOYD_STEPS: usize = 4;

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { bins: vec![Bin::default(); 1 << 15], exact: Some(BTreeSet::new()) }
    }

    /// Counts the colors of `rgb`, `[pixels, 3]`.
    pub(crate) fn add(&mut self, rgb: &[u8]) {
        let (pixels, _) = rgb.as_chunks::<3>();
        let mut last = None;
        for &color in pixels {
            let [r, g, b] = color;
            let bin = &mut self.bins
                [usize::from(r >> 3) << 10 | usize::from(g >> 3) << 5 | usize::from(b >> 3)];
            bin.count += 1;
            for (sum, level) in bin.sums.iter_mut().zip(color) {
                *sum += u64::from(level);
            }
            if last == Some(color) {
                continue;
            }
            last = Some(color);
            if let Some(exact) = &mut self.exact {
                exact.insert(color);
                if exact.len() > MAX_COLORS {
                    self.exact = None;
                }
            }
        }
    }

    /// The best palette of at most [`MAX_COLORS`] colors that this module can find.
    pub(crate) fn palette(self) -> Palette {
        if let Some(exact) = self.exact {
            return Palette { colors: exact.into_iter().collect(), exact: true, amplitude: 0.0 };
        }
        let mut points: Vec<Point> =
            self.bins.iter().filter(|bin| bin.count > 0).map(Point::new).collect();
        let mut centers = median_cut(&mut points);
        for _ in 0..LLOYD_STEPS {
            lloyd_step(&points, &mut centers);
        }
        let mut colors: Vec<[u8; 3]> =
            centers.iter().map(|center| center.map(|level| level.round() as u8)).collect();
        colors.sort_unstable();
        colors.dedup();
        let (mut error, mut count) = (0.0, 0.0);
        for point in &points {
            let (_, squared) = nearest(&centers, point.mean);
            error += squared * point.count;
            count += 3.0 * point.count;
        }
        // A dither as wide as the typical distance between neighbor colors hides the bands.
        let amplitude = ((error / count).sqrt() * 3.0).clamp(2.0, 32.0);
        Palette { colors, exact: false, amplitude }
    }
}

/// A bin as a weighted color.
#[derive(Clone, Copy, Debug)]
struct Point {
    count: f64,
    mean: [f64; 3],
}

impl Point {
    fn new(bin: &Bin) -> Self {
        let count = bin.count as f64;
        Self { count, mean: bin.sums.map(|sum| sum as f64 / count) }
    }
}

/// A run of points and how far they are from their mean.
struct Cut {
    start: usize,
    end: usize,
    mean: [f64; 3],
    /// Weighted squared error per channel.
    error: [f64; 3],
}

impl Cut {
    fn new(points: &[Point], start: usize, end: usize) -> Self {
        let inside = &points[start..end];
        let count: f64 = inside.iter().map(|p| p.count).sum();
        let mut mean = [0.0; 3];
        let mut error = [0.0; 3];
        for channel in 0..3 {
            mean[channel] = inside.iter().map(|p| p.mean[channel] * p.count).sum::<f64>() / count;
            error[channel] =
                inside.iter().map(|p| (p.mean[channel] - mean[channel]).powi(2) * p.count).sum();
        }
        Self { start, end, mean, error }
    }

    fn total_error(&self) -> f64 {
        if self.end - self.start > 1 { self.error.iter().sum() } else { 0.0 }
    }
}

fn median_cut(points: &mut [Point]) -> Vec<[f64; 3]> {
    let mut cuts = vec![Cut::new(points, 0, points.len())];
    while cuts.len() < MAX_COLORS {
        let worst = (0..cuts.len())
            .max_by(|&a, &b| cuts[a].total_error().total_cmp(&cuts[b].total_error()))
            .expect("there is always a box");
        let Cut { start, end, mean, error } = cuts[worst];
        let axis = (0..3).max_by(|&a, &b| error[a].total_cmp(&error[b])).expect("three channels");
        let inside = &mut points[start..end];
        inside.sort_by(|a, b| a.mean[axis].total_cmp(&b.mean[axis]));
        let middle = start + inside.partition_point(|p| p.mean[axis] <= mean[axis]);
        if cuts[worst].total_error() <= 0.0 || middle == start || middle == end {
            break;
        }
        cuts[worst] = Cut::new(points, start, middle);
        cuts.push(Cut::new(points, middle, end));
    }
    cuts.into_iter().map(|cut| cut.mean).collect()
}

/// Moves each center to the mean of the points nearest to it.
fn lloyd_step(points: &[Point], centers: &mut [[f64; 3]]) {
    let mut sums = vec![[0.0; 4]; centers.len()];
    for point in points {
        let (index, _) = nearest(centers, point.mean);
        for (sum, level) in sums[index].iter_mut().zip(point.mean) {
            *sum += level * point.count;
        }
        sums[index][3] += point.count;
    }
    for (center, [r, g, b, count]) in centers.iter_mut().zip(sums) {
        if count > 0.0 {
            *center = [r / count, g / count, b / count];
        }
    }
}

/// Index of the nearest center and its squared distance; the first one wins a tie.
fn nearest(centers: &[[f64; 3]], color: [f64; 3]) -> (usize, f64) {
    let mut best = (0, f64::INFINITY);
    for (index, center) in centers.iter().enumerate() {
        let d = [center[0] - color[0], center[1] - color[1], center[2] - color[2]];
        let squared = d[0] * d[0] + d[1] * d[1] + d[2] * d[2];
        if squared < best.1 {
            best = (index, squared);
        }
    }
    best
}

/// At most [`MAX_COLORS`] colors, sorted.
#[derive(Debug)]
pub(crate) struct Palette {
    colors: Vec<[u8; 3]>,
    exact: bool,
    /// Width of the dither, in levels.
    amplitude: f64,
}

impl Palette {
    /// The colors as bytes, `[n, 3]`.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.colors.as_flattened().to_vec()
    }

    /// What maps frames of `width` pixels to indices.
    pub(crate) fn mapper(&self, width: usize) -> Mapper<'_> {
        let centers = self.colors.iter().map(|color| color.map(f64::from)).collect();
        let dither = bayer().map(|rank| {
            // Ranks 0..64 become evenly spaced offsets around 0.
            (((f64::from(rank) + 0.5) / 64.0 - 0.5) * self.amplitude).round() as i16
        });
        Mapper { palette: self, centers, dither, cache: vec![EMPTY; 1 << 18], width }
    }
}

/// A cache entry that was not computed yet.
const EMPTY: u16 = u16::MAX;

/// Maps pixels to palette indices and remembers what it found, at six bits per channel.
#[derive(Debug)]
pub(crate) struct Mapper<'a> {
    palette: &'a Palette,
    centers: Vec<[f64; 3]>,
    dither: [i16; 64],
    cache: Vec<u16>,
    width: usize,
}

impl Mapper<'_> {
    /// Writes the index of each pixel of `rgb`, `[pixels, 3]`, to `out`.
    pub(crate) fn map(&mut self, rgb: &[u8], out: &mut [u8]) {
        let (pixels, _) = rgb.as_chunks::<3>();
        for (i, (&color, index)) in pixels.iter().zip(out).enumerate() {
            *index = if self.palette.exact {
                let found = self.palette.colors.binary_search(&color);
                found.expect("an exact palette has every color") as u8
            } else {
                let (y, x) = (i / self.width, i % self.width);
                let offset = self.dither[(y % 8) * 8 + x % 8];
                self.nearest(color.map(|level| (i16::from(level) + offset).clamp(0, 255) as u8))
            };
        }
    }

    fn nearest(&mut self, [r, g, b]: [u8; 3]) -> u8 {
        let cell = usize::from(r >> 2) << 12 | usize::from(g >> 2) << 6 | usize::from(b >> 2);
        if self.cache[cell] == EMPTY {
            // The middle of the cell stands for its 4x4x4 colors.
            let middle = [r, g, b].map(|level| f64::from(level & !3) + 1.5);
            self.cache[cell] = nearest(&self.centers, middle).0 as u16;
        }
        self.cache[cell] as u8
    }
}

/// Bayer's 8x8 threshold matrix: bits of `x ^ y` and `y`, interleaved from the lowest up.
fn bayer() -> [u8; 64] {
    std::array::from_fn(|i| {
        let (y, x) = (i as u8 / 8, i as u8 % 8);
        (0..3).fold(0, |rank, bit| {
            let (a, b) = ((x ^ y) >> bit & 1, y >> bit & 1);
            rank << 2 | a << 1 | b
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bayer_matrix_holds_every_rank_once() {
        let mut ranks = bayer();
        assert_eq!(ranks[..2], [0, 32]);
        ranks.sort_unstable();
        assert!(ranks.iter().enumerate().all(|(i, &rank)| i == usize::from(rank)));
    }

    #[test]
    fn few_colors_are_kept_exactly() {
        let rgb: Vec<u8> = (0..255u8).flat_map(|i| [i, 255 - i, i / 2]).collect();
        let mut histogram = Histogram::new();
        histogram.add(&rgb);
        let palette = histogram.palette();
        let mut indices = vec![0; 255];
        palette.mapper(255).map(&rgb, &mut indices);
        let back: Vec<u8> = indices.iter().flat_map(|&i| palette.colors[usize::from(i)]).collect();
        assert_eq!(back, rgb);
    }

    #[test]
    fn many_colors_are_approximated_closely() {
        // A smooth ramp through a plane of the color cube, 4096 colors.
        let rgb: Vec<u8> = (0..64u8)
            .flat_map(|y| (0..64u8).flat_map(move |x| [x * 4, y * 4, 128 + x / 2 - y / 2]))
            .collect();
        let mut histogram = Histogram::new();
        histogram.add(&rgb);
        let palette = histogram.palette();
        assert!(palette.colors.len() > 200);
        let mut indices = vec![0; 4096];
        palette.mapper(64).map(&rgb, &mut indices);
        let squared: f64 = rgb
            .as_chunks::<3>()
            .0
            .iter()
            .zip(&indices)
            .map(|(color, &i)| {
                let found = palette.colors[usize::from(i)];
                (0..3).map(|c| (f64::from(color[c]) - f64::from(found[c])).powi(2)).sum::<f64>()
            })
            .sum();
        // 255 colors on a 256x256 plane are 16 apart, 4.6 rms without a dither; the dither about doubles it.
        let rms = (squared / 4096.0 / 3.0).sqrt();
        assert!(rms < 8.0, "{rms}");
    }
}
