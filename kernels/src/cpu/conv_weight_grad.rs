//! `conv_weight_grad`: for each tap a product over positions, of the cotangent, transposed, and of what the
//! window slid over, moved by the tap.
//!
//! Positions come in *pieces*, some lines of one plane, and pieces in *rounds* that fit the last-level cache.
//! Each round has two phases, each split over the threads:
//! 1. *pack*: of each piece the cotangent to rows of positions, one for each output channel, and the input to
//!    panels of channels, position by position, with the halo of the window. Lines of both are equally long:
//!    the cotangent has zeros where the input has its halo. A tap then only moves the first position, and
//!    the depth of its product runs through all lines. Where the window moves by more than 1, the input's
//!    positions are sorted by their place within a stride, so that those of a tap are neighbors still. Of few
//!    channels, whole windows are copied to the panel instead, as patches, which have one tap.
//! 2. *multiply*: output channels and a panel, block by block of the depth, all taps while the tile's
//!    part of the cotangent is in L1 and that of the panel in L2. Sums wait in scratch for the next round;
//!    after the last one they go to the result.
//!
//! Where operands are bf16 and the CPU multiplies pairs, words are pairs of neighboring positions. A tap that
//! moves by an odd number of them meets other pairs, so that panels exist twice then. Else arithmetic is f32.
//!
//! Roofline: the multiply-add units. Each sum follows pieces and positions in order and is one task's in each
//! round, so bytes do not depend on threads.

use ops::{Attr, DType, Op};

use crate::conv_site::per_axis;
use crate::kernel::{KernelDef, Launch, Site};
use crate::simd::dispatch;
use crate::{Isa, Layout};

use super::conv::SPATIAL;
use super::conv_input::Input;
use super::conv_weight_grad_task::{Multiply, Pack};
use super::matmul_pack::PanelShape;
use super::shared::{Shared, aligned};
use super::words::Words;

/// Output channels that are packed at a time.
pub(super) const PACKED_ROWS: usize = 64;

/// The gradient of a convolution with respect to its weight.
#[derive(Clone, Debug)]
pub struct ConvWeightGrad {
    pub(super) isa: Isa,
    pub(super) x: Box<Input>,
    pub(super) grad: Box<Input>,
    pub(super) kernel: [usize; SPATIAL],
    pub(super) stride: [usize; SPATIAL],
    pub(super) pad_low: [usize; SPATIAL],
    /// `[O, C, kernel..]`.
    pub(super) result: Layout,
    /// Elements of the result from a channel's first tap to each.
    pub(super) tap_offsets: Vec<usize>,
    pub(super) panel: PanelShape,
    /// Whether the panel has windows, not channels.
    pub(super) is_patches: bool,
    pub(super) words: Words,
    /// Lines of a piece, but for the last one of a plane.
    piece_lines: usize,
    /// Pieces of a round.
    round: usize,
}

/// Where a piece lies.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) sample: usize,
    pub(super) plane: usize,
    /// First line and how many.
    pub(super) line: usize,
    pub(super) n_lines: usize,
}

/// Where things lie in the scratch, in words.
#[derive(Clone, Copy)]
pub(super) struct Areas {
    /// From the panels of a piece of the round, which come first, to those of the next.
    pub(super) panels_len: usize,
    /// The cotangent of the pieces, from one piece to the next, and from row to row.
    pub(super) grads: usize,
    pub(super) grads_len: usize,
    pub(super) grads_row: usize,
    pub(super) sums: usize,
    pub(super) workers: usize,
    pub(super) worker_len: usize,
}

impl ConvWeightGrad {
    /// Takes one `conv_weight_grad` of operands as they are stored.
    pub fn select(site: &Site<'_>) -> Option<ConvWeightGrad> {
        let &[root] = &site.body.outputs[..] else { return None };
        let Some(Op::ConvWeightGrad(op)) = site.body.op(root) else { return None };
        let [x, grad] = site.body.node(root).args[..] else { return None };
        let [x, grad] = [Box::new(Input::stored(site, x)?), Box::new(Input::stored(site, grad)?)];
        let (isa, target, result) = (site.target.isa, site.target, site.result.clone());
        let kernel = per_axis(&result.shape[2..], 1);
        let panel = PanelShape::of(isa, Words::F32);
        let vectors = |columns: usize| columns.div_ceil(panel.lanes);
        let taps: usize = kernel.iter().product();
        // A panel of patches takes `taps` times as long to make.
        let is_patches = 3 * vectors(taps * x.channels) <= 2 * taps * vectors(x.channels);
        let words = Words::of(isa, if is_patches { DType::F32 } else { x.dtype });
        let mut conv = ConvWeightGrad {
            isa,
            kernel,
            stride: per_axis(&op.window.stride, 1),
            pad_low: per_axis(&op.window.pad_low, 0),
            tap_offsets: tap_offsets(&result),
            x,
            grad,
            result,
            panel,
            is_patches,
            words,
            piece_lines: 1,
            round: 1,
        };
        // One panel of a piece is made in L2.
        let height = conv.grad.dims[1];
        let line = 4 * conv.strip_len(1) * panel.columns();
        let lines = (target.l2_bytes / 4 / line.max(1)).clamp(1, height);
        conv.piece_lines = height.div_ceil(height.div_ceil(lines));
        let areas = conv.areas();
        let piece = 4 * (areas.panels_len + areas.grads_len);
        conv.round = (target.l3_bytes / 2 / piece).clamp(1, conv.pieces());
        Some(conv)
    }

