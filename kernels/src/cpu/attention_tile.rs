//! The one inner loop of attention: a register tile of `C[r, q] += sum_t A[r, t] B[t, q]`, where
//! columns are queries. Both products have this form, transposed: scores are keys times queries
//! (`t` runs over head dims), outputs are values times weights (`t` runs over keys). So the softmax
//! works lane by lane, and rows of keys and values are broadcast from where they are.
//!
//! A and B hold words: one f32, or two neighbors along `t` in bf16. What becomes of a tile's sums is
//! up to a [`Finish`], which gets them in registers. Tile registers give their sums to memory: those of a few rows at a
//! time pass through the nearest cache on their way to it.

use std::mem::MaybeUninit;

use crate::simd::{MAX_LANES, Simd, SimdJob, TILE_ROWS, TILE_WORDS, TileProduct, TileSession};

use super::attention_softmax::MAX_VECTORS;
use super::matmul_tile::Arithmetic;

/// Factors of a product; counts and steps are in words.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    /// A, read word by word.
    pub(super) a: *const f32,
    /// Step of A along the axis whose neighbors are not adjacent.
    pub(super) a_stride: usize,
    /// B: for each t, the query lanes.
    pub(super) b: *const f32,
    /// Terms of each sum; in tile registers whole tiles, what is too many being zero in B and finite in A.
    pub(super) terms: usize,
    /// What the sums start from, rows of query lanes; null for zero.
    pub(super) start: *const f32,
}

/// What becomes of the sums.
pub(super) trait Finish: Copy {
    /// Where rows of sums end up unchanged, if they do; else null.
    #[inline(always)]
    fn in_place(self) -> *mut f32 {
        std::ptr::null_mut()
    }

    /// Takes rows `row..row + R` of the product.
    ///
    /// # Safety
    /// As the implementation says.
    unsafe fn finish<S: Simd, const R: usize, const V: usize>(
        self,
        s: S,
        row: usize,
        sums: [[S::F; V]; R],
    );
}

/// The product's `rows` rows of `V` vectors. `ROWS`: neighbors in A are rows; else they are terms, as they always
/// are for tile registers.
///
/// # Safety
/// A, B and the start have the words that the counts and strides reach; the finish may be called
/// for all rows.
#[inline(always)]
pub(super) unsafe fn product<S, A, F, const V: usize, const ROWS: bool>(
    s: S,
    arithmetic: A,
    factors: Factors,
    rows: usize,
    finish: F,
) where
    S: Simd,
    A: Arithmetic,
    F: Finish,
{
    // Tile registers come with the longest vectors: there is no code for others.
    if const { A::HAS_TILES && S::LANES == MAX_LANES } {
        let session = arithmetic.tiles();
        if !session.is_null() && factors.terms.is_multiple_of(TILE_WORDS) {
            arithmetic.outline(s, InTileRegisters::<F, V> { session, factors, rows, finish });
            return;
        }
    }
    let mut row = 0;
    macro_rules! tiles {
        ($height:literal) => {
            let count = (rows - row) / $height;
            if count > 0 {
                arithmetic.outline(
                    s,
                    Tiles::<A, F, $height, V, ROWS> { arithmetic, factors, row, count, finish },
                );
                row += count * $height;
            }
        };
    }
    // Tile heights: as many sums as registers hold beside a row of B and one word of A. They are
    // even, so that pairs of rows stay together; only the last row may be alone. Constants, so that there
    // is no code for other heights.
    if const { S::REGISTERS == 32 && V == 1 } {
        tiles!(16);
    }
    if const { S::REGISTERS == 32 && V == 2 || S::REGISTERS == 16 && V == 1 } {
        tiles!(12);
    }
    if const { S::REGISTERS == 32 && V <= 3 } {
        tiles!(8);
    }
    if const { S::REGISTERS == 32 && V > 3 || S::REGISTERS == 16 && V > 1 || S::REGISTERS < 16 } {
        tiles!(6);
    }
    tiles!(4);
    tiles!(2);
    tiles!(1);
    debug_assert_eq!(row, rows);
}

/// `count` tiles of `R` rows by `V` vectors, in a function of its own: sums take all registers.
struct Tiles<A, F, const R: usize, const V: usize, const ROWS: bool> {
    arithmetic: A,
    factors: Factors,
    row: usize,
    count: usize,
    finish: F,
}

