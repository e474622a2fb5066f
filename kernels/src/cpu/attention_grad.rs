//! `attention_grad`: gradients of queries, keys and values, never holding weights of `[Sq, Sk]`.
//!
//! A block of queries, transposed, meets the keys twice, block by block: first for the reference and sum of
//! its softmax, then for the gradients of its weights, and all three results (Dao et al., `FlashAttention`,
//! algorithm 4, without a stored log-sum-exp). Weights of a block wait for the second time in the second-level
//! cache; where there are too many keys for that, they are made again, one product more. All products are the
//! register tile of `attention`: queries are lanes where weights are made, head dims where keys and values
//! collect over queries. Masked keys are left out and get zeros.
//!
//! Arithmetic: f32, or, where the operands are bf16 and the CPU has the instruction, products of bf16 pairs
//! summed in f32, in tile registers where the CPU has them. A word has two neighbors of the axis that a product
//! sums over, so keys are packed in words of head dims for the scores and in words of two keys for the gradients
//! of queries, both once per pair; weights and gradients of scores are rounded to bf16 on the way. The softmax
//! and all sums stay in f32.
//!
//! Roofline: the multiply-add units, less one exponential per score and pass; memory for short sequences, of
//! which a task has many. The sums of a (batch, head) pair follow the order of queries, so bytes do not depend
//! on threads.

use ops::{Attr, Op};

use crate::attention_site::{Side, pairs};
use crate::body::operand_view;
use crate::head_rows::HeadRows;
use crate::kernel::{KernelDef, Launch, Site};
use crate::nest::Nest;
use crate::simd::dispatch;
use crate::{Isa, Layout};

use super::attention::across_stride;
use super::attention_grad_area::worker_bytes;
use super::attention_grad_task::Task;
use super::attention_softmax::MAX_VECTORS;
use super::shared::Shared;
use super::words::Words;

/// Tasks to aim at: enough to share evenly, few enough that the next pair is mostly of the same task.
const TASKS: usize = 32;
/// Most bytes of rows that are asked for before they are needed, those of the next pair and those that a pair
/// ends with: they lie in the second-level cache beside those in use.
const AHEAD_BYTES: usize = 128 << 10;
/// Most weights of a block of queries that are kept, in bytes of f32: they lie in the second-level cache beside
/// sums of all keys and values.
const KEPT_BYTES: usize = 128 << 10;

/// Gradients of attention.
#[derive(Clone, Debug)]
pub struct AttentionGrad {
    isa: Isa,
    pub(super) words: Words,
    pub(super) scale: f64,
    pub(super) sq: usize,
    pub(super) sk: usize,
    pub(super) d: usize,
    /// Queries, keys, values, the attention's result, its cotangent.
    pub(super) rows: [HeadRows; 5],
    /// Which of them lie in memory as words along D.
    pub(super) stored: [bool; 5],
    pub(super) mask: Option<Side>,
    pub(super) result: Layout,
    /// One row per (batch, head) pair: of the result, queries, keys, values and the mask.
    pub(super) pairs: Nest,
    /// The same, of the attention's result and its cotangent where queries and keys were.
    pub(super) out_pairs: Nest,
}

impl AttentionGrad {
    /// Takes one `attention_grad` of operands as they are stored.
    pub fn select(site: &Site<'_>) -> Option<AttentionGrad> {
        let &[root] = &site.body.outputs[..] else { return None };
        let Some(Op::AttentionGrad(op)) = site.body.op(root) else { return None };
        let args = &site.body.node(root).args;
        let mut tables = vec![];
        let mut rows = |arg: usize| HeadRows::of(site.body, args[arg], site.operands, &mut tables);
        let rows = [rows(0)?, rows(1)?, rows(2)?, rows(3)?, rows(4)?];
        if !rows.iter().all(HeadRows::is_plain) {
            return None;
        }
        let mask = match args.get(5) {
            Some(&mask) => {
                let (operand, layout) = operand_view(site.body, mask, site.operands)?;
                Some(Side { operand, layout })
            }
            None => None,
        };
        let (result, rank) = (site.result.clone(), site.result.rank());
        if !result.dtype.is_float() || result.strides[rank - 1] != 1 && result.shape[rank - 1] > 1 {
            return None;
        }
        let [q, k, v, out, grad] = &rows;
        let (sq, sk) = (q.layout.shape[rank - 3], k.layout.shape[rank - 3]);
        let words = Words::of_attention(site.target.isa, site.body.ty(args[0]).dtype(), sq.min(sk));
        Some(AttentionGrad {
            isa: site.target.isa,
            words,
            scale: op.scale,
            sq,
            sk,
            d: q.layout.shape[rank - 1],
            pairs: pairs(&result, [&q.layout, &k.layout, &v.layout], &mask, &None)?,
            out_pairs: pairs(&result, [&out.layout, &grad.layout, &v.layout], &None, &None)?,
            stored: std::array::from_fn(|operand| rows[operand].are_words(words)),
            rows,
            mask,
            result,
        })
    }

    /// Most vectors of query lanes, and of head dims, in a tile.
    pub(super) fn most_vectors(&self) -> usize {
        if self.isa.registers() == 32 { MAX_VECTORS } else { 2 }
    }

    pub(super) fn lanes(&self) -> usize {
        self.isa.lanes()
    }

    /// Queries of a block.
    pub(super) fn block(&self) -> usize {
        self.sq.div_ceil(self.lanes()).min(self.most_vectors()) * self.lanes()
    }

    /// Whether all weights of a block of queries are kept until they are needed again.
    pub(super) fn keeps_weights(&self) -> bool {
        4 * self.block() * self.sk <= KEPT_BYTES
    }

    /// Words of a packed row of head dims.
    pub(super) fn depth(&self) -> usize {
        self.words.padded(self.d.div_ceil(self.words.depths()))
    }

    /// Words from a head dim of pairs of keys to the next, for tile registers.
    pub(super) fn key_stride(&self) -> usize {
        across_stride(self.sk)
    }

    /// Vectors of the groups that head dims are split into.
    pub(super) fn groups(&self) -> impl Iterator<Item = usize> + use<> {
        let vectors = self.d.div_ceil(self.lanes());
        let n_groups = vectors.div_ceil(self.most_vectors());
        (0..n_groups).map(move |group| (vectors + group) / n_groups)
    }

    /// Pairs of one task: whole batch entries where there are many, because heads share cache lines.
    pub(super) fn task_pairs(&self) -> usize {
        let heads = self.result.shape[self.result.rank() - 2];
        let pairs = self.pairs.n_rows().div_ceil(TASKS);
        if pairs < heads { pairs } else { pairs / heads * heads }
    }

    /// Whether the rows of all keys and values are asked for before they are written.
    pub(super) fn writes_ahead(&self) -> bool {
        2 * self.sk * self.d * self.result.dtype.size() <= AHEAD_BYTES
    }

    /// Whether rows of the next pair are asked for early.
    pub(super) fn looks_ahead(&self) -> bool {
        let elements = (3 * self.sq + 2 * self.sk) * self.d;
        elements * self.result.dtype.size() <= AHEAD_BYTES
    }
}

impl KernelDef for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention_grad"
    }

    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("queries", Attr::Int(self.block() as i64)),
            ("words", Attr::Str(self.words.dtype().to_string())),
        ]
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        threads * worker_bytes(self)
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        let tasks = self.pairs.n_rows().div_ceil(self.task_pairs());
        launch.pool.run(tasks, &|item, worker| {
            dispatch(self.isa, Task { kernel: self, shared, item, worker });
        });
    }
}
