//! `attention`: softmax(scale q . k + bias) v, never holding scores of `[Sq, Sk]`.
//!
//! A block of queries, transposed, meets the keys block by block with a running reference and sum
//! (Dao et al., `FlashAttention`, algorithm 1). Queries are vector lanes throughout, so scores,
//! softmax and outputs need no shuffles, and a block of keys, values, weights and outputs stays in
//! the nearest caches. Keys and values become words once per task, normalized, weighted and rotated
//! on the way; masked keys are left out then and cost nothing. Short sequences use narrower blocks,
//! many (batch, head) pairs to a task. Scores are kept in units of log 2.
//!
//! Arithmetic: f32, or, where queries, keys and values are bf16 and the CPU has the instruction,
//! products of bf16 pairs summed in f32, in tile registers where it has them. Weights are then
//! rounded to bf16, as rows that are normalized or rotated here are; the softmax and all sums stay
//! in f32.
//!
//! Roofline: the multiply-add units, less one exponential per score; memory for short sequences.
//! The order of sums depends on the keys alone, so bytes do not depend on threads.

use ops::Attr;

use crate::kernel::{KernelDef, Launch, Site};
use crate::simd::{Simd, SimdJob, TILE_WORDS, dispatch};
use crate::{Isa, Layout};

use super::attention_softmax::MAX_VECTORS;
use super::attention_task::{Task, worker_bytes};
use super::shared::{Shared, aligned};
use super::words::Words;
use crate::attention_site::{AttentionSite, Side};
use crate::head_rows::{HeadRows, RowTable};
use crate::nest::Nest;

/// Keys of a block: a multiple of every tile height.
pub(super) const KEY_BLOCK: usize = 96;
/// Largest packed keys and values that a worker keeps for a whole task.
const KEEP_BYTES: usize = 4 << 20;
/// Tasks to aim at: enough to share evenly, few enough that packing keys is a small part of each.
const TASKS: usize = 32;
/// Query blocks of a task, at least, for the same reason.
const MIN_TASK_BLOCKS: usize = 4;
/// Largest rows that are asked for early: they lie in the second-level cache beside those in use.
const AHEAD_BYTES: usize = 384 << 10;

/// Words from a head dim to the next where rows are packed across, pairs of them side by side: whole tiles, and an odd
/// number of cache lines.
pub(super) fn across_stride(rows: usize) -> usize {
    (rows.div_ceil(2).div_ceil(TILE_WORDS) | 1) * TILE_WORDS
}

/// Which rows lie in memory as attention reads or writes them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    /// Queries and keys as words along D.
    pub(super) q: bool,
    pub(super) k: bool,
    /// Values as elements of words.
    pub(super) v: bool,
    /// Rows of the result as words along D.
    pub(super) result: bool,
}

/// Which rows a task asks for early.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead {
    /// Those of the pair that comes so many later; if more than 1, of all heads. 0 for none.
    pub(super) pairs: usize,
    /// Parts in which they are asked for.
    pub(super) shares: usize,
}

/// Attention with everything that is done to queries and keys before.
#[derive(Clone, Debug)]
pub struct Attention {
    isa: Isa,
    pub(super) words: Words,
    pub(super) scale: f64,
    pub(super) sq: usize,
    pub(super) sk: usize,
    pub(super) d: usize,
    pub(super) q: HeadRows,
    pub(super) k: HeadRows,
    pub(super) v: HeadRows,
    pub(super) stored: Stored,
    pub(super) tables: Vec<RowTable>,
    pub(super) mask: Option<Side>,
    pub(super) bias: Option<Side>,
    pub(super) result: Layout,
    /// One row per (batch, head) pair.
    pub(super) pairs: Nest,
}

