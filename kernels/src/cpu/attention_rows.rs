//! Makes [`HeadRows`]: widened to f32, and, where the body says so, normalized, weighted and rotated.
//!
//! A [`RowTable`] is filled once per run, each row of it padded with zeros to whole vectors. That of
//! angles has for each position the cosines that D elements are multiplied with, then the sines that
//! their neighbors are.

use ops::DType;

use crate::Layout;
use crate::body::Leaf;
use crate::head_rows::{HeadRows, Pass, RowTable};
use crate::program::{SlotPtr, load_f32};
use crate::simd::{MAX_LANES, Simd};
use crate::vec_math;

use super::lanes::{copy, each, load_from, load_from_bf16, load_whole, store_to};
use super::shared::Shared;
use super::words::Words;

/// `n` elements in whole vectors of any instruction set.
pub(crate) fn padded(n: usize) -> usize {
    n.next_multiple_of(MAX_LANES)
}

impl RowTable {
    /// f32 values of scratch.
    pub(crate) fn len(&self) -> usize {
        self.positions() * self.position_len()
    }

    /// Number of positions that are filled apart.
    pub(crate) fn positions(&self) -> usize {
        match self {
            RowTable::Rope(angles) => angles.layout.shape[0],
            RowTable::Weight { .. } => 1,
        }
    }

    /// f32 values of one position.
    fn position_len(&self) -> usize {
        match self {
            RowTable::Rope(angles) => 2 * padded(2 * angles.layout.shape[1]),
            RowTable::Weight { d, .. } => padded(*d),
        }
    }

    /// Writes the factors of position `position` to its part of `table`.
    ///
    /// # Safety
    /// The operand's buffer holds its layout; `table` has [`RowTable::len`] values.
    #[inline(always)]
    pub(crate) unsafe fn fill<S: Simd>(
        &self,
        s: S,
        shared: Shared<'_>,
        position: usize,
        table: *mut f32,
    ) {
        let len = self.position_len();
        // SAFETY: passed on; each position has `len` values.
        unsafe {
            let table = table.add(position * len);
            for i in (0..len).step_by(S::LANES) {
                s.store(table.add(i), s.splat(0.0));
            }
            match self {
                RowTable::Rope(angles) => fill_rope(s, shared, angles, position, table, len / 2),
                RowTable::Weight { vector, d } => {
                    let layout = &vector.layout;
                    let last = layout.rank() - 1;
                    let stride = if layout.shape[last] == 1 { 0 } else { layout.strides[last] };
                    let slot = shared.slot(vector, layout.offset, stride, std::ptr::null());
                    let weight = load_f32(s, layout.dtype, slot, *d, table);
                    if weight != table.cast_const() {
                        copy(s, weight, *d, table);
                    }
                }
            }
        }
    }
}

