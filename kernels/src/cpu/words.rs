//! What operands of products are packed as: 32-bit words along the depth.

use ops::DType;

use crate::Isa;
use crate::isa::{Bf16Dot, Tiles};
use crate::simd;

use super::matmul_tile;
use simd::digits::{DEPTHS_OF_DIGITS, WORDS_OF_UNIT};

/// What a 32-bit word of packed A or B holds, and what multiplies them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Words {
    /// One f32.
    F32,
    /// Two neighbors of the depth in bf16, the first in the lower half.
    Bf16Pairs(Bf16Dot),
    /// The same, for tile registers.
    Bf16Tiles(Tiles),
    /// Digits of f32, as [`simd::digits`] lays them out, for tile registers.
    F32Digits(Tiles),
}

impl Words {
    /// The best for operands of type `dtype` that are packed as they are: never digits.
    pub(super) fn of(isa: Isa, dtype: DType) -> Self {
        match (isa.tiles(), isa.bf16_dot()) {
            _ if dtype != DType::Bf16 => Words::F32,
            (Some(tiles), _) => Words::Bf16Tiles(tiles),
            (None, Some(dot)) => Words::Bf16Pairs(dot),
            (None, None) => Words::F32,
        }
    }

    /// Digits for operands in f32, where the CPU multiplies them.
    pub(super) fn of_digits(isa: Isa) -> Self {
        isa.tiles().map_or(Words::F32, Words::F32Digits)
    }

    /// The best of attention, `least` being the fewer of queries and keys: a tile register that is mostly empty is
    /// slower than vectors are.
    pub(super) fn of_attention(isa: Isa, dtype: DType, least: usize) -> Self {
        match Self::of(isa, dtype) {
            Words::Bf16Tiles(tiles) if least <= simd::TILE_ROWS => Words::Bf16Pairs(tiles.dot()),
            words => words,
        }
    }

    /// The least part of the depth that is packed by itself: how many elements become how many words.
    pub(super) fn unit(self) -> (usize, usize) {
        match self {
            Words::F32 => (1, 1),
            Words::Bf16Pairs(_) | Words::Bf16Tiles(_) => (2, 1),
            Words::F32Digits(_) => (DEPTHS_OF_DIGITS, WORDS_OF_UNIT),
        }
    }

    /// Elements of the depth in a unit, which is a word but for digits.
    pub(super) fn depths(self) -> usize {
        self.unit().0
    }

    /// Words of `depth` elements.
    pub(super) fn of_depth(self, depth: usize) -> usize {
        let (depths, words) = self.unit();
        depth.div_ceil(depths) * words
    }

    /// Elements, or zeros behind the last, of whole units of `words` words.
    pub(super) fn depth(self, words: usize) -> usize {
        let (depths, unit) = self.unit();
        words / unit * depths
    }

    /// As many words of the depth, or more, as products of packed operands take at a time: the rest is zeros.
    pub(super) fn padded(self, words: usize) -> usize {
        match self {
            Words::F32 | Words::Bf16Pairs(_) => words,
            Words::Bf16Tiles(_) => words.next_multiple_of(simd::TILE_WORDS),
            Words::F32Digits(_) => words.next_multiple_of(WORDS_OF_UNIT),
        }
    }

    /// Whether tile registers multiply.
    pub(super) fn are_tiles(self) -> bool {
        matches!(self, Words::Bf16Tiles(_) | Words::F32Digits(_))
    }

    /// What makes and multiplies digits of f32, if words are such.
    pub(super) fn digits(self) -> Option<Tiles> {
        match self {
            Words::F32Digits(tiles) => Some(tiles),
            Words::F32 | Words::Bf16Pairs(_) | Words::Bf16Tiles(_) => None,
        }
    }

    /// Shape of the full tile: `(rows, vectors of columns)`.
    pub(super) fn shape(self, isa: Isa) -> (usize, usize) {
        match self {
            Words::F32 | Words::Bf16Pairs(_) => matmul_tile::shape(isa.registers()),
            Words::Bf16Tiles(_) => (2 * simd::TILE_ROWS, 2),
            Words::F32Digits(_) => (simd::TILE_ROWS, simd::digits::VECTORS),
        }
    }

    /// Type of the elements.
    pub(super) fn dtype(self) -> DType {
        match self {
            Words::F32 | Words::F32Digits(_) => DType::F32,
            Words::Bf16Pairs(_) | Words::Bf16Tiles(_) => DType::Bf16,
        }
    }
}
