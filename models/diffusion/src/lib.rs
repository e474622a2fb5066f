//! Diffusion samplers, their noise, and the sizes of videos.
//!
//! A sampler has two halves. Its *step* is graph nodes that a model builder appends after the model
//! ([`Iddpm::append_step`], [`DpmSolver::append_step`]), so that it is fused and planned with it.
//! Its *driver* runs on the host and gives each step's inputs: a timestep and a coefficient vector
//! ([`Step`]). The graph is the same at every step. Noise is [`fill_normal`], which depends on
//! element indices only.
//!
//! This crate appends nodes and computes tables; it runs nothing and reads no file.

mod aspect;
mod coefficients;
mod dpm_solver;
mod error;
mod guidance;
mod iddpm;
mod mask_strategy;
mod philox;
pub mod schedule;

pub use aspect::{
    ASPECT_NAMES, RESOLUTION_NAMES, Release, Resolution, closest_aspect, image_size, num_frames,
    resolution,
};
pub use dpm_solver::{DpmSolver, DpmStep};
pub use error::Error;
pub use guidance::{Guidance, append_model_input};
pub use iddpm::{FrameRoles, Iddpm, IddpmSettings, MeanKind, Update, VarianceKind};
pub use mask_strategy::{GivenFrame, MaskStrategy};
pub use philox::fill_normal;

/// The inputs of one sampler step.
#[derive(Clone, PartialEq, Debug)]
pub struct Step {
    /// What the model sees as time, on the scale 0 to 999 that it was trained with.
    pub timestep: f32,
    /// The sampler's coefficient vector.
    pub coefficients: Vec<f32>,
}
