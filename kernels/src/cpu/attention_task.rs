//! One task of attention: some query blocks of one (batch, head) pair, or all of several pairs.

use std::f64::consts::LOG2_E;

use ops::DType;

use crate::program::store;
use crate::simd::{MAX_LANES, Simd, SimdJob, TileSession};

use super::attention::{Ahead, Attention, KEY_BLOCK, table};
use super::attention_rows::padded;
use super::attention_softmax::{Accumulate, LOWEST, Packed, Weigh};
use super::attention_tile::{Factors, Store, product};
use super::matmul_tile::{Arithmetic, InTiles, Single};
use super::shared::{Shared, aligned};
use super::transpose::transpose_in;
use super::words::Words;
use crate::attention_site::{BIAS, K, MASK, OUT, Q, V};
use crate::head_rows::MAX_TABLES;

/// Words of head dims at a time, so that a block's queries stay in the first-level cache.
const TERMS: usize = 128;

/// A worker's scratch.
#[derive(Clone, Copy)]
pub(super) struct Area {
    /// `[packed_keys, D]` in words.
    pub(super) keys: *mut f32,
    /// `[packed_keys, D]` in words of keys; for tile registers `[D, packed_keys]`, `value_stride` words apart.
    pub(super) values: *mut f32,
    /// `[D, block]` in words: queries, transposed.
    pub(super) queries: *mut f32,
    /// `[KEY_BLOCK, block]`: sums of the head dims so far, where there is more than one part.
    pub(super) partial: *mut f32,
    /// `[KEY_BLOCK, block]`: the bias, where there is one.
    pub(super) bias: *mut f32,
    /// `[KEY_BLOCK, block]` in words of keys.
    pub(super) weights: *mut f32,
    /// `[D, block]`: outputs so far.
    pub(super) outputs: *mut f32,
    /// `[block]` each.
    pub(super) reference: *mut f32,
    pub(super) sum: *mut f32,
    /// `[block, D]` or `[block, KEY_BLOCK]`: rows of queries, bias or outputs.
    pub(super) rows: *mut f32,
    /// `[D]`, whole vectors: a row between two passes.
    pub(super) made: *mut f32,
    /// `[2, D]`, whole vectors: rows on their way into words of pairs.
    pub(super) pair: *mut f32,
    /// `[Sk]`: which keys take part.
    pub(super) kept: *mut u32,
}

impl Area {
    /// Offsets of the parts, in the order of the fields, and the size of all.
    fn layout(attention: &Attention) -> ([usize; 13], usize) {
        let (d, block) = (attention.d, attention.block());
        let elements = attention.words.depths();
        let packed = attention.packed_keys();
        let depth = attention.depth();
        let scores = KEY_BLOCK * block;
        let lens = [
            packed * depth,
            if attention.words.are_tiles() {
                d * attention.value_stride()
            } else {
                packed.div_ceil(elements) * d
            },
            depth * block,
            if depth > TERMS { scores } else { 0 },
            if attention.bias.is_some() { scores } else { 0 },
            scores.div_ceil(elements),
            d * block,
            block,
            block,
            d.max(depth).max(KEY_BLOCK) * block,
            padded(d),
            2 * padded(d),
            attention.sk,
        ];
        let mut offsets = [0; 13];
        let mut end = 0;
        for (offset, len) in offsets.iter_mut().zip(lens) {
            *offset = end;
            end += aligned(4 * len);
        }
        (offsets, end)
    }

    /// # Safety
    /// The scratch has parts for more than `worker` workers.
    unsafe fn new(attention: &Attention, shared: Shared<'_>, worker: usize) -> Area {
        let (offsets, bytes) = Area::layout(attention);
        // SAFETY: offsets are below `bytes`.
        let part = |i: usize| unsafe {
            shared.scratch().add(attention.table_bytes() + worker * bytes + offsets[i])
        };
        Area {
            keys: part(0).cast(),
            values: part(1).cast(),
            queries: part(2).cast(),
            partial: part(3).cast(),
            bias: part(4).cast(),
            weights: part(5).cast(),
            outputs: part(6).cast(),
            reference: part(7).cast(),
            sum: part(8).cast(),
            rows: part(9).cast(),
            made: part(10).cast(),
            pair: part(11).cast(),
            kept: part(12).cast(),
        }
    }
}

