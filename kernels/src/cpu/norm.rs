//! `layer_norm`, `rms_norm` and `softmax` of rows, with elementwise code before and after.
//!
//! One pass over memory: a row is read (or computed) once, its statistics and its normalized form
//! are made in L1, and the epilogue (affine map, modulation, residual) writes the result. Sums are
//! compensated and the variance is that of the centered row, so the error is that of the last few
//! roundings. Short rows, as those of heads, run through the code before and after several as one. Roofline:
//! memory bandwidth. Where a product follows, its prologue does this instead.

use ops::{Attr, DType, Op, ValueId};

use crate::kernel::{KernelDef, Launch, Site};
use crate::program::{MAX_SLOTS, SlotPtr};
use crate::simd::{MAX_LANES, Simd, SimdJob, dispatch};
use crate::vec_math;
use crate::{Isa, Layout};

use super::joined_rows::{Coming, JOINED, JoinedRows, Known};
use super::lanes::load_from_rows;
use super::shared::{Shared, aligned};
use super::sum::{max_of, sum_lanes, sum_of, totals};
use crate::body::{Elementwise, Source, compile_elementwise};
use crate::nest::{Cursor, Nest};

/// Elements per item of the pool.
const ITEM: usize = 1 << 14;

/// What is done to a row.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum RowNorm {
    /// `(x - mean) / sqrt(variance + eps)`.
    Layer {
        /// Added to the variance.
        eps: f64,
    },
    /// `x / sqrt(mean square + eps)`.
    Rms {
        /// Added to the mean square.
        eps: f64,
    },
    /// `exp(x - max) / sum`.
    Softmax,
}

impl RowNorm {
    /// What `op` does to a row.
    pub(super) fn of(op: &Op) -> Option<RowNorm> {
        match op {
            Op::LayerNorm(norm) => Some(RowNorm::Layer { eps: norm.eps }),
            Op::RmsNorm(norm) => Some(RowNorm::Rms { eps: norm.eps }),
            Op::Softmax(_) => Some(RowNorm::Softmax),
            _ => None,
        }
    }
}

/// A norm of every row of a value.
#[derive(Clone, Debug)]
pub struct Norm {
    isa: Isa,
    norm: RowNorm,
    result: Layout,
    /// From operands to the row that is normalized.
    prologue: Elementwise,
    /// From the normalized row (frontier 0) to the result.
    epilogue: Elementwise,
    /// Layout 0 is the result, then the prologue's leaves, then the epilogue's.
    nest: Nest,
    joined: JoinedRows,
}

impl Norm {
    /// Takes one norm with any elementwise code around it.
    pub fn select(site: &Site<'_>) -> Option<Norm> {
        let &[root] = &site.body.outputs[..] else { return None };
        let mut found = site.body.values().filter_map(|value| {
            let op = site.body.op(value)?;
            let axis = match op {
                Op::Softmax(softmax) => softmax.axis,
                _ => site.body.ty(value).rank().checked_sub(1)?,
            };
            Some((value, RowNorm::of(op)?, axis))
        });
        let (value, norm, axis): (ValueId, RowNorm, usize) = found.next()?;
        if found.next().is_some() || site.body.ty(value).shape() != site.result.shape {
            return None;
        }
        let input = site.body.node(value).args[0];
        let prologue = compile_elementwise(site.body, input, &[], site.operands)?.widened();
        let epilogue = compile_elementwise(site.body, root, &[value], site.operands)?;
        let mut layouts = vec![site.result];
        for leaf in prologue.leaves.iter().chain(&epilogue.leaves) {
            // The frontier is a row of scratch; it must not keep axes from being joined.
            let is_scratch = matches!(leaf.source, Source::Frontier(_));
            layouts.push(if is_scratch { site.result } else { &leaf.layout });
        }
        let nest = Nest::with_row(&layouts, axis)?;
        let joined = JoinedRows::new(&nest, JOINED);
        let result = site.result.clone();
        Some(Norm { isa: site.target.isa, norm, result, prologue, epilogue, nest, joined })
    }

