//! Packed B: panels of columns, each stored depth by depth, so that the register tile reads
//! memory in one straight line.
//!
//! A panel is as wide as the full tile; the last one is narrower by whole vectors, and padded with
//! zeros to one. All panels follow each other without gaps.

use half::{bf16, f16};
use ops::DType;

use crate::isa::Isa;
use crate::simd::Simd;

use super::matmul_tile;

/// Columns of a panel, by instruction set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PanelShape {
    pub(super) lanes: usize,
    vectors: usize,
}

impl PanelShape {
    pub(super) fn of(isa: Isa) -> Self {
        Self { lanes: isa.lanes(), vectors: matmul_tile::shape(isa.registers()).1 }
    }

    /// Columns of a full panel.
    pub(super) fn columns(self) -> usize {
        self.lanes * self.vectors
    }

    /// Vectors of panel number `panel`.
    #[inline(always)]
    pub(super) fn vectors_of(self, panel: usize, columns: usize) -> usize {
        (columns - panel * self.columns()).div_ceil(self.lanes).min(self.vectors)
    }

    /// Bytes of all panels.
    pub(super) fn packed_bytes(self, columns: usize, depth: usize, dtype: DType) -> usize {
        columns.next_multiple_of(self.lanes) * depth * dtype.size()
    }

    /// Packs one panel from `dense`, with element `(k, n)` at `k * strides.0 + n * strides.1`.
    /// `types` are those of the dense and of the packed elements.
    ///
    /// # Safety
    /// `dense` is readable for all of B, `packed` (start of panel 0) writable for all panels.
    #[allow(clippy::too_many_arguments, reason = "two matrices and their shape")]
    pub(super) unsafe fn pack(
        self,
        panel: usize,
        columns: usize,
        depth: usize,
        dense: *const u8,
        strides: (usize, usize),
        packed: *mut u8,
        types: (DType, DType),
    ) {
        let first = panel * self.columns();
        let width = self.vectors_of(panel, columns) * self.lanes;
        let strip = Strip { depth, width, valid: width.min(columns - first), strides };
        // SAFETY: the caller's promise.
        unsafe {
            let dense = dense.add(first * strides.1 * types.0.size());
            let packed = packed.add(first * depth * types.1.size());
            match types {
                (DType::F32, _) => strip.copy::<f32, f32>(dense, packed, |x| x),
                (DType::Bf16, DType::F32) => strip.copy(dense, packed, bf16::to_f32),
                (DType::F16, DType::F32) => strip.copy(dense, packed, f16::to_f32),
                _ => strip.copy::<u16, u16>(dense, packed, |x| x),
            }
        }
    }
}

/// The part of B that becomes one panel.
struct Strip {
    depth: usize,
    width: usize,
    /// Columns that B has; the rest of the width is padding.
    valid: usize,
    strides: (usize, usize),
}

impl Strip {
    /// # Safety
    /// As [`PanelShape::pack`].
    unsafe fn copy<T: Copy, U: Copy + Default>(
        &self,
        dense: *const u8,
        packed: *mut u8,
        convert: impl Fn(T) -> U,
    ) {
        /// Depths at a time: a cache line of f32, where the depth is contiguous in B.
        const BLOCK: usize = 16;
        let (dense, packed) = (dense.cast::<T>(), packed.cast::<U>());
        let (depth_stride, column_stride) = self.strides;
        // SAFETY: positions lie within B and within the panel; neither need be aligned.
        unsafe {
            for start in (0..self.depth).step_by(BLOCK) {
                let end = (start + BLOCK).min(self.depth);
                if column_stride == 1 {
                    for k in start..end {
                        let (from, to) = (dense.add(k * depth_stride), packed.add(k * self.width));
                        for n in 0..self.valid {
                            to.add(n).write_unaligned(convert(from.add(n).read_unaligned()));
                        }
                    }
                } else {
                    for n in 0..self.valid {
                        let from = dense.add(n * column_stride);
                        for k in start..end {
                            let x = from.add(k * depth_stride).read_unaligned();
                            packed.add(k * self.width + n).write_unaligned(convert(x));
                        }
                    }
                }
                for k in start..end {
                    for n in self.valid..self.width {
                        packed.add(k * self.width + n).write_unaligned(U::default());
                    }
                }
            }
        }
    }
}

/// Widens `n` packed bf16 or f16 elements, whole vectors.
///
/// # Safety
/// `packed` is readable and `wide` writable for `n` elements.
#[inline(always)]
pub(super) unsafe fn widen<S: Simd>(
    s: S,
    dtype: DType,
    packed: *const u8,
    n: usize,
    wide: *mut f32,
) {
    let packed = packed.cast::<u16>();
    // SAFETY: the caller's promise.
    unsafe {
        if dtype == DType::Bf16 {
            for i in (0..n).step_by(S::LANES) {
                s.store(wide.add(i), s.load_bf16(packed.add(i)));
            }
        } else {
            for i in (0..n).step_by(S::LANES) {
                s.store(wide.add(i), s.load_f16(packed.add(i)));
            }
        }
    }
}
