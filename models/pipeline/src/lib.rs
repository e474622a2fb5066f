//! Prompt to frames: the stages of sampling as compiled plans, and what carries data between them.
//!
//! A [`Model`] is a loaded checkpoint: configurations, weights, tokenizer. [`Plans::compile`] makes the
//! plans of a request (text encoder, frame encoder where frames are given, denoising step, frame
//! decoder) before any weight is read, so that memory and FLOPs are known first. [`Sampler`] runs
//! them: [`Sampler::encode_text`], [`Sampler::frame_encoder`], [`Sampler::denoise`], [`Sampler::decode`]. This crate prints nothing and writes no file.

mod encoders;
mod error;
mod model;
mod plans;
mod sampler;
mod schedule;
mod source;

pub use encoders::{FrameEncoder, TextEncoder};
pub use error::Error;
pub use model::{Model, Paths, Transformer};
pub use plans::{
    Plans, Request, Stage, compile_text, decode_graph, encode_graph, posterior_graph, text_graph,
};
pub use sampler::{Conditioning, Features, OnTimes, Sampler, Watch};
pub use schedule::{Noise, Scheduler, SchedulerKind};
pub use source::{FittedWeights, Part};
