//! The matrix product `C[r, n] = epilogue(sum_k prologue(A[r, k]) B[k, n])`, summed in f32.
//!
//! Everything is counted in 32-bit *words* of the depth: one f32, or a pair of bf16 where the
//! instruction set multiplies pairs ([`Words`]), or digits of f32. Other half types are widened to f32.
//!
//! One task computes a block of rows by a range of columns. It packs its rows of A into scratch
//! that stays in the second-level cache, applying the prologue (norm of the row, then elementwise
//! code) on the way in; walks the panels of B, each a strip of columns that was packed before; lets
//! [`super::matmul_tile`] sum register tiles; and applies the epilogue to a group of panels while
//! their sums are still in the second-level cache. A C that is nothing but the sums, and a bias
//! that they start from, holds them from the start. While one block of a panel is multiplied, the
//! next one is prefetched, so that B may come from memory. Few rows, as a caption has, are one
//! block: they are packed once for all tasks, and B is read once. How a run is cut, and what of an
//! activation B is packed at a time, is decided in [`super::matmul_blocks`].
//!
//! Invariants: the depth is cut into blocks that depend on the depth alone, and every sum adds
//! them in order, so the bytes of C depend neither on the number of threads nor on the block
//! sizes. Elements of C are written by one task, after it has read the epilogue operands at the same position: C may lie
//! exactly over one of them.

use ops::DType;

use crate::Error;
use crate::isa::Isa;
use crate::kernel::Columns;
use crate::pool::Pool;
use crate::program::Program;
use crate::simd::digits::DEPTHS_OF_DIGITS;
use crate::simd::{MAX_LANES, dispatch, prefetch_l2};

pub use super::matmul_spec::{BOperand, BView, MatmulSpec};

use super::matmul_blocks::{
    Block, BlockLimits, BlockShape, GROUP_COLUMNS, PackedPanels, RunScratch,
};
use super::matmul_pack::PanelShape;
use super::matmul_task::{PackShared, Rows, Task};
use super::reduce_columns::ColumnSums;
use super::words::Words;

/// Caches that block sizes are chosen for, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Caches {
    /// Second level, of a core.
    pub l2: usize,
    /// Last level, of all.
    pub l3: usize,
}

/// Buffers of one run.
#[derive(Clone, Copy, Debug)]
pub struct MatmulBuffers<'a> {
    /// A's buffer.
    pub a: *const u8,
    /// B's buffer, or the packed B.
    pub b: *const u8,
    /// Buffers of the prologue's operands.
    pub prologue: &'a [*const u8],
    /// Buffers of the epilogue's operands.
    pub epilogue: &'a [*const u8],
    /// C's buffer.
    pub c: *mut u8,
    /// [`Matmul::scratch_bytes`] bytes, aligned to 64.
    pub scratch: *mut u8,
}

// SAFETY: plain pointers; `Matmul::run` demands what is needed to share them.
unsafe impl Sync for MatmulBuffers<'_> {}

/// A matrix product ready to run: checked, block sizes chosen. Depths count words.
#[derive(Clone, Debug, PartialEq)]
pub struct Matmul {
    pub(super) spec: MatmulSpec,
    pub(super) isa: Isa,
    pub(super) words: Words,
    /// The spec's, with a result of the type that words hold.
    pub(super) prologue: Option<Program>,
    pub(super) panel: PanelShape,
    /// M: rows of one batch entry.
    pub(super) n_rows: usize,
    pub(super) n_batch: usize,
    /// K in words.
    pub(super) n_words: usize,
    /// Rows of a full register tile.
    pub(super) tile_rows: usize,
    /// Depth of a block.
    pub(super) depth_block: usize,
    /// Depth that A is packed for at a time; a multiple of `depth_block`.
    pub(super) depth_pass: usize,
    /// Most rows of a task.
    pub(super) block_rows: usize,
    /// From one row of C to the next, where that holds the sums.
    pub(super) sums_in_c: Option<usize>,
    /// Whether they start from the epilogue's operand there.
    pub(super) starts_from_bias: bool,
    /// What is multiplied at a time.
    pub(super) block: BlockShape,
}

