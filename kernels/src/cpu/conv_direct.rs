//! Convolution as an implicit product: rows are output positions, the depth runs over taps and
//! channels, columns are output channels.
//!
//! One task computes a rectangle of positions of one plane. It gathers the lines of the input that
//! their windows meet into a channels-last *strip* in L2, each once; zeros stand around. The taps of
//! a row of the window are then one run of the strip, and the windows of neighboring positions
//! overlap in it, so the register tile of the matrix product reads its rows of A where they are, one
//! *segment* of the depth for each row of the window. Where the runs are too short for that (few
//! input channels) they are copied together to patches. Where there are few output channels, the
//! taps become columns instead: one product of every position of the strip, whose sums are then added
//! up along the window.
//!
//! Roofline: the multiply-add units, those of bf16 pairs where operands are bf16 and the CPU has them.

use ops::{Attr, DType};

use crate::Pool;
use crate::kernel::Target;
use crate::simd::{Simd, SimdJob, dispatch};

use super::conv::{SPATIAL, Spec};
use super::conv_input::{Line, Reader};
use super::matmul_pack::{self, PanelShape};
use super::matmul_tile::{self, Tile, Words};
use super::shared::{Shared, aligned};

/// Most words of a block of the depth.
const MAX_DEPTH_BLOCK: usize = 512;
/// Words from which on a row of the window is a segment of its own.
const LEAST_SEGMENT: usize = 64;
/// Positions of a rectangle.
const POSITIONS: usize = 192;

/// A direct convolution.
#[derive(Clone, Debug)]
pub(super) struct Direct {
    words: Words,
    form: Form,
    panel: PanelShape,
    /// Rows and columns of a rectangle of positions.
    block: [usize; 2],
    /// Words of a block of the depth, but for the last one of a segment.
    depth_block: usize,
    /// Words of a position of the strip.
    cell: usize,
    /// Panels whose sums are kept until the epilogue.
    group: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// A segment of the strip for each row of the window.
    Segments,
    /// Copies of all rows of the window.
    Patches,
    /// Taps as columns.
    TapColumns,
}

impl Direct {
    /// For any convolution.
    pub(super) fn new(spec: &Spec, target: &Target) -> Direct {
        let is_bf16 = spec.input.dtype == DType::Bf16 && spec.weight.layout.dtype == DType::Bf16;
        let words = match spec.isa.bf16_dot() {
            Some(dot) if is_bf16 => Words::Bf16Pairs(dot),
            _ => Words::F32,
        };
        let panel = PanelShape::of(spec.isa, words);
        let cell = spec.input.channels.div_ceil(words.depths());
        let [_, kernel_height, kernel_width] = spec.kernel;
        let taps = spec.taps();
        let vectors = |columns: usize| columns.div_ceil(panel.lanes);
        let form = if cell >= 16 && 2 * vectors(taps * spec.columns) <= taps * vectors(spec.columns)
        {
            Form::TapColumns
        } else if kernel_width * cell < LEAST_SEGMENT && taps > kernel_width {
            Form::Patches
        } else {
            Form::Segments
        };
        let segment = match form {
            Form::Segments => kernel_width * cell,
            Form::Patches => taps * cell,
            Form::TapColumns => cell,
        };
        let depth_block = segment.div_ceil(segment.div_ceil(MAX_DEPTH_BLOCK));
        // A strip takes at most a third of L2, and there are some rectangles for each thread.
        let strip_cells = |[height, width]: [usize; 2]| {
            let rows = (height - 1) * spec.stride[1] + kernel_height;
            let columns = (width - 1) * spec.stride[2] + kernel_width;
            spec.kernel[0] * rows * columns
        };
        let [_, height, width] = spec.output;
        let across = width.div_ceil(64);
        let mut block =
            [(POSITIONS / width.div_ceil(across)).clamp(1, height), width.div_ceil(across)];
        let planes = spec.input.samples * spec.output[0];
        let blocks =
            |[rows, columns]: [usize; 2]| planes * height.div_ceil(rows) * width.div_ceil(columns);
        let is_large = |block| 4 * strip_cells(block) * cell > target.l2_bytes / 3;
        while block[0] > 1 && (is_large(block) || blocks(block) < 4 * target.threads) {
            block[0] = block[0].div_ceil(2);
        }
        while block[1] > 8 && is_large(block) {
            block[1] = block[1].div_ceil(2).next_multiple_of(8);
        }
        let sums = target.l2_bytes / 4 / (4 * block[0] * block[1] * panel.columns());
        let group = if form == Form::TapColumns { usize::MAX } else { sums.max(1) };
        Direct { words, form, panel, block, depth_block, cell, group }
    }

