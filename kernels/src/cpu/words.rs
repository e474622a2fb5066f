//! What operands of products are packed as: 32-bit words along the depth.

use ops::DType;

use crate::Isa;
use crate::isa::{Bf16Dot, Bf16Tiles};
use crate::simd;

use super::matmul_tile;
use super::parts::{DEPTHS_OF_PARTS, WORDS_OF_PARTS};

/// What a 32-bit word of packed A or B holds, and what multiplies them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Words {
    /// One f32.
    F32,
    /// Two neighbors of the depth in bf16, the first in the lower half.
    Bf16Pairs(Bf16Dot),
    /// The same, for tile registers.
    Bf16Tiles(Bf16Tiles),
    /// The same, of the three parts that [`super::parts`] makes of f32, for tile registers: for a tile of the depth the
    /// words of the first parts, of the second and of the third.
    F32Parts(Bf16Tiles),
}

impl Words {
    /// The best for operands of type `dtype` that are packed as they are: never parts.
    pub(super) fn of(isa: Isa, dtype: DType) -> Self {
        match (isa.bf16_tiles(), isa.bf16_dot()) {
            _ if dtype != DType::Bf16 => Words::F32,
            (Some(tiles), _) => Words::Bf16Tiles(tiles),
            (None, Some(dot)) => Words::Bf16Pairs(dot),
            (None, None) => Words::F32,
        }
    }

    /// The best for matrix products.
    pub(super) fn of_product(isa: Isa, dtype: DType) -> Self {
        match isa.bf16_tiles() {
            Some(tiles) if dtype == DType::F32 => Words::F32Parts(tiles),
            _ => Self::of(isa, dtype),
        }
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
            Words::F32Parts(_) => (DEPTHS_OF_PARTS, WORDS_OF_PARTS),
        }
    }

    /// Elements of the depth in a unit, which is a word but for parts.
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
            Words::F32Parts(_) => words.next_multiple_of(WORDS_OF_PARTS),
        }
    }

    /// Whether tile registers multiply.
    pub(super) fn are_tiles(self) -> bool {
        matches!(self, Words::Bf16Tiles(_) | Words::F32Parts(_))
    }

    /// Whether words are parts of f32.
    pub(super) fn are_parts(self) -> bool {
        matches!(self, Words::F32Parts(_))
    }

    /// Shape of the full tile: `(rows, vectors of columns)`.
    pub(super) fn shape(self, isa: Isa) -> (usize, usize) {
        if self.are_tiles() {
            (2 * simd::TILE_ROWS, 2)
        } else {
            matmul_tile::shape(isa.registers())
        }
    }

    /// Type of the elements.
    pub(super) fn dtype(self) -> DType {
        match self {
            Words::F32 | Words::F32Parts(_) => DType::F32,
            Words::Bf16Pairs(_) | Words::Bf16Tiles(_) => DType::Bf16,
        }
    }
}
