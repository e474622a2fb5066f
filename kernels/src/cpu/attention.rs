//! `attention`: softmax(scale q . k + bias) v, never holding scores of `[Sq, Sk]`.
//!
//! A block of queries, transposed, meets the keys block by block with a running maximum and sum
//! (Dao et al., `FlashAttention`, algorithm 1). Queries are vector lanes throughout, so scores,
//! softmax and outputs need no shuffles, and a block of keys, values, weights and outputs stays in
//! the nearest caches. Keys and values are widened, normalized, weighted and rotated once per task;
//! masked keys are left out then and cost nothing. Short sequences use narrower blocks, many
//! (batch, head) pairs to a task. Scores are kept in units of log 2.
//!
//! Roofline: the FMA units, less one exponential per score (about a sixth of the time at 72 head
//! dims). Order of sums depends on the keys alone, so bytes do not depend on threads.

use std::f64::consts::LOG2_E;

use ops::{Attr, DType, Op};

use crate::kernel::{KernelDef, Launch, Site};
use crate::program::{SlotPtr, load_f32, store};
use crate::simd::{Simd, SimdJob, dispatch};
use crate::{Isa, Layout};

use super::attention_rows::{HeadRows, RopeTable};
use super::attention_tile::{Factors, product};
use super::body::operand_view;
use super::lanes::{copy, exp2_nonpositive, prefetch_row, scale_to};
use super::nest::Nest;
use super::shared::{Shared, aligned};
use super::transpose::transpose;

/// Keys of a block: a multiple of every tile height.
const KEY_BLOCK: usize = 72;
/// Most vectors of queries in a block.
const MAX_VECTORS: usize = 4;
/// Largest packed keys and values that a worker keeps for a whole task.
const KEEP_BYTES: usize = 4 << 20;
/// Multiply-adds that make a task worth its start.
const TASK_WORK: usize = 1 << 20;
/// Query blocks of a task, at least, so that packing keys is a small part of it.
const MIN_TASK_BLOCKS: usize = 4;
/// Tasks to aim at where one (batch, head) pair has many query blocks.
const TASKS: usize = 64;
/// Longest sequences whose rows are asked for one pair ahead: their rows are short pieces of memory
/// far apart, which the hardware does not foresee.
const SHORT: usize = 64;
/// Lowest running maximum, so that differences to it are never NaN.
const LOWEST: f32 = -1e30;

// Layouts of the nest of (batch, head) pairs.
const OUT: usize = 0;
const Q: usize = 1;
const K: usize = 2;
const V: usize = 3;
const MASK: usize = 4;
const BIAS: usize = 5;

/// Attention with everything that is done to queries and keys before.
#[derive(Clone, Debug)]
pub struct Attention {
    isa: Isa,
    scale: f64,
    sq: usize,
    sk: usize,
    d: usize,
    q: HeadRows,
    k: HeadRows,
    v: HeadRows,
    tables: Vec<RopeTable>,
    mask: Option<Side>,
    bias: Option<Side>,
    result: Layout,
    /// One row per (batch, head) pair.
    pairs: Nest,
}

/// An optional operand.
#[derive(Clone, Debug)]
struct Side {
    operand: usize,
    layout: Layout,
}

