//! Graph builders of the models: `STDiT-1`, `STDiT-2`, the T5 encoder, `AutoencoderKL`.
//!
//! Each builder is a pure function of a configuration and a bucket. It exists twice: `forward`
//! (`encode`, `decode`) appends the model to a [`ops::Builder`] that may hold more, and `graph`
//! makes a graph of it alone, with inputs under upstream's names. Parameters carry the names of
//! upstream's checkpoints; `params` lists them, read off a graph. Layers are in [`nn`] only.
//!
//! Values are in modules as upstream's are, and [`module_output`] finds what a module returned.

mod bucket;
pub mod config;
mod error;
mod json;
pub mod nearest;
mod net;
pub mod nn;
pub mod published;
mod shapes;
pub mod sincos;
pub mod stdit1;
pub mod stdit2;
pub mod t5;
pub mod vae;

pub use bucket::{Bucket, Inputs, Sizes};
pub use error::Error;
pub use net::{Net, module_output, param_shapes};
