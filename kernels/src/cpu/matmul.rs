//! The matrix product `C[r, n] = epilogue(sum_k prologue(A[r, k]) B[k, n])`, f32 arithmetic.
//!
//! One task computes a block of rows by a range of columns. It packs its rows of A into scratch
//! that stays in the second-level cache, applying the prologue (norm of the row, then elementwise
//! code) on the way in; walks the panels of B, each a strip of columns that was packed once; lets
//! [`super::matmul_tile`] sum register tiles; and applies the epilogue to a group of panels while
//! their sums are still in the second-level cache. While one block of a panel is multiplied, the
//! next one is prefetched, so that B may come from memory.
//!
//! Invariants: the depth is cut into blocks that depend on the depth alone, and every sum adds
//! them in order, so the bytes of C depend neither on the number of threads nor on the block
//! sizes. Elements of C are written once, by one task, after it has read the epilogue operands at
//! the same position: C may lie exactly over one of them.

use ops::DType;

use crate::Error;
use crate::isa::Isa;
use crate::pool::Pool;
use crate::program::{Program, SlotPtr};
use crate::simd::{MAX_LANES, Simd, SimdJob, dispatch};

use super::matmul_pack::{self, PanelShape};
use super::matmul_rows::{Norm, PackRows, RowView, row_offsets};
use super::matmul_tile::{self, Tile};

/// Largest block of the depth: its panel of B is read once per tile row from the nearest caches.
const MAX_DEPTH_BLOCK: usize = 320;
/// Blocks of the depth that A is packed for at a time.
const DEPTH_BLOCKS_PER_PASS: usize = 4;
/// Columns the epilogue works on at a time: long enough to hide the cost of its instructions,
/// short enough for the second-level cache.
const GROUP_COLUMNS: usize = 384;
/// Most columns of a task whose sums are kept through several passes over the depth.
const MAX_TASK_COLUMNS: usize = 4608;
/// Packed activations are made in batches of about this many bytes.
const B_BATCH_BYTES: usize = 8 << 20;

/// Where B comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum BOperand {
    /// Packed by [`pack_b`] as this type: f32, bf16 or f16.
    Packed(DType),
    /// Read where it is and packed in every run.
    Dense(BView),
}

/// B in memory; strides and offset count elements.
#[derive(Clone, Debug, PartialEq)]
pub struct BView {
    /// f32, bf16 or f16.
    pub dtype: DType,
    /// One for each batch dim.
    pub batch_strides: Vec<usize>,
    /// From one depth to the next.
    pub depth_stride: usize,
    /// From one column to the next.
    pub column_stride: usize,
    /// Position of the first element.
    pub offset: usize,
}

/// A matrix product with everything that is fused into it.
#[derive(Clone, Debug, PartialEq)]
pub struct MatmulSpec {
    /// Leading dims that B has, too.
    pub batch: Vec<usize>,
    /// Further leading dims of A and C; their product is the number of rows M.
    pub rows: Vec<usize>,
    /// N.
    pub columns: usize,
    /// K.
    pub depth: usize,
    /// Rows of A over `batch` and `rows`; its columns are the depth.
    pub a: RowView,
    /// The right operand.
    pub b: BOperand,
    /// Norm of each row of A, before the prologue.
    pub norm: Option<Norm>,
    /// Applied to A's elements: slot 0 is A, or f32 after a norm; the others are
    /// `prologue_operands`. The result is f32.
    pub prologue: Option<Program>,
    /// Operands over rows and depth.
    pub prologue_operands: Vec<RowView>,
    /// Applied to the sums: slot 0 is the sum (f32), the others are `epilogue_operands`.
    pub epilogue: Program,
    /// Operands over rows and columns.
    pub epilogue_operands: Vec<RowView>,
    /// The result over rows and columns; the column stride is 1.
    pub c: RowView,
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

/// A matrix product ready to run: checked, block sizes chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Matmul {
    spec: MatmulSpec,
    isa: Isa,
    panel: PanelShape,
    /// M: rows of one batch entry.
    n_rows: usize,
    n_batch: usize,
    /// Rows of a full register tile.
    tile_rows: usize,
    /// Depth of a block.
    depth_block: usize,
    /// Depth that A is packed for at a time; a multiple of `depth_block`.
    depth_pass: usize,
    /// Most rows of a task.
    block_rows: usize,
}

