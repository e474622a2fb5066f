//! 3x3 convolution by minimal filtering ([`Transform`]): transformed inputs times transformed weights
//! at each of the points, summed over channels by the register tile of the matrix product.
//!
//! A *block* is a rectangle of tiles of one plane whose transformed inputs and sums of products lie
//! in the last-level cache together. Per block three phases, each split over the threads:
//! 1. *gather* lines of the input, a *part* of the block and a *chunk* of the channels at a time, and
//!    transform them (from L2 to L3);
//! 2. for each point one product, `[tiles, channels] x [channels, columns]` (the transformed inputs of
//!    a point stay in L2 while the weight's panels pass);
//! 3. transform sums to outputs, some tiles of a row at a time, and run the epilogue.
//!
//! Roofline: the FMA units in phase 2; the others move some 20 bytes per FLOP-saving product.

use ops::{Attr, DType};

use crate::Pool;
use crate::kernel::Target;
use crate::simd::dispatch;

use super::conv::{SPATIAL, Spec, read_float};
use super::conv_input::Input;
use super::conv_transform::{Doubled, Quad, Transform, weight_points};
use super::conv_winograd_item::{Areas, Block, Item, Phase, Run};
use super::matmul_pack::PanelShape;
use super::matmul_tile::Words;
use super::shared::{Shared, aligned};

/// Fewest channels and columns that are worth the transforms.
const LEAST_CHANNELS: usize = 16;
/// Most channels of a chunk.
pub(super) const CHUNK: usize = 128;
/// Multiply-adds in the time that one value takes from memory.
const MULTIPLY_ADDS_PER_LOAD: usize = 35;

/// A fast 3x3 convolution.
#[derive(Clone, Debug)]
pub(super) struct Winograd {
    pub(super) algorithm: Algorithm,
    /// What tiles are taken from; not doubled.
    pub(super) input: Input,
    /// Tiles of a plane along height and width.
    grid: [usize; 2],
    /// Tiles of a block.
    block: [usize; 2],
    pub(super) panel: PanelShape,
    /// Tiles whose outputs are made at a time.
    pub(super) run: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Algorithm {
    Quad,
    Doubled,
}

impl Algorithm {
    /// Points along an axis, which is also the inputs of a tile.
    fn points(self) -> usize {
        match self {
            Algorithm::Quad => 6,
            Algorithm::Doubled => 3,
        }
    }

    /// Outputs of a tile along an axis.
    fn outputs(self) -> usize {
        match self {
            Algorithm::Quad => 4,
            Algorithm::Doubled => 2,
        }
    }

    /// Inputs from one tile to the next.
    pub(super) fn step(self) -> usize {
        match self {
            Algorithm::Quad => 4,
            Algorithm::Doubled => 1,
        }
    }

