//! Sums of the columns of a matrix that another kernel reads: as it packs a cotangent for the gradient of a weight,
//! the gradient of the bias is summed of what is in cache. Blocks of the matrix are added as they come; whoever
//! brings them keeps the order of the terms of each column, so that the sums are those of a reduction by itself, to
//! the last bit.

use crate::kernel::{Columns, KernelDef, Launch};
use crate::simd::{Simd, SimdJob, dispatch};

use super::reduce::{Code, Fold, Reduce};
use super::reduce_rows::{ROWS, Rows};
use super::reduce_task::{Phase, Task};
use super::shared::Shared;
use crate::body::Source;

/// Columns that are added to at a time: their sums stay in the first-level cache.
const COLUMNS: usize = 256;

impl Reduce {
    /// The matrix whose columns are summed, if nothing else is done to its elements.
    pub(super) fn columns(&self) -> Option<Columns> {
        let Code::Float(around) = &self.code else { return None };
        let code = &around.prologue;
        let ([leaf], true) = (&code.leaves[..], code.program.is_copy()) else { return None };
        let Source::Operand(operand) = leaf.source else { return None };
        let in_kept = self.kept.n_layouts() - 1;
        let is_matrix = self.kept.rank() == 1
            && self.reduced.rank() == 1
            && self.kept.row_stride(in_kept) == 1
            && code.program.slots() == [leaf.layout.dtype];
        let sums = self.fold == Fold::Sum && !self.is_inner && self.normed.is_none();
        (is_matrix && sums).then(|| Columns {
            operand,
            dtype: leaf.layout.dtype,
            offset: leaf.layout.offset,
            columns: self.results(),
            terms: self.terms(),
            stride: self.reduced.row_stride(0),
        })
    }
}

/// The sums of one launch of a [`Reduce`] with [`Reduce::columns`], as they grow in its scratch.
#[derive(Clone, Copy)]
pub(super) struct ColumnSums<'a> {
    reduce: &'a Reduce,
    shared: Shared<'a>,
    columns: Columns,
}

impl<'a> ColumnSums<'a> {
    pub(super) fn new(reduce: &'a Reduce, launch: &'a Launch<'a>) -> ColumnSums<'a> {
        // Only a build that trains has any, so that others have no code for it.
        let columns = reduce.column_sums().expect("the plan was checked: it sums columns");
        ColumnSums { reduce, shared: Shared::new(launch), columns }
    }

    /// Adds terms `terms` of the columns `columns`; all that come before them have been added.
    ///
    /// # Safety
    /// The launch is as [`KernelDef::run`] demands, and nobody else adds to these columns
    /// meanwhile.
    pub(super) unsafe fn add<S: Simd>(&self, s: S, terms: (usize, usize), columns: (usize, usize)) {
        for first in (columns.0..columns.1).step_by(COLUMNS) {
            let columns = (first, columns.1.min(first + COLUMNS));
            s.outline(Add { sums: self, terms, columns });
        }
    }

    /// Makes the results of what has been added.
    ///
    /// # Safety
    /// As [`ColumnSums::add`]; all terms of all columns have been added.
    pub(super) unsafe fn finish(&self, launch: &Launch<'_>) {
        let ColumnSums { reduce, shared, .. } = *self;
        launch.pool.run(reduce.strips(), &|item, worker| {
            dispatch(reduce.isa, Task { reduce, shared, item, worker, phase: Phase::Join });
        });
    }
}

/// One call of [`ColumnSums::add`], of at most [`COLUMNS`] columns.
struct Add<'a> {
    sums: &'a ColumnSums<'a>,
    terms: (usize, usize),
    columns: (usize, usize),
}

impl SimdJob for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Add { sums: &ColumnSums { reduce, shared, columns }, terms, columns: (first, end) } =
            self;
        let n = end - first;
        let mut part = 0;
        while reduce.part_bound(part + 1) <= terms.0 {
            part += 1;
        }
        let mut at = terms.0;
        // Whole vectors, of which those of the last columns reach beyond them.
        let (mut sum, mut lost) = ([0f32; COLUMNS], [0f32; COLUMNS]);
        let (sum, lost) = (sum.as_mut_ptr(), lost.as_mut_ptr());
        while at < terms.1 {
            let end = terms.1.min(reduce.part_bound(part + 1));
            // SAFETY: the caller of `ColumnSums::add` promises the operand, and the scratch of parts for these columns.
            unsafe {
                let kept = shared.scratch().cast::<f32>();
                let kept = kept.add(2 * part * reduce.results() + first);
                let kept = [(kept, sum), (kept.add(reduce.results()), lost)];
                for (kept, to) in kept {
                    for i in (0..n).step_by(S::LANES) {
                        let is_new = at == reduce.part_bound(part);
                        let so_far = if is_new {
                            s.splat(0.0)
                        } else {
                            s.load_n(kept.add(i), S::LANES.min(n - i))
                        };
                        s.store(to.add(i), so_far);
                    }
                }
                let bytes = columns.stride * columns.dtype.size();
                let start = columns.offset + first;
                let start = shared.operand(columns.operand).add(start * columns.dtype.size());
                for term in (at..end).step_by(ROWS) {
                    let from = std::array::from_fn(|row| start.wrapping_add((term + row) * bytes));
                    let rows = Rows { from, dtype: columns.dtype, n };
                    rows.add_to(s, ROWS.min(end - term), sum, lost);
                }
                for (kept, from) in kept {
                    for i in (0..n).step_by(S::LANES) {
                        s.store_n(kept.add(i), s.load(from.add(i)), S::LANES.min(n - i));
                    }
                }
            }
            (at, part) = (end, part + 1);
        }
    }
}

const _: () = assert!(COLUMNS.is_multiple_of(crate::simd::MAX_LANES));
