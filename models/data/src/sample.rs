//! A sample as a model is trained on it: frames out of a file, cut in time, brought to a bucket's size.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use diffusion::Release;
use media::{Fit, FrameSource};
use ops::philox::philox4x32;

use crate::{BucketShape, Error, Result, Row};

/// Frames per second of images, as models are told.
const IMAGE_FPS: f64 = 120.0;
/// Frames per second of videos of which nobody knows.
const UNKNOWN_FPS: f64 = 24.0;

/// How samples are cut and brought to size.
#[derive(Clone, Copy, Debug)]
pub struct SampleSettings {
    /// The release whose conditions are given to models.
    pub release: Release,
    /// Every so manyth frame of a video is taken.
    pub frame_interval: usize,
    /// How frames are brought to a bucket's size.
    pub fit: Fit,
    /// With row and epoch, decides where a video is cut.
    pub seed: u64,
}

/// A sample, ready for a batch.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// Its row in the table.
    pub row: usize,
    /// Frames f32 `[3, T, H, W]`, -1 for black and 1 for white.
    pub pixels: Vec<f32>,
    /// T, H and W.
    pub shape: BucketShape,
    /// The caption.
    pub text: String,
    /// Frames per second: 120 for images; those of the file, which 1.2 divides by the interval.
    pub fps: f32,
    /// W / H for models of 1.1, H / W for those of 1.2.
    pub aspect_ratio: f32,
}

impl SampleSettings {
    /// Reads the sample of `row`, which has number `index` in its table, for an epoch.
    ///
    /// # Errors
    /// [`Error::Media`], [`Error::TooShort`].
    pub fn read(
        &self,
        row: &Row,
        index: usize,
        shape: BucketShape,
        epoch: u64,
        stop: &AtomicBool,
    ) -> Result<Sample> {
        let BucketShape { num_frames, height, width } = shape;
        let source = match row.num_frames {
            Some(known) if known > 0 => FrameSource::open_counted(&row.path, known)?,
            _ => FrameSource::open(&row.path, stop)?,
        };
        let source = source.fitted(self.fit);
        let draw = CropDraw { seed: self.seed, row: index, epoch };
        let wanted = self.frames(&row.path, source.n_frames(), num_frames, draw)?;
        let plane = height * width;
        let mut pixels = vec![0f32; 3 * num_frames * plane];
        let mut t = 0;
        source.read::<Error>(&wanted, [height, width], stop, |_, frame| {
            for (channel, values) in frame.chunks_exact(plane).enumerate() {
                let at = (channel * num_frames + t) * plane;
                pixels[at..at + plane].copy_from_slice(values);
            }
            t += 1;
            Ok(())
        })?;
        let ratio = match self.release {
            Release::V1_1 => width as f64 / height as f64,
            Release::V1_2 => height as f64 / width as f64,
        };
        let fps = self.fps(row.fps, num_frames);
        let text = row.text.clone();
        Ok(Sample { row: index, pixels, shape, text, fps: fps as f32, aspect_ratio: ratio as f32 })
    }

    fn fps(&self, of_file: Option<f64>, num_frames: usize) -> f64 {
        if num_frames == 1 {
            return IMAGE_FPS;
        }
        let fps = of_file.unwrap_or(UNKNOWN_FPS);
        match self.release {
            Release::V1_1 => fps,
            Release::V1_2 => (fps / self.frame_interval as f64).floor(),
        }
    }

    /// The frames that are taken of `total`.
    fn frames(
        &self,
        path: &Path,
        total: usize,
        num_frames: usize,
        draw: CropDraw,
    ) -> Result<Vec<usize>> {
        let window = num_frames.saturating_mul(self.frame_interval);
        // The window may begin anywhere but at its last place, as upstream has it.
        let n_starts = total.saturating_sub(window.saturating_add(1)) + 1;
        let start = draw.below(n_starts);
        let end = total.min(start.saturating_add(window));
        if end - start < num_frames {
            let path = path.to_owned();
            return Err(Error::TooShort { path, found: total, expected: num_frames });
        }
        Ok(spread(start, end - 1, num_frames))
    }
}

/// `count` positions from `first` to `last`, evenly spread and rounded down.
fn spread(first: usize, last: usize, count: usize) -> Vec<usize> {
    if count == 1 {
        return vec![first];
    }
    let step = (last - first) as f64 / (count - 1) as f64;
    let inner = (0..count - 1).map(|i| (i as f64 * step + first as f64).floor() as usize);
    inner.chain([last]).collect()
}

/// What decides where a video is cut.
#[derive(Clone, Copy, Debug)]
struct CropDraw {
    seed: u64,
    row: usize,
    epoch: u64,
}

impl CropDraw {
    /// A number below `n`, which is above 0.
    fn below(self, n: usize) -> usize {
        let [row, row_high] = [self.row as u32, (self.row as u64 >> 32) as u32];
        let [epoch, epoch_high] = [self.epoch as u32, (self.epoch >> 32) as u32];
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let words = philox4x32([row, row_high, epoch, epoch_high], key);
        let word = (u64::from(words[0]) << 32) | u64::from(words[1]);
        ((u128::from(word) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn settings(frame_interval: usize) -> SampleSettings {
        SampleSettings { release: Release::V1_2, frame_interval, fit: Fit::Cover, seed: 42 }
    }

    fn frames(interval: usize, total: usize, wanted: usize, row: usize) -> Result<Vec<usize>> {
        let draw = CropDraw { seed: 42, row, epoch: 0 };
        settings(interval).frames(&PathBuf::from("a.mp4"), total, wanted, draw)
    }

    /// `numpy.linspace(first, last, count, dtype=int)`.
    #[test]
    fn positions_are_numpys() {
        assert_eq!(spread(3, 3, 1), [3]);
        assert_eq!(spread(0, 31, 16), [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 31]);
        assert_eq!(spread(5, 11, 4), [5, 7, 9, 11]);
    }

    #[test]
    fn every_cut_is_inside_and_ascends() {
        for interval in 1..4 {
            for total in 1..60 {
                for row in 0..20 {
                    match frames(interval, total, 8, row) {
                        Ok(found) => {
                            assert_eq!(found.len(), 8);
                            assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "{found:?}");
                            assert!(found[7] < total, "{found:?} of {total}");
                            assert!(found[7] - found[0] < 8 * interval, "{found:?}");
                        }
                        Err(error) => {
                            assert!(total < 8, "{error}");
                            assert!(error.to_string().contains("its bucket needs 8"), "{error}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn cuts_begin_at_every_place_but_the_last() {
        let mut starts = [0usize; 4];
        for row in 0..400 {
            starts[frames(1, 12, 8, row).unwrap()[0]] += 1;
        }
        assert!(starts.iter().all(|&n| n > 60), "{starts:?}");
        assert_eq!(frames(1, 8, 8, 3).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn models_are_told_frames_per_second_as_upstream_tells_them() {
        let of = |release, fps, n| SampleSettings { release, ..settings(3) }.fps(fps, n);
        assert_eq!(of(Release::V1_2, Some(29.97), 16), 9.0);
        assert_eq!(of(Release::V1_1, Some(29.97), 16), 29.97);
        assert_eq!(of(Release::V1_1, None, 16), 24.0);
        assert_eq!(of(Release::V1_2, Some(30.0), 1), 120.0);
    }
}
