//! Every pass: one file each, called as the pass is. The order is in `pass.rs`.
//!
//! `along`, `group` and `movement` hold what passes rest on: which part of an operand a part of a
//! result needs, how groups grow and become `fused` ops, and how movement ops follow each other.

mod along;
pub(crate) mod canonicalize;
pub(crate) mod choose_checkpoints;
pub(crate) mod chunk_tokens;
pub(crate) mod eliminate_common_subexpressions;
pub(crate) mod eliminate_dead_values;
pub(crate) mod fold_constants;
pub(crate) mod fuse_attention;
pub(crate) mod fuse_conv;
pub(crate) mod fuse_elementwise;
pub(crate) mod fuse_matmul;
pub(crate) mod fuse_norm;
pub(crate) mod fuse_norm_gradient;
pub(crate) mod fuse_reduce;
mod group;
mod movement;
pub(crate) mod order_products;
pub(crate) mod simplify_algebra;