    fn rows_per_item(&self) -> usize {
        (ITEM / self.nest.row_len()).max(1)
    }

    /// Bytes of the rows at a time in f32.
    fn row_bytes(&self) -> usize {
        aligned(4 * self.joined.elements())
    }

    fn program_bytes(&self) -> usize {
        let len = self.prologue.program.scratch_len().max(self.epilogue.program.scratch_len());
        aligned(4 * len)
    }

    /// What is read and its norm in f32, some of the result, copies of what rows share, and the programs' scratch.
    fn worker_bytes(&self) -> usize {
        3 * self.row_bytes() + self.joined.bytes() + self.program_bytes()
    }
}

impl KernelDef for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        let norm = match self.norm {
            RowNorm::Layer { .. } => "layer",
            RowNorm::Rms { .. } => "rms",
            RowNorm::Softmax => "softmax",
        };
        vec![("norm", Attr::Str(norm.to_owned()))]
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        threads * self.worker_bytes()
    }

    fn may_alias(&self, operand: usize) -> bool {
        // Whole rows are read before their first element is written.
        let reads = |code: &Elementwise| {
            code.leaves.iter().any(|leaf| leaf.source == Source::Operand(operand))
        };
        [&self.prologue, &self.epilogue]
            .iter()
            .all(|code| !reads(code) || code.may_alias(operand, &self.result))
            && (reads(&self.prologue) || reads(&self.epilogue))
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        let n_items = self.nest.n_rows().div_ceil(self.rows_per_item());
        launch.pool.run(n_items, &|item, worker| {
            dispatch(self.isa, Item { norm: self, shared, item, worker });
        });
    }
}

struct Item<'a> {
    norm: &'a Norm,
    shared: Shared<'a>,
    item: usize,
    worker: usize,
}

impl SimdJob for Item<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Item { norm, shared, item, worker } = self;
        let first = item * norm.rows_per_item();
        let last = norm.nest.n_rows().min(first + norm.rows_per_item());
        let mut known = [std::ptr::null(); MAX_SLOTS];
        norm.joined.each(
            &norm.nest,
            (first, last),
            #[inline(always)]
            |cursor, next, count| {
                // SAFETY: the caller of `KernelDef::run` promises buffers that hold the layouts, and
                // scratch with one part per worker.
                unsafe { rows(s, norm, shared, (cursor, next, count), &mut known, worker) };
            },
        );
    }
}

