//! Digits and their products, against what they stand for.

use super::*;
use crate::Isa;
use crate::isa::Tiles;
use crate::simd::{TILE_ROWS, TileSession};

fn tiles() -> Option<Tiles> {
    Isa::available().into_iter().find_map(Isa::tiles)
}

/// Lines as [`DigitRow`] packs them, whole tiles of rows.
struct Rows {
    words: Vec<f32>,
    stride: usize,
    low: usize,
    scales: Vec<Scales>,
}

impl Rows {
    fn pack(tiles: Tiles, elements: &[f32], depth: usize) -> Self {
        let (count, units) = (elements.len() / depth, depth.div_ceil(DEPTHS_OF_DIGITS));
        let stride = units * WORDS_OF_UNIT + TILE_WORDS;
        let rows = count.next_multiple_of(TILE_ROWS);
        let low = rows * stride;
        // Digits that nobody wrote, and scales of lines there are not, must not count.
        let mut words = vec![f32::from_bits(0x7b7b_7b7b); 2 * low];
        let mut scales = vec![[[f32::NAN; TILE_WORDS]; 3]; rows / TILE_ROWS];
        for row in 0..count {
            let (to, scales) = (row * stride, &mut scales[row / TILE_ROWS]);
            // SAFETY: the row has so many elements, its words lie within both halves.
            unsafe {
                let (from, to) = (elements.as_ptr().add(row * depth), words.as_mut_ptr().add(to));
                let (block, line) = (units * DEPTHS_OF_DIGITS, row % TILE_ROWS);
                DigitRow { from, depth, block, to, low, scales, scales_step: 0, line }.split(tiles);
            }
        }
        Self { words, stride, low, scales }
    }

    /// The digit at `position` of an element.
    fn digit(&self, row: usize, at: usize, position: usize, is_low: bool) -> i8 {
        let unit = at / DEPTHS_OF_DIGITS * WORDS_OF_UNIT + position * TILE_WORDS;
        let word = row * self.stride + unit + at % DEPTHS_OF_DIGITS / 4;
        let word = self.words[word + if is_low { self.low } else { 0 }].to_bits();
        (word >> (8 * (at % 4))) as i8
    }

    /// What the digits of an element stand for.
    fn value(&self, row: usize, at: usize, is_low: bool) -> f64 {
        let digits = [0, 1, 2].map(|position| f64::from(self.digit(row, at, position, is_low)));
        let number = (digits[0] * 256.0 + digits[1]) * 256.0 + digits[2];
        // Products of digits are counted in 2^16, each number's half of it is 2^8.
        let [high, low, _] = self.scales[row / TILE_ROWS].map(|of| of[row % TILE_ROWS]);
        number * f64::from(if is_low { low } else { high } - 8.0).exp2()
    }
}

/// A panel of as many vectors of columns as `count` columns need.
struct Panel {
    words: Vec<f32>,
    vectors: usize,
    low: usize,
    scales: [Scales; VECTORS],
}

impl Panel {
    /// `elements` are depth by depth.
    fn pack(tiles: Tiles, elements: &[f32], count: usize) -> Self {
        let (depth, vectors) = (elements.len() / count, count.div_ceil(TILE_WORDS));
        let units = depth.div_ceil(DEPTHS_OF_DIGITS);
        let lines = Lines { start: elements.as_ptr(), stride: count, count, depth };
        let low = units * WORDS_OF_UNIT * vectors * TILE_WORDS;
        let mut words = vec![f32::from_bits(0x7b7b_7b7b); 2 * low];
        // SAFETY: the lines are as long, and so are the words.
        unsafe {
            let splittings = lines.splittings(tiles);
            let to_words = words.as_mut_ptr();
            for (vector, splitting) in splittings.iter().enumerate().take(vectors) {
                for part in 0..1 + usize::from(splitting.has_low()) {
                    for unit in 0..units {
                        let to = [0, 1, 2].map(|digit| {
                            let word = (unit * DIGITS + digit) * vectors + vector;
                            to_words.add(part * low + word * TILE_WORDS * TILE_WORDS)
                        });
                        lines.split_unit(tiles, vector, splitting, unit, part == 1, to);
                    }
                }
            }
            let scales = [0, 1].map(|vector| splittings[vector].scales());
            Self { words, vectors, low, scales }
        }
    }

    /// Word `word` of a column.
    fn word(&self, column: usize, word: usize, is_low: bool) -> u32 {
        let (digit, word) = (word / TILE_WORDS, word % TILE_WORDS);
        let (vector, lane) = (column / TILE_WORDS, column % TILE_WORDS);
        let at = ((digit * self.vectors + vector) * TILE_WORDS + word) * TILE_WORDS + lane;
        self.words[at + if is_low { self.low } else { 0 }].to_bits()
    }
}

