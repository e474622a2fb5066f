//! The gradients of one (batch, head) pair.

use std::f64::consts::LOG2_E;

use crate::attention_site::{K, MASK, OUT, Q, V};
use crate::head_rows::HeadRows;
use crate::program::store;
use crate::simd::{Simd, SimdJob};

use super::attention::KEY_BLOCK;
use super::attention_grad::AttentionGrad;
use super::attention_grad_area::Area;
use super::attention_grad_finish::{ByScores, WeighAgain};
use super::attention_softmax::{LOWEST, Weigh};
use super::attention_tile::{Factors, Store, product};
use super::matmul_tile::Single;
use super::shared::Shared;
use super::transpose::transpose_in;

/// Positions in [`AttentionGrad::rows`].
const ROWS_Q: usize = 0;
const ROWS_K: usize = 1;
const ROWS_V: usize = 2;
const ROWS_OUT: usize = 3;
const ROWS_GRAD: usize = 4;

/// Pair `pair` of a run.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub(super) kernel: &'a AttentionGrad,
    pub(super) shared: Shared<'a>,
    pub(super) pair: usize,
    pub(super) worker: usize,
}

impl SimdJob for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Task { kernel, shared, pair, worker } = self;
        let (at, out_at) = (kernel.pairs.at(pair), kernel.out_pairs.at(pair));
        // SAFETY: the caller of `KernelDef::run` promises operands, result and scratch.
        unsafe {
            let mut pair = Pair {
                kernel,
                shared,
                area: Area::new(kernel, shared, worker),
                starts: [
                    at.position(Q),
                    at.position(K),
                    at.position(V),
                    out_at.position(Q),
                    out_at.position(K),
                ],
                mask_start: at.position(MASK),
                result_start: at.position(OUT),
                n_kept: 0,
            };
            pair.keep_keys();
            pair.read_keys(s);
            for start in (0..kernel.sq).step_by(kernel.block()) {
                let count = kernel.block().min(kernel.sq - start);
                let is_first = start == 0;
                let pair = &pair;
                // Without many registers there are no wider blocks, and no code for them.
                match count.div_ceil(S::LANES) {
                    1 => s.outline(Queries::<1> { pair, start, count, is_first }),
                    3 if S::REGISTERS == 32 => {
                        s.outline(Queries::<3> { pair, start, count, is_first });
                    }
                    4 if S::REGISTERS == 32 => {
                        s.outline(Queries::<4> { pair, start, count, is_first });
                    }
                    _ => s.outline(Queries::<2> { pair, start, count, is_first }),
                }
            }
            pair.write_keys(s);
        }
    }
}

/// What a block of queries adds, in a function of its own: `N` vectors of queries.
struct Queries<'a, const N: usize> {
    pair: &'a Pair<'a>,
    start: usize,
    count: usize,
    is_first: bool,
}

impl<const N: usize> SimdJob for Queries<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the caller of `KernelDef::run` promises operands, result and scratch.
        unsafe { self.pair.queries::<S, N>(s, self.start, self.count, self.is_first) }
    }
}

/// One head of one batch entry.
struct Pair<'a> {
    kernel: &'a AttentionGrad,
    shared: Shared<'a>,
    area: Area,
    /// First element of the rows of each operand.
    starts: [usize; 5],
    mask_start: usize,
    result_start: usize,
    n_kept: usize,
}

