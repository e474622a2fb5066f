//! `norm_grad`: the gradient of `layer_norm` and `rms_norm` of rows, with elementwise code that makes its
//! operands and that is done to its result.
//!
//! One pass over memory: both rows are read (or computed) once, the norm is made again beside its
//! statistics in L1, and the epilogue (the residual's gradient) writes the result. Sums are compensated.
//! Roofline: memory bandwidth.

use ops::{Attr, DType, Op, ValueId};

use crate::kernel::{KernelDef, Launch, Site};
use crate::program::{MAX_SLOTS, SlotPtr};
use crate::simd::{Simd, SimdJob, dispatch};
use crate::{Isa, Layout};

use super::lanes::{each, load_from};
use super::norm::{RowNorm, normalize};
use super::shared::{Shared, aligned};
use super::sum::{sum_each, sum_of};
use crate::body::{Elementwise, Source, compile_elementwise};
use crate::nest::{Cursor, Nest};

/// Elements per item of the pool.
const ITEM: usize = 1 << 14;

/// The gradient of a norm of every row of a value.
#[derive(Clone, Debug)]
pub struct NormGrad {
    isa: Isa,
    /// With or without a mean.
    norm: RowNorm,
    result: Layout,
    /// From operands to the row that was normalized, and to the cotangent of its norm.
    operands: [Elementwise; 2],
    /// From the gradient (frontier 0) to the result.
    epilogue: Elementwise,
    /// Layout 0 is the result, then the leaves of both operands, then the epilogue's.
    nest: Nest,
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
        let eps = op.eps;
        let norm = if op.centered { RowNorm::Layer { eps } } else { RowNorm::Rms { eps } };
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
        let result = site.result.clone();
        Some(NormGrad { isa: site.target.isa, norm, result, operands, epilogue, nest })
    }

    fn rows_per_item(&self) -> usize {
        (ITEM / self.nest.row_len()).max(1)
    }

    /// Bytes of one row in f32.
    fn row_bytes(&self) -> usize {
        aligned(4 * self.nest.row_len())
    }

    fn codes(&self) -> impl Iterator<Item = &Elementwise> {
        self.operands.iter().chain([&self.epilogue])
    }

    /// Both operands' rows, the norm and the gradient in f32, one row of the result, and the programs' scratch.
    fn worker_bytes(&self) -> usize {
        let program = self.codes().map(|code| code.program.scratch_len()).max().unwrap_or(0);
        5 * self.row_bytes() + aligned(4 * program)
    }
}

impl KernelDef for NormGrad {
    fn name(&self) -> &'static str {
        "norm_grad"
    }

    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        let norm = if let RowNorm::Layer { .. } = self.norm { "layer" } else { "rms" };
        vec![("norm", Attr::Str(norm.to_owned()))]
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        threads * self.worker_bytes()
    }

    fn may_alias(&self, operand: usize) -> bool {
        // A whole row is read before its first element is written, but for elements of the same place.
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
        let mut cursor = kernel.nest.at(first);
        for _ in first..last {
            // SAFETY: the caller of `KernelDef::run` promises buffers that hold the layouts, and
            // scratch with one part per worker.
            unsafe { kernel.row(s, shared, &cursor, worker) };
            cursor.advance();
        }
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

    /// Makes one row.
    ///
    /// # Safety
    /// As [`KernelDef::run`].
    #[inline(always)]
    unsafe fn row<S: Simd>(&self, s: S, shared: Shared<'_>, cursor: &Cursor<'_>, worker: usize) {
        let n = self.nest.row_len();
        let size = self.result.dtype.size();
        // SAFETY: positions of a nest lie within its layouts; parts of the scratch are disjoint.
        unsafe {
            let scratch = shared.scratch().add(worker * self.worker_bytes());
            let part = |i: usize| scratch.add(i * self.row_bytes()).cast::<f32>();
            let (normed, by_x, staged, program_scratch) = (part(2), part(3), part(4), part(5));
            let mut rows = [std::ptr::null::<f32>(); 2];
            let mut base = 1;
            for (i, code) in self.operands.iter().enumerate() {
                let slots = self.slots(shared, code, cursor, base, std::ptr::null());
                let is_stored = code.program.is_copy() && code.program.slots() == [DType::F32];
                rows[i] = if is_stored && slots[0].stride == 1 {
                    slots[0].ptr.cast()
                } else {
                    code.program.run_row_in(s, n, &slots, part(i).cast(), program_scratch);
                    part(i).cast_const()
                };
                base += code.leaves.len();
            }
            let step = self.nest.row_stride(0);
            let dst = shared.result().add(cursor.position(0) * size);
            let is_plain = self.epilogue.is_frontier_copy() && self.result.dtype == DType::F32;
            if is_plain && step == 1 {
                by_row(s, self.norm, rows, n, normed, dst.cast());
                return;
            }
            by_row(s, self.norm, rows, n, normed, by_x);
            let slots = self.slots(shared, &self.epilogue, cursor, base, by_x);
            let program = &self.epilogue.program;
            if step == 1 {
                program.run_row_in(s, n, &slots, dst, program_scratch);
                return;
            }
            program.run_row_in(s, n, &slots, staged.cast(), program_scratch);
            for i in 0..n {
                let from = staged.cast::<u8>().add(i * size);
                std::ptr::copy_nonoverlapping(from, dst.add(i * step * size), size);
            }
        }
    }
}

/// Writes the gradient by `x`, whose norm has the cotangent `grad`, to `by_x`: `scale (grad - mean(grad) - y
/// mean(grad y))`. `y` is for the norm.
///
/// # Safety
/// All have `n` values; `by_x` may be `x` or `grad`, nothing else overlaps.
#[inline(always)]
unsafe fn by_row<S: Simd>(
    s: S,
    norm: RowNorm,
    [x, grad]: [*const f32; 2],
    n: usize,
    y: *mut f32,
    by_x: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let scale = normalize(s, norm, x, n, y);
        let (load_y, load_grad) = (load_from(s, y.cast_const()), load_from(s, grad));
        let along = sum_each(
            s,
            n,
            #[inline(always)]
            |i, count| s.mul(load_grad(i, count), load_y(i, count)),
        );
        let along = s.splat((along / n as f64) as f32);
        let mean = match norm {
            RowNorm::Layer { .. } => {
                let sum = sum_of(
                    s,
                    grad,
                    n,
                    #[inline(always)]
                    |grad| grad,
                );
                sum / n as f64
            }
            RowNorm::Rms { .. } | RowNorm::Softmax => 0.0,
        };
        // In two parts, so that a mean far above the deviation costs no accuracy.
        let high = s.splat(mean as f32);
        let low = s.splat((mean - f64::from(mean as f32)) as f32);
        each(
            n,
            S::LANES,
            #[inline(always)]
            |i, count| {
                let across = s.sub(s.sub(load_grad(i, count), high), low);
                let made = s.mul(s.neg_mul_add(load_y(i, count), along, across), scale);
                let to = by_x.add(i);
                if count == S::LANES { s.store(to, made) } else { s.store_n(to, made, count) }
            },
        );
    }
}