/// Bytes of scratch of one worker.
pub(super) fn worker_bytes(attention: &Attention) -> usize {
    Area::layout(attention).1
}

/// Item `item` of a run.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub(super) attention: &'a Attention,
    pub(super) shared: Shared<'a>,
    pub(super) item: usize,
    pub(super) worker: usize,
}

impl SimdJob for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.attention.words {
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
        let TaskOf { task: Task { attention, shared, item, worker }, arithmetic } = self;
        let splits = attention.query_blocks().div_ceil(attention.task_blocks());
        let first_pair = item / splits * attention.task_pairs();
        let last_pair = attention.pairs.n_rows().min(first_pair + attention.task_pairs());
        let first_block = item % splits * attention.task_blocks();
        let last_block = attention.query_blocks().min(first_block + attention.task_blocks());
        let mut tables = [std::ptr::null(); MAX_TABLES];
        let heads = attention.heads();
        let mut cursor = attention.pairs.at(first_pair);
        let ahead = attention.ahead();
        let mut later = attention.pairs.at(first_pair + ahead.pairs);
        // SAFETY: the caller of `KernelDef::run` promises operands, result and scratch.
        unsafe {
            for (index, entry) in tables.iter_mut().enumerate().take(attention.tables.len()) {
                *entry = table(attention, shared, index).cast_const();
            }
            let area = Area::new(attention, shared, worker);
            for index in first_pair..last_pair {
                let parts = [OUT, Q, K, V, MASK, BIAS];
                let starts = parts.map(|layout| cursor.position(layout));
                cursor.advance();
                let next = parts.map(|layout| later.position(layout));
                later.advance();
                let mut pair = Pair {
                    attention,
                    arithmetic,
                    shared,
                    area,
                    tables: &tables,
                    starts,
                    next,
                    ahead,
                    head: index % heads,
                    n_kept: 0,
                };
                pair.keep_keys();
                if attention.keeps_keys() {
                    pair.pack_keys(s, 0, pair.n_kept);
                }
                for block in first_block..last_block {
                    let start = block * attention.block();
                    let count = attention.block().min(attention.sq - start);
                    let pair = &pair;
                    // Without many registers there are no wider blocks, and no code for them.
                    match count.div_ceil(S::LANES) {
                        1 => arithmetic.outline(s, Queries::<A, 1> { pair, start, count }),
                        3 if S::REGISTERS == 32 => {
                            arithmetic.outline(s, Queries::<A, 3> { pair, start, count });
                        }
                        4 if S::REGISTERS == 32 => {
                            arithmetic.outline(s, Queries::<A, 4> { pair, start, count });
                        }
                        _ => arithmetic.outline(s, Queries::<A, 2> { pair, start, count }),
                    }
                }
            }
        }
    }
}

/// [`Pair::queries`], in a function of its own.
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

/// One head of one batch entry.
pub(super) struct Pair<'a, A> {
    pub(super) attention: &'a Attention,
    pub(super) arithmetic: A,
    pub(super) shared: Shared<'a>,
    pub(super) area: Area,
    pub(super) tables: &'a [*const f32],
    /// First element of each layout.
    pub(super) starts: [usize; 6],
    /// The same of the pair that is asked for early.
    pub(super) next: [usize; 6],
    pub(super) ahead: Ahead,
    pub(super) head: usize,
    pub(super) n_kept: usize,
}

