//! Where a worker keeps what the gradients of attention take.

use super::attention::KEY_BLOCK;
use super::attention_grad::AttentionGrad;
use super::attention_rows::padded;
use super::shared::{Shared, aligned};

/// A worker's scratch, all f32.
#[derive(Clone, Copy)]
pub(super) struct Area {
    /// `[Sk, D]`: of the keys that take part.
    pub(super) keys: *mut f32,
    pub(super) values: *mut f32,
    /// `[Sk, D]` by groups of head dims, `[Sk, lanes of the group]` each.
    pub(super) by_keys: *mut f32,
    pub(super) by_values: *mut f32,
    /// `[D, block]`: queries and cotangents, transposed.
    pub(super) queries: *mut f32,
    pub(super) grads: *mut f32,
    /// `[block, D]` by groups, as those of keys.
    pub(super) query_rows: *mut f32,
    pub(super) grad_rows: *mut f32,
    /// `[D, block]`: gradients of the queries.
    pub(super) by_queries: *mut f32,
    /// `[KEY_BLOCK, block]`: weights, then their gradients.
    pub(super) weights: *mut f32,
    pub(super) by_scores: *mut f32,
    /// `[block]` each.
    pub(super) reference: *mut f32,
    pub(super) sum: *mut f32,
    pub(super) delta: *mut f32,
    /// `[block, D]`: rows on their way.
    pub(super) rows: *mut f32,
    /// `[D]`, whole vectors.
    pub(super) made: *mut f32,
    /// `[Sk]`: which keys take part.
    pub(super) kept: *mut u32,
}

impl Area {
    /// Offsets of the parts, in the order of the fields, and the size of all.
    fn layout(kernel: &AttentionGrad) -> ([usize; 17], usize) {
        let (sk, d, block) = (kernel.sk, kernel.d, kernel.block());
        let whole = d.next_multiple_of(kernel.lanes());
        let scores = KEY_BLOCK.min(sk) * block;
        let lens = [
            sk * d,
            sk * d,
            sk * whole,
            sk * whole,
            d * block,
            d * block,
            block * whole,
            block * whole,
            d * block,
            scores,
            scores,
            block,
            block,
            block,
            block * d,
            padded(d),
            sk,
        ];
        let mut offsets = [0; 17];
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
        Area {
            keys: part(0),
            values: part(1),
            by_keys: part(2),
            by_values: part(3),
            queries: part(4),
            grads: part(5),
            query_rows: part(6),
            grad_rows: part(7),
            by_queries: part(8),
            weights: part(9),
            by_scores: part(10),
            reference: part(11),
            sum: part(12),
            delta: part(13),
            rows: part(14),
            made: part(15),
            kept: part(16).cast(),
        }
    }
}

/// Bytes of scratch of one worker.
pub(super) fn worker_bytes(kernel: &AttentionGrad) -> usize {
    Area::layout(kernel).1
}