/// Byte offsets within a worker's scratch, and its size.
struct WorkerScratch {
    a: usize,
    sums: usize,
    b: usize,
    stats: usize,
    offsets: usize,
    program: usize,
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
        let panel = PanelShape::of(isa);
        let tile_rows = matmul_tile::shape(isa.registers()).0;
        let n_blocks = spec.depth.div_ceil(MAX_DEPTH_BLOCK);
        let depth_block = spec.depth.div_ceil(n_blocks).next_multiple_of(4);
        let depth_pass = depth_block * DEPTH_BLOCKS_PER_PASS.min(n_blocks);
        // Rows of A take a bit less than half of the cache; sums and panels share the rest.
        let fit = l2_bytes * 9 / 20 / (depth_pass * size_of::<f32>());
        let block_rows = (fit / tile_rows * tile_rows).clamp(4 * tile_rows, 30 * tile_rows);
        let n_rows = spec.rows.iter().product::<usize>();
        let block_rows = block_rows.min(n_rows.next_multiple_of(tile_rows));
        let n_batch = spec.batch.iter().product();
        Ok(Self {
            spec,
            isa,
            panel,
            n_rows,
            n_batch,
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
                .packed_bytes(self.spec.columns, self.spec.depth, DType::F32)
                .next_multiple_of(64),
            None => 0,
        }
    }

    /// Batch entries whose B is packed at a time.
    fn batch_group(&self) -> usize {
        (B_BATCH_BYTES / self.packed_batch_bytes().max(1)).clamp(1, self.n_batch)
    }

    /// Elements from one packed row of A to the next: an odd number of cache lines, so that the
    /// rows of a tile never compete for the same set of the first-level cache.
    fn a_stride(&self) -> usize {
        let lines = self.depth_pass.min(self.spec.depth).div_ceil(16);
        (lines | 1) * 16
    }

    fn group_panels(&self) -> usize {
        GROUP_COLUMNS / self.panel.columns()
    }

    /// Elements from one row of sums to the next.
    fn sums_stride(&self) -> usize {
        self.spec.columns.next_multiple_of(self.panel.lanes).min(GROUP_COLUMNS)
    }

    /// Whether sums of a whole task wait for the next pass over the depth.
    fn keeps_sums(&self) -> bool {
        self.depth_pass < self.spec.depth
    }

    fn worker_scratch(&self) -> WorkerScratch {
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
            a: part(self.block_rows * self.a_stride() * float),
            sums: part(groups * self.block_rows * self.sums_stride() * float),
            b: part(self.depth_block * self.panel.columns() * float),
            stats: part(self.block_rows * 2 * float),
            offsets: part(self.block_rows * n_views * size_of::<usize>()),
            program: part(program_len.max(PackRows::SCRATCH_LEN) * float),
            bytes,
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
        let wanted =
            if threads > 1 && blocks < 4 * threads { (4 * threads).div_ceil(blocks) } else { 1 };
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
    /// [`packed_b_bytes`], the scratch for [`Matmul::scratch_bytes`] of the pool's threads. Nothing
    /// else accesses C and the scratch meanwhile. C overlaps no operand, or has exactly the
    /// addresses of an epilogue operand of its element size.
    pub unsafe fn run(&self, pool: &Pool, buffers: &MatmulBuffers<'_>) {
        let split = self.split(pool.threads());
        let tasks_per_batch = split.row_blocks * split.column_ranges;
        let packed_bytes = self.packed_batch_bytes();
        let group = self.batch_group();
        let workers = group * packed_bytes;
        let worker_bytes = self.worker_scratch().bytes;
        let panels = self.spec.columns.div_ceil(self.panel.columns());
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
                        let types = (view.dtype, DType::F32);
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
                    let (b, dtype) = match &self.spec.b {
                        BOperand::Packed(dtype) => (buffers.b, *dtype),
                        BOperand::Dense(_) => {
                            (buffers.scratch.add(entry * packed_bytes).cast_const(), DType::F32)
                        }
                    };
                    let scratch = buffers.scratch.add(workers + worker * worker_bytes);
                    let row_block = task / split.column_ranges;
                    let column_range = task % split.column_ranges;
                    let task = Task {
                        matmul: self,
                        buffers,
                        b,
                        b_dtype: dtype,
                        scratch,
                        batch: first + entry,
                        rows: self.row_range(row_block, split.row_blocks),
                        panels: (
                            panels * column_range / split.column_ranges,
                            panels * (column_range + 1) / split.column_ranges,
                        ),
                    };
                    dispatch(self.isa, task);
                }
            });
            first += len;
        }
    }

    /// Rows of one block; whole tiles, spread evenly.
    fn row_range(&self, block: usize, blocks: usize) -> (usize, usize) {
        let tiles = self.n_rows.div_ceil(self.tile_rows);
        let bound = |block: usize| (tiles * block / blocks * self.tile_rows).min(self.n_rows);
        (bound(block), bound(block + 1))
    }
}