impl Attention {
    /// Takes one `attention`, its result as it is or cast to another float type.
    pub fn select(site: &Site<'_>) -> Option<Attention> {
        let &[root] = &site.body.outputs[..] else { return None };
        let mut value = root;
        while let Some(Op::Cast(_)) = site.body.op(value) {
            value = site.body.node(value).args[0];
        }
        let Some(Op::Attention(op)) = site.body.op(value) else { return None };
        let types = site.body.arg_types(value);
        let args = &site.body.node(value).args;
        let mut tables = vec![];
        let mut rows = |arg: usize| HeadRows::of(site.body, args[arg], site.operands, &mut tables);
        let (q, k, v) = (rows(0)?, rows(1)?, rows(2)?);
        let side = |arg: usize| {
            let (operand, layout) = operand_view(site.body, args[arg], site.operands)?;
            Some(Side { operand, layout })
        };
        let is_mask = |arg: usize| types[arg].dtype() == DType::Bool;
        let (bias, mask) = match args.len() {
            3 => (None, None),
            4 if is_mask(3) => (None, Some(side(3)?)),
            4 => (Some(side(3)?), None),
            _ => (Some(side(3)?), Some(side(4)?)),
        };
        let rank = types[0].rank();
        let batch = rank - 3;
        let result = site.result.clone();
        if !result.dtype.is_float() || result.strides[rank - 1] != 1 && result.shape[rank - 1] > 1 {
            return None;
        }
        // [batch.., H, 1]: one row of length 1 per pair.
        let mut shape = result.shape[..batch].to_vec();
        shape.extend([result.shape[batch + 1], 1]);
        let pair = |layout: &Layout, head: Option<usize>| {
            let mut strides: Vec<usize> = (0..batch)
                .map(|axis| if layout.shape[axis] == 1 { 0 } else { layout.strides[axis] })
                .collect();
            strides.extend([head.map_or(0, |axis| layout.strides[axis]), 0]);
            Layout { dtype: layout.dtype, shape: shape.clone(), strides, offset: layout.offset }
        };
        let mut layouts: Vec<Layout> = [&result, &q.layout, &k.layout, &v.layout]
            .into_iter()
            .map(|layout| pair(layout, Some(batch + 1)))
            .collect();
        let unused = layouts[OUT].clone();
        layouts.push(mask.as_ref().map_or(unused.clone(), |mask| pair(&mask.layout, None)));
        layouts.push(bias.as_ref().map_or(unused, |bias| pair(&bias.layout, Some(batch))));
        let pairs = Nest::with_row(&layouts.iter().collect::<Vec<_>>(), batch + 1)?;
        Some(Attention {
            isa: site.target.isa,
            scale: op.scale,
            sq: types[0].shape()[batch],
            sk: types[1].shape()[batch],
            d: types[0].shape()[rank - 1],
            q,
            k,
            v,
            tables,
            mask,
            bias,
            result,
            pairs,
        })
    }

    /// Vectors of queries in a block.
    fn vectors(&self) -> usize {
        let most = if self.isa.registers() == 32 { MAX_VECTORS } else { 2 };
        self.sq.div_ceil(self.isa.lanes()).min(most)
    }

    /// Queries of a block.
    fn block(&self) -> usize {
        self.vectors() * self.isa.lanes()
    }

    fn query_blocks(&self) -> usize {
        self.sq.div_ceil(self.block())
    }

    /// Query blocks of one task.
    fn task_blocks(&self) -> usize {
        let all = self.query_blocks();
        (all * self.pairs.n_rows() / TASKS).clamp(MIN_TASK_BLOCKS.min(all), all)
    }

    /// Pairs of one task; more than 1 only where a task has all query blocks.
    fn task_pairs(&self) -> usize {
        if self.task_blocks() < self.query_blocks() {
            return 1;
        }
        let work = self.sq * self.sk * self.d;
        (TASK_WORK / work).clamp(1, self.pairs.n_rows().div_ceil(TASKS).max(1))
    }

    /// Whether one pair is more than the caches take while the one before is computed.
    fn is_long(&self) -> bool {
        self.sq.max(self.sk) > SHORT
    }

    /// Whether all keys and values are packed once per pair, not per query block.
    fn keeps_keys(&self) -> bool {
        self.sk * self.d * 8 <= KEEP_BYTES
    }

    fn packed_keys(&self) -> usize {
        if self.keeps_keys() { self.sk } else { KEY_BLOCK.min(self.sk) }
    }

    fn table_bytes(&self) -> usize {
        self.tables.iter().map(|table| aligned(4 * table.len())).sum()
    }

    fn worker_bytes(&self) -> usize {
        Area::layout(self).1
    }
}

