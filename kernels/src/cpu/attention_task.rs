//! One task of attention: some query blocks of one (batch, head) pair, or all of several pairs.
//!
//! Rows become words on their way in: keys `[Sk, D]` with pairs along D, values `[Sk, D]` with
//! pairs along the keys, queries `[D, block]`, so that both products run over their words alike.
//! What is missing to a whole word is zero.

use std::f32::consts::LOG2_E;

use ops::DType;

use crate::program::{SlotPtr, load_f32, store};
use crate::simd::{Simd, SimdJob};

use super::attention::{Attention, BIAS, K, KEY_BLOCK, MASK, OUT, Q, Side, V, table};
use super::attention_rows::HeadRows;
use super::attention_softmax::{Accumulate, LOWEST, Packed, Weigh};
use super::attention_tile::{Factors, Store, product};
use super::lanes::{copy, prefetch_row, scale_to};
use super::matmul_tile::{Arithmetic, Single, Words};
use super::shared::{Shared, aligned};
use super::transpose::transpose_in;

/// Words of head dims at a time, so that a block's queries stay in the first-level cache.
const TERMS: usize = 128;

/// A worker's scratch.
#[derive(Clone, Copy)]
struct Area {
    /// `[packed_keys, D]` in words.
    keys: *mut f32,
    /// `[packed_keys, D]` in words of keys.
    values: *mut f32,
    /// `[D, block]` in words: queries, transposed.
    queries: *mut f32,
    /// `[KEY_BLOCK, block]`: sums of the head dims so far, where there is more than one part.
    partial: *mut f32,
    /// `[KEY_BLOCK, block]`: the bias, where there is one.
    bias: *mut f32,
    /// `[KEY_BLOCK, block]` in words of keys.
    weights: *mut f32,
    /// `[D, block]`: outputs so far.
    outputs: *mut f32,
    /// `[block]` each.
    reference: *mut f32,
    sum: *mut f32,
    /// `[block, D]` or `[block, KEY_BLOCK]`: rows of queries, bias or outputs.
    rows: *mut f32,
    /// `[2, D]`: rows on their way to be rounded.
    made: *mut f32,
    /// `[Sk]`: which keys take part.
    kept: *mut u32,
}

