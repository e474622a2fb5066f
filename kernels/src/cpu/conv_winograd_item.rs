//! The phases of a filtered convolution, an item each: gather and transform inputs, transform weights,
//! multiply, transform sums and run the epilogue. What they are for is said in `conv_winograd`.

use crate::simd::{Simd, SimdJob};

use super::conv::Spec;
use super::conv_factors::{CHUNK, Factor, InputScale, Scales};
use super::conv_input::{Line, Reader};
use super::conv_transform::{Transform, along_both};
use super::conv_weight::{self, Panel, TransformWeight};
use super::conv_winograd::{SLICE, Winograd};
use super::matmul_tile::{self, Tile};
use super::shared::Shared;

/// A rectangle of tiles of one plane.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) sample: usize,
    pub(super) plane: usize,
    pub(super) start: [usize; 2],
    pub(super) dims: [usize; 2],
}

impl Block {
    pub(super) fn tiles(&self) -> usize {
        self.dims[0] * self.dims[1]
    }
}

/// Where things lie in the scratch: bytes; rows and points in words.
pub(super) struct Areas {
    /// The packed weight, where it is packed at each run.
    pub(super) weight: usize,
    /// Transformed inputs, the transformed weight, sums.
    pub(super) v: usize,
    pub(super) u: usize,
    pub(super) m: usize,
    /// For each chunk those of all tiles.
    pub(super) scales: usize,
    pub(super) workers: usize,
    pub(super) program: usize,
    pub(super) worker_bytes: usize,
    pub(super) v_row: usize,
    pub(super) m_row: usize,
    pub(super) v_point: usize,
    pub(super) u_point: usize,
    pub(super) m_point: usize,
}

#[derive(Clone, Copy)]
pub(super) enum Phase {
    Gather,
    /// The transformed weight, for all blocks.
    Weight,
    /// With that, each product in that many ranges of columns.
    Multiply(usize),
    /// Each item transforms what it needs of the weight.
    MultiplyTransforming,
    Scatter,
}

pub(super) struct Item<'a> {
    pub(super) winograd: &'a Winograd,
    pub(super) spec: &'a Spec,
    pub(super) shared: Shared<'a>,
    pub(super) areas: &'a Areas,
    pub(super) block: Block,
    pub(super) item: usize,
    pub(super) worker: usize,
}

pub(super) struct Run<'a, T, W, const P: usize, const O: usize>(
    pub(super) Item<'a>,
    pub(super) Phase,
    pub(super) T,
    pub(super) W,
);

impl<T: Transform<P, O>, W: Factor, const P: usize, const O: usize> SimdJob
    for Run<'_, T, W, P, O>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Run(item, phase, algorithm, factor) = self;
        // SAFETY: the caller of `Winograd::run` promises operands, result and scratch.
        unsafe {
            match phase {
                Phase::Gather => item.gather(s, algorithm, factor),
                Phase::Weight => item.transform_weight(s, algorithm, factor),
                Phase::Multiply(ranges) => item.multiply(s, factor, ranges),
                Phase::MultiplyTransforming => item.multiply_transforming(s, algorithm, factor),
                Phase::Scatter => item.scatter(s, algorithm),
            }
        }
    }
}