impl Attention {
    /// Takes one `attention`, its result as it is or cast to another float type.
    pub fn select(site: &Site<'_>) -> Option<Attention> {
        let AttentionSite { dtype, scale, q, k, v, tables, mask, bias, result, pairs, sq, sk, d } =
            AttentionSite::of(site)?;
        let rank = result.rank();
        let words = Words::of_attention(site.target.isa, dtype, sq.min(sk));
        let is_whole = |elements: &usize| elements.is_multiple_of(words.depths());
        let stored = Stored {
            q: q.are_words(words),
            k: k.are_words(words),
            v: v.are_rows_of(words.dtype()),
            // No row starts or ends within a word.
            result: result.dtype == words.dtype()
                && is_whole(&d)
                && is_whole(&result.offset)
                && result.strides[..rank - 1].iter().all(is_whole),
        };
        Some(Attention {
            isa: site.target.isa,
            words,
            stored,
            scale,
            sq,
            sk,
            d,
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
    pub(super) fn block(&self) -> usize {
        self.vectors() * self.isa.lanes()
    }

    pub(super) fn query_blocks(&self) -> usize {
        self.sq.div_ceil(self.block())
    }

    pub(super) fn heads(&self) -> usize {
        self.result.shape[self.result.rank() - 2]
    }

    /// Query blocks of one task.
    pub(super) fn task_blocks(&self) -> usize {
        let all = self.query_blocks();
        (all * self.pairs.n_rows() / TASKS).clamp(MIN_TASK_BLOCKS.min(all), all)
    }

    /// Pairs of one task; more than 1 only where a task has all query blocks.
    pub(super) fn task_pairs(&self) -> usize {
        if self.task_blocks() < self.query_blocks() {
            return 1;
        }
        let pairs = self.pairs.n_rows().div_ceil(TASKS);
        // Whole batch entries, because heads share cache lines.
        if pairs < self.heads() { pairs } else { pairs / self.heads() * self.heads() }
    }

    /// What is asked for early.
    pub(super) fn ahead(&self) -> Ahead {
        let size = self.q.layout.dtype.size().max(self.v.layout.dtype.size());
        let pair_bytes = 2 * (self.sq + self.sk) * self.d * size;
        if self.task_pairs() == 1 {
            Ahead { pairs: 0, shares: 1 }
        } else if self.heads() > 1 && pair_bytes * self.heads() <= AHEAD_BYTES {
            Ahead { pairs: self.heads(), shares: self.heads() }
        } else if pair_bytes <= AHEAD_BYTES {
            Ahead { pairs: 1, shares: self.query_blocks() }
        } else {
            Ahead { pairs: 0, shares: 1 }
        }
    }

    /// Whether all keys and values are packed once per pair, not per query block.
    pub(super) fn keeps_keys(&self) -> bool {
        self.sk * self.d * 8 <= KEEP_BYTES
    }

    /// Words of a packed row of head dims.
    pub(super) fn depth(&self) -> usize {
        self.words.padded(self.d.div_ceil(self.words.depths()))
    }

    /// Words from a head dim of packed values to the next, for tile registers: an odd number of cache lines.
    pub(super) fn value_stride(&self) -> usize {
        across_stride(self.packed_keys())
    }

    /// Whether keys are read where they are stored: those that would be packed for one use.
    pub(super) fn has_keys_in_place(&self) -> bool {
        let is_padded = self.depth() * self.words.depths() > self.d;
        self.stored.k && !is_padded && self.reads_keys_once()
    }

    /// The same of values; those of pairs are always packed.
    pub(super) fn has_values_in_place(&self) -> bool {
        self.stored.v && self.words == Words::F32 && self.reads_keys_once()
    }

    fn reads_keys_once(&self) -> bool {
        self.mask.is_none() && (!self.keeps_keys() || self.query_blocks() == 1)
    }

    pub(super) fn packed_keys(&self) -> usize {
        if self.keeps_keys() { self.sk } else { KEY_BLOCK.min(self.sk) }
    }

    pub(super) fn table_bytes(&self) -> usize {
        self.tables.iter().map(|table| aligned(4 * table.len())).sum()
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
            ("words", Attr::Str(self.words.dtype().to_string())),
        ]
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        self.table_bytes() + threads * worker_bytes(self)
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
pub(super) unsafe fn table(attention: &Attention, shared: Shared<'_>, index: usize) -> *mut f32 {
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
