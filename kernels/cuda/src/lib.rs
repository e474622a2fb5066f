//! Code of the functions that a CUDA device launches.
//!
//! [`kernels::cuda`] says what is launched, as plain data; here each [`Function`](kernels::cuda::Function)
//! has its code, in `CubeCL`, one file each. [`emit`] makes CUDA text of it, [`Nvrtc`] machine code of
//! the text. Neither needs a GPU, and nothing of this is needed where an engine runs.
#![allow(
    clippy::needless_pass_by_value,
    clippy::cast_lossless,
    clippy::collapsible_if,
    clippy::if_same_then_else,
    clippy::manual_is_multiple_of,
    clippy::needless_range_loop,
    reason = "in device code, what is known at compile time is passed by value, branches on it differ \
              from others, and arrays, casts and integers have no more methods than CubeCL gives them"
)]

mod angle;
mod attention;
mod attention_copy;
mod attention_fma;
mod attention_operands;
mod attention_products;
mod attention_softmax;
mod attention_wide;
mod attention_write;
mod collective;
mod columns;
mod emit;
mod error;
mod evaluate;
mod gather;
mod gemm;
mod gemm_few;
mod gemm_fill;
mod gemm_group;
mod gemm_scalar;
mod gemm_windows;
mod group_norm;
mod heads;
mod map;
mod math;
mod normal;
mod nvrtc;
mod operands;
mod position;
mod properties;
mod ptx;
mod rows;
mod shared_names;
mod slot;
mod transpose;

pub use emit::{Source, emit};
pub use error::Error;
pub use nvrtc::{COMPILER, Compiled, Nvrtc, Resources};
