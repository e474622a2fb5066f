//! One task of a reduction: a strip of results, or a part of what they are folded from.

use ops::DType;

use crate::program::{CHUNK, MAX_SLOTS, SlotPtr};
use crate::simd::{Simd, SimdJob};

use super::joined_rows::{Coming, JOINED, MAX_JOINED};
use super::lanes::{copy, prefetch_row};
use super::reduce::{Around, Code, Fold, Reduce};
use super::reduce_norm::NormedRows;
use super::reduce_rows::{ROWS, Rows};
use super::shared::{Shared, aligned};
use super::sum::{Sum, max_of, sum_of};
use crate::body::{Elementwise, Leaf, Source};
use crate::nest::Cursor;

/// What of a strip is done.
#[derive(Clone, Copy)]
pub(super) enum Phase {
    /// Everything.
    Whole,
    /// A part of the elements of each result is folded.
    Part(usize),
    /// All parts are folded, and the results made.
    Join,
}

/// Strip `item` of a run.
pub(super) struct Task<'a> {
    pub(super) reduce: &'a Reduce,
    pub(super) shared: Shared<'a>,
    pub(super) item: usize,
    pub(super) worker: usize,
    pub(super) phase: Phase,
}

/// Some results, and what of their elements.
#[derive(Clone, Copy)]
struct Strip {
    /// The first layout of the prologue's leaves in the nest of results.
    leaves: usize,
    /// The first result of the row, and how many.
    start: usize,
    n: usize,
    /// First and one past the last element of each.
    terms: (usize, usize),
}

/// A worker's scratch.
struct Area {
    /// What is folded: sums and what they lost to rounding, or maxima and zeros.
    sums: *mut f32,
    lost: *mut f32,
    folded: *mut f32,
    rows: *mut f32,
    staged: *mut u8,
    program: *mut f32,
    /// Of norms that rows are made of.
    normed: *mut f32,
}

