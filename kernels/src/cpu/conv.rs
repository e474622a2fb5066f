//! Convolution as an implicit product: rows are output positions, the depth runs over taps and
//! channels, columns are output channels.
//!
//! One task computes a block of positions. It gathers their patches into scratch, a pass of the
//! depth at a time (neighboring taps of a channels-last row are one copy), walks the packed panels
//! of the weight with the register tile of the matrix product, keeps the sums in the second-level
//! cache, and applies the epilogue (bias, activation, residual) when they are complete. A 1-wide
//! kernel gathers plain rows, which makes it a plain product. Roofline: the FMA units.
//!
//! Invariant: sums add blocks of the depth in order, and the blocks depend on the depth alone, so
//! bytes depend neither on threads nor on how positions are split.

use ops::defs::conv::Window;
use ops::{Attr, DType, Op};

use crate::kernel::{KernelDef, Launch, Packing, Site};
use crate::program::{MAX_SLOTS, SlotPtr, load_f32};
use crate::simd::{Simd, SimdJob, dispatch};
use crate::{Isa, Layout, Pool};

use super::body::{Elementwise, Source, compile_elementwise, operand_view};
use super::lanes::copy;
use super::matmul_pack::{self, PanelShape};
use super::matmul_tile::{self, Tile, Words};
use super::nest::Nest;
use super::shared::{Shared, aligned};

/// Largest block of the depth.
const MAX_DEPTH_BLOCK: usize = 320;
/// Blocks of the depth that patches are gathered for at a time.
const BLOCKS_PER_PASS: usize = 2;
/// Spatial axes; missing ones count as 1, in front.
const SPATIAL: usize = 3;

/// A convolution with everything that is fused into it.
#[derive(Clone, Debug)]
pub struct Conv {
    isa: Isa,
    x: Side,
    weight: Side,
    /// Whether the weight is packed at load; else every run packs it.
    is_packed: bool,
    input: [usize; SPATIAL],
    output: [usize; SPATIAL],
    kernel: [usize; SPATIAL],
    stride: [usize; SPATIAL],
    pad_low: [usize; SPATIAL],
    channels: usize,
    columns: usize,
    result: Layout,
    epilogue: Elementwise,
    /// Rows of output channels: layout 0 is the result, `1 + i` the epilogue's leaf `i`.
    nest: Nest,
    panel: PanelShape,
    depth_block: usize,
    block_rows: usize,
}

/// An operand.
#[derive(Clone, Debug)]
struct Side {
    operand: usize,
    layout: Layout,
}

impl Conv {
    /// Takes one `conv` with an elementwise epilogue.
    pub fn select(site: &Site<'_>) -> Option<Conv> {
        let &[root] = &site.body.outputs[..] else { return None };
        let mut found = site.body.values().filter_map(|value| match site.body.op(value)? {
            Op::Conv(conv) => Some((value, &conv.window)),
            _ => None,
        });
        let (value, window) = found.next()?;
        let shape = site.body.ty(value).shape();
        if found.next().is_some() || shape != site.result.shape {
            return None;
        }
        let args = &site.body.node(value).args;
        let side = |arg: usize| {
            let (operand, layout) = operand_view(site.body, args[arg], site.operands)?;
            Some(Side { operand, layout })
        };
        let (x, weight) = (side(0)?, side(1)?);
        let isa = site.target.isa;
        let epilogue = compile_elementwise(site.body, root, &[value], site.operands)?;
        let mut layouts = vec![site.result];
        for leaf in &epilogue.leaves {
            let is_scratch = matches!(leaf.source, Source::Frontier(_));
            layouts.push(if is_scratch { site.result } else { &leaf.layout });
        }
        let rank = shape.len();
        let nest = Nest::with_row(&layouts, rank - 1)?;
        if nest.row_stride(0) != 1 && shape[rank - 1] > 1 {
            return None;
        }
        let spatial = rank - 2;
        let at_end = |dims: &[usize], fill: usize| {
            let mut all = [fill; SPATIAL];
            all[SPATIAL - spatial..].copy_from_slice(dims);
            all
        };
        let Window { stride, pad_low, pad_high: _ } = window;
        let kernel = at_end(&weight.layout.shape[2..], 1);
        let (channels, columns) = (x.layout.shape[rank - 1], shape[rank - 1]);
        let depth = channels * kernel.iter().product::<usize>();
        let n_blocks = depth.div_ceil(MAX_DEPTH_BLOCK);
        let depth_block = depth.div_ceil(n_blocks).next_multiple_of(4);
        let panel = PanelShape::of(isa, Words::F32);
        // Patches and sums of a block of rows take about half of the second-level cache.
        let tile_rows = matmul_tile::shape(isa.registers()).0;
        let pass = (depth_block * BLOCKS_PER_PASS).min(depth);
        let row_bytes = 4 * (pass + columns.next_multiple_of(panel.lanes));
        let fit = site.target.l2_bytes * 11 / 20 / row_bytes / tile_rows * tile_rows;
        let block_rows = fit.clamp(4 * tile_rows, 30 * tile_rows);
        let is_own = *site.is_param.get(weight.operand)?
            && weight.layout.is_dense()
            && weight.layout.offset == 0
            && weight.layout.shape == site.operands[weight.operand].shape;
        Some(Conv {
            isa,
            is_packed: is_own,
            input: at_end(&x.layout.shape[1..=spatial], 1),
            output: at_end(&shape[1..=spatial], 1),
            kernel,
            stride: at_end(stride, 1),
            pad_low: at_end(pad_low, 0),
            channels,
            columns,
            result: site.result.clone(),
            x,
            weight,
            epilogue,
            nest,
            panel,
            depth_block,
            block_rows,
        })
    }

