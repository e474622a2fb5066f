//! Products of f32 as digits (see [`super`]) in tile registers.
//!
//! A row's digits by a column's are whole numbers, summed exactly in 32 bits over a block of the depth: one sum for each
//! number that two digits' positions sum to, 0 to 2. Those become one f32, which the lines' exponents scale. The
//! products of the positions left out are at most `2^-22` of the largest element of the row times the largest of the
//! column, and of either sign. For two lines of which elements are much smaller than the largest, those are added, and
//! those of what the digits leave of each.

use std::arch::x86_64::*;

use crate::simd::{TILE_ROWS as ROWS, TILE_WORDS as WORDS, TileSession};

use super::loops::{
    Operands, ROWS_A_UNIT, Sums, Waiting, one, one_more, store, two, two_and_add, two_more, zero,
};
use super::{DigitProduct, LOW_SPREAD, MOST_SPREAD, NEXT_BYTES, Scales, VECTORS};

/// What the exponents of products whose positions sum to 4 are less than of those whose positions sum to 2.
const MORE_EXPONENT: f32 = -16.0;

/// Which of the lines' exponents scale the sums.
#[derive(Clone, Copy)]
struct Exponents {
    /// Whether A's are of low digits, and B's.
    are_low: [usize; 2],
    /// What is added to them.
    more: f32,
    /// Whether the sums count only where the two lines' spreads are wide.
    is_rest: bool,
}

impl Exponents {
    const HIGH: Self = Self { are_low: [0, 0], more: 0.0, is_rest: false };
}

impl TileSession {
    /// Computes the sums of some rows by a panel's columns.
    ///
    /// # Safety
    /// The operands are as [`DigitProduct`] says; the sums are writable for `rows` by whole vectors of columns, and
    /// initialized if they are added to.
    pub unsafe fn multiply_digits(&mut self, product: &DigitProduct) {
        self.set_shape([ROWS; 2]);
        // SAFETY: the session's proof says that the CPU has AVX-512; the rest is passed on.
        unsafe { multiply(product) }
    }
}

/// # Safety
/// As [`TileSession::multiply_digits`], in a session whose registers are of full shape.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn multiply(product: &DigitProduct) {
    let p = product;
    let mut sums = [Sums::new(), Sums::new()];
    // The tile of rows whose sums wait to be added while the next one's are made.
    let mut waiting: Option<Tile<'_>> = None;
    let piece = p.units * NEXT_BYTES;
    // The last ones may overlap: what is too far is the next block's turn.
    let last_piece = p.next_bytes.saturating_sub(piece);
    // SAFETY: the operands have their digits and scales where the caller says, which each tile of rows is a part of.
    unsafe {
        for (index, row) in (0..p.rows).step_by(ROWS).enumerate() {
            let tile = Tile {
                product: p,
                a: p.a.add(row * p.a_stride),
                scales: p.a_scales.add(row / ROWS),
                to: p.sums.add(row * p.sums_stride),
                rows: (p.rows - row).min(ROWS),
            };
            // The sums are added to last.
            for row in 0..tile.rows {
                for vector in 0..p.vectors {
                    let to = tile.to.add(row * p.sums_stride + vector * WORDS);
                    _mm_prefetch::<_MM_HINT_ET0>(to.cast());
                }
            }
            let [this, other] = &mut sums;
            let (this, other) = if index % 2 == 0 { (this, other) } else { (other, this) };
            let next = p.next.wrapping_byte_add((index * piece).min(last_piece));
            let before = waiting.take().map(|tile| (tile, &*other));
            tile.multiply([0, 0], next, this, before);
            let is_wide = tile.is_wide();
            if is_wide || p.vectors < VECTORS {
                tile.add(this, Exponents::HIGH, p.accumulate);
                if is_wide {
                    tile.multiply_rest(this);
                }
            } else {
                waiting = Some(tile);
            }
        }
        if let Some(tile) = waiting {
            let index = (p.rows - 1) / ROWS;
            tile.add(&sums[index % 2], Exponents::HIGH, p.accumulate);
        }
    }
}

/// At most 16 rows of a product.
struct Tile<'a> {
    product: &'a DigitProduct,
    a: *const f32,
    scales: *const Scales,
    to: *mut f32,
    rows: usize,
}

