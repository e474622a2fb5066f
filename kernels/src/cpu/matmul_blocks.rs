//! How a run of the matrix product is cut: into *blocks*, between which B is packed, and each of these into
//! tasks.
//!
//! A weight is packed before, and all of the product is one block. An activation is packed while running, the
//! part of it that a block needs: some panels, over the depth that A is packed for at a time, so that what is
//! packed is bounded whatever the sizes. Where the depth takes several blocks, as that of a weight's gradient
//! does, which is the number of tokens, the sums of a block's rows and panels wait in scratch that all tasks
//! share, or in C where that is nothing else; that bounds a block's rows.
//!
//! Invariant: blocks of one part of C follow the order of the depth, so no sum depends on how it is cut.

use ops::DType;

use crate::program::Program;
use crate::simd::digits::{MOST_UNITS, Scales, VECTORS, WORDS_OF_UNIT};
use crate::simd::{MAX_LANES, TILE_ROWS, TILE_WORDS};

use super::matmul::{BOperand, Matmul};
use super::matmul_rows::PackRows;
use super::words::Words;

/// Most bytes of B that are packed at a time, and of sums that wait for the next part of the depth; twice as many with digits.
const SHARED_BYTES: usize = 12 << 20;
/// Packed activations are made for batch entries of about this many bytes at a time.
const BATCH_BYTES: usize = 8 << 20;
/// Columns the epilogue works on at a time: long enough to hide the cost of its instructions,
/// short enough for the second-level cache.
pub(super) const GROUP_COLUMNS: usize = 384;
/// Most columns of a task whose sums are kept through several passes over the depth.
const MAX_TASK_COLUMNS: usize = 4608;

/// How much a task takes at a time at most, for each kind of words; depths count words.
pub(super) struct BlockLimits {
    /// Depth of a block, whose panel of B is read once per tile row from the nearest caches.
    pub(super) depth: usize,
    /// What a block's depth is a multiple of, but for the last.
    pub(super) depth_unit: usize,
    /// Blocks of the depth that A is packed for at a time.
    pub(super) blocks_per_pass: usize,
    /// Rows.
    pub(super) rows: usize,
}

impl BlockLimits {
    /// Sums cost tile registers the more to load and store, but a block's A and B must lie in the nearest cache: no
    /// other is fast enough for pairs. Of digits B's lie there, which are read several times; A's are read once from the
    /// second level.
    pub(super) fn of(words: Words) -> Self {
        let (depth, depth_unit, blocks_per_pass, rows) = match words {
            Words::F32 | Words::Bf16Pairs(_) => (320, 4, 4, 240),
            Words::Bf16Tiles(_) => (288, TILE_WORDS, 4, 256),
            Words::F32Digits(_) => (MOST_UNITS * WORDS_OF_UNIT, WORDS_OF_UNIT, 3, 192),
        };
        Self { depth, depth_unit, blocks_per_pass, rows }
    }
}

/// Size of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct BlockShape {
    /// Whole tiles, or all rows of a batch entry.
    pub(super) rows: usize,
    pub(super) panels: usize,
    /// Of the depth.
    pub(super) words: usize,
}

/// What is multiplied between two rounds of packing: first and one past the last of each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Block {
    pub(super) rows: (usize, usize),
    pub(super) panels: (usize, usize),
    pub(super) words: (usize, usize),
}

/// How a block is split into tasks.
#[derive(Clone, Copy)]
pub(super) struct Split {
    pub(super) row_blocks: usize,
    pub(super) column_ranges: usize,
}

/// Panels of B as they are packed: those of a weight, or of a block.
#[derive(Clone, Copy)]
pub(super) struct PackedPanels {
    /// Where the first one starts.
    pub(super) start: *const u8,
    /// First and one past the last.
    pub(super) panels: (usize, usize),
    /// Words of the depth that they have, the same.
    pub(super) words: (usize, usize),
    /// Words from digits to low ones.
    pub(super) low: usize,
    /// Scales of digits, panel by panel, in it block by block of the depth, in that vector by vector.
    pub(super) scales: *const Scales,
}

