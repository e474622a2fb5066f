//! What a pass is, the pipeline, and the driver that runs and checks it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ops::{Graph, Op, Role, ValueId, verify};

use crate::Error;
use crate::passes::{
    canonicalize, chunk_tokens, eliminate_common_subexpressions, eliminate_dead_values,
    fold_constants, fuse_attention, fuse_conv, fuse_elementwise, fuse_matmul, fuse_norm,
    fuse_norm_gradient, fuse_reduce, order_products, simplify_algebra,
};

/// A named graph-to-graph rewrite: pure, deterministic, and it keeps the inputs, the number and
/// types of the outputs, and their values.
#[derive(Debug)]
pub struct Pass {
    /// Kebab-case, verb first. The file is the same in snake case, and so is the folder of its
    /// cases below `tests/ir`.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// The rewrite.
    pub run: fn(&Graph) -> Graph,
}

/// Every pass, in the order in which [`crate::optimize`] runs them.
pub const PIPELINE: &[Pass] = &[
    // First, so that every later pass meets one form of each thing.
    canonicalize::PASS,
    // Before simplification, which reads scalar constants that folding makes.
    fold_constants::PASS,
    simplify_algebra::PASS,
    eliminate_common_subexpressions::PASS,
    // Before fusion, where a dead user would keep a value out of its group.
    eliminate_dead_values::PASS,
    // Of what is needed: a dead user would keep a product. Before fusion, which decides what else a product makes.
    order_products::PASS,
    // Fusion, the most profitable first: what one pass has put into a group, later ones leave alone.
    // Matmuls come before norms, which are then free to become a prologue.
    fuse_matmul::PASS,
    fuse_attention::PASS,
    fuse_conv::PASS,
    // Before norms, whose users it makes fewer.
    fuse_norm_gradient::PASS,
    fuse_norm::PASS,
    fuse_reduce::PASS,
    // After the other groups: takes what none of them wanted.
    fuse_elementwise::PASS,
    // Groups are what is repeated for each chunk.
    chunk_tokens::PASS,
];

/// The pipeline without its last pass, which has a fineness to choose.
pub(crate) const BEFORE_CHUNKING: &[Pass] = PIPELINE.split_at(PIPELINE.len() - 1).0;

/// What the driver tells its observer after each pass.
#[derive(Debug)]
pub struct Stage<'a> {
    /// The pass that ran.
    pub pass: &'a Pass,
    /// Its result.
    pub graph: &'a Graph,
    /// Whether the result differs from what the pass was given, comments aside.
    pub changed: bool,
    /// How long the rewrite took, without checks.
    pub elapsed: Duration,
}

/// The passes called `names`, in that order.
pub fn passes(names: &[&str]) -> Result<Vec<&'static Pass>, Error> {
    names.iter().map(|name| position(name).map(|i| &PIPELINE[i])).collect()
}

/// The part of the pipeline up to and including the pass called `name`.
pub fn pipeline_through(name: &str) -> Result<&'static [Pass], Error> {
    position(name).map(|i| &PIPELINE[..=i])
}

fn position(name: &str) -> Result<usize, Error> {
    PIPELINE.iter().position(|pass| pass.name == name).ok_or_else(|| {
        let known: Vec<&str> = PIPELINE.iter().map(|pass| pass.name).collect();
        Error::UnknownPass { name: name.to_string(), known: known.join(", ") }
    })
}

/// Runs the whole pipeline on a valid graph.
pub fn optimize(graph: Graph, observer: &mut dyn FnMut(&Stage<'_>)) -> Graph {
    run_passes(graph, PIPELINE, observer)
}

/// Runs `passes` in order on a valid graph and tells `observer` after each. Panics if a pass breaks
/// the graph or its interface: that is a bug of the pass, whatever the graph.
pub fn run_passes<'p>(
    graph: Graph,
    passes: impl IntoIterator<Item = &'p Pass>,
    observer: &mut dyn FnMut(&Stage<'_>),
) -> Graph {
    let mut graph = graph;
    for pass in passes {
        let start = Instant::now();
        let result = (pass.run)(&graph);
        let elapsed = start.elapsed();
        let changed = !is_same(&graph, &result);
        if changed {
            let problems = [verify(&result), interface_changes(&graph, &result)].concat();
            assert!(
                problems.is_empty(),
                "compiler bug: pass {} broke the graph: {}\nbefore: {graph}\nafter: {result}",
                pass.name,
                problems.join("; "),
            );
            graph = result;
        }
        observer(&Stage { pass, graph: &graph, changed, elapsed });
    }
    graph
}

/// Equality that does not compare the elements of constants that both graphs share.
fn is_same(before: &Graph, after: &Graph) -> bool {
    let same_role = |a: &Role, b: &Role| match (a, b) {
        (Role::Constant(x), Role::Constant(y)) => Arc::ptr_eq(x, y) || x == y,
        (Role::Op(Op::Fused(x)), Role::Op(Op::Fused(y))) => {
            x.kind() == y.kind() && is_same(x.body(), y.body())
        }
        (a, b) => a == b,
    };
    before.outputs == after.outputs
        && before.nodes.len() == after.nodes.len()
        && before
            .nodes
            .iter()
            .zip(&after.nodes)
            .all(|(a, b)| a.args == b.args && a.ty == b.ty && same_role(&a.role, &b.role))
}

/// How inputs and outputs differ; a pass may only drop parameters.
fn interface_changes(before: &Graph, after: &Graph) -> Vec<String> {
    let inputs = |graph: &Graph| -> Vec<String> {
        graph.inputs().map(|(value, name)| format!("{name} : {}", graph.ty(value))).collect()
    };
    let outputs = |graph: &Graph| -> Vec<String> {
        graph.outputs.iter().map(|&output: &ValueId| graph.ty(output).to_string()).collect()
    };
    let mut changes = Vec::new();
    for (what, old, new) in
        [("inputs", inputs(before), inputs(after)), ("outputs", outputs(before), outputs(after))]
    {
        if old != new {
            changes.push(format!("{what} were {old:?}, are {new:?}"));
        }
    }
    changes
}