/// A worker's scratch.
#[derive(Clone, Copy)]
struct Area {
    /// `[packed_keys, D]` each.
    keys: *mut f32,
    values: *mut f32,
    /// `[D, block]`: queries, scaled and transposed.
    queries: *mut f32,
    /// `[KEY_BLOCK, block]`: scores, then weights.
    scores: *mut f32,
    /// `[D, block]`: outputs so far.
    outputs: *mut f32,
    /// `[block]` each: running maximum and sum.
    max: *mut f32,
    sum: *mut f32,
    /// `[block, D]`: rows of queries, then of outputs.
    row: *mut f32,
    /// `[Sk]`: which keys take part.
    kept: *mut u32,
}

impl Area {
    /// Offsets of the parts, in the order of the fields, and the size of all.
    fn layout(attention: &Attention) -> ([usize; 9], usize) {
        let (d, block) = (attention.d, attention.block());
        let rows = attention.packed_keys() * d;
        let lens = [
            rows,
            rows,
            d * block,
            KEY_BLOCK * block,
            d * block,
            block,
            block,
            d * block,
            attention.sk,
        ];
        let mut offsets = [0; 9];
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
            scores: part(3).cast(),
            outputs: part(4).cast(),
            max: part(5).cast(),
            sum: part(6).cast(),
            row: part(7).cast(),
            kept: part(8).cast(),
        }
    }
}

impl KernelDef for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("queries", Attr::Int(self.block() as i64)),
            ("keys", Attr::Int(KEY_BLOCK.min(self.sk) as i64)),
        ]
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        self.table_bytes() + threads * self.worker_bytes()
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        for index in 0..self.tables.len() {
            launch.pool.run(self.tables[index].positions(), &|position, _| {
                dispatch(self.isa, FillTable { attention: self, shared, index, position });
            });
        }
        let n_pairs = self.pairs.n_rows().div_ceil(self.task_pairs());
        let splits = self.query_blocks().div_ceil(self.task_blocks());
        launch.pool.run(n_pairs * splits, &|item, worker| {
            dispatch(self.isa, Task { attention: self, shared, item, worker });
        });
    }
}

/// Where table `index` lies in the scratch.
///
/// # Safety
/// The scratch has `scratch_bytes`.
unsafe fn table(attention: &Attention, shared: Shared<'_>, index: usize) -> *mut f32 {
    let before: usize =
        attention.tables[..index].iter().map(|table| aligned(4 * table.len())).sum();
    // SAFETY: tables come first in the scratch.
    unsafe { shared.scratch().add(before).cast() }
}

struct FillTable<'a> {
    attention: &'a Attention,
    shared: Shared<'a>,
    index: usize,
    position: usize,
}

impl SimdJob for FillTable<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the caller of `KernelDef::run` promises operands and scratch.
        unsafe {
            let to = table(self.attention, self.shared, self.index);
            self.attention.tables[self.index].fill(s, self.shared, self.position, to);
        }
    }
}

struct Task<'a> {
    attention: &'a Attention,
    shared: Shared<'a>,
    item: usize,
    worker: usize,
}

impl SimdJob for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Task { attention, shared, item, worker } = self;
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
                let mut pair =
                    Pair { attention, shared, area, tables: &tables, starts, next, n_kept: 0 };
                pair.keep_keys();
                if attention.keeps_keys() {
                    pair.pack_keys(s, 0, pair.n_kept);
                }
                for block in first_block..last_block {
                    let start = block * attention.block();
                    let count = attention.block().min(attention.sq - start);
                    let pair = &pair;
                    match count.div_ceil(S::LANES) {
                        1 => s.outline(Queries::<1> { pair, start, count }),
                        2 => s.outline(Queries::<2> { pair, start, count }),
                        3 => s.outline(Queries::<3> { pair, start, count }),
                        _ => s.outline(Queries::<4> { pair, start, count }),
                    }
                }
            }
        }
    }
}

/// [`Pair::queries`], in a function of its own.
struct Queries<'a, const N: usize> {
    pair: &'a Pair<'a>,
    start: usize,
    count: usize,
}

impl<const N: usize> SimdJob for Queries<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the caller of `KernelDef::run` promises operands, result and scratch.
        unsafe { self.pair.queries::<S, N>(s, self.start, self.count) }
    }
}