impl<A, F, const R: usize, const V: usize, const ROWS: bool> SimdJob for Tiles<A, F, R, V, ROWS>
where
    A: Arithmetic,
    F: Finish,
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Tiles { arithmetic, factors, row, count, finish } = self;
        let Factors { a, a_stride, b, terms, start } = factors;
        let (a_row, a_step) = if ROWS { (1, a_stride) } else { (a_stride, 1) };
        let lanes = V * S::LANES;
        // SAFETY: the caller of `product` promises the words.
        unsafe {
            for row in (row..row + count * R).step_by(R) {
                let mut sums = [[s.splat(0.0); V]; R];
                if !start.is_null() {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = s.load(start.add((row + r) * lanes + v * S::LANES));
                        }
                    }
                }
                let (mut a, mut b) = (a.add(row * a_row), b);
                for _ in 0..terms {
                    let lanes: [S::F; V] = std::array::from_fn(|v| s.load(b.add(v * S::LANES)));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = s.splat(a.add(r * a_row).read_unaligned());
                        for (sum, &lanes) in sums.iter_mut().zip(&lanes) {
                            *sum = arithmetic.multiply_add(s, x, lanes, *sum);
                        }
                    }
                    a = a.wrapping_add(a_step);
                    b = b.wrapping_add(V * S::LANES);
                }
                finish.finish::<S, R, V>(s, row, sums);
            }
        }
    }
}

/// [`product`] in tile registers.
struct InTileRegisters<F, const V: usize> {
    session: *mut TileSession,
    factors: Factors,
    rows: usize,
    finish: F,
}

/// Sums on their way from tile registers.
#[repr(C, align(64))]
struct Passing([MaybeUninit<f32>; 2 * TILE_ROWS * MAX_VECTORS * MAX_LANES]);

impl<F: Finish, const V: usize> SimdJob for InTileRegisters<F, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(V <= MAX_VECTORS, "the sums of a block fit") };
        let InTileRegisters { session, factors, rows, finish } = self;
        let Factors { a, a_stride, b, terms, start } = factors;
        let lanes = V * S::LANES;
        let in_place = finish.in_place();
        let is_in_place = !in_place.is_null() && (start.is_null() || start == in_place);
        let mut passing = Passing([MaybeUninit::uninit(); _]);
        let passing = passing.0.as_mut_ptr().cast::<f32>();
        // SAFETY: the caller of `product` promises the words, and whoever made the arithmetic the session.
        unsafe {
            for first in (0..rows).step_by(2 * TILE_ROWS) {
                let count = (rows - first).min(2 * TILE_ROWS);
                let sums = if is_in_place { in_place.add(first * lanes) } else { passing };
                let a = a.add(first * a_stride);
                for v in (0..V).step_by(2) {
                    let product = TileProduct {
                        a,
                        a_stride,
                        b: b.add(v * S::LANES),
                        b_stride: lanes,
                        steps: terms / TILE_WORDS,
                        sums: sums.add(v * S::LANES),
                        sums_stride: lanes,
                        accumulate: is_in_place && !start.is_null(),
                        rows: count,
                        next: a.wrapping_add(2 * TILE_ROWS * a_stride),
                    };
                    (*session).multiply(count, (V - v).min(2), &product);
                }
                if is_in_place {
                    continue;
                }
                let mut row = 0;
                macro_rules! finish {
                    ($height:literal) => {
                        while count - row >= $height {
                            let mut taken = [[s.splat(0.0); V]; $height];
                            for (r, taken) in taken.iter_mut().enumerate() {
                                for (v, sum) in taken.iter_mut().enumerate() {
                                    let at = (row + r) * lanes + v * S::LANES;
                                    *sum = s.load(passing.add(at));
                                    if !start.is_null() {
                                        *sum = s.add(*sum, s.load(start.add(first * lanes + at)));
                                    }
                                }
                            }
                            finish.finish::<S, $height, V>(s, first + row, taken);
                            row += $height;
                        }
                    };
                }
                // Heights that the registers hold; even ones, so that pairs of rows stay together.
                if const { V <= 2 } {
                    finish!(8);
                } else {
                    finish!(4);
                }
                finish!(2);
                finish!(1);
            }
        }
    }
}

/// Writes rows of query lanes.
#[derive(Clone, Copy)]
pub(super) struct Store {
    /// `[rows, lanes]`.
    pub(super) to: *mut f32,
}

impl Finish for Store {
    #[inline(always)]
    fn in_place(self) -> *mut f32 {
        self.to
    }

    /// # Safety
    /// `to` is writable for the rows.
    #[inline(always)]
    unsafe fn finish<S: Simd, const R: usize, const V: usize>(
        self,
        s: S,
        row: usize,
        sums: [[S::F; V]; R],
    ) {
        // By reference: arrays that are taken apart by value go through the stack.
        for (r, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { s.store(self.to.add((row + r) * V * S::LANES + v * S::LANES), sum) };
            }
        }
    }
}