    pub(super) fn tunables(&self) -> Vec<(&'static str, Attr)> {
        let form = match self.form {
            Form::Segments => "segments",
            Form::Patches => "patches",
            Form::TapColumns => "tap_columns",
        };
        vec![
            ("form", Attr::Str(form.into())),
            ("block_rows", Attr::Int(self.block[0] as i64)),
            ("block_columns", Attr::Int(self.block[1] as i64)),
            ("depth_block", Attr::Int(self.depth_block as i64)),
        ]
    }

    /// Columns of the product.
    fn columns(&self, spec: &Spec) -> usize {
        if self.form == Form::TapColumns { spec.taps() * spec.columns } else { spec.columns }
    }

    /// Words of the product's depth.
    fn depth(&self, spec: &Spec) -> usize {
        if self.form == Form::TapColumns { self.cell } else { spec.taps() * self.cell }
    }

    /// Words of a segment.
    fn segment(&self, spec: &Spec) -> usize {
        match self.form {
            Form::Segments => spec.kernel[2] * self.cell,
            Form::Patches | Form::TapColumns => self.depth(spec),
        }
    }

    fn panels(&self, spec: &Spec) -> usize {
        self.columns(spec).div_ceil(self.panel.columns())
    }

    /// Type of the packed weight; it is widened as it is used where words hold another.
    fn packed_dtype(spec: &Spec) -> DType {
        spec.weight.layout.dtype
    }

    pub(super) fn packed_bytes(&self, spec: &Spec) -> usize {
        let depth = self.depth(spec) * self.words.depths();
        self.panel.packed_bytes(self.columns(spec), depth, Self::packed_dtype(spec))
    }

    pub(super) fn packing_name(&self, spec: &Spec) -> String {
        let form = if self.form == Form::TapColumns { "tap_columns" } else { "taps" };
        let pairs = if self.words == Words::F32 { "" } else { ".pairs" };
        let (taps, channels, width) = (spec.taps(), spec.input.channels, self.panel.columns());
        format!("{form}.{}{pairs}.t{taps}.c{channels}.n{width}", Self::packed_dtype(spec).name())
    }

    /// Packs the weight at load.
    ///
    /// # Safety
    /// Operand 0 is the dense weight, the result writable for the packed one.
    pub(super) unsafe fn pack(&self, spec: &Spec, shared: Shared<'_>, pool: &Pool) {
        pool.run(self.panels(spec), &|panel, _| {
            // SAFETY: panels do not overlap.
            unsafe { self.pack_panel(spec, panel, shared.operand(0), shared.result()) };
        });
    }

