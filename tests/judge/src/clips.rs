//! Clips in memory: drawn from the game's art, brought to one size, and sent through an autoencoder.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use data::flare::{self, Subject};
use kernels::Target;
use models::vae::{self, FrameBucket, LATENT_SCALE};
use ops::{Builder, DType, TensorType};
use pipeline::Model;
use runtime::{Backend, Control, Runner};

pub use data::flare::{N_FRAMES, SIDE};

/// Pixels of a frame.
pub const PLANE: usize = SIDE * SIDE;
/// Elements of a clip.
pub const CLIP: usize = 3 * N_FRAMES * PLANE;

/// A clip and what it shows.
#[derive(Clone, PartialEq, Debug)]
pub struct Clip {
    /// What it shows, or was asked to show.
    pub subject: Subject,
    /// Bytes `[3, N_FRAMES, SIDE, SIDE]`.
    pub pixels: Vec<u8>,
}

/// Real clips of `subjects`, in their order.
///
/// # Errors
/// Art that is missing or damaged.
pub fn draw(art: &Path, subjects: &[Subject], n_threads: usize) -> Result<Vec<Clip>> {
    let drawn = Mutex::new(vec![Vec::new(); subjects.len()]);
    flare::render(art, subjects, n_threads, &AtomicBool::new(false), |subject, rgb| {
        let at = subjects.iter().position(|known| *known == subject);
        let mut drawn = drawn.lock().unwrap_or_else(PoisonError::into_inner);
        drawn[at.expect("only what was asked for is drawn")] = planar(rgb);
        Ok(())
    })?;
    let drawn = drawn.into_inner().unwrap_or_else(PoisonError::into_inner);
    let clip = |(&subject, pixels)| Clip { subject, pixels };
    Ok(subjects.iter().zip(drawn).map(clip).collect())
}

/// RGB `[N_FRAMES, SIDE, SIDE, 3]` as `[3, N_FRAMES, SIDE, SIDE]`.
pub fn planar(rgb: &[u8]) -> Vec<u8> {
    (0..3).flat_map(|channel| rgb.iter().skip(channel).step_by(3).copied()).collect()
}

/// Frame `t` of `[3, N_FRAMES, SIDE, SIDE]` as RGB `[SIDE, SIDE, 3]`.
pub fn frame_rgb(pixels: &[u8], t: usize) -> Vec<u8> {
    let plane = |channel: usize| &pixels[(channel * N_FRAMES + t) * PLANE..][..PLANE];
    let [red, green, blue] = [0, 1, 2].map(plane);
    (0..PLANE).flat_map(|at| [red[at], green[at], blue[at]]).collect()
}

/// A byte in -1..1, as models take it.
pub fn to_float(byte: u8) -> f32 {
    f32::from(byte) / 127.5 - 1.0
}

/// A number of a model as the nearest byte; what is out of range is clamped.
pub fn to_byte(value: f32) -> u8 {
    ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8
}

/// A model's autoencoder on whole clips.
#[derive(Debug)]
pub struct RoundTrip<'m> {
    runner: Box<dyn Runner + 'm>,
    /// Elements of the latents of a clip.
    n_latents: usize,
}

impl<'m> RoundTrip<'m> {
    /// Compiles encoder and decoder as one.
    ///
    /// # Errors
    /// What the compiler or the runtime refuse.
    pub fn new(model: &'m Model, backend: &dyn Backend, target: &Target) -> Result<RoundTrip<'m>> {
        let down = model.vae.downscale();
        let frames = FrameBucket { dtype: DType::F32, frames: N_FRAMES, height: SIDE, width: SIDE };
        let latents = FrameBucket { height: SIDE / down, width: SIDE / down, ..frames };
        let mut b = Builder::new("round_trip");
        let x = b.input("x", TensorType::new(DType::F32, [N_FRAMES, 3, SIDE, SIDE])?);
        let posterior = vae::encode(&mut b, &model.vae, &frames, x)?;
        let ty = b.ty(posterior.mean).clone();
        let n_latents = ty.count();
        let noise = b.input("noise", ty);
        let z = b.add(posterior.mean, noise)?;
        let y = vae::decode(&mut b, &model.vae, &latents, z)?;
        let plan = compiler::compile(b.finish(&[y]), target)?;
        let runner = backend.bind(Arc::new(plan), model.autoencoder.weights(), None)?;
        Ok(RoundTrip { runner, n_latents })
    }

    /// What is left of a clip: encoded, with normal noise of deviation `strength` (1 is that of latents) added, and
    /// decoded. `seed` and `number` choose the noise.
    ///
    /// # Errors
    /// What the runtime refuses.
    pub fn run(&mut self, clip: &Clip, strength: f64, seed: u64, number: u64) -> Result<Clip> {
        let mut x = vec![0f32; CLIP];
        for (from, plane) in clip.pixels.chunks_exact(PLANE).enumerate() {
            let (channel, t) = (from / N_FRAMES, from % N_FRAMES);
            let to = &mut x[(t * 3 + channel) * PLANE..][..PLANE];
            to.iter_mut().zip(plane).for_each(|(to, &byte)| *to = to_float(byte));
        }
        let mut noise = vec![0f32; self.n_latents];
        if strength > 0.0 {
            diffusion::fill_normal(seed, number, 0, &mut noise);
            let scale = (strength / LATENT_SCALE) as f32;
            noise.iter_mut().for_each(|x| *x *= scale);
        }
        let inputs: [(&str, &[u8]); 2] =
            [("x", bytemuck::cast_slice(&x)), ("noise", bytemuck::cast_slice(&noise))];
        self.runner.run_with(&inputs, Control::default()).context("the autoencoder")?;
        let y = self.runner.output_f32(0)?;
        let mut pixels = vec![0u8; CLIP];
        for (from, plane) in y.chunks_exact(PLANE).enumerate() {
            let (t, channel) = (from / 3, from % 3);
            let to = &mut pixels[(channel * N_FRAMES + t) * PLANE..][..PLANE];
            to.iter_mut().zip(plane).for_each(|(to, &value)| *to = to_byte(value));
        }
        Ok(Clip { subject: clip.subject, pixels })
    }
}

/// Peak signal-to-noise ratio of two pictures of bytes in dB; infinite for equal ones.
pub fn psnr(a: &[u8], b: &[u8]) -> f64 {
    let square = |(&a, &b): (&u8, &u8)| (f64::from(a) - f64::from(b)).powi(2);
    let error = a.iter().zip(b).map(square).sum::<f64>() / a.len() as f64;
    10.0 * (255.0 * 255.0 / error).log10()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_and_frames_are_inverse() {
        let rgb: Vec<u8> = (0..CLIP).map(|at| (at * 31 % 251) as u8).collect();
        let pixels = planar(&rgb);
        let again: Vec<u8> = (0..N_FRAMES).flat_map(|t| frame_rgb(&pixels, t)).collect();
        assert!(again == rgb);
        assert_eq!(pixels[PLANE * N_FRAMES], rgb[1], "the first green pixel");
        for byte in 0..=255 {
            assert_eq!(to_byte(to_float(byte)), byte);
        }
        assert_eq!((to_byte(-3.0), to_byte(2.0)), (0, 255));
    }

    #[test]
    fn a_tenth_of_the_range_is_20_db() {
        assert!((psnr(&[0; 8], &[26; 8]) - 19.83).abs() < 0.01);
        assert_eq!(psnr(&[5; 8], &[5; 8]), f64::INFINITY);
    }
}
