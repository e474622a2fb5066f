//! What the window of a convolution slides over: an operand, as it is or through a prologue (group
//! norm, elementwise code) and a doubling of height and width, none of which is ever stored.
//!
//! Kernels ask for a *line*: neighboring positions of one row with some of their channels, in f32.
//! Positions outside the input are zero, whatever the prologue makes of zero.

use ops::{DType, Op, ValueId};

use crate::Pool;
#[cfg(feature = "training")]
use crate::conv_site::per_axis;
use crate::conv_site::{ConvSite, SPATIAL};
use crate::kernel::Site;
use crate::program::{MAX_SLOTS, SlotPtr, load_f32};
use crate::simd::{Simd, SimdJob};

use super::group_stats::GroupStats;
use super::lanes::copy;
use super::shared::Shared;
use crate::body::{Elementwise, Leaf, Source, compile_elementwise};

/// The input of a convolution.
#[derive(Clone, Debug)]
pub(super) struct Input {
    pub(super) samples: usize,
    /// Spatial dims as the window sees them.
    pub(super) dims: [usize; SPATIAL],
    pub(super) channels: usize,
    /// Element type that the convolution multiplies.
    pub(super) dtype: DType,
    /// How often each element is repeated along the spatial axes.
    factor: [usize; SPATIAL],
    norm: Option<GroupStats>,
    /// From operands, or from the norm (frontier 0), to f32.
    code: Elementwise,
    /// Whether the code does nothing but read.
    is_plain: bool,
    /// Strides of each of the code's leaves, then of what the norm reads: sample, space, channel.
    strides: Vec<[usize; 2 + SPATIAL]>,
}

/// A part of a line: where it starts as the window sees it, and the channels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) sample: usize,
    /// Plane, row and first column; may lie outside.
    pub(super) start: [isize; SPATIAL],
    /// Columns.
    pub(super) n: usize,
    pub(super) channels: (usize, usize),
}

/// Where lines are computed: the launch, the norm's place in its scratch, scratch for the code.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) shared: Shared<'a>,
    pub(super) norm_at: usize,
    pub(super) program: *mut f32,
}

impl Input {
    /// The input of `conv`, a part of the site's body.
    pub(super) fn of(site: &Site<'_>, conv: &ConvSite) -> Option<Input> {
        let root = conv.input;
        let factor = if conv.is_doubled { [1, 2, 2] } else { [1; SPATIAL] };
        let is_norm = |&value: &ValueId| matches!(site.body.op(value), Some(Op::GroupNorm(_)));
        let frontier: Vec<ValueId> = site.body.values().filter(is_norm).collect();
        if frontier.len() > 1 {
            return None;
        }
        let code = compile_elementwise(site.body, root, &frontier, site.operands)?.widened();
        let reads_norm = code.leaves.iter().any(|leaf| matches!(leaf.source, Source::Frontier(_)));
        if reads_norm == frontier.is_empty() {
            return None;
        }
        let norm = match frontier.first() {
            None => None,
            Some(&norm) => {
                let stats = GroupStats::of(site, norm)?;
                // Lines are read where they are, so there must be such a place.
                if site.body.ty(norm).shape() != site.body.ty(root).shape()
                    || !is_read_of_operand(stats.input())
                {
                    return None;
                }
                Some(stats)
            }
        };
        let leaves = code.leaves.iter().chain(norm.iter().map(|norm| &norm.input().leaves[0]));
        let strides = leaves.map(|leaf| ConvSite::input_strides(&leaf.layout)).collect();
        Some(Input {
            samples: conv.samples,
            dims: conv.dims,
            channels: conv.channels,
            dtype: conv.product,
            factor,
            norm,
            is_plain: is_read_of_operand(&code),
            code,
            strides,
        })
    }

