//! Which steps run together: neighbors that compute as many elements each, one by one, and share some of them.
//!
//! An optimizer's update makes several results from the same operands: moments from a gradient, a weight from the
//! moments, an average from the weight. Each result is a step of its own; as one loop over runs of elements that stay
//! in cache, they read and write memory once. What one step writes, the others read and write at the same places only,
//! so that the order of the runs does not matter.

use kernels::Layout;

use crate::lower::{Lowered, LoweredStep};

/// Most steps that run together: what they touch of one run of elements stays in the second-level cache.
const MAX_JOINED: usize = 8;

/// For each step whether it runs together with the step before it.
pub(crate) fn joins(lowered: &Lowered) -> Vec<bool> {
    let mut joins = Vec::with_capacity(lowered.steps.len());
    let mut first = 0;
    for (index, step) in lowered.steps.iter().enumerate() {
        let group = &lowered.steps[first..index];
        let fits = (1..MAX_JOINED).contains(&group.len()) && fits(lowered, group, step);
        joins.push(fits);
        if !fits {
            first = index;
        }
    }
    joins
}

fn fits(lowered: &Lowered, group: &[LoweredStep], next: &LoweredStep) -> bool {
    let elements = |step: &LoweredStep| step.kernel.def().elements();
    if elements(next).is_none() || elements(next) != elements(&group[0]) {
        return false;
    }
    let view = |value: ops::ValueId| &lowered.views[value.index()];
    let args = |step: &LoweredStep| lowered.graph.node(step.value).args.clone();
    let read = args(next);
    let result = view(next.value);
    let mut shares = false;
    for step in group {
        let written = view(step.value);
        let of_group = args(step);
        // A storage that several steps write is put together from parts: it is nobody's neighbor.
        let writes_there = |value: ops::ValueId| view(value).storage == result.storage;
        if written.storage == result.storage || of_group.iter().copied().any(writes_there) {
            return false;
        }
        for &value in &read {
            let operand = view(value);
            if operand.storage == written.storage {
                if !are_at_same_places(&operand.layout, &written.layout) {
                    return false;
                }
                shares = true;
            }
            let is_whole = operand.layout.count() == result.layout.count();
            let reads_it_too = |other: &ops::ValueId| view(*other).storage == operand.storage;
            shares |= is_whole && of_group.iter().any(reads_it_too);
        }
    }
    shares
}

/// Whether element `i` in row-major order is at the same place in both, for every `i`.
pub(crate) fn are_at_same_places(a: &Layout, b: &Layout) -> bool {
    a.is_dense()
        && b.is_dense()
        && a.offset == b.offset
        && a.count() == b.count()
        && a.dtype.size() == b.dtype.size()
}
