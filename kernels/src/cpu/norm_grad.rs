//! `norm_grad`: the gradient of `layer_norm` and `rms_norm` of rows, with elementwise code that makes its
//! operands and that is done to its result.
//!
//! One pass over memory: both rows are read (or computed) once, the norm is made again from its statistics
//! wherever it is needed, and the epilogue (the residual's gradient) writes the result. Short rows, as those of
//! heads, run through the code around several as one. Sums are compensated. Roofline: memory bandwidth.

use ops::{Attr, DType, Op, ValueId};

use crate::kernel::{KernelDef, Launch, Site};
use crate::program::{MAX_SLOTS, SlotPtr};
use crate::simd::{MAX_LANES, Simd, SimdJob, dispatch};
use crate::{Isa, Layout};

use super::joined_rows::{Coming, JOINED, JoinedRows, Known};
use super::lanes::{each, load_from_rows};
use super::norm::Moments;
use super::shared::{Shared, aligned};
use super::sum::{sum_lanes, totals};
use crate::body::{Elementwise, Source, compile_elementwise};
use crate::nest::{Cursor, Nest};

/// Elements per item of the pool.
const ITEM: usize = 1 << 14;

/// The gradient of a norm of every row of a value.
#[derive(Clone, Debug)]
pub struct NormGrad {
    isa: Isa,
    /// Whether the norm has a mean.
    centered: bool,
    eps: f64,
    result: Layout,
    /// From operands to the row that was normalized, and to the cotangent of its norm.
    operands: [Elementwise; 2],
    /// From the gradient (frontier 0) to the result.
    epilogue: Elementwise,
    /// Layout 0 is the result, then the leaves of both operands, then the epilogue's.
    nest: Nest,
    joined: JoinedRows,
}

impl NormGrad {
    /// Takes one `norm_grad` with any elementwise code around it.
    pub fn select(site: &Site<'_>) -> Option<NormGrad> {
        let &[root] = &site.body.outputs[..] else { return None };
        let mut found = site.body.values().filter_map(|value| match site.body.op(value)? {
            Op::NormGrad(op) => Some((value, *op)),
            _ => None,
        });
        let (value, op) = found.next()?;
        if found.next().is_some() || site.body.ty(value).shape() != site.result.shape {
            return None;
        }
        let ops::defs::norm_grad::NormGrad { centered, eps } = op;
        let operand =
            |arg: ValueId| Some(compile_elementwise(site.body, arg, &[], site.operands)?.widened());
        let args = &site.body.node(value).args;
        let operands = [operand(args[0])?, operand(args[1])?];
        let epilogue = compile_elementwise(site.body, root, &[value], site.operands)?;
        let mut layouts = vec![site.result];
        for leaf in operands.iter().chain([&epilogue]).flat_map(|code| &code.leaves) {
            // The frontier is a row of scratch; it must not keep axes from being joined.
            let is_scratch = matches!(leaf.source, Source::Frontier(_));
            layouts.push(if is_scratch { site.result } else { &leaf.layout });
        }
        let nest = Nest::with_row(&layouts, site.result.rank() - 1)?;
        let (isa, result) = (site.target.isa, site.result.clone());
        let joined = JoinedRows::new(&nest, JOINED);
        Some(NormGrad { isa, centered, eps, result, operands, epilogue, nest, joined })
    }

    fn rows_per_item(&self) -> usize {
        (ITEM / self.nest.row_len()).max(1)
    }

    /// Bytes of the rows at a time in f32.
    fn row_bytes(&self) -> usize {
        aligned(4 * self.joined.elements())
    }

    fn codes(&self) -> impl Iterator<Item = &Elementwise> {
        self.operands.iter().chain([&self.epilogue])
    }

    /// Both operands' rows and the gradient in f32, some of the result, copies of what rows share, and the
    /// programs' scratch.
    fn worker_bytes(&self) -> usize {
        let program = self.codes().map(|code| code.program.scratch_len()).max().unwrap_or(0);
        4 * self.row_bytes() + self.joined.bytes() + aligned(4 * program)
    }
}