impl Item<'_> {
    /// The worker's lines or outputs, and its scratch for programs.
    ///
    /// # Safety
    /// As [`Winograd::run`].
    #[inline(always)]
    unsafe fn own(&self) -> (*mut f32, *mut f32) {
        let at = self.worker * self.areas.worker_bytes;
        // SAFETY: the areas are within the scratch.
        unsafe {
            let scratch = self.shared.scratch().add(at);
            (scratch.add(self.areas.workers).cast(), scratch.add(self.areas.program).cast())
        }
    }

    /// The packed weight.
    ///
    /// # Safety
    /// As [`Winograd::run`].
    #[inline(always)]
    unsafe fn packed(&self) -> *const u8 {
        let weight = &self.spec.weight;
        if weight.is_packed {
            return self.shared.operand(weight.operand);
        }
        // SAFETY: the areas are within the scratch.
        unsafe { self.shared.scratch().add(self.areas.weight) }
    }

    /// Transformed inputs of a part of the block and a chunk of its channels.
    ///
    /// # Safety
    /// As [`Winograd::run`].
    #[inline(always)]
    unsafe fn gather<S: Simd, T, W: Factor, const P: usize, const O: usize>(
        &self,
        s: S,
        algorithm: T,
        factor: W,
    ) where
        T: Transform<P, O>,
    {
        let Item { winograd, spec, areas, block, .. } = self;
        let step = winograd.algorithm.step();
        let chunks = spec.input.channels.div_ceil(CHUNK);
        let (part, chunk) = (self.item / chunks, self.item % chunks);
        let size = winograd.algorithm.part();
        let across = block.dims[1].div_ceil(size[1]);
        let start = [part / across * size[0], part % across * size[1]];
        let dims = [0, 1].map(|axis| size[axis].min(block.dims[axis] - start[axis]));
        let first = chunk * CHUNK;
        let n = CHUNK.min(spec.input.channels - first);
        let [height, width] = dims.map(|tiles| (tiles - 1) * step + P);
        let corner = |axis: usize| {
            let tile = block.start[axis] + start[axis];
            (tile * step) as isize - spec.pad_low[1 + axis]
        };
        // SAFETY: tiles lie within the block, lines within the worker's part of the scratch.
        unsafe {
            let (lines, program) = self.own();
            let reader = Reader { shared: self.shared, norm_at: 0, program };
            for y in 0..height {
                let line = Line {
                    sample: block.sample,
                    start: [block.plane as isize, corner(0) + y as isize, corner(1)],
                    n: width,
                    channels: (first, first + n),
                };
                winograd.input.line(s, &reader, &line, lines.add(y * width * n));
            }
            let v = self.shared.scratch().add(areas.v).cast::<f32>();
            let scales = self.shared.scratch().add(areas.scales).cast::<f32>();
            let gain = algorithm.gain();
            let mut reciprocals = [[0.0; P]; P];
            for tile in 0..dims[0] * dims[1] {
                let (y, x) = (tile / dims[1], tile % dims[1]);
                let from = lines.add((y * width + x) * step * n).cast_const();
                let at = (start[0] + y) * block.dims[1] + start[1] + x;
                let (row, column) = (width * n, n);
                if W::IS_SCALED {
                    let scale = factor.outline(s, InputScale::<P> { from, row, column, n });
                    *scales.add(chunk * block.tiles() + at) = scale;
                    // What is counted as zero has no scale.
                    let reciprocal = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                    for (y, line) in reciprocals.iter_mut().enumerate() {
                        for (x, value) in line.iter_mut().enumerate() {
                            *value = reciprocal / (gain[y] * gain[x]);
                        }
                    }
                }
                let to = v.add(at * areas.v_row + first / W::CHANNELS);
                let point = areas.v_point;
                let job = TransformInput {
                    from,
                    row,
                    column,
                    n,
                    to,
                    point,
                    reciprocals: &reciprocals,
                    algorithm,
                    factor,
                };
                factor.outline(s, job);
            }
        }
    }

    /// Some channels of the transformed weight of a panel.
    ///
    /// # Safety
    /// As [`Winograd::run`].
    #[inline(always)]
    unsafe fn transform_weight<S: Simd, T, W: Factor, const P: usize, const O: usize>(
        &self,
        s: S,
        algorithm: T,
        factor: W,
    ) where
        T: Transform<P, O>,
    {
        let Item { winograd, spec, areas, .. } = self;
        let depth = winograd.depth(spec);
        let slices = spec.input.channels.div_ceil(SLICE);
        let (panel, slice) = (self.item / slices, self.item % slices);
        let words = SLICE / W::CHANNELS;
        // SAFETY: panels lie within the packed weight and within the area of the transformed one.
        unsafe {
            let packed = self.packed();
            let u = self.shared.scratch().add(areas.u).cast::<f32>();
            let job = TransformWeight {
                panel: Panel::of(winograd, spec, panel, packed),
                words: (slice * words, depth.min((slice + 1) * words)),
                row: None,
                to: u.add(panel * winograd.panel.columns() * depth),
                point: areas.u_point,
                algorithm,
                factor,
            };
            factor.outline(s, job);
        }
    }

    /// The sums of one point for a range of the columns.
    ///
    /// # Safety
    /// As [`Winograd::run`], with a transformed weight.
    #[inline(always)]
    unsafe fn multiply<S: Simd, W: Factor>(&self, s: S, factor: W, ranges: usize) {
        let Item { winograd, spec, areas, .. } = self;
        let (point, range) = (self.item / ranges, self.item % ranges);
        let panels = winograd.panels(spec);
        // SAFETY: panels lie within the transformed weight.
        unsafe {
            let u = self.shared.scratch().add(areas.u).cast::<f32>().add(point * areas.u_point);
            for panel in panels * range / ranges..panels * (range + 1) / ranges {
                let b = u.add(panel * winograd.panel.columns() * winograd.depth(spec));
                self.multiply_panel(s, factor, point, panel, b);
            }
        }
    }

    /// The sums of a row of points for one panel.
    ///
    /// # Safety
    /// As [`Winograd::run`].
    #[inline(always)]
    unsafe fn multiply_transforming<S: Simd, T, W: Factor, const P: usize, const O: usize>(
        &self,
        s: S,
        algorithm: T,
        factor: W,
    ) where
        T: Transform<P, O>,
    {
        let Item { winograd, spec, areas, .. } = self;
        let (panel, row) = (self.item / P, self.item % P);
        // SAFETY: the worker's part of the scratch holds a panel at a row of points.
        unsafe {
            let (u, _) = self.own();
            let packed = self.packed();
            let job = TransformWeight {
                panel: Panel::of(winograd, spec, panel, packed),
                words: (0, winograd.depth(spec)),
                row: Some(row),
                to: u,
                point: areas.u_point,
                algorithm,
                factor,
            };
            factor.outline(s, job);
            for x in 0..P {
                self.multiply_panel(s, factor, row * P + x, panel, u.add(x * areas.u_point));
            }
        }
    }

    /// The sums of one point for one panel, which is transformed at `b`.
    ///
    /// # Safety
    /// As [`Winograd::run`].
    #[inline(always)]
    unsafe fn multiply_panel<S: Simd, W: Factor>(
        &self,
        s: S,
        factor: W,
        point: usize,
        panel: usize,
        b: *const f32,
    ) {
        let Item { winograd, spec, areas, block, .. } = self;
        let depth = winograd.depth(spec);
        let tile_rows = const { matmul_tile::shape(S::REGISTERS).0 };
        let n_tiles = block.tiles();
        // Scaled sums are of a chunk, as their scales are.
        let step = if W::IS_SCALED { CHUNK / W::CHANNELS } else { depth };
        let vectors = winograd.panel.vectors_of(panel, spec.columns);
        let first = panel * winograd.panel.columns();
        let size = depth * vectors * S::LANES;
        // The next panel, or the next point's, comes in piece by piece.
        let next = b.wrapping_add(size);
        // SAFETY: tiles lie within the areas, the panel at `b`.
        unsafe {
            let scratch = self.shared.scratch();
            let v = scratch.add(areas.v).cast::<f32>().add(point * areas.v_point);
            let m = scratch.add(areas.m).cast::<f32>().add(point * areas.m_point);
            let row_scales = scratch.add(areas.scales).cast::<f32>().cast_const();
            let packed = self.packed();
            let column_scales =
                packed.wrapping_add(conv_weight::scales_at(winograd, spec, point)).cast::<f32>();
            for row in (0..n_tiles).step_by(tile_rows) {
                let piece = (row / tile_rows * (depth / 4 * 16)).min(size);
                let rows = tile_rows.min(n_tiles - row);
                for start in (0..depth).step_by(step) {
                    let tile = Tile {
                        a: v.add(row * areas.v_row + start),
                        a_stride: areas.v_row,
                        b: b.add(start * vectors * S::LANES),
                        depth: step.min(depth - start),
                        sums: m.add(row * areas.m_row + first),
                        sums_stride: areas.m_row,
                        accumulate: start > 0,
                        next: next.wrapping_add(piece + start * 4),
                    };
                    let scales = Scales {
                        rows: row_scales.wrapping_add(start / step * n_tiles + row),
                        columns: column_scales.wrapping_add(first),
                    };
                    factor.multiply(s, (rows, vectors), &tile, scales);
                }
            }
        }
    }

    /// Outputs of some tiles of a row.
    ///
    /// # Safety
    /// As [`Winograd::run`].
    #[inline(always)]
    unsafe fn scatter<S: Simd, T: Transform<P, O>, const P: usize, const O: usize>(
        &self,
        s: S,
        algorithm: T,
    ) {
        let Item { winograd, spec, areas, block, .. } = self;
        let runs = block.dims[1].div_ceil(winograd.run);
        let (row, run) = (self.item / runs, self.item % runs);
        let first = run * winograd.run;
        let n_tiles = winograd.run.min(block.dims[1] - first);
        let [_, height, width] = spec.output;
        let y = (block.start[0] + row) * O;
        let x = (block.start[1] + first) * O;
        // SAFETY: tiles lie within the block, outputs within the worker's part of the scratch.
        unsafe {
            let (outputs, program) = self.own();
            let m = self.shared.scratch().add(areas.m).cast::<f32>().cast_const();
            let line = n_tiles * O * areas.m_row;
            for tile in 0..n_tiles {
                let at = row * block.dims[1] + first + tile;
                let from = m.add(at * areas.m_row);
                let to = outputs.add(tile * O * areas.m_row);
                let n = spec.columns.next_multiple_of(S::LANES);
                let (point, column) = (areas.m_point, areas.m_row);
                s.outline(TransformSums { from, point, n, to, row: line, column, algorithm });
            }
            for i in 0..O.min(height - y) {
                let position = spec.position(block.sample, [block.plane, y + i, x]);
                let n = (n_tiles * O).min(width - x);
                let sums = outputs.add(i * line);
                let columns = (0, spec.columns);
                spec.epilogue(s, self.shared, (position, n), columns, sums, areas.m_row, program);
            }
        }
    }
}