impl Pair<'_> {
    /// Lists the keys that take part.
    ///
    /// # Safety
    /// As [`crate::KernelDef::run`], like all that follow.
    unsafe fn keep_keys(&mut self) {
        let kept = self.area.kept;
        for key in 0..self.kernel.sk {
            let takes_part = match &self.kernel.mask {
                None => true,
                Some(mask) => {
                    let stride = mask.layout.strides[mask.layout.rank() - 1];
                    let flags = self.shared.operand(mask.operand);
                    // SAFETY: the mask has a flag for every key.
                    unsafe { *flags.add(self.mask_start + key * stride) != 0 }
                }
            };
            if takes_part {
                // SAFETY: `kept` has room for every key.
                unsafe { *kept.add(self.n_kept) = key as u32 };
                self.n_kept += 1;
            }
        }
    }

    /// Row `position` of an operand, widened, to `to`.
    ///
    /// # Safety
    /// See `keep_keys`; `to` has room for a row.
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, s: S, operand: usize, position: usize, to: *mut f32) {
        let rows: &HeadRows = &self.kernel.rows[operand];
        let at = self.starts[operand] + position * rows.seq_stride();
        // SAFETY: passed on; a row follows, so that no more than this one may be written.
        unsafe {
            rows.row(
                s,
                self.shared,
                (at, position),
                &[],
                self.area.made,
                #[inline(always)]
                |i, x, n| s.store_n(to.add(i), x, n),
            );
        }
    }

    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn read_keys<S: Simd>(&self, s: S) {
        let Area { keys, values, kept, .. } = self.area;
        let d = self.kernel.d;
        for i in 0..self.n_kept {
            // SAFETY: there is room for all keys.
            unsafe {
                let key = *kept.add(i) as usize;
                self.read(s, ROWS_K, key, keys.add(i * d));
                self.read(s, ROWS_V, key, values.add(i * d));
            }
        }
    }

    /// Rows `start..start + count` of an operand: transposed to `[D, lanes]`, and by groups of head dims.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn read_block<S: Simd>(
        &self,
        s: S,
        operand: usize,
        (start, count, lanes): (usize, usize, usize),
        transposed: *mut f32,
        grouped: Option<*mut f32>,
    ) {
        let (d, rows) = (self.kernel.d, self.area.rows);
        // SAFETY: the parts have room for a block.
        unsafe {
            for i in 0..count {
                self.read(s, operand, start + i, rows.add(i * d));
            }
            if count < lanes {
                for i in (0..d * lanes).step_by(S::LANES) {
                    s.store(transposed.add(i), s.splat(0.0));
                }
            }
            transpose_in(s, (count, d), rows, d, transposed, lanes);
            let Some(mut to) = grouped else { return };
            let mut first = 0;
            for vectors in self.kernel.groups() {
                for i in 0..count {
                    for v in 0..vectors {
                        let at = first + v * S::LANES;
                        let n = S::LANES.min(d - at);
                        s.store(to, s.load_n(rows.add(i * d + at), n));
                        to = to.add(S::LANES);
                    }
                }
                to = to.add((self.kernel.block() - count) * vectors * S::LANES);
                first += vectors * S::LANES;
            }
        }
    }

    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn queries<S: Simd, const N: usize>(
        &self,
        s: S,
        start: usize,
        count: usize,
        is_first: bool,
    ) {
        let AttentionGrad { d, scale, .. } = *self.kernel;
        let Area { keys, values, queries, grads, by_queries, weights, by_scores, .. } = self.area;
        let Area { query_rows, grad_rows, reference, sum, delta, by_keys, by_values, .. } =
            self.area;
        let lanes = N * S::LANES;
        let block = (start, count, lanes);
        // SAFETY: each part of the area has the sizes that `Area::layout` gives.
        unsafe {
            // The attention's result is needed for one sum per query only.
            self.read_block(s, ROWS_OUT, block, by_queries, None);
            self.read_block(s, ROWS_GRAD, block, grads, Some(grad_rows));
            for v in (0..lanes).step_by(S::LANES) {
                let mut products = s.splat(0.0);
                for i in 0..d {
                    let at = i * lanes + v;
                    products =
                        s.mul_add(s.load(by_queries.add(at)), s.load(grads.add(at)), products);
                }
                s.store(delta.add(v), products);
                s.store(reference.add(v), s.splat(LOWEST));
                s.store(sum.add(v), s.splat(0.0));
            }
            self.read_block(s, ROWS_Q, block, queries, Some(query_rows));
            if scale < 0.0 {
                for i in (0..d * lanes).step_by(S::LANES) {
                    s.store(queries.add(i), s.neg(s.load(queries.add(i))));
                }
            }
            let factor = (scale.abs() * LOG2_E) as f32;
            let scores = |first: usize| Factors {
                a: keys.add(first * d),
                a_stride: d,
                b: queries,
                terms: d,
                start: std::ptr::null(),
            };
            for first in (0..self.n_kept).step_by(KEY_BLOCK) {
                let n = KEY_BLOCK.min(self.n_kept - first);
                let weigh = Weigh {
                    arithmetic: Single,
                    factor,
                    bias: std::ptr::null(),
                    weights,
                    reference,
                    sum,
                    outputs: std::ptr::null_mut(),
                    output_rows: 0,
                };
                product::<S, _, _, N, false>(s, Single, scores(first), n, weigh);
            }
            for v in (0..lanes).step_by(S::LANES) {
                s.store(sum.add(v), s.div(s.splat(1.0), s.load(sum.add(v))));
            }
            for first in (0..self.n_kept).step_by(KEY_BLOCK) {
                let n = KEY_BLOCK.min(self.n_kept - first);
                let weigh = WeighAgain { factor, reference, scale: sum, weights };
                product::<S, _, _, N, false>(s, Single, scores(first), n, weigh);
                let by_weights = Factors { a: values.add(first * d), b: grads, ..scores(0) };
                let finish = ByScores { scale: scale as f32, weights, delta, by_scores };
                product::<S, _, _, N, false>(s, Single, by_weights, n, finish);
                let by_query = Factors {
                    a: keys.add(first * d),
                    a_stride: d,
                    b: by_scores,
                    terms: n,
                    start: if first == 0 { std::ptr::null() } else { by_queries },
                };
                product::<S, _, _, N, true>(s, Single, by_query, d, Store { to: by_queries });
                let block = Collect { count, lanes, first, n, is_first };
                self.collect(s, block, by_scores, query_rows, by_keys);
                self.collect(s, block, weights, grad_rows, by_values);
            }
            if self.n_kept == 0 {
                for i in (0..d * lanes).step_by(S::LANES) {
                    s.store(by_queries.add(i), s.splat(0.0));
                }
            }
            let rows = self.area.rows;
            transpose_in(s, (d, count), by_queries, lanes, rows, d);
            for i in 0..count {
                self.write(s, start + i, rows.add(i * d));
            }
        }
    }

    /// Adds to rows of keys or values what a block of queries has for them: `weights` `[keys, lanes]` times
    /// `rows`, a group of head dims at a time.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn collect<S: Simd>(
        &self,
        s: S,
        Collect { count, lanes, first, n, is_first }: Collect,
        weights: *const f32,
        mut rows: *const f32,
        mut to: *mut f32,
    ) {
        for vectors in self.kernel.groups() {
            let width = vectors * S::LANES;
            // SAFETY: each group has room for all keys, and for a block of queries.
            unsafe {
                let to_rows = to.add(first * width);
                let factors = Factors {
                    a: weights,
                    a_stride: lanes,
                    b: rows,
                    terms: count,
                    start: if is_first { std::ptr::null() } else { to_rows },
                };
                let store = Store { to: to_rows };
                match vectors {
                    1 => product::<S, _, _, 1, false>(s, Single, factors, n, store),
                    3 if S::REGISTERS == 32 => {
                        product::<S, _, _, 3, false>(s, Single, factors, n, store);
                    }
                    4 if S::REGISTERS == 32 => {
                        product::<S, _, _, 4, false>(s, Single, factors, n, store);
                    }
                    _ => product::<S, _, _, 2, false>(s, Single, factors, n, store),
                }
                rows = rows.add(self.kernel.block() * width);
                to = to.add(self.kernel.sk * width);
            }
        }
    }

    /// Writes row `position` of the result.
    ///
    /// # Safety
    /// See `keep_keys`; `row` has a row.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, s: S, position: usize, row: *const f32) {
        let result = &self.kernel.result;
        let stride = result.strides[result.rank() - 3];
        let size = result.dtype.size();
        // SAFETY: passed on.
        unsafe {
            let to = self.shared.result().add((self.result_start + position * stride) * size);
            store(s, result.dtype, row, self.kernel.d, to);
        }
    }

    /// Writes the rows of keys and values, zeros where a key takes no part.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn write_keys<S: Simd>(&self, s: S) {
        let AttentionGrad { sq, sk, d, .. } = *self.kernel;
        let Area { by_keys, by_values, kept, rows, .. } = self.area;
        for (part, sums) in [(0, by_keys), (1, by_values)] {
            let mut next = 0;
            for key in 0..sk {
                // SAFETY: there are sums for all kept keys, in whole vectors; `rows` has room for a row.
                unsafe {
                    let is_kept = next < self.n_kept && *kept.add(next) as usize == key;
                    let mut group = sums;
                    let mut first = 0;
                    for vectors in self.kernel.groups() {
                        let width = vectors * S::LANES;
                        for at in (0..width.min(d - first)).step_by(S::LANES) {
                            let x = if is_kept {
                                s.load(group.add(next * width + at))
                            } else {
                                s.splat(0.0)
                            };
                            let n = S::LANES.min(d - first - at);
                            s.store_n(rows.add(first + at), x, n);
                        }
                        group = group.add(sk * width);
                        first += width;
                    }
                    self.write(s, sq + part * sk + key, rows);
                    next += usize::from(is_kept);
                }
            }
        }
    }
}

/// Which queries and keys are collected.
#[derive(Clone, Copy)]
struct Collect {
    /// Queries.
    count: usize,
    /// Step from key to key in the weights.
    lanes: usize,
    /// The first key, and how many.
    first: usize,
    n: usize,
    /// Whether nothing was collected before.
    is_first: bool,
}
