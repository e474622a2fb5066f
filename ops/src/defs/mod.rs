//! Every op: one file each, elementwise ones as rows of a table. The list is in `op.rs`.

pub mod attention;
pub mod binary;
pub mod broadcast;
pub mod cast;
pub mod concat;
pub mod conv;
pub mod conv_input_grad;
pub mod conv_weight_grad;
mod elementwise;
pub mod fused;
pub mod gather;
pub mod group_norm;
pub mod layer_norm;
pub mod matmul;
pub mod pad;
pub mod permute;
pub mod reduce_max;
pub mod reduce_sum;
pub mod reshape;
pub mod rms_norm;
pub mod rope;
pub mod scalar;
pub mod scatter_add;
pub mod select;
pub mod slice;
pub mod softmax;
pub mod unary;
