//! The matrix product `C[r, n] = epilogue(sum_k prologue(A[r, k]) B[k, n])`, summed in f32.
//!
//! Everything is counted in 32-bit *words* of the depth: one f32, or a pair of bf16 where the
//! instruction set multiplies pairs ([`Words`]). Other half types are widened to f32.
//!
//! One task computes a block of rows by a range of columns. It packs its rows of A into scratch
//! that stays in the second-level cache, applying the prologue (norm of the row, then elementwise
//! code) on the way in; walks the panels of B, each a strip of columns that was packed once; lets
//! [`super::matmul_tile`] sum register tiles; and applies the epilogue to a group of panels while
//! their sums are still in the second-level cache. While one block of a panel is multiplied, the
//! next one is prefetched, so that B may come from memory. Few rows, as a caption has, are one
//! block: they are packed once for all tasks, and B is read once.
//!
//! Invariants: the depth is cut into blocks that depend on the depth alone, and every sum adds
//! them in order, so the bytes of C depend neither on the number of threads nor on the block
//! sizes. Elements of C are written once, by one task, after it has read the epilogue operands at
//! the same position: C may lie exactly over one of them.

use ops::DType;

use crate::Error;
use crate::isa::Isa;
use crate::pool::Pool;
use crate::program::Program;
use crate::simd::{MAX_LANES, dispatch, prefetch_l2};

pub use super::matmul_spec::{BOperand, BView, MatmulSpec};

use super::matmul_pack::PanelShape;
use super::matmul_rows::{PackRows, row_offsets};
use super::matmul_task::{PackShared, Rows, Task};
use super::matmul_tile::{self, Words};

/// Largest block of the depth: its panel of B is read once per tile row from the nearest caches.
const MAX_DEPTH_BLOCK: usize = 320;
/// Blocks of the depth that A is packed for at a time.
const DEPTH_BLOCKS_PER_PASS: usize = 4;
/// Most tiles of a block of rows.
const MAX_BLOCK_TILES: usize = 30;
/// Columns the epilogue works on at a time: long enough to hide the cost of its instructions,
/// short enough for the second-level cache.
const GROUP_COLUMNS: usize = 384;
/// Most columns of a task whose sums are kept through several passes over the depth.
const MAX_TASK_COLUMNS: usize = 4608;
/// Packed activations are made in batches of about this many bytes.
const B_BATCH_BYTES: usize = 8 << 20;

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
    isa: Isa,
    pub(super) words: Words,
    /// The spec's, with a result of the type that words hold.
    pub(super) prologue: Option<Program>,
    pub(super) panel: PanelShape,
    /// M: rows of one batch entry.
    pub(super) n_rows: usize,
    n_batch: usize,
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
}

/// Byte offsets within a worker's scratch, and its size.
pub(super) struct WorkerScratch {
    pub(super) a: usize,
    pub(super) sums: usize,
    pub(super) b: usize,
    pub(super) stats: usize,
    pub(super) wide: usize,
    pub(super) offsets: usize,
    pub(super) program: usize,
    bytes: usize,
}

/// How one run is split.
#[derive(Clone, Copy)]
struct Split {
    row_blocks: usize,
    column_ranges: usize,
}