impl KernelDef for NormGrad {
    fn name(&self) -> &'static str {
        "norm_grad"
    }

    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        let norm = if self.centered { "layer" } else { "rms" };
        vec![("norm", Attr::Str(norm.to_owned()))]
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        threads * self.worker_bytes()
    }

    fn may_alias(&self, operand: usize) -> bool {
        // Whole rows are read before their first element is written, but for elements of the same place.
        let reads = |code: &&Elementwise| {
            code.leaves.iter().any(|leaf| leaf.source == Source::Operand(operand))
        };
        self.codes().any(|code| reads(&code))
            && self.codes().filter(reads).all(|code| code.may_alias(operand, &self.result))
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        let n_items = self.nest.n_rows().div_ceil(self.rows_per_item());
        launch.pool.run(n_items, &|item, worker| {
            dispatch(self.isa, Item { kernel: self, shared, item, worker });
        });
    }
}

struct Item<'a> {
    kernel: &'a NormGrad,
    shared: Shared<'a>,
    item: usize,
    worker: usize,
}

impl SimdJob for Item<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Item { kernel, shared, item, worker } = self;
        let first = item * kernel.rows_per_item();
        let last = kernel.nest.n_rows().min(first + kernel.rows_per_item());
        let mut known = [std::ptr::null(); MAX_SLOTS];
        kernel.joined.each(
            &kernel.nest,
            (first, last),
            #[inline(always)]
            |cursor, next, count| {
                // SAFETY: the caller of `KernelDef::run` promises buffers that hold the layouts, and
                // scratch with one part per worker.
                unsafe { kernel.rows(s, shared, (cursor, next, count), &mut known, worker) };
            },
        );
    }
}

impl NormGrad {
    /// The slots of `code`, whose leaves are layouts from `base` on.
    ///
    /// # Safety
    /// As [`KernelDef::run`]; `frontier` has the row if the code reads it.
    #[inline(always)]
    unsafe fn slots(
        &self,
        shared: Shared<'_>,
        code: &Elementwise,
        cursor: &Cursor<'_>,
        base: usize,
        frontier: *const f32,
    ) -> [SlotPtr; MAX_SLOTS] {
        let mut slots = [SlotPtr { ptr: std::ptr::null(), stride: 0 }; MAX_SLOTS];
        for (i, leaf) in code.leaves.iter().enumerate() {
            slots[i] = match leaf.source {
                Source::Frontier(_) => SlotPtr { ptr: frontier.cast(), stride: 1 },
                Source::Operand(_) | Source::Constant(_) => {
                    let stride = self.nest.row_stride(base + i);
                    // SAFETY: positions of a nest lie within its layouts.
                    unsafe { shared.slot(leaf, cursor.position(base + i), stride, frontier) }
                }
            };
        }
        slots
    }

    /// Makes `count` rows from the cursor's on, which join; after them come those from `next` on.
    ///
    /// # Safety
    /// As [`KernelDef::run`]; `known` says what was copied to the worker's scratch.
    #[inline(always)]
    unsafe fn rows<S: Simd>(
        &self,
        s: S,
        shared: Shared<'_>,
        (cursor, next, count): (&Cursor<'_>, &Cursor<'_>, usize),
        known: &mut Known,
        worker: usize,
    ) {
        let n = self.nest.row_len();
        let size = self.result.dtype.size();
        // SAFETY: positions of a nest lie within its layouts; parts of the scratch are disjoint.
        unsafe {
            let scratch = shared.scratch().add(worker * self.worker_bytes());
            let part = |i: usize| scratch.add(i * self.row_bytes()).cast::<f32>();
            let (by_x, staged, copies) = (part(2), part(3), part(4).cast::<u8>());
            let program_scratch = copies.add(self.joined.bytes()).cast::<f32>();
            let mut slots = |code: &Elementwise, base: usize, frontier: *const f32| {
                let mut slots = self.slots(shared, code, cursor, base, frontier);
                let sizes = code.program.slots().iter().map(|dtype| dtype.size());
                self.joined.repeat(base - 1, sizes, &mut slots, copies, known);
                slots
            };
            let mut operands = [std::ptr::null::<f32>(); 2];
            let mut coming = Coming::nothing();
            let mut base = 1;
            for (i, code) in self.operands.iter().enumerate() {
                let slots = slots(code, base, std::ptr::null());
                let leaves = base..base + code.leaves.len();
                let coming_slots = self.slots(shared, code, next, base, std::ptr::null());
                for (leaf, slot) in leaves.zip(coming_slots) {
                    if cursor.position(leaf) != next.position(leaf) {
                        coming.add(slot, n * code.program.slots()[leaf - base].size());
                    }
                }
                let is_stored = code.program.is_copy() && code.program.slots() == [DType::F32];
                operands[i] = if is_stored && slots[0].stride == 1 {
                    slots[0].ptr.cast()
                } else {
                    let to = part(i);
                    code.program.run_row_in(s, count * n, &slots, to.cast(), program_scratch);
                    to.cast_const()
                };
                base += code.leaves.len();
            }
            let step = self.nest.row_stride(0);
            let dst = shared.result().add(cursor.position(0) * size);
            let is_plain = self.epilogue.is_frontier_copy() && self.result.dtype == DType::F32;
            let is_made = is_plain && step == 1;
            let to = if is_made { dst.cast() } else { by_x };
            for first in (0..count).step_by(S::LANES) {
                let at = first * n;
                let batch = S::LANES.min(count - first);
                let operands = operands.map(|x| x.add(at));
                self.by_rows(s, operands, (batch, n), to.add(at), (&coming, first));
            }
            if is_made {
                return;
            }
            let slots = slots(&self.epilogue, base, by_x);
            let program = &self.epilogue.program;
            if step == 1 {
                program.run_row_in(s, count * n, &slots, dst, program_scratch);
                return;
            }
            // Only rows that lie side by side join: this is one.
            program.run_row_in(s, n, &slots, staged.cast(), program_scratch);
            for i in 0..n {
                let from = staged.cast::<u8>().add(i * size);
                std::ptr::copy_nonoverlapping(from, dst.add(i * step * size), size);
            }
        }
    }

