//! Ahead of time: plans for GPUs become an engine file, each function compiled once.
//!
//! [`Builder::add`] takes the plans of a model, bucket by bucket and target by target, and collects what
//! they launch: a function is emitted once however many steps launch it, and those that come out as the
//! same text are one kernel ([`KernelSet`]). [`Builder::build`] compiles what is new ([`Cache`] keeps the
//! rest) and puts the [`Engine`](engine::Engine) together. The same plans give the same engine.
//!
//! [`table`] says of every kernel what its code needs of a multiprocessor, and [`rules`] what that is held to;
//! the table of the published models is `kernels.tsv`, which the example `kernel_table` writes and checks.

mod builder;
mod cache;
mod error;
mod kernel_set;
pub mod rules;
pub mod table;

pub use builder::Builder;
pub use cache::Cache;
pub use error::Error;
pub use kernel_set::{Distinct, KernelSet, Progress};