impl Matmul {
    /// Checks `spec` and chooses block sizes for a second-level cache of `l2_bytes` per core.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if the parts of `spec` contradict each other.
    pub fn new(spec: MatmulSpec, isa: Isa, l2_bytes: usize) -> Result<Self, Error> {
        spec.check()?;
        let b_dtype = match &spec.b {
            BOperand::Packed(dtype) => *dtype,
            BOperand::Dense(view) => view.dtype,
        };
        let words = match isa.bf16_dot() {
            Some(dot) if (b_dtype, spec.product) == (DType::Bf16, DType::Bf16) => {
                Words::Bf16Pairs(dot)
            }
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
        let tile_rows = matmul_tile::shape(isa.registers()).0;
        let n_words = spec.depth.div_ceil(words.depths());
        let n_blocks = n_words.div_ceil(MAX_DEPTH_BLOCK);
        let depth_block = n_words.div_ceil(n_blocks).next_multiple_of(4);
        let n_rows = spec.rows.iter().product::<usize>();
        let n_batch = spec.batch.iter().product();
        let fit = |bytes: usize, blocks: usize| {
            let rows = bytes / (blocks * depth_block * size_of::<f32>());
            (rows / tile_rows).clamp(4, MAX_BLOCK_TILES) * tile_rows
        };
        let most_blocks = DEPTH_BLOCKS_PER_PASS.min(n_blocks);
        // Where all rows can be one block in half of the cache, the depth of a pass gives way.
        let one = (1..=most_blocks).rev().find(|&blocks| n_rows <= fit(l2_bytes / 2, blocks));
        let (blocks, block_rows) = match one.filter(|_| n_batch == 1) {
            Some(blocks) => (blocks, n_rows.next_multiple_of(tile_rows)),
            // Rows of A take a bit less than half of the cache; sums and panels share the rest.
            None => {
                let rows = fit(l2_bytes * 9 / 20, most_blocks);
                (most_blocks, rows.min(n_rows.next_multiple_of(tile_rows)))
            }
        };
        let depth_pass = depth_block * blocks;
        Ok(Self {
            spec,
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
        })
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
        self.packed_batch_bytes() * self.batch_group()
            + self.shared_a_bytes()
            + threads.max(1) * self.worker_scratch().bytes
    }

    fn dense_b(&self) -> Option<&BView> {
        match &self.spec.b {
            BOperand::Dense(view) => Some(view),
            BOperand::Packed(_) => None,
        }
    }

    /// Bytes of one batch entry of B that is packed while running.
    fn packed_batch_bytes(&self) -> usize {
        match self.dense_b() {
            Some(_) => self
                .panel
                .packed_bytes(self.spec.columns, self.spec.depth, self.words.dtype())
                .next_multiple_of(64),
            None => 0,
        }
    }

    /// Batch entries whose B is packed at a time.
    fn batch_group(&self) -> usize {
        (B_BATCH_BYTES / self.packed_batch_bytes().max(1)).clamp(1, self.n_batch)
    }

    /// Whether A is packed once, whole, before the tasks: its rows are one block, which the task of
    /// every range of columns needs.
    pub(super) fn shares_a(&self) -> bool {
        self.n_batch == 1 && self.n_rows <= self.block_rows
    }

    /// Bytes of A packed for all tasks.
    fn shared_a_bytes(&self) -> usize {
        if !self.shares_a() {
            return 0;
        }
        self.n_rows * self.a_stride() * size_of::<f32>()
    }

    /// Words of a row of A that are packed at a time.
    fn packed_words(&self) -> usize {
        if self.shares_a() { self.n_words } else { self.depth_pass.min(self.n_words) }
    }

    /// Words from one packed row of A to the next: an odd number of cache lines, so that the
    /// rows of a tile never compete for the same set of the first-level cache.
    pub(super) fn a_stride(&self) -> usize {
        (self.packed_words().div_ceil(16) | 1) * 16
    }

    pub(super) fn group_panels(&self) -> usize {
        GROUP_COLUMNS / self.panel.columns()
    }

    /// Elements from one row of sums to the next.
    pub(super) fn sums_stride(&self) -> usize {
        self.spec.columns.next_multiple_of(self.panel.lanes).min(GROUP_COLUMNS)
    }

    /// Whether sums of a whole task wait for the next pass over the depth.
    pub(super) fn keeps_sums(&self) -> bool {
        self.depth_pass < self.n_words
    }

    pub(super) fn worker_scratch(&self) -> WorkerScratch {
        let mut bytes = 0;
        let mut part = |n: usize| {
            let start = bytes;
            bytes += n.next_multiple_of(64);
            start
        };
        let spec = &self.spec;
        let groups = if self.keeps_sums() {
            spec.columns.min(MAX_TASK_COLUMNS).div_ceil(GROUP_COLUMNS) + 1
        } else {
            1
        };
        let float = size_of::<f32>();
        let program_len = spec.prologue.as_ref().map_or(0, Program::scratch_len);
        let program_len = program_len.max(spec.epilogue.scratch_len());
        let n_views = 2 + spec.prologue_operands.len() + spec.epilogue_operands.len();
        WorkerScratch {
            a: part(if self.shares_a() { 0 } else { self.block_rows * self.a_stride() * float }),
            sums: part(groups * self.block_rows * self.sums_stride() * float),
            b: part(self.depth_block * self.panel.columns() * float),
            stats: part(self.block_rows * 2 * float),
            wide: part(self.wide_len() * float),
            offsets: part(self.block_rows * n_views * size_of::<usize>()),
            program: part(program_len.max(PackRows::SCRATCH_LEN) * float),
            bytes,
        }
    }

    /// Elements of a row of A that are kept as f32 before they are rounded to words.
    fn wide_len(&self) -> usize {
        match self.words {
            Words::F32 => 0,
            Words::Bf16Pairs(_) => self.packed_words() * self.words.depths(),
        }
    }

    /// Enough tasks to keep `threads` busy to the end, but no more: each packs its rows of A.
    fn split(&self, threads: usize) -> Split {
        let row_blocks = self.n_rows.div_ceil(self.block_rows);
        // An even share for every thread, if there are many blocks.
        let tiles = self.n_rows.div_ceil(self.tile_rows);
        let row_blocks =
            if row_blocks > 1 { row_blocks.next_multiple_of(threads).min(tiles) } else { 1 };
        let groups = self.spec.columns.div_ceil(GROUP_COLUMNS);
        let blocks = row_blocks * self.n_batch;
        // The first block of a task's B is waited for, so tasks of few rows, which take little time
        // for much of B, should be few.
        let tasks = if self.shares_a() { 2 } else { 4 } * threads;
        let wanted = if threads > 1 && blocks < tasks { tasks.div_ceil(blocks) } else { 1 };
        let least =
            if self.keeps_sums() { self.spec.columns.div_ceil(MAX_TASK_COLUMNS) } else { 1 };
        // A range is a whole number of panels.
        let panels = self.spec.columns.div_ceil(self.panel.columns());
        let most = if wanted > groups { panels } else { groups };
        Split { row_blocks, column_ranges: wanted.max(least).min(most.max(least)) }
    }

    /// Computes C.
    ///
    /// # Safety
    /// The buffers are valid for the positions that the spec's views address, the packed B for
    /// [`Matmul::packed_b_bytes`], the scratch for [`Matmul::scratch_bytes`] of the pool's threads. Nothing
    /// else accesses C and the scratch meanwhile. C overlaps no operand, or has exactly the
    /// addresses of an epilogue operand of its element size.
    pub unsafe fn run(&self, pool: &Pool, buffers: &MatmulBuffers<'_>) {
        let split = self.split(pool.threads());
        let tasks_per_batch = split.row_blocks * split.column_ranges;
        let packed_bytes = self.packed_batch_bytes();
        let group = self.batch_group();
        let shared_a = group * packed_bytes;
        let workers = shared_a + self.shared_a_bytes();
        let worker_bytes = self.worker_scratch().bytes;
        let panels = self.spec.columns.div_ceil(self.panel.columns());
        if self.shares_a() {
            let tiles = self.n_rows.div_ceil(self.tile_rows);
            pool.run(tiles, &|tile, worker| {
                // SAFETY: the caller's promise; tiles and scratch parts of workers are disjoint.
                unsafe {
                    let scratch = buffers.scratch.add(workers + worker * worker_bytes);
                    let rows = self.row_range(tile, tiles);
                    let rows = Rows { matmul: self, buffers, scratch, batch: 0, rows };
                    let packed = buffers.scratch.add(shared_a).cast();
                    dispatch(self.isa, PackShared { rows, packed });
                    // What the worker probably multiplies first comes in meanwhile.
                    let panel = self.first_panel(split, worker);
                    let is_ready = self.spec.b == BOperand::Packed(self.words.dtype());
                    if is_ready && panel < panels {
                        let first = self.b_position(panel, 0);
                        let block = self.depth_block * self.panel.columns();
                        let piece = (block * pool.threads()).div_ceil(16 * tiles);
                        let first = first / 16 + tile / pool.threads() * piece;
                        (first..first + piece).for_each(|line| {
                            prefetch_l2(buffers.b.wrapping_add(64 * line));
                        });
                    }
                }
            });
        }
        let mut first = 0;
        while first < self.n_batch {
            // Without packing there is no reason to stop between batch entries.
            let len =
                if packed_bytes == 0 { self.n_batch } else { group.min(self.n_batch - first) };
            if let Some(view) = self.dense_b() {
                pool.run(len * panels, &|item, _| {
                    let mut offset = [0];
                    row_offsets(
                        &self.spec.batch,
                        &view.batch_strides,
                        first + item / panels,
                        &mut offset,
                    );
                    // SAFETY: B covers its view; each item writes its own panel of scratch.
                    unsafe {
                        let dense = buffers.b.add((view.offset + offset[0]) * view.dtype.size());
                        let packed = buffers.scratch.add(item / panels * packed_bytes);
                        let (columns, depth) = (self.spec.columns, self.spec.depth);
                        let strides = (view.depth_stride, view.column_stride);
                        let types = (view.dtype, self.words.dtype());
                        self.panel.pack(
                            item % panels,
                            columns,
                            depth,
                            dense,
                            strides,
                            packed,
                            types,
                        );
                    }
                });
            }
            pool.run(len * tasks_per_batch, &|item, worker| {
                let (entry, task) = (item / tasks_per_batch, item % tasks_per_batch);
                // SAFETY: the caller's promise; scratch parts of workers are disjoint.
                unsafe {
                    let (b, widen) = match &self.spec.b {
                        BOperand::Packed(dtype) => {
                            (buffers.b, Some(*dtype).filter(|&dtype| dtype != self.words.dtype()))
                        }
                        BOperand::Dense(_) => {
                            (buffers.scratch.add(entry * packed_bytes).cast_const(), None)
                        }
                    };
                    let scratch = buffers.scratch.add(workers + worker * worker_bytes);
                    let row_block = task / split.column_ranges;
                    let column_range = task % split.column_ranges;
                    let batch = first + entry;
                    let rows = self.row_range(row_block, split.row_blocks);
                    let task = Task {
                        rows: Rows { matmul: self, buffers, scratch, batch, rows },
                        shared_a: self
                            .shares_a()
                            .then(|| buffers.scratch.add(shared_a).cast_const().cast()),
                        b,
                        widen,
                        panels: (
                            self.first_panel(split, column_range),
                            self.first_panel(split, column_range + 1),
                        ),
                        // Workers take turns, more or less.
                        then: self.first_panel(split, column_range + pool.threads()),
                    };
                    dispatch(self.isa, task);
                }
            });
            first += len;
        }
    }

    /// The first panel of a range of columns; the number of panels behind the last range.
    fn first_panel(&self, split: Split, column_range: usize) -> usize {
        let panels = self.spec.columns.div_ceil(self.panel.columns());
        panels * column_range.min(split.column_ranges) / split.column_ranges
    }

    /// Words from the start of the packed B to a depth of a panel.
    #[inline(always)]
    pub(super) fn b_position(&self, panel: usize, depth: usize) -> usize {
        let width = self.panel.vectors_of(panel, self.spec.columns) * self.panel.lanes;
        panel * self.panel.columns() * self.n_words + depth * width
    }

    /// Rows of one block; whole tiles, spread evenly.
    fn row_range(&self, block: usize, blocks: usize) -> (usize, usize) {
        let tiles = self.n_rows.div_ceil(self.tile_rows);
        let bound = |block: usize| (tiles * block / blocks * self.tile_rows).min(self.n_rows);
        (bound(block), bound(block + 1))
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
            Words::F32 => "panels",
            Words::Bf16Pairs(_) => "pairs",
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
                self.panel.pack(panel, columns, depth, dense, strides, packed, (dtype, dtype));
            }
        });
        Ok(())
    }
}

const _: () = assert!(GROUP_COLUMNS.is_multiple_of(MAX_LANES * 3));