    /// Tiles of a part along height and width: few halo lines, yet inputs that fit L2.
    pub(super) fn part(self) -> [usize; 2] {
        match self {
            Algorithm::Quad => [4, 8],
            Algorithm::Doubled => [16, 16],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Algorithm::Quad => "quad",
            Algorithm::Doubled => "doubled",
        }
    }
}

impl Winograd {
    /// Takes what is faster this way.
    pub(super) fn select(spec: &Spec, target: &Target) -> Option<Winograd> {
        let is_3x3 = spec.kernel == [1, 3, 3]
            && spec.stride == [1; SPATIAL]
            && spec.pad_low[0] == 0
            && spec.output[0] == spec.input.dims[0];
        let is_wide = spec.input.channels.min(spec.columns) >= LEAST_CHANNELS;
        if !is_3x3 || !is_wide || !spec.weight.is_packed {
            return None;
        }
        let is_doubled = spec.input.is_doubled();
        if is_doubled && (spec.pad_low != [0, 1, 1] || spec.output != spec.input.dims) {
            return None;
        }
        let algorithm = if is_doubled { Algorithm::Doubled } else { Algorithm::Quad };
        let outputs = algorithm.outputs();
        let grid = [1, 2].map(|axis| spec.output[axis].div_ceil(outputs));
        let planes = spec.input.samples * spec.output[0];
        // Time in multiply-adds for each pair of channels, with the weight from memory.
        let time = |products: usize, weights: usize| products + weights * MULTIPLY_ADDS_PER_LOAD;
        let points = algorithm.points().pow(2);
        let fast = time(planes * grid[0] * grid[1] * points, points);
        let positions = planes * spec.output[1] * spec.output[2];
        let mut direct = time(9 * positions, 9);
        if spec.input.dtype == DType::Bf16 && spec.isa.bf16_dot().is_some() {
            direct /= 2;
        }
        if fast > direct {
            return None;
        }
        let panel = PanelShape::of(spec.isa, Words::F32);
        // Transformed inputs and sums of a block take a quarter of the last-level cache: weights
        // pass through it, too.
        let tile_bytes = 4 * points * (spec.input.channels + spec.columns);
        let most = (target.l3_bytes / 4 / tile_bytes).max(16);
        let width = grid[1].div_ceil(grid[1].div_ceil((most / algorithm.part()[0]).max(1)));
        let height = (most / width).clamp(1, grid[0]);
        let height = grid[0].div_ceil(grid[0].div_ceil(height));
        let output_bytes = 4 * outputs * outputs * spec.columns.next_multiple_of(panel.lanes);
        Some(Winograd {
            algorithm,
            input: spec.input.undoubled(),
            grid,
            block: [height, width],
            panel,
            run: (target.l2_bytes / 8 / output_bytes).clamp(1, width),
        })
    }

    pub(super) fn tunables(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("transform", Attr::Str(self.algorithm.name().into())),
            ("block_rows", Attr::Int(self.block[0] as i64)),
            ("block_columns", Attr::Int(self.block[1] as i64)),
        ]
    }

    fn points(&self) -> usize {
        self.algorithm.points().pow(2)
    }

    pub(super) fn panels(&self, spec: &Spec) -> usize {
        spec.columns.div_ceil(self.panel.columns())
    }

    /// Bytes of the transformed weight of one point.
    pub(super) fn point_bytes(&self, spec: &Spec) -> usize {
        self.panel.packed_bytes(spec.columns, spec.input.channels, DType::F32)
    }

    pub(super) fn packed_bytes(&self, spec: &Spec) -> usize {
        self.points() * self.point_bytes(spec)
    }

    pub(super) fn packing_name(&self, spec: &Spec) -> String {
        let (name, width) = (self.algorithm.name(), self.panel.columns());
        format!("{name}.f32.c{}.n{width}", spec.input.channels)
    }

    /// Packs the weight.
    ///
    /// # Safety
    /// Operand 0 is the dense weight, the result writable for the packed one.
    pub(super) unsafe fn pack(&self, spec: &Spec, shared: Shared<'_>, pool: &Pool) {
        pool.run(self.panels(spec), &|panel, _| {
            // SAFETY: panels do not overlap.
            unsafe {
                match self.algorithm {
                    Algorithm::Quad => self.pack_panel(Quad, spec, shared, panel),
                    Algorithm::Doubled => self.pack_panel(Doubled, spec, shared, panel),
                }
            }
        });
    }

    /// # Safety
    /// As [`Winograd::pack`].
    unsafe fn pack_panel<T: Transform<P, O>, const P: usize, const O: usize>(
        &self,
        algorithm: T,
        spec: &Spec,
        shared: Shared<'_>,
        panel: usize,
    ) {
        let weight = &spec.weight;
        let first = panel * self.panel.columns();
        let width = self.panel.vectors_of(panel, spec.columns) * self.panel.lanes;
        for channel in 0..spec.input.channels {
            for n in 0..width {
                let mut kernel = [[0.0; 3]; 3];
                if first + n < spec.columns {
                    for (tap, value) in kernel.iter_mut().flatten().enumerate() {
                        let at = weight.position(first + n, channel, tap);
                        // SAFETY: the element lies within the weight.
                        *value = unsafe { read_float(weight.layout.dtype, shared.operand(0), at) };
                    }
                }
                let points = weight_points(algorithm, kernel);
                for (point, value) in points.iter().flatten().enumerate() {
                    let at = first * spec.input.channels + channel * width + n;
                    // SAFETY: the element lies within the packed weight.
                    unsafe {
                        let to = shared.result().add(point * self.point_bytes(spec) + 4 * at);
                        to.cast::<f32>().write_unaligned(*value as f32);
                    }
                }
            }
        }
    }

