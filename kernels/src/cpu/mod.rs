//! Kernels for the CPU.

mod affine;
pub mod attention;
#[cfg(feature = "training")]
pub mod attention_grad;
#[cfg(feature = "training")]
mod attention_grad_area;
#[cfg(feature = "training")]
mod attention_grad_finish;
#[cfg(feature = "training")]
mod attention_grad_rows;
#[cfg(feature = "training")]
mod attention_grad_task;
mod attention_pack;
mod attention_rows;
mod attention_softmax;
mod attention_task;
mod attention_tile;
pub mod concat;
pub mod conv;
mod conv_direct;
mod conv_direct_task;
mod conv_doubled;
mod conv_factors;
mod conv_input;
#[cfg(feature = "training")]
pub mod conv_input_grad;
mod conv_transform;
mod conv_weight;
#[cfg(feature = "training")]
pub mod conv_weight_grad;
#[cfg(feature = "training")]
mod conv_weight_grad_task;
mod conv_winograd;
mod conv_winograd_item;
mod copy;
mod exact;
pub mod fused_matmul;
pub mod gather;
pub mod group_norm;
mod group_stats;
mod joined_rows;
mod lanes;
pub mod map;
pub mod matmul;
mod matmul_across;
mod matmul_b;
mod matmul_blocks;
mod matmul_pack;
mod matmul_rows;
mod matmul_spec;
mod matmul_task;
mod matmul_tile;
mod multiplier;
pub mod norm;
#[cfg(feature = "training")]
pub mod norm_grad;
pub mod normal;
pub mod pad;
pub mod reduce;
mod reduce_columns;
mod reduce_norm;
mod reduce_rows;
mod reduce_task;
pub mod rope;
#[cfg(feature = "training")]
pub mod scatter_add;
mod shared;
mod sum;
mod transpose;
mod words;

pub use matmul_rows::{Norm, RowView};