/// Transforms the inputs of a tile, `n` channels: from `P` x `P` positions to as many points.
struct TransformInput<'a, T, W, const P: usize, const O: usize> {
    from: *const f32,
    /// From one row and one column of positions to the next.
    row: usize,
    column: usize,
    n: usize,
    to: *mut f32,
    /// From one point to the next, in words.
    point: usize,
    /// What scaled factors are multiplied with at each point.
    reciprocals: &'a [[f32; P]; P],
    algorithm: T,
    factor: W,
}

impl<T: Transform<P, O>, W: Factor, const P: usize, const O: usize> SimdJob
    for TransformInput<'_, T, W, P, O>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let TransformInput { from, row, column, n, to, point, reciprocals, algorithm, factor } =
            self;
        let mut i = 0;
        while i < n {
            let count = S::LANES.min(n - i);
            // SAFETY: the creator promises positions and points of n channels.
            let load = |y: usize, x: usize| unsafe {
                let at = from.add(y * row + x * column + i);
                if count == S::LANES { s.load(at) } else { s.load_n(at, count) }
            };
            let points = along_both(
                s.splat(0.0),
                #[inline(always)]
                |y| std::array::from_fn(|x| load(y, x)),
                #[inline(always)]
                |line| algorithm.input(s, line),
            );
            for (index, &value) in points.iter().flatten().enumerate() {
                let value = if W::IS_SCALED {
                    s.mul(value, s.splat(reciprocals[index / P][index % P]))
                } else {
                    value
                };
                // SAFETY: as above.
                unsafe {
                    let to = to.add(index * point).cast::<u8>().add(i * 4 / W::CHANNELS);
                    factor.store(s, to, value, count);
                }
            }
            i += count;
        }
    }
}

/// Transforms the sums of a tile, `n` columns in whole vectors, to `O` x `O` outputs.
struct TransformSums<T, const P: usize, const O: usize> {
    from: *const f32,
    /// From one point to the next.
    point: usize,
    n: usize,
    to: *mut f32,
    /// From one row and one column of outputs to the next.
    row: usize,
    column: usize,
    algorithm: T,
}

impl<T: Transform<P, O>, const P: usize, const O: usize> SimdJob for TransformSums<T, P, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let TransformSums { from, point, n, to, row, column, algorithm } = self;
        for i in (0..n).step_by(S::LANES) {
            // SAFETY: the creator promises points and outputs of n columns.
            let load = |index: usize| unsafe { s.load(from.add(index * point + i)) };
            let outputs = along_both(
                s.splat(0.0),
                #[inline(always)]
                |y| std::array::from_fn(|x| load(y * P + x)),
                #[inline(always)]
                |line| algorithm.output(s, line),
            );
            for (y, line) in outputs.iter().enumerate() {
                for (x, &value) in line.iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { s.store(to.add(y * row + x * column + i), value) };
                }
            }
        }
    }
}