    /// # Safety
    /// `dense` is the base of a buffer that holds the weight's layout; `packed` is writable for all
    /// panels.
    unsafe fn pack_panel(&self, spec: &Spec, panel: usize, dense: *const u8, packed: *mut u8) {
        let (weight, size) = (&spec.weight, Self::packed_dtype(spec).size());
        let step = self.words.depths();
        let columns = self.columns(spec);
        let first = panel * self.panel.columns();
        let width = self.panel.vectors_of(panel, columns) * self.panel.lanes;
        let start = first * self.depth(spec) * step;
        let tap_depth = self.cell * step;
        for k in 0..self.depth(spec) * step {
            let channel = k % tap_depth;
            for n in 0..width {
                let column = first + n;
                let (tap, column) = if self.form == Form::TapColumns {
                    (column / spec.columns, column % spec.columns)
                } else {
                    (k / tap_depth, column)
                };
                let is_inside = first + n < columns && channel < spec.input.channels;
                // SAFETY: the element lies within the weight, the target within the panel.
                unsafe {
                    let at = start + (k / step * width + n) * step + k % step;
                    let to = packed.add(at * size);
                    if is_inside {
                        let from = dense.add(weight.position(column, channel, tap) * size);
                        std::ptr::copy_nonoverlapping(from, to, size);
                    } else {
                        std::ptr::write_bytes(to, 0, size);
                    }
                }
            }
        }
    }

    /// Rows and columns of the strip of a whole rectangle.
    fn strip(&self, spec: &Spec) -> [usize; 2] {
        [0, 1].map(|axis| (self.block[axis] - 1) * spec.stride[1 + axis] + spec.kernel[1 + axis])
    }

    /// The parts of the scratch.
    fn areas(&self, spec: &Spec, threads: usize) -> Areas {
        let weight = aligned(spec.input.scratch_bytes(threads));
        let own = if spec.weight.is_packed { 0 } else { aligned(self.packed_bytes(spec)) };
        let workers = weight + own;
        let [height, width] = self.strip(spec);
        let positions = self.block[0] * self.block[1];
        let cells = spec.kernel[0] * height * width;
        let is_patches = self.form == Form::Patches;
        let patch = (self.depth(spec).div_ceil(16) | 1) * 16;
        let stride = match self.form {
            Form::TapColumns => self.columns(spec).next_multiple_of(self.panel.lanes),
            _ => self.group.min(self.panels(spec)) * self.panel.columns(),
        };
        let rows = if self.form == Form::TapColumns { cells } else { positions };
        let is_wide = Self::packed_dtype(spec) != self.words.dtype();
        let program = spec.input.program_len().max(spec.epilogue_len());
        let lens = [
            cells * self.cell,
            width * spec.input.channels,
            if is_patches { positions * patch } else { 0 },
            rows * stride,
            if self.form == Form::TapColumns { spec.columns.next_multiple_of(16) } else { 0 },
            if is_wide { self.depth_block * self.panel.columns() } else { 0 },
            program,
        ];
        let mut end = 0;
        let offsets = lens.map(|len| {
            let start = end;
            end += aligned(4 * len);
            start
        });
        Areas { weight, workers, offsets, worker_bytes: end, patch, stride }
    }

    pub(super) fn scratch_bytes(&self, spec: &Spec, threads: usize) -> usize {
        let areas = self.areas(spec, threads);
        areas.workers + threads * areas.worker_bytes
    }

    /// Runs.
    ///
    /// # Safety
    /// As [`crate::kernel::KernelDef::run`], after [`super::conv_input::Input::prepare`].
    pub(super) unsafe fn run(&self, spec: &Spec, pool: &Pool, shared: Shared<'_>) {
        let areas = self.areas(spec, pool.threads());
        if !spec.weight.is_packed {
            pool.run(self.panels(spec), &|panel, _| {
                // SAFETY: the weight's buffer holds its layout, the scratch the packed weight.
                unsafe {
                    let dense = shared.operand(spec.weight.operand);
                    self.pack_panel(spec, panel, dense, shared.scratch().add(areas.weight));
                }
            });
        }
        let [depth, height, width] = spec.output;
        let grid = [height.div_ceil(self.block[0]), width.div_ceil(self.block[1])];
        let blocks = spec.input.samples * depth * grid[0] * grid[1];
        // A range of the columns gathers the strip again, so only where threads would be idle.
        let ranges = match self.form {
            Form::TapColumns => 1,
            _ => (2 * pool.threads()).div_ceil(blocks).min(self.panels(spec)),
        };
        pool.run(blocks * ranges, &|item, worker| {
            let (block, range) = (item / ranges, item % ranges);
            let (plane, at) = (block / (grid[0] * grid[1]), block % (grid[0] * grid[1]));
            let start = [at / grid[1] * self.block[0], at % grid[1] * self.block[1]];
            let panels = self.panels(spec);
            let task = Task {
                direct: self,
                spec,
                areas: &areas,
                shared,
                sample: plane / depth,
                start: [plane % depth, start[0], start[1]],
                dims: [self.block[0].min(height - start[0]), self.block[1].min(width - start[1])],
                panels: (panels * range / ranges, panels * (range + 1) / ranges),
                worker,
            };
            dispatch(spec.isa, task);
        });
    }
}

