//! How f32 is packed as digits for tile registers, which multiply bytes twice as fast as pairs of bf16.
//!
//! A *line*, a row of A or a column of B over one block of the depth, shares one exponent: an element is a whole number of
//! 24 bits times a power of two, and the number three digits of base 256, each from -128 to 127. What is left of an
//! element is such a number, too, of smaller digits: the line's *low* digits, which only lines of a wide spread
//! have.
//!
//! Words of a line over some units of the depth: three times sixteen digits of each unit. Low digits are the same at some
//! distance. A panel of B is a vector of columns or two: of each unit, and each of its digits, first the words of one vector
//! of columns, side by side, then those of the other. Sixteen lines have their [`Scales`] elsewhere.

#[cfg(target_arch = "x86_64")]
mod loops;
#[cfg(target_arch = "x86_64")]
mod product;
#[cfg(target_arch = "x86_64")]
mod split;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub use split::Splitting;

use super::TILE_WORDS;

/// Digits of an element.
pub const DIGITS: usize = 3;
/// Elements of the depth whose digits are packed together: bytes of a tile register's row.
pub const DEPTHS_OF_DIGITS: usize = 4 * TILE_WORDS;
/// Words of a unit's digits.
pub const WORDS_OF_UNIT: usize = DIGITS * TILE_WORDS;

/// Of sixteen lines, the exponents of two of their high digits, those of their low ones, and their spreads.
///
/// An exponent is of what a product of two numbers is multiplied by, the other's exponent added to it. It is NaN where the
/// line is not finite, and minus infinity where there are no such digits: those are never looked at.
pub type Scales = [[f32; TILE_WORDS]; 3];

/// The spread from which on a line has low digits: how much more, in exponents of two, its largest element has than its
/// elements have on average, zeros aside.
pub const LOW_SPREAD: f32 = 5.0;
/// The sum of two lines' spreads up to which their product is made of six products of digits: those whose positions
/// sum to 2 at most. Normal and uniform numbers have spreads from 1 to 4.
pub const MOST_SPREAD: f32 = 2.0 * LOW_SPREAD;

/// Groups of lines that are split together where they are neighbors: depths may lie far apart, so the more of each is
/// read the better, as long as the second-level cache holds a block.
pub const GROUPS: usize = 16;

/// A row of elements that follow each other, whose blocks become lines of digits.
#[derive(Clone, Copy, Debug)]
pub struct DigitRow {
    /// The first element.
    pub from: *const f32,
    /// Elements there are; the rest of the last unit is zeros.
    pub depth: usize,
    /// Elements of a block: whole units.
    pub block: usize,
    /// Where the words go.
    pub to: *mut f32,
    /// Words from digits to low ones.
    pub low: usize,
    /// Scales of sixteen rows in the first block.
    pub scales: *mut Scales,
    /// From those of one block to the next.
    pub scales_step: usize,
    /// Which of the sixteen rows it is.
    pub line: usize,
}

/// Up to [`GROUPS`] times sixteen lines next to each other, depth by depth.
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    /// The first line's first element.
    pub start: *const f32,
    /// From one depth to the next.
    pub stride: usize,
    /// Lines there are: those behind them are zeros.
    pub count: usize,
    /// Depths there are: the others are zeros.
    pub depth: usize,
}

impl Lines {
    /// Groups of sixteen lines, the last one of fewer.
    pub fn groups(&self) -> usize {
        self.count.div_ceil(TILE_WORDS)
    }
}

/// Operands of a product of rows of A, packed as digits, by a panel of B; strides count words.
#[derive(Clone, Copy, Debug)]
pub struct DigitProduct {
    /// First word of A's block; readable for whole tiles of rows.
    pub a: *const f32,
    /// From one row of A to the next.
    pub a_stride: usize,
    /// From A's high digits to its low ones.
    pub a_low: usize,
    /// Scales of the rows, sixteen at a time.
    pub a_scales: *const Scales,
    /// First word of the panel's block.
    pub b: *const f32,
    /// Vectors of columns of the panel, at most [`VECTORS`].
    pub vectors: usize,
    /// From B's high digits to its low ones.
    pub b_low: usize,
    /// Scales of the panel's vectors, one after the other.
    pub b_scales: *const Scales,
    /// Units of the block's depth, at least one; few enough for 32 bits to hold the sums.
    pub units: usize,
    /// First sum.
    pub sums: *mut f32,
    /// From one row of sums to the next.
    pub sums_stride: usize,
    /// Rows of A; words are readable for whole tiles of rows.
    pub rows: usize,
    /// Whether to add to what is there.
    pub accumulate: bool,
    /// Memory to bring into the second-level cache, and how many bytes: [`NEXT_BYTES`] with each unit of a tile of rows;
    /// any address is allowed.
    pub next: *const f32,
    /// See `next`.
    pub next_bytes: usize,
}

/// Vectors of columns that are multiplied together: each tile of A is read once for both.
pub const VECTORS: usize = 2;
/// Units of a block: a panel of B, which each tile of rows reads again, lies in the nearest cache; and the more there are,
/// the fewer sums are to be added.
pub const MOST_UNITS: usize = 6;
/// Bytes that a product asks for with each unit.
pub const NEXT_BYTES: usize = 512;
