//! Packed B: panels of columns, each stored depth by depth, so that the register tile reads
//! memory in one straight line.
//!
//! Where words hold several depths, a panel holds a vector of words at a time: the depths of a word
//! lie side by side, column by column. A depth that ends within a word is padded with zeros. Digits of f32 are made of rows
//! of columns side by side, which is how panels of f32 lie.
//!
//! A panel is as wide as the full tile; the last one is narrower by whole vectors, and padded with
//! zeros to one. All panels follow each other without gaps.

use std::mem::MaybeUninit;

use half::{bf16, f16};
use ops::DType;

use crate::isa::{Isa, Tiles};
use crate::simd::digits::{DEPTHS_OF_DIGITS, DIGITS, Lines, MOST_UNITS, Scales, VECTORS};
use crate::simd::{Simd, SimdJob, TILE_WORDS, dispatch, prefetch};

use super::lanes::{join_halves, load_as_f32, prefetch_row};
use super::transpose::transpose_in;
use super::words::Words;

/// Words of each column that are packed at a time, where the depth is contiguous: whole cache lines.
const WORDS_AT_ONCE: usize = 64;
/// How many depths ahead packing asks for, where each is a row of its own.
const DEPTHS_AHEAD: usize = 16;

/// Columns of a panel and depths of its words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PanelShape {
    isa: Isa,
    pub(super) lanes: usize,
    vectors: usize,
    words: Words,
}

impl PanelShape {
    pub(super) fn of(isa: Isa, words: Words) -> Self {
        let vectors = words.shape(isa).1;
        Self { isa, lanes: isa.lanes(), vectors, words }
    }

    /// Columns of a full panel.
    pub(super) fn columns(self) -> usize {
        self.lanes * self.vectors
    }

    /// Vectors of panel number `panel`.
    #[inline(always)]
    pub(super) fn vectors_of(self, panel: usize, columns: usize) -> usize {
        (columns - panel * self.columns()).div_ceil(self.lanes).min(self.vectors)
    }

    /// Bytes of all panels of elements of type `dtype`.
    pub(super) fn packed_bytes(self, columns: usize, depth: usize, dtype: DType) -> usize {
        let depth = depth.next_multiple_of(self.depths());
        columns.next_multiple_of(self.lanes) * depth * dtype.size()
    }

    /// Elements before panel `panel` of a B of this depth.
    pub(super) fn start(self, panel: usize, depth: usize) -> usize {
        panel * self.columns() * depth.next_multiple_of(self.depths())
    }

    /// Depths that panels are padded to: those of a word, which is f32 where digits are made of it.
    fn depths(self) -> usize {
        if self.words.digits().is_some() { 1 } else { self.words.depths() }
    }

    /// Packs the digits of `panels` neighbors, at most [`GROUPS`](crate::simd::digits::GROUPS) vectors of columns.
    ///
    /// # Safety
    /// As [`PanelShape::pack`], for all of them.
    pub(super) unsafe fn pack_digits(
        self,
        tiles: Tiles,
        (panel, panels): (usize, usize),
        dense: &DenseB,
        to: &PackedDigits,
    ) {
        let first = panel * self.columns();
        let (begin, end) = dense.depth;
        let block = self.words.depth(to.depth_block);
        let panel_words = self.words.of_depth(end - begin) * self.columns();
        let blocks = (end - begin).div_ceil(block);
        let mut columns =
            [MaybeUninit::<f32>::uninit(); MOST_UNITS * DEPTHS_OF_DIGITS * VECTORS * TILE_WORDS];
        for start in (begin..end).step_by(block) {
            let (depth, index) = ((start, end.min(start + block)), (start - begin) / block);
            let word = index * to.depth_block;
            let depths = depth.1 - start;
            let part = |at: usize| PackedDigits {
                // A narrow panel is the last one: those before it are as wide as all.
                digits: to.digits.wrapping_add(
                    at * panel_words
                        + word * self.vectors_of(panel + at, dense.columns) * TILE_WORDS,
                ),
                scales: to.scales.wrapping_add((at * blocks + index) * VECTORS),
                ..*to
            };
            // SAFETY: the block of the depth lies within B, its words within the panels, and as f32 it is no longer than
            // the longest one.
            unsafe {
                if dense.dtype == DType::F32 && dense.strides.1 == 1 {
                    let start = dense.start.cast::<f32>().add(first + start * dense.strides.0);
                    let count = (panels * self.columns()).min(dense.columns - first);
                    let lines = Lines { start, stride: dense.strides.0, count, depth: depths };
                    self.split(tiles, &lines, part);
                    continue;
                }
                for at in 0..panels {
                    let columns = columns.as_mut_ptr().cast::<f32>();
                    let dense = DenseB { depth, ..*dense };
                    self.pack(panel + at, &dense, columns.cast(), DType::F32);
                    let count = self.vectors_of(panel + at, dense.columns) * TILE_WORDS;
                    let lines = Lines { start: columns, stride: count, count, depth: depths };
                    self.split(tiles, &lines, |_| part(at));
                }
            }
        }
    }

