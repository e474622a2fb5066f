//! Why a graph, or its text, is not valid. Always the caller's mistake, never a bug here.

use thiserror::Error;

/// What is wrong with a graph that somebody tried to build or parse.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Error {
    /// A shape is outside the limits of [`crate::TensorType`].
    #[error("{0}")]
    Shape(String),
    /// An op was given the wrong number of operands.
    #[error("{op}: expected {expected} operands, found {found}")]
    Arity {
        /// The op's printed name.
        op: &'static str,
        /// How many it takes.
        expected: String,
        /// How many it was given.
        found: usize,
    },
    /// An operand's type does not suit the op.
    #[error("{op}: operand {operand} is {found}, expected {expected}")]
    Operand {
        /// The op's printed name.
        op: &'static str,
        /// Position of the operand.
        operand: usize,
        /// Its type.
        found: String,
        /// What the op takes.
        expected: String,
    },
    /// An attribute is missing, misspelt, or outside its range.
    #[error("{op}: {reason}")]
    Attr {
        /// The op's printed name.
        op: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The text names an op that does not exist.
    #[error("unknown op `{0}`")]
    UnknownOp(String),
    /// A value is used that the graph does not have.
    #[error("value %{0} does not exist at this point of the graph")]
    UnknownValue(u32),
    /// The gradient of an op that has none is asked for.
    #[error("{0}: has no gradient")]
    NoGradient(&'static str),
    /// The text is not a graph.
    #[error("line {line}: {reason}")]
    Parse {
        /// Line, from 1.
        line: usize,
        /// What was expected or is wrong.
        reason: String,
    },
}

impl Error {
    /// An [`Error::Operand`] about operand `operand` of `op`.
    pub fn operand(
        op: &'static str,
        operand: usize,
        found: &crate::TensorType,
        expected: impl Into<String>,
    ) -> Error {
        Error::Operand { op, operand, found: found.to_string(), expected: expected.into() }
    }

    /// An [`Error::Attr`] about `op`.
    pub fn attr(op: &'static str, reason: impl Into<String>) -> Error {
        Error::Attr { op, reason: reason.into() }
    }
}
