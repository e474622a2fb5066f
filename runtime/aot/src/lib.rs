//! Ahead of time: plans for GPUs become an engine file, each function compiled once.
//!
//! [`Builder::add`] takes the plans of a model, bucket by bucket, and collects what they launch: a
//! function is emitted once however many steps launch it, and those that come out as the same text are
//! one kernel. [`Builder::build`] compiles what is new ([`Cache`] keeps the rest) and puts the
//! [`Engine`](engine::Engine) together. The same plans give the same engine.

mod builder;
mod cache;
mod error;

pub use builder::{Builder, Progress};
pub use cache::Cache;
pub use error::Error;