/// Adds the product of `a`'s rows and `b` to `sums`.
fn multiply(tiles: Tiles, a: &Rows, b: &Panel, rows: usize, sums: &mut [f32], accumulate: bool) {
    let product = DigitProduct {
        a: a.words.as_ptr(),
        a_stride: a.stride,
        a_low: a.low,
        a_scales: a.scales.as_ptr(),
        b: b.words.as_ptr(),
        vectors: b.vectors,
        b_low: b.low,
        b_scales: b.scales.as_ptr(),
        units: b.low / (WORDS_OF_UNIT * b.vectors * TILE_WORDS),
        sums: sums.as_mut_ptr(),
        sums_stride: sums.len() / rows,
        rows,
        accumulate,
        next: std::ptr::null(),
        next_bytes: 0,
    };
    // SAFETY: packed as it is to be; the sums are of all rows.
    unsafe { TileSession::begin(tiles).multiply_digits(&product) }
}

/// Elements of several sizes and both signs, from a seed.
fn elements(count: usize, seed: u32) -> Vec<f32> {
    let element = |i: u32| {
        let bits = (i + seed).wrapping_mul(0x9e37_79b9) ^ i.wrapping_mul(0x85eb_ca6b) >> 7;
        let exponent = 123 + bits.rotate_left(9) % 6;
        f32::from_bits(bits & 0x807f_ffff | exponent << 23)
    };
    (0..count as u32).map(element).collect()
}

#[test]
fn digits_stand_for_elements() {
    let Some(tiles) = tiles() else { return };
    let depth = 150;
    let mut line = elements(5 * depth, 1);
    // The largest number of three digits, and what is a little more; the ends of f32.
    line[7] = 1.992;
    line[depth + 7] = 1.9999;
    line[2 * depth..3 * depth].fill(0.0);
    line[2 * depth + 3] = f32::MAX;
    line[3 * depth..4 * depth].fill(f32::from_bits(1));
    line[4 * depth + 11] = 1e9;
    let rows = Rows::pack(tiles, &line, depth);
    for (row, line) in line.chunks(depth).enumerate() {
        let largest = line.iter().fold(0f64, |m, &x| m.max(f64::from(x.abs())));
        let [_, low, spread] = rows.scales[0].map(|of| of[row]);
        assert_eq!(low != f32::NEG_INFINITY, spread > LOW_SPREAD, "{row}");
        assert_eq!(row == 4, spread > LOW_SPREAD, "{row}: {spread}");
        for (at, &x) in line.iter().enumerate() {
            let high = rows.value(row, at, false);
            let rest = (f64::from(x) - high).abs();
            assert!(rest <= 1.01 * largest / f64::from(1 << 23), "{row} {at}: {x:e} {high:e}");
            if spread > LOW_SPREAD {
                let rest = (f64::from(x) - high - rows.value(row, at, true)).abs();
                assert!(rest <= 1.01 * largest / f64::from(1 << 23).powi(2), "{row} {at}: {x:e}");
            }
        }
        for at in depth..depth.next_multiple_of(DEPTHS_OF_DIGITS) {
            assert!((0..3).all(|position| rows.digit(row, at, position, false) == 0), "{row} {at}");
        }
    }
}

#[test]
fn lines_side_by_side_have_the_digits_of_single_ones() {
    let Some(tiles) = tiles() else { return };
    for (count, depth) in [(16, 64), (32, 64), (16, 200), (5, 70), (27, 65), (1, 1)] {
        let mut columns = elements(count * depth, 2);
        columns[depth * count / 2] = 1e6;
        let panel = Panel::pack(tiles, &columns, count);
        let across = |column: usize| (0..depth).map(move |k| k * count + column);
        let lines = (0..count).flat_map(|column| across(column).map(|at| columns[at]));
        let rows = Rows::pack(tiles, &lines.collect::<Vec<_>>(), depth);
        for column in 0..count {
            let (vector, lane) = (column / TILE_WORDS, column % TILE_WORDS);
            let scales = [&panel.scales[vector], &rows.scales[vector]];
            let [found, expected] = scales.map(|of| of.map(|x| x[lane]));
            assert_eq!(found, expected, "{count} x {depth}: {column}");
            let has_low = expected[2] > LOW_SPREAD;
            for word in 0..panel.low / (panel.vectors * TILE_WORDS) {
                for part in 0..1 + usize::from(has_low) {
                    let found = panel.word(column, word, part == 1);
                    let expected = rows.words[part * rows.low + column * rows.stride + word];
                    assert_eq!(found, expected.to_bits(), "{count} x {depth}: {word}");
                }
            }
        }
    }
}