    /// O.
    pub(super) fn rows(&self) -> usize {
        self.grad.channels
    }

    /// Columns of all panels.
    pub(super) fn columns(&self) -> usize {
        if self.is_patches { self.taps() * self.x.channels } else { self.x.channels }
    }

    pub(super) fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Products of a panel: one for each tap.
    pub(super) fn products(&self) -> usize {
        if self.is_patches { 1 } else { self.taps() }
    }

    /// Places within a stride that taps stand at along an axis.
    pub(super) fn places(&self, axis: usize) -> usize {
        self.stride[axis].min(self.kernel[axis])
    }

    /// Most taps along an axis that stand at the same place within a stride.
    fn reach(&self, axis: usize) -> usize {
        if self.is_patches { 1 } else { self.kernel[axis].div_ceil(self.stride[axis]) }
    }

    /// Positions of a line, with the halo: whole words.
    pub(super) fn cells(&self) -> usize {
        (self.grad.dims[2] + self.reach(2) - 1).next_multiple_of(self.words.depths())
    }

    /// Lines of one place of a piece of `n_lines`, with the halo.
    pub(super) fn place_lines(&self, n_lines: usize) -> usize {
        n_lines + self.reach(1) - 1
    }

    /// How often a panel exists, each from one position later on.
    pub(super) fn versions(&self) -> usize {
        self.words.depths().min(self.reach(2))
    }

    /// Words of one version of a column of a piece of `n_lines`.
    pub(super) fn version_len(&self, n_lines: usize) -> usize {
        let places =
            if self.is_patches { 1 } else { self.kernel[0] * self.places(1) * self.places(2) };
        places * self.place_lines(n_lines) * self.cells() / self.words.depths()
    }

    /// Words of a column of a piece of `n_lines`.
    fn strip_len(&self, n_lines: usize) -> usize {
        self.versions() * self.version_len(n_lines)
    }

    /// Words of the product's depth for a piece of `n_lines`: behind its last one, that of a tap may lie
    /// outside of the panel.
    pub(super) fn depth(&self, n_lines: usize) -> usize {
        let positions = n_lines * self.cells() - (self.cells() - self.grad.dims[2]);
        positions.div_ceil(self.words.depths())
    }

    /// The first word of product `product` in a column of a piece of `n_lines`.
    #[inline(always)]
    pub(super) fn first_word(&self, n_lines: usize, product: usize) -> usize {
        if self.is_patches {
            return 0;
        }
        let [_, height, width] = self.kernel;
        let (z, y, x) = (product / (height * width), product / width % height, product % width);
        let [_, step, across] = self.stride;
        let place = (z * self.places(1) + y % step) * self.places(2) + x % across;
        let cell = (place * self.place_lines(n_lines) + y / step) * self.cells() + x / across;
        let depths = self.words.depths();
        cell % depths * self.version_len(n_lines) + cell / depths
    }

    pub(super) fn panels(&self) -> usize {
        self.columns().div_ceil(self.panel.columns())
    }

    /// Columns of panel `panel`, with those behind the last one.
    #[inline(always)]
    pub(super) fn width(&self, panel: usize) -> usize {
        self.panel.vectors_of(panel, self.columns()) * self.panel.lanes
    }

    /// The first word of panel `panel` among those of a piece of `n_lines`.
    #[inline(always)]
    pub(super) fn panel_start(&self, n_lines: usize, panel: usize) -> usize {
        self.strip_len(n_lines) * panel * self.panel.columns()
    }

    /// Lines and columns of the input under a piece of `n_lines`.
    pub(super) fn under(&self, n_lines: usize) -> [usize; 2] {
        let under = |n: usize, axis: usize| (n - 1) * self.stride[axis] + self.kernel[axis];
        [under(n_lines, 1), under(self.grad.dims[2], 2)]
    }

    fn pieces_of_plane(&self) -> usize {
        self.grad.dims[1].div_ceil(self.piece_lines)
    }

    fn pieces(&self) -> usize {
        self.grad.samples * self.grad.dims[0] * self.pieces_of_plane()
    }