impl<A: Packed> Pair<'_, A> {
    /// Outputs of queries `start..start + count`, in `N` vectors.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn queries<S: Simd, const N: usize>(&self, s: S, start: usize, count: usize) {
        let Attention { d, scale, ref k, ref v, .. } = *self.attention;
        let Area { keys, values, queries, partial, bias, weights, outputs, reference, sum, .. } =
            self.area;
        let lanes = N * S::LANES;
        let depth = self.attention.depth();
        let words = self.attention.words;
        let (keys_in_place, values_in_place) =
            (self.attention.has_keys_in_place(), self.attention.has_values_in_place());
        let (key_source, value_source) = (self.source(k, K), self.source(v, V));
        // SAFETY: each part of the area has the sizes that `Area::layout` gives.
        unsafe {
            let block = start / self.attention.block();
            self.prefetch_next(Q, block);
            self.pack_queries(s, start, count, lanes);
            self.prefetch_next(K, block);
            for v in 0..N {
                s.store(reference.add(v * S::LANES), s.splat(LOWEST));
                s.store(sum.add(v * S::LANES), s.splat(0.0));
            }
            self.prefetch_next(OUT, block);
            let mut first = 0;
            while first < self.n_kept {
                let n = KEY_BLOCK.min(self.n_kept - first);
                let packed = if self.attention.keeps_keys() {
                    first
                } else {
                    self.pack_keys(s, first, first + n);
                    0
                };
                let has_bias = self.attention.bias.is_some();
                if has_bias {
                    self.pack_bias(s, start, count, first, n, lanes);
                }
                let weigh = Weigh {
                    arithmetic: self.arithmetic,
                    kept: self.arithmetic,
                    factor: (scale.abs() * LOG2_E) as f32,
                    bias: if has_bias { bias } else { std::ptr::null() },
                    weights,
                    reference,
                    sum,
                    outputs,
                    output_rows: if first == 0 { 0 } else { d },
                };
                let mut factors = Factors {
                    a: if keys_in_place {
                        key_source.stored(first).cast()
                    } else {
                        keys.add(packed * depth)
                    },
                    a_stride: if keys_in_place { k.seq_stride() / A::ELEMENTS } else { depth },
                    b: queries,
                    terms: TERMS.min(depth),
                    start: std::ptr::null(),
                };
                let mut term = 0;
                while depth - term > TERMS {
                    product::<S, _, _, N, false>(
                        s,
                        self.arithmetic,
                        factors,
                        n,
                        Store { to: partial },
                    );
                    term += TERMS;
                    factors.a = factors.a.add(TERMS);
                    factors.b = factors.b.add(TERMS * lanes);
                    factors.terms = TERMS.min(depth - term);
                    factors.start = partial;
                }
                product::<S, _, _, N, false>(s, self.arithmetic, factors, n, weigh);
                let is_last = first + n == self.n_kept;
                if is_last {
                    for v in (0..lanes).step_by(S::LANES) {
                        s.store(sum.add(v), s.div(s.splat(1.0), s.load(sum.add(v))));
                    }
                }
                let terms = words.padded(n.div_ceil(A::ELEMENTS));
                for i in (n.div_ceil(A::ELEMENTS) * lanes..terms * lanes).step_by(S::LANES) {
                    s.store(weights.add(i), s.splat(0.0));
                }
                let (a, a_stride) = if values_in_place {
                    (value_source.stored(first).cast(), v.seq_stride())
                } else if words.are_tiles() {
                    let at = values.add(packed / A::ELEMENTS);
                    (at.cast_const(), self.attention.value_stride())
                } else {
                    (values.add(packed / A::ELEMENTS * d).cast_const(), d)
                };
                let factors = Factors {
                    a,
                    a_stride,
                    b: weights,
                    terms,
                    start: if first == 0 { std::ptr::null() } else { outputs },
                };
                let accumulate = Accumulate {
                    arithmetic: self.arithmetic,
                    outputs,
                    scale: if is_last { sum } else { std::ptr::null() },
                    words: self.attention.stored.result,
                };
                product::<S, _, _, N, true>(s, self.arithmetic, factors, d, accumulate);
                first += n;
            }
            if self.n_kept == 0 {
                for i in 0..d * N {
                    s.store(outputs.add(i * S::LANES), s.splat(0.0));
                }
            }
            self.prefetch_next(V, block);
            self.write(s, start, count, lanes);
        }
    }

    /// Writes the rows of the result.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, s: S, start: usize, count: usize, lanes: usize) {
        let Area { outputs, rows, .. } = self.area;
        let Attention { d, ref result, .. } = *self.attention;
        let stride = result.strides[result.rank() - 3];
        let size = result.dtype.size();
        // SAFETY: see the caller.
        unsafe {
            let dst = self.shared.result().add((self.starts[OUT] + start * stride) * size);
            if self.attention.stored.result {
                let words = (d / A::ELEMENTS, count);
                transpose_in(s, words, outputs, lanes, dst.cast(), stride / A::ELEMENTS);
                return;
            }
            if result.dtype == DType::F32 {
                transpose_in(s, (d, count), outputs, lanes, dst.cast(), stride);
                return;
            }
            transpose_in(s, (d, count), outputs, lanes, rows, d);
            for i in 0..count {
                let to = dst.add(i * stride * size);
                store(s, result.dtype, rows.add(i * d).cast_const(), d, to);
            }
        }
    }
}
