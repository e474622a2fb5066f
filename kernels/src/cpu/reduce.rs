//! `reduce_sum` and `reduce_max` over any axes, with elementwise code before and after.
//!
//! A task computes a strip of results that lie in a row. Where the innermost axis is reduced, each
//! result is folded from rows of the operand; else whole rows are folded into the strip. Sums are
//! compensated, in a fixed order. Integers are folded one by one, wrapping. Roofline: memory
//! bandwidth; a reduction to fewer results than threads uses that many threads only.

use ops::{Attr, DType, Op};

use crate::kernel::{KernelDef, Launch, Site};
use crate::program::{CHUNK, MAX_SLOTS, SlotPtr};
use crate::simd::{Simd, SimdJob, dispatch};
use crate::{Isa, Layout};

use super::shared::{Shared, aligned};
use super::sum::{max_of, sum_of};
use crate::body::{Elementwise, Leaf, Source, compile_elementwise, operand_view};
use crate::nest::{Cursor, Nest};

/// Operand elements of one task.
const TASK: usize = 1 << 14;

/// How elements are folded.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fold {
    Sum,
    Max,
}

/// A reduction.
#[derive(Clone, Debug)]
pub struct Reduce {
    isa: Isa,
    fold: Fold,
    result: Layout,
    code: Code,
    /// Over the kept axes: layout 0 is the result, then the epilogue's leaves, then the prologue's.
    kept: Nest,
    /// Over the reduced axes: the prologue's leaves, from 0 on.
    reduced: Nest,
    /// Whether rows of `reduced` are folded to one result each.
    is_inner: bool,
}

#[derive(Clone, Debug)]
enum Code {
    Float(Box<Around>),
    Int { operand: usize, dtype: DType },
}

/// Elementwise code before and after.
#[derive(Clone, Debug)]
struct Around {
    prologue: Elementwise,
    epilogue: Elementwise,
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
        let (code, leaves, extra) = if ty.dtype().is_float() {
            let prologue = compile_elementwise(site.body, input, &[], site.operands)?.widened();
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
        let kept = Nest::with_axes(&layouts, &kept_axes);
        let relative: Vec<Layout> =
            leaves.iter().map(|leaf| Layout { offset: 0, ..leaf.clone() }).collect();
        let reduced = Nest::with_axes(&relative.iter().collect::<Vec<_>>(), &reduced_axes);
        let is_inner = match (all.last(), kept_axes.last()) {
            (Some(last), Some(kept)) => last != kept,
            _ => true,
        };
        let result = site.result.clone();
        Some(Reduce { isa: site.target.isa, fold, result, code, kept, reduced, is_inner })
    }

    /// Results of one task.
    fn strip(&self) -> usize {
        let terms = self.reduced.n_rows() * self.reduced.row_len();
        let strip = (TASK / terms).clamp(if self.is_inner { 1 } else { 64 }, CHUNK);
        strip.min(self.kept.row_len())
    }

    fn worker_bytes(&self) -> usize {
        let program = match &self.code {
            Code::Float(around) => {
                let lens =
                    [&around.prologue, &around.epilogue].map(|code| code.program.scratch_len());
                lens[0].max(lens[1])
            }
            Code::Int { .. } => 0,
        };
        // Strips of sums, of what they lost, of results, of one row; a staged result; programs.
        4 * aligned(4 * CHUNK) + aligned(8 * CHUNK) + aligned(4 * program)
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
        threads * self.worker_bytes()
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        let strips = self.kept.row_len().div_ceil(self.strip());
        launch.pool.run(self.kept.n_rows() * strips, &|item, worker| {
            dispatch(self.isa, Task { reduce: self, shared, item, worker });
        });
    }
}

struct Task<'a> {
    reduce: &'a Reduce,
    shared: Shared<'a>,
    item: usize,
    worker: usize,
}

/// A worker's scratch.
struct Area {
    sums: *mut f32,
    lost: *mut f32,
    folded: *mut f32,
    row: *mut f32,
    staged: *mut u8,
    program: *mut f32,
}

