//! What this machine does in a second.
//!
//! [`calibrate`] measures the machine's limits and the speed of each kernel on a few shapes and gives
//! them as the [`compiler::cost::CostModel`] that predicts plans. [`Rehearsal`] runs any plan on
//! made-up weights and inputs and times its steps, so that a published model can be measured without
//! its files. This crate prints nothing and writes no file.

mod calibrate;
mod cases;
mod error;
#[cfg(feature = "training")]
mod gradient_cases;
mod made_up;
mod rehearsal;

/// A number of the kernels' sources, and of how they are measured: what a calibration is of.
pub const KERNELS_KEY: &str = env!("KERNELS_KEY");

pub use calibrate::calibrate;
pub use error::Error;
pub use made_up::MadeUp;
pub use rehearsal::{Rehearsal, StepSeconds};
