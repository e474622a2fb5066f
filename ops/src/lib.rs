//! The tensor language: what a graph is, every op in it, its text, and its reference semantics.
//!
//! A [`Graph`] is a list of nodes in SSA form; node order is program order, so an operand always
//! has a smaller id than its user. A node is an *input* (given at every run), a *parameter* (a
//! weight, given once), a *constant* (known now) or the result of an *op*. Every value is a dense
//! tensor of a concrete [`TensorType`]: one graph is built per bucket shape, there are no symbolic
//! dims. Ops are pure; evaluating every node in order, or any subset that the outputs need, gives
//! the same result.
//!
//! An op is one struct in one file below [`defs`] and one line in the list in `op.rs`; an
//! elementwise op is one row of a table. What an op owes is [`OpDef`]. *Composite* ops (norms,
//! attention, softmax) are defined by `decompose`, which serves as semantics and as gradient;
//! kernels recognize them whole.
//!
//! Rounding: reference evaluation computes in f64 and rounds each node's result to its element
//! type ([`Rounding::Stored`]); the body of a `fused` group and the inside of a composite are not
//! rounded in between. [`Rounding::Exact`] never rounds and serves finite differences.
//!
//! This crate has no I/O, no threads, no devices, and no knowledge of any model.

mod builder;
pub mod defs;
mod error;
mod eval;
mod grad;
mod graph;
mod op;
mod parse;
pub mod philox;
mod tensor;
mod text;
mod types;
mod verify;

pub use builder::Builder;
pub use error::Error;
pub use eval::{Rounding, eval, eval_all};
pub use grad::append_gradients;
pub use graph::{Graph, Node, Role, ValueId};
pub use op::{Attr, AttrReader, Attrs, Class, Example, Op, OpDef, Tolerance};
pub use parse::{Constants, parse, parse_with_constants};
pub use tensor::{Data, Tensor};
pub use types::{DType, MAX_COUNT, MAX_RANK, TensorType, row_major_strides};
pub use verify::verify;