impl SimdJob for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Task { reduce, shared, item, worker } = self;
        let strips = reduce.kept.row_len().div_ceil(reduce.strip());
        let cursor = reduce.kept.at(item / strips);
        let start = item % strips * reduce.strip();
        let n = reduce.strip().min(reduce.kept.row_len() - start);
        // SAFETY: the caller of `KernelDef::run` promises buffers that hold the layouts, and
        // scratch with one part per worker.
        unsafe {
            let base = shared.scratch().add(worker * reduce.worker_bytes());
            let part = |i: usize| base.add(i * aligned(4 * CHUNK)).cast::<f32>();
            let staged = part(4).cast::<u8>();
            let area = Area {
                sums: part(0),
                lost: part(1),
                folded: part(2),
                row: part(3),
                staged,
                program: staged.add(aligned(8 * CHUNK)).cast(),
            };
            match &reduce.code {
                Code::Int { operand, dtype } => {
                    reduce.fold_ints(shared, *operand, *dtype, &cursor, start, n);
                }
                Code::Float(around) => {
                    let Around { prologue, epilogue } = &**around;
                    let first = 1 + epilogue.leaves.len();
                    if reduce.is_inner {
                        reduce.fold_rows(s, shared, prologue, &cursor, (first, start, n), &area);
                    } else {
                        reduce.fold_strip(s, shared, prologue, &cursor, (first, start, n), &area);
                    }
                    reduce.finish(s, shared, epilogue, &cursor, start, n, &area);
                }
            }
        }
    }
}

impl Reduce {
    /// The slots of a row of the prologue: result `at` of the kept row, row `inner` of the reduced
    /// axes, along which `stride` steps.
    ///
    /// # Safety
    /// As [`KernelDef::run`], like all that follow.
    #[inline(always)]
    unsafe fn slots(
        &self,
        shared: Shared<'_>,
        leaves: &[Leaf],
        (first, at): (usize, usize),
        kept: &Cursor<'_>,
        inner: &Cursor<'_>,
        stride: impl Fn(usize) -> usize,
    ) -> [SlotPtr; MAX_SLOTS] {
        let mut slots = [SlotPtr { ptr: std::ptr::null(), stride: 0 }; MAX_SLOTS];
        for (i, leaf) in leaves.iter().enumerate() {
            let position =
                kept.position(first + i) + at * self.kept.row_stride(first + i) + inner.position(i);
            // SAFETY: positions of the nests add up to one of the layout.
            slots[i] = unsafe { shared.slot(leaf, position, stride(i), std::ptr::null()) };
        }
        slots
    }

    /// Folds rows of the reduced axes to one result each.
    ///
    /// # Safety
    /// See `slots`.
    #[inline(always)]
    unsafe fn fold_rows<S: Simd>(
        &self,
        s: S,
        shared: Shared<'_>,
        prologue: &Elementwise,
        cursor: &Cursor<'_>,
        (first, start, n): (usize, usize, usize),
        area: &Area,
    ) {
        let len = self.reduced.row_len();
        for i in 0..n {
            let (mut sum, mut max) = (0.0, f32::NEG_INFINITY);
            let mut inner = self.reduced.at(0);
            for _ in 0..self.reduced.n_rows() {
                let mut from = 0;
                while from < len {
                    let count = CHUNK.min(len - from);
                    // SAFETY: see the caller; a chunk fits a strip of scratch.
                    unsafe {
                        let mut slots = self.slots(
                            shared,
                            &prologue.leaves,
                            (first, start + i),
                            cursor,
                            &inner,
                            |leaf| self.reduced.row_stride(leaf),
                        );
                        for (slot, dtype) in slots.iter_mut().zip(prologue.program.slots()) {
                            let offset = from as isize * slot.stride * dtype.size() as isize;
                            slot.ptr = slot.ptr.offset(offset);
                        }
                        let program = &prologue.program;
                        program.run_row_in(s, count, &slots, area.row.cast(), area.program);
                        let row = area.row.cast_const();
                        match self.fold {
                            Fold::Sum => {
                                sum += sum_of(
                                    s,
                                    row,
                                    count,
                                    #[inline(always)]
                                    |x| x,
                                );
                            }
                            Fold::Max => max = max.max(max_of(s, row, count)),
                        }
                    }
                    from += count;
                }
                inner.advance();
            }
            // SAFETY: i < n <= CHUNK.
            unsafe {
                *area.folded.add(i) = match self.fold {
                    Fold::Sum => sum as f32,
                    Fold::Max => max,
                };
            }
        }
    }

