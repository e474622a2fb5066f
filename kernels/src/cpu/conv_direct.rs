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
use crate::simd::{MAX_LANES, dispatch};

use super::conv::Spec;
use super::conv_direct_task::{Areas, Task};
use super::matmul_pack::PanelShape;
use super::matmul_tile::MAX_VECTORS;
use super::shared::{Shared, aligned};
use super::words::Words;

/// Most words of a block of the depth.
const MAX_DEPTH_BLOCK: usize = 512;
/// Words from which on a row of the window is a segment of its own.
const LEAST_SEGMENT: usize = 64;
/// Positions of a rectangle, and the part of the second-level cache that its strip takes at most.
const POSITIONS: usize = 192;
const STRIP: usize = 3;
/// The same where tile registers multiply: what is read again around a rectangle, and computed again where a norm is
/// applied on the way, takes more of the time.
const TILES_POSITIONS: usize = 512;
const TILES_STRIP: usize = 2;

/// A direct convolution.
#[derive(Clone, Debug)]
pub(super) struct Direct {
    pub(super) words: Words,
    pub(super) form: Form,
    pub(super) panel: PanelShape,
    /// Rows and columns of a rectangle of positions.
    pub(super) block: [usize; 2],
    /// Words of a block of the depth, but for the last one of a segment.
    pub(super) depth_block: usize,
    /// Words of a position of the strip.
    pub(super) cell: usize,
    /// Panels whose sums are kept until the epilogue.
    pub(super) group: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
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
        let words = Direct::words(spec);
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
        let depth_block = words.padded(segment.div_ceil(segment.div_ceil(MAX_DEPTH_BLOCK)));
        // A strip takes a part of L2, and there are some rectangles for each thread.
        let (positions, strip) =
            if words.are_tiles() { (TILES_POSITIONS, TILES_STRIP) } else { (POSITIONS, STRIP) };
        let strip_cells = |[height, width]: [usize; 2]| {
            let rows = (height - 1) * spec.stride[1] + kernel_height;
            let columns = (width - 1) * spec.stride[2] + kernel_width;
            spec.kernel[0] * rows * columns
        };
        let [_, height, width] = spec.output;
        let across = width.div_ceil(64);
        let mut block =
            [(positions / width.div_ceil(across)).clamp(1, height), width.div_ceil(across)];
        let planes = spec.input.samples * spec.output[0];
        let blocks =
            |[rows, columns]: [usize; 2]| planes * height.div_ceil(rows) * width.div_ceil(columns);
        let is_large = |block| 4 * strip_cells(block) * cell > target.l2_bytes / strip;
        while block[0] > 1 && (is_large(block) || blocks(block) < 4 * target.threads) {
            block[0] -= 1;
        }
        while block[1] > 8 && is_large(block) {
            block[1] = block[1].div_ceil(2).next_multiple_of(8);
        }
        let sums = target.l2_bytes / 4 / (4 * block[0] * block[1] * panel.columns());
        let group = if form == Form::TapColumns { usize::MAX } else { sums.max(1) };
        Direct { words, form, panel, block, depth_block, cell, group }
    }

    /// What is multiplied.
    pub(super) fn words(spec: &Spec) -> Words {
        let is_bf16 = spec.input.dtype == DType::Bf16 && spec.weight.layout.dtype == DType::Bf16;
        Words::of(spec.isa, if is_bf16 { DType::Bf16 } else { DType::F32 })
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
    pub(super) fn columns(&self, spec: &Spec) -> usize {
        if self.form == Form::TapColumns { spec.taps() * spec.columns } else { spec.columns }
    }

    /// Words of the product's depth.
    pub(super) fn depth(&self, spec: &Spec) -> usize {
        if self.form == Form::TapColumns { self.cell } else { spec.taps() * self.cell }
    }

    /// Words of a segment.
    pub(super) fn segment(&self, spec: &Spec) -> usize {
        match self.form {
            Form::Segments => spec.kernel[2] * self.cell,
            Form::Patches | Form::TapColumns => self.depth(spec),
        }
    }

    fn panels(&self, spec: &Spec) -> usize {
        self.columns(spec).div_ceil(self.panel.columns())
    }

    /// Type of the packed weight; it is widened as it is used where words hold another.
    pub(super) fn packed_dtype(spec: &Spec) -> DType {
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
        // SAFETY: passed on.
        unsafe {
            if Self::packed_dtype(spec).size() == size_of::<u32>() {
                self.pack_bits::<u32>(spec, panel, dense.cast(), packed.cast());
            } else {
                self.pack_bits::<u16>(spec, panel, dense.cast(), packed.cast());
            }
        }
    }

    /// # Safety
    /// As [`Direct::pack_panel`], for elements of as many bits as `T` has.
    unsafe fn pack_bits<T: Copy + Default>(
        &self,
        spec: &Spec,
        panel: usize,
        dense: *const T,
        packed: *mut T,
    ) {
        let (weight, step) = (&spec.weight, self.words.depths());
        let columns = self.columns(spec);
        let first = panel * self.panel.columns();
        let width = self.panel.vectors_of(panel, columns) * self.panel.lanes;
        let valid = width.min(columns - first);
        let (n_taps, tap_depth) = match self.form {
            Form::TapColumns => (1, self.cell * step),
            Form::Segments | Form::Patches => (spec.taps(), self.cell * step),
        };
        let mut starts = [0; MAX_LANES * MAX_VECTORS];
        for tap in 0..n_taps {
            for (n, start) in starts[..valid].iter_mut().enumerate() {
                let column = first + n;
                *start = match self.form {
                    Form::TapColumns => {
                        weight.position(column % spec.columns, 0, column / spec.columns)
                    }
                    Form::Segments | Form::Patches => weight.position(column, 0, tap),
                };
            }
            for channel in 0..tap_depth {
                let k = tap * tap_depth + channel;
                let valid = if channel < spec.input.channels { valid } else { 0 };
                let at = first * self.depth(spec) * step + k / step * width * step + k % step;
                // SAFETY: elements lie within the weight and the panel; those at load need not be aligned.
                unsafe {
                    let from = dense.wrapping_add(channel * weight.channel_stride());
                    let to = packed.add(at);
                    for (n, start) in starts[..valid].iter().enumerate() {
                        to.add(n * step).write_unaligned(from.add(*start).read_unaligned());
                    }
                    for n in valid..width {
                        to.add(n * step).write_unaligned(T::default());
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
