//! The phases of the gradient of a convolution's weight, an item each; what they are for is said in
//! `conv_weight_grad`.

use half::{bf16, f16};
use ops::DType;

use crate::simd::{Simd, SimdJob};

use super::conv_input::{Line, Reader};
use super::conv_weight_grad::{Areas, ConvWeightGrad, PACKED_ROWS, Piece};
use super::lanes::{copy, each, load_from, store_bf16};
use super::matmul_tile::Tile;
use super::multiplier::Multiplier;
use super::shared::Shared;
use super::transpose::transpose_in;
use super::words::Words;

/// Most words of a block of the depth: a tile's part of the cotangent stays in L1, that of a panel in L2,
/// and chains of roundings are short.
const DEPTH_BLOCK: usize = 384;

/// Packs a panel of a piece, all its patches, or some output channels of its cotangent.
pub(super) struct Pack<'a> {
    pub(super) conv: &'a ConvWeightGrad,
    pub(super) areas: &'a Areas,
    pub(super) shared: Shared<'a>,
    pub(super) piece: Piece,
    /// The piece's number in the round.
    pub(super) index: usize,
    pub(super) item: usize,
    pub(super) worker: usize,
}

impl SimdJob for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Pack { conv, areas, index, item, .. } = self;
        let [n_panels, _] = conv.pack_items();
        // SAFETY: the caller of `KernelDef::run` promises operands, and scratch of which these are parts.
        unsafe {
            let scratch = self.shared.scratch().cast::<f32>();
            let own = scratch.add(areas.workers + self.worker * areas.worker_len);
            let panels = scratch.add(index * areas.panels_len);
            if item >= n_panels {
                let grads = scratch.add(areas.grads + index * areas.grads_len);
                self.pack_grads(s, item - n_panels, grads, own);
            } else if conv.is_patches {
                self.pack_patches(s, panels, own);
            } else {
                self.pack_panel(s, item, panels, own);
            }
        }
    }
}

