//! Executes plans: weights packed once, one arena, one thread pool, no allocation while running.
//!
//! Start at [`Session`]. This crate knows kernels and plans and nothing of any model. All unsafe
//! code is in `arena.rs` and in the call of a kernel in `session.rs`.

mod arena;
mod error;
mod session;
mod weights;

pub use arena::Arena;
pub use error::Error;
pub use session::{Control, Session, StepTime};
pub use weights::{WeightSource, WeightStore};
