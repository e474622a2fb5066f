//! Rows of queries, keys and values on their way into attention: widened to f32, and, where the
//! body says so, normalized, weighted and rotated.

use ops::defs::binary::Binary;
use ops::{DType, Graph, Op, ValueId};

use crate::Layout;
use crate::program::{SlotPtr, load_f32};
use crate::simd::{MAX_LANES, Simd, SimdJob};
use crate::vec_math;

use super::body::{Leaf, leaf, operand_view};
use super::lanes::scale_to;
use super::matmul_tile::Words;
use super::shared::Shared;

/// One step from stored row to used row.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// `rms_norm` of the row.
    Rms { eps: f64 },
    /// Product with a vector of head dims; the leaf's last axis runs over them.
    Weight(Leaf),
    /// Rotation by angles that depend on the position: table `table` of the kernel.
    Rope { table: usize },
}

/// The rows `[batch.., S, H, D]` of one operand of `attention` or `rope`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeadRows {
    /// Which operand of the site.
    pub(crate) operand: usize,
    /// As the op sees it.
    pub(crate) layout: Layout,
    steps: Vec<Step>,
}

/// Cosines and sines of one operand `[S, D / 2]` of angles, made once per run: for each position D
/// factors of the row, then D of the row with neighbors swapped.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RopeTable {
    angles: Leaf,
}

impl RopeTable {
    /// f32 values of scratch: two cosines and two sines for each angle.
    pub(crate) fn len(&self) -> usize {
        4 * self.angles.layout.count()
    }

    /// Number of positions.
    pub(crate) fn positions(&self) -> usize {
        self.angles.layout.shape[0]
    }

    /// Writes the factors of position `position` to its part of `table`.
    ///
    /// # Safety
    /// The angles' buffer holds its layout; `table` has [`RopeTable::len`] values.
    #[inline(always)]
    pub(crate) unsafe fn fill<S: Simd>(
        &self,
        s: S,
        shared: Shared<'_>,
        position: usize,
        table: *mut f32,
    ) {
        let Layout { shape, strides, offset, .. } = &self.angles.layout;
        let n = shape[1];
        // SAFETY: passed on.
        unsafe {
            let at = offset + position * strides[0];
            let angles = shared.slot(&self.angles, at, strides[1], std::ptr::null());
            let cosines = table.add(4 * position * n);
            let sines = cosines.add(2 * n);
            let x = load_f32(s, DType::F32, angles, n, sines);
            let (mut cosine, mut sine) = ([0f32; MAX_LANES], [0f32; MAX_LANES]);
            // From the end, because pairs of sines may replace the angles.
            for i in (0..n.div_ceil(S::LANES)).rev().map(|i| i * S::LANES) {
                let count = S::LANES.min(n - i);
                let angle = s.load_n(x.add(i), count);
                s.store(cosine.as_mut_ptr(), vec_math::cos(s, angle));
                s.store(sine.as_mut_ptr(), vec_math::sin(s, angle));
                for (j, (&cosine, &sine)) in cosine.iter().zip(&sine).enumerate().take(count) {
                    let pair = 2 * (i + j);
                    *cosines.add(pair) = cosine;
                    *cosines.add(pair + 1) = cosine;
                    *sines.add(pair) = -sine;
                    *sines.add(pair + 1) = sine;
                }
            }
        }
    }
}

impl HeadRows {
    /// The rows behind `value`: an operand, then any of cast, `rms_norm`, a product with a vector of
    /// head dims, and `rope`, whose tables are appended to `tables`.
    pub(crate) fn of(
        body: &Graph,
        value: ValueId,
        operands: &[Layout],
        tables: &mut Vec<RopeTable>,
    ) -> Option<HeadRows> {
        if let Some((operand, layout)) = operand_view(body, value, operands) {
            return Some(HeadRows { operand, layout, steps: vec![] });
        }
        let args = &body.node(value).args;
        let op = body.op(value)?;
        let (source, step) = if let Op::Cast(cast) = op {
            if !cast.dtype.is_float() {
                return None;
            }
            (args[0], None)
        } else if let Op::RmsNorm(norm) = op {
            (args[0], Some(Step::Rms { eps: norm.eps }))
        } else if let Op::Binary(Binary::Mul) = op {
            let weight = |arg: ValueId| {
                let mut arg = arg;
                while let Some(Op::Cast(_) | Op::Broadcast(_)) = body.op(arg) {
                    arg = body.node(arg).args[0];
                }
                let leaf = leaf(body, arg, operands)?;
                let rank = leaf.layout.rank();
                let is_vector = (0..rank - 1)
                    .all(|axis| leaf.layout.shape[axis] == 1 || leaf.layout.strides[axis] == 0);
                (is_vector && leaf.layout.dtype.is_float()).then_some(leaf)
            };
            if body.ty(args[0]).shape() != body.ty(value).shape() {
                (args[1], Some(Step::Weight(weight(args[0])?)))
            } else {
                (args[0], Some(Step::Weight(weight(args[1])?)))
            }
        } else if let Op::Rope(_) = op {
            let angles = leaf(body, args[1], operands)?;
            let table = RopeTable { angles };
            let index = tables.iter().position(|known| *known == table).unwrap_or_else(|| {
                tables.push(table);
                tables.len() - 1
            });
            (args[0], Some(Step::Rope { table: index }))
        } else {
            return None;
        };
        if body.ty(source).shape() != body.ty(value).shape() {
            return None;
        }
        let mut rows = HeadRows::of(body, source, operands, tables)?;
        rows.steps.extend(step);
        Some(rows)
    }

