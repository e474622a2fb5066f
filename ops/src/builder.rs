//! The only way to append a node. Runs shape inference on every append, so a graph that exists is
//! a graph that type-checks.
//!
//! Each op's file adds its own short method (`b.reshape(x, &[2, 3])?`); this file has what is not
//! an op.

use std::sync::Arc;

use crate::{DType, Error, Graph, Node, Op, Role, Tensor, TensorType, ValueId};

/// Builds one [`Graph`].
#[derive(Clone, Debug, Default)]
pub struct Builder {
    graph: Graph,
    scope: Vec<String>,
    scope_text: Arc<str>,
}

impl Builder {
    /// An empty graph called `name`; what a name cannot hold in text becomes `_`.
    pub fn new(name: impl Into<String>) -> Builder {
        let keep = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let name = name.into().replace(|c| !keep(c), "_");
        Builder { graph: Graph { name, ..Graph::default() }, ..Builder::default() }
    }

    /// Appends to a graph that exists.
    pub fn extend(graph: Graph) -> Builder {
        Builder { graph, ..Builder::default() }
    }

    /// What has been built so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The type of a value built so far.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        self.graph.ty(value)
    }

    /// The shape of a value built so far.
    pub fn shape(&self, value: ValueId) -> &[usize] {
        self.graph.ty(value).shape()
    }

    /// A value that is given at every run.
    pub fn input(&mut self, name: &str, ty: TensorType) -> ValueId {
        self.push(Role::Input(name.into()), vec![], ty)
    }

    /// A weight, given once per session.
    pub fn param(&mut self, name: &str, ty: TensorType) -> ValueId {
        self.push(Role::Param(name.into()), vec![], ty)
    }

    /// A value that is known now.
    pub fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.shared_constant(Arc::new(tensor))
    }

    /// A value that is known now and that other graphs may hold too.
    pub fn shared_constant(&mut self, tensor: Arc<Tensor>) -> ValueId {
        let ty = tensor.ty().clone();
        self.push(Role::Constant(tensor), vec![], ty)
    }

    /// `value`, as `dtype` stores it, in the shape `[1; rank]` that broadcasts against a value of
    /// that rank.
    pub fn splat(&mut self, dtype: DType, rank: usize, value: f64) -> Result<ValueId, Error> {
        let ty = TensorType::new(dtype, vec![1; rank])?;
        let tensor = if dtype.is_float() {
            Tensor::floats(ty, vec![value])
        } else {
            Tensor::ints(ty, vec![value as i64])
        };
        Ok(self.constant(tensor.rounded()))
    }

    /// [`Builder::splat`] in f32.
    pub fn scalar_f32(&mut self, value: f64, rank: usize) -> Result<ValueId, Error> {
        self.splat(DType::F32, rank, value)
    }

    /// [`Builder::splat`] with the element type and rank of `x`.
    pub fn splat_like(&mut self, x: ValueId, value: f64) -> Result<ValueId, Error> {
        let (dtype, rank) = (self.ty(x).dtype(), self.ty(x).rank());
        self.splat(dtype, rank, value)
    }

    /// Appends the result of `op` on `args`, or says why they do not fit.
    pub fn op(&mut self, op: impl Into<Op>, args: &[ValueId]) -> Result<ValueId, Error> {
        let op = op.into();
        if let Some(arg) = args.iter().find(|arg| arg.index() >= self.graph.nodes.len()) {
            return Err(Error::UnknownValue(arg.0));
        }
        let types: Vec<&TensorType> = args.iter().map(|&arg| self.graph.ty(arg)).collect();
        let ty = op.def().infer(&types)?;
        Ok(self.push(Role::Op(op), args.to_vec(), ty))
    }

    /// Appends a copy of `node`, taken from another graph, with these operands.
    pub fn copy_node(&mut self, node: &Node, args: &[ValueId]) -> Result<ValueId, Error> {
        let outer = std::mem::replace(&mut self.scope_text, node.scope.clone());
        let value = match &node.role {
            Role::Op(op) => self.op(op.clone(), args),
            Role::Input(_) | Role::Param(_) | Role::Constant(_) => {
                Ok(self.push(node.role.clone(), vec![], node.ty.clone()))
            }
        };
        self.scope_text = outer;
        value
    }

    /// Names what `body` appends: `scope("attn", …)` inside `scope("blocks.0", …)` is
    /// `blocks.0.attn`.
    pub fn scope<T>(&mut self, name: &str, body: impl FnOnce(&mut Builder) -> T) -> T {
        self.scope.push(name.to_string());
        let outer = std::mem::replace(&mut self.scope_text, self.scope.join(".").into());
        let result = body(self);
        self.scope.pop();
        self.scope_text = outer;
        result
    }

    /// The graph, returning `outputs`.
    pub fn finish(mut self, outputs: &[ValueId]) -> Graph {
        self.graph.outputs = outputs.to_vec();
        self.graph
    }

    fn push(&mut self, role: Role, args: Vec<ValueId>, ty: TensorType) -> ValueId {
        self.graph.nodes.push(Node { role, args, ty, scope: self.scope_text.clone() });
        ValueId(self.graph.nodes.len() as u32 - 1)
    }
}