    fn depth(&self) -> usize {
        self.channels * self.kernel.iter().product::<usize>()
    }

    fn depth_pass(&self) -> usize {
        (self.depth_block * BLOCKS_PER_PASS).min(self.depth())
    }

    fn positions(&self) -> usize {
        self.result.count() / self.columns
    }

    fn panels(&self) -> usize {
        self.columns.div_ceil(self.panel.columns())
    }

    /// Values from one patch to the next: an odd number of cache lines, so that the rows of a tile
    /// do not compete for sets of the first-level cache.
    fn a_stride(&self) -> usize {
        (self.depth_pass().div_ceil(16) | 1) * 16
    }

    fn sums_stride(&self) -> usize {
        self.columns.next_multiple_of(self.panel.lanes)
    }

    fn packed_bytes(&self) -> usize {
        self.panel.packed_bytes(self.columns, self.depth(), self.weight.layout.dtype)
    }

    /// Patches, sums, a widened block of a panel, the program.
    fn parts(&self) -> ([usize; 4], usize) {
        let lens = [
            self.block_rows * self.a_stride(),
            self.block_rows * self.sums_stride(),
            self.depth_block * self.panel.columns(),
            self.epilogue.program.scratch_len(),
        ];
        let mut end = 0;
        let offsets = lens.map(|len| {
            let start = end;
            end += aligned(4 * len);
            start
        });
        (offsets, end)
    }

    /// Bytes of the scratch that hold the weight if every run packs it.
    fn own_weight_bytes(&self) -> usize {
        if self.is_packed { 0 } else { aligned(self.packed_bytes()) }
    }

    /// Row blocks and column ranges for `threads`; the choice does not reach the numbers.
    fn split(&self, threads: usize) -> (usize, usize) {
        let tile_rows = matmul_tile::shape(self.isa.registers()).0;
        let tiles = self.positions().div_ceil(tile_rows);
        let blocks = self.positions().div_ceil(self.block_rows);
        if blocks >= 4 * threads {
            return (blocks.next_multiple_of(threads).min(tiles), 1);
        }
        // A smaller block reads the whole weight for less work, a range gathers patches again.
        let blocks = (2 * threads).max(blocks).min(tiles.div_ceil(4)).max(blocks);
        let ranges = (2 * threads).div_ceil(blocks).min(self.panels());
        (blocks, ranges)
    }