    /// Values from one tile to the next: an odd number of cache lines, so that neighbors do not
    /// compete for sets of the caches.
    fn row_len(values: usize) -> usize {
        (values.div_ceil(16) | 1) * 16
    }

    /// The parts of the scratch.
    fn areas(&self, spec: &Spec, threads: usize) -> Areas {
        let tiles = self.block[0] * self.block[1];
        let (v_row, m_row) = (Self::row_len(spec.input.channels), Self::row_len(spec.columns));
        // One line more, for the same reason between points.
        let (v_point, m_point) = (tiles * v_row + 16, tiles * m_row + 16);
        let v = aligned(self.input.scratch_bytes(threads));
        let m = v + aligned(4 * self.points() * v_point);
        let workers = m + aligned(4 * self.points() * m_point);
        let (points, step) = (self.algorithm.points(), self.algorithm.step());
        let [height, width] = self.algorithm.part().map(|tiles| (tiles - 1) * step + points);
        let chunk = spec.input.channels.min(CHUNK);
        let outputs = self.algorithm.outputs().pow(2) * self.run;
        let lines = (height * width * chunk).max(outputs * m_row);
        let program = workers + aligned(4 * lines);
        let len = self.input.program_len().max(spec.epilogue_len());
        let worker_bytes = program - workers + aligned(4 * len);
        Areas { v, m, workers, program, worker_bytes, v_row, m_row, v_point, m_point }
    }

    pub(super) fn scratch_bytes(&self, spec: &Spec, threads: usize) -> usize {
        let areas = self.areas(spec, threads);
        areas.workers + threads * areas.worker_bytes
    }

    /// Runs.
    ///
    /// # Safety
    /// As [`crate::kernel::KernelDef::run`], after [`Input::prepare`].
    pub(super) unsafe fn run(&self, spec: &Spec, pool: &Pool, shared: Shared<'_>) {
        let areas = self.areas(spec, pool.threads());
        let blocks = [0, 1].map(|axis| self.grid[axis].div_ceil(self.block[axis]));
        let in_plane = blocks[0] * blocks[1];
        for index in 0..spec.input.samples * spec.output[0] * in_plane {
            let (at, plane) = (index % in_plane, index / in_plane);
            let at = [at / blocks[1], at % blocks[1]];
            let start = [0, 1].map(|axis| at[axis] * self.block[axis]);
            let block = Block {
                sample: plane / spec.output[0],
                plane: plane % spec.output[0],
                start,
                dims: [0, 1].map(|axis| self.block[axis].min(self.grid[axis] - start[axis])),
            };
            let part = self.algorithm.part();
            let parts = [0, 1].map(|axis| block.dims[axis].div_ceil(part[axis]));
            let chunks = spec.input.channels.div_ceil(CHUNK);
            // Whole points, or ranges of columns where threads would wait for the last one.
            let threads = pool.threads();
            let is_even = |&ranges: &usize| {
                let items = self.points() * ranges;
                20 * items >= 19 * threads * items.div_ceil(threads)
            };
            let panels = self.panels(spec);
            let ranges = (1..=panels).find(is_even).unwrap_or(panels);
            let runs = block.dims[1].div_ceil(self.run);
            let items = [
                (Phase::Gather, parts[0] * parts[1] * chunks),
                (Phase::Multiply(ranges), self.points() * ranges),
                (Phase::Scatter, block.dims[0] * runs),
            ];
            for (phase, n_items) in items {
                pool.run(n_items, &|item, worker| {
                    let item =
                        Item { winograd: self, spec, shared, areas: &areas, block, item, worker };
                    match self.algorithm {
                        Algorithm::Quad => dispatch(spec.isa, Run(item, phase, Quad)),
                        Algorithm::Doubled => dispatch(spec.isa, Run(item, phase, Doubled)),
                    }
                });
            }
        }
    }
}
