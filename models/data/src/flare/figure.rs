//! A creature as clips: its layers composed pose by pose, framed, put on a ground and scaled.
//!
//! Composition and scaling are in the integers of the Pillow library, which the first clips were made with.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use media::{Filter, RgbaPicture, resample};

use super::animation::{self, Animations, Pose};
use super::{DIRECTIONS, N_FRAMES, SIDE};
use crate::{Error, Result};

/// Height and width of what poses are composed on.
const CANVAS: usize = 400;
/// Where figures stand on it.
const STAND: i32 = 200;
/// The art is dark; it is lifted so that it reads at the size of clips.
const GAMMA: f64 = 0.72;
/// Pixels with less opacity are no part of a figure's outline.
const OUTLINE_OPACITY: u8 = 100;

/// A creature.
#[derive(Debug)]
pub(super) struct Figure {
    /// At least one, from the lowest up.
    layers: Vec<Layer>,
    window: Window,
}

#[derive(Debug)]
struct Layer {
    /// The file of its animations.
    path: PathBuf,
    atlas: RgbaPicture,
    animations: Animations,
}

/// A square of the canvas.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Window {
    left: i32,
    top: i32,
    side: usize,
}

/// Bounds of what is opaque: left, top, right, bottom; the last two are past it.
type Bounds = [usize; 4];

/// RGBA `[CANVAS, CANVAS, 4]`.
type Canvas = Vec<u8>;

impl Figure {
    /// Reads the layers of a figure, from the lowest up, and frames it so that its clips of `actions` fit.
    /// Every layer is `mod/folder/name` below `art`; the first two actions decide the frame's center.
    pub(super) fn open(art: &Path, layers: &[&str], actions: &[&str]) -> Result<Figure> {
        let layers = layers.iter().map(|layer| Layer::open(art, layer)).collect::<Result<_>>()?;
        let mut figure = Figure { layers, window: Window { left: 0, top: 0, side: SIDE } };
        let (mut calm, mut all) = ([usize::MAX, usize::MAX, 0, 0], [usize::MAX, usize::MAX, 0, 0]);
        for (index, action) in actions.iter().enumerate() {
            for direction in 0..DIRECTIONS.len() {
                let poses = figure.poses(action, direction)?;
                let shown: BTreeSet<usize> = figure.order(action, poses.len()).collect();
                for pose in shown {
                    let Some(bounds) = bounds(&poses[pose]) else { continue };
                    all = union(all, bounds);
                    if index < 2 {
                        calm = union(calm, bounds);
                    }
                }
            }
        }
        if calm[2] == 0 {
            return Err(fault(art, "a figure has no opaque pixel".into()));
        }
        figure.window = Window::around(calm, all);
        Ok(figure)
    }

    /// The clip of an action in a direction on a ground of color `ground`: RGB `[T, H, W, 3]`.
    pub(super) fn clip(&self, action: &str, direction: usize, ground: [u8; 3]) -> Result<Vec<u8>> {
        let side = self.window.side;
        let filter = match side {
            side if side < SIDE => Filter::Lanczos,
            side if side >= 2 * SIDE => Filter::Box,
            _ => Filter::Cubic,
        };
        let scaled = |canvas: &Canvas| {
            resample(&self.window.cut(canvas, ground), [side, side], [SIDE, SIDE], filter)
        };
        let poses = self.poses(action, direction)?;
        let pictures = poses.iter().map(scaled).collect::<media::Result<Vec<_>>>()?;
        Ok(self.order(action, pictures.len()).flat_map(|pose| pictures[pose].clone()).collect())
    }

    /// Which of an action's `n` poses each frame shows.
    fn order(&self, action: &str, n: usize) -> impl Iterator<Item = usize> + use<> {
        let action = self.layers[0].animations.actions.get(action);
        order(n, action.is_some_and(|action| action.returns))
    }

