//! Every pass: one file each, called as the pass is. The order is in `pass.rs`.
//!
//! `elementwise` and `group` are what several passes share: facts about ops, and how groups grow
//! and become `fused` ops.

mod along;
pub(crate) mod canonicalize;
pub(crate) mod chunk_tokens;
pub(crate) mod eliminate_common_subexpressions;
pub(crate) mod eliminate_dead_values;
pub(crate) mod fold_constants;
pub(crate) mod fuse_attention;
pub(crate) mod fuse_conv;
pub(crate) mod fuse_elementwise;
pub(crate) mod fuse_matmul;
pub(crate) mod fuse_norm;
pub(crate) mod fuse_reduce;
mod group;
mod movement;
pub(crate) mod simplify_algebra;
