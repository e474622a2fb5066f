//! How passes change graphs: a [`Rewriter`] rebuilds the graph node by node, in program order.
//!
//! A pass says what stands for each old value: a copy with replaced operands, an op of its own, or
//! a value that exists already. Every op goes through the rewriter's rule before it is appended, so
//! operands are in final form when their users are looked at, and what a rule builds is rewritten
//! too: one sweep reaches the fixed point. Values that lose their users stay behind for
//! `eliminate-dead-values`. Comments with the model's scope are kept: what is built for an old
//! value carries that value's scope.

use std::sync::Arc;

use ops::{Builder, DType, Graph, Node, Op, Role, Tensor, TensorType, ValueId};

/// Looks at an op about to be appended; returns the value that stands for it, or `None` to append
/// it. A rule that builds ops must make progress: each is given to the rule again.
pub(crate) type Rule = fn(&mut Rewriter<'_>, &Op, &[ValueId]) -> Option<ValueId>;

/// A graph on its way to another form.
#[derive(Debug)]
pub(crate) struct Rewriter<'a> {
    old: &'a Graph,
    new: Builder,
    /// For each old value that has been visited, the new one.
    replacement: Vec<ValueId>,
    rule: Rule,
    scope: Arc<str>,
}

/// Rebuilds `graph` with `rule` applied to every op.
pub(crate) fn rewrite(graph: &Graph, rule: Rule) -> Graph {
    let mut rewriter = Rewriter::new(graph, rule);
    for value in graph.values() {
        rewriter.keep(value);
    }
    rewriter.finish()
}

impl<'a> Rewriter<'a> {
    /// Starts at the first node of `old`.
    pub(crate) fn new(old: &'a Graph, rule: Rule) -> Rewriter<'a> {
        Rewriter {
            old,
            new: Builder::new(old.name.clone()),
            replacement: Vec::with_capacity(old.nodes.len()),
            rule,
            scope: "".into(),
        }
    }

    /// A rewriter that appends ops as they are given.
    pub(crate) fn without_rule(old: &'a Graph) -> Rewriter<'a> {
        Rewriter::new(old, |_, _, _| None)
    }

    /// The next old value stands for itself: the same role on the replaced operands.
    pub(crate) fn keep(&mut self, old: ValueId) -> ValueId {
        let node = self.old.node(old);
        let new = match &node.role {
            Role::Op(op) => {
                let args: Vec<ValueId> = node.args.iter().map(|&arg| self.new_of(arg)).collect();
                self.scope = Arc::clone(&node.scope);
                self.append(op.clone(), &args)
            }
            Role::Input(_) | Role::Param(_) | Role::Constant(_) => {
                fits(self.new.copy_node(node, &[]))
            }
        };
        self.replace(old, new);
        new
    }

    /// The next old value is replaced by `new`, which must have its type.
    pub(crate) fn replace(&mut self, old: ValueId, new: ValueId) {
        assert_eq!(
            old.index(),
            self.replacement.len(),
            "a rewriter visits every value once, in order"
        );
        debug_assert_eq!(
            self.old.ty(old),
            self.new.ty(new),
            "a replacement keeps the type of {old}"
        );
        self.replacement.push(new);
    }

    /// Leaves the next old value out: nothing that is kept may use it.
    pub(crate) fn drop(&mut self, old: ValueId) {
        assert_eq!(
            old.index(),
            self.replacement.len(),
            "a rewriter visits every value once, in order"
        );
        self.replacement.push(DROPPED);
    }

    /// What stands for an old value that has been visited.
    pub(crate) fn new_of(&self, old: ValueId) -> ValueId {
        let new = self.replacement[old.index()];
        assert_ne!(new, DROPPED, "a pass dropped {old}, which is used");
        new
    }

    /// The new value of `op` on new operands, after the rule. Takes the scope of the old value that
    /// is being visited.
    pub(crate) fn append(&mut self, op: impl Into<Op>, args: &[ValueId]) -> ValueId {
        let op = op.into();
        let rule = self.rule;
        match rule(self, &op, args) {
            Some(value) => value,
            None => self.append_as_is(op, args),
        }
    }

    /// [`Rewriter::append`] under the scope of old value `old`.
    pub(crate) fn append_for(
        &mut self,
        old: ValueId,
        op: impl Into<Op>,
        args: &[ValueId],
    ) -> ValueId {
        self.scope = Arc::clone(&self.old.node(old).scope);
        self.append(op, args)
    }

    fn append_as_is(&mut self, op: Op, args: &[ValueId]) -> ValueId {
        // Only the role and the scope of the node are read.
        let ty = TensorType::new(DType::Bool, []).expect("a scalar is within the limits");
        let node = Node { role: Role::Op(op), args: vec![], ty, scope: Arc::clone(&self.scope) };
        fits(self.new.copy_node(&node, args))
    }

    /// A new constant.
    pub(crate) fn constant(&mut self, tensor: Tensor) -> ValueId {
        let ty = tensor.ty().clone();
        let role = Role::Constant(Arc::new(tensor));
        fits(
            self.new
                .copy_node(&Node { role, args: vec![], ty, scope: Arc::clone(&self.scope) }, &[]),
        )
    }

    /// The new graph so far.
    pub(crate) fn graph(&self) -> &Graph {
        self.new.graph()
    }

    /// The op of a new value.
    pub(crate) fn op(&self, value: ValueId) -> Option<&Op> {
        self.graph().op(value)
    }

    /// Operand `i` of a new value.
    pub(crate) fn arg(&self, value: ValueId, i: usize) -> ValueId {
        self.graph().node(value).args[i]
    }

    /// The type of a new value.
    pub(crate) fn ty(&self, value: ValueId) -> &TensorType {
        self.new.ty(value)
    }

    /// The dims of a new value.
    pub(crate) fn shape(&self, value: ValueId) -> &[usize] {
        self.new.shape(value)
    }

    /// The elements of a new value that is a constant.
    pub(crate) fn constant_of(&self, value: ValueId) -> Option<&Tensor> {
        match &self.graph().node(value).role {
            Role::Constant(tensor) => Some(tensor),
            Role::Input(_) | Role::Param(_) | Role::Op(_) => None,
        }
    }

    /// The new graph with the outputs of the old.
    pub(crate) fn finish(self) -> Graph {
        let outputs: Vec<ValueId> = self.old.outputs.iter().map(|&old| self.new_of(old)).collect();
        self.new.finish(&outputs)
    }
}

/// Stands in `Rewriter::replacement` for a value that was left out.
const DROPPED: ValueId = ValueId(u32::MAX);

/// The value of an append that type-checks unless the pass is wrong.
fn fits(appended: Result<ValueId, ops::Error>) -> ValueId {
    appended.unwrap_or_else(|error| panic!("compiler bug: a pass built an ill-typed op: {error}"))
}