    /// The canvas of each pose, at least one.
    fn poses(&self, action: &str, direction: usize) -> Result<Vec<Canvas>> {
        let first = &self.layers[0].animations;
        let n_poses = first.actions.get(action).map_or(0, |action| action.poses[direction].len());
        if n_poses == 0 {
            let reason = format!("has no `{action}` towards {}", DIRECTIONS[direction]);
            return Err(fault(&self.layers[0].path, reason));
        }
        let compose = |pose: usize| {
            let mut canvas = vec![0; CANVAS * CANVAS * 4];
            for layer in &self.layers {
                let poses = layer.animations.actions.get(action).map(|a| &a.poses[direction][..]);
                if let Some(poses @ [.., last]) = poses {
                    layer.draw(poses.get(pose).unwrap_or(last), &mut canvas);
                }
            }
            canvas
        };
        Ok((0..n_poses).map(compose).collect())
    }
}

impl Layer {
    fn open(art: &Path, name: &str) -> Result<Layer> {
        let (module, rest) = name.split_once('/').unwrap_or(("", name));
        let module = art.join(module);
        let path = module.join("animations").join(format!("{rest}.txt"));
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Io {
            path: path.clone(),
            action: "read an animation of Flare",
            source,
        })?;
        let animations = animation::parse(&text).map_err(|reason| fault(&path, reason))?;
        let image = module.join(&animations.image);
        let mut atlas = media::read_rgba_png(&image)?;
        for action in animations.actions.values() {
            for pose in action.poses.iter().flatten() {
                let end = |axis: usize| pose.from[axis] + pose.size[axis];
                if end(0) > atlas.width || end(1) > atlas.height {
                    let reason = format!(
                        "{pose:?} ends outside {}, which is {}x{}",
                        image.display(),
                        atlas.width,
                        atlas.height
                    );
                    return Err(fault(&path, reason));
                }
            }
        }
        let lifted: [u8; 256] = std::array::from_fn(|value| {
            (255.0 * (value as f64 / 255.0).powf(GAMMA)).round_ties_even() as u8
        });
        for pixel in atlas.rgba.chunks_exact_mut(4) {
            pixel[..3].iter_mut().for_each(|value| *value = lifted[usize::from(*value)]);
        }
        Ok(Layer { path, atlas, animations })
    }

    /// Draws a pose over `canvas`; what is outside is cut off.
    fn draw(&self, pose: &Pose, canvas: &mut [u8]) {
        let [width, height] = pose.size;
        for y in 0..height {
            for x in 0..width {
                let place = [STAND - pose.ground[0] + x as i32, STAND - pose.ground[1] + y as i32];
                let Some(at) = offset(place) else { continue };
                let from = ((pose.from[1] + y) * self.atlas.width + pose.from[0] + x) * 4;
                let over = pixel(&self.atlas.rgba, from);
                let drawn = composite(over, pixel(canvas, at));
                canvas[at..at + 4].copy_from_slice(&drawn);
            }
        }
    }
}

impl Window {
    /// A square around what stands and runs, wide enough for most of what else a figure does.
    fn around(calm: Bounds, all: Bounds) -> Window {
        let extent = |bounds: Bounds| (bounds[2] - bounds[0]).max(bounds[3] - bounds[1]) as f64;
        let side = (extent(calm) * 1.12).max(extent(all) * 0.8).round_ties_even();
        let start = |low: usize, high: usize| {
            ((low + high) as f64 / 2.0 - side / 2.0).round_ties_even() as i32
        };
        let (left, top) = (start(calm[0], calm[2]), start(calm[1], calm[3]));
        Window { left, top, side: side as usize }
    }

    /// What is in the window, on a ground: RGB `[side, side, 3]`.
    fn cut(self, canvas: &[u8], [r, g, b]: [u8; 3]) -> Vec<u8> {
        let mut rgb = Vec::with_capacity(self.side * self.side * 3);
        for y in 0..self.side as i32 {
            for x in 0..self.side as i32 {
                let over = match offset([self.left + x, self.top + y]) {
                    Some(at) => pixel(canvas, at),
                    None => [0; 4],
                };
                rgb.extend(&composite(over, [r, g, b, 255])[..3]);
            }
        }
        rgb
    }
}

