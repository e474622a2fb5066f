//! How ops run fast: CPU kernels in Rust SIMD.
//!
//! Start reading at [`isa`] and [`simd`] (one source for every instruction set), [`pool`] (the
//! threads), [`program`] (fused elementwise code), then [`cpu`].

pub mod cpu;
mod error;
pub mod isa;
pub mod kernel;
pub mod layout;
pub mod peak;
pub mod pool;
pub mod program;
mod program_run;
pub mod simd;
pub mod vec_math;

pub use error::Error;
pub use isa::Isa;
pub use kernel::{Kernel, KernelDef, Launch, Packing, Site, Target};
pub use layout::Layout;
pub use pool::Pool;
