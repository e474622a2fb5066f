//! Ops on constants are evaluated now, by the reference interpreter, and rounded as they would be
//! stored. Only what is small and cheap: a graph must not grow by folding.

use std::collections::BTreeMap;

use ops::{Builder, Graph, Op, Rounding, TensorType, ValueId, eval};

use crate::pass::Pass;
use crate::rewrite::{Rewriter, rewrite};

pub(crate) const PASS: Pass =
    Pass { name: "fold-constants", about: "evaluate small ops on constants", run };

/// Elements of a result that may become a constant.
const MAX_ELEMENTS: usize = 64 << 10;
/// Operand elements that the interpreter may read for one op.
const MAX_OPERAND_ELEMENTS: usize = 1 << 20;
/// FLOPs that the interpreter may spend on one op: some ten milliseconds.
const MAX_FLOPS: u64 = 1 << 20;

fn run(graph: &Graph) -> Graph {
    rewrite(graph, rule)
}

/// The constant that `op` gives on constants.
pub(super) fn rule(r: &mut Rewriter<'_>, op: &Op, args: &[ValueId]) -> Option<ValueId> {
    // A broadcast is a view; folding it would store the repetitions.
    if matches!(op, Op::Broadcast(_) | Op::Fused(_)) || args.is_empty() {
        return None;
    }
    if args.iter().any(|&arg| r.constant_of(arg).is_none()) {
        return None;
    }
    let types: Vec<&TensorType> = args.iter().map(|&arg| r.ty(arg)).collect();
    let ty = op.def().infer(&types).ok()?;
    let n_operand_elements: usize = types.iter().map(|ty| ty.count()).sum();
    if ty.count() > MAX_ELEMENTS
        || n_operand_elements > MAX_OPERAND_ELEMENTS
        || op.def().flops(&types, &ty) > MAX_FLOPS
    {
        return None;
    }
    let mut b = Builder::new("fold");
    let constants: Vec<ValueId> = args
        .iter()
        .map(|&arg| b.constant(r.constant_of(arg).expect("checked above").clone()))
        .collect();
    let value = b.op(op.clone(), &constants).ok()?;
    let mut results = eval(&b.finish(&[value]), &BTreeMap::new(), Rounding::Stored).ok()?;
    Some(r.constant(results.remove(0)))
}