impl Matmul {
    /// Checks `spec` and chooses block sizes.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if the parts of `spec` contradict each other.
    pub fn new(spec: MatmulSpec, isa: Isa, caches: Caches) -> Result<Self, Error> {
        spec.check()?;
        let b_dtype = match &spec.b {
            BOperand::Packed(dtype) => *dtype,
            BOperand::Dense(view) => view.dtype,
        };
        let n_rows = spec.rows.iter().product::<usize>();
        let is_dense = matches!(spec.b, BOperand::Dense(_));
        let has_digits = spec.digits && is_dense && spec.depth >= DEPTHS_OF_DIGITS;
        let words = match b_dtype {
            DType::F32 if spec.product == b_dtype && has_digits => Words::of_digits(isa),
            _ if spec.product == b_dtype => Words::of(isa, b_dtype),
            _ => Words::F32,
        };
        let prologue = match &spec.prologue {
            Some(program) => Some(Program::new(
                program.slots().to_vec(),
                program.instrs().to_vec(),
                words.dtype(),
            )?),
            None => None,
        };
        let panel = PanelShape::of(isa, words);
        let tile_rows = words.shape(isa).0;
        let n_words = words.of_depth(spec.depth);
        let limits = BlockLimits::of(words);
        let n_blocks = n_words.div_ceil(limits.depth);
        let depth_block = n_words.div_ceil(n_blocks).next_multiple_of(limits.depth_unit);
        let n_batch = spec.batch.iter().product();
        let fit = |bytes: usize, blocks: usize| {
            let depth = n_words.min(blocks * depth_block);
            let rows = bytes / (depth * size_of::<f32>());
            (rows / tile_rows).clamp(4, limits.rows / tile_rows) * tile_rows
        };
        let most_blocks = limits.blocks_per_pass.min(n_blocks);
        // Where all rows can be one block in half of the cache, the depth of a pass gives way.
        let one = (1..=most_blocks).rev().find(|&blocks| n_rows <= fit(caches.l2 / 2, blocks));
        let (blocks, block_rows) = match one.filter(|_| n_batch == 1) {
            Some(blocks) => (blocks, n_rows.next_multiple_of(tile_rows)),
            // Rows of A take a bit less than half of the cache; sums and panels share the rest.
            None => {
                let rows = fit(caches.l2 * 9 / 20, most_blocks);
                (most_blocks, rows.min(n_rows.next_multiple_of(tile_rows)))
            }
        };
        let depth_pass = depth_block * blocks;
        let sums_in_c = spec.sums_in_c(panel.lanes);
        let starts_from_bias = sums_in_c.is_some() && spec.adds_bias();
        let mut matmul = Self {
            spec,
            sums_in_c,
            starts_from_bias,
            isa,
            words,
            prologue,
            panel,
            n_rows,
            n_batch,
            n_words,
            tile_rows,
            depth_block,
            depth_pass,
            block_rows,
            block: BlockShape { rows: n_rows, panels: 0, words: n_words },
        };
        matmul.block = matmul.choose_block(caches.l3);
        Ok(matmul)
    }

    /// What it computes.
    pub fn spec(&self) -> &MatmulSpec {
        &self.spec
    }

    /// The instruction set it was made for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// What it multiplies.
    pub(super) fn words(&self) -> Words {
        self.words
    }

