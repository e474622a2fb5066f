//! Graph storage: one arena of nodes in program order, `u32` ids, no pointers.
//!
//! Invariant: an operand always has a smaller id than its user, and every node's type is what its
//! op infers from its operands. [`crate::Builder`] is the only way to append a node and keeps both;
//! [`crate::verify`] checks them again after a pass.

use std::sync::Arc;

use crate::{Op, Tensor, TensorType};

/// Names one value of a graph. Prints as `%3`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ValueId(pub u32);

impl ValueId {
    /// The position of the value's node in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a value comes from.
#[derive(Clone, PartialEq, Debug)]
pub enum Role {
    /// Given at every run, by name.
    Input(Arc<str>),
    /// A weight: given once per session, by its checkpoint name.
    Param(Arc<str>),
    /// Known when the graph is built (position tables, small scalars).
    Constant(Arc<Tensor>),
    /// The result of an op.
    Op(Op),
}

/// One value: what makes it, from what, and its type.
#[derive(Clone, Debug)]
pub struct Node {
    /// What makes the value.
    pub role: Role,
    /// Operands; empty unless the role is an op.
    pub args: Vec<ValueId>,
    /// Element type and shape.
    pub ty: TensorType,
    /// Which part of the model this came from, as `blocks.3.attn`. Prints as a trailing comment and
    /// is not part of equality.
    pub scope: Arc<str>,
}

impl PartialEq for Node {
    fn eq(&self, other: &Node) -> bool {
        self.role == other.role && self.args == other.args && self.ty == other.ty
    }
}

impl Node {
    /// The op that makes the value, if an op does.
    pub fn op(&self) -> Option<&Op> {
        match &self.role {
            Role::Op(op) => Some(op),
            Role::Input(_) | Role::Param(_) | Role::Constant(_) => None,
        }
    }
}

/// A tensor program: nodes in an order that can be run, and the values it returns.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Graph {
    /// Prints after the `@`.
    pub name: String,
    /// Every value, operands before users.
    pub nodes: Vec<Node>,
    /// What the graph returns.
    pub outputs: Vec<ValueId>,
}

impl Graph {
    /// The node that makes `value`.
    pub fn node(&self, value: ValueId) -> &Node {
        &self.nodes[value.index()]
    }

    /// The type of `value`.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        &self.nodes[value.index()].ty
    }

    /// The op that makes `value`, if an op does.
    pub fn op(&self, value: ValueId) -> Option<&Op> {
        self.node(value).op()
    }

    /// All values in program order.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = ValueId> + use<> {
        (0..self.nodes.len() as u32).map(ValueId)
    }

    /// Values with the role of input, with their names, in program order.
    pub fn inputs(&self) -> impl Iterator<Item = (ValueId, &str)> {
        self.values().filter_map(|value| match &self.node(value).role {
            Role::Input(name) => Some((value, &**name)),
            Role::Param(_) | Role::Constant(_) | Role::Op(_) => None,
        })
    }

    /// Values with the role of parameter, with their names, in program order.
    pub fn params(&self) -> impl Iterator<Item = (ValueId, &str)> {
        self.values().filter_map(|value| match &self.node(value).role {
            Role::Param(name) => Some((value, &**name)),
            Role::Input(_) | Role::Constant(_) | Role::Op(_) => None,
        })
    }

    /// For each value, the values that use it as an operand, ascending; a user that takes it twice
    /// is listed twice. Being an output is not a use.
    pub fn users(&self) -> Vec<Vec<ValueId>> {
        let mut users = vec![Vec::new(); self.nodes.len()];
        for value in self.values() {
            for arg in &self.node(value).args {
                users[arg.index()].push(value);
            }
        }
        users
    }

    /// FLOPs of one run: the sum of what every op states.
    pub fn flops(&self) -> u64 {
        let flops = self.values().map(|value| self.node_flops(value));
        flops.fold(0, u64::saturating_add)
    }

    /// FLOPs of the op that makes `value`; 0 for other roles.
    pub fn node_flops(&self, value: ValueId) -> u64 {
        let node = self.node(value);
        node.op().map_or(0, |op| op.def().flops(&self.arg_types(value), &node.ty))
    }

    /// Types of the operands of `value`.
    pub fn arg_types(&self, value: ValueId) -> Vec<&TensorType> {
        self.node(value).args.iter().map(|&arg| self.ty(arg)).collect()
    }
}
