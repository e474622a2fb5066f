//! Runs engine files: on a GPU through NVIDIA's driver, or on the emulated device.
//!
//! A [`Device`] is memory, kernels and a clock; there are two, [`Driver`] and [`Emulated`]. A [`Session`] binds
//! programs of an engine to one: it allocates one arena, inputs, weights and constants once, and a run is a walk
//! over launches whose addresses are known, or one launch of a graph. Inputs keep their values on the device from
//! run to run, and an output can be carried into an input there.
//!
//! Nothing but the driver is needed, which is loaded when a GPU is opened: no toolkit, no compiler, and a
//! program that was built with this crate starts on a machine without a GPU. Where the machine has cuBLASLt, it can
//! compute the products that an engine marks as plain ([`Products`]): [`Multiplier`] makes calls of them.
//!
//! All unsafe code is in `driver/`. Kernels of an engine are trusted with what the GPU can reach, as an executable
//! is with a process; the engine's own numbers (addresses, sizes, images) are checked when it is read.

mod backend;
mod device;
mod driver;
mod emulated;
mod error;
mod inputs;
pub mod lt;
mod multiplier;
mod permute;
mod products;
mod session;
mod weights;

pub use backend::{EngineBackend, OpenDevice};
pub use device::{Device, GraphId, KernelId, ProductId};
pub use driver::{Context, Driver};
pub use emulated::Emulated;
pub use error::Error;
pub use multiplier::Multiplier;
pub use products::Products;
pub use session::{ProgramId, Session, target_for};
