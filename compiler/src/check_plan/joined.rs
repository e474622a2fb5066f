//! Steps that run together.

use kernels::Layout;

use crate::plan::{BufferId, Place};

use super::{Checker, Step};

impl Checker<'_> {
    /// The step at `index` beside those that it runs together with and that come before it: whichever is ahead by
    /// how much, each finds what it reads.
    pub(super) fn joined(&mut self, index: usize) {
        let plan = self.plan;
        let step = &plan.steps[index];
        let mut other = index;
        while other > 0 && plan.steps[other].joins {
            other -= 1;
            let before = &plan.steps[other];
            let elements = step.kernel.def().elements();
            let are_alike = elements.is_some() && elements == before.kernel.def().elements();
            let is_sum = other + 1 == index && sums_what_is_read(before, step);
            if !are_alike && !is_sum {
                self.problems.push(format!("steps {other} and {index} cannot run together"));
                continue;
            }
            let written = |step: &Step| (step.result, step.result_layout.clone());
            let read = |step: &Step| -> Vec<(BufferId, Layout)> {
                let operands = step.operands.iter();
                let in_memory = operands.filter_map(|operand| match operand.place {
                    Place::Buffer(buffer) => Some((buffer, operand.layout.clone())),
                    Place::Param { .. } | Place::Constant(_) => None,
                });
                in_memory.collect()
            };
            for (one, two) in [(before, step), (step, before)] {
                let others = read(two).into_iter().chain([written(two)]);
                if !others
                    .into_iter()
                    .all(|touched| self.meet_rightly(&written(one), &touched, are_alike))
                {
                    let what = format!("steps {other} and {index} run together");
                    self.problems.push(format!("{what}, but share memory that one of them writes"));
                }
            }
            let scratches = [(before, step), (step, before)].into_iter().any(|(one, two)| {
                one.scratch.is_some_and(|scratch| {
                    let touched = read(two).into_iter().chain([written(two)]);
                    touched
                        .map(|(buffer, _)| buffer)
                        .chain(two.scratch)
                        .any(|buffer| self.overlap(scratch, buffer))
                })
            });
            if scratches {
                let what = format!("steps {other} and {index} run together");
                self.problems.push(format!("{what}, but share the scratch of one of them"));
            }
        }
    }

    /// Whether two sets of elements share no byte or, if those `are_alike` that touch them, element by element the same
    /// ones.
    fn meet_rightly(
        &self,
        a: &(BufferId, Layout),
        b: &(BufferId, Layout),
        are_alike: bool,
    ) -> bool {
        let (bytes_a, bytes_b) = (self.bytes_of(a.0, &a.1), self.bytes_of(b.0, &b.1));
        let is_apart = bytes_a.1 <= bytes_b.0 || bytes_b.1 <= bytes_a.0;
        let is_row = |layout: &Layout| layout.is_dense();
        is_apart
            || are_alike
                && bytes_a == bytes_b
                && is_row(&a.1)
                && is_row(&b.1)
                && a.1.dtype.size() == b.1.dtype.size()
    }
}

/// Whether `sums` adds up the columns that `product` reads while it runs.
fn sums_what_is_read(product: &Step, sums: &Step) -> bool {
    let columns = (product.kernel.def().columns_read(), sums.kernel.def().column_sums());
    let (Some(read), Some(summed)) = columns else { return false };
    let place = |step: &Step, operand: usize| step.operands.get(operand).map(|of| of.place.clone());
    let places = (place(product, read.operand), place(sums, summed.operand));
    let is_buffer = matches!(places.0, Some(Place::Buffer(_)));
    !product.joins && is_buffer && places.0 == places.1 && read.are(&summed)
}
