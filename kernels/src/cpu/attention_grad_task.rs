//! One task of the gradients of attention: some (batch, head) pairs, one after the other, and the six
//! products of each block of queries.

use std::f64::consts::LOG2_E;

use crate::attention_site::{K, MASK, OUT, Q, V};
use crate::nest::Cursor;
use crate::simd::{MAX_LANES, Simd, SimdJob, TileSession};

use super::attention::KEY_BLOCK;
use super::attention_grad::AttentionGrad;
use super::attention_grad_area::Area;
use super::attention_grad_finish::{ByScores, WeighAgain};
use super::attention_grad_rows::{Pair, ROWS_GRAD, ROWS_K, ROWS_OUT, ROWS_Q, ROWS_V};
use super::attention_softmax::{LOWEST, Packed, Weigh};
use super::attention_tile::{Factors, Store, product};
use super::matmul_tile::{Arithmetic, InTiles, Single};
use super::shared::Shared;
use super::transpose::transpose_in;
use super::words::Words;

/// Item `item` of a run.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub(super) kernel: &'a AttentionGrad,
    pub(super) shared: Shared<'a>,
    pub(super) item: usize,
    pub(super) worker: usize,
}

impl SimdJob for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.kernel.words {
            // Products of pairs come with the longest vectors: there is no code for others.
            Words::Bf16Pairs(dot) if const { S::LANES == MAX_LANES } => {
                let arithmetic = InTiles { dot, session: std::ptr::null_mut() };
                dot.outline(s, TaskOf { task: self, arithmetic });
            }
            Words::Bf16Tiles(tiles) if const { S::LANES == MAX_LANES } => {
                let mut session = TileSession::begin(tiles);
                let arithmetic = InTiles { dot: tiles.dot(), session: &raw mut session };
                arithmetic.outline(s, TaskOf { task: self, arithmetic });
            }
            _ => Single.outline(s, TaskOf { task: self, arithmetic: Single }),
        }
    }
}

/// A task, its words known.
struct TaskOf<'a, A> {
    task: Task<'a>,
    arithmetic: A,
}

impl<A: Packed> SimdJob for TaskOf<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let TaskOf { task: Task { kernel, shared, item, worker }, arithmetic } = self;
        let first_pair = item * kernel.task_pairs();
        let last_pair = kernel.pairs.n_rows().min(first_pair + kernel.task_pairs());
        let (mut at, mut out_at) = (kernel.pairs.at(first_pair), kernel.out_pairs.at(first_pair));
        // SAFETY: the caller of `KernelDef::run` promises operands, result and scratch.
        unsafe {
            let area = Area::new(kernel, shared, worker);
            for index in first_pair..last_pair {
                let starts = |at: &Cursor<'_>, out_at: &Cursor<'_>| {
                    let [q, k, v] = [Q, K, V].map(|layout| at.position(layout));
                    [q, k, v, out_at.position(Q), out_at.position(K)]
                };
                let mut pair = Pair {
                    kernel,
                    arithmetic,
                    shared,
                    area,
                    starts: starts(&at, &out_at),
                    next: None,
                    mask_start: at.position(MASK),
                    result_start: at.position(OUT),
                    n_kept: 0,
                };
                at.advance();
                out_at.advance();
                if index + 1 < last_pair && kernel.looks_ahead() {
                    pair.next = Some(starts(&at, &out_at));
                }
                pair.keep_keys();
                pair.prefetch_next(ROWS_K);
                pair.prefetch_next(ROWS_V);
                pair.read_keys(s);
                for start in (0..kernel.sq).step_by(kernel.block()) {
                    let count = kernel.block().min(kernel.sq - start);
                    let pair = &pair;
                    // Without many registers there are no wider blocks, and no code for them.
                    match count.div_ceil(S::LANES) {
                        1 => arithmetic.outline(s, Queries::<A, 1> { pair, start, count }),
                        3 if const { S::REGISTERS == 32 } => {
                            arithmetic.outline(s, Queries::<A, 3> { pair, start, count });
                        }
                        4 if const { S::REGISTERS == 32 } => {
                            arithmetic.outline(s, Queries::<A, 4> { pair, start, count });
                        }
                        _ => arithmetic.outline(s, Queries::<A, 2> { pair, start, count }),
                    }
                }
                pair.write_keys(s);
            }
        }
    }
}

