//! Norms of rows that a reduction folds: the gradient of a norm's weight or modulation is the sum of the norm times
//! its cotangent. The norm is made again of what was normalized, row by row in the nearest cache, so that it need not
//! be kept, or stored and read back.

use ops::{Graph, ValueId};

use crate::Layout;
use crate::body::{Elementwise, Leaf, Source, operand_view};
use crate::program::{SlotPtr, load_f32};
use crate::simd::Simd;

use super::joined_rows::{Coming, JOINED};
use super::norm::{RowNorm, normalize};

/// The norm that a leaf of a prologue stands for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct NormedRows {
    norm: RowNorm,
    /// The leaf; it reads what is normalized.
    pub(super) leaf: usize,
}

impl NormedRows {
    /// The norm of rows in `body`, if there is exactly one.
    pub(super) fn find(body: &Graph) -> Option<(ValueId, RowNorm)> {
        let mut found = body.values().filter_map(|value| {
            let norm = RowNorm::of(body.op(value)?).filter(|norm| *norm != RowNorm::Softmax);
            norm.map(|norm| (value, norm))
        });
        found.next().filter(|_| found.next().is_none())
    }

    /// Lets the leaf of `prologue` that stands for the norm `value`, its only frontier, read what is normalized: an
    /// operand, as it is.
    pub(super) fn of(
        body: &Graph,
        (value, norm): (ValueId, RowNorm),
        operands: &[Layout],
        prologue: &mut Elementwise,
    ) -> Option<Self> {
        let is_norm = |leaf: &Leaf| leaf.source == Source::Frontier(0);
        let index = prologue.leaves.iter().position(is_norm)?;
        let (operand, layout) = operand_view(body, body.node(value).args[0], operands)?;
        let leaf = &mut prologue.leaves[index];
        if layout.shape != leaf.layout.shape || !layout.dtype.is_float() {
            return None;
        }
        *leaf = Leaf { source: Source::Operand(operand), layout };
        Some(Self { norm, leaf: index })
    }

    /// Elements of scratch for rows of `n` elements: they may be as many as join, or one.
    pub(super) fn scratch_len(n: usize) -> usize {
        2 * Self::rows_len(n)
    }

    fn rows_len(n: usize) -> usize {
        JOINED.max(n).next_multiple_of(crate::simd::MAX_LANES)
    }

    /// The norms of `count` rows of `n` elements, which follow each other in `from`, in scratch.
    ///
    /// # Safety
    /// The rows are readable, at most as many as join or one; `scratch` is writable for [`NormedRows::scratch_len`].
    /// Meanwhile the rows of `coming` are asked for.
    #[inline(always)]
    pub(super) unsafe fn make<S: Simd>(
        &self,
        s: S,
        (from, leaf): (SlotPtr, &Leaf),
        (count, n): (usize, usize),
        scratch: *mut f32,
        coming: &Coming,
    ) -> SlotPtr {
        let wide = scratch.wrapping_add(Self::rows_len(n));
        // SAFETY: the caller's promise.
        unsafe {
            let x = load_f32(s, leaf.layout.dtype, from, count * n, wide);
            for first in (0..count).step_by(S::LANES) {
                let batch = S::LANES.min(count - first);
                let (x, y) = (x.add(first * n), scratch.add(first * n));
                normalize(s, self.norm, x, (batch, n), y, (coming, first));
            }
        }
        SlotPtr { ptr: scratch.cast_const().cast(), stride: 1 }
    }
}