/// Cosines at `table`, sines `sines` values further.
///
/// # Safety
/// As [`RowTable::fill`].
#[inline(always)]
unsafe fn fill_rope<S: Simd>(
    s: S,
    shared: Shared<'_>,
    angles: &Leaf,
    position: usize,
    cosines: *mut f32,
    sines: usize,
) {
    let Layout { shape, strides, offset, dtype } = &angles.layout;
    let n = shape[1];
    // SAFETY: passed on.
    unsafe {
        let sines = cosines.add(sines);
        let slot =
            shared.slot(angles, offset + position * strides[0], strides[1], std::ptr::null());
        let x = load_f32(s, *dtype, slot, n, sines);
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

impl HeadRows {
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

    /// Makes the row whose first element is `at`, of sequence position `position`: `put(i, x, n)` gets
    /// the `n` elements from `i` on in the lanes of `x`, whole vectors but for the last.
    ///
    /// # Safety
    /// The row lies within the operand's buffer, `made` has [`padded`] values, `tables` are filled,
    /// `put` may be called for all elements.
    #[inline(always)]
    pub(crate) unsafe fn row<S: Simd>(
        &self,
        s: S,
        shared: Shared<'_>,
        (at, position): (usize, usize),
        tables: &[*const f32],
        made: *mut f32,
        put: impl Fn(usize, S::F, usize),
    ) {
        let HeadRows { operand, layout, .. } = self;
        let last = layout.rank() - 1;
        let n = layout.shape[last];
        let dtype = layout.dtype;
        let stride = if n == 1 { 1 } else { layout.strides[last] as isize };
        // SAFETY: lanes below n.
        unsafe {
            let ptr = shared.operand(*operand).add(at * dtype.size());
            if (dtype, stride) == (DType::Bf16, 1) {
                let load = load_from_bf16(s, ptr.cast());
                self.run_passes(s, n, position, tables, made, load, put);
                return;
            }
            let from = load_f32(s, dtype, SlotPtr { ptr, stride }, n, made);
            self.run_passes(s, n, position, tables, made, load_from(s, from), put);
        }
    }

    /// [`HeadRows::row`] of what `load(i, n)` gives.
    ///
    /// # Safety
    /// As there; `load` may be called for all elements, and before they are made.
    #[inline(always)]
    #[allow(
        clippy::too_many_arguments,
        reason = "a row, what it is multiplied with, and both ends"
    )]
    unsafe fn run_passes<S: Simd>(
        &self,
        s: S,
        n: usize,
        position: usize,
        tables: &[*const f32],
        made: *mut f32,
        load: impl Fn(usize, usize) -> S::F,
        put: impl Fn(usize, S::F, usize),
    ) {
        // SAFETY: passed on; `made` has whole vectors.
        unsafe {
            let keep = store_to(s, made);
            match &self.passes[..] {
                [] => each(
                    n,
                    S::LANES,
                    #[inline(always)]
                    |i, n| put(i, load(i, n), n),
                ),
                [only] => only.run(s, n, position, tables, load, put),
                [first, between @ .., last] => {
                    first.run(s, n, position, tables, load, keep);
                    for pass in between {
                        pass.run(s, n, position, tables, load_whole(s, made), keep);
                    }
                    last.run(s, n, position, tables, load_whole(s, made), put);
                }
            }
        }
    }
}

impl Pass {
    /// Norm and weight of the elements from `i` on.
    ///
    /// # Safety
    /// As [`HeadRows::row`].
    #[inline(always)]
    unsafe fn weigh<S: Simd>(
        &self,
        s: S,
        scale: S::F,
        tables: &[*const f32],
        i: usize,
        x: S::F,
    ) -> S::F {
        let x = if self.norm.is_some() { s.mul(x, scale) } else { x };
        match self.weight {
            None => x,
            // SAFETY: tables have whole vectors of factors.
            Some(table) => s.mul(x, unsafe { s.load(tables[table].add(i)) }),
        }
    }

    /// Runs it on a row of `n` elements.
    ///
    /// # Safety
    /// As [`HeadRows::row`].
    #[inline(always)]
    unsafe fn run<S: Simd>(
        &self,
        s: S,
        n: usize,
        position: usize,
        tables: &[*const f32],
        load: impl Fn(usize, usize) -> S::F,
        put: impl Fn(usize, S::F, usize),
    ) {
        let mut scale = s.splat(1.0);
        if let Some(eps) = self.norm {
            // Head dims are few: each lane adds a handful of squares, so the sum needs no compensation.
            let mut squares = s.splat(0.0);
            let mut i = 0;
            while i < n {
                let x = load(i, S::LANES.min(n - i));
                squares = s.mul_add(x, x, squares);
                i += S::LANES;
            }
            let mean = s.reduce_add(squares) / n as f32;
            scale = s.splat(1.0 / (mean + eps as f32).sqrt());
        }
        // SAFETY: tables have whole vectors of factors.
        unsafe {
            let Some(table) = self.rope else {
                each(
                    n,
                    S::LANES,
                    #[inline(always)]
                    |i, n| put(i, self.weigh(s, scale, tables, i, load(i, n)), n),
                );
                return;
            };
            // Each element times its cosine, and its neighbor times the sine.
            let sines = padded(n);
            let cosines = tables[table].add(2 * sines * position);
            each(
                n,
                S::LANES,
                #[inline(always)]
                |i, n| {
                    let x = self.weigh(s, scale, tables, i, load(i, n));
                    let turned = s.mul(s.swap_neighbors(x), s.load(cosines.add(sines + i)));
                    put(i, s.mul_add(x, s.load(cosines.add(i)), turned), n);
                },
            );
        }
    }
}
