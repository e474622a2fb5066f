//! Branches around which a residual goes run in chunks, so that what is wide in them never exists
//! whole.
//!
//! `y = x + f(x)`, where a part of `y` along some axis needs only that part of `x`: the MLP over
//! tokens, attention of each frame over frames, attention over time over places. All ops from `x`
//! to `y` are repeated for each part, on slices of `x`, and a concat joins the parts of `y`. Lowering
//! writes the parts straight into the joined value, and planning lets that value take over the
//! storage of `x`: what is left of a branch is `x` and one chunk. Values do not change: each
//! element of `y` is computed by the same ops from the same elements.

use std::collections::{BTreeMap, BTreeSet};

use kernels::Target;
use ops::defs::concat::Concat;
use ops::defs::slice::Slice;
use ops::{Class, Graph, Op, Role, TensorType, ValueId};

use crate::pass::Pass;
use crate::passes::along::{Along, Split, part_of, propagate};
use crate::rewrite::Rewriter;

pub(crate) const PASS: Pass = Pass {
    name: "chunk-tokens",
    about: "residual branches in chunks of tokens, so that wide activations never exist whole",
    run: |graph| chunk_tokens(graph, Chunking::default()),
};

/// How finely branches are cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunking {
    /// A chunk of a branch holds about this many bytes between `x` and `y`.
    pub bytes: usize,
    /// Most chunks of a branch.
    pub max_chunks: usize,
}

impl Default for Chunking {
    /// Chunks that are large enough for products to run at full speed, and few enough that steps
    /// cost nothing.
    fn default() -> Chunking {
        Chunking { bytes: 32 << 20, max_chunks: 16 }
    }
}

impl Chunking {
    /// What suits the target: a GPU needs far larger chunks to be busy, and has the memory.
    pub fn of(target: &Target) -> Chunking {
        match target.gpu {
            Some(_) => Chunking { bytes: 1 << 30, max_chunks: 16 },
            None => Chunking::default(),
        }
    }
}

/// Most values from `x` to `y`: what conditions all blocks may stand in the first.
const MAX_REACH: u32 = 1024;

/// The pass for a given fineness.
pub fn chunk_tokens(graph: &Graph, chunking: Chunking) -> Graph {
    let branches = branches(graph, chunking);
    let mut inner: BTreeSet<ValueId> = BTreeSet::new();
    for (y, branch) in &branches {
        inner.extend(branch.members.iter().filter(|&member| member != y));
    }
    let mut r = Rewriter::without_rule(graph);
    for value in graph.values() {
        if let Some(branch) = branches.get(&value) {
            let joined = branch.append(graph, &mut r, value);
            r.replace(value, joined);
        } else if inner.contains(&value) {
            r.drop(value);
        } else {
            r.keep(value);
        }
    }
    r.finish()
}

/// Ops from `x`, which is not among them, to `y`, which is, and how they are cut.
struct Branch {
    members: BTreeSet<ValueId>,
    along: BTreeMap<ValueId, Along>,
    axis: usize,
    n_chunks: usize,
}

/// Branches worth cutting that have no member in common, by their last member.
fn branches(graph: &Graph, chunking: Chunking) -> BTreeMap<ValueId, Branch> {
    let users = graph.users();
    let mut branches: BTreeMap<ValueId, Branch> = BTreeMap::new();
    for y in graph.values() {
        let is_chunk = |user: &ValueId| matches!(graph.op(*user), Some(Op::Concat(_)));
        if !is_stored(graph, y) || users[y.index()].iter().any(is_chunk) {
            continue;
        }
        let args = graph.node(y).args.iter().copied();
        let mut candidates: Vec<(usize, BTreeSet<ValueId>)> = args
            .filter(|&x| is_residual(graph.ty(x), graph.ty(y)))
            .filter(|&x| !matches!(graph.node(x).role, Role::Param(_) | Role::Constant(_)))
            .filter_map(|x| members(graph, &users, x, y))
            .filter(|members| !members.iter().any(|member| branches.contains_key(member)))
            .map(|members| (stored_bytes(graph, &members, y), members))
            .collect();
        candidates.sort_by_key(|(bytes, members)| (usize::MAX - bytes, members.len()));
        let branch = candidates
            .into_iter()
            .find_map(|(bytes, members)| cut(graph, y, members, bytes, chunking));
        if let Some(branch) = branch {
            branches.insert(y, branch);
        }
    }
    branches
}

/// Whether an operand of type `x` may be what a sum of type `y` is added to, as it is or repeated.
fn is_residual(x: &TensorType, y: &TensorType) -> bool {
    let mut dims = x.shape().iter().zip(y.shape());
    x.dtype() == y.dtype() && x.rank() == y.rank() && dims.all(|(x, y)| x == y || *x == 1)
}