/// Where things lie in the scratch, in bytes; patches and sums of one position, in words.
struct Areas {
    weight: usize,
    workers: usize,
    /// Strip, a line of it in f32, patches, sums, a row of added sums, a widened block, programs.
    offsets: [usize; 7],
    worker_bytes: usize,
    patch: usize,
    stride: usize,
}

/// A rectangle of positions by a range of panels.
struct Task<'a> {
    direct: &'a Direct,
    spec: &'a Spec,
    areas: &'a Areas,
    shared: Shared<'a>,
    sample: usize,
    /// First position.
    start: [usize; SPATIAL],
    /// Rows and columns.
    dims: [usize; 2],
    panels: (usize, usize),
    worker: usize,
}

impl SimdJob for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (direct, spec, areas) = (self.direct, self.spec, self.areas);
        // SAFETY: the caller of `KernelDef::run` promises operands, result and scratch.
        unsafe {
            let scratch = self.shared.scratch();
            let own = scratch.add(areas.workers + self.worker * areas.worker_bytes);
            let [strip, line, patches, sums, row, wide, program] =
                areas.offsets.map(|offset| own.add(offset).cast::<f32>());
            self.gather(s, strip, line, program);
            let a = if direct.form == Form::Patches {
                self.copy_patches(strip, patches);
                patches
            } else {
                strip
            };
            let mut first = self.panels.0;
            while first < self.panels.1 {
                let last = self.panels.1.min(first.saturating_add(direct.group));
                self.multiply(s, (first, last), a, sums, wide);
                if direct.form == Form::TapColumns {
                    self.add_taps(s, sums, row, program);
                } else {
                    let column = first * direct.panel.columns();
                    let end = (last * direct.panel.columns()).min(spec.columns);
                    let [z, y, x] = self.start;
                    for i in 0..self.dims[0] {
                        let position = spec.position(self.sample, [z, y + i, x]);
                        let rows = (position, self.dims[1]);
                        let sums = sums.add(i * self.dims[1] * areas.stride);
                        let columns = (column, end);
                        spec.epilogue(s, self.shared, rows, columns, sums, areas.stride, program);
                    }
                }
                first = last;
            }
        }
    }
}