    /// Packs panel `panel` of the weight.
    ///
    /// # Safety
    /// `dense` is the base of a buffer that holds `layout`, a layout of the weight; `packed` is
    /// writable for all panels.
    unsafe fn pack_panel(&self, panel: usize, layout: &Layout, dense: *const u8, packed: *mut u8) {
        let size = layout.dtype.size();
        let taps: usize = self.kernel.iter().product();
        let first = panel * self.panel.columns();
        let width = self.panel.vectors_of(panel, self.columns) * self.panel.lanes;
        let start = first * self.depth() * size;
        let spatial = layout.rank() - 2;
        for k in 0..taps * self.channels {
            let (mut tap, channel) = (k / self.channels, k % self.channels);
            let mut row = layout.offset + channel * layout.strides[1];
            for axis in (0..spatial).rev() {
                row += tap % layout.shape[axis + 2] * layout.strides[axis + 2];
                tap /= layout.shape[axis + 2];
            }
            for n in 0..width {
                // SAFETY: the element lies within the weight, the target within the panel.
                unsafe {
                    let to = packed.add(start + (k * width + n) * size);
                    if first + n < self.columns {
                        let at = row + (first + n) * layout.strides[0];
                        std::ptr::copy_nonoverlapping(dense.add(at * size), to, size);
                    } else {
                        std::ptr::write_bytes(to, 0, size);
                    }
                }
            }
        }
    }
}

impl KernelDef for Conv {
    fn name(&self) -> &'static str {
        "conv"
    }

    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("block_rows", Attr::Int(self.block_rows as i64)),
            ("depth_block", Attr::Int(self.depth_block as i64)),
        ]
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        self.own_weight_bytes() + threads * self.parts().1
    }

    fn packing(&self, operand: usize) -> Option<Packing> {
        (self.is_packed && operand == self.weight.operand).then(|| {
            let dtype = self.weight.layout.dtype.name();
            let width = self.panel.columns();
            let (taps, channels) = (self.depth() / self.channels, self.channels);
            Packing {
                name: format!("taps.{dtype}.t{taps}.c{channels}.n{width}"),
                bytes: self.packed_bytes(),
            }
        })
    }

    fn pack(&self, operand: usize, dense: &[u8], packed: &mut [u8], pool: &Pool) {
        assert_eq!(operand, self.weight.operand, "conv packs its weight only");
        assert_eq!(dense.len(), self.weight.layout.count() * self.weight.layout.dtype.size());
        assert_eq!(packed.len(), self.packed_bytes());
        let bases = [dense.as_ptr()];
        let launch = Launch {
            pool,
            operands: &bases,
            result: packed.as_mut_ptr(),
            scratch: packed.as_mut_ptr(),
        };
        let shared = Shared::new(&launch);
        pool.run(self.panels(), &|panel, _| {
            // SAFETY: lengths were checked above; panels do not overlap.
            unsafe {
                let (dense, packed) = (shared.operand(0), shared.result());
                self.pack_panel(panel, &self.weight.layout, dense, packed);
            }
        });
    }

    fn may_alias(&self, operand: usize) -> bool {
        operand != self.x.operand
            && operand != self.weight.operand
            && self.epilogue.may_alias(operand, &self.result)
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        if !self.is_packed {
            launch.pool.run(self.panels(), &|panel, _| {
                // SAFETY: the weight's buffer holds its layout, the scratch the packed weight.
                unsafe {
                    let dense = shared.operand(self.weight.operand);
                    self.pack_panel(panel, &self.weight.layout, dense, shared.scratch());
                }
            });
        }
        let (blocks, ranges) = self.split(launch.pool.threads());
        launch.pool.run(blocks * ranges, &|item, worker| {
            let tile_rows = matmul_tile::shape(self.isa.registers()).0;
            let tiles = self.positions().div_ceil(tile_rows);
            let (block, range) = (item / ranges, item % ranges);
            let row = |block: usize| (tiles * block / blocks * tile_rows).min(self.positions());
            let rows = (row(block), row(block + 1));
            let panels = (self.panels() * range / ranges, self.panels() * (range + 1) / ranges);
            // A block may come out above `block_rows` when it is spread over whole tiles.
            let mut first = rows.0;
            while first < rows.1 {
                let last = rows.1.min(first + self.block_rows);
                let task = Task { conv: self, shared, rows: (first, last), panels, worker };
                dispatch(self.isa, task);
                first = last;
            }
        });
    }
}

/// A block of positions by a range of panels.
struct Task<'a> {
    conv: &'a Conv,
    shared: Shared<'a>,
    rows: (usize, usize),
    panels: (usize, usize),
    worker: usize,
}

