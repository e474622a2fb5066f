//! Which steps run together.
//!
//! An optimizer's update makes several results from the same operands: moments from a gradient, a weight from the
//! moments, an average from the weight. Each result is a step of its own; neighbors that compute as many elements each,
//! one by one, are one loop over runs of elements that stay in cache, and read and write memory once. What one step
//! writes, the others read and write at the same places only, so that the order of the runs does not matter.
//!
//! The gradients of a weight and of its bias read the same cotangent. The product packs it block by block, and a
//! block's columns are added up while it is in cache: the sum becomes a step right behind the product.

use kernels::Layout;
use ops::ValueId;

use crate::lower::{Lowered, LoweredStep};

/// Most steps that run together: what they touch of one run of elements stays in the second-level cache.
const MAX_JOINED: usize = 8;

/// For each step whether it runs together with the step before it. Moves sums of columns behind the products that
/// read them.
pub(crate) fn join_steps(lowered: &mut Lowered, has_carries: bool) -> Vec<bool> {
    move_sums(lowered);
    let mut joins = Vec::with_capacity(lowered.steps.len());
    let mut first = 0;
    for (index, step) in lowered.steps.iter().enumerate() {
        let group = &lowered.steps[first..index];
        let fits = match group {
            [product] if sums_what_is_read(lowered, product, step) => true,
            // Where nothing is carried, fusion has decided what is one loop.
            _ if has_carries => {
                (1..MAX_JOINED).contains(&group.len()) && fits(lowered, group, step)
            }
            _ => false,
        };
        joins.push(fits);
        if !fits {
            first = index;
        }
    }
    joins
}

/// Whether `sums` adds up the columns that `product` reads.
fn sums_what_is_read(lowered: &Lowered, product: &LoweredStep, sums: &LoweredStep) -> bool {
    let columns = (product.kernel.def().columns_read(), sums.kernel.def().column_sums());
    let (Some(read), Some(summed)) = columns else { return false };
    let storage = |step: &LoweredStep, operand: usize| {
        lowered.views[lowered.graph.node(step.value).args[operand].index()].storage
    };
    read.are(&summed) && storage(product, read.operand) == storage(sums, summed.operand)
}

/// Moves each sum of columns behind the first product that reads them, where what it needs is there by then and nobody
/// needs it before.
fn move_sums(lowered: &mut Lowered) {
    let is_sum = |step: &&LoweredStep| step.kernel.def().column_sums().is_some();
    let sums: Vec<ValueId> = lowered.steps.iter().filter(is_sum).map(|step| step.value).collect();
    if sums.is_empty() {
        return;
    }
    let is_product = |step: &&LoweredStep| step.kernel.def().columns_read().is_some();
    let mut products: Vec<ValueId> =
        lowered.steps.iter().filter(is_product).map(|step| step.value).collect();
    for value in sums {
        let position = |value: ValueId| {
            let at = lowered.steps.iter().position(|step| step.value == value);
            at.expect("steps are moved, none is lost")
        };
        let at = position(value);
        let reads = |&product: &ValueId| {
            lowered.graph.node(product).args.iter().any(|&arg| {
                let storage = lowered.views[arg.index()].storage;
                lowered.reads(&lowered.steps[at], storage)
            })
        };
        let sums_it = |&product: &usize| {
            sums_what_is_read(lowered, &lowered.steps[product], &lowered.steps[at])
        };
        let found = products.iter().copied().filter(reads).map(position).find(sums_it);
        let Some(product) = found else { continue };
        let passed = if at > product { product + 1..at } else { at + 1..product + 1 };
        let step = &lowered.steps[at];
        if lowered.steps[passed].iter().all(|other| are_independent(lowered, other, step)) {
            // A product has one sum behind it.
            products.retain(|&other| other != lowered.steps[product].value);
            let step = lowered.steps.remove(at);
            lowered.steps.insert(if at > product { product + 1 } else { product }, step);
        }
    }
}

/// Whether neither step touches the storage that the other writes.
fn are_independent(lowered: &Lowered, a: &LoweredStep, b: &LoweredStep) -> bool {
    let touches = |step: &LoweredStep, other: &LoweredStep| {
        let written = lowered.views[other.value.index()].storage;
        lowered.views[step.value.index()].storage == written || lowered.reads(step, written)
    };
    !touches(a, b) && !touches(b, a)
}

fn fits(lowered: &Lowered, group: &[LoweredStep], next: &LoweredStep) -> bool {
    let elements = |step: &LoweredStep| step.kernel.def().elements();
    if elements(next).is_none() || elements(next) != elements(&group[0]) {
        return false;
    }
    let view = |value: ValueId| &lowered.views[value.index()];
    let args = |step: &LoweredStep| lowered.graph.node(step.value).args.clone();
    let read = args(next);
    let result = view(next.value);
    let mut shares = false;
    for step in group {
        let written = view(step.value);
        let of_group = args(step);
        // A storage that several steps write is put together from parts: it is nobody's neighbor.
        let writes_there = |value: ValueId| view(value).storage == result.storage;
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
            let reads_it_too = |other: &ValueId| view(*other).storage == operand.storage;
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
