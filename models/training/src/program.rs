//! A graph that changes state, and which of its outputs are new state.

use std::collections::{BTreeMap, BTreeSet};

use ops::{Graph, TensorType};

use crate::StateKind;

/// One output that replaces an input before the next run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Carry {
    /// What it is of the parameter.
    pub kind: StateKind,
    /// The parameter's checkpoint name.
    pub param: String,
    /// Position among the outputs.
    pub output: usize,
}

impl Carry {
    /// Name of the input.
    pub fn input(&self) -> String {
        self.kind.input(&self.param)
    }
}

/// A graph of training. Inputs that hold state are named by [`StateKind::input`].
#[derive(Clone, PartialEq, Debug)]
pub struct Program {
    /// The graph.
    pub graph: Graph,
    /// The trained parameters, in the order of the model; their state is f32 in these shapes.
    pub trained: Vec<(String, TensorType)>,
    /// Every output that is new state.
    pub carries: Vec<Carry>,
    /// Position of the loss, f32 `[]`: the mean over the batch.
    pub loss: Option<usize>,
    /// Position of each row's loss, f32 `[rows]`.
    pub row_losses: Option<usize>,
    /// Position of the gradients' global norm before clipping, f32 `[1]`.
    pub grad_norm: Option<usize>,
    /// Position of the first gradient, one for each trained parameter, if they are outputs.
    pub gradients: Option<usize>,
}

impl Program {
    /// What a plan of it carries: its inputs that hold state, and what replaces them.
    pub fn carried(&self) -> Vec<compiler::Carry> {
        let outputs: BTreeMap<String, usize> =
            self.carries.iter().map(|carry| (carry.input(), carry.output)).collect();
        let inputs: BTreeSet<&str> = self.graph.inputs().map(|(_, name)| name).collect();
        let names = self
            .trained
            .iter()
            .flat_map(|(param, _)| StateKind::ALL.into_iter().map(|kind| kind.input(param)));
        let held = names.filter(|name| inputs.contains(name.as_str()));
        let carry = |name: String| compiler::Carry {
            output: outputs.get(&name).copied(),
            input: name.into(),
        };
        held.map(carry).collect()
    }
}