impl SimdJob for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Task { reduce, shared, item, worker, phase } = self;
        let (row, strip) = (item / reduce.strips(), item % reduce.strips());
        let cursor = reduce.kept.at(row);
        let start = strip * reduce.strip();
        let n = reduce.strip().min(reduce.kept.row_len() - start);
        // SAFETY: the caller of `KernelDef::run` promises buffers that hold the layouts, and
        // scratch with one part per worker.
        unsafe {
            let base = shared.scratch().add(reduce.parts_bytes() + worker * reduce.worker_bytes());
            let len = reduce.strip_len();
            let part = |i: usize| base.add(i * aligned(4 * len)).cast::<f32>();
            let staged = part(3).cast::<u8>().add(reduce.rows_bytes());
            let program = staged.add(aligned(8 * len)).cast::<f32>();
            let code_len = reduce.program_len();
            let area = Area {
                sums: part(0),
                lost: part(1),
                folded: part(2),
                rows: part(3),
                staged,
                program,
                normed: program.add(aligned(4 * code_len) / 4),
            };
            let Around { prologue, epilogue } = match &reduce.code {
                Code::Int { operand, dtype } => {
                    reduce.fold_ints(shared, *operand, *dtype, &cursor, start, n);
                    return;
                }
                Code::Float(around) => &**around,
            };
            // Results of part `part`: sums, then what they lost.
            let results = reduce.results();
            let of_part = |part: usize| {
                let at = 2 * part * results + row * reduce.kept.row_len() + start;
                shared.scratch().cast::<f32>().add(at)
            };
            let terms = match phase {
                Phase::Whole => Some((0, reduce.terms())),
                Phase::Part(part) => Some((reduce.part_bound(part), reduce.part_bound(part + 1))),
                Phase::Join => None,
            };
            if let Some(terms) = terms {
                let strip = Strip { leaves: 1 + epilogue.leaves.len(), start, n, terms };
                if reduce.is_inner {
                    reduce.fold_rows(s, shared, prologue, &cursor, strip, &area);
                } else {
                    reduce.fold_strip(s, shared, prologue, &cursor, strip, &area);
                }
            }
            match phase {
                Phase::Whole => {
                    for i in (0..n).step_by(S::LANES) {
                        let sum = s.add(s.load(area.sums.add(i)), s.load(area.lost.add(i)));
                        s.store(area.folded.add(i), sum);
                    }
                }
                Phase::Part(part) => {
                    copy(s, area.sums, n, of_part(part));
                    copy(s, area.lost, n, of_part(part).add(results));
                    return;
                }
                Phase::Join => {
                    for i in (0..n).step_by(S::LANES) {
                        let count = S::LANES.min(n - i);
                        let of_part = |part: usize| {
                            let at = of_part(part).add(i).cast_const();
                            [at, at.add(results)].map(|at| s.load_n(at, count))
                        };
                        let [sum, lost] = of_part(0);
                        let mut folded = Sum::of(sum, lost);
                        for part in 1..reduce.parts() {
                            let [sum, lost] = of_part(part);
                            match reduce.fold {
                                Fold::Sum => folded.join(s, Sum::of(sum, lost)),
                                Fold::Max => folded = Sum::of(s.max(folded.rounded(s), sum), lost),
                            }
                        }
                        s.store(area.folded.add(i), folded.rounded(s));
                    }
                }
            }
            reduce.finish(s, shared, epilogue, &cursor, start, n, &area);
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
        Strip { leaves, start, n, terms }: Strip,
        area: &Area,
    ) {
        let len = self.reduced.row_len();
        for i in 0..n {
            let (mut sum, mut max) = (0.0, f32::NEG_INFINITY);
            let mut at = terms.0;
            let mut inner = self.reduced.at(at / len);
            while at < terms.1 {
                let mut from = at % len;
                let end = len.min(from + terms.1 - at);
                at += end - from;
                while from < end {
                    let count = CHUNK.min(end - from);
                    // SAFETY: see the caller; a chunk fits a strip of scratch.
                    unsafe {
                        let mut slots = self.slots(
                            shared,
                            &prologue.leaves,
                            (leaves, start + i),
                            cursor,
                            &inner,
                            |leaf| self.reduced.row_stride(leaf),
                        );
                        for (slot, dtype) in slots.iter_mut().zip(prologue.program.slots()) {
                            let offset = from as isize * slot.stride * dtype.size() as isize;
                            slot.ptr = slot.ptr.offset(offset);
                        }
                        let program = &prologue.program;
                        program.run_row_in(s, count, &slots, area.rows.cast(), area.program);
                        let row = area.rows.cast_const();
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
            let (folded, lost) = match self.fold {
                Fold::Sum => {
                    let rounded = sum as f32;
                    let lost = if rounded.is_finite() { sum - f64::from(rounded) } else { 0.0 };
                    (rounded, lost as f32)
                }
                Fold::Max => (max, 0.0),
            };
            // SAFETY: i < n <= CHUNK.
            unsafe {
                *area.sums.add(i) = folded;
                *area.lost.add(i) = lost;
            }
        }
    }

    /// The norm that a leaf stands for. Only a build that trains has code for one.
    #[inline(always)]
    fn norms(&self) -> Option<&NormedRows> {
        if cfg!(feature = "training") { self.normed.as_ref() } else { None }
    }

    /// What is read from row `inner` of the reduced axes, its part `step` on, in rows of `n` elements.
    ///
    /// # Safety
    /// See `slots`.
    #[inline(always)]
    unsafe fn coming(
        &self,
        shared: Shared<'_>,
        (leaves, first, start): (&[Leaf], usize, usize),
        cursor: &Cursor<'_>,
        inner: &Cursor<'_>,
        (step, n): (usize, usize),
    ) -> Coming {
        let stride = |leaf| self.kept.row_stride(first + leaf);
        // SAFETY: passed on.
        let slots = unsafe { self.slots(shared, leaves, (first, start), cursor, inner, stride) };
        let mut coming = Coming::nothing();
        for (index, (slot, leaf)) in slots.into_iter().zip(leaves).enumerate() {
            let size = leaf.layout.dtype.size();
            let ptr = slot.ptr.wrapping_add(step * self.reduced.row_stride(index) * size);
            coming.add(SlotPtr { ptr, ..slot }, n * size);
        }
        coming
    }

    /// Whether short rows along the kept row go on from one to the next along the reduced row, in all of the
    /// prologue's leaves: then it runs through several as one.
    fn rows_join(&self, first: usize) -> bool {
        let n = self.kept.row_len();
        n <= MAX_JOINED
            && (0..self.reduced.n_layouts())
                .all(|leaf| self.reduced.row_stride(leaf) == n * self.kept.row_stride(first + leaf))
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
        Strip { leaves: first, start, n, terms }: Strip,
        area: &Area,
    ) {
        let Area { sums, lost, rows, .. } = *area;
        let initial = match self.fold {
            Fold::Sum => 0.0,
            Fold::Max => f32::NEG_INFINITY,
        };
        let len = self.reduced.row_len();
        let program = &prologue.program;
        // Rows that are floats side by side are folded where they are.
        let is_plain = program.is_copy() && program.slots()[0].is_float() && self.normed.is_none();
        let in_place = is_plain && self.kept.row_stride(first) == 1;
        let joins = !in_place && n == self.kept.row_len() && self.rows_join(first);
        let batch = if joins { JOINED / n } else { self.rows_at_once() };
        // SAFETY: strips of scratch hold a multiple of every vector.
        unsafe {
            for i in (0..n).step_by(S::LANES) {
                s.store(sums.add(i), s.splat(initial));
                s.store(lost.add(i), s.splat(0.0));
            }
            let mut at = terms.0;
            let mut inner = self.reduced.at(at / len);
            while at < terms.1 {
                let from = at % len;
                let end = len.min(from + terms.1 - at);
                at += end - from;
                for step in (from..end).step_by(batch) {
                    let count = batch.min(end - step);
                    let mut slots = self.slots(
                        shared,
                        &prologue.leaves,
                        (first, start),
                        cursor,
                        &inner,
                        |leaf| self.kept.row_stride(first + leaf),
                    );
                    let mut next = [0; MAX_SLOTS];
                    for (leaf, slot) in slots.iter_mut().enumerate().take(prologue.leaves.len()) {
                        let size = prologue.leaves[leaf].layout.dtype.size();
                        next[leaf] = self.reduced.row_stride(leaf) * size;
                        slot.ptr = slot.ptr.add(step * next[leaf]);
                        // Rows are far apart, if only by other strips: without this, each waits for memory by itself.
                        let ahead = match batch {
                            _ if slot.stride != 1 || joins => 0..0,
                            1 => 1..2,
                            _ => batch..2 * batch,
                        };
                        for row in ahead {
                            prefetch_row(slot.ptr.wrapping_add(row * next[leaf]), n * size);
                        }
                    }
                    let mut strip = Rows { from: [std::ptr::null(); ROWS], dtype: DType::F32, n };
                    if joins {
                        if let Some(normed) = self.norms() {
                            let (slot, leaf) =
                                (&mut slots[normed.leaf], &prologue.leaves[normed.leaf]);
                            let mut following = inner.clone();
                            following.advance();
                            let leaves = (&*prologue.leaves, first, start);
                            let coming = self.coming(shared, leaves, cursor, &following, (step, n));
                            let rows = (count, n);
                            *slot = normed.make(s, (*slot, leaf), rows, area.normed, &coming);
                        }
                        program.run_row_in(s, count * n, &slots, rows.cast(), area.program);
                        for made in (0..count).step_by(ROWS) {
                            strip.from = std::array::from_fn(|row| {
                                rows.wrapping_add((made + row) * n).cast_const().cast()
                            });
                            match self.fold {
                                Fold::Sum => strip.add_to(s, ROWS.min(count - made), sums, lost),
                                Fold::Max => strip.raise(s, ROWS.min(count - made), sums),
                            }
                        }
                        continue;
                    }
                    for row in 0..count {
                        if in_place {
                            strip.from[row] = slots[0].ptr;
                            strip.dtype = program.slots()[0];
                        } else {
                            let to = rows.add(row * self.strip_len());
                            let mut slots = slots;
                            if let Some(normed) = self.norms() {
                                let (slot, leaf) =
                                    (&mut slots[normed.leaf], &prologue.leaves[normed.leaf]);
                                let none = Coming::nothing();
                                *slot = normed.make(s, (*slot, leaf), (1, n), area.normed, &none);
                            }
                            program.run_row_in(s, n, &slots, to.cast(), area.program);
                            strip.from[row] = to.cast_const().cast();
                        }
                        for (slot, &next) in slots.iter_mut().zip(&next) {
                            slot.ptr = slot.ptr.wrapping_add(next);
                        }
                    }
                    match self.fold {
                        Fold::Sum => strip.add_to(s, count, sums, lost),
                        Fold::Max => strip.raise(s, count, sums),
                    }
                }
                inner.advance();
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
