//! Clips as a generator may make them: moved, mirrored, of other colors, blurred, running into each other, noisy.

use crate::clips::{N_FRAMES, PLANE, SIDE, to_float};
use crate::draws::Draws;

/// Most pixels that a clip is moved.
const SHIFT: f64 = 3.0;
/// Most that it is enlarged or made smaller.
const ZOOM: f64 = 0.05;
/// Most that a color is stretched, and moved, of the range -1..1.
const GAIN: f64 = 0.1;
const OFFSET: f64 = 0.08;
/// Share of the clips that are blurred, and most times that it is done.
const BLURRED: f64 = 0.4;
const BLURS: usize = 2;
/// Share of the clips whose frames keep something of the one before, and most of it.
const MIXED: f64 = 0.25;
const MIX: f64 = 0.5;
/// Share of the clips with noise, and its largest deviation.
const NOISY: f64 = 0.5;
const NOISE: f64 = 0.12;

/// Augments a clip, bytes `[3, N_FRAMES, SIDE, SIDE]`, to f32 of that shape in about -1..1. Returns whether it is the
/// mirror image.
pub fn augment(pixels: &[u8], draws: &mut Draws, out: &mut [f32]) -> bool {
    let is_mirrored = draws.happens(0.5);
    let zoom = 1.0 + draws.between(-ZOOM, ZOOM);
    let columns = Taps::new(zoom, draws.between(-SHIFT, SHIFT), is_mirrored);
    let rows = Taps::new(zoom, draws.between(-SHIFT, SHIFT), false);
    let colors: [[f32; 2]; 3] = std::array::from_fn(|_| {
        let gain = 1.0 + draws.between(-GAIN, GAIN);
        [gain as f32, draws.between(-OFFSET, OFFSET) as f32]
    });
    let n_blurs = if draws.happens(BLURRED) { 1 + draws.below(BLURS) } else { 0 };
    let mut wide = vec![0f32; PLANE];
    let planes = pixels.chunks_exact(PLANE).zip(out.chunks_exact_mut(PLANE));
    for (plane, (from, to)) in planes.enumerate() {
        let [gain, offset] = colors[plane / N_FRAMES];
        for (from, to) in from.chunks_exact(SIDE).zip(wide.chunks_exact_mut(SIDE)) {
            for (tap, to) in columns.0.iter().zip(to) {
                *to = tap.mix(to_float(from[tap.low]), to_float(from[tap.high]));
            }
        }
        for (tap, to) in rows.0.iter().zip(to.chunks_exact_mut(SIDE)) {
            let [low, high] = [tap.low, tap.high].map(|row| &wide[row * SIDE..][..SIDE]);
            for (to, (&low, &high)) in to.iter_mut().zip(low.iter().zip(high)) {
                *to = gain * tap.mix(low, high) + offset;
            }
        }
        for _ in 0..n_blurs {
            blur(to, &mut wide);
        }
    }
    if draws.happens(MIXED) {
        let share = draws.between(0.0, MIX) as f32;
        for channel in out.chunks_exact_mut(N_FRAMES * PLANE) {
            // From the last frame on, so that each takes of the one before as it was.
            for t in (1..N_FRAMES).rev() {
                let (before, now) = channel[(t - 1) * PLANE..].split_at_mut(PLANE);
                let pairs = now[..PLANE].iter_mut().zip(&*before);
                pairs.for_each(|(now, before)| *now += share * (before - *now));
            }
        }
    }
    if draws.happens(NOISY) {
        let deviation = draws.between(0.0, NOISE) as f32;
        out.iter_mut().for_each(|value| *value += deviation * draws.about_normal());
    }
    is_mirrored
}

/// Two places along an axis and how much the second one counts.
#[derive(Clone, Copy)]
struct Tap {
    low: usize,
    high: usize,
    share: f32,
}

impl Tap {
    fn mix(self, low: f32, high: f32) -> f32 {
        low + self.share * (high - low)
    }
}

/// Where each place along an axis takes its value from. What would be outside is at the edge: grounds are plain.
struct Taps([Tap; SIDE]);

impl Taps {
    fn new(zoom: f64, shift: f64, is_mirrored: bool) -> Taps {
        let middle = (SIDE - 1) as f64 / 2.0;
        Taps(std::array::from_fn(|to| {
            let from = (to as f64 - middle) / zoom + middle - shift;
            let from = if is_mirrored { (SIDE - 1) as f64 - from } else { from };
            let from = from.clamp(0.0, (SIDE - 1) as f64);
            let low = from as usize;
            Tap { low, high: (low + 1).min(SIDE - 1), share: (from - low as f64) as f32 }
        }))
    }
}

/// Weights 1/4, 1/2, 1/4 along both axes.
fn blur(plane: &mut [f32], wide: &mut [f32]) {
    let near = |at: usize| (at.saturating_sub(1), (at + 1).min(SIDE - 1));
    for (from, to) in plane.chunks_exact(SIDE).zip(wide.chunks_exact_mut(SIDE)) {
        for (at, to) in to.iter_mut().enumerate() {
            let (before, after) = near(at);
            *to = 0.25 * (from[before] + from[after]) + 0.5 * from[at];
        }
    }
    for (row, to) in plane.chunks_exact_mut(SIDE).enumerate() {
        let (before, after) = near(row);
        for (at, to) in to.iter_mut().enumerate() {
            let of = |row: usize| wide[row * SIDE + at];
            *to = 0.25 * (of(before) + of(after)) + 0.5 * of(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clips::CLIP;
    use crate::draws::Purpose;

    fn augmented(pixels: &[u8], place: u64) -> (bool, Vec<f32>) {
        let mut out = vec![0f32; CLIP];
        let mut draws = Draws::new(5, Purpose::Augmentation, [place, 0]);
        (augment(pixels, &mut draws, &mut out), out)
    }

    #[test]
    fn plain_clips_stay_plain_and_about_as_bright() {
        let pixels = vec![200u8; CLIP];
        for place in 0..20 {
            let (_, out) = augmented(&pixels, place);
            let mean = out.iter().map(|&x| f64::from(x)).sum::<f64>() / CLIP as f64;
            assert!((mean - f64::from(to_float(200))).abs() < 0.14, "{mean}");
        }
    }

    /// A bright left half is on the right of mirror images, wherever else it is moved.
    #[test]
    fn mirror_images_are_told() {
        let pixels: Vec<u8> =
            (0..CLIP).map(|at| if at % SIDE < SIDE / 2 { 250 } else { 5 }).collect();
        let mut n_mirrored = 0;
        for place in 0..40 {
            let (is_mirrored, out) = augmented(&pixels, place);
            n_mirrored += usize::from(is_mirrored);
            let edge = if is_mirrored { SIDE - 1 } else { 0 };
            for row in out.chunks_exact(SIDE) {
                assert!(row[edge] > 0.0 && row[SIDE - 1 - edge] < 0.0, "{place}");
            }
        }
        assert!((10..30).contains(&n_mirrored), "{n_mirrored}");
        assert!(augmented(&pixels, 3) == augmented(&pixels, 3));
    }

    /// A picture that moves by a pixel is the picture one pixel on.
    #[test]
    fn whole_shifts_move_pixels() {
        let taps = Taps::new(1.0, 2.0, false);
        assert_eq!((taps.0[10].low, taps.0[10].share), (8, 0.0));
        assert_eq!((taps.0[0].low, taps.0[63].low), (0, 61));
        let mirror = Taps::new(1.0, 0.0, true);
        assert_eq!((mirror.0[0].low, mirror.0[63].low), (63, 0));
    }
}