/// One head of one batch entry.
struct Pair<'a> {
    attention: &'a Attention,
    shared: Shared<'a>,
    area: Area,
    tables: &'a [*const f32],
    /// First element of each layout.
    starts: [usize; 6],
    /// The same of the next pair, to bring its rows in early.
    next: [usize; 6],
    n_kept: usize,
}

impl Pair<'_> {
    /// Lists the keys that take part.
    ///
    /// # Safety
    /// As [`KernelDef::run`], like all that follow.
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

    /// Packs keys and values `first..last` of the kept ones.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn pack_keys<S: Simd>(&self, s: S, first: usize, last: usize) {
        let Attention { k, v, d, .. } = self.attention;
        let sides = [(k, K, self.area.keys), (v, V, self.area.values)];
        // SAFETY: the packed rows have room for these keys.
        unsafe {
            for (rows, layout, packed) in sides {
                for i in first..last {
                    let key = *self.area.kept.add(i) as usize;
                    let offset = key * rows.seq_stride();
                    let at = self.starts[layout] + offset;
                    if !self.attention.is_long() {
                        prefetch_row(
                            rows.operand_element(self.shared, self.next[layout] + offset),
                            *d,
                        );
                    }
                    let to = packed.add((i - first) * d);
                    let row = rows.row(s, self.shared, at, key, self.tables, to);
                    if row != to.cast_const() {
                        copy(s, row, *d, to);
                    }
                }
            }
        }
    }

    /// Outputs of queries `start..start + count`, in `N` vectors.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn queries<S: Simd, const N: usize>(&self, s: S, start: usize, count: usize) {
        let attention = self.attention;
        let Area { keys, values, queries, scores, outputs, max, sum, .. } = self.area;
        let (d, lanes) = (attention.d, N * S::LANES);
        // SAFETY: each part of the area has the sizes that `Area::layout` gives.
        unsafe {
            self.pack_queries(s, start, count, lanes);
            for v in 0..N {
                s.store(max.add(v * S::LANES), s.splat(LOWEST));
                s.store(sum.add(v * S::LANES), s.splat(0.0));
            }
            let mut first = 0;
            while first < self.n_kept {
                let n = KEY_BLOCK.min(self.n_kept - first);
                let offset = if attention.keeps_keys() {
                    first * d
                } else {
                    self.pack_keys(s, first, first + n);
                    0
                };
                let factors = Factors {
                    a: keys.add(offset),
                    a_row: d,
                    a_step: 1,
                    b: queries,
                    b_step: lanes,
                    terms: d,
                };
                product::<S, N>(s, factors, n, scores, lanes, false);
                if attention.bias.is_some() {
                    self.add_bias(s, start, count, first, n, lanes);
                }
                self.softmax::<S, N>(s, n, first > 0);
                let factors = Factors {
                    a: values.add(offset),
                    a_row: 1,
                    a_step: d,
                    b: scores,
                    b_step: lanes,
                    terms: n,
                };
                product::<S, N>(s, factors, d, outputs, lanes, first > 0);
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

    /// Writes queries as `[D, lanes]`, times scale and log2 e; lanes without a query are zero.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn pack_queries<S: Simd>(&self, s: S, start: usize, count: usize, lanes: usize) {
        let Area { queries, row, .. } = self.area;
        let Attention { q, d, scale, .. } = self.attention;
        let factor = (scale * LOG2_E) as f32;
        // SAFETY: see the caller.
        unsafe {
            for i in 0..count {
                let offset = (start + i) * q.seq_stride();
                let at = self.starts[Q] + offset;
                if !self.attention.is_long() {
                    prefetch_row(q.operand_element(self.shared, self.next[Q] + offset), *d);
                    let out = (start + i) * self.attention.result.strides[q.layout.rank() - 3];
                    let out = (self.next[OUT] + out) * self.attention.result.dtype.size();
                    prefetch_row(self.shared.result().wrapping_add(out), *d);
                }
                let to = row.add(i * d);
                let x = q.row(s, self.shared, at, start + i, self.tables, to);
                scale_to(s, x, *d, factor, to);
            }
            if count < lanes {
                for i in (0..d * lanes).step_by(S::LANES) {
                    s.store(queries.add(i), s.splat(0.0));
                }
            }
            transpose((count, *d), row, *d, queries, lanes);
        }
    }

    /// Adds the bias of `n` keys from `first` on to their scores.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn add_bias<S: Simd>(
        &self,
        s: S,
        start: usize,
        count: usize,
        first: usize,
        n: usize,
        lanes: usize,
    ) {
        let Some(Side { operand, layout }) = &self.attention.bias else { return };
        let rank = layout.rank();
        let (row_stride, key_stride) = (layout.strides[rank - 2], layout.strides[rank - 1]);
        let size = layout.dtype.size();
        let mut widened = [0f32; KEY_BLOCK];
        // SAFETY: see the caller.
        unsafe {
            let base = self.shared.operand(*operand);
            for i in 0..count {
                let at = self.starts[BIAS] + (start + i) * row_stride;
                // Consecutive keys where none is left out, else one by one.
                let all = self.n_kept == self.attention.sk;
                for j in 0..if all { 1 } else { n } {
                    let key = *self.area.kept.add(first + j) as usize;
                    let ptr = base.add((at + key * key_stride) * size);
                    let slot = SlotPtr { ptr, stride: key_stride.max(1) as isize };
                    let len = if all { n } else { 1 };
                    let bias = load_f32(s, layout.dtype, slot, len, widened.as_mut_ptr());
                    for t in 0..len {
                        let score = self.area.scores.add((j + t) * lanes + i);
                        *score += *bias.add(t) * std::f32::consts::LOG2_E;
                    }
                }
            }
        }
    }

    /// Turns scores of `n` keys into weights, and brings the sums and outputs so far to the new
    /// maximum.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn softmax<S: Simd, const N: usize>(&self, s: S, n: usize, has_outputs: bool) {
        let Area { scores, outputs, max, sum, .. } = self.area;
        let row = N * S::LANES;
        // SAFETY: see the caller.
        unsafe {
            let mut new: [S::F; N] = std::array::from_fn(|v| s.load(max.add(v * S::LANES)));
            for j in 0..n {
                for (v, new) in new.iter_mut().enumerate() {
                    *new = s.max(*new, s.load(scores.add(j * row + v * S::LANES)));
                }
            }
            let mut sums = [s.splat(0.0); N];
            for j in 0..n {
                for (v, (sum, &new)) in sums.iter_mut().zip(&new).enumerate() {
                    let at = scores.add(j * row + v * S::LANES);
                    let weight = exp2_nonpositive(s, s.sub(s.load(at), new));
                    s.store(at, weight);
                    *sum = s.add(*sum, weight);
                }
            }
            for v in 0..N {
                let lane = v * S::LANES;
                let scale = exp2_nonpositive(s, s.sub(s.load(max.add(lane)), new[v]));
                s.store(sum.add(lane), s.mul_add(s.load(sum.add(lane)), scale, sums[v]));
                s.store(max.add(lane), new[v]);
                if has_outputs {
                    for t in 0..self.attention.d {
                        let at = outputs.add(t * row + lane);
                        s.store(at, s.mul(s.load(at), scale));
                    }
                }
            }
        }
    }

    /// Divides by the sums and writes the rows of the result.
    ///
    /// # Safety
    /// See `keep_keys`.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, s: S, start: usize, count: usize, lanes: usize) {
        let Area { outputs, sum, row, .. } = self.area;
        let Attention { d, result, .. } = self.attention;
        let seq_stride = result.strides[result.rank() - 3];
        // SAFETY: see the caller.
        unsafe {
            transpose((*d, count), outputs, lanes, row, *d);
            for i in 0..count {
                let scale = if self.n_kept == 0 { 0.0 } else { 1.0 / *sum.add(i) };
                let at = self.starts[OUT] + (start + i) * seq_stride;
                let dst = self.shared.result().add(at * result.dtype.size());
                let from = row.add(i * d);
                if result.dtype == DType::F32 {
                    scale_to(s, from, *d, scale, dst.cast());
                } else {
                    scale_to(s, from, *d, scale, from);
                    store(s, result.dtype, from.cast_const(), *d, dst);
                }
            }
        }
    }
}