impl Pack<'_> {
    fn reader(&self) -> Reader<'_> {
        // Stored operands need neither a norm nor a program.
        Reader { shared: self.shared, norm_at: 0, program: std::ptr::null_mut() }
    }

    /// Where line `line`, counted from that under the piece's first one, starts, `tap` planes below the
    /// first tap's.
    #[inline(always)]
    fn corner(&self, tap: usize, line: usize) -> [isize; 3] {
        let ConvWeightGrad { stride, pad_low, .. } = self.conv;
        let z = self.piece.plane * stride[0] + tap;
        let y = self.piece.line * stride[1] + line;
        [
            z.cast_signed() - pad_low[0].cast_signed(),
            y.cast_signed() - pad_low[1].cast_signed(),
            -pad_low[2].cast_signed(),
        ]
    }

    /// # Safety
    /// As `run`; the worker's scratch holds a line.
    #[inline(always)]
    unsafe fn pack_panel<S: Simd>(&self, s: S, panel: usize, panels: *mut f32, own: *mut f32) {
        let Pack { conv, piece, .. } = self;
        let width = conv.width(panel);
        let first = panel * conv.panel.columns();
        let n = width.min(conv.columns() - first);
        let ([_, step, across], cells) = (conv.stride, conv.cells());
        let (places, across_places) = (conv.places(1), conv.places(2));
        let n_lines = conv.place_lines(piece.n_lines);
        let is_direct = across == 1 && n == width && conv.words == Words::F32;
        let (depths, version) = (conv.words.depths(), conv.version_len(piece.n_lines) * width);
        let reader = self.reader();
        for z in 0..conv.kernel[0] {
            for place in 0..places {
                for y in 0..n_lines {
                    let line = Line {
                        sample: piece.sample,
                        start: self.corner(z, y * step + place),
                        n: conv.line_columns(),
                        channels: (first, first + n),
                    };
                    // SAFETY: lines lie within the panel.
                    unsafe {
                        let strip = panels.add(conv.panel_start(piece.n_lines, panel));
                        let at = |x: usize| {
                            let place = (z * places + place) * across_places + x;
                            strip.add((place * n_lines + y) * cells / depths * width)
                        };
                        if is_direct {
                            conv.x.line(s, &reader, &line, at(0));
                            continue;
                        }
                        conv.x.line(s, &reader, &line, own);
                        for x in 0..across_places {
                            let cell = |cell: usize| own.add((cell * across + x) * n).cast_const();
                            if conv.words == Words::F32 {
                                for i in 0..cells {
                                    let to = at(x).add(i * width);
                                    copy(s, cell(i), n, to);
                                    std::ptr::write_bytes(to.add(n), 0, width - n);
                                }
                                continue;
                            }
                            for from in 0..conv.versions() {
                                for i in (from..cells).step_by(2) {
                                    let to = at(x).add(from * version + i / 2 * width);
                                    // What would follow the last position meets a zero.
                                    let next = cell((i + 1).min(cells - 1));
                                    pair(s, cell(i), next, n, to);
                                    std::ptr::write_bytes(to.add(n), 0, width - n);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// # Safety
    /// As `run`; the worker's scratch holds what is under the piece, and a window.
    #[inline(always)]
    unsafe fn pack_patches<S: Simd>(&self, s: S, panels: *mut f32, own: *mut f32) {
        let Pack { conv, piece, .. } = self;
        let channels = conv.x.channels;
        let [height, width] = conv.under(piece.n_lines);
        let [depth, kernel_height, kernel_width] = conv.kernel;
        let (run, columns) = (kernel_width * channels, conv.columns());
        let reader = self.reader();
        // SAFETY: lines and windows lie within the worker's scratch, positions within their panels.
        unsafe {
            for z in 0..depth {
                for y in 0..height {
                    let line = Line {
                        sample: piece.sample,
                        start: self.corner(z, y),
                        n: width,
                        channels: (0, channels),
                    };
                    let to = own.add((z * height + y) * width * channels);
                    conv.x.line(s, &reader, &line, to);
                }
            }
            let window = own.add(depth * height * width * channels);
            for y in 0..piece.n_lines {
                for x in 0..conv.cells() {
                    for line in 0..depth * kernel_height {
                        let (z, tap) = (line / kernel_height, line % kernel_height);
                        let from = (z * height + y * conv.stride[1] + tap) * width;
                        let from = own.add((from + x * conv.stride[2]) * channels);
                        copy(s, from, run, window.add(line * run));
                    }
                    for panel in 0..conv.panels() {
                        let panel_width = conv.width(panel);
                        let first = panel * conv.panel.columns();
                        let n = panel_width.min(columns - first);
                        let cell = y * conv.cells() + x;
                        let at = conv.panel_start(piece.n_lines, panel) + cell * panel_width;
                        let to = panels.add(at);
                        copy(s, window.add(first), n, to);
                        std::ptr::write_bytes(to.add(n), 0, panel_width - n);
                    }
                }
            }
        }
    }

    /// # Safety
    /// As `run`; the worker's scratch holds a line, and its transpose where words are pairs.
    #[inline(always)]
    unsafe fn pack_grads<S: Simd>(&self, s: S, group: usize, grads: *mut f32, own: *mut f32) {
        let Pack { conv, piece, .. } = self;
        let first = group * PACKED_ROWS;
        let n = PACKED_ROWS.min(conv.rows() - first);
        let (width, cells, row) = (conv.grad.dims[2], conv.cells(), self.areas.grads_row);
        let reader = self.reader();
        for y in 0..piece.n_lines {
            let line = Line {
                sample: piece.sample,
                start: [piece.plane, piece.line + y, 0].map(usize::cast_signed),
                n: width,
                channels: (first, first + n),
            };
            // SAFETY: the line lies within its rows.
            unsafe {
                conv.grad.line(s, &reader, &line, own);
                if conv.words == Words::F32 {
                    let to = grads.add(first * row + y * cells);
                    transpose_in(s, (width, n), own, n, to, row);
                    for channel in 0..n {
                        std::ptr::write_bytes(to.add(channel * row + width), 0, cells - width);
                    }
                    continue;
                }
                let transposed = own.add(width * n);
                transpose_in(s, (width, n), own, n, transposed, width);
                for channel in 0..n {
                    let to = grads.add((first + channel) * row).cast::<u16>().add(y * cells);
                    store_bf16(s, transposed.add(channel * width), width, to);
                    std::ptr::write_bytes(to.add(width), 0, cells - width);
                }
            }
        }
    }
}

/// Joins `n` values that bf16 holds with `n` others, each pair a word, `low` in the lower half.
///
/// # Safety
/// `low` and `high` are readable and `to` is writable for `n` values.
#[inline(always)]
unsafe fn pair<S: Simd>(s: S, low: *const f32, high: *const f32, n: usize, to: *mut f32) {
    // SAFETY: lanes below n.
    unsafe {
        let (low, high) = (load_from(s, low), load_from(s, high));
        each(
            n,
            S::LANES,
            #[inline(always)]
            |i, count| {
                let word = s.or(s.shr::<16>(low(i, count)), high(i, count));
                if count == S::LANES {
                    s.store(to.add(i), word);
                } else {
                    s.store_n(to.add(i), word, count);
                }
            },
        );
    }
}

/// Adds what the pieces of a round make of some output channels and a panel.
pub(super) struct Multiply<'a> {
    pub(super) conv: &'a ConvWeightGrad,
    pub(super) areas: &'a Areas,
    pub(super) shared: Shared<'a>,
    /// Of all pieces those of the round.
    pub(super) pieces: (usize, usize),
    /// Whether no piece comes after.
    pub(super) is_last: bool,
    pub(super) panel: usize,
    /// Whole tiles, but for the last one.
    pub(super) rows: (usize, usize),
    pub(super) products: (usize, usize),
}

impl SimdJob for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Multiply { conv, areas, panel, pieces, .. } = self;
        let products = conv.products();
        let width = conv.width(panel);
        let row_len = products * width;
        // SAFETY: the caller of `KernelDef::run` promises scratch, of which these are parts, and the result.
        unsafe {
            let scratch = self.shared.scratch().cast::<f32>();
            let first = panel * conv.panel.columns() * conv.rows() * products;
            let sums = scratch.add(areas.sums + first);
            let multiplier = &mut Multiplier::of(conv.words);
            for index in pieces.0..pieces.1 {
                let n_lines = conv.piece(index).n_lines;
                let at = index - pieces.0;
                let strip = at * areas.panels_len;
                let strip = scratch.add(strip + conv.panel_start(n_lines, panel));
                let grads = scratch.add(areas.grads + at * areas.grads_len);
                let depth = conv.depth(n_lines);
                let block = conv.words.padded(depth.div_ceil(depth.div_ceil(DEPTH_BLOCK)));
                for start in (0..depth).step_by(block) {
                    let place = Place {
                        start,
                        depth: block.min(depth - start),
                        n_lines,
                        accumulate: index + start > 0,
                    };
                    self.block(s, multiplier, &place, grads, strip, sums);
                }
            }
            if self.is_last {
                for row in self.rows.0..self.rows.1 {
                    self.store(s, row, sums.add(row * row_len));
                }
            }
        }
    }
}

/// A block of the depth of a piece.
struct Place {
    start: usize,
    depth: usize,
    n_lines: usize,
    accumulate: bool,
}

impl Multiply<'_> {
    /// # Safety
    /// As `run`.
    #[inline(always)]
    unsafe fn block<S: Simd>(
        &self,
        s: S,
        multiplier: &mut Multiplier,
        place: &Place,
        grads: *const f32,
        strip: *const f32,
        sums: *mut f32,
    ) {
        let Multiply { conv, areas, panel, .. } = self;
        let (products, width) = (conv.products(), conv.width(*panel));
        let tile_rows = conv.words.shape(conv.isa).0;
        for row in (self.rows.0..self.rows.1).step_by(tile_rows) {
            let rows = tile_rows.min(self.rows.1 - row);
            for product in self.products.0..self.products.1 {
                let word = conv.first_word(place.n_lines, product) + place.start;
                // With each tap a row of the next tile comes in.
                let next = row + tile_rows + product % tile_rows;
                // SAFETY: tiles lie within the packed operands and the sums.
                unsafe {
                    let tile = Tile {
                        a: grads.add(row * areas.grads_row + place.start),
                        a_stride: areas.grads_row,
                        b: strip.add(word * width),
                        depth: place.depth,
                        sums: sums.add((row * products + product) * width),
                        sums_stride: products * width,
                        accumulate: place.accumulate,
                        next: grads.wrapping_add(next * areas.grads_row + place.start),
                    };
                    multiplier.run(s, rows, width / S::LANES, &tile);
                }
            }
        }
    }

    /// Writes those of the finished sums of output channel `row`, `[products, columns of the panel]`, that
    /// this task made.
    ///
    /// # Safety
    /// As `run`.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, row: usize, sums: *const f32) {
        let Multiply { conv, panel, .. } = self;
        let ConvWeightGrad { result, tap_offsets, .. } = conv;
        let (taps, channels, width) = (conv.taps(), conv.x.channels, conv.width(*panel));
        let first = panel * conv.panel.columns();
        let n = width.min(conv.columns() - first);
        let (first_product, end) = self.products;
        let start = result.offset + row * result.strides[0];
        let is_dense = result.dtype == DType::F32
            && result.strides[1] == taps
            && tap_offsets.iter().enumerate().all(|(tap, &at)| tap == at);
        // SAFETY: elements lie within the result's layout.
        unsafe {
            if is_dense && !conv.is_patches {
                let to = start + first * taps + first_product;
                let to = self.shared.result().cast::<f32>().add(to);
                let sums = sums.add(first_product * width);
                transpose_in(s, (end - first_product, n), sums, width, to, taps);
                return;
            }
            for column in 0..n {
                for product in first_product..end {
                    // Columns of patches are taps, then channels.
                    let (tap, channel) = if conv.is_patches {
                        ((first + column) / channels, (first + column) % channels)
                    } else {
                        (product, first + column)
                    };
                    let at = start + channel * result.strides[1] + tap_offsets[tap];
                    let sum = *sums.add(product * width + column);
                    let to = self.shared.result();
                    let half = match result.dtype {
                        DType::Bf16 => bf16::from_f32(sum).to_bits(),
                        DType::F16 => f16::from_f32(sum).to_bits(),
                        _ => {
                            to.cast::<f32>().add(at).write(sum);
                            continue;
                        }
                    };
                    to.cast::<u16>().add(at).write(half);
                }
            }
        }
    }
}