    /// Folds rows along the kept row into a strip of results.
    ///
    /// # Safety
    /// See `slots`.
    #[inline(always)]
    unsafe fn fold_strip<S: Simd>(
        &self,
        s: S,
        shared: Shared<'_>,
        prologue: &Elementwise,
        cursor: &Cursor<'_>,
        (first, start, n): (usize, usize, usize),
        area: &Area,
    ) {
        let Area { sums, lost, folded, row, .. } = *area;
        let initial = match self.fold {
            Fold::Sum => 0.0,
            Fold::Max => f32::NEG_INFINITY,
        };
        let len = self.reduced.row_len();
        // SAFETY: strips of scratch hold CHUNK values, a multiple of every vector.
        unsafe {
            for i in (0..CHUNK).step_by(S::LANES) {
                s.store(sums.add(i), s.splat(initial));
                s.store(lost.add(i), s.splat(0.0));
            }
            let mut inner = self.reduced.at(0);
            for _ in 0..self.reduced.n_rows() {
                for step in 0..len {
                    let mut slots = self.slots(
                        shared,
                        &prologue.leaves,
                        (first, start),
                        cursor,
                        &inner,
                        |leaf| self.kept.row_stride(first + leaf),
                    );
                    for (leaf, slot) in slots.iter_mut().enumerate().take(prologue.leaves.len()) {
                        let size = prologue.leaves[leaf].layout.dtype.size();
                        slot.ptr = slot.ptr.add(step * self.reduced.row_stride(leaf) * size);
                    }
                    prologue.program.run_row_in(s, n, &slots, row.cast(), area.program);
                    for i in (0..n).step_by(S::LANES) {
                        let (x, old) = (s.load(row.add(i)), s.load(sums.add(i)));
                        if self.fold == Fold::Max {
                            s.store(sums.add(i), s.max(old, x));
                            continue;
                        }
                        let new = s.add(old, x);
                        let added = s.sub(new, old);
                        let error = s.add(s.sub(old, s.sub(new, added)), s.sub(x, added));
                        s.store(lost.add(i), s.add(s.load(lost.add(i)), error));
                        s.store(sums.add(i), new);
                    }
                }
                inner.advance();
            }
            for i in (0..n).step_by(S::LANES) {
                s.store(folded.add(i), s.add(s.load(sums.add(i)), s.load(lost.add(i))));
            }
        }
    }

    /// Runs the epilogue on `n` folded values.
    ///
    /// # Safety
    /// See `slots`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the strip and where it goes")]
    unsafe fn finish<S: Simd>(
        &self,
        s: S,
        shared: Shared<'_>,
        epilogue: &Elementwise,
        cursor: &Cursor<'_>,
        start: usize,
        n: usize,
        area: &Area,
    ) {
        let mut slots = [SlotPtr { ptr: std::ptr::null(), stride: 0 }; MAX_SLOTS];
        let size = self.result.dtype.size();
        let step = self.kept.row_stride(0);
        // SAFETY: positions of a nest lie within its layouts.
        unsafe {
            for (i, leaf) in epilogue.leaves.iter().enumerate() {
                slots[i] = match leaf.source {
                    Source::Frontier(_) => SlotPtr { ptr: area.folded.cast(), stride: 1 },
                    Source::Operand(_) | Source::Constant(_) => {
                        let stride = self.kept.row_stride(1 + i);
                        let at = cursor.position(1 + i) + start * stride;
                        shared.slot(leaf, at, stride, area.folded)
                    }
                };
            }
            epilogue.program.run_row_in(s, n, &slots, area.staged, area.program);
            let dst = shared.result().add((cursor.position(0) + start * step) * size);
            for i in 0..n {
                std::ptr::copy_nonoverlapping(
                    area.staged.add(i * size),
                    dst.add(i * step * size),
                    size,
                );
            }
        }
    }

    /// # Safety
    /// See `slots`.
    unsafe fn fold_ints(
        &self,
        shared: Shared<'_>,
        operand: usize,
        dtype: DType,
        cursor: &Cursor<'_>,
        start: usize,
        n: usize,
    ) {
        let base = shared.operand(operand);
        // SAFETY: positions of the nests add up to one of the layout; elements are whole.
        unsafe {
            for i in start..start + n {
                let kept = cursor.position(1) + i * self.kept.row_stride(1);
                let mut value = if self.fold == Fold::Max { i64::MIN } else { 0 };
                let mut inner = self.reduced.at(0);
                for _ in 0..self.reduced.n_rows() {
                    for j in 0..self.reduced.row_len() {
                        let at = kept + inner.position(0) + j * self.reduced.row_stride(0);
                        let x = match dtype {
                            DType::I64 => base.cast::<i64>().add(at).read_unaligned(),
                            DType::I32 => base.cast::<i32>().add(at).read_unaligned().into(),
                            _ => (*base.add(at)).into(),
                        };
                        value = match self.fold {
                            Fold::Sum => value.wrapping_add(x),
                            Fold::Max => value.max(x),
                        };
                    }
                    inner.advance();
                }
                let at = cursor.position(0) + i * self.kept.row_stride(0);
                let bytes = value.to_le_bytes();
                let size = dtype.size();
                let to = shared.result().add(at * size);
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, size);
            }
        }
    }
}