/// What a block of queries adds, in a function of its own: `N` vectors of queries.
struct Queries<'a, A, const N: usize> {
    pair: &'a Pair<'a, A>,
    start: usize,
    count: usize,
}

impl<A: Packed, const N: usize> SimdJob for Queries<'_, A, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the caller of `KernelDef::run` promises operands, result and scratch.
        unsafe { self.pair.queries::<S, N>(s, self.start, self.count) }
    }
}

impl<A: Packed> Pair<'_, A> {
    /// Gradients of queries `start..start + count`, in `N` vectors, and what they add to those of keys and
    /// values.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn queries<S: Simd, const N: usize>(&self, s: S, start: usize, count: usize) {
        let AttentionGrad { sq, sk, d, scale, .. } = *self.kernel;
        let Area { keys, values, key_pairs, queries, grads, by_queries, raw, .. } = self.area;
        let Area { query_rows, grad_rows, reference, sum, by_keys, by_values, .. } = self.area;
        let Area { delta, by_scores, by_score_rows, rows, .. } = self.area;
        let arithmetic = self.arithmetic;
        let lanes = N * S::LANES;
        let (words, depth) = (self.kernel.words, self.kernel.depth());
        let block = (start, count, lanes);
        let is_first = start == 0;
        // SAFETY: each part of the area has the sizes that `Area::layout` gives.
        unsafe {
            self.prefetch_result(start..start + count);
            if start + count == sq && self.kernel.writes_ahead() {
                self.prefetch_result(sq..sq + 2 * sk);
            }
            // The attention's result is needed for one sum per query only.
            self.read_block(s, ROWS_OUT, block, by_queries, None);
            self.read_block(s, ROWS_GRAD, block, grads, Some(grad_rows));
            let mut products = [s.splat(0.0); N];
            for i in 0..d.div_ceil(A::ELEMENTS) {
                for (v, products) in products.iter_mut().enumerate() {
                    let at = i * lanes + v * S::LANES;
                    let (out, grad) = (s.load(by_queries.add(at)), s.load(grads.add(at)));
                    *products = arithmetic.multiply_add(s, out, grad, *products);
                }
            }
            for (v, &products) in products.iter().enumerate() {
                let v = v * S::LANES;
                s.store(delta.add(v), products);
                s.store(reference.add(v), s.splat(LOWEST));
                s.store(sum.add(v), s.splat(0.0));
            }
            self.read_block(s, ROWS_Q, block, queries, Some(query_rows));
            if scale < 0.0 {
                for i in (0..depth * lanes).step_by(S::LANES) {
                    let x = s.load(queries.add(i));
                    s.store(queries.add(i), s.xor(x, s.splat_bits(A::SIGNS)));
                }
            }
            if is_first {
                self.prefetch_next(ROWS_Q);
            }
            let factor = (scale.abs() * LOG2_E) as f32;
            let scores = |first: usize| Factors {
                a: keys.add(first * depth),
                a_stride: depth,
                b: queries,
                terms: depth,
                start: std::ptr::null(),
            };
            let keeps_weights = self.kernel.keeps_weights();
            let weigh = Weigh {
                arithmetic,
                kept: Single,
                factor,
                bias: std::ptr::null(),
                weights: if keeps_weights { raw } else { std::ptr::null_mut() },
                reference,
                sum,
                outputs: std::ptr::null_mut(),
                output_rows: 0,
            };
            product::<S, _, _, N, false>(s, arithmetic, scores(0), self.n_kept, weigh);
            for v in (0..lanes).step_by(S::LANES) {
                s.store(sum.add(v), s.div(s.splat(1.0), s.load(sum.add(v))));
            }
            if is_first {
                self.prefetch_next(ROWS_OUT);
            }
            for first in (0..self.n_kept).step_by(KEY_BLOCK) {
                let n = KEY_BLOCK.min(self.n_kept - first);
                let raw = if keeps_weights {
                    raw.add(first * lanes)
                } else {
                    let weigh = WeighAgain { arithmetic, factor, reference, weights: raw };
                    product::<S, _, _, N, false>(s, arithmetic, scores(first), n, weigh);
                    raw
                };
                let weights = if A::ELEMENTS == 1 { raw } else { self.area.weights };
                let by_weights = Factors { a: values.add(first * depth), b: grads, ..scores(0) };
                let finish = ByScores {
                    arithmetic,
                    scale: scale as f32,
                    raw,
                    normalizer: sum,
                    weights,
                    delta,
                    by_scores,
                    by_score_rows,
                };
                product::<S, _, _, N, false>(s, arithmetic, by_weights, n, finish);
                let terms = words.padded(n.div_ceil(A::ELEMENTS));
                for i in (n.div_ceil(A::ELEMENTS) * lanes..terms * lanes).step_by(S::LANES) {
                    s.store(by_scores.add(i), s.splat(0.0));
                }
                let word = first / A::ELEMENTS;
                let (a, a_stride) = if words.are_tiles() {
                    (key_pairs.add(word), self.kernel.key_stride())
                } else {
                    (key_pairs.add(word * d), d)
                };
                let by_query = Factors {
                    a,
                    a_stride,
                    b: by_scores,
                    terms,
                    start: if first == 0 { std::ptr::null() } else { by_queries },
                };
                product::<S, _, _, N, true>(s, arithmetic, by_query, d, Store { to: by_queries });
                let block = Collect { count, lanes, first, n, is_first };
                self.collect(s, block, by_score_rows, query_rows, by_keys);
                self.collect(s, block, weights, grad_rows, by_values);
            }
            if self.n_kept == 0 {
                for i in (0..d * lanes).step_by(S::LANES) {
                    s.store(by_queries.add(i), s.splat(0.0));
                }
            }
            if is_first {
                self.prefetch_next(ROWS_GRAD);
            }
            transpose_in(s, (d, count), by_queries, lanes, rows, d);
            for i in 0..count {
                self.write(s, start + i, rows.add(i * d));
            }
        }
    }

    /// Adds to rows of keys or values what a block of queries has for them: `weights` `[keys, lanes]` times
    /// `rows`, both in words of queries, a group of head dims at a time.
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
        let arithmetic = self.arithmetic;
        for vectors in self.kernel.groups() {
            let width = vectors * S::LANES;
            // SAFETY: each group has room for all keys, and for a block of queries.
            unsafe {
                let to_rows = to.add(first * width);
                let factors = Factors {
                    a: weights,
                    a_stride: lanes / A::ELEMENTS,
                    b: rows,
                    terms: count.div_ceil(A::ELEMENTS),
                    start: if is_first { std::ptr::null() } else { to_rows },
                };
                let store = Store { to: to_rows };
                match vectors {
                    1 => product::<S, _, _, 1, false>(s, arithmetic, factors, n, store),
                    3 if const { S::REGISTERS == 32 } => {
                        product::<S, _, _, 3, false>(s, arithmetic, factors, n, store);
                    }
                    4 if const { S::REGISTERS == 32 } => {
                        product::<S, _, _, 4, false>(s, arithmetic, factors, n, store);
                    }
                    _ => product::<S, _, _, 2, false>(s, arithmetic, factors, n, store),
                }
                rows = rows.add(self.kernel.block() / A::ELEMENTS * width);
                to = to.add(self.kernel.sk * width);
            }
        }
    }
}

/// Which queries and keys are collected.
#[derive(Clone, Copy)]
struct Collect {
    /// Queries.
    count: usize,
    /// Lanes of a key's weights.
    lanes: usize,
    /// The first key, and how many.
    first: usize,
    n: usize,
    /// Whether nothing was collected before.
    is_first: bool,
}
