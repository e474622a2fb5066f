//! `reduce_sum` and `reduce_max` over any axes, with elementwise code before and after.
//!
//! A task computes a strip of results that lie in a row. Where the innermost axis is reduced, each
//! result is folded from rows of the operand; else whole rows are folded into the strip. Sums are
//! compensated, in a fixed order. Few results of many elements are folded in parts, which depend on the
//! sizes alone, and the parts in order. Short rows that lie side by side run through the code before several as
//! one. The code before may read norms of rows (`reduce_norm.rs`). Integers are folded one by one, wrapping. Roofline:
//! memory bandwidth.

use ops::{Attr, DType, Op, ValueId};

use crate::kernel::{Columns, KernelDef, Launch, Site};
use crate::program::CHUNK;
use crate::simd::{MAX_LANES, dispatch};
use crate::{Isa, Layout};

use super::joined_rows::JOINED;
use super::reduce_columns::ColumnSums;
use super::reduce_norm::NormedRows;
use super::reduce_rows::ROWS;
use super::reduce_task::{Phase, Task};
use super::shared::{Shared, aligned};
use crate::body::{Elementwise, Source, compile_elementwise, operand_view};
use crate::nest::Nest;

/// Operand elements of one task.
const TASK: usize = 1 << 14;
/// Fewest results of a strip that whole rows are folded into: a few cache lines of each row.
const MIN_STRIP: usize = 96;
/// Longest strips of rows that are folded one after the other, where there are parts enough: memory is read in nearly
/// straight lines then, and the sums of a strip stay in the first-level cache.
const MAX_WIDE: usize = 3 * CHUNK;
/// Fewest operand elements of a part.
const PART: usize = 1 << 16;
/// Tasks to aim at with parts.
const TASKS: usize = 32;

/// How elements are folded.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Fold {
    Sum,
    Max,
}

/// A reduction.
#[derive(Clone, Debug)]
pub struct Reduce {
    pub(super) isa: Isa,
    pub(super) fold: Fold,
    pub(super) result: Layout,
    pub(super) code: Code,
    /// Over the kept axes: layout 0 is the result, then the epilogue's leaves, then the prologue's.
    pub(super) kept: Nest,
    /// Over the reduced axes: the prologue's leaves, from 0 on.
    pub(super) reduced: Nest,
    /// Whether rows of `reduced` are folded to one result each.
    pub(super) is_inner: bool,
    /// The norm that a leaf of the prologue stands for; rows of `kept` are its rows.
    pub(super) normed: Option<NormedRows>,
}

#[derive(Clone, Debug)]
pub(super) enum Code {
    Float(Box<Around>),
    Int { operand: usize, dtype: DType },
}

/// Elementwise code before and after.
#[derive(Clone, Debug)]
pub(super) struct Around {
    pub(super) prologue: Elementwise,
    pub(super) epilogue: Elementwise,
}

impl Reduce {
    /// Takes one reduction: of floats with any elementwise code around it, of integers alone.
    pub fn select(site: &Site<'_>) -> Option<Reduce> {
        let &[root] = &site.body.outputs[..] else { return None };
        let mut found = site.body.values().filter_map(|value| {
            let op = site.body.op(value)?;
            if let Op::ReduceSum(sum) = op {
                Some((value, Fold::Sum, &sum.axes))
            } else if let Op::ReduceMax(max) = op {
                Some((value, Fold::Max, &max.axes))
            } else {
                None
            }
        });
        let (value, fold, axes) = found.next()?;
        if found.next().is_some() || site.body.ty(value).shape() != site.result.shape {
            return None;
        }
        let input = site.body.node(value).args[0];
        let ty = site.body.ty(input);
        let norm = if cfg!(feature = "training") { NormedRows::find(site.body) } else { None };
        let mut normed = None;
        let (code, leaves, extra) = if ty.dtype().is_float() {
            let norms: Vec<ValueId> = norm.iter().map(|(value, _)| *value).collect();
            let prologue = compile_elementwise(site.body, input, &norms, site.operands)?;
            let mut prologue = prologue.widened();
            if let Some(norm) = norm {
                normed = Some(NormedRows::of(site.body, norm, site.operands, &mut prologue)?);
            }
            let epilogue = compile_elementwise(site.body, root, &[value], site.operands)?;
            let leaves: Vec<Layout> =
                prologue.leaves.iter().map(|leaf| leaf.layout.clone()).collect();
            let extra = epilogue.leaves.clone();
            (Code::Float(Box::new(Around { prologue, epilogue })), leaves, extra)
        } else {
            let (operand, layout) = operand_view(site.body, input, site.operands)?;
            if root != value {
                return None;
            }
            (Code::Int { operand, dtype: layout.dtype }, vec![layout], vec![])
        };
        let is_kept = |axis: &usize| !axes.contains(axis);
        let last = ty.rank() - 1;
        if normed.is_some() && !is_kept(&last) {
            return None;
        }
        let all: Vec<usize> = (0..ty.rank()).filter(|&axis| ty.shape()[axis] > 1).collect();
        let kept_axes: Vec<usize> = all.iter().copied().filter(is_kept).collect();
        let reduced_axes: Vec<usize> = all.iter().copied().filter(|axis| !is_kept(axis)).collect();
        let mut layouts = vec![site.result];
        for leaf in &extra {
            let is_scratch = matches!(leaf.source, Source::Frontier(_));
            layouts.push(if is_scratch { site.result } else { &leaf.layout });
        }
        layouts.extend(&leaves);
        if layouts.len() > crate::nest::MAX_LAYOUTS || leaves.is_empty() {
            return None;
        }
        let kept = if normed.is_some() {
            let outer: Vec<usize> =
                kept_axes.iter().copied().filter(|&axis| axis != last).collect();
            Nest::with_axes(&layouts, &outer).of_rows(&layouts, last)
        } else {
            Nest::with_axes(&layouts, &kept_axes)
        };
        let relative: Vec<Layout> =
            leaves.iter().map(|leaf| Layout { offset: 0, ..leaf.clone() }).collect();
        let reduced = Nest::with_axes(&relative.iter().collect::<Vec<_>>(), &reduced_axes);
        let is_inner = match (all.last(), kept_axes.last()) {
            (Some(last), Some(kept)) => last != kept,
            _ => true,
        };
        let is_inner = is_inner && normed.is_none();
        let result = site.result.clone();
        Some(Reduce { isa: site.target.isa, fold, result, code, kept, reduced, is_inner, normed })
    }

