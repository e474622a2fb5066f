//! One task of the matrix product: a block of rows by a range of panels, from packing A to the
//! epilogue. Start reading at `run`.

use crate::program::SlotPtr;
use crate::simd::digits::{DigitProduct, Scales, VECTORS, WORDS_OF_UNIT};
use crate::simd::{Simd, SimdJob, TILE_ROWS, prefetch_write};

use super::lanes::prefetch_row;
use super::matmul::{Matmul, MatmulBuffers};
use super::matmul_blocks::{PackedPanels, WorkerScratch};
use super::matmul_pack;
use super::matmul_rows::{PackRows, row_offsets};
use super::matmul_tile::Tile;
use super::multiplier::Multiplier;
use super::reduce_columns::ColumnSums;

/// Bytes of C that are asked for before they are written: the sums of a group of panels become elements of C all at
/// once, and each line of a row would be waited for.
const WRITE_AHEAD: usize = 8 << 10;

/// Rows of one batch entry, and whose scratch they are worked on in.
pub(super) struct Rows<'a> {
    pub(super) matmul: &'a Matmul,
    pub(super) buffers: &'a MatmulBuffers<'a>,
    /// The worker's.
    pub(super) scratch: *mut u8,
    pub(super) batch: usize,
    /// First and one past the last.
    pub(super) rows: (usize, usize),
    /// Sums of rows of A over the depth, to which the task that has the first panels adds what it packs.
    pub(super) sums: Option<ColumnSums<'a>>,
}

/// Packs rows of A, over their whole depth, for all tasks.
pub(super) struct PackShared<'a> {
    pub(super) rows: Rows<'a>,
    /// Where the first row of all is packed.
    pub(super) packed: *mut f32,
}

/// One block of rows by one range of panels.
pub(super) struct Task<'a> {
    pub(super) rows: Rows<'a>,
    /// A as [`PackShared`] packed it; without it, the task packs its own rows.
    pub(super) shared_a: Option<*const f32>,
    pub(super) b: PackedPanels,
    /// First and one past the last.
    pub(super) panels: (usize, usize),
    /// The panel at which this worker probably goes on with the next task; past the last for none.
    pub(super) then: usize,
    /// Sums of its rows and first panels, where they wait for the next block; else they are the worker's.
    pub(super) sums: Option<*mut f32>,
    /// From those of one group of panels to the next.
    pub(super) sums_group: usize,
}

/// The block of a panel that is multiplied now; the depth counts words.
struct PanelBlock {
    panel: usize,
    depth_start: usize,
    depth: usize,
}

/// A block of packed rows.
#[derive(Clone, Copy)]
struct PackedA {
    words: *const f32,
    /// Of digits, those of the first sixteen rows.
    scales: *const Scales,
}

impl Matmul {
    /// Scales of packed A, which follow its digits: those of row `row` in the block from word `word` on.
    fn a_scales(&self, a: *mut f32, row: usize, word: usize) -> *mut Scales {
        let scales = a.wrapping_add(self.digit_parts() * self.a_words()).cast::<Scales>();
        scales.wrapping_add(word / self.depth_block * self.a_scales_step() + row / TILE_ROWS)
    }

    /// Position of a block's scales of B.
    fn b_scales_at(&self, b: &PackedPanels, block: &PanelBlock) -> usize {
        let blocks = (b.words.1 - b.words.0).div_ceil(self.depth_block);
        let before = (block.depth_start - b.words.0) / self.depth_block;
        ((block.panel - b.panels.0) * blocks + before) * VECTORS
    }
}