    /// Splits one block of lines that are columns of panels; `to` says where those of each go.
    ///
    /// # Safety
    /// The lines are readable, their words writable.
    unsafe fn split(self, tiles: Tiles, lines: &Lines, to: impl Fn(usize) -> PackedDigits) {
        let units = lines.depth.div_ceil(self.words.depths());
        let groups = lines.groups();
        // SAFETY: the caller's promise.
        unsafe {
            let splittings = lines.splittings(tiles);
            for (group, splitting) in splittings.iter().enumerate().take(groups) {
                let (panel, vector) = (group / VECTORS, group % VECTORS);
                let vectors = (groups - panel * VECTORS).min(VECTORS);
                let to = to(panel);
                for part in 0..1 + usize::from(splitting.has_low()) {
                    for unit in 0..units {
                        let to = to.digits.add(part * to.low);
                        let to = [0, 1, 2].map(|digit| {
                            let word = (unit * DIGITS + digit) * vectors + vector;
                            to.add(word * TILE_WORDS * TILE_WORDS)
                        });
                        lines.split_unit(tiles, group, splitting, unit, part == 1, to);
                    }
                }
                to.scales.add(vector).write(splitting.scales());
            }
        }
    }

    /// Packs one panel, of elements of type `dtype`: of f32 where digits are to be made of it.
    ///
    /// # Safety
    /// `dense` is readable for all of B, `packed` writable for the panel.
    pub(super) unsafe fn pack(self, panel: usize, dense: &DenseB, packed: *mut u8, dtype: DType) {
        let first = panel * self.columns();
        let width = self.vectors_of(panel, dense.columns) * self.lanes;
        let valid = width.min(dense.columns - first);
        let DenseB { strides, depth: (from, to), .. } = *dense;
        let (depth, step) = (to - from, self.depths());
        let strip = Strip { depth, step, width, valid, strides };
        // SAFETY: the caller's promise.
        unsafe {
            let start = first * strides.1 + from * strides.0;
            let dense_start = dense.start.add(start * dense.dtype.size());
            let words = size_of::<f32>() / dtype.size();
            let holds_words = step == words;
            if dense.dtype == dtype
                && holds_words
                && strides.0 == 1
                && strides.1.is_multiple_of(words)
            {
                let (dense, packed) = (dense_start.cast(), packed.cast());
                dispatch(self.isa, PackWords { strip, dense, packed });
                return;
            }
            if holds_words && (strides.1 == 1 || valid == 1) {
                let (dense, from, packed) = (dense_start, dense.dtype, packed.cast());
                dispatch(self.isa, PackDepths { strip, dense, dtype: from, packed });
                return;
            }
            match (dense.dtype, dtype) {
                (DType::F32, _) => strip.copy::<f32, f32>(dense_start, packed, |x| x),
                (DType::Bf16, DType::F32) => strip.copy(dense_start, packed, bf16::to_f32),
                (DType::F16, DType::F32) => strip.copy(dense_start, packed, f16::to_f32),
                _ => strip.copy::<u16, u16>(dense_start, packed, |x| x),
            }
        }
    }
}

/// B in memory, the part of its depth that is to be packed.
#[derive(Clone, Copy)]
pub(super) struct DenseB {
    /// Element `(0, 0)`.
    pub(super) start: *const u8,
    /// From one depth to the next, and from one column to the next, in elements.
    pub(super) strides: (usize, usize),
    pub(super) columns: usize,
    /// First and one past the last; the first starts a unit.
    pub(super) depth: (usize, usize),
    pub(super) dtype: DType,
}

/// Where panels of digits go.
#[derive(Clone, Copy)]
pub(super) struct PackedDigits {
    /// The first panel's first word.
    pub(super) digits: *mut f32,
    /// Words from digits to low ones.
    pub(super) low: usize,
    /// The first panel's scales, block by block of the depth.
    pub(super) scales: *mut Scales,
    /// Words of a block.
    pub(super) depth_block: usize,
}

/// The part of B that becomes one panel.
struct Strip {
    depth: usize,
    /// Depths of a word.
    step: usize,
    width: usize,
    /// Columns that B has; the rest of the width is padding.
    valid: usize,
    strides: (usize, usize),
}

