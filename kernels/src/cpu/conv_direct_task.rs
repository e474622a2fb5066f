//! One task of a direct convolution: a rectangle of positions by a range of panels, from gathering the
//! strip to the epilogue. Start reading at `run`.

use crate::simd::{Simd, SimdJob};

use super::conv::{SPATIAL, Spec};
use super::conv_direct::{Direct, Form};
use super::conv_input::{Line, Reader};
use super::lanes::store_bf16;
use super::matmul_pack;
use super::matmul_tile::Tile;
use super::multiplier::Multiplier;
use super::shared::Shared;
use super::words::Words;

/// Where things lie in the scratch, in bytes; patches and sums of one position, in words.
pub(super) struct Areas {
    pub(super) weight: usize,
    pub(super) workers: usize,
    /// Strip, a line of it in f32, patches, sums, a row of added sums, a widened block, programs.
    pub(super) offsets: [usize; 7],
    pub(super) worker_bytes: usize,
    pub(super) patch: usize,
    pub(super) stride: usize,
}

/// A rectangle of positions by a range of panels.
pub(super) struct Task<'a> {
    pub(super) direct: &'a Direct,
    pub(super) spec: &'a Spec,
    pub(super) areas: &'a Areas,
    pub(super) shared: Shared<'a>,
    pub(super) sample: usize,
    /// First position.
    pub(super) start: [usize; SPATIAL],
    /// Rows and columns.
    pub(super) dims: [usize; 2],
    pub(super) panels: (usize, usize),
    pub(super) worker: usize,
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
            let multiplier = &mut Multiplier::of(direct.words);
            let mut first = self.panels.0;
            while first < self.panels.1 {
                let last = self.panels.1.min(first.saturating_add(direct.group));
                self.multiply(s, multiplier, (first, last), a, sums, wide);
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
        let corner =
            |axis: usize| (self.start[axis] * spec.stride[axis]) as isize - spec.pad_low[axis];
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
        multiplier: &mut Multiplier,
        panels: (usize, usize),
        a: *const f32,
        sums: *mut f32,
        wide: *mut f32,
    ) {
        let (direct, spec) = (self.direct, self.spec);
        let dtype = Direct::packed_dtype(spec);
        let is_wide = dtype != direct.words.dtype();
        let size = dtype.size() * direct.words.depths();
        let tile_rows = direct.words.shape(spec.isa).0;
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
                self.shared.operand(spec.weight.operand).add(spec.weight.packed_at)
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
                            multiplier.run(s, rows, vectors, &tile);
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