#[test]
fn products_of_whole_numbers_are_exact_and_nothing_else_is_written() {
    let Some(tiles) = tiles() else { return };
    let whole = |count: usize, seed: usize| -> Vec<f32> {
        (0..count).map(|i| ((i * 7 + seed) % 41) as f32 - 20.0).collect()
    };
    for rows in [1, 7, 16, 17, 31, 32, 33, 48, 64, 70, 96] {
        for (depth, columns) in [(1, 16), (64, 32), (100, 3), (100, 21), (384, 16), (384, 32)] {
            // Few of a row are wide, which must not change the others' products.
            for has_wide in [false, true] {
                let (mut a, b) = (whole(rows * depth, 1), whole(depth * columns, 2));
                if has_wide && depth > 1 {
                    a[depth / 2..].iter_mut().step_by(5 * depth).for_each(|x| *x = 16384.0);
                }
                let packed = (Rows::pack(tiles, &a, depth), Panel::pack(tiles, &b, columns));
                let width = columns.next_multiple_of(TILE_WORDS);
                let stride = width + 3;
                for accumulate in [false, true] {
                    let mut sums = vec![1000.0; rows * stride];
                    multiply(tiles, &packed.0, &packed.1, rows, &mut sums, accumulate);
                    for (at, &sum) in sums.iter().enumerate() {
                        let (row, column) = (at / stride, at % stride);
                        let term = |k: usize| a[row * depth + k] * b[k * columns + column];
                        let added = if accumulate { 1000.0 } else { 0.0 };
                        let expected = match column {
                            _ if column >= width => 1000.0,
                            _ if column >= columns => added,
                            _ => (0..depth).map(term).sum::<f32>() + added,
                        };
                        assert_eq!(sum, expected, "{rows} x {columns} x {depth}: {row} {column}");
                    }
                }
            }
        }
    }
}

#[test]
fn sums_do_not_depend_on_other_rows_and_columns() {
    let Some(tiles) = tiles() else { return };
    let (rows, depth) = (40, 200);
    let columns = VECTORS * TILE_WORDS;
    let (mut a, mut b) = (elements(rows * depth, 5), elements(depth * columns, 6));
    for row in [3, 20, 35] {
        a[row * depth + 7] = 1e6;
    }
    for column in [0, 9, 17] {
        b[11 * columns + column] = 1e4;
    }
    let product = |a: &[f32], b: &[f32], columns: usize| {
        let rows = a.len() / depth;
        let packed = (Rows::pack(tiles, a, depth), Panel::pack(tiles, b, columns));
        let mut sums = vec![0.0; rows * columns.next_multiple_of(TILE_WORDS)];
        multiply(tiles, &packed.0, &packed.1, rows, &mut sums, false);
        sums
    };
    let together = product(&a, &b, columns);
    for (row, a) in a.chunks(depth).enumerate() {
        for column in 0..columns {
            let b: Vec<f32> = b.iter().skip(column).step_by(columns).copied().collect();
            let alone = product(a, &b, 1)[0];
            let found = together[row * columns + column];
            assert_eq!(found.to_bits(), alone.to_bits(), "{row} {column}");
        }
    }
}

#[test]
fn what_is_not_finite_makes_its_sums_nan_and_no_others() {
    let Some(tiles) = tiles() else { return };
    let (rows, depth, columns) = (40, 64, VECTORS * TILE_WORDS);
    for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::from_bits(0xff80_0001)] {
        let (mut a, mut b) = (elements(rows * depth, 3), elements(depth * columns, 4));
        a[33 * depth + 5] = bad;
        b[9 * columns + 2] = bad;
        a[8 * depth..9 * depth].fill(0.0);
        let packed = (Rows::pack(tiles, &a, depth), Panel::pack(tiles, &b, columns));
        let mut sums = vec![0.0; rows * columns];
        multiply(tiles, &packed.0, &packed.1, rows, &mut sums, false);
        for (at, sum) in sums.iter().enumerate() {
            let (row, column) = (at / columns, at % columns);
            assert_eq!(sum.is_nan(), row == 33 || column == 2, "{bad}: {row} {column}");
            assert!(row != 8 || column == 2 || *sum == 0.0, "{bad}: {column}");
        }
    }
}

#[test]
fn sizes_at_the_ends_of_f32_multiply() {
    let Some(tiles) = tiles() else { return };
    for (a, b) in [(1e-42, 1e38), (3.4e38, 1e-40), (1.5e-20, 2e-22), (3.4e38, 1.0), (1e30, 1e20)] {
        let packed = (Rows::pack(tiles, &[a], 1), Panel::pack(tiles, &[b], 1));
        let mut sums = [0.0; TILE_WORDS];
        multiply(tiles, &packed.0, &packed.1, 1, &mut sums, false);
        let expected = a * b;
        let near = (sums[0] - expected).abs() <= expected.abs() * 4e-7 + f32::from_bits(1);
        assert!(near || sums[0] == expected, "{a:e} {b:e}: {:e}, expected {expected:e}", sums[0]);
    }
}