/// Bytes of a B of `depth` x `columns`, packed as `dtype` for `isa`.
pub fn packed_b_bytes(isa: Isa, columns: usize, depth: usize, dtype: DType) -> usize {
    PanelShape::of(isa).packed_bytes(columns, depth, dtype)
}

/// Packs B for [`BOperand::Packed`]: from `dense`, with element `(k, n)` at
/// `k * strides.0 + n * strides.1`, to `packed`.
///
/// # Errors
/// [`Error::InvalidSpec`] if a slice is too short, or if a type is no float or the packed one is
/// neither f32 nor the dense one.
pub fn pack_b(
    pool: &Pool,
    isa: Isa,
    (columns, depth): (usize, usize),
    (dense, dense_dtype): (&[u8], DType),
    strides: (usize, usize),
    (packed, packed_dtype): (&mut [u8], DType),
) -> Result<(), Error> {
    let invalid = |reason: String| Err(Error::InvalidSpec { kernel: "matmul", reason });
    if columns == 0 || depth == 0 {
        return invalid(format!("B is {depth} x {columns}"));
    }
    let needed = (depth - 1) * strides.0 + (columns - 1) * strides.1 + 1;
    if dense.len() < needed * dense_dtype.size() {
        let (found, needed) = (dense.len(), needed * dense_dtype.size());
        return invalid(format!("dense B has {found} bytes, expected {needed}"));
    }
    let bytes = packed_b_bytes(isa, columns, depth, packed_dtype);
    if packed.len() != bytes {
        return invalid(format!("packed B has {} bytes, expected {bytes}", packed.len()));
    }
    if !dense_dtype.is_float() || (packed_dtype != DType::F32 && packed_dtype != dense_dtype) {
        let (from, to) = (dense_dtype.name(), packed_dtype.name());
        return invalid(format!("cannot pack {from} as {to}"));
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
    let shape = PanelShape::of(isa);
    pool.run(columns.div_ceil(shape.columns()), &|panel, _| {
        let (dense, packed) = pointers.get();
        // SAFETY: lengths were checked above.
        unsafe {
            shape.pack(panel, columns, depth, dense, strides, packed, (dense_dtype, packed_dtype));
        }
    });
    Ok(())
}

impl MatmulSpec {
    fn check(&self) -> Result<(), Error> {
        let invalid = |reason: String| Err(Error::InvalidSpec { kernel: "matmul", reason });
        let dims = [self.batch.as_slice(), self.rows.as_slice(), &[self.columns, self.depth]];
        if dims.iter().any(|dims| dims.contains(&0)) {
            return invalid("a dim is 0".to_owned());
        }
        let rank = self.batch.len() + self.rows.len();
        let named = [("A", &self.a), ("C", &self.c)];
        let prologue = self.prologue_operands.iter().map(|view| ("a prologue operand", view));
        let epilogue = self.epilogue_operands.iter().map(|view| ("an epilogue operand", view));
        for (name, view) in named.into_iter().chain(prologue).chain(epilogue) {
            if view.row_strides.len() != rank {
                let found = view.row_strides.len();
                return invalid(format!("{name} has {found} row strides, expected {rank}"));
            }
        }
        let b_dtype = match &self.b {
            BOperand::Packed(_) if !self.batch.is_empty() => {
                return invalid("packed B has no batch dims".to_owned());
            }
            BOperand::Packed(dtype) => *dtype,
            BOperand::Dense(view) if view.batch_strides.len() != self.batch.len() => {
                let (found, expected) = (view.batch_strides.len(), self.batch.len());
                return invalid(format!("B has {found} batch strides, expected {expected}"));
            }
            BOperand::Dense(view) => view.dtype,
        };
        if !b_dtype.is_float() || !self.a.dtype.is_float() || !self.c.dtype.is_float() {
            return invalid("A, B and C must be floats".to_owned());
        }
        if self.c.column_stride != 1 && self.columns > 1 {
            return invalid(format!("column stride of C is {}, expected 1", self.c.column_stride));
        }
        let slot0 = if self.norm.is_some() { DType::F32 } else { self.a.dtype };
        if let Some(prologue) = &self.prologue {
            check_slots("prologue", prologue, slot0, &self.prologue_operands)?;
            if prologue.result() != DType::F32 {
                return invalid("the prologue's result must be f32".to_owned());
            }
        } else if !self.prologue_operands.is_empty() {
            return invalid("prologue operands without a prologue".to_owned());
        }
        check_slots("epilogue", &self.epilogue, DType::F32, &self.epilogue_operands)?;
        if self.epilogue.result() != self.c.dtype {
            return invalid("the epilogue's result differs from C's type".to_owned());
        }
        Ok(())
    }
}

fn check_slots(
    name: &str,
    program: &Program,
    slot0: DType,
    operands: &[RowView],
) -> Result<(), Error> {
    let expected: Vec<DType> =
        std::iter::once(slot0).chain(operands.iter().map(|view| view.dtype)).collect();
    if program.slots() == expected {
        return Ok(());
    }
    let reason = format!("the {name} reads {:?}, expected {expected:?}", program.slots());
    Err(Error::InvalidSpec { kernel: "matmul", reason })
}

/// One block of rows by one range of panels.
struct Task<'a> {
    matmul: &'a Matmul,
    buffers: &'a MatmulBuffers<'a>,
    b: *const u8,
    b_dtype: DType,
    scratch: *mut u8,
    batch: usize,
    rows: (usize, usize),
    panels: (usize, usize),
}