impl Area {
    /// Offsets of the parts, in the order of the fields, and the size of all.
    fn layout(attention: &Attention) -> ([usize; 12], usize) {
        let (d, block) = (attention.d, attention.block());
        let elements = attention.words.depths();
        let packed = attention.packed_keys();
        let depth = d.div_ceil(elements);
        let scores = KEY_BLOCK * block;
        let lens = [
            packed * depth,
            packed.div_ceil(elements) * d,
            depth * block,
            if depth > TERMS { scores } else { 0 },
            if attention.bias.is_some() { scores } else { 0 },
            scores.div_ceil(elements),
            d * block,
            block,
            block,
            d.max(KEY_BLOCK) * block,
            2 * d,
            attention.sk,
        ];
        let mut offsets = [0; 12];
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
            kept: part(11).cast(),
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
            Words::F32 => Single.outline(s, TaskOf { task: self, arithmetic: Single }),
            Words::Bf16Pairs(dot) => dot.outline(s, TaskOf { task: self, arithmetic: dot }),
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
        let mut tables = [std::ptr::null(); 4];
        let mut cursor = attention.pairs.at(first_pair);
        // SAFETY: the caller of `KernelDef::run` promises operands, result and scratch.
        unsafe {
            for (index, entry) in tables.iter_mut().enumerate().take(attention.tables.len()) {
                *entry = table(attention, shared, index).cast_const();
            }
            let area = Area::new(attention, shared, worker);
            for _ in first_pair..last_pair {
                let parts = [OUT, Q, K, V, MASK, BIAS];
                let starts = parts.map(|layout| cursor.position(layout));
                cursor.advance();
                let next = parts.map(|layout| cursor.position(layout));
                let mut pair = Pair {
                    attention,
                    arithmetic,
                    shared,
                    area,
                    tables: &tables,
                    starts,
                    next,
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
                    match count.div_ceil(S::LANES) {
                        1 => arithmetic.outline(s, Queries::<A, 1> { pair, start, count }),
                        2 => arithmetic.outline(s, Queries::<A, 2> { pair, start, count }),
                        3 => arithmetic.outline(s, Queries::<A, 3> { pair, start, count }),
                        _ => arithmetic.outline(s, Queries::<A, 4> { pair, start, count }),
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
struct Pair<'a, A> {
    attention: &'a Attention,
    arithmetic: A,
    shared: Shared<'a>,
    area: Area,
    tables: &'a [*const f32],
    /// First element of each layout.
    starts: [usize; 6],
    /// The same of the next pair, to bring its rows in early.
    next: [usize; 6],
    n_kept: usize,
}

impl<A: Packed> Pair<'_, A> {
    /// Lists the keys that take part.
    ///
    /// # Safety
    /// As [`crate::KernelDef::run`], like all that follow.
    unsafe fn keep_keys(&mut self) {
        let kept = self.area.kept;
        // SAFETY: `kept` has room for every key.
        unsafe {
            let Some(mask) = &self.attention.mask else {
                for key in 0..self.attention.sk {
                    *kept.add(key) = key as u32;
                }
                self.n_kept = self.attention.sk;
                return;
            };
            let flags = self.shared.operand(mask.operand).add(self.starts[MASK]);
            let stride = mask.layout.strides[mask.layout.rank() - 1];
            self.n_kept = 0;
            for key in 0..self.attention.sk {
                if *flags.add(key * stride) != 0 {
                    *kept.add(self.n_kept) = key as u32;
                    self.n_kept += 1;
                }
            }
        }
    }

    /// Asks for the next pair's rows of one layout, where the hardware would not foresee them.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn prefetch_next(&self, part: usize) {
        let Attention { q, k, v, sq, sk, d, result, .. } = self.attention;
        if self.attention.is_long() {
            return;
        }
        let result_stride = result.strides[result.rank() - 3];
        let (base, stride, count, dtype) = match part {
            OUT => (self.shared.result().cast_const(), result_stride, *sq, result.dtype),
            Q => (self.shared.operand(q.operand), q.seq_stride(), *sq, q.layout.dtype),
            K => (self.shared.operand(k.operand), k.seq_stride(), *sk, k.layout.dtype),
            _ => (self.shared.operand(v.operand), v.seq_stride(), *sk, v.layout.dtype),
        };
        let size = dtype.size();
        for i in 0..count {
            let at = (self.next[part] + i * stride) * size;
            prefetch_row(base.wrapping_add(at), d * size);
        }
    }

    /// Makes the row `position` of `rows`, in f32, at `to` if it is not already somewhere.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn row<S: Simd>(
        &self,
        s: S,
        (rows, part): (&HeadRows, usize),
        position: usize,
        to: *mut f32,
    ) -> *const f32 {
        let at = self.starts[part] + position * rows.seq_stride();
        // SAFETY: passed on.
        unsafe { rows.row(s, self.shared, at, position, self.tables, to) }
    }

    /// Where the words of the stored row `position` are.
    ///
    /// # Safety
    /// See `keep_keys`; rows are stored as words.
    #[inline(always)]
    unsafe fn stored(&self, (rows, part): (&HeadRows, usize), position: usize) -> *const f32 {
        let at = self.starts[part] + position * rows.seq_stride();
        rows.operand_element(self.shared, at).cast()
    }

    /// Writes the row `position` of `rows` in words along D.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn make_words<S: Simd>(
        &self,
        s: S,
        (rows, part): (&HeadRows, usize),
        position: usize,
        to: *mut f32,
    ) {
        let d = self.attention.d;
        // SAFETY: `to` and `made` have room for the row.
        unsafe {
            if rows.are_words(self.attention.words) {
                let from = self.stored((rows, part), position);
                copy(s, from, d / A::ELEMENTS, to);
            } else if A::ELEMENTS == 1 {
                let row = self.row(s, (rows, part), position, to);
                if row != to.cast_const() {
                    copy(s, row, d, to);
                }
            } else {
                let row = self.row(s, (rows, part), position, self.area.made);
                store(s, DType::Bf16, row, d, to.cast());
                if !d.is_multiple_of(2) {
                    to.cast::<u16>().add(d).write(0);
                }
            }
        }
    }

    /// Packs keys and values `first..last` of the kept ones.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn pack_keys<S: Simd>(&self, s: S, first: usize, last: usize) {
        let Attention { k, v, d, .. } = self.attention;
        let depth = d.div_ceil(A::ELEMENTS);
        // SAFETY: the packed rows have room for these keys.
        unsafe {
            self.prefetch_next(K);
            for i in first..last {
                let key = *self.area.kept.add(i) as usize;
                self.make_words(s, (k, K), key, self.area.keys.add((i - first) * depth));
            }
            self.prefetch_next(V);
            if A::ELEMENTS == 1 {
                for i in first..last {
                    let key = *self.area.kept.add(i) as usize;
                    self.make_words(s, (v, V), key, self.area.values.add((i - first) * d));
                }
                return;
            }
            let narrow = v.are_rows_of(DType::Bf16);
            for i in (first..last).step_by(2) {
                let to = self.area.values.add((i - first) / 2 * d);
                let low = *self.area.kept.add(i) as usize;
                let high = (i + 1 < last).then(|| *self.area.kept.add(i + 1) as usize);
                if narrow {
                    let [low, high] = [Some(low), high]
                        .map(|key| key.map(|key| self.stored((v, V), key).cast::<u16>()));
                    self.join_rows(
                        s,
                        low,
                        high,
                        to,
                        #[inline(always)]
                        |row, n| s.load_bf16_n(row, n),
                    );
                } else {
                    let low = self.row(s, (v, V), low, self.area.made);
                    let high = high.map(|key| self.row(s, (v, V), key, self.area.made.add(*d)));
                    self.join_rows(
                        s,
                        Some(low),
                        high,
                        to,
                        #[inline(always)]
                        |row, n| s.load_n(row, n),
                    );
                }
            }
        }
    }

