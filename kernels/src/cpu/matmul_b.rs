//! Packing of B: a weight's once, an activation's in each run, block by block, as are the digits of both.

use crate::Error;
use crate::pool::Pool;
use crate::simd::digits::{GROUPS, Scales, VECTORS};

use super::matmul::{BOperand, Matmul, MatmulBuffers};
use super::matmul_blocks::Block;
use super::matmul_pack::{DenseB, PackedDigits};
use super::matmul_rows::row_offsets;
use super::words::Words;

impl Matmul {
    /// Packs the part of B that a block needs, for some batch entries.
    ///
    /// # Safety
    /// As [`Matmul::run`].
    pub(super) unsafe fn pack_block(
        &self,
        pool: &Pool,
        buffers: &MatmulBuffers<'_>,
        entries: (usize, usize),
        block: &Block,
    ) {
        let Some(view) = self.dense_b() else { return };
        let panels = block.panels.1 - block.panels.0;
        let (from, to) = (self.words.depth(block.words.0), self.words.depth(block.words.1));
        // Digits are made of neighbors together, in shares as even as may be.
        let most = if self.words.digits().is_some() { GROUPS / VECTORS } else { 1 };
        let shares = panels.div_ceil(most).next_multiple_of(pool.threads());
        let neighbors = panels.div_ceil(shares);
        let items = panels.div_ceil(neighbors);
        pool.run((entries.1 - entries.0) * items, &|item, _| {
            let (entry, index) = (item / items, item % items * neighbors);
            let count = neighbors.min(panels - index);
            let depth = (from, self.spec.depth.min(to));
            let start = index * self.panel.columns() * (block.words.1 - block.words.0);
            let at = entry * self.packed_block_bytes() + start * size_of::<f32>();
            let panel = block.panels.0 + index;
            // SAFETY: B covers its view; each item writes its own panels of scratch.
            unsafe {
                let packed = buffers.scratch.add(at);
                let scales = self.packed_b_scales() + entry * self.b_scales_bytes();
                let scales = buffers.scratch.add(scales).cast::<Scales>();
                let blocks = (block.words.1 - block.words.0).div_ceil(self.depth_block);
                let panel_scales = blocks * VECTORS;
                let scales = scales.add(index * panel_scales);
                let mut offset = [0];
                let batch = entries.0 + entry;
                row_offsets(&self.spec.batch, &view.batch_strides, batch, &mut offset);
                let start = (view.offset + offset[0]) * view.dtype.size();
                let dense = DenseB {
                    start: buffers.b.add(start),
                    strides: (view.depth_stride, view.column_stride),
                    columns: self.spec.columns,
                    depth,
                    dtype: view.dtype,
                };
                self.pack_panels((panel, count), &dense, packed, scales);
            }
        });
    }

    /// Packs neighboring panels: the first one, and how many.
    ///
    /// # Safety
    /// As [`PanelShape::pack`], for all of them.
    unsafe fn pack_panels(
        &self,
        panels: (usize, usize),
        dense: &DenseB,
        packed: *mut u8,
        scales: *mut Scales,
    ) {
        // SAFETY: passed on.
        unsafe {
            match self.words.digits() {
                Some(tiles) => {
                    let digits = packed.cast();
                    let (low, depth_block) = (self.b_low(), self.depth_block);
                    let to = PackedDigits { digits, low, scales, depth_block };
                    self.panel.pack_digits(tiles, panels, dense, &to);
                }
                None => self.panel.pack(panels.0, dense, packed, self.words.dtype()),
            }
        }
    }

    /// Bytes of a packed B.
    pub fn packed_b_bytes(&self) -> usize {
        let dtype = match &self.spec.b {
            BOperand::Packed(dtype) => *dtype,
            BOperand::Dense(view) => view.dtype,
        };
        self.panel.packed_bytes(self.spec.columns, self.spec.depth, dtype)
    }

    /// How B is packed: products with equal names and shapes take each other's.
    pub fn packed_b_form(&self) -> &'static str {
        match self.words {
            Words::F32 | Words::F32Digits(_) => "panels",
            Words::Bf16Pairs(_) => "pairs",
            Words::Bf16Tiles(_) => "tiles",
        }
    }

    /// Packs B for [`BOperand::Packed`]: from `dense`, of B's type with element `(k, n)` at
    /// `k * strides.0 + n * strides.1`, to `packed`.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if B is not to be packed, or a slice has a wrong length.
    pub fn pack_b(
        &self,
        pool: &Pool,
        dense: &[u8],
        strides: (usize, usize),
        packed: &mut [u8],
    ) -> Result<(), Error> {
        let invalid = |reason: String| Err(Error::InvalidSpec { kernel: "matmul", reason });
        let BOperand::Packed(dtype) = self.spec.b else {
            return invalid("B is read where it is".to_owned());
        };
        let (columns, depth) = (self.spec.columns, self.spec.depth);
        let needed = ((depth - 1) * strides.0 + (columns - 1) * strides.1 + 1) * dtype.size();
        if dense.len() < needed {
            let found = dense.len();
            return invalid(format!("dense B has {found} bytes, expected {needed}"));
        }
        let bytes = self.packed_b_bytes();
        if packed.len() != bytes {
            return invalid(format!("packed B has {} bytes, expected {bytes}", packed.len()));
        }
        struct Pointers(*const u8, *mut u8);
        // SAFETY: items write disjoint panels and only read the dense bytes.
        unsafe impl Sync for Pointers {}
        impl Pointers {
            fn get(&self) -> (*const u8, *mut u8) {
                (self.0, self.1)
            }
        }
        let pointers = Pointers(dense.as_ptr(), packed.as_mut_ptr());
        pool.run(columns.div_ceil(self.panel.columns()), &|panel, _| {
            let (dense, packed) = pointers.get();
            // SAFETY: lengths were checked above.
            unsafe {
                let dense = DenseB { start: dense, strides, columns, depth: (0, depth), dtype };
                let start = self.panel.start(panel, depth) * dtype.size();
                self.panel.pack(panel, &dense, packed.add(start), dtype);
            }
        });
        Ok(())
    }
}