    /// Block sizes: rows of a task, depth of a block.
    pub fn blocks(&self) -> [(&'static str, usize); 2] {
        [("block_rows", self.block_rows), ("depth_block", self.depth_block)]
    }

    /// Floating-point operations of the product itself.
    pub fn flops(&self) -> u64 {
        2 * (self.n_batch * self.n_rows) as u64 * self.spec.columns as u64 * self.spec.depth as u64
    }

    /// Bytes of scratch a run on `threads` threads needs.
    pub fn scratch_bytes(&self, threads: usize) -> usize {
        self.run_scratch(threads).bytes
    }

    pub(super) fn dense_b(&self) -> Option<&BView> {
        match &self.spec.b {
            BOperand::Dense(view) => Some(view),
            BOperand::Packed(_) => None,
        }
    }

    /// Whether B is packed while running.
    pub(super) fn packs_b(&self) -> bool {
        self.dense_b().is_some()
    }

    /// Whether A is packed once, whole, before the tasks: its rows are one block, which the task of
    /// every range of columns needs.
    pub(super) fn shares_a(&self) -> bool {
        self.n_batch == 1 && self.n_rows <= self.block_rows
    }

    /// Bytes of A packed for all tasks.
    pub(super) fn shared_a_bytes(&self) -> usize {
        if !self.shares_a() {
            return 0;
        }
        self.packed_a_bytes()
    }

    /// Words of the rows of A that are packed at a time, and from digits to low ones.
    pub(super) fn a_words(&self) -> usize {
        self.a_rows() * self.a_stride()
    }

    /// Rows of A that are packed at a time: whole tiles, which tile registers read.
    pub(super) fn a_rows(&self) -> usize {
        let rows = if self.shares_a() { self.n_rows } else { self.block_rows };
        rows.next_multiple_of(self.tile_rows)
    }

    /// Words of a row of A that are packed at a time.
    pub(super) fn packed_words(&self) -> usize {
        if self.shares_a() { self.n_words } else { self.depth_pass.min(self.n_words) }
    }

    /// Words from one packed row of A to the next: an odd number of cache lines, so that the
    /// rows of a tile never compete for the same set of the first-level cache. Those of digits are read several lines
    /// at a time, so neighbors must not start in neighboring sets either.
    pub(super) fn a_stride(&self) -> usize {
        /// Sets of the first-level cache, and how far apart rows of digits start at least.
        const SETS: usize = 64;
        const APART: usize = 9;
        let mut lines = self.packed_words().div_ceil(16) | 1;
        if self.words.digits().is_some() {
            while !(APART..=SETS - APART).contains(&(lines % SETS)) {
                lines += 2;
            }
        }
        lines * 16
    }

    pub(super) fn group_panels(&self) -> usize {
        GROUP_COLUMNS / self.panel.columns()
    }

    /// Rows of A as columns of what is in memory, if they lie across it: operand 0, whose number is not known here.
    pub(super) fn columns_of_a(&self) -> Option<Columns> {
        let MatmulSpec { a, norm, prologue, .. } = &self.spec;
        let is_plain = norm.is_none() && prologue.is_none();
        let is_plain = is_plain && (self.words.digits().is_none() || a.dtype == DType::F32);
        let is_matrix = self.spec.batch.is_empty() && a.row_strides == [1] && a.column_stride > 1;
        (is_plain && is_matrix).then_some(Columns {
            operand: 0,
            dtype: a.dtype,
            offset: a.offset,
            columns: self.n_rows,
            terms: self.spec.depth,
            stride: a.column_stride,
        })
    }

    /// Computes C.
    ///
    /// # Safety
    /// The buffers are valid for the positions that the spec's views address, the packed B for
    /// [`Matmul::packed_b_bytes`], the scratch for [`Matmul::scratch_bytes`] of the pool's threads. Nothing
    /// else accesses C and the scratch meanwhile. C overlaps no operand, or has exactly the
    /// addresses of an epilogue operand of its element size.
    pub unsafe fn run(&self, pool: &Pool, buffers: &MatmulBuffers<'_>) {
        // SAFETY: passed on.
        unsafe { self.run_with_sums(pool, buffers, None) }
    }

    /// Computes C, and adds the columns of A to `sums`.
    ///
    /// # Safety
    /// As [`Matmul::run`]; the sums are those of [`Matmul::columns_of_a`], and their buffers as [`ColumnSums::add`]
    /// demands.
    pub(super) unsafe fn run_with_sums(
        &self,
        pool: &Pool,
        buffers: &MatmulBuffers<'_>,
        sums: Option<ColumnSums<'_>>,
    ) {
        let scratch = self.run_scratch(pool.threads());
        let group = self.batch_group();
        // SAFETY: the caller's promise.
        unsafe {
            if self.shares_a() {
                self.pack_shared_a(pool, buffers, &scratch, sums);
            }
            for first in (0..self.n_batch).step_by(group) {
                let entries = (first, self.n_batch.min(first + group));
                for block in self.blocks_of_run() {
                    if self.packs_b() {
                        self.pack_block(pool, buffers, entries, &block);
                    }
                    self.multiply(pool, (buffers, sums), &scratch, entries, &block);
                }
            }
        }
    }

    /// Packs all rows of A for all tasks.
    ///
    /// # Safety
    /// As [`Matmul::run`].
    unsafe fn pack_shared_a(
        &self,
        pool: &Pool,
        buffers: &MatmulBuffers<'_>,
        scratch: &RunScratch,
        sums: Option<ColumnSums<'_>>,
    ) {
        let worker_bytes = self.worker_scratch().bytes;
        let tiles = self.n_rows.div_ceil(self.tile_rows);
        let block = Block {
            rows: (0, self.n_rows),
            panels: (0, self.n_panels()),
            words: (0, self.n_words),
        };
        let split = self.split(pool.threads(), &block);
        pool.run(tiles, &|tile, worker| {
            // SAFETY: the caller's promise; tiles and scratch parts of workers are disjoint.
            unsafe {
                let rows = self.row_range(&block, tile, tiles);
                let worker_scratch = buffers.scratch.add(scratch.workers + worker * worker_bytes);
                let rows =
                    Rows { matmul: self, buffers, scratch: worker_scratch, batch: 0, rows, sums };
                let packed = buffers.scratch.add(scratch.shared_a).cast();
                dispatch(self.isa, PackShared { rows, packed });
                // What the worker probably multiplies first comes in meanwhile.
                let panel = self.first_panel(split, &block, worker);
                if !self.packs_b() && panel < block.panels.1 {
                    let Block { panels, words, .. } = block;
                    let b = PackedPanels {
                        start: buffers.b,
                        panels,
                        words,
                        low: 0,
                        scales: std::ptr::null(),
                    };
                    let first = self.b_bytes(self.position(&b, panel, 0));
                    let piece = self.b_bytes(self.depth_block * self.panel.columns());
                    let piece = (piece * pool.threads()).div_ceil(64 * tiles);
                    let first = first / 64 + tile / pool.threads() * piece;
                    (first..first + piece).for_each(|line| {
                        prefetch_l2(buffers.b.wrapping_add(64 * line));
                    });
                }
            }
        });
    }

    /// Multiplies a block for some batch entries, and ends what it ends.
    ///
    /// # Safety
    /// As [`Matmul::run`]; B is packed.
    unsafe fn multiply(
        &self,
        pool: &Pool,
        (buffers, row_sums): (&MatmulBuffers<'_>, Option<ColumnSums<'_>>),
        scratch: &RunScratch,
        entries: (usize, usize),
        block: &Block,
    ) {
        let split = self.split(pool.threads(), block);
        let tasks = split.row_blocks * split.column_ranges;
        let worker_bytes = self.worker_scratch().bytes;
        pool.run((entries.1 - entries.0) * tasks, &|item, worker| {
            let (entry, task) = (item / tasks, item % tasks);
            let (row_block, range) = (task / split.column_ranges, task % split.column_ranges);
            let rows = self.row_range(block, row_block, split.row_blocks);
            let first_panel = |range: usize| self.first_panel(split, block, range);
            // SAFETY: the caller's promise; scratch parts of workers, and sums of tasks, are disjoint.
            unsafe {
                let start = if self.packs_b() {
                    buffers.scratch.add(entry * self.packed_block_bytes()).cast_const()
                } else {
                    buffers.b
                };
                let worker_scratch = buffers.scratch.add(scratch.workers + worker * worker_bytes);
                let sums = self.shares_sums().then(|| {
                    let rows_before = (rows.0 - block.rows.0) * self.sums_stride();
                    let at = range * self.range_len(split, block) + rows_before;
                    buffers.scratch.add(scratch.sums).cast::<f32>().add(at)
                });
                let batch = entries.0 + entry;
                let task = Task {
                    rows: Rows {
                        matmul: self,
                        buffers,
                        scratch: worker_scratch,
                        batch,
                        rows,
                        sums: row_sums,
                    },
                    shared_a: self
                        .shares_a()
                        .then(|| buffers.scratch.add(scratch.shared_a).cast_const().cast()),
                    b: PackedPanels {
                        start,
                        panels: block.panels,
                        words: block.words,
                        low: self.b_low(),
                        scales: buffers
                            .scratch
                            .add(self.packed_b_scales() + entry * self.b_scales_bytes())
                            .cast(),
                    },
                    panels: (first_panel(range), first_panel(range + 1)),
                    // Workers take turns, more or less.
                    then: first_panel(range + pool.threads()),
                    sums,
                    sums_group: self.group_len(block),
                };
                dispatch(self.isa, task);
            }
        });
    }
}

const _: () = assert!(GROUP_COLUMNS.is_multiple_of(MAX_LANES * 3));