    /// Writes the words of two rows, element by element; a row that is not there is zero.
    ///
    /// # Safety
    /// `to` has room for D words; `load` may be called for all of both rows.
    #[inline(always)]
    unsafe fn join_rows<S: Simd, T: Copy>(
        &self,
        s: S,
        low: Option<*const T>,
        high: Option<*const T>,
        to: *mut f32,
        load: impl Fn(*const T, usize) -> S::F,
    ) {
        let d = self.attention.d;
        for i in (0..d).step_by(S::LANES) {
            let n = S::LANES.min(d - i);
            let [low, high] = [low, high].map(
                #[inline(always)]
                |row| {
                    row.map_or(
                        s.splat(0.0),
                        #[inline(always)]
                        |row| load(row.wrapping_add(i), n),
                    )
                },
            );
            // SAFETY: the caller's promise.
            unsafe { s.store_n(to.add(i), self.arithmetic.join(s, low, high), n) };
        }
    }

    /// Outputs of queries `start..start + count`, in `N` vectors.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn queries<S: Simd, const N: usize>(&self, s: S, start: usize, count: usize) {
        let Attention { d, scale, .. } = *self.attention;
        let Area { keys, values, queries, partial, bias, weights, outputs, reference, sum, .. } =
            self.area;
        let lanes = N * S::LANES;
        let depth = d.div_ceil(A::ELEMENTS);
        // SAFETY: each part of the area has the sizes that `Area::layout` gives.
        unsafe {
            self.pack_queries(s, start, count, lanes);
            for v in 0..N {
                s.store(reference.add(v * S::LANES), s.splat(LOWEST));
                s.store(sum.add(v * S::LANES), s.splat(0.0));
            }
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
                    factor: (scale.abs() * std::f64::consts::LOG2_E) as f32,
                    bias: if has_bias { bias } else { std::ptr::null() },
                    weights,
                    reference,
                    sum,
                    outputs,
                    output_rows: if first == 0 { 0 } else { d },
                };
                let mut factors = Factors {
                    a: keys.add(packed * depth),
                    a_stride: depth,
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
                let factors = Factors {
                    a: values.add(packed / A::ELEMENTS * d),
                    a_stride: d,
                    b: weights,
                    terms: n.div_ceil(A::ELEMENTS),
                    start: if first == 0 { std::ptr::null() } else { outputs },
                };
                let accumulate = Accumulate {
                    arithmetic: self.arithmetic,
                    outputs,
                    scale: if is_last { sum } else { std::ptr::null() },
                    words: self.attention.has_word_results(),
                };
                product::<S, _, _, N, true>(s, self.arithmetic, factors, d, accumulate);
                first += n;
            }
            if self.n_kept == 0 {
                for i in 0..d * N {
                    s.store(outputs.add(i * S::LANES), s.splat(0.0));
                }
            }
            self.write(s, start, count, lanes);
        }
    }

    /// Writes queries as `[D, lanes]` in words, with the sign of the scale; lanes without a query
    /// are zero.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn pack_queries<S: Simd>(&self, s: S, start: usize, count: usize, lanes: usize) {
        let Area { queries, rows, .. } = self.area;
        let Attention { q, d, scale, words, .. } = self.attention;
        let depth = d.div_ceil(A::ELEMENTS);
        // SAFETY: see the caller.
        unsafe {
            self.prefetch_next(Q);
            if count < lanes {
                for i in (0..depth * lanes).step_by(S::LANES) {
                    s.store(queries.add(i), s.splat(0.0));
                }
            }
            if q.are_words(*words) {
                let from = self.stored((q, Q), start);
                let stride = q.seq_stride() / A::ELEMENTS;
                transpose_in(s, (count, depth), from, stride, queries, lanes);
            } else {
                for i in 0..count {
                    self.make_words(s, (q, Q), start + i, rows.add(i * depth));
                }
                transpose_in(s, (count, depth), rows, depth, queries, lanes);
            }
            if *scale < 0.0 {
                for i in (0..depth * lanes).step_by(S::LANES) {
                    let x = s.load(queries.add(i));
                    s.store(queries.add(i), s.xor(x, s.splat_bits(A::SIGNS)));
                }
            }
        }
    }

    /// Writes the bias of `n` kept keys from `first` on as `[keys, lanes]`, times log2 e.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn pack_bias<S: Simd>(
        &self,
        s: S,
        start: usize,
        count: usize,
        first: usize,
        n: usize,
        lanes: usize,
    ) {
        let Some(Side { operand, layout }) = &self.attention.bias else { return };
        let Area { rows, bias, kept, .. } = self.area;
        let rank = layout.rank();
        let (row_stride, key_stride) = (layout.strides[rank - 2], layout.strides[rank - 1]);
        let size = layout.dtype.size();
        // SAFETY: see the caller.
        unsafe {
            let base = self.shared.operand(*operand);
            for i in 0..count {
                let row = rows.add(i * KEY_BLOCK);
                let mut j = 0;
                while j < n {
                    // A run of keys without a gap.
                    let key = *kept.add(first + j) as usize;
                    let mut len = 1;
                    while j + len < n && *kept.add(first + j + len) as usize == key + len {
                        len += 1;
                    }
                    let at = self.starts[BIAS] + (start + i) * row_stride + key * key_stride;
                    let slot = SlotPtr { ptr: base.add(at * size), stride: key_stride as isize };
                    let to = row.add(j);
                    let run = load_f32(s, layout.dtype, slot, len, to);
                    scale_to(s, run, len, LOG2_E, to);
                    j += len;
                }
            }
            if count < lanes {
                for i in (0..n * lanes).step_by(S::LANES) {
                    s.store(bias.add(i), s.splat(0.0));
                }
            }
            transpose_in(s, (count, n), rows, KEY_BLOCK, bias, lanes);
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
            self.prefetch_next(OUT);
            let dst = self.shared.result().add((self.starts[OUT] + start * stride) * size);
            if self.attention.has_word_results() {
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
