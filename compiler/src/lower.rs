//! Graph to steps: which values are stored, which are views, which kernel makes each.
//!
//! A reshape, permute, slice or broadcast has no step: it is a [`Layout`] into its operand's
//! storage. Nor has a concat most of whose operands are results of steps: those are written to their part
//! of its storage, others are copied there ([`destinations`]). Where strides cannot say what is meant, or no kernel takes
//! the strides, a copy node is added to the graph and becomes a step like any other. A fused group
//! that no kernel takes whole is taken apart again.

use std::collections::BTreeMap;
use std::sync::Arc;

use kernels::{Kernel, Layout, Site, Target};
use ops::defs::fused::Fused;
use ops::{Builder, Graph, Node, Op, Role, ValueId};

use crate::Error;
use crate::destinations::{Destination, destinations};
use crate::plan::Place;

/// A graph whose every value is stored or a view, with kernels chosen; memory is not yet planned.
#[derive(Debug)]
pub(crate) struct Lowered {
    pub(crate) graph: Graph,
    /// For each value of the graph: the storage that holds it, and where in it.
    pub(crate) views: Vec<View>,
    /// For each storage the value that it is all of: an input, parameter or constant, the result of
    /// a step, or a concat that several steps write.
    pub(crate) owners: Vec<ValueId>,
    pub(crate) steps: Vec<LoweredStep>,
}

/// Where a value is: elements `layout` of a storage.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// Position in [`Lowered::owners`].
    pub(crate) storage: usize,
    pub(crate) layout: Layout,
}

/// A step before its buffers are known; it writes where its value's view says.
#[derive(Debug)]
pub(crate) struct LoweredStep {
    pub(crate) value: ValueId,
    pub(crate) kernel: Kernel,
}

impl Lowered {
    /// Whether an operand of `step` is in storage `storage`.
    pub(crate) fn reads(&self, step: &LoweredStep, storage: usize) -> bool {
        let args = &self.graph.node(step.value).args;
        args.iter().any(|arg| self.views[arg.index()].storage == storage)
    }

    /// The place of a value that is not in the arena, for operand `position` of `step`.
    pub(crate) fn fixed_place(&self, step: &LoweredStep, position: usize) -> Option<Place> {
        let value = self.graph.node(step.value).args[position];
        let base = self.owners[self.views[value.index()].storage];
        let node = self.graph.node(base);
        match &node.role {
            Role::Param(name) => Some(Place::Param {
                name: name.clone(),
                ty: node.ty.clone(),
                packing: step.kernel.def().packing(position),
            }),
            Role::Constant(_) => Some(Place::Constant(base)),
            Role::Input(_) | Role::Op(_) => None,
        }
    }
}

/// Chooses storage and kernels.
pub(crate) fn lower(graph: &Graph, target: &Target) -> Result<Lowered, Error> {
    let destinations = destinations(graph);
    let mut lowering = Lowering {
        b: Builder::new(graph.name.clone()),
        views: Vec::with_capacity(graph.nodes.len()),
        owners: Vec::with_capacity(graph.nodes.len()),
        concats: BTreeMap::new(),
        steps: Vec::new(),
        target,
    };
    let mut new: Vec<ValueId> = Vec::with_capacity(graph.nodes.len());
    for (old, node) in graph.values().zip(&graph.nodes) {
        let args: Vec<ValueId> = node.args.iter().map(|arg| new[arg.index()]).collect();
        let destination = destinations.of[old.index()].as_ref();
        new.push(match destinations.assembled.get(&old) {
            Some(copied) => lowering.assembled(old, node, args, copied, destination)?,
            None => lowering.node(node, args, destination)?,
        });
    }
    let mut outputs = Vec::with_capacity(graph.outputs.len());
    for output in &graph.outputs {
        outputs.push(lowering.stored(new[output.index()], &outputs)?);
    }
    let Lowering { b, views, owners, steps, .. } = lowering;
    Ok(Lowered { graph: b.finish(&outputs), views, owners, steps })
}

struct Lowering<'a> {
    b: Builder,
    views: Vec<View>,
    owners: Vec<ValueId>,
    /// The storage of each outermost concat whose operands are being made, by its old value.
    concats: BTreeMap<ValueId, usize>,
    steps: Vec<LoweredStep>,
    target: &'a Target,
}