/// Whether an op makes the value and needs memory for it.
fn is_stored(graph: &Graph, value: ValueId) -> bool {
    graph.op(value).is_some_and(|op| op.def().class() != Class::Movement)
}

fn stored_bytes(graph: &Graph, members: &BTreeSet<ValueId>, y: ValueId) -> usize {
    let inner = members.iter().filter(|&&member| member != y && is_stored(graph, member));
    inner.map(|&member| graph.ty(member).bytes()).sum()
}

/// The ops on all ways from `x` to `y`, if nothing else uses what they make and none is a concat,
/// which may join chunks already.
fn members(
    graph: &Graph,
    users: &[Vec<ValueId>],
    x: ValueId,
    y: ValueId,
) -> Option<BTreeSet<ValueId>> {
    if y.0 - x.0 > MAX_REACH {
        return None;
    }
    let mut from_x = BTreeSet::from([x]);
    for value in (x.0 + 1..=y.0).map(ValueId) {
        if graph.node(value).args.iter().any(|arg| from_x.contains(arg)) {
            from_x.insert(value);
        }
    }
    let mut members = BTreeSet::from([y]);
    let mut open = vec![y];
    while let Some(value) = open.pop() {
        for &arg in &graph.node(value).args {
            if arg != x && from_x.contains(&arg) && members.insert(arg) {
                open.push(arg);
            }
        }
    }
    let is_inner = |member: &&ValueId| **member != y;
    let is_ours = |member: &ValueId| {
        !matches!(graph.op(*member), Some(Op::Concat(_)))
            && !graph.outputs.contains(member)
            && users[member.index()].iter().all(|user| members.contains(user))
    };
    members.iter().filter(is_inner).all(is_ours).then_some(members)
}

/// The branch cut along the axis that allows most chunks, up to as many as are wanted; the
/// outermost of such axes. `None` where it is small already or cannot be cut.
fn cut(
    graph: &Graph,
    y: ValueId,
    members: BTreeSet<ValueId>,
    bytes: usize,
    chunking: Chunking,
) -> Option<Branch> {
    let wanted = bytes.div_ceil(chunking.bytes.max(1)).min(chunking.max_chunks);
    let shape = graph.ty(y).shape();
    let mut best: Option<(usize, usize, BTreeMap<ValueId, Along>)> = None;
    for (axis, &dim) in shape.iter().enumerate() {
        let n_chunks = dim.min(wanted);
        if n_chunks < 2 || best.as_ref().is_some_and(|(most, ..)| *most >= n_chunks) {
            continue;
        }
        let split = Split { axis, unit: 1 };
        if let Some(along) = propagate(graph, y, split, |value| members.contains(&value)) {
            best = Some((n_chunks, axis, along));
        }
    }
    let (n_chunks, axis, along) = best?;
    Some(Branch { members, along, axis, n_chunks })
}

impl Branch {
    /// Appends the chunks and returns what joins them.
    fn append(&self, graph: &Graph, r: &mut Rewriter<'_>, y: ValueId) -> ValueId {
        let dim = graph.ty(y).shape()[self.axis];
        let mut pieces = Vec::with_capacity(self.n_chunks);
        for chunk in 0..self.n_chunks {
            let parts = chunk * dim / self.n_chunks..(chunk + 1) * dim / self.n_chunks;
            let mut new: BTreeMap<ValueId, ValueId> = BTreeMap::new();
            for &member in &self.members {
                let node = graph.node(member);
                let mut args = Vec::with_capacity(node.args.len());
                for &arg in &node.args {
                    let made = match new.get(&arg) {
                        Some(&made) => made,
                        None => {
                            let whole = r.new_of(arg);
                            let made = match self.along[&arg] {
                                Along::Whole => whole,
                                Along::Split(Split { axis, unit }) => {
                                    let (low, high) = (parts.start * unit, parts.end * unit);
                                    let slice = slice(r.shape(whole), axis, low, high);
                                    r.append_for(member, slice, &[whole])
                                }
                            };
                            new.insert(arg, made);
                            made
                        }
                    };
                    args.push(made);
                }
                let op = graph.op(member).expect("members are ops");
                let op = part_of(op, &node.ty, self.along[&member], parts.len());
                new.insert(member, r.append_for(member, op, &args));
            }
            pieces.push(new[&y]);
        }
        r.append_for(y, Concat { axis: self.axis }, &pieces)
    }
}

/// Positions `low..high` of one axis.
fn slice(shape: &[usize], axis: usize, low: usize, high: usize) -> Slice {
    let (mut start, mut stop) = (vec![0; shape.len()], shape.to_vec());
    (start[axis], stop[axis]) = (low, high);
    Slice { start, stop, step: vec![1; shape.len()] }
}
