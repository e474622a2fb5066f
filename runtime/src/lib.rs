//! Executes plans: weights packed once, one arena, one thread pool, no allocation while running.
//!
//! Start at [`Session`], or at [`LimitedSession`] where weights may not fit in memory; a [`Backend`] is
//! where plans run, this CPU or a device. State that goes from run to run is in an [`InputStore`]. This crate
//! knows kernels and plans and nothing of any model. All unsafe code is in `arena.rs`, in the call of
//! a kernel in `session.rs`, and in the ring of `streamed_session.rs`.

mod arena;
mod error;
mod input_store;
mod limited_session;
mod runner;
mod session;
mod stream;
mod streamed_session;
mod weights;

pub use arena::Arena;
pub use error::Error;
pub use input_store::InputStore;
pub use limited_session::LimitedSession;
pub use runner::{Backend, Cpu, Runner};
pub use session::{Control, Session, StepTime};
pub use streamed_session::{StreamTimes, StreamedSession, least_streamed_bytes};
pub use weights::{WeightSource, WeightStore};
