//! How ops run fast: CPU kernels in Rust SIMD, and what CUDA devices are to launch.
//!
//! Start reading at [`isa`] and [`simd`] (one source for every instruction set), [`pool`] (the
//! threads), [`program`] (fused elementwise code), then [`cpu`]. [`cuda`] chooses launches for a
//! GPU, as plain data; the crate `cuda-kernels` below this folder makes code of them.

mod attention_site;
pub mod body;
mod caches;
mod conv_site;
pub mod cpu;
pub mod cuda;
mod error;
mod head_rows;
pub mod isa;
pub mod kernel;
pub mod layout;
mod matmul_site;
mod nest;
pub mod peak;
pub mod pool;
pub mod program;
mod program_run;
pub mod simd;
pub mod vec_math;

pub use caches::caches;
pub use error::Error;
pub use isa::Isa;
pub use kernel::{Columns, Kernel, KernelDef, Launch, Packing, Site, Target};
pub use layout::Layout;
pub use pool::Pool;
