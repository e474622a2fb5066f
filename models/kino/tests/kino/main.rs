//! The program as a user runs it: the built binary, in a folder of its own, with the embedded model.
#![cfg(feature = "embedded-model")]
#![expect(clippy::unwrap_used, reason = "an error in a test is a failure of the test")]

mod checkpoints;
#[cfg(all(feature = "compile", feature = "cuda"))]
mod compile;
mod conditioning;
mod data;
#[cfg(feature = "engine-files")]
mod engines;
mod failures;
#[cfg(all(feature = "compile", feature = "cuda"))]
mod gpu;
mod look;
#[cfg(feature = "train")]
mod lora;
mod measure;
mod plan;
mod profile;
mod program;
mod roofline;
mod sample;
#[cfg(feature = "train")]
mod train;
#[cfg(feature = "train")]
mod train_lora;
#[cfg(feature = "train")]
mod train_report;