impl SimdJob for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let conv = self.conv;
        let (offsets, bytes) = conv.parts();
        let n_rows = self.rows.1 - self.rows.0;
        if n_rows == 0 || self.panels.0 == self.panels.1 {
            return;
        }
        // SAFETY: the caller of `KernelDef::run` promises operands, result and scratch.
        unsafe {
            let scratch = self.shared.scratch().add(conv.own_weight_bytes() + self.worker * bytes);
            let [patches, sums, wide, program] =
                offsets.map(|offset| scratch.add(offset).cast::<f32>());
            let mut start = 0;
            while start < conv.depth() {
                let end = (start + conv.depth_pass()).min(conv.depth());
                for row in 0..n_rows {
                    let to = patches.add(row * conv.a_stride());
                    self.gather(s, self.rows.0 + row, (start, end), to);
                }
                self.multiply(s, n_rows, (start, end), patches, sums, wide);
                start = end;
            }
            self.epilogue(s, n_rows, sums, program);
        }
    }
}

impl Task<'_> {
    /// Elements `from..to` of the depth of the patch of position `position`.
    ///
    /// # Safety
    /// As [`KernelDef::run`]; `patch` is writable for `to - from` values.
    #[inline(always)]
    unsafe fn gather<S: Simd>(
        &self,
        s: S,
        position: usize,
        (from, to): (usize, usize),
        patch: *mut f32,
    ) {
        let conv = self.conv;
        let Side { operand, layout } = &conv.x;
        let spatial = layout.rank() - 2;
        let mut strides = [0; SPATIAL];
        strides[SPATIAL - spatial..].copy_from_slice(&layout.strides[1..=spatial]);
        let channel_stride = layout.strides[spatial + 1];
        let [depth_out, height_out, width_out] = conv.output;
        let column = position % width_out;
        let line = position / width_out % height_out;
        let plane = position / width_out / height_out % depth_out;
        let sample = position / width_out / height_out / depth_out;
        let base = layout.offset + sample * layout.strides[0];
        let [_, kernel_height, kernel_width] = conv.kernel;
        let run = kernel_width * conv.channels;
        // Taps of a row that meet the input.
        let left = column * conv.stride[2];
        let first = conv.pad_low[2].saturating_sub(left).min(kernel_width);
        let last = (conv.input[2] + conv.pad_low[2]).saturating_sub(left).min(kernel_width);
        let is_joined = channel_stride == 1 && strides[2] == conv.channels;
        // SAFETY: positions inside the input lie within its buffer.
        unsafe {
            let x = self.shared.operand(*operand);
            let mut k = from;
            while k < to {
                let (tap_row, within) = (k / run, k % run);
                let end = (run - within).min(to - k) + within;
                let patch = patch.add(k - from);
                k += end - within;
                let inside = |axis: usize, out: usize, tap: usize| {
                    (out * conv.stride[axis] + tap)
                        .checked_sub(conv.pad_low[axis])
                        .filter(|&at| at < conv.input[axis])
                };
                let at = inside(0, plane, tap_row / kernel_height).zip(inside(
                    1,
                    line,
                    tap_row % kernel_height,
                ));
                let Some((z, y)) = at.filter(|_| first < last) else {
                    std::ptr::write_bytes(patch, 0, end - within);
                    continue;
                };
                let row = base + z * strides[0] + y * strides[1];
                // Zeros to the left, elements, zeros to the right; each clipped to the pass.
                let low = (first * conv.channels).clamp(within, end);
                let high = (last * conv.channels).clamp(low, end);
                std::ptr::write_bytes(patch, 0, low - within);
                std::ptr::write_bytes(patch.add(high - within), 0, end - high);
                let mut i = low;
                while i < high {
                    let (tap, channel) = (i / conv.channels, i % conv.channels);
                    let n =
                        if is_joined { high - i } else { (conv.channels - channel).min(high - i) };
                    let column = left + tap - conv.pad_low[2];
                    let at = row + column * strides[2] + channel * channel_stride;
                    let ptr = x.add(at * layout.dtype.size());
                    let stride = if n == 1 { 1 } else { channel_stride as isize };
                    let to = patch.add(i - within);
                    let values = load_f32(s, layout.dtype, SlotPtr { ptr, stride }, n, to);
                    if values != to.cast_const() {
                        copy(s, values, n, to);
                    }
                    i += n;
                }
            }
        }
    }

    /// Adds the part `start..end` of the depth to the sums of all rows and panels.
    ///
    /// # Safety
    /// As in `run`.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(
        &self,
        s: S,
        n_rows: usize,
        (pass_start, pass_end): (usize, usize),
        patches: *const f32,
        sums: *mut f32,
        wide: *mut f32,
    ) {
        let conv = self.conv;
        let dtype = conv.weight.layout.dtype;
        let size = dtype.size();
        let tile_rows = const { matmul_tile::shape(S::REGISTERS).0 };
        let width = |panel: usize| conv.panel.vectors_of(panel, conv.columns) * S::LANES;
        // SAFETY: panels lie within the packed weight, tiles within patches and sums.
        unsafe {
            let packed = if conv.is_packed {
                self.shared.operand(conv.weight.operand)
            } else {
                self.shared.scratch().cast_const()
            };
            let position = |panel: usize, depth: usize| {
                (panel * conv.panel.columns() * conv.depth() + depth * width(panel)) * size
            };
            for panel in self.panels.0..self.panels.1 {
                let vectors = width(panel) / S::LANES;
                let mut start = pass_start;
                while start < pass_end {
                    let depth = conv.depth_block.min(pass_end - start);
                    let block = packed.add(position(panel, start));
                    let b = if dtype == DType::F32 {
                        block.cast::<f32>()
                    } else {
                        matmul_pack::widen(s, dtype, block, depth * width(panel), wide);
                        wide.cast_const()
                    };
                    // The next block comes in piece by piece, one piece with each tile.
                    let next = if start + depth < pass_end {
                        block.wrapping_add(depth * width(panel) * size)
                    } else if panel + 1 < self.panels.1 {
                        packed.wrapping_add(position(panel + 1, pass_start))
                    } else {
                        block
                    };
                    let next_bytes = depth * width(panel) * size;
                    let column = (panel - self.panels.0) * conv.panel.columns();
                    for row in (0..n_rows).step_by(tile_rows) {
                        let piece = (row / tile_rows * (depth / 4 * 64)).min(next_bytes);
                        let tile = Tile {
                            a: patches.add(row * conv.a_stride() + start - pass_start),
                            a_stride: conv.a_stride(),
                            b,
                            depth,
                            sums: sums.add(row * conv.sums_stride() + column),
                            sums_stride: conv.sums_stride(),
                            accumulate: start > 0,
                            next: next.wrapping_add(piece).cast(),
                        };
                        let rows = tile_rows.min(n_rows - row);
                        matmul_tile::run(s, Words::F32, rows, vectors, &tile);
                    }
                    start += depth;
                }
            }
        }
    }

    /// Turns finished sums into elements of the result.
    ///
    /// # Safety
    /// As in `run`.
    #[inline(always)]
    unsafe fn epilogue<S: Simd>(&self, s: S, n_rows: usize, sums: *const f32, scratch: *mut f32) {
        let conv = self.conv;
        let first = self.panels.0 * conv.panel.columns();
        let n = (self.panels.1 * conv.panel.columns()).min(conv.columns) - first;
        let mut cursor = conv.nest.at(self.rows.0);
        let mut slots = [SlotPtr { ptr: std::ptr::null(), stride: 0 }; MAX_SLOTS];
        for row in 0..n_rows {
            // SAFETY: positions of a nest lie within its layouts.
            unsafe {
                let sums = sums.add(row * conv.sums_stride());
                for (i, leaf) in conv.epilogue.leaves.iter().enumerate() {
                    slots[i] = match leaf.source {
                        Source::Frontier(_) => SlotPtr { ptr: sums.cast(), stride: 1 },
                        Source::Operand(_) | Source::Constant(_) => {
                            let stride = conv.nest.row_stride(1 + i);
                            let at = cursor.position(1 + i) + first * stride;
                            self.shared.slot(leaf, at, stride, sums)
                        }
                    };
                }
                let at = cursor.position(0) + first;
                let dst = self.shared.result().add(at * conv.result.dtype.size());
                conv.epilogue.program.run_row_in(s, n, &slots, dst, scratch);
            }
            cursor.advance();
        }
    }
}
