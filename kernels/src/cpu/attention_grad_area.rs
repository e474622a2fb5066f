//! Where a worker keeps what the gradients of attention take.

use super::attention::KEY_BLOCK;
use super::attention_grad::AttentionGrad;
use super::attention_rows::padded;
use super::shared::{Shared, aligned};

/// A worker's scratch. Words are those of the products: one f32, or two bf16 of the axis that is named.
#[derive(Clone, Copy)]
pub(super) struct Area {
    /// `[Sk, D]` in words of head dims: of the keys that take part.
    pub(super) keys: *mut f32,
    pub(super) values: *mut f32,
    /// `[Sk, D]` in words of keys, for tile registers `[D, Sk]`, `key_stride` words apart; where a word is one
    /// element, the keys.
    pub(super) key_pairs: *mut f32,
    /// `[Sk, D]` by groups of head dims, `[Sk, lanes of the group]` each, f32.
    pub(super) by_keys: *mut f32,
    pub(super) by_values: *mut f32,
    /// `[D, block]` in words of head dims: queries and cotangents, transposed.
    pub(super) queries: *mut f32,
    pub(super) grads: *mut f32,
    /// `[block, D]` in words of queries, by groups as those of keys.
    pub(super) query_rows: *mut f32,
    pub(super) grad_rows: *mut f32,
    /// `[D, block]`, f32: gradients of the queries; before, the attention's result in words of head dims.
    pub(super) by_queries: *mut f32,
    /// `[KEY_BLOCK or Sk, block]`, f32: weights before they are normalized.
    pub(super) raw: *mut f32,
    /// `[KEY_BLOCK, block]` in words of queries: weights; null where a word is one element, whose weights are
    /// normalized in place.
    pub(super) weights: *mut f32,
    /// `[KEY_BLOCK, block]` in words of keys: gradients of scores.
    pub(super) by_scores: *mut f32,
    /// The same in words of queries; where a word is one element, the same part.
    pub(super) by_score_rows: *mut f32,
    /// `[block]` each, f32.
    pub(super) reference: *mut f32,
    pub(super) sum: *mut f32,
    pub(super) delta: *mut f32,
    /// `[block, D]`: rows on their way, in f32 or in words of head dims.
    pub(super) rows: *mut f32,
    /// `[D]`, whole vectors.
    pub(super) made: *mut f32,
    /// `[Sk]`: which keys take part.
    pub(super) kept: *mut u32,
}

/// Parts of a worker's scratch.
const PARTS: usize = 20;

impl Area {
    /// Offsets of the parts, in the order of the fields, and the size of all.
    fn layout(kernel: &AttentionGrad) -> ([usize; PARTS], usize) {
        let (sk, d, block) = (kernel.sk, kernel.d, kernel.block());
        let elements = kernel.words.depths();
        let depth = kernel.depth();
        let whole = d.next_multiple_of(kernel.lanes());
        // An even number of keys, so that it is the same number of words of keys and of queries.
        let scores = kernel.words.padded(KEY_BLOCK.min(sk).div_ceil(elements)) * block;
        let second = |len: usize| if elements == 1 { 0 } else { len };
        let key_pairs = if kernel.words.are_tiles() {
            d * kernel.key_stride()
        } else {
            sk.div_ceil(elements) * d
        };
        let lens = [
            sk * depth,
            sk * depth,
            second(key_pairs),
            sk * whole,
            sk * whole,
            depth * block,
            depth * block,
            block * whole / elements,
            block * whole / elements,
            d.max(depth) * block,
            if kernel.keeps_weights() { sk } else { KEY_BLOCK } * block,
            second(scores),
            scores,
            second(scores),
            block,
            block,
            block,
            block * d.max(depth),
            padded(d),
            sk,
        ];
        let mut offsets = [0; PARTS];
        let mut end = 0;
        for (offset, len) in offsets.iter_mut().zip(lens) {
            *offset = end;
            end += aligned(4 * len);
        }
        (offsets, end)
    }

    /// # Safety
    /// The scratch has parts for more than `worker` workers.
    pub(super) unsafe fn new(kernel: &AttentionGrad, shared: Shared<'_>, worker: usize) -> Area {
        let (offsets, bytes) = Area::layout(kernel);
        // SAFETY: offsets are below `bytes`.
        let part =
            |i: usize| unsafe { shared.scratch().add(worker * bytes + offsets[i]).cast::<f32>() };
        let is_single = kernel.words.depths() == 1;
        Area {
            keys: part(0),
            values: part(1),
            key_pairs: if is_single { part(0) } else { part(2) },
            by_keys: part(3),
            by_values: part(4),
            queries: part(5),
            grads: part(6),
            query_rows: part(7),
            grad_rows: part(8),
            by_queries: part(9),
            raw: part(10),
            weights: if is_single { std::ptr::null_mut() } else { part(11) },
            by_scores: part(12),
            by_score_rows: if is_single { part(12) } else { part(13) },
            reference: part(14),
            sum: part(15),
            delta: part(16),
            rows: part(17),
            made: part(18),
            kept: part(19).cast(),
        }
    }
}

/// Bytes of scratch of one worker.
pub(super) fn worker_bytes(kernel: &AttentionGrad) -> usize {
    Area::layout(kernel).1
}