    /// Piece number `index`.
    #[inline(always)]
    pub(super) fn piece(&self, index: usize) -> Piece {
        let (plane, at) = (index / self.pieces_of_plane(), index % self.pieces_of_plane());
        let line = at * self.piece_lines;
        Piece {
            sample: plane / self.grad.dims[0],
            plane: plane % self.grad.dims[0],
            line,
            n_lines: self.piece_lines.min(self.grad.dims[1] - line),
        }
    }

    /// Items of the pack phase for one piece: panels, or all patches at once, then groups of output
    /// channels.
    pub(super) fn pack_items(&self) -> [usize; 2] {
        let panels = if self.is_patches { 1 } else { self.panels() };
        [panels, self.rows().div_ceil(PACKED_ROWS)]
    }

    /// The parts of the scratch.
    pub(super) fn areas(&self) -> Areas {
        let whole = |len: usize| aligned(4 * len) / 4;
        let (lines, cells) = (self.piece_lines, self.cells());
        let columns = self.columns().next_multiple_of(self.panel.lanes);
        let panels_len = whole(self.strip_len(lines) * columns);
        // An odd number of cache lines, so that rows of a tile do not compete for sets of the caches.
        let grads_row = ((lines * cells / self.words.depths()).div_ceil(16) | 1) * 16;
        let grads_len = self.rows() * grads_row;
        let grads = self.round * panels_len;
        let sums = grads + self.round * grads_len;
        let workers = sums + whole(self.rows() * self.products() * columns);
        let line = if self.is_patches {
            let [height, width] = self.under(lines);
            self.kernel[0] * height * width * self.x.channels + self.columns()
        } else {
            self.line_columns() * self.panel.columns()
        };
        // A line of the cotangent, and where it is rounded, its transpose.
        let line = line.max(self.words.depths() * self.grad.dims[2] * PACKED_ROWS);
        Areas { panels_len, grads, grads_len, grads_row, sums, workers, worker_len: whole(line) }
    }

    /// Columns of the input that a line of cells takes.
    pub(super) fn line_columns(&self) -> usize {
        (self.cells() - 1) * self.stride[2] + self.places(2)
    }
}

/// Elements from `[o, c, 0..]` to each tap of a layout `[O, C, kernel..]`, taps in row-major order.
fn tap_offsets(layout: &Layout) -> Vec<usize> {
    let mut offsets = vec![0];
    for (&dim, &stride) in layout.shape[2..].iter().zip(&layout.strides[2..]) {
        offsets = offsets.iter().flat_map(|at| (0..dim).map(move |i| at + i * stride)).collect();
    }
    offsets
}

impl KernelDef for ConvWeightGrad {
    fn name(&self) -> &'static str {
        "conv_weight_grad"
    }

    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        let form = if self.is_patches { "patches" } else { "taps" };
        vec![
            ("form", Attr::Str(form.into())),
            ("words", Attr::Str(self.words.dtype().to_string())),
            ("lines", Attr::Int(self.piece_lines as i64)),
            ("pieces", Attr::Int(self.round as i64)),
        ]
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        let areas = self.areas();
        4 * (areas.workers + threads * areas.worker_len)
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let (shared, pool) = (Shared::new(launch), launch.pool);
        let areas = self.areas();
        let pieces = self.pieces();
        let of_piece: usize = self.pack_items().iter().sum();
        let tile_rows = self.words.shape(self.isa).0;
        let tiles = self.rows().div_ceil(tile_rows);
        // Some tasks for each thread, each of whole tiles, and where those are few of some taps.
        let wanted = 8 * pool.threads();
        let ranges = wanted.div_ceil(self.panels()).clamp(1, tiles);
        let parts = (wanted / 2).div_ceil(self.panels() * ranges).clamp(1, self.products());
        for first in (0..pieces).step_by(self.round) {
            let last = pieces.min(first + self.round);
            pool.run((last - first) * of_piece, &|item, worker| {
                let (index, item) = (item / of_piece, item % of_piece);
                let piece = self.piece(first + index);
                let job = Pack { conv: self, areas: &areas, shared, piece, index, item, worker };
                dispatch(self.isa, job);
            });
            pool.run(self.panels() * ranges * parts, &|item, _| {
                let (item, part) = (item / parts, item % parts);
                let (panel, range) = (item / ranges, item % ranges);
                let row = |range: usize| (tiles * range / ranges * tile_rows).min(self.rows());
                let product = |part: usize| self.products() * part / parts;
                dispatch(
                    self.isa,
                    Multiply {
                        conv: self,
                        areas: &areas,
                        shared,
                        pieces: (first, last),
                        is_last: last == pieces,
                        panel,
                        rows: (row(range), row(range + 1)),
                        products: (product(part), product(part + 1)),
                    },
                );
            });
        }
    }
}
