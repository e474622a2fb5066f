//! The noise of each video: Philox by element index, or a file for the first draw.

use std::path::Path;

use anyhow::{Context, anyhow};
use checkpoint::Checkpoint;

use crate::failure::{Failure, Outcome};

/// Where draws come from.
#[derive(Debug)]
pub(crate) struct Noise {
    seed: u64,
    /// Values of one video.
    n: usize,
    /// Initial noise of the videos in a file, one after the other.
    initial: Option<Vec<f32>>,
}

impl Noise {
    /// Draws for videos whose latent is `shape`, `[channels, T, h, w]`. `initial` is a safetensors
    /// file with tensor `z` or `noise`, `[channels, T, h, w]` for every video, or
    /// `[videos, channels, T, h, w]` with a row for each video number.
    pub(crate) fn new(seed: u64, shape: [usize; 4], initial: Option<&Path>) -> Outcome<Noise> {
        let n = shape.iter().product();
        let Some(path) = initial else { return Ok(Noise { seed, n, initial: None }) };
        let what = || format!("--initial-noise {}", path.display());
        let checkpoint = Checkpoint::open(path).with_context(what)?;
        let info = ["z", "noise"].into_iter().find_map(|name| checkpoint.info(name));
        let info = info.ok_or_else(|| {
            let names: Vec<&str> = checkpoint.tensors().map(|info| info.name).take(8).collect();
            anyhow!("{}: no tensor `z` or `noise`; it has {}", what(), names.join(", "))
        })?;
        let fits = info.shape == shape || (info.shape.len() == 5 && info.shape[1..] == shape);
        if !fits || info.n_elements() == 0 {
            let [c, t, h, w] = shape;
            return Err(Failure::Run(anyhow!(
                "{}: tensor `{}` is {:?}, expected the latent's shape [{c}, {t}, {h}, {w}] or \
                 [videos, {c}, {t}, {h}, {w}]",
                what(),
                info.name,
                info.shape
            )));
        }
        let values = checkpoint.to_f32(info.name).with_context(what)?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Failure::Run(anyhow!("{}: value {at} is {}", what(), values[at])));
        }
        Ok(Noise { seed, n, initial: Some(values) })
    }

    /// Refuses a video that the file has no noise for.
    pub(crate) fn check(&self, sample_index: u64) -> Outcome<()> {
        let Some(values) = &self.initial else { return Ok(()) };
        let rows = (values.len() / self.n) as u64;
        if rows == 1 || sample_index < rows {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "--initial-noise has {rows} videos, video number {sample_index} is asked for"
        )))
    }

    /// Fills draw number `draw` of loop `index` of video `sample_index`.
    pub(crate) fn fill(&self, index: u64, draw: u64, sample_index: u64, out: &mut [f32]) {
        let [seed, draw, offset] = self.key(index, draw, sample_index);
        match &self.initial {
            Some(values) if draw == 0 => {
                let rows = values.len() / self.n;
                let row = if rows == 1 { 0 } else { sample_index as usize };
                out.copy_from_slice(&values[row * self.n..][..self.n]);
            }
            _ => diffusion::fill_normal(seed, draw, offset, out),
        }
    }

    /// What says which numbers a draw is, where no file gives it: the seed, the number of the draw among those
    /// of all loops, and that of the video's first element.
    pub(crate) fn key(&self, index: u64, draw: u64, sample_index: u64) -> [u64; 3] {
        // No loop has as many draws.
        [self.seed, (index << 32) + draw, sample_index.wrapping_mul(self.n as u64)]
    }
}