impl Strip {
    /// # Safety
    /// As [`PanelShape::pack`].
    unsafe fn copy<T: Copy, U: Copy + Default>(
        &self,
        dense: *const u8,
        packed: *mut u8,
        convert: impl Fn(T) -> U,
    ) {
        /// Depths at a time: a cache line of f32, where the depth is contiguous in B.
        const BLOCK: usize = 16;
        let (dense, packed) = (dense.cast::<T>(), packed.cast::<U>());
        let (depth_stride, column_stride) = self.strides;
        // Where element `(k, n)` of the strip lies in the panel.
        let at = |k: usize, n: usize| (k / self.step * self.width + n) * self.step + k % self.step;
        let padded = self.depth.next_multiple_of(self.step);
        // SAFETY: positions lie within B and within the panel; neither need be aligned.
        unsafe {
            for start in (0..self.depth).step_by(BLOCK) {
                let end = (start + BLOCK).min(self.depth);
                if column_stride == 1 {
                    for k in start..end {
                        let from = dense.add(k * depth_stride);
                        for n in 0..self.valid {
                            let x = convert(from.add(n).read_unaligned());
                            packed.add(at(k, n)).write_unaligned(x);
                        }
                    }
                } else {
                    for n in 0..self.valid {
                        let from = dense.add(n * column_stride);
                        for k in start..end {
                            let x = convert(from.add(k * depth_stride).read_unaligned());
                            packed.add(at(k, n)).write_unaligned(x);
                        }
                    }
                }
            }
            for k in 0..padded {
                let first = if k < self.depth { self.valid } else { 0 };
                for n in first..self.width {
                    packed.add(at(k, n)).write_unaligned(U::default());
                }
            }
        }
    }
}

/// Packs a strip whose columns are neighbors in B, depth by depth.
struct PackDepths {
    strip: Strip,
    dense: *const u8,
    dtype: DType,
    packed: *mut f32,
}

impl SimdJob for PackDepths {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackDepths { strip, dense, dtype, packed } = self;
        let Strip { depth, step, width, valid, strides } = strip;
        let row_bytes = strides.0 * dtype.size();
        // SAFETY: as `PanelShape::pack`; rows of the strip lie within B, words within the panel.
        unsafe {
            for (word, k) in (0..depth).step_by(step).enumerate() {
                let row = dense.add(k * row_bytes);
                for ahead in 0..step {
                    let next = row.wrapping_add((DEPTHS_AHEAD + ahead) * row_bytes);
                    prefetch_row(next, valid * dtype.size());
                }
                for v in (0..width).step_by(S::LANES) {
                    let n = S::LANES.min(valid.saturating_sub(v));
                    if n == 0 {
                        s.store(packed.add(word * width + v), s.splat(0.0));
                        continue;
                    }
                    let load = |row: *const u8| load_as_f32(s, dtype, row.add(v * dtype.size()), n);
                    let low = load(row);
                    let words = if step == 1 {
                        low
                    } else if k + 1 < depth {
                        join_halves(s, low, load(row.add(row_bytes)))
                    } else {
                        s.shr::<16>(low)
                    };
                    s.store(packed.add(word * width + v), words);
                }
            }
        }
    }
}

/// Packs a strip whose words are words of B, too: their way into the panel is a transposition.
struct PackWords {
    strip: Strip,
    dense: *const f32,
    packed: *mut f32,
}

impl SimdJob for PackWords {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Strip { depth, step, width, valid, strides } = self.strip;
        let (whole, stride) = (depth / step, strides.1 / step);
        // SAFETY: as `PanelShape::pack`; words lie within B and within the panel.
        unsafe {
            for start in (0..whole).step_by(WORDS_AT_ONCE) {
                let n = WORDS_AT_ONCE.min(whole - start);
                // Columns are far apart: without this, each waits for memory by itself.
                for column in 0..valid {
                    let next = self.dense.wrapping_add(column * stride + start + WORDS_AT_ONCE);
                    for line in (0..WORDS_AT_ONCE).step_by(16) {
                        prefetch(next.wrapping_add(line));
                    }
                }
                let (from, to) = (self.dense.add(start), self.packed.add(start * width));
                transpose_in(s, (valid, n), from, stride, to, width);
                for word in 0..n {
                    std::ptr::write_bytes(to.add(word * width + valid), 0, width - valid);
                }
            }
            if whole * step < depth {
                // The depth ends in the lower half of a word.
                let to = self.packed.add(whole * width).cast::<u32>();
                for column in 0..width {
                    let half = if column < valid {
                        let at = column * strides.1 + depth - 1;
                        u32::from(self.dense.cast::<u16>().add(at).read_unaligned())
                    } else {
                        0
                    };
                    to.add(column).write_unaligned(half);
                }
            }
        }
    }
}

/// Widens `n` packed bf16 or f16 elements, whole vectors.
///
/// # Safety
/// `packed` is readable and `wide` writable for `n` elements.
#[inline(always)]
pub(super) unsafe fn widen<S: Simd>(
    s: S,
    dtype: DType,
    packed: *const u8,
    n: usize,
    wide: *mut f32,
) {
    let packed = packed.cast::<u16>();
    // SAFETY: the caller's promise.
    unsafe {
        if dtype == DType::Bf16 {
            for i in (0..n).step_by(S::LANES) {
                s.store(wide.add(i), s.load_bf16(packed.add(i)));
            }
        } else {
            for i in (0..n).step_by(S::LANES) {
                s.store(wide.add(i), s.load_f16(packed.add(i)));
            }
        }
    }
}