/// Makes `count` rows from the cursor's on, which join; after them come those from `next` on.
///
/// # Safety
/// The buffers of `shared` hold the layouts; the scratch has one part per worker, and there `known` says what
/// was copied.
#[inline(always)]
unsafe fn rows<S: Simd>(
    s: S,
    norm: &Norm,
    shared: Shared<'_>,
    (cursor, next, count): (&Cursor<'_>, &Cursor<'_>, usize),
    known: &mut Known,
    worker: usize,
) {
    let nest = &norm.nest;
    let n = nest.row_len();
    let size = norm.result.dtype.size();
    // SAFETY: positions of a nest lie within its layouts; parts of the scratch are disjoint.
    unsafe {
        let scratch = shared.scratch().add(worker * norm.worker_bytes());
        let computed = scratch.cast::<f32>();
        let normalized = scratch.add(norm.row_bytes()).cast::<f32>();
        let staged = scratch.add(2 * norm.row_bytes());
        let copies = scratch.add(3 * norm.row_bytes());
        let program_scratch = copies.add(norm.joined.bytes()).cast::<f32>();
        let mut slots = [SlotPtr { ptr: std::ptr::null(), stride: 0 }; MAX_SLOTS];
        let mut fill = |slots: &mut [SlotPtr; MAX_SLOTS], code: &Elementwise, base: usize| {
            for (i, leaf) in code.leaves.iter().enumerate() {
                slots[i] = match leaf.source {
                    Source::Frontier(_) => SlotPtr { ptr: normalized.cast(), stride: 1 },
                    Source::Operand(_) | Source::Constant(_) => {
                        let stride = nest.row_stride(base + i);
                        shared.slot(leaf, cursor.position(base + i), stride, normalized)
                    }
                };
            }
            let sizes = code.program.slots().iter().map(|dtype| dtype.size());
            norm.joined.repeat(base - 1, sizes, slots, copies, known);
        };
        fill(&mut slots, &norm.prologue, 1);
        let direct = norm.prologue.program.is_copy()
            && norm.prologue.program.slots() == [DType::F32]
            && slots[0].stride == 1;
        let mut coming = Coming::nothing();
        for (i, leaf) in norm.prologue.leaves.iter().enumerate() {
            let (position, stride) = (next.position(1 + i), nest.row_stride(1 + i));
            if position != cursor.position(1 + i) {
                let slot = shared.slot(leaf, position, stride, normalized);
                coming.add(slot, n * leaf.layout.dtype.size());
            }
        }
        let x = if direct {
            slots[0].ptr.cast::<f32>()
        } else {
            let program = &norm.prologue.program;
            program.run_row_in(s, count * n, &slots, computed.cast(), program_scratch);
            computed.cast_const()
        };
        let step = nest.row_stride(0);
        let dst = shared.result().add(cursor.position(0) * size);
        let is_plain = norm.epilogue.is_frontier_copy();
        let is_made = is_plain && norm.result.dtype == DType::F32 && step == 1;
        let y = if is_made { dst.cast() } else { normalized };
        for first in (0..count).step_by(S::LANES) {
            let batch = S::LANES.min(count - first);
            let (x, y) = (x.add(first * n), y.add(first * n));
            normalize(s, norm.norm, x, (batch, n), y, (&coming, first));
        }
        if is_made {
            return;
        }
        fill(&mut slots, &norm.epilogue, 1 + norm.prologue.leaves.len());
        let program = &norm.epilogue.program;
        if step == 1 {
            program.run_row_in(s, count * n, &slots, dst, program_scratch);
        } else {
            // Only rows that lie side by side join: this is one.
            program.run_row_in(s, n, &slots, staged, program_scratch);
            for i in 0..n {
                std::ptr::copy_nonoverlapping(staged.add(i * size), dst.add(i * step * size), size);
            }
        }
    }
}

/// What a row is normalized with: `(x - high - low) scale`. The mean is in two parts, so that one far above the
/// deviation costs no accuracy.
#[derive(Clone, Copy)]
pub(super) struct Moments {
    centered: bool,
    high: f32,
    low: f32,
    pub(super) scale: f32,
}

impl Moments {
    /// Those of `count` rows, at most [`Simd::LANES`], of `n` values: `x(row, i, count)` loads `count` of a row from
    /// `i` on. Without a mean unless `centered`.
    #[inline(always)]
    pub(super) fn of_rows<S: Simd>(
        s: S,
        count: usize,
        n: usize,
        x: impl Fn(usize, usize, usize) -> S::F,
        (centered, eps): (bool, f64),
    ) -> [Moments; MAX_LANES] {
        let mut moments = [Moments { centered, high: 0.0, low: 0.0, scale: 0.0 }; MAX_LANES];
        if centered {
            let sums = totals(
                s,
                count,
                #[inline(always)]
                |row| {
                    sum_lanes(
                        s,
                        n,
                        #[inline(always)]
                        |i, count| x(row, i, count),
                    )
                },
            );
            for (moments, sum) in moments.iter_mut().zip(sums).take(count) {
                let mean = sum / n as f64;
                moments.high = mean as f32;
                moments.low = (mean - f64::from(mean as f32)) as f32;
            }
        }
        let squares = totals(
            s,
            count,
            #[inline(always)]
            |row| {
                let of_row = moments[row];
                sum_lanes(
                    s,
                    n,
                    #[inline(always)]
                    |i, count| {
                        let d = of_row.center(s, x(row, i, count));
                        s.mul(d, d)
                    },
                )
            },
        );
        // Of these rows alone: divisions and roots of others would take longer than a row does.
        for (moments, squares) in moments.iter_mut().zip(squares).take(count) {
            moments.scale = (1.0 / (squares / n as f64 + eps).sqrt()) as f32;
        }
        moments
    }