impl Task<'_> {
    /// Rows and columns of the strip.
    #[inline(always)]
    fn strip(&self) -> [usize; 2] {
        let Spec { stride, kernel, .. } = self.spec;
        [0, 1].map(|axis| (self.dims[axis] - 1) * stride[1 + axis] + kernel[1 + axis])
    }

    /// Gathers the strip, plane by plane and line by line.
    ///
    /// # Safety
    /// As `run`.
    #[inline(always)]
    unsafe fn gather<S: Simd>(&self, s: S, strip: *mut f32, line: *mut f32, program: *mut f32) {
        let (spec, cell) = (self.spec, self.direct.cell);
        let channels = spec.input.channels;
        let [height, width] = self.strip();
        let reader = Reader { shared: self.shared, norm_at: 0, program };
        let corner = |axis: usize| {
            (self.start[axis] * spec.stride[axis]) as isize - spec.pad_low[axis] as isize
        };
        for z in 0..spec.kernel[0] {
            for y in 0..height {
                let place = Line {
                    sample: self.sample,
                    start: [corner(0) + z as isize, corner(1) + y as isize, corner(2)],
                    n: width,
                    channels: (0, channels),
                };
                // SAFETY: the line lies within the strip.
                unsafe {
                    let to = strip.add((z * height + y) * width * cell);
                    if self.direct.words == Words::F32 {
                        spec.input.line(s, &reader, &place, to);
                        continue;
                    }
                    spec.input.line(s, &reader, &place, line);
                    // Neighbors in memory are the halves of a word, the first the lower one.
                    let to = to.cast::<u16>();
                    if channels == 2 * cell {
                        store_bf16(s, line, width * channels, to);
                        continue;
                    }
                    for x in 0..width {
                        let to = to.add(x * 2 * cell);
                        store_bf16(s, line.add(x * channels), channels, to);
                        to.add(channels).write(0);
                    }
                }
            }
        }
    }

    /// Copies the windows of all positions, row by row.
    ///
    /// # Safety
    /// As `run`.
    #[inline(always)]
    unsafe fn copy_patches(&self, strip: *const f32, patches: *mut f32) {
        let (spec, cell) = (self.spec, self.direct.cell);
        let [height, width] = self.strip();
        let [depth, kernel_height, kernel_width] = spec.kernel;
        let run = kernel_width * cell;
        for y in 0..self.dims[0] {
            for x in 0..self.dims[1] {
                let position = y * self.dims[1] + x;
                for z in 0..depth {
                    for tap in 0..kernel_height {
                        let line = z * height + y * spec.stride[1] + tap;
                        // SAFETY: windows lie within the strip, patches within their area.
                        unsafe {
                            let from = strip.add((line * width + x * spec.stride[2]) * cell);
                            let at = position * self.areas.patch + (z * kernel_height + tap) * run;
                            std::ptr::copy_nonoverlapping(from, patches.add(at), run);
                        }
                    }
                }
            }
        }
    }

    /// Sums of all rows of A for panels `panels.0..panels.1`, the first of which comes first in a
    /// row of sums.
    ///
    /// # Safety
    /// As `run`.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(
        &self,
        s: S,
        panels: (usize, usize),
        a: *const f32,
        sums: *mut f32,
        wide: *mut f32,
    ) {
        let (direct, spec) = (self.direct, self.spec);
        let dtype = Direct::packed_dtype(spec);
        let is_wide = dtype != direct.words.dtype();
        let size = dtype.size() * direct.words.depths();
        let tile_rows = const { matmul_tile::shape(S::REGISTERS).0 };
        let (depth, segment) = (direct.depth(spec), direct.segment(spec));
        let [height, width] = self.strip();
        // Rows of A: lines of so many, this far apart, in words.
        let (lines, n, line_stride, row_stride) = match direct.form {
            Form::Segments => {
                let cell = direct.cell;
                let line = width * cell * spec.stride[1];
                (self.dims[0], self.dims[1], line, cell * spec.stride[2])
            }
            Form::Patches => (1, self.dims[0] * self.dims[1], 0, self.areas.patch),
            Form::TapColumns => (1, spec.kernel[0] * height * width, 0, direct.cell),
        };
        let tiles = lines * n.div_ceil(tile_rows);
        // SAFETY: panels lie within the packed weight, tiles within A and sums.
        unsafe {
            let packed = if spec.weight.is_packed {
                self.shared.operand(spec.weight.operand)
            } else {
                self.shared.scratch().add(self.areas.weight).cast_const()
            };
            for panel in panels.0..panels.1 {
                let vectors = direct.panel.vectors_of(panel, direct.columns(spec));
                let base = packed.add(panel * direct.panel.columns() * depth * size);
                let starts = (0..depth).step_by(segment).flat_map(|part| {
                    (0..segment).step_by(direct.depth_block).map(move |within| (part, within))
                });
                for (part, within) in starts {
                    let start = part + within;
                    let part = part / segment;
                    // The segment's first word for the first position.
                    let (z, y) = (part / spec.kernel[1], part % spec.kernel[1]);
                    let a = match direct.form {
                        Form::Segments => a.add((z * height + y) * width * direct.cell + within),
                        Form::Patches | Form::TapColumns => a.add(start),
                    };
                    let depth = direct.depth_block.min(segment - within);
                    let block = base.add(start * vectors * S::LANES * size);
                    let words = depth * vectors * S::LANES;
                    let b = if is_wide {
                        matmul_pack::widen(s, dtype, block, words, wide);
                        wide.cast_const()
                    } else {
                        block.cast::<f32>()
                    };
                    // The next block comes in piece by piece, one piece with each tile.
                    let next = block.wrapping_add(words * size);
                    let piece = (words * size).div_ceil(tiles);
                    let piece = piece.min(depth / 4 * 64);
                    let mut done = 0;
                    for line in 0..lines {
                        for row in (0..n).step_by(tile_rows) {
                            let at = (line * n + row) * self.areas.stride;
                            let column = (panel - panels.0) * direct.panel.columns();
                            let tile = Tile {
                                a: a.add(line * line_stride + row * row_stride),
                                a_stride: row_stride,
                                b,
                                depth,
                                sums: sums.add(at + column),
                                sums_stride: self.areas.stride,
                                accumulate: start > 0,
                                next: next.wrapping_add(done).cast(),
                            };
                            let rows = tile_rows.min(n - row);
                            matmul_tile::run(s, direct.words, rows, vectors, &tile);
                            done += piece;
                        }
                    }
                }
            }
        }
    }

    /// Adds up the sums of the taps along each window, and runs the epilogue.
    ///
    /// # Safety
    /// As `run`; `row` is writable for a row of sums.
    #[inline(always)]
    unsafe fn add_taps<S: Simd>(&self, s: S, sums: *const f32, row: *mut f32, program: *mut f32) {
        let spec = self.spec;
        let [height, width] = self.strip();
        let [depth, kernel_height, kernel_width] = spec.kernel;
        let n = spec.columns;
        for y in 0..self.dims[0] {
            for x in 0..self.dims[1] {
                // SAFETY: windows lie within the strip.
                unsafe {
                    std::ptr::write_bytes(row, 0, n);
                    for tap in 0..spec.taps() {
                        let (line, column) = (tap / kernel_width, tap % kernel_width);
                        let (z, line) = (line / kernel_height, line % kernel_height);
                        debug_assert!(z < depth);
                        let line = z * height + y * spec.stride[1] + line;
                        let at = line * width + x * spec.stride[2] + column;
                        let from = sums.add(at * self.areas.stride + tap * n);
                        for i in 0..n {
                            *row.add(i) += *from.add(i);
                        }
                    }
                    let [z, first, left] = self.start;
                    let position = spec.position(self.sample, [z, first + y, left + x]);
                    spec.epilogue(s, self.shared, (position, 1), (0, n), row, n, program);
                }
            }
        }
    }
}

/// Rounds `n` values to bf16.
///
/// # Safety
/// `from` is readable and `to` writable for `n` values.
#[inline(always)]
unsafe fn store_bf16<S: Simd>(s: S, from: *const f32, n: usize, to: *mut u16) {
    let mut i = 0;
    // SAFETY: lanes below n.
    unsafe {
        while i + S::LANES <= n {
            s.store_bf16(to.add(i), s.load(from.add(i)));
            i += S::LANES;
        }
        if i < n {
            s.store_bf16_n(to.add(i), s.load_n(from.add(i), n - i), n - i);
        }
    }
}
