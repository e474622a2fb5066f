//! The register tile of the matrix product: a few rows of A times one panel of B, summed in f32.
//!
//! The tile's sums stay in registers over the whole depth; each step of the depth loads the
//! panel's vectors once and broadcasts one element of each row. With 32 registers the full tile is
//! 8 rows x 3 vectors: 24 sums, 3 vectors of B and one broadcast, so that per depth 11 loads feed
//! 24 multiply-adds, and the dependency chains cover the multiply-add's latency twice. With 16
//! registers it is 6 x 2. What tile registers multiply goes through [`super::multiplier`].
//!
//! Invariant: each sum is one chain of multiply-adds in depth order, whatever tile it falls in, so
//! results do not depend on how rows and columns are split.

use crate::isa::Bf16Dot;
use crate::simd::{MAX_LANES, Simd, SimdJob, TileSession, prefetch, prefetch_l2};

use super::words::Words;

/// Most rows of a tile on any instruction set.
pub(super) const MAX_ROWS: usize = 8;
/// Most vectors of a tile's row on any instruction set.
pub(super) const MAX_VECTORS: usize = 3;

/// Shape of the full tile in vector registers: `(rows, vectors of columns)`.
pub(super) const fn shape(registers: usize) -> (usize, usize) {
    match registers {
        32.. => (8, 3),
        16.. => (6, 2),
        _ => (6, 1),
    }
}

/// How words of one kind are multiplied.
pub(super) trait Arithmetic: Copy {
    /// Whether there may be tile registers.
    const HAS_TILES: bool = false;

    /// `sum` plus the product of the words `a` and `b`, lane by lane.
    fn multiply_add<S: Simd>(self, s: S, a: S::F, b: S::F, sum: S::F) -> S::F;

    /// The tile registers that products with whole tiles of terms go to, if there are any; else null.
    #[inline(always)]
    fn tiles(self) -> *mut TileSession {
        std::ptr::null_mut()
    }

    /// Runs `job` in a function of its own that has the instructions.
    fn outline<S: Simd, J: SimdJob<Output = ()>>(self, s: S, job: J);

    /// The f32 of a finished sum: of row `row` of the tile, and the vector of columns from `column` on.
    ///
    /// # Safety
    /// What the value points to is readable there.
    #[inline(always)]
    unsafe fn finish<S: Simd>(self, _: S, sum: S::F, _row: usize, _column: usize) -> S::F {
        sum
    }
}

/// [`Words::F32`].
#[derive(Clone, Copy)]
pub(super) struct Single;

impl Arithmetic for Single {
    #[inline(always)]
    fn multiply_add<S: Simd>(self, s: S, a: S::F, b: S::F, sum: S::F) -> S::F {
        s.mul_add(a, b, sum)
    }

    #[inline(always)]
    fn outline<S: Simd, J: SimdJob<Output = ()>>(self, s: S, job: J) {
        s.outline(job);
    }
}

impl Arithmetic for Bf16Dot {
    #[inline(always)]
    fn multiply_add<S: Simd>(self, s: S, a: S::F, b: S::F, sum: S::F) -> S::F {
        s.dot_bf16(self, a, b, sum)
    }

    #[inline(always)]
    fn outline<S: Simd, J: SimdJob<Output = ()>>(self, s: S, job: J) {
        s.outline_bf16(self, job);
    }
}

/// Pairs of bf16 with a session of tile registers, which lives as long as this is used.
#[derive(Clone, Copy)]
pub(super) struct InTiles {
    pub(super) dot: Bf16Dot,
    /// Null for none.
    pub(super) session: *mut TileSession,
}

impl Arithmetic for InTiles {
    const HAS_TILES: bool = true;

    #[inline(always)]
    fn multiply_add<S: Simd>(self, s: S, a: S::F, b: S::F, sum: S::F) -> S::F {
        self.dot.multiply_add(s, a, b, sum)
    }

    #[inline(always)]
    fn tiles(self) -> *mut TileSession {
        self.session
    }

    #[inline(always)]
    fn outline<S: Simd, J: SimdJob<Output = ()>>(self, s: S, job: J) {
        self.dot.outline(s, job);
    }
}

/// Words are pairs of i16, with a scale for each row and each column; sums are i32 until they are
/// finished, and must not exceed it.
#[derive(Clone, Copy)]
pub(super) struct Scaled {
    pub(super) dot: Bf16Dot,
    /// Of the tile's rows.
    pub(super) rows: *const f32,
    /// Of the panel's columns.
    pub(super) columns: *const f32,
}

impl Arithmetic for Scaled {
    #[inline(always)]
    fn multiply_add<S: Simd>(self, s: S, a: S::F, b: S::F, sum: S::F) -> S::F {
        s.dot_i16(self.dot, a, b, sum)
    }

    #[inline(always)]
    fn outline<S: Simd, J: SimdJob<Output = ()>>(self, s: S, job: J) {
        s.outline_bf16(self.dot, job);
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(self, s: S, sum: S::F, row: usize, column: usize) -> S::F {
        // SAFETY: there is a scale for each row and column, as whoever made this says.
        unsafe {
            let scale = s.mul(s.splat(*self.rows.add(row)), s.load(self.columns.add(column)));
            s.mul(s.bits_to_f32(sum), scale)
        }
    }
}

/// Operands of one tile. Counts and strides are in words.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// First element of the tile's rows of A.
    pub(super) a: *const f32,
    /// From one row of A to the next.
    pub(super) a_stride: usize,
    /// The panel: for each depth, `vectors` vectors.
    pub(super) b: *const f32,
    /// Steps of the depth.
    pub(super) depth: usize,
    /// First sum; the panel's columns are consecutive.
    pub(super) sums: *mut f32,
    /// From one row of sums to the next.
    pub(super) sums_stride: usize,
    /// Whether to add to what is there.
    pub(super) accumulate: bool,
    /// Memory to bring into the second-level cache, a line every four steps.
    pub(super) next: *const f32,
}

