//! 3x3 convolution by minimal filtering (`conv_transform`): transformed inputs times transformed weights
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
//! Weights are stored as they are, since the transformed form, which is four times as large, takes
//! longer to read from memory than to make (`conv_weight`). Where it fits the last-level cache and
//! there are many blocks it is made once, before the first. Elsewhere each item of phase 2 makes what
//! it needs, a panel at a row of points, in L2.
//!
//! Roofline: the multiply-add units in phase 2; the others move some 20 bytes per FLOP-saving product.

use ops::Attr;

use crate::Pool;
use crate::kernel::Target;
use crate::simd::dispatch;

use super::conv::{SPATIAL, Spec};
use super::conv_direct::Direct;
use super::conv_factors::{CHUNK, Factors, Fixed, Half, Single};
use super::conv_input::Input;
use super::conv_transform::{Doubled, Quad};
use super::conv_weight;
use super::conv_winograd_item::{Areas, Block, Item, Phase, Run};
use super::matmul_pack::PanelShape;
use super::shared::{Shared, aligned};
use super::words::Words;

/// Fewest channels and columns that are worth the transforms.
const LEAST_CHANNELS: usize = 16;
/// Multiply-adds in the time that one value takes from memory.
const MULTIPLY_ADDS_PER_LOAD: usize = 35;
/// Multiply-adds in the time that one pair of channels of the weight takes to transform.
const MULTIPLY_ADDS_PER_TRANSFORM: usize = 100;
/// Fewest blocks for which the weight is transformed once, into memory that is slower than L2.
const LEAST_SHARING: usize = 6;
/// Channels of the weight that are transformed at a time, where that is once.
pub(super) const SLICE: usize = 32;

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
    pub(super) factors: Factors,
    pub(super) panel: PanelShape,
    /// Whether the weight is transformed once, for all blocks.
    is_weight_shared: bool,
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
        if !is_3x3 || !is_wide {
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
        let points = algorithm.points().pow(2);
        // Time in multiply-adds for each pair of channels, with the weight from memory.
        let weight = 9 * MULTIPLY_ADDS_PER_LOAD;
        let factors = Factors::of(spec, algorithm);
        let products = planes * grid[0] * grid[1] * points / factors.channels();
        let fast = products + weight + MULTIPLY_ADDS_PER_TRANSFORM;
        let positions = planes * spec.output[1] * spec.output[2];
        let mut direct = 9 * positions + weight;
        match Direct::words(spec) {
            Words::F32 => {}
            Words::Bf16Pairs(_) => direct /= 2,
            // Only the strip and the sums would count.
            Words::Bf16Tiles(_) | Words::F32Digits(_) => return None,
        }
        if fast > direct {
            return None;
        }
        let panel = PanelShape::of(spec.isa, Words::F32);
        // Transformed inputs and sums of a block take a quarter of the last-level cache and the
        // weight a third: inputs, outputs and plain weights pass through it, too. Where the weight
        // is transformed for each block, blocks are larger.
        let words = spec.input.channels.div_ceil(factors.channels());
        let tile_bytes = 4 * points * (words + spec.columns);
        let block = |bytes: usize| {
            let most = (bytes / tile_bytes).max(16);
            let width = grid[1].div_ceil(grid[1].div_ceil((most / algorithm.part()[0]).max(1)));
            let height = (most / width).clamp(1, grid[0]);
            [grid[0].div_ceil(grid[0].div_ceil(height)), width]
        };
        let columns = spec.columns.next_multiple_of(panel.lanes);
        let [height, width] = block(target.l3_bytes / 4);
        let n_blocks = planes * grid[0].div_ceil(height) * grid[1].div_ceil(width);
        let is_weight_shared =
            n_blocks >= LEAST_SHARING && 4 * points * words * columns <= target.l3_bytes / 3;
        let block = if is_weight_shared { [height, width] } else { block(target.l3_bytes / 2) };
        let output_bytes = 4 * outputs * outputs * columns;
        Some(Winograd {
            algorithm,
            input: spec.input.undoubled(),
            grid,
            block,
            factors,
            panel,
            is_weight_shared,
            run: (target.l2_bytes / 8 / output_bytes).clamp(1, block[1]),
        })
    }

    pub(super) fn tunables(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("transform", Attr::Str(self.algorithm.name().into())),
            ("factors", Attr::Str(self.factors.name().into())),
            ("block_rows", Attr::Int(self.block[0] as i64)),
            ("block_columns", Attr::Int(self.block[1] as i64)),
        ]
    }

    pub(super) fn points(&self) -> usize {
        self.algorithm.points().pow(2)
    }

    pub(super) fn panels(&self, spec: &Spec) -> usize {
        spec.columns.div_ceil(self.panel.columns())
    }

    /// Words of the product's depth.
    pub(super) fn depth(&self, spec: &Spec) -> usize {
        spec.input.channels.div_ceil(self.factors.channels())
    }

    pub(super) fn packed_bytes(&self, spec: &Spec) -> usize {
        conv_weight::packed_bytes(self, spec)
    }

    pub(super) fn packing_name(&self, spec: &Spec) -> String {
        conv_weight::packing_name(self, spec)
    }

    /// Packs the weight at load.
    ///
    /// # Safety
    /// Operand 0 is the dense weight, the result writable for the packed one.
    pub(super) unsafe fn pack(&self, spec: &Spec, shared: Shared<'_>, pool: &Pool) {
        pool.run(self.panels(spec), &|panel, _| {
            // SAFETY: panels do not overlap.
            unsafe {
                conv_weight::pack_panel(self, spec, panel, shared.operand(0), shared.result());
            }
        });
    }

    /// Values from one tile to the next: an odd number of cache lines, so that neighbors do not
    /// compete for sets of the caches.
    fn row_len(values: usize) -> usize {
        (values.div_ceil(16) | 1) * 16
    }

    /// The parts of the scratch.
    fn areas(&self, spec: &Spec, threads: usize) -> Areas {
        let tiles = self.block[0] * self.block[1];
        let (v_row, m_row) = (Self::row_len(self.depth(spec)), Self::row_len(spec.columns));
        // One line more, for the same reason between points.
        let (v_point, m_point) = (tiles * v_row + 16, tiles * m_row + 16);
        let columns = if self.is_weight_shared {
            spec.columns.next_multiple_of(self.panel.lanes)
        } else {
            self.panel.columns()
        };
        let u_point = columns * self.depth(spec) + 16;
        let own_points = if self.is_weight_shared { 0 } else { self.algorithm.points() };
        let shared_points = if self.is_weight_shared { self.points() } else { 0 };
        let chunks = if self.factors.is_scaled() { spec.input.channels.div_ceil(CHUNK) } else { 0 };
        let points = self.points();
        let weight = aligned(self.input.scratch_bytes(threads));
        let own = if spec.weight.is_packed { 0 } else { aligned(self.packed_bytes(spec)) };
        let v = weight + own;
        let u = v + aligned(4 * points * v_point);
        let m = u + aligned(4 * shared_points * u_point);
        let scales = m + aligned(4 * points * m_point);
        let workers = scales + aligned(4 * chunks * tiles);
        let (points, step) = (self.algorithm.points(), self.algorithm.step());
        let [height, width] = self.algorithm.part().map(|tiles| (tiles - 1) * step + points);
        let chunk = spec.input.channels.min(CHUNK);
        let outputs = self.algorithm.outputs().pow(2) * self.run;
        let lines = (height * width * chunk).max(outputs * m_row).max(own_points * u_point);
        let program = workers + aligned(4 * lines);
        let len = self.input.program_len().max(spec.epilogue_len());
        let worker_bytes = program - workers + aligned(4 * len);
        Areas {
            weight,
            v,
            u,
            m,
            scales,
            workers,
            program,
            worker_bytes,
            v_row,
            m_row,
            v_point,
            u_point,
            m_point,
        }
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
        if !spec.weight.is_packed {
            pool.run(self.panels(spec), &|panel, _| {
                // SAFETY: the weight's buffer holds its layout, the scratch the packed weight.
                unsafe {
                    let dense = shared.operand(spec.weight.operand);
                    let packed = shared.scratch().add(areas.weight);
                    conv_weight::pack_panel(self, spec, panel, dense, packed);
                }
            });
        }
        let blocks = [0, 1].map(|axis| self.grid[axis].div_ceil(self.block[axis]));
        let in_plane = blocks[0] * blocks[1];
        let panels = self.panels(spec);
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
            let run = |phase: Phase, n_items: usize| {
                pool.run(n_items, &|item, worker| {
                    let item =
                        Item { winograd: self, spec, shared, areas: &areas, block, item, worker };
                    match (self.algorithm, self.factors) {
                        (Algorithm::Quad, Factors::I16(dot)) => {
                            dispatch(spec.isa, Run(item, phase, Quad, Fixed(dot)));
                        }
                        (Algorithm::Quad, _) => dispatch(spec.isa, Run(item, phase, Quad, Single)),
                        (Algorithm::Doubled, Factors::Bf16(dot)) => {
                            dispatch(spec.isa, Run(item, phase, Doubled, Half(dot)));
                        }
                        (Algorithm::Doubled, _) => {
                            dispatch(spec.isa, Run(item, phase, Doubled, Single));
                        }
                    }
                });
            };
            let part = self.algorithm.part();
            let parts = [0, 1].map(|axis| block.dims[axis].div_ceil(part[axis]));
            run(Phase::Gather, parts[0] * parts[1] * spec.input.channels.div_ceil(CHUNK));
            if !self.is_weight_shared {
                run(Phase::MultiplyTransforming, panels * self.algorithm.points());
            } else {
                if index == 0 {
                    run(Phase::Weight, panels * spec.input.channels.div_ceil(SLICE));
                }
                // Whole points, or ranges of columns where threads would wait for the last one.
                let threads = pool.threads();
                let is_even = |&ranges: &usize| {
                    let items = self.points() * ranges;
                    20 * items >= 19 * threads * items.div_ceil(threads)
                };
                let ranges = (1..=panels).find(is_even).unwrap_or(panels);
                run(Phase::Multiply(ranges), self.points() * ranges);
            }
            let runs = block.dims[1].div_ceil(self.run);
            run(Phase::Scatter, block.dims[0] * runs);
        }
    }
}