    /// `value` of the site's body, `[N, spatial.., C]`, if it is an operand as it is stored.
    #[cfg(feature = "training")]
    pub(super) fn stored(site: &Site<'_>, value: ValueId) -> Option<Input> {
        let code = compile_elementwise(site.body, value, &[], site.operands)?.widened();
        if !is_read_of_operand(&code) {
            return None;
        }
        let ty = site.body.ty(value);
        let [samples, spatial @ .., channels] = ty.shape() else { return None };
        Some(Input {
            samples: *samples,
            dims: per_axis(spatial, 1),
            channels: *channels,
            dtype: ty.dtype(),
            factor: [1; SPATIAL],
            norm: None,
            strides: vec![ConvSite::input_strides(&code.leaves[0].layout)],
            code,
            is_plain: true,
        })
    }

    /// Whether height and width are doubled.
    pub(super) fn is_doubled(&self) -> bool {
        self.factor == [1, 2, 2]
    }

    /// Whether a norm is the first thing on the way in.
    pub(super) fn is_normalized(&self) -> bool {
        self.norm.is_some()
    }

    /// The same before it is doubled.
    pub(super) fn undoubled(&self) -> Input {
        let dims = std::array::from_fn(|axis| self.dims[axis] / self.factor[axis]);
        Input { dims, factor: [1; SPATIAL], ..self.clone() }
    }

    /// Whether operand `operand` is read.
    pub(super) fn reads(&self, operand: usize) -> bool {
        let mut leaves = self
            .code
            .leaves
            .iter()
            .chain(self.norm.iter().flat_map(|norm| norm.input().leaves.iter()));
        leaves.any(|leaf| leaf.source == Source::Operand(operand))
            || self.norm.as_ref().is_some_and(|norm| norm.affine_reads(operand))
    }

    /// Scratch of [`Input::prepare`], which stays in use while lines are read.
    pub(super) fn scratch_bytes(&self, threads: usize) -> usize {
        self.norm.as_ref().map_or(0, |norm| norm.scratch_bytes(threads))
    }

    /// Values that a [`Reader`] has as scratch.
    pub(super) fn program_len(&self) -> usize {
        self.code.program.scratch_len()
    }

    /// Measures what the norm needs, in the scratch from byte `at` on.
    ///
    /// # Safety
    /// As [`crate::kernel::KernelDef::run`].
    pub(super) unsafe fn prepare(&self, pool: &Pool, shared: Shared<'_>, at: usize) {
        if let Some(norm) = &self.norm {
            // SAFETY: passed on.
            unsafe { norm.run(pool, shared, at) };
        }
    }

    /// Computes a line into `to`, one position after the other.
    ///
    /// # Safety
    /// [`Input::prepare`] has run; `to` is writable for the line.
    #[inline(always)]
    pub(super) unsafe fn line<S: Simd>(
        &self,
        s: S,
        reader: &Reader<'_>,
        line: &Line,
        to: *mut f32,
    ) {
        let (first, last) = line.channels;
        let n = last - first;
        let [z, y, x] = line.start;
        let is_inside = |at: isize, axis: usize| at >= 0 && (at as usize) < self.dims[axis];
        // Columns before, within and behind the input.
        let width = self.dims[2] as isize;
        let (low, high) = if is_inside(z, 0) && is_inside(y, 1) {
            let low = (-x).clamp(0, line.n as isize);
            (low as usize, (width - x).clamp(low, line.n as isize) as usize)
        } else {
            (line.n, line.n)
        };
        // SAFETY: positions inside the input lie within its buffer.
        unsafe {
            std::ptr::write_bytes(to, 0, low * n);
            std::ptr::write_bytes(to.add(high * n), 0, (line.n - high) * n);
            if low == high {
                return;
            }
            let at = [z as usize / self.factor[0], y as usize / self.factor[1]];
            let start = (x + low as isize) as usize;
            let to = to.add(low * n);
            if self.factor[2] == 1 {
                s.outline(Cells { input: self, reader, line, at, start, n: high - low, to });
                return;
            }
            // Each element is computed once, at the far end, and repeated from there.
            let (cell, last) = (start / 2, (start + high - low - 1) / 2);
            let skip = high - low - (last + 1 - cell);
            let cells = to.add(skip * n);
            s.outline(Cells {
                input: self,
                reader,
                line,
                at,
                start: cell,
                n: last + 1 - cell,
                to: cells,
            });
            for i in 0..high - low {
                let from = cells.add(((start + i) / 2 - cell) * n);
                if from != to.add(i * n) {
                    copy(s, from, n, to.add(i * n));
                }
            }
        }
    }
}