    /// How far `x` is from the mean.
    #[inline(always)]
    fn center<S: Simd>(&self, s: S, x: S::F) -> S::F {
        if self.centered { s.sub(s.sub(x, s.splat(self.high)), s.splat(self.low)) } else { x }
    }

    /// The norm of `x`.
    #[inline(always)]
    pub(super) fn apply<S: Simd>(&self, s: S, x: S::F) -> S::F {
        s.mul(self.center(s, x), s.splat(self.scale))
    }
}

/// Writes the norms of `count` rows `x`, at most [`Simd::LANES`], to `y`; meanwhile the rows that come are asked for,
/// from `first` on.
///
/// # Safety
/// Both have `count` rows of `n` values, one after the other; they are the same or do not overlap.
#[inline(always)]
pub(super) unsafe fn normalize<S: Simd>(
    s: S,
    norm: RowNorm,
    x: *const f32,
    (count, n): (usize, usize),
    y: *mut f32,
    (coming, first): (&Coming, usize),
) {
    // SAFETY: passed on.
    unsafe {
        match norm {
            RowNorm::Layer { eps } | RowNorm::Rms { eps } => {
                let centered = matches!(norm, RowNorm::Layer { .. });
                let rows = load_from_rows(s, x, n);
                let moments = Moments::of_rows(s, count, n, rows, (centered, eps));
                for (row, moments) in moments.iter().enumerate().take(count) {
                    coming.ask(first + row);
                    each(
                        s,
                        x.add(row * n),
                        n,
                        y.add(row * n),
                        #[inline(always)]
                        |x| moments.apply(s, x),
                    );
                }
            }
            RowNorm::Softmax => {
                for row in 0..count {
                    softmax(s, x.add(row * n), n, y.add(row * n));
                }
            }
        }
    }
}

/// Writes the softmax of `x` to `y`.
///
/// # Safety
/// Both have `n` values; they are the same or do not overlap.
#[inline(always)]
unsafe fn softmax<S: Simd>(s: S, x: *const f32, n: usize, y: *mut f32) {
    // SAFETY: passed on.
    unsafe {
        let max = s.splat(max_of(s, x, n));
        each(
            s,
            x,
            n,
            y,
            #[inline(always)]
            |x| vec_math::exp(s, s.sub(x, max)),
        );
        let sum = sum_of(
            s,
            y.cast_const(),
            n,
            #[inline(always)]
            |y| y,
        );
        let scale = s.splat((1.0 / sum) as f32);
        each(
            s,
            y.cast_const(),
            n,
            y,
            #[inline(always)]
            |y| s.mul(y, scale),
        );
    }
}

/// `y[i] = f(x[i])`.
///
/// # Safety
/// Both have `n` values; they are the same or do not overlap.
#[inline(always)]
unsafe fn each<S: Simd>(s: S, x: *const f32, n: usize, y: *mut f32, f: impl Fn(S::F) -> S::F) {
    let mut i = 0;
    // SAFETY: lanes below n.
    unsafe {
        while i + S::LANES <= n {
            s.store(y.add(i), f(s.load(x.add(i))));
            i += S::LANES;
        }
        if i < n {
            s.store_n(y.add(i), f(s.load_n(x.add(i), n - i)), n - i);
        }
    }
}