impl Tile<'_> {
    /// Whether the products that are mostly left out count.
    ///
    /// # Safety
    /// The operands have their scales.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn is_wide(&self) -> bool {
        // SAFETY: the caller's promise.
        let [a, b] = unsafe { self.spreads() };
        a + b > MOST_SPREAD
    }

    /// The columns of a vector whose spread and the row's are wide.
    ///
    /// # Safety
    /// The operands have their scales.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn wide_columns(&self, row: usize, vector: usize) -> u16 {
        // SAFETY: the caller's promise.
        unsafe {
            let spread = _mm512_set1_ps((*self.scales)[2][row]);
            let columns = self.of_columns(vector, 2);
            let most = _mm512_set1_ps(MOST_SPREAD);
            _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_add_ps(spread, columns), most)
        }
    }

    /// One of the [`Scales`] of a vector of columns.
    ///
    /// # Safety
    /// The panel has so many vectors.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn of_columns(&self, vector: usize, which: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps((&raw const (*self.product.b_scales.add(vector))[which]).cast()) }
    }

    /// The widest spread of the rows, and of the columns.
    ///
    /// # Safety
    /// The operands have their scales.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn spreads(&self) -> [f32; 2] {
        // SAFETY: the caller's promise; a mask leaves out rows that are not there.
        unsafe {
            let mask = ((1u32 << self.rows) - 1) as u16;
            let rows = _mm512_maskz_loadu_ps(mask, (&raw const (*self.scales)[2]).cast());
            let last = self.of_columns(self.product.vectors - 1, 2);
            let columns = _mm512_max_ps(self.of_columns(0, 2), last);
            [_mm512_reduce_max_ps(rows), _mm512_reduce_max_ps(columns)]
        }
    }

    /// Makes the sums of digits: A's high or low ones by B's. Meanwhile those of another tile are added.
    ///
    /// # Safety
    /// The operands have their digits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn multiply(
        &self,
        [a, b]: [usize; 2],
        next: *const f32,
        sums: &mut Sums,
        before: Option<(Self, &Sums)>,
    ) {
        let p = self.product;
        let mut operands = Operands {
            a: self.a.wrapping_add(a * p.a_low),
            a_stride: p.a_stride,
            b: p.b.wrapping_add(b * p.b_low),
            next,
        };
        let mut units = p.units;
        // SAFETY: the caller's promise; the registers keep the sums from loop to loop. Only tiles of two vectors wait.
        unsafe {
            zero();
            if let Some((tile, waiting_sums)) = before {
                let mut waiting = Waiting {
                    sums: waiting_sums,
                    rows: (&raw const (*tile.scales)[0]).cast(),
                    columns: [self.of_columns(0, 0), self.of_columns(1, 0)],
                    to: tile.to,
                    to_stride: p.sums_stride,
                    accumulate: p.accumulate,
                };
                // The tile before another one has all of its rows.
                let with = units.min(ROWS / ROWS_A_UNIT);
                operands = two_and_add(operands, with, sums, &mut waiting);
                tile.add_from(with * ROWS_A_UNIT, waiting_sums, Exponents::HIGH, p.accumulate);
                units -= with;
            }
            if p.vectors == VECTORS {
                two(operands, units, sums);
            } else {
                one(operands, units, sums);
            }
            store(sums);
        }
    }

    /// Adds what the digits' first products leave out.
    ///
    /// # Safety
    /// As [`Tile::multiply`].
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn multiply_rest(&self, sums: &mut Sums) {
        let p = self.product;
        // SAFETY: the caller's promise; low digits are those of lines that have them, by their spread.
        unsafe {
            let [a_spread, b_spread] = self.spreads();
            for (spread, are_low) in [(a_spread, [1, 0]), (b_spread, [0, 1])] {
                if spread > LOW_SPREAD {
                    self.multiply(are_low, p.b, sums, None);
                    self.add(sums, Exponents { are_low, more: 0.0, is_rest: true }, true);
                }
            }
            let operands = Operands { a: self.a, a_stride: p.a_stride, b: p.b, next: p.b };
            zero();
            if p.vectors == VECTORS {
                two_more(operands, p.units, sums);
            } else {
                one_more(operands, p.units, sums);
            }
            store(sums);
            let exponents = Exponents { are_low: [0, 0], more: MORE_EXPONENT, is_rest: true };
            self.add(sums, exponents, true);
        }
    }

    /// Adds what sums of digits' products stand for.
    ///
    /// # Safety
    /// The digits' sums that `exponents` says are there; the sums are writable, and initialized if they are added to.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn add(&self, sums: &Sums, exponents: Exponents, accumulate: bool) {
        // SAFETY: passed on.
        unsafe { self.add_from(0, sums, exponents, accumulate) }
    }

    /// The same, from row `first` on.
    ///
    /// # Safety
    /// As [`Tile::add`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn add_from(&self, first: usize, sums: &Sums, exponents: Exponents, accumulate: bool) {
        let Exponents { are_low: [a_low, b_low], more, is_rest } = exponents;
        let p = self.product;
        let sums = sums.0.as_ptr().cast::<i32>();
        // SAFETY: the caller's promise.
        unsafe {
            let (first_place, second_place) = (_mm512_set1_ps(65536.0), _mm512_set1_ps(256.0));
            let mask = if accumulate { u16::MAX } else { 0 };
            for vector in 0..p.vectors {
                let columns = self.of_columns(vector, b_low);
                let columns = _mm512_add_ps(columns, _mm512_set1_ps(more));
                for row in first..self.rows {
                    let load = |position: usize| {
                        let at = sums.add(((position * VECTORS + vector) * ROWS + row) * WORDS);
                        _mm512_cvtepi32_ps(_mm512_load_si512(at.cast()))
                    };
                    let sum = _mm512_fmadd_ps(load(1), second_place, load(2));
                    let sum = _mm512_fmadd_ps(load(0), first_place, sum);
                    let exponent = _mm512_set1_ps((*self.scales)[a_low][row]);
                    let sum = _mm512_scalef_ps(sum, _mm512_add_ps(exponent, columns));
                    let to = self.to.add(row * p.sums_stride + vector * WORDS);
                    // As the loop does it: a sum that nothing is added to is added to zero.
                    let before = _mm512_maskz_loadu_ps(mask, to);
                    // What a row's sums are must not depend on the other rows of its tile, nor on the other columns.
                    let counts = if is_rest { self.wide_columns(row, vector) } else { u16::MAX };
                    _mm512_storeu_ps(to, _mm512_mask_add_ps(before, counts, before, sum));
                }
            }
        }
    }
}