    /// Writes the gradients by `count` rows `x`, whose norms `y` have the cotangents `grad`, to `by_x`:
    /// `scale (grad - mean(grad) - y mean(grad y))`. Each step is taken by all rows before the next: what a row
    /// waits for takes longer than what it computes. Meanwhile the rows that come are asked for, from `first` on.
    ///
    /// # Safety
    /// All have `count` rows of `n` values, one after the other; `count` is at most [`Simd::LANES`]; `by_x` may be
    /// `x` or `grad`, nothing else overlaps.
    #[inline(always)]
    unsafe fn by_rows<S: Simd>(
        &self,
        s: S,
        [x, grad]: [*const f32; 2],
        (count, n): (usize, usize),
        by_x: *mut f32,
        (coming, first): (&Coming, usize),
    ) {
        // SAFETY: the caller's promise.
        let (x, grad) = unsafe { (load_from_rows(s, x, n), load_from_rows(s, grad, n)) };
        let moments = Moments::of_rows(s, count, n, x, (self.centered, self.eps));
        // The means of `grad y` and of `grad`, the latter in two parts, so that a mean far above the deviation
        // costs no accuracy.
        let along = totals(
            s,
            count,
            #[inline(always)]
            |row| {
                let moments = moments[row];
                sum_lanes(
                    s,
                    n,
                    #[inline(always)]
                    |i, count| s.mul(grad(row, i, count), moments.apply(s, x(row, i, count))),
                )
            },
        );
        let mut sums = [0.0; MAX_LANES];
        if self.centered {
            sums = totals(
                s,
                count,
                #[inline(always)]
                |row| {
                    sum_lanes(
                        s,
                        n,
                        #[inline(always)]
                        |i, count| grad(row, i, count),
                    )
                },
            );
        }
        let mut means = [[0f32; 3]; MAX_LANES];
        for (means, (along, sum)) in means.iter_mut().zip(along.into_iter().zip(sums)).take(count) {
            let mean = sum / n as f64;
            let low = (mean - f64::from(mean as f32)) as f32;
            *means = [(along / n as f64) as f32, mean as f32, low];
        }
        for (row, (means, moments)) in means.iter().zip(&moments).enumerate().take(count) {
            let [along, high, low] = *means;
            let (along, high, low) = (s.splat(along), s.splat(high), s.splat(low));
            let scale = s.splat(moments.scale);
            coming.ask(first + row);
            each(
                n,
                S::LANES,
                #[inline(always)]
                |i, count| {
                    let across = s.sub(s.sub(grad(row, i, count), high), low);
                    let y = moments.apply(s, x(row, i, count));
                    let made = s.mul(s.neg_mul_add(y, along, across), scale);
                    // SAFETY: the caller's promise.
                    unsafe {
                        let to = by_x.add(row * n + i);
                        if count == S::LANES {
                            s.store(to, made);
                        } else {
                            s.store_n(to, made, count);
                        }
                    }
                },
            );
        }
    }
}