/// The block of a panel that is multiplied now.
struct PanelBlock {
    panel: usize,
    depth_start: usize,
    depth: usize,
}

impl SimdJob for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let matmul = self.matmul;
        let spec = &matmul.spec;
        let n_rows = self.rows.1 - self.rows.0;
        if n_rows == 0 || self.panels.0 == self.panels.1 {
            return;
        }
        let layout = matmul.worker_scratch();
        let first_row = self.batch * matmul.n_rows + self.rows.0;
        let dims = RowDims { batch: &spec.batch, rows: &spec.rows };
        // SAFETY: `worker_scratch` sized every part; A, B, C and operands as `Matmul::run` demands.
        unsafe {
            let a_packed = self.scratch.add(layout.a).cast::<f32>();
            let program_scratch = self.scratch.add(layout.program).cast::<f32>();
            let offsets = self.scratch.add(layout.offsets).cast::<usize>();
            let views = std::iter::once(&spec.a)
                .chain(&spec.prologue_operands)
                .chain(std::iter::once(&spec.c))
                .chain(&spec.epilogue_operands);
            for (index, view) in views.enumerate() {
                let table = offsets.add(index * matmul.block_rows);
                let table = std::slice::from_raw_parts_mut(table, n_rows);
                dims.offsets(&view.row_strides, first_row, table);
            }
            let c_offsets = offsets.add((1 + spec.prologue_operands.len()) * matmul.block_rows);
            let pack = PackRows {
                a: self.buffers.a,
                view: &spec.a,
                norm: spec.norm,
                prologue: spec.prologue.as_ref(),
                operands: &spec.prologue_operands,
                operand_buffers: self.buffers.prologue,
                offsets: offsets.cast_const(),
                offsets_stride: matmul.block_rows,
                depth: spec.depth,
                stats: self.scratch.add(layout.stats).cast(),
                scratch: program_scratch,
            };
            let group_panels = matmul.group_panels();
            let group_len = matmul.block_rows * matmul.sums_stride();
            let mut pass_start = 0;
            while pass_start < spec.depth {
                let pass_end = (pass_start + matmul.depth_pass).min(spec.depth);
                pack.run(s, n_rows, (pass_start, pass_end), a_packed, matmul.a_stride());
                let mut group_start = self.panels.0;
                let mut group = 0;
                while group_start < self.panels.1 {
                    let group_end = (group_start + group_panels).min(self.panels.1);
                    let slot = if matmul.keeps_sums() { group } else { 0 };
                    let sums = self.scratch.add(layout.sums).cast::<f32>().add(slot * group_len);
                    for panel in group_start..group_end {
                        let column = (panel - group_start) * matmul.panel.columns();
                        let mut start = pass_start;
                        while start < pass_end {
                            let depth = matmul.depth_block.min(pass_end - start);
                            let block = PanelBlock { panel, depth_start: start, depth };
                            let next = if start + depth < pass_end {
                                (panel, start + depth)
                            } else {
                                (panel + 1, pass_start)
                            };
                            let a = a_packed.add(start - pass_start);
                            self.multiply(s, &layout, &block, next, n_rows, a, sums.add(column));
                            start += depth;
                        }
                    }
                    if pass_end == spec.depth {
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
        layout: &WorkerScratch,
        block: &PanelBlock,
        next: (usize, usize),
        n_rows: usize,
        a: *const f32,
        sums: *mut f32,
    ) {
        let matmul = self.matmul;
        let spec = &matmul.spec;
        let vectors = matmul.panel.vectors_of(block.panel, spec.columns);
        let size = self.b_dtype.size();
        let position = |panel: usize, depth: usize| {
            let width = matmul.panel.vectors_of(panel, spec.columns) * S::LANES;
            (panel * matmul.panel.columns() * spec.depth + depth * width) * size
        };
        // SAFETY: positions are those of packed panels; `b` scratch holds a block of a full panel.
        unsafe {
            let packed = self.b.add(position(block.panel, block.depth_start));
            let b = if self.b_dtype == DType::F32 {
                packed.cast::<f32>()
            } else {
                let wide = self.scratch.add(layout.b).cast::<f32>();
                let n = block.depth * vectors * S::LANES;
                matmul_pack::widen(s, self.b_dtype, packed, n, wide);
                wide.cast_const()
            };
            // The next block comes in piece by piece, one piece with each tile.
            let next_block = if next.0 < self.panels.1 {
                self.b.wrapping_add(position(next.0, next.1))
            } else {
                packed
            };
            let piece = block.depth / 4 * 64;
            let next_bytes = block.depth * vectors * S::LANES * size;
            let mut row = 0;
            let mut prefetched = 0;
            while row < n_rows {
                let rows = matmul.tile_rows.min(n_rows - row);
                let tile = Tile {
                    a: a.add(row * matmul.a_stride()),
                    a_stride: matmul.a_stride(),
                    b,
                    depth: block.depth,
                    sums: sums.add(row * matmul.sums_stride()),
                    sums_stride: matmul.sums_stride(),
                    accumulate: block.depth_start > 0,
                    next: next_block.wrapping_add(prefetched.min(next_bytes)).cast(),
                };
                matmul_tile::run(s, rows, vectors, &tile);
                prefetched += piece;
                row += rows;
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
        let spec = &self.matmul.spec;
        let mut slots = [SlotPtr { ptr: sums.cast(), stride: 1 }; crate::program::MAX_SLOTS];
        let n = columns.1 - columns.0;
        for row in 0..n_rows {
            // SAFETY: offsets are those of the views, within their buffers.
            unsafe {
                slots[0].ptr = sums.add(row * self.matmul.sums_stride()).cast();
                for (index, view) in spec.epilogue_operands.iter().enumerate() {
                    let offset = *offsets.add((1 + index) * self.matmul.block_rows + row);
                    slots[1 + index] = view.slot(self.buffers.epilogue[index], offset, columns.0);
                }
                let at = spec.c.offset + *offsets.add(row) + columns.0;
                let dst = self.buffers.c.add(at * spec.c.dtype.size());
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

const _: () = assert!(GROUP_COLUMNS.is_multiple_of(MAX_LANES * 3));