/// Byte offsets within the scratch of a run, and its size.
pub(super) struct RunScratch {
    pub(super) shared_a: usize,
    pub(super) sums: usize,
    pub(super) workers: usize,
    pub(super) bytes: usize,
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
    pub(super) bytes: usize,
}

/// `total` cut into parts as even as whole multiples of `unit` are, none longer than `most` or `unit`.
fn even(total: usize, most: usize, unit: usize) -> usize {
    let units = total.div_ceil(unit);
    let parts = units.div_ceil((most / unit).max(1));
    units.div_ceil(parts) * unit
}

/// First and one past the last of each part of `step` of `total`.
fn parts(total: usize, step: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..total).step_by(step).map(move |from| (from, total.min(from + step)))
}

impl Matmul {
    /// Size of a block, whose part of B lies in the last-level cache.
    pub(super) fn choose_block(&self, l3_bytes: usize) -> BlockShape {
        // A's digits are made anew for each block of columns, which takes longer than to read B's from farther away.
        let more = if self.words.digits().is_some() { 2 } else { 1 };
        let shared_bytes = more * (l3_bytes / 8 * 3).min(SHARED_BYTES);
        let columns = self.panel.columns();
        let panels = self.n_panels();
        // Low digits are hardly ever there to be read.
        let panel_bytes = |words: usize| words * columns * size_of::<f32>();
        if !self.packs_b() || panels * panel_bytes(self.n_words) <= shared_bytes {
            return BlockShape { rows: self.n_rows, panels, words: self.n_words };
        }
        let words = self.depth_pass.min(self.n_words);
        let panels = even(panels, shared_bytes / panel_bytes(words), 1);
        let rows = if words == self.n_words {
            self.n_rows
        } else {
            let row_bytes = panels * columns * size_of::<f32>();
            even(self.n_rows, shared_bytes / row_bytes, self.tile_rows)
        };
        BlockShape { rows, panels, words }
    }

    /// The blocks of one batch entry, in order.
    pub(super) fn blocks_of_run(&self) -> impl Iterator<Item = Block> {
        let BlockShape { rows, panels, words } = self.block;
        parts(self.n_rows, rows).flat_map(move |rows| {
            parts(self.n_panels(), panels).flat_map(move |panels| {
                parts(self.n_words, words).map(move |words| Block { rows, panels, words })
            })
        })
    }

    /// Panels of all columns.
    pub(super) fn n_panels(&self) -> usize {
        self.spec.columns.div_ceil(self.panel.columns())
    }

    /// Whether sums wait for the next block in scratch that tasks share.
    pub(super) fn shares_sums(&self) -> bool {
        self.block.words < self.n_words && self.sums_in_c.is_none()
    }

    /// Whether a task's sums wait in its scratch for the next pass over the depth.
    pub(super) fn keeps_sums(&self) -> bool {
        self.depth_pass < self.block.words && self.sums_in_c.is_none()
    }

    /// Elements from one row of sums to the next.
    pub(super) fn sums_stride(&self) -> usize {
        if let Some(stride) = self.sums_in_c {
            return stride;
        }
        let columns = self.spec.columns.next_multiple_of(self.panel.lanes).min(GROUP_COLUMNS);
        // Tile registers store sixteen rows at once: of an odd number of cache lines, so that they lie in different
        // sets of the first-level cache.
        if self.words.are_tiles() { ((columns / MAX_LANES) | 1) * MAX_LANES } else { columns }
    }

    /// Bytes of a block of one batch entry of B that is packed while running.
    pub(super) fn packed_block_bytes(&self) -> usize {
        if !self.packs_b() {
            return 0;
        }
        let columns = self.spec.columns.next_multiple_of(self.panel.lanes);
        let columns = columns.min(self.block.panels * self.panel.columns());
        (columns * self.block.words * size_of::<f32>()).next_multiple_of(64)
    }

    /// Parts of what is packed: digits have high and low ones.
    pub(super) fn digit_parts(&self) -> usize {
        1 + usize::from(self.words.digits().is_some())
    }