/// Positions of a line that lie inside and are not repeated.
struct Cells<'a> {
    input: &'a Input,
    reader: &'a Reader<'a>,
    line: &'a Line,
    /// Plane and row.
    at: [usize; 2],
    start: usize,
    n: usize,
    to: *mut f32,
}

impl Cells<'_> {
    /// Element of leaf `leaf` (see [`Input::strides`]) at column `start + i` and the first channel.
    #[inline(always)]
    fn position(&self, leaf: usize, offset: usize, i: usize) -> usize {
        let strides = &self.input.strides[leaf];
        offset
            + self.line.sample * strides[0]
            + self.at[0] * strides[1]
            + self.at[1] * strides[2]
            + (self.start + i) * strides[3]
            + self.line.channels.0 * strides[4]
    }

    /// `n` elements of leaf `leaf`, number `index`, at position `i` as f32: where they are, or computed or copied to `to`.
    ///
    /// # Safety
    /// As [`Input::line`].
    #[inline(always)]
    unsafe fn read<S: Simd>(
        &self,
        s: S,
        leaf: &Leaf,
        index: usize,
        i: usize,
        n: usize,
        to: *mut f32,
    ) -> *const f32 {
        let stride = if n == 1 { 1 } else { self.input.strides[index][4] };
        let at = self.position(index, leaf.layout.offset, i);
        // SAFETY: passed on.
        unsafe {
            let slot = self.reader.shared.slot(leaf, at, stride, to);
            load_f32(s, leaf.layout.dtype, slot, n, to)
        }
    }
}

impl SimdJob for Cells<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Cells { input, reader, line, to, .. } = self;
        let (first, last) = line.channels;
        let n = last - first;
        let n_leaves = input.code.leaves.len();
        let program = &input.code.program;
        let mut slots = [SlotPtr { ptr: std::ptr::null(), stride: 0 }; MAX_SLOTS];
        // SAFETY: the caller of `Input::line` promises operands, and room for the line.
        unsafe {
            if input.is_plain {
                let leaf = &input.code.leaves[0];
                let [.., column, channel] = input.strides[0];
                let is_joined = channel == 1 && column == n && n > 1;
                let (rows, n) = if is_joined { (1, self.n * n) } else { (self.n, n) };
                for i in 0..rows {
                    let to = to.add(i * n);
                    let values = self.read(s, leaf, 0, i, n, to);
                    if values != to.cast_const() {
                        copy(s, values, n, to);
                    }
                }
                return;
            }
            if let Some(norm) = &input.norm {
                let affine = norm.affine(reader.shared, reader.norm_at, line.sample).skip(first);
                let leaf = &norm.input().leaves[0];
                for i in 0..self.n {
                    let to = to.add(i * n);
                    let values = self.read(s, leaf, n_leaves, i, n, to);
                    affine.apply(s, values, n, to);
                }
                if let [only] = &input.code.leaves[..]
                    && matches!(only.source, Source::Frontier(_))
                {
                    if !program.is_copy() {
                        slots[0] = SlotPtr { ptr: to.cast_const().cast(), stride: 1 };
                        program.run_row_in(s, self.n * n, &slots, to.cast(), reader.program);
                    }
                    return;
                }
            }
            for i in 0..self.n {
                let to = to.add(i * n);
                for (index, leaf) in input.code.leaves.iter().enumerate() {
                    let stride = match leaf.source {
                        Source::Frontier(_) => 1,
                        Source::Operand(_) | Source::Constant(_) => input.strides[index][4],
                    };
                    let at = self.position(index, leaf.layout.offset, i);
                    slots[index] = reader.shared.slot(leaf, at, stride, to);
                }
                program.run_row_in(s, n, &slots, to.cast(), reader.program);
            }
        }
    }
}

/// Whether `code` reads one operand and does nothing to it.
fn is_read_of_operand(code: &Elementwise) -> bool {
    code.program.is_copy() && matches!(code.leaves[0].source, Source::Operand(_))
}