impl Lowering<'_> {
    /// Appends `node` with operands `args`, after copies where they are needed, its result where
    /// `destination` says.
    fn node(
        &mut self,
        node: &Node,
        mut args: Vec<ValueId>,
        destination: Option<&Destination>,
    ) -> Result<ValueId, Error> {
        let Role::Op(op) = &node.role else {
            let value = self.b.copy_node(node, &[])?;
            self.push_stored(value, None);
            return Ok(value);
        };
        if let Some(&arg) = args.first() {
            let view = &self.views[arg.index()];
            match view_of(op, &view.layout, node) {
                Viewed::As(layout) => {
                    let storage = view.storage;
                    return self.push_view(node, &args, storage, layout);
                }
                Viewed::NeedsCopy => {
                    let copy = self.copy(arg, node, None)?;
                    let View { storage, layout } = &self.views[copy.index()];
                    let Viewed::As(layout) = view_of(op, layout, node) else {
                        unreachable!("strides say any movement of a dense value");
                    };
                    let storage = *storage;
                    return self.push_view(node, &[copy], storage, layout);
                }
                Viewed::No => {}
            }
        }
        let kernel = match self.select(op, node, &args, destination) {
            Some(kernel) => kernel,
            None if destination.is_some() => {
                // No kernel writes there: store it densely, then copy.
                let value = self.node(node, args, None)?;
                return self.copy(value, node, destination);
            }
            None => {
                // No kernel takes these strides: store strided operands densely, and try again.
                for arg in &mut args {
                    if !self.views[arg.index()].layout.is_dense() {
                        *arg = self.copy(*arg, node, None)?;
                    }
                }
                match (self.select(op, node, &args, None), op) {
                    (Some(kernel), _) => kernel,
                    (None, Op::Fused(group)) => return self.split(group.body(), node, &args),
                    (None, _) => return Err(self.no_kernel(op, node, &args)),
                }
            }
        };
        let value = self.b.copy_node(node, &args)?;
        self.push_stored(value, destination);
        self.steps.push(LoweredStep { value, kernel });
        Ok(value)
    }

    /// Appends a concat whose operands have been written to its storage, after copies of those that have not.
    fn assembled(
        &mut self,
        old: ValueId,
        node: &Node,
        mut args: Vec<ValueId>,
        copied: &[Option<Destination>],
        destination: Option<&Destination>,
    ) -> Result<ValueId, Error> {
        for (arg, copied) in args.iter_mut().zip(copied) {
            if copied.is_some() {
                *arg = self.copy(*arg, node, copied.as_ref())?;
            }
        }
        let value = self.b.copy_node(node, &args)?;
        if destination.is_some() {
            self.push_stored(value, destination);
        } else {
            // The storage that the operands were given before their concat was reached.
            let storage = self.concats.remove(&old).expect("its operands came before");
            self.owners[storage] = value;
            self.views.push(View { storage, layout: Layout::dense(&node.ty) });
        }
        Ok(value)
    }

    /// The view of the next value: a part of a concat's storage, or all of a new one.
    fn push_stored(&mut self, value: ValueId, destination: Option<&Destination>) {
        let (storage, layout) = match destination {
            Some(Destination { root, layout }) => {
                let owners = &mut self.owners;
                let storage = *self.concats.entry(*root).or_insert_with(|| {
                    // Whose storage it is will be known when the concat is reached.
                    owners.push(value);
                    owners.len() - 1
                });
                (storage, layout.clone())
            }
            None => {
                self.owners.push(value);
                (self.owners.len() - 1, Layout::dense(self.b.ty(value)))
            }
        };
        self.views.push(View { storage, layout });
    }

    /// Appends the ops of a fused group that no kernel takes whole, one by one.
    fn split(&mut self, body: &Graph, node: &Node, args: &[ValueId]) -> Result<ValueId, Error> {
        let mut new: Vec<ValueId> = Vec::with_capacity(body.nodes.len());
        for part in &body.nodes {
            let value = match &part.role {
                // Inputs are named by the position of their operand.
                Role::Input(name) => args[name.parse::<usize>().unwrap_or_default()],
                Role::Param(_) | Role::Constant(_) | Role::Op(_) => {
                    let part = Node { scope: Arc::clone(&node.scope), ..part.clone() };
                    let part_args = part.args.iter().map(|arg| new[arg.index()]).collect();
                    self.node(&part, part_args, None)?
                }
            };
            new.push(value);
        }
        Ok(new[body.outputs[0].index()])
    }

    fn push_view(
        &mut self,
        node: &Node,
        args: &[ValueId],
        storage: usize,
        layout: Layout,
    ) -> Result<ValueId, Error> {
        let value = self.b.copy_node(node, args)?;
        self.views.push(View { storage, layout });
        Ok(value)
    }

    /// The value in a buffer of its own that no other output has: what the caller reads.
    fn stored(&mut self, value: ValueId, taken: &[ValueId]) -> Result<ValueId, Error> {
        let owns_storage = self.owners[self.views[value.index()].storage] == value;
        let is_made = self.b.graph().op(value).is_some();
        if is_made && owns_storage && !taken.contains(&value) {
            return Ok(value);
        }
        let node = self.b.graph().node(value).clone();
        self.copy(value, &node, None)
    }

    /// Appends a step that stores `value` densely, or where `destination` says. Takes its scope
    /// from `for_node`.
    fn copy(
        &mut self,
        value: ValueId,
        for_node: &Node,
        destination: Option<&Destination>,
    ) -> Result<ValueId, Error> {
        let ty = self.b.ty(value).clone();
        let mut body = Builder::new("copy");
        let input = body.input("0", ty.clone());
        let op = Op::from(Fused::new("copy", body.finish(&[input])));
        let node = Node {
            role: Role::Op(op.clone()),
            args: vec![value],
            ty,
            scope: Arc::clone(&for_node.scope),
        };
        let kernel = self
            .select(&op, &node, &[value], destination)
            .ok_or_else(|| self.no_kernel(&op, &node, &[value]))?;
        let copy = self.b.copy_node(&node, &[value])?;
        self.push_stored(copy, destination);
        self.steps.push(LoweredStep { value: copy, kernel });
        Ok(copy)
    }

    fn select(
        &self,
        op: &Op,
        node: &Node,
        args: &[ValueId],
        destination: Option<&Destination>,
    ) -> Option<Kernel> {
        let single;
        let body = match op {
            Op::Fused(fused) => fused.body(),
            op => {
                single = self.single_op_body(op, args);
                &single
            }
        };
        let operands: Vec<Layout> =
            args.iter().map(|arg| self.views[arg.index()].layout.clone()).collect();
        // A weight is packed from its dense whole; a view of a weight is an ordinary operand.
        let is_param: Vec<bool> = args
            .iter()
            .map(|&arg| {
                let view = &self.views[arg.index()];
                let base = self.b.graph().node(self.owners[view.storage]);
                matches!(base.role, Role::Param(_))
                    && view.layout.offset == 0
                    && view.layout.is_dense()
                    && view.layout.count() == base.ty.count()
            })
            .collect();
        let result =
            destination.map_or_else(|| Layout::dense(&node.ty), |place| place.layout.clone());
        Kernel::select(&Site {
            body,
            operands: &operands,
            is_param: &is_param,
            result: &result,
            target: self.target,
        })
    }

    /// The body of a group of one op.
    fn single_op_body(&self, op: &Op, args: &[ValueId]) -> Graph {
        let mut body = Builder::new(op.def().name());
        let inputs: Vec<ValueId> = args
            .iter()
            .enumerate()
            .map(|(i, &arg)| body.input(&i.to_string(), self.b.ty(arg).clone()))
            .collect();
        let result = body.op(op.clone(), &inputs).expect("the node type-checked in its graph");
        body.finish(&[result])
    }

    fn no_kernel(&self, op: &Op, node: &Node, args: &[ValueId]) -> Error {
        let operands: Vec<String> =
            args.iter().map(|arg| self.views[arg.index()].layout.to_string()).collect();
        Error::NoKernel {
            op: match op {
                Op::Fused(fused) => format!("fused {}: {}", fused.kind(), fused.body()),
                op => op.def().name().to_string(),
            },
            operands: operands.join(", "),
            result: node.ty.to_string(),
            scope: node.scope.to_string(),
        }
    }
}

/// Whether an op only renames elements of its operand.
enum Viewed {
    /// Yes: the result is these elements.
    As(Layout),
    /// It does, but strides cannot say so for an operand laid out like this.
    NeedsCopy,
    /// It computes or gathers.
    No,
}

fn view_of(op: &Op, operand: &Layout, node: &Node) -> Viewed {
    match op {
        Op::Reshape(_) => operand.reshaped(node.ty.shape()).map_or(Viewed::NeedsCopy, Viewed::As),
        Op::Permute(permute) => Viewed::As(operand.permuted(&permute.axes)),
        Op::Slice(slice) => Viewed::As(operand.sliced(&slice.start, node.ty.shape(), &slice.step)),
        Op::Broadcast(_) => Viewed::As(operand.broadcast(node.ty.shape())),
        _ => Viewed::No,
    }
}