impl Rows<'_> {
    fn len(&self) -> usize {
        self.rows.1 - self.rows.0
    }

    /// Writes the offsets of the rows in A, the prologue's operands, C and the epilogue's operands,
    /// in this order, `block_rows` apart.
    ///
    /// # Safety
    /// `scratch` is as large as `worker_scratch` says.
    unsafe fn write_offsets(&self, layout: &WorkerScratch) -> *const usize {
        let Rows { matmul, rows, .. } = *self;
        let spec = &matmul.spec;
        let dims = RowDims { batch: &spec.batch, rows: &spec.rows };
        let views = std::iter::once(&spec.a)
            .chain(&spec.prologue_operands)
            .chain(std::iter::once(&spec.c))
            .chain(&spec.epilogue_operands);
        // SAFETY: `worker_scratch` has a table of `block_rows` for each view.
        unsafe {
            let offsets = self.scratch.add(layout.offsets).cast::<usize>();
            for (index, view) in views.enumerate() {
                let table = offsets.add(index * matmul.block_rows);
                let table = std::slice::from_raw_parts_mut(table, self.len());
                dims.offsets(&view.row_strides, self.batch * matmul.n_rows + rows.0, table);
            }
            offsets.cast_const()
        }
    }

    /// What packs the rows; `offsets` are those of [`Rows::write_offsets`].
    ///
    /// # Safety
    /// As there.
    unsafe fn packing(&self, layout: &WorkerScratch, offsets: *const usize) -> PackRows<'_> {
        let spec = &self.matmul.spec;
        // SAFETY: `worker_scratch` sized every part.
        let [stats, wide, scratch] = [layout.stats, layout.wide, layout.program]
            .map(|part| unsafe { self.scratch.add(part) }.cast::<f32>());
        PackRows {
            a: self.buffers.a,
            view: &spec.a,
            norm: spec.norm,
            prologue: self.matmul.prologue.as_ref(),
            operands: &spec.prologue_operands,
            operand_buffers: self.buffers.prologue,
            offsets,
            offsets_stride: self.matmul.block_rows,
            depth: spec.depth,
            words: self.matmul.words,
            depth_block: self.matmul.depth_block,
            low: self.matmul.a_words(),
            scales: std::ptr::null_mut(),
            scales_step: self.matmul.a_scales_step(),
            stats: stats.cast(),
            wide,
            scratch,
            begin: 0,
            sums: self.sums,
            first: self.rows.0,
        }
    }
}

impl SimdJob for PackShared<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackShared { rows, packed } = self;
        let matmul = rows.matmul;
        let layout = matmul.worker_scratch();
        // SAFETY: as in [`Task`]; `packed` has room for all rows.
        unsafe {
            let offsets = rows.write_offsets(&layout);
            let scales = matmul.a_scales(packed, rows.rows.0, 0);
            let packed = packed.add(rows.rows.0 * matmul.a_stride());
            let pack = PackRows { scales, ..rows.packing(&layout, offsets) };
            pack.run(s, rows.len(), (0, matmul.n_words), packed, matmul.a_stride());
        }
    }
}

impl SimdJob for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let matmul = self.rows.matmul;
        let spec = &matmul.spec;
        let n_rows = self.rows.len();
        if n_rows == 0 || self.panels.0 == self.panels.1 {
            return;
        }
        let layout = matmul.worker_scratch();
        // SAFETY: `worker_scratch` sized every part; A, B, C and operands as `Matmul::run` demands.
        unsafe {
            let a_packed = self.rows.scratch.add(layout.a).cast::<f32>();
            let program_scratch = self.rows.scratch.add(layout.program).cast::<f32>();
            let offsets = self.rows.write_offsets(&layout);
            let c_offsets = offsets.add((1 + spec.prologue_operands.len()) * matmul.block_rows);
            let (begin, end) = self.b.words;
            let scales = matmul.a_scales(a_packed, 0, 0);
            let pack = PackRows { begin, scales, ..self.rows.packing(&layout, offsets) };
            // Others pack the same rows for other panels.
            let pack = PackRows { sums: pack.sums.filter(|_| self.panels.0 == 0), ..pack };
            let group_panels = matmul.group_panels();
            let (all_sums, group_len) = match (matmul.sums_in_c, self.sums) {
                (Some(_), _) => {
                    let column = self.panels.0 * matmul.panel.columns();
                    let c = self.rows.buffers.c.cast::<f32>();
                    let first = c.add(spec.c.offset + *c_offsets + column);
                    (first, group_panels * matmul.panel.columns())
                }
                (None, Some(sums)) => (sums, self.sums_group),
                (None, None) => {
                    let group_len = matmul.block_rows * matmul.sums_stride();
                    let sums = self.rows.scratch.add(layout.sums).cast::<f32>();
                    (sums, if matmul.keeps_sums() { group_len } else { 0 })
                }
            };
            let multiplier = &mut Multiplier::of(matmul.words);
            let mut pass_start = begin;
            while pass_start < end {
                let pass_end = (pass_start + matmul.depth_pass).min(end);
                let (a, scales) = match self.shared_a {
                    Some(a) => {
                        let first = self.rows.rows.0;
                        let scales = matmul.a_scales(a.cast_mut(), first, pass_start);
                        (a.add(first * matmul.a_stride() + pass_start), scales)
                    }
                    None => {
                        let pass = (pass_start, pass_end);
                        pack.run(s, n_rows, pass, a_packed, matmul.a_stride());
                        (a_packed.cast_const(), scales)
                    }
                };
                let mut group_start = self.panels.0;
                let mut group = 0;
                while group_start < self.panels.1 {
                    let group_end = (group_start + group_panels).min(self.panels.1);
                    let sums = all_sums.add(group * group_len);
                    for panel in group_start..group_end {
                        let column = (panel - group_start) * matmul.panel.columns();
                        let mut start = pass_start;
                        if start == 0 && matmul.starts_from_bias {
                            self.start_from_bias(s, n_rows, panel, sums.add(column));
                        }
                        while start < pass_end {
                            let depth = matmul.depth_block.min(pass_end - start);
                            let block = PanelBlock { panel, depth_start: start, depth };
                            let next = if start + depth < pass_end {
                                (panel, start + depth)
                            } else if panel + 1 < self.panels.1 {
                                (panel + 1, pass_start)
                            } else if pass_end < end {
                                (self.panels.0, pass_end)
                            } else {
                                (self.then, begin)
                            };
                            let before = (start - pass_start) / matmul.depth_block;
                            let a = PackedA {
                                words: a.add(start - pass_start),
                                scales: scales.wrapping_add(before * matmul.a_scales_step()),
                            };
                            let sums = sums.add(column);
                            self.multiply(s, multiplier, &layout, &block, next, n_rows, a, sums);
                            start += depth;
                        }
                    }
                    if pass_end == matmul.n_words && matmul.sums_in_c.is_none() {
                        let column = group_start * matmul.panel.columns();
                        let end = (group_end * matmul.panel.columns()).min(spec.columns);
                        self.epilogue(s, n_rows, (column, end), sums, c_offsets, program_scratch);
                    }
                    group_start = group_end;
                    group += 1;
                }
                pass_start = pass_end;
            }
        }
    }
}

