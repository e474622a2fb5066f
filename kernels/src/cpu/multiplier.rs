//! The micro-kernel of products of packed operands: vector registers, or tile registers where the CPU has them, 32
//! rows by 32 columns at a time, or 16 rows of digits.

use crate::simd::digits::DigitProduct;
use crate::simd::{MAX_LANES, Simd, TILE_WORDS, TileProduct, TileSession};

use super::matmul_tile::{self, Tile, run_as, shape};
use super::words::Words;

/// What multiplies words of one kind on this thread: vector registers, or tile registers that it holds meanwhile.
pub(super) struct Multiplier {
    words: Words,
    session: Option<TileSession>,
}

impl Multiplier {
    pub(super) fn of(words: Words) -> Self {
        let session = match words {
            Words::F32 | Words::Bf16Pairs(_) => None,
            Words::Bf16Tiles(tiles) | Words::F32Digits(tiles) => Some(TileSession::begin(tiles)),
        };
        Self { words, session }
    }

    /// Computes a tile of digits.
    ///
    /// # Safety
    /// As [`TileSession::multiply_digits`]; words are digits.
    #[inline(always)]
    pub(super) unsafe fn run_digits(&mut self, product: &DigitProduct) {
        let session = self.session.as_mut().expect("digits are multiplied in tile registers");
        // SAFETY: passed on.
        unsafe { session.multiply_digits(product) }
    }

    /// Computes a tile of `rows` x `vectors` words that are not digits. In tile registers, what is left of the depth behind whole tiles is
    /// added in vector registers.
    ///
    /// # Safety
    /// As [`matmul_tile::run`], `rows` being at most those of [`Words::shape`].
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&mut self, s: S, rows: usize, vectors: usize, tile: &Tile) {
        // Tile registers come with the longest vectors: there is no code for others.
        let session = match &mut self.session {
            Some(session) if const { S::LANES == MAX_LANES } => session,
            _ => {
                // SAFETY: passed on.
                unsafe { matmul_tile::run(s, self.words, rows, vectors, tile) };
                return;
            }
        };
        let steps = tile.depth / TILE_WORDS;
        let width = vectors * S::LANES;
        let whole = steps * TILE_WORDS;
        // SAFETY: the parts of the depth and of the columns lie within the whole.
        unsafe {
            for v in (0..if steps > 0 { vectors } else { 0 }).step_by(2) {
                let Tile { a, a_stride, b, sums, sums_stride, accumulate, next, .. } = *tile;
                let (b, sums) = (b.add(v * S::LANES), sums.add(v * S::LANES));
                let b_stride = width;
                let product = TileProduct {
                    a,
                    a_stride,
                    b,
                    b_stride,
                    steps,
                    sums,
                    sums_stride,
                    accumulate,
                    rows,
                    next,
                };
                let columns = (vectors - v).min(2);
                session.multiply(rows, columns, &product);
            }
            if whole == tile.depth {
                return;
            }
            let height = const { shape(S::REGISTERS).0 };
            for row in (0..rows).step_by(height) {
                let rest = Tile {
                    a: tile.a.add(row * tile.a_stride + whole),
                    b: tile.b.add(whole * width),
                    depth: tile.depth - whole,
                    sums: tile.sums.add(row * tile.sums_stride),
                    accumulate: tile.accumulate || steps > 0,
                    ..*tile
                };
                run_as(s, session.dot(), height.min(rows - row), vectors, &rest);
            }
        }
    }
}