    /// Whether rows are used as they are stored.
    pub(crate) fn is_plain(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether stored rows are contiguous elements of type `dtype`, used as they are.
    pub(super) fn are_rows_of(&self, dtype: DType) -> bool {
        let last = self.layout.rank() - 1;
        let is_contiguous = self.layout.strides[last] == 1 || self.layout.shape[last] == 1;
        self.is_plain() && self.layout.dtype == dtype && is_contiguous
    }

    /// Whether stored rows are `words`, used as they are: none starts or ends within a word.
    pub(super) fn are_words(&self, words: Words) -> bool {
        let Layout { shape, strides, offset, .. } = &self.layout;
        let last = shape.len() - 1;
        let is_whole = |elements: &usize| elements.is_multiple_of(words.depths());
        self.are_rows_of(words.dtype())
            && is_whole(offset)
            && is_whole(&shape[last])
            && strides[..last].iter().all(is_whole)
    }

    /// Where element `at` lies, which may be outside the buffer.
    #[inline(always)]
    pub(crate) fn operand_element(&self, shared: Shared<'_>, at: usize) -> *const u8 {
        shared.operand(self.operand).wrapping_add(at * self.layout.dtype.size())
    }

    /// The step from one position of the sequence to the next.
    pub(crate) fn seq_stride(&self) -> usize {
        self.layout.strides[self.layout.rank() - 3]
    }

    /// The row whose first element is `at`, of sequence position `position`: as it is stored, or
    /// made in `to`.
    ///
    /// # Safety
    /// The row lies within the operand's buffer, `to` is writable for it, `tables` are filled.
    #[inline(always)]
    pub(crate) unsafe fn row<S: Simd>(
        &self,
        s: S,
        shared: Shared<'_>,
        at: usize,
        position: usize,
        tables: &[*const f32],
        to: *mut f32,
    ) -> *const f32 {
        s.outline(MakeRow { rows: self, shared, at, position, tables, to })
    }
}

/// [`HeadRows::row`], in a function of its own.
struct MakeRow<'a> {
    rows: &'a HeadRows,
    shared: Shared<'a>,
    at: usize,
    position: usize,
    tables: &'a [*const f32],
    to: *mut f32,
}

impl SimdJob for MakeRow<'_> {
    type Output = *const f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> *const f32 {
        let MakeRow { rows, shared, at, position, tables, to } = self;
        let HeadRows { operand, layout, steps } = rows;
        let rank = layout.rank();
        let (n, stride) = (layout.shape[rank - 1], layout.strides[rank - 1]);
        let dtype = layout.dtype;
        // SAFETY: passed on.
        unsafe {
            let ptr = shared.operand(*operand).add(at * dtype.size());
            let stride = if n == 1 { 1 } else { stride as isize };
            let mut x = load_f32(s, dtype, SlotPtr { ptr, stride }, n, to);
            for step in steps {
                match step {
                    Step::Rms { eps } => rms_norm(s, *eps, x, n, to),
                    Step::Weight(leaf) => weigh(s, shared, leaf, x, n, to),
                    Step::Rope { table } => {
                        rotate(s, x, tables[*table].add(2 * position * n), n, to);
                    }
                }
                x = to;
            }
            x
        }
    }
}

/// `to = x * weight`.
///
/// # Safety
/// As [`HeadRows::row`].
#[inline(always)]
unsafe fn weigh<S: Simd>(
    s: S,
    shared: Shared<'_>,
    leaf: &Leaf,
    x: *const f32,
    n: usize,
    to: *mut f32,
) {
    let layout = &leaf.layout;
    let last = layout.rank() - 1;
    let stride = if layout.shape[last] == 1 { 0 } else { layout.strides[last] };
    let mut buffer = [0f32; MAX_LANES];
    let mut i = 0;
    // SAFETY: passed on.
    unsafe {
        while i < n {
            let count = S::LANES.min(n - i);
            let slot = shared.slot(leaf, layout.offset + i * stride, stride, std::ptr::null());
            let weight = load_f32(s, layout.dtype, slot, count, buffer.as_mut_ptr());
            let product = s.mul(s.load_n(x.add(i), count), s.load_n(weight, count));
            s.store_n(to.add(i), product, count);
            i += count;
        }
    }
}

/// `to = x / sqrt(mean square + eps)`. Head dims are few: each lane adds a handful of squares, so the
/// sum needs no compensation.
///
/// # Safety
/// `x` and `to`, the same or apart, have `n` values.
#[inline(always)]
unsafe fn rms_norm<S: Simd>(s: S, eps: f64, x: *const f32, n: usize, to: *mut f32) {
    let mut squares = s.splat(0.0);
    // SAFETY: lanes below n.
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            let x = s.load_n(x.add(i), S::LANES.min(n - i));
            squares = s.mul_add(x, x, squares);
        }
        let mean = f64::from(s.reduce_add(squares)) / n as f64;
        scale_to(s, x, n, (1.0 / (mean + eps).sqrt()) as f32, to);
    }
}

/// Rotates pairs: each element times its cosine, and its neighbor times the sine.
///
/// # Safety
/// `x` and `to`, the same or apart, have `n` values; `table` has twice as many, those of the
/// position.
#[inline(always)]
unsafe fn rotate<S: Simd>(s: S, x: *const f32, table: *const f32, n: usize, to: *mut f32) {
    // SAFETY: lanes below n, which is even, as vectors' lengths are.
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            let count = S::LANES.min(n - i);
            let x = s.load_n(x.add(i), count);
            let (cosines, sines) =
                (s.load_n(table.add(i), count), s.load_n(table.add(n + i), count));
            let rotated = s.mul_add(x, cosines, s.mul(s.swap_neighbors(x), sines));
            s.store_n(to.add(i), rotated, count);
        }
    }
}