impl Task<'_> {
    /// Adds one block of a panel times all rows to the sums.
    ///
    /// # Safety
    /// As in `run`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the innermost level of one loop nest")]
    unsafe fn multiply<S: Simd>(
        &self,
        s: S,
        multiplier: &mut Multiplier,
        layout: &WorkerScratch,
        block: &PanelBlock,
        next: (usize, usize),
        n_rows: usize,
        a: PackedA,
        sums: *mut f32,
    ) {
        let matmul = self.rows.matmul;
        let spec = &matmul.spec;
        let vectors = matmul.panel.vectors_of(block.panel, spec.columns);
        let width = vectors * S::LANES;
        let position =
            |panel: usize, word: usize| matmul.b_bytes(matmul.position(&self.b, panel, word));
        // SAFETY: positions are those of packed panels; `b` scratch holds a block of a full panel.
        unsafe {
            let packed = self.b.start.add(position(block.panel, block.depth_start));
            let made = self.rows.scratch.add(layout.b).cast::<f32>();
            let b = match matmul.unmade_b() {
                None => packed.cast::<f32>(),
                Some(dtype) => {
                    matmul_pack::widen(s, dtype, packed, block.depth * width, made);
                    made.cast_const()
                }
            };
            // The next block comes in piece by piece, one piece with each tile.
            let is_panel = next.0 < self.b.panels.1;
            let next_block =
                if is_panel { self.b.start.wrapping_add(position(next.0, next.1)) } else { packed };
            let next_bytes = matmul.b_bytes(block.depth * width);
            let (a_stride, sums_stride) = (matmul.a_stride(), matmul.sums_stride());
            let (depth, accumulate) =
                (block.depth, block.depth_start > 0 || matmul.starts_from_bias);
            if matmul.words.digits().is_some() {
                multiplier.run_digits(&DigitProduct {
                    a: a.words,
                    a_stride,
                    a_low: matmul.a_words(),
                    a_scales: a.scales,
                    b,
                    vectors,
                    b_low: self.b.low,
                    b_scales: self.b.scales.add(matmul.b_scales_at(&self.b, block)),
                    units: depth / WORDS_OF_UNIT,
                    sums,
                    sums_stride,
                    rows: n_rows,
                    accumulate,
                    next: next_block.cast(),
                    next_bytes,
                });
                return;
            }
            for (tile, row) in (0..n_rows).step_by(matmul.tile_rows).enumerate() {
                let rows = matmul.tile_rows.min(n_rows - row);
                let piece = (tile * (depth / 4 * 64)).min(next_bytes);
                let next = next_block.wrapping_add(piece).cast();
                let (a, sums) = (a.words.add(row * a_stride), sums.add(row * sums_stride));
                let tile = Tile { a, a_stride, b, depth, sums, sums_stride, accumulate, next };
                multiplier.run(s, rows, vectors, &tile);
            }
        }
    }

    /// Sets the sums of a panel to the bias of its columns.
    ///
    /// # Safety
    /// As in `run`.
    #[inline(always)]
    unsafe fn start_from_bias<S: Simd>(&self, s: S, n_rows: usize, panel: usize, sums: *mut f32) {
        let Rows { matmul, buffers, .. } = self.rows;
        let (bias, stride) = (&matmul.spec.epilogue_operands[0], matmul.sums_stride());
        let column = panel * matmul.panel.columns();
        let vectors = matmul.panel.vectors_of(panel, matmul.spec.columns);
        // SAFETY: a row of the bias has all columns, which are whole vectors.
        unsafe {
            let from = buffers.epilogue[0].cast::<f32>().add(bias.offset + column);
            for row in 0..n_rows {
                for at in (0..vectors * S::LANES).step_by(S::LANES) {
                    let to = sums.add(row * stride + at);
                    s.store(to, s.load(from.add(at)));
                    // The next panel's turn comes when these have become sums.
                    prefetch_write(to.wrapping_add(vectors * S::LANES));
                }
            }
        }
    }

    /// Turns finished sums of columns `columns.0..columns.1` into elements of C.
    ///
    /// # Safety
    /// As in `run`.
    #[inline(always)]
    unsafe fn epilogue<S: Simd>(
        &self,
        s: S,
        n_rows: usize,
        columns: (usize, usize),
        sums: *const f32,
        offsets: *const usize,
        program_scratch: *mut f32,
    ) {
        let Rows { matmul, buffers, .. } = self.rows;
        let spec = &matmul.spec;
        let mut slots = [SlotPtr { ptr: sums.cast(), stride: 1 }; crate::program::MAX_SLOTS];
        let n = columns.1 - columns.0;
        let row_bytes = n * spec.c.dtype.size();
        let ahead = (WRITE_AHEAD / row_bytes).clamp(1, n_rows);
        for row in 0..n_rows {
            // SAFETY: offsets are those of the views, within their buffers.
            unsafe {
                slots[0].ptr = sums.add(row * matmul.sums_stride()).cast();
                for (index, view) in spec.epilogue_operands.iter().enumerate() {
                    let offset = *offsets.add((1 + index) * matmul.block_rows + row);
                    slots[1 + index] = view.slot(buffers.epilogue[index], offset, columns.0);
                }
                let c_row = |row: usize| {
                    let at = spec.c.offset + *offsets.add(row) + columns.0;
                    buffers.c.add(at * spec.c.dtype.size())
                };
                if row + ahead < n_rows {
                    let coming = c_row(row + ahead);
                    for byte in (0..row_bytes).step_by(64) {
                        prefetch_write(coming.add(byte));
                    }
                    // What all rows share is in cache.
                    for (index, view) in spec.epilogue_operands.iter().enumerate() {
                        let offset = *offsets.add((1 + index) * matmul.block_rows + row + ahead);
                        let coming = view.slot(buffers.epilogue[index], offset, columns.0);
                        if coming.stride == 1 && view.row_strides.last() != Some(&0) {
                            prefetch_row(coming.ptr, n * view.dtype.size());
                        }
                    }
                }
                let dst = c_row(row);
                spec.epilogue.run_row_in(s, n, &slots, dst, program_scratch);
            }
        }
    }
}

/// The dims that rows are numbered over.
struct RowDims<'a> {
    batch: &'a [usize],
    rows: &'a [usize],
}

impl RowDims<'_> {
    /// Offsets of `table.len()` rows from `first` on.
    fn offsets(&self, strides: &[usize], first: usize, table: &mut [usize]) {
        let n_rows: usize = self.rows.iter().product();
        let (batch_strides, row_strides) = strides.split_at(self.batch.len());
        let mut batch = [0];
        row_offsets(self.batch, batch_strides, first / n_rows, &mut batch);
        row_offsets(self.rows, row_strides, first % n_rows, table);
        for offset in table {
            *offset += batch[0];
        }
    }
}