    /// Elements of one result.
    pub(super) fn terms(&self) -> usize {
        self.reduced.n_rows() * self.reduced.row_len()
    }

    /// Whether rows are folded whole, or in strips as long as rows may be.
    pub(super) fn is_wide(&self) -> bool {
        let n = self.kept.row_len();
        let most = self.terms() * n / PART;
        !self.is_inner && n >= MIN_STRIP && 4 * most >= TASKS
    }

    /// Results of one task.
    pub(super) fn strip(&self) -> usize {
        if self.normed.is_some() {
            return self.kept.row_len();
        }
        if self.is_wide() {
            let n = self.kept.row_len();
            return n.div_ceil(n.div_ceil(MAX_WIDE)).next_multiple_of(MAX_LANES).min(n);
        }
        let strip = TASK / self.terms();
        strip.clamp(if self.is_inner { 1 } else { MIN_STRIP }, CHUNK).min(self.kept.row_len())
    }

    /// Strips of a row of results.
    pub(super) fn strips(&self) -> usize {
        self.kept.row_len().div_ceil(self.strip())
    }

    /// Parts that the elements of each result are folded in.
    pub(super) fn parts(&self) -> usize {
        if let Code::Int { .. } = self.code {
            return 1;
        }
        let most = TASKS / (self.kept.n_rows() * self.strips());
        (self.terms() * self.strip() / PART).min(most).max(1)
    }

    /// Number of all results.
    pub(super) fn results(&self) -> usize {
        self.kept.n_rows() * self.kept.row_len()
    }

    /// The first element of part `part` of each result.
    pub(super) fn part_bound(&self, part: usize) -> usize {
        self.terms() * part / self.parts()
    }

    /// Bytes of what parts are folded to, which come first in the scratch: two f32 for each result. A single part is
    /// kept there only where others may do the folding.
    pub(super) fn parts_bytes(&self) -> usize {
        match self.parts() {
            1 if self.column_sums().is_none() => 0,
            parts => aligned(8 * parts * self.results()),
        }
    }

    pub(super) fn worker_bytes(&self) -> usize {
        let program = self.program_len();
        // Strips of sums, of what they lost, of results, of rows; a staged result; programs.
        let strip = self.strip_len();
        3 * aligned(4 * strip)
            + self.rows_bytes()
            + aligned(8 * strip)
            + aligned(4 * program)
            + self.normed.map_or(0, |_| aligned(4 * NormedRows::scratch_len(self.kept.row_len())))
    }

    /// Elements of the programs' scratch.
    pub(super) fn program_len(&self) -> usize {
        match &self.code {
            Code::Float(around) => {
                let lens =
                    [&around.prologue, &around.epilogue].map(|code| code.program.scratch_len());
                lens[0].max(lens[1])
            }
            Code::Int { .. } => 0,
        }
    }

    /// Bytes of the rows that are made at a time: some, or as many as join.
    pub(super) fn rows_bytes(&self) -> usize {
        aligned(4 * JOINED.max(self.rows_at_once() * self.strip_len()))
    }

    /// Rows that are folded at a time: what is read in one straight line needs no second one.
    pub(super) fn rows_at_once(&self) -> usize {
        if self.is_wide() { 1 } else { ROWS }
    }

    /// Room for the results of a task.
    pub(super) fn strip_len(&self) -> usize {
        let most = if self.is_wide() { MAX_WIDE } else { CHUNK };
        most.max(self.strip().next_multiple_of(MAX_LANES))
    }
}

impl KernelDef for Reduce {
    fn name(&self) -> &'static str {
        "reduce"
    }

    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        vec![("strip", Attr::Int(self.strip() as i64))]
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        self.parts_bytes() + threads * self.worker_bytes()
    }

    fn column_sums(&self) -> Option<Columns> {
        if cfg!(feature = "training") { self.columns() } else { None }
    }

    unsafe fn finish_sums(&self, launch: &Launch<'_>) {
        // SAFETY: passed on.
        unsafe { ColumnSums::new(self, launch).finish(launch) }
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        let strips = self.kept.n_rows() * self.strips();
        let parts = self.parts();
        launch.pool.run(strips * parts, &|item, worker| {
            let phase = if parts == 1 { Phase::Whole } else { Phase::Part(item % parts) };
            dispatch(self.isa, Task { reduce: self, shared, item: item / parts, worker, phase });
        });
        if parts > 1 {
            launch.pool.run(strips, &|item, worker| {
                let phase = Phase::Join;
                dispatch(self.isa, Task { reduce: self, shared, item, worker, phase });
            });
        }
    }
}