/// Computes a tile of `rows` x `vectors` words in vector registers.
///
/// # Safety
/// `rows` and `vectors` are at least 1 and at most [`shape`]. A is readable for `rows` x `depth`, B
/// for `depth` x `vectors` vectors, the sums writable (and initialized if accumulating).
#[inline(always)]
pub(super) unsafe fn run<S: Simd>(s: S, words: Words, rows: usize, vectors: usize, tile: &Tile) {
    // SAFETY: passed on.
    unsafe {
        match words {
            // Products of pairs come with the longest vectors: there is no code for others.
            Words::Bf16Pairs(dot) if const { S::LANES == MAX_LANES } => {
                run_as(s, dot, rows, vectors, tile);
            }
            Words::Bf16Tiles(tiles) if const { S::LANES == MAX_LANES } => {
                run_as(s, tiles.dot(), rows, vectors, tile);
            }
            Words::F32Digits(_) => unreachable!("digits are multiplied in tile registers"),
            _ => run_as(s, Single, rows, vectors, tile),
        }
    }
}

/// [`run`] for one kind of words.
///
/// # Safety
/// As [`run`]; what `arithmetic` points to is readable for the rows and the panel's columns.
#[inline(always)]
pub(super) unsafe fn run_as<S: Simd, A: Arithmetic>(
    s: S,
    arithmetic: A,
    rows: usize,
    vectors: usize,
    tile: &Tile,
) {
    macro_rules! by_rows {
        ($vectors:literal) => {
            match rows {
                1 => arithmetic.outline(s, Micro::<A, 1, $vectors>(arithmetic, tile)),
                2 => arithmetic.outline(s, Micro::<A, 2, $vectors>(arithmetic, tile)),
                3 => arithmetic.outline(s, Micro::<A, 3, $vectors>(arithmetic, tile)),
                4 => arithmetic.outline(s, Micro::<A, 4, $vectors>(arithmetic, tile)),
                5 => arithmetic.outline(s, Micro::<A, 5, $vectors>(arithmetic, tile)),
                6 => arithmetic.outline(s, Micro::<A, 6, $vectors>(arithmetic, tile)),
                7 => arithmetic.outline(s, Micro::<A, 7, $vectors>(arithmetic, tile)),
                8 => arithmetic.outline(s, Micro::<A, 8, $vectors>(arithmetic, tile)),
                _ => unreachable!("tile has 1 to {MAX_ROWS} rows"),
            }
        };
    }
    match vectors {
        1 => by_rows!(1),
        2 => by_rows!(2),
        3 => by_rows!(3),
        _ => unreachable!("tile has 1 to {MAX_VECTORS} vectors"),
    }
}

struct Micro<'a, A, const ROWS: usize, const VECTORS: usize>(A, &'a Tile);

impl<A: Arithmetic, const ROWS: usize, const VECTORS: usize> SimdJob
    for Micro<'_, A, ROWS, VECTORS>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (max_rows, max_vectors) = const { shape(S::REGISTERS) };
        if ROWS > max_rows || VECTORS > max_vectors {
            unreachable!("tile of {ROWS} x {VECTORS} does not fit the registers");
        }
        let (arithmetic, tile) = (self.0, *self.1);
        // SAFETY: `run`'s caller promises A, B and the sums for ROWS x VECTORS x depth.
        unsafe {
            for row in 0..ROWS {
                for v in 0..VECTORS {
                    prefetch(tile.sums.add(row * tile.sums_stride + v * S::LANES));
                }
            }
            let mut sums = [[s.splat(0.0); VECTORS]; ROWS];
            let (mut a, mut b, mut next) = (tile.a, tile.b, tile.next);
            for _ in 0..tile.depth / 4 {
                prefetch_l2(next);
                next = next.wrapping_add(16);
                for step in 0..4 {
                    let b = b.add(step * VECTORS * S::LANES);
                    step_depth(s, arithmetic, a.add(step), tile.a_stride, b, &mut sums);
                }
                a = a.add(4);
                b = b.add(4 * VECTORS * S::LANES);
            }
            for _ in 0..tile.depth % 4 {
                step_depth(s, arithmetic, a, tile.a_stride, b, &mut sums);
                a = a.add(1);
                b = b.add(VECTORS * S::LANES);
            }
            for (row, sums) in sums.iter().enumerate() {
                for (v, &sum) in sums.iter().enumerate() {
                    let to = tile.sums.add(row * tile.sums_stride + v * S::LANES);
                    let sum = arithmetic.finish(s, sum, row, v * S::LANES);
                    let sum = if tile.accumulate { s.add(s.load(to), sum) } else { sum };
                    s.store(to, sum);
                }
            }
        }
    }
}

/// One word of the depth.
///
/// # Safety
/// One word of each row of A and the vectors of B are readable.
#[inline(always)]
unsafe fn step_depth<S: Simd, A: Arithmetic, const ROWS: usize, const VECTORS: usize>(
    s: S,
    arithmetic: A,
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    sums: &mut [[S::F; VECTORS]; ROWS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let b: [S::F; VECTORS] = std::array::from_fn(|v| s.load(b.add(v * S::LANES)));
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = s.splat(*a.add(row * a_stride));
            for (sum, &b) in sums.iter_mut().zip(&b) {
                *sum = arithmetic.multiply_add(s, x, b, *sum);
            }
        }
    }
}