/// Which of `n` poses each frame shows.
fn order(n: usize, returns: bool) -> impl Iterator<Item = usize> {
    // 0 1 2 3 2 1 for four poses that are played back and forth.
    let count = if returns && n > 1 { 2 * n - 2 } else { n };
    let pose = move |place: usize| if place < n { place } else { count - place };
    (0..N_FRAMES).map(move |frame| pose(frame * count / N_FRAMES))
}

/// Where a pixel of the canvas begins; `None` outside.
fn offset([x, y]: [i32; 2]) -> Option<usize> {
    let inside = |value: i32| usize::try_from(value).ok().filter(|&value| value < CANVAS);
    Some((inside(y)? * CANVAS + inside(x)?) * 4)
}

fn pixel(rgba: &[u8], at: usize) -> [u8; 4] {
    [rgba[at], rgba[at + 1], rgba[at + 2], rgba[at + 3]]
}

/// `over` upon `under`, colors not multiplied by opacity, with Pillow's 7 bits after the point.
fn composite(over: [u8; 4], under: [u8; 4]) -> [u8; 4] {
    if over[3] == 0 {
        return under;
    }
    let by_255 = |value: u32| ((value >> 8) + value) >> 8;
    let opacity = u32::from(over[3]);
    let blend = u32::from(under[3]) * (255 - opacity);
    let sum = opacity * 255 + blend;
    let share = opacity * 255 * 255 * 128 / sum;
    let rest = 255 * 128 - share;
    let mixed = |channel: usize| {
        let value = u32::from(over[channel]) * share + u32::from(under[channel]) * rest;
        (by_255(value + (0x80 << 7)) >> 7) as u8
    };
    [mixed(0), mixed(1), mixed(2), by_255(sum + 0x80) as u8]
}

/// Bounds of what is opaque enough on a canvas.
fn bounds(canvas: &[u8]) -> Option<Bounds> {
    let mut found = [usize::MAX, usize::MAX, 0, 0];
    for (index, pixel) in canvas.chunks_exact(4).enumerate() {
        if pixel[3] > OUTLINE_OPACITY {
            let (x, y) = (index % CANVAS, index / CANVAS);
            found = union(found, [x, y, x + 1, y + 1]);
        }
    }
    (found[2] > 0).then_some(found)
}

fn union(a: Bounds, b: Bounds) -> Bounds {
    [a[0].min(b[0]), a[1].min(b[1]), a[2].max(b[2]), a[3].max(b[3])]
}

fn fault(path: &Path, reason: String) -> Error {
    Error::Flare { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poses_are_spread_over_the_frames() {
        let shown = |n, returns| order(n, returns).collect::<Vec<_>>();
        assert_eq!(shown(4, false), [0, 0, 1, 1, 2, 2, 3, 3]);
        assert_eq!(shown(4, true), [0, 0, 1, 2, 3, 3, 2, 1]);
        assert_eq!(shown(8, false), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(shown(1, true), [0; 8]);
        assert_eq!(shown(12, false), [0, 1, 3, 4, 6, 7, 9, 10]);
    }

    /// Values of Pillow's `alpha_composite`.
    #[test]
    fn composition_is_pillows() {
        assert_eq!(composite([10, 20, 30, 255], [1, 2, 3, 255]), [10, 20, 30, 255]);
        assert_eq!(composite([10, 20, 30, 0], [1, 2, 3, 4]), [1, 2, 3, 4]);
        assert_eq!(composite([10, 20, 30, 77], [1, 2, 3, 0]), [10, 20, 30, 77]);
        assert_eq!(composite([200, 0, 100, 128], [0, 255, 100, 255]), [100, 127, 100, 255]);
    }

    #[test]
    fn a_window_is_centered_on_what_stands() {
        let window = Window::around([190, 150, 220, 210], [100, 150, 220, 210]);
        // 80 % of 120 exceed 112 % of 60.
        assert_eq!(window, Window { left: 157, top: 132, side: 96 });
    }
}