    /// Bytes of the scales of a block of one batch entry of B, if that is packed as digits.
    pub(super) fn b_scales_bytes(&self) -> usize {
        let blocks = self.block.words.div_ceil(self.depth_block);
        (self.digit_parts() - 1) * self.block.panels * blocks * size_of::<[Scales; VECTORS]>()
    }

    /// Where the scales of all batch entries of packed B start, behind the digits: a byte offset within the scratch.
    pub(super) fn packed_b_scales(&self) -> usize {
        self.digit_parts() * self.packed_block_bytes() * self.batch_group()
    }

    /// Bytes of A as it is packed at a time, scales included.
    pub(super) fn packed_a_bytes(&self) -> usize {
        let blocks = self.packed_words().div_ceil(self.depth_block);
        let scales = (self.digit_parts() - 1) * blocks * self.a_scales_step();
        self.digit_parts() * self.a_words() * size_of::<f32>() + scales * size_of::<Scales>()
    }

    /// From the scales of one block of the depth of packed A to those of the next: so many sixteen rows there are.
    pub(super) fn a_scales_step(&self) -> usize {
        self.a_rows() / TILE_ROWS
    }

    /// Words from the digits of packed B to its low ones.
    pub(super) fn b_low(&self) -> usize {
        self.packed_block_bytes() * self.batch_group() / size_of::<f32>()
    }

    /// Batch entries whose B is packed at a time.
    pub(super) fn batch_group(&self) -> usize {
        let whole = BlockShape { rows: self.n_rows, panels: self.n_panels(), words: self.n_words };
        match self.packed_block_bytes() {
            // Without packing there is no reason to stop between batch entries.
            0 => self.n_batch,
            bytes if self.block == whole => (BATCH_BYTES / bytes).clamp(1, self.n_batch),
            _ => 1,
        }
    }

    /// How the scratch of a run on `threads` threads is laid out.
    pub(super) fn run_scratch(&self, threads: usize) -> RunScratch {
        let shared_a = self.packed_b_scales() + self.b_scales_bytes() * self.batch_group();
        let sums = shared_a + self.shared_a_bytes();
        let sums_len = if self.shares_sums() {
            let len = |block: Block| {
                let split = self.split(threads, &block);
                split.column_ranges * self.range_len(split, &block)
            };
            self.blocks_of_run().map(len).max().unwrap_or(0)
        } else {
            0
        };
        let workers = sums + sums_len * size_of::<f32>();
        let bytes = workers + threads.max(1) * self.worker_scratch().bytes;
        RunScratch { shared_a, sums, workers, bytes }
    }

    pub(super) fn worker_scratch(&self) -> WorkerScratch {
        let mut bytes = 0;
        let mut part = |n: usize| {
            let start = bytes;
            bytes += n.next_multiple_of(64);
            start
        };
        let spec = &self.spec;
        let groups = if self.shares_sums() || self.sums_in_c.is_some() {
            0
        } else if self.keeps_sums() {
            spec.columns.min(MAX_TASK_COLUMNS).div_ceil(GROUP_COLUMNS) + 1
        } else {
            1
        };
        let float = size_of::<f32>();
        let program_len = spec.prologue.as_ref().map_or(0, Program::scratch_len);
        let program_len = program_len.max(spec.epilogue.scratch_len());
        let n_views = 2 + spec.prologue_operands.len() + spec.epilogue_operands.len();
        WorkerScratch {
            a: part(if self.shares_a() { 0 } else { self.packed_a_bytes() }),
            sums: part(groups * self.block_rows * self.sums_stride() * float),
            b: part(if self.packs_b() {
                0
            } else {
                self.depth_block * self.panel.columns() * float
            }),
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
            _ => self.words.depth(self.packed_words()),
        }
    }

    /// Elements of the sums of all rows of a block by one group of panels.
    pub(super) fn group_len(&self, block: &Block) -> usize {
        (block.rows.1 - block.rows.0) * self.sums_stride()
    }

