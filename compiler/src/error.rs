//! What can go wrong between a valid graph and its plan.

use thiserror::Error;

/// Why a graph could not be compiled, or a text is not a plan.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Error {
    /// No kernel of this target takes the op. Ours: every op that a model uses must have one.
    #[error("no kernel for {op} on ({operands}) -> {result} in `{scope}`")]
    NoKernel {
        /// The op's name or the fused group's text.
        op: String,
        /// Layouts of the operands.
        operands: String,
        /// Type of the result.
        result: String,
        /// Part of the model.
        scope: String,
    },
    /// No plan is as small as it must be. The caller's.
    #[error(
        "@{name} needs {smallest} bytes ({arena} for activations, {weights} for weights), {memory} \
         are allowed: allow {smallest}, or use a smaller size, fewer frames or a smaller batch"
    )]
    Memory {
        /// The graph's name.
        name: String,
        /// Bytes allowed.
        memory: usize,
        /// Bytes of the smallest plan.
        smallest: usize,
        /// Its arena.
        arena: usize,
        /// Its weights.
        weights: usize,
    },
    /// What should be carried from run to run cannot be. The caller's.
    #[error("input `{input}` cannot be carried: {reason}")]
    Carry {
        /// The input's name.
        input: String,
        /// What was expected and is not so.
        reason: String,
    },
    /// The graph cannot be built or parsed. The caller's.
    #[error(transparent)]
    Graph(#[from] ops::Error),
    /// A pass is asked for by a name that does not exist. The caller's.
    #[error("there is no pass `{name}`; passes are: {known}")]
    UnknownPass {
        /// The name.
        name: String,
        /// All names.
        known: String,
    },
    /// A text is not a plan, or not the plan of its graph. The caller's.
    #[error("plan, line {line}: {reason}")]
    Parse {
        /// Line, from 1.
        line: usize,
        /// What was expected or is wrong.
        reason: String,
    },
    /// The numbers of a machine's cost model are not usable, as those of a damaged file. The caller's.
    #[error("cost model: {0}")]
    CostModel(String),
}