    /// The same of the panels of one range of a block, whose groups start with it.
    pub(super) fn range_len(&self, split: Split, block: &Block) -> usize {
        let panels = (block.panels.1 - block.panels.0).div_ceil(split.column_ranges);
        panels.div_ceil(self.group_panels()) * self.group_len(block)
    }

    /// Enough tasks to keep `threads` busy to the end, but no more: each packs its rows of A.
    pub(super) fn split(&self, threads: usize, block: &Block) -> Split {
        let n_rows = block.rows.1 - block.rows.0;
        let panels = block.panels.1 - block.panels.0;
        let columns = self.spec.columns.min(panels * self.panel.columns());
        let row_blocks = n_rows.div_ceil(self.block_rows);
        // An even share for every thread, if there are many blocks.
        let tiles = n_rows.div_ceil(self.tile_rows);
        let row_blocks =
            if row_blocks > 1 { row_blocks.next_multiple_of(threads).min(tiles) } else { 1 };
        let groups = columns.div_ceil(GROUP_COLUMNS);
        let blocks = row_blocks * self.n_batch;
        // The first block of a task's B is waited for, so tasks of few rows, which take little time
        // for much of B, should be few.
        let tasks = if self.shares_a() { 2 } else { 4 } * threads;
        let wanted = if threads > 1 && blocks < tasks { tasks.div_ceil(blocks) } else { 1 };
        let least = if self.keeps_sums() { columns.div_ceil(MAX_TASK_COLUMNS) } else { 1 };
        // A range is a whole number of panels.
        let most = if wanted > groups { panels } else { groups };
        Split { row_blocks, column_ranges: wanted.max(least).min(most.max(least)) }
    }

    /// The first panel of a range of columns of a block; one past the block's last behind the last range.
    pub(super) fn first_panel(&self, split: Split, block: &Block, range: usize) -> usize {
        let (from, to) = block.panels;
        from + (to - from) * range.min(split.column_ranges) / split.column_ranges
    }

    /// Rows of part `part` of `parts`; whole tiles, spread evenly.
    pub(super) fn row_range(&self, block: &Block, part: usize, parts: usize) -> (usize, usize) {
        let (from, to) = block.rows;
        let tiles = (to - from).div_ceil(self.tile_rows);
        let bound = |part: usize| (from + tiles * part / parts * self.tile_rows).min(to);
        (bound(part), bound(part + 1))
    }

    /// Bytes of packed B for so many of its words.
    #[inline(always)]
    pub(super) fn b_bytes(&self, words: usize) -> usize {
        match self.unmade_b() {
            Some(dtype) => self.words.depth(words) * dtype.size(),
            None => words * size_of::<f32>(),
        }
    }

    /// The type of a packed B that words are made of while running; `None` if it is what tiles read.
    #[inline(always)]
    pub(super) fn unmade_b(&self) -> Option<DType> {
        match self.spec.b {
            BOperand::Packed(dtype) => Some(dtype).filter(|&dtype| dtype != self.words.dtype()),
            BOperand::Dense(_) => None,
        }
    }

    /// Words from the start of packed panels to a depth of one of them.
    #[inline(always)]
    pub(super) fn position(&self, packed: &PackedPanels, panel: usize, word: usize) -> usize {
        let width = self.panel.vectors_of(panel, self.spec.columns) * self.panel.lanes;
        let words = packed.words.1 - packed.words.0;
        (panel - packed.panels.0) * self.panel.columns() * words + (word - packed.words.0) * width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_even_and_cover_everything() {
        for total in 1..100 {
            for (most, unit) in [(1, 1), (7, 1), (20, 8), (3, 8), (200, 6)] {
                let step = even(total, most, unit);
                assert!(
                    step.is_multiple_of(unit) && step <= most.max(unit),
                    "{total} {most} {unit}"
                );
                let mut at = 0;
                for (from, to) in parts(total, step) {
                    assert!(from == at && to > from, "{total} {most} {unit}");
                    at = to;
                }
                assert_eq!(at, total);
                let n = total.div_ceil(step);
                assert!(n <= total.div_ceil(unit).div_ceil((most / unit).max(1)), "{total} {most}");
            }
        }
    }
}
