//! Matrix instructions of a warp: `ldmatrix`, `stmatrix`, `mma` and `wmma`.
//!
//! Operands of `mma` lie in registers as the PTX ISA says; lane 4 g + q holds rows or columns g. Those of `wmma`
//! have no documented place: here they follow the lanes in the order of memory, so that a product whose layouts
//! differ from those of its loads gives wrong numbers, as it may on a device. Products of f16, bf16 and tf32
//! are exact in f32; sums are f32, one k after another.

use super::Warp;
use super::load_store::addresses;
use crate::ast::Space;
use crate::block::Block;
use crate::error::FaultKind;
use crate::memory::{Bytes, InLane, MAX_ACCESS, Wrong};
use crate::ops::{Address, Element, Fragment, Part, Product};
use crate::registers::{LANES, Reg, Word, lanes};
use crate::rounding::{F16, Rounding, bf16_value, f16_value};

/// Columns of a panel, in which products are computed.
pub(super) const PANEL: usize = 8;
/// Most elements of an operand.
const MAX_ELEMENTS: usize = 512;

impl Element {
    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::F16 | Self::Bf16 => 16,
            Self::Tf32 | Self::F32 | Self::S32 => 32,
            Self::S8 | Self::U8 => 8,
        }
    }

    /// Elements of a register.
    pub(crate) fn per_register(self) -> usize {
        (32 / self.bits()) as usize
    }

    /// The `j`-th element of a register; integers of 8 bits are exact in f32.
    #[inline]
    pub(super) fn value(self, word: u32, j: usize) -> f32 {
        match self {
            Self::F16 => f16_value((word >> (16 * j)) as u16),
            Self::Bf16 => bf16_value((word >> (16 * j)) as u16),
            // The device ignores the bits that tf32 lacks.
            Self::Tf32 => f32::from_bits(word & !0x1fff),
            Self::F32 => f32::from_bits(word),
            Self::S8 => f32::from(word.to_le_bytes()[j].cast_signed()),
            Self::U8 => f32::from(word.to_le_bytes()[j]),
            Self::S32 => word.cast_signed() as f32,
        }
    }
}

impl Fragment {
    /// Where the `e`-th element of a lane is in memory order: rows or columns one after another.
    fn place(&self, lane: usize, e: usize) -> usize {
        let per_lane = self.n_regs * self.element.per_register();
        (lane * per_lane + e) % (self.rows * self.cols)
    }

    /// Row and column of a place.
    fn row_col(&self, place: usize) -> (usize, usize) {
        if self.is_by_column {
            (place % self.rows, place / self.rows)
        } else {
            (place / self.cols, place % self.cols)
        }
    }

    /// Offset in elements of a place, given elements from one row, or column, to the next.
    fn offset(&self, place: usize, stride: usize) -> usize {
        let (row, col) = self.row_col(place);
        if self.is_stored_by_column { col * stride + row } else { row * stride + col }
    }
}

/// A panel of B and of the accumulator: rows of eight columns.
pub(super) type Rows = [[f32; PANEL]; LANES];

/// acc += a * b for one panel: a is rows x k.
#[inline]
pub(super) fn multiply(a: &[f32], k: usize, b: &Rows, acc: &mut [[f32; PANEL]]) {
    for (row, acc) in a.chunks_exact(k).zip(acc) {
        let mut sum = *acc;
        for (&x, b) in row.iter().zip(b) {
            for (sum, y) in sum.iter_mut().zip(b) {
                *sum += x * y;
            }
        }
        *acc = sum;
    }
}

impl Warp {
    /// Instructions of a whole warp must be executed by it.
    pub(super) fn check_whole(&self, mask: u32) -> Result<(), Box<Wrong>> {
        if mask == u32::MAX {
            return Ok(());
        }
        let what = format!("a matrix instruction needs all 32 lanes, {mask:#010x} execute it");
        let mut wrong = Wrong::boxed(FaultKind::InactiveLane, what);
        wrong.lane = mask.trailing_ones() as usize & 31;
        Err(wrong)
    }

    pub(super) fn load_matrix(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        address: Address,
        is_transposed: bool,
        to: &[Reg],
    ) -> Result<(), Box<Wrong>> {
        self.check_whole(mask)?;
        let row_at = addresses(&self.registers, address);
        block.stats.shared_loaded += (to.len() * 8 * MAX_ACCESS) as u64;
        for (i, &reg) in to.iter().enumerate() {
            let mut words = [0; LANES];
            for r in 0..8 {
                let lane = 8 * i + r;
                let access = self.access(lane, MAX_ACCESS);
                let bytes = block.memory.read_shared(row_at[lane], access).in_lane(lane)?;
                if is_transposed {
                    // Element (r, c) goes to the lane of row c and pair r.
                    for c in 0..8 {
                        let half = u16::from_le_bytes([bytes[2 * c], bytes[2 * c + 1]]);
                        words[4 * c + r / 2] |= u32::from(half) << (16 * (r % 2));
                    }
                } else {
                    for q in 0..4 {
                        words[4 * r + q] =
                            u32::from_le_bytes(std::array::from_fn(|b| bytes[4 * q + b]));
                    }
                }
            }
            self.registers.set(mask, reg, &words);
        }
        Ok(())
    }

    pub(super) fn store_matrix(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        address: Address,
        is_transposed: bool,
        from: &[Reg],
    ) -> Result<(), Box<Wrong>> {
        self.check_whole(mask)?;
        let row_at = addresses(&self.registers, address);
        block.stats.shared_stored += (from.len() * 8 * MAX_ACCESS) as u64;
        for (i, &reg) in from.iter().enumerate() {
            let words = *u32::row(&self.registers, reg);
            let half = |r: usize, c: usize| (words[4 * r + c / 2] >> (16 * (c % 2))) as u16;
            for r in 0..8 {
                let lane = 8 * i + r;
                let mut bytes: Bytes = [0; MAX_ACCESS];
                for c in 0..8 {
                    let value = if is_transposed { half(c, r) } else { half(r, c) };
                    bytes[2 * c..2 * c + 2].copy_from_slice(&value.to_le_bytes());
                }
                let access = self.access(lane, MAX_ACCESS);
                let space = Some(Space::Shared);
                block.memory.write(space, row_at[lane], access, &bytes).in_lane(lane)?;
            }
        }
        Ok(())
    }

    /// The base of a fragment, which is that of the first lane, and its stride in elements.
    fn fragment_at(
        &self,
        fragment: &Fragment,
        (address, stride): (Address, Option<Reg>),
    ) -> (u64, usize) {
        let base = addresses(&self.registers, address)[0];
        let packed = if fragment.is_stored_by_column { fragment.rows } else { fragment.cols };
        let stride = stride.map_or(packed, |reg| u32::row(&self.registers, reg)[0] as usize);
        (base, stride)
    }

    pub(super) fn load_fragment(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        space: Option<Space>,
        fragment: &Fragment,
        at: (Address, Option<Reg>),
        to: &[Reg],
    ) -> Result<(), Box<Wrong>> {
        self.check_whole(mask)?;
        let (base, stride) = self.fragment_at(fragment, at);
        let per_register = fragment.element.per_register();
        let bytes = 4 / per_register;
        let mut rows = vec![[0_u32; LANES]; to.len()];
        for lane in 0..LANES {
            for (i, row) in rows.iter_mut().enumerate() {
                for j in 0..per_register {
                    let place = fragment.place(lane, i * per_register + j);
                    let address = base + (fragment.offset(place, stride) * bytes) as u64;
                    let access = self.access(lane, bytes);
                    let read = block.memory.read(space, address, access).in_lane(lane)?;
                    let word = u32::from_le_bytes([read[0], read[1], read[2], read[3]]);
                    row[lane] |= word << (8 * bytes * j % 32);
                }
            }
        }
        block.count_access(space, base, mask, bytes * per_register * to.len(), false);
        for (&reg, row) in to.iter().zip(&rows) {
            self.registers.set(mask, reg, row);
        }
        Ok(())
    }

    pub(super) fn store_fragment(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        space: Option<Space>,
        fragment: &Fragment,
        at: (Address, Option<Reg>),
        from: &[Reg],
    ) -> Result<(), Box<Wrong>> {
        self.check_whole(mask)?;
        let (base, stride) = self.fragment_at(fragment, at);
        let per_register = fragment.element.per_register();
        let bytes = 4 / per_register;
        for lane in 0..LANES {
            for (i, &reg) in from.iter().enumerate() {
                let word = u32::row(&self.registers, reg)[lane].to_le_bytes();
                for j in 0..per_register {
                    let place = fragment.place(lane, i * per_register + j);
                    let address = base + (fragment.offset(place, stride) * bytes) as u64;
                    let mut part = [0; MAX_ACCESS];
                    part[..bytes].copy_from_slice(&word[j * bytes..(j + 1) * bytes]);
                    let access = self.access(lane, bytes);
                    block.memory.write(space, address, access, &part).in_lane(lane)?;
                }
            }
        }
        block.count_access(space, base, mask, bytes * per_register * from.len(), true);
        Ok(())
    }

    pub(super) fn product(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        product: &Product,
    ) -> Result<(), Box<Wrong>> {
        self.check_whole(mask)?;
        let (m, n, k) = (product.m, product.n, product.k);
        block.stats.products += 1;
        block.stats.multiply_adds += (m * n * k) as u64;
        if product.into == Element::S32 {
            self.integer_product(product);
            return Ok(());
        }
        let mut a = [0.0; MAX_ELEMENTS];
        self.read_a(product, &mut a);
        for panel in 0..n / PANEL {
            let (b, mut acc) = self.read_panel(product, panel);
            multiply(&a[..m * k], k, &b, &mut acc[..m]);
            self.write_panel(product, panel, &acc);
        }
        Ok(())
    }

    /// A as rows of k.
    #[inline]
    fn read_a(&self, product: &Product, a: &mut [f32; MAX_ELEMENTS]) {
        let (k, element) = (product.k, product.element);
        let per_register = element.per_register();
        if let Some((a_by_column, _)) = product.wmma {
            let fragment = product.fragment(Part::A, a_by_column);
            for (i, &reg) in product.a.iter().enumerate() {
                let words = u32::row(&self.registers, reg);
                for (lane, &word) in words.iter().enumerate() {
                    for j in 0..per_register {
                        let place = fragment.place(lane, i * per_register + j);
                        let (row, col) = fragment.row_col(place);
                        a[row * k + col] = element.value(word, j);
                    }
                }
            }
            return;
        }
        for (i, &reg) in product.a.iter().enumerate() {
            let words = u32::row(&self.registers, reg);
            let (first_row, first_col) = (8 * (i & 1), 4 * per_register * (i >> 1));
            for (g, words) in words.chunks_exact(4).enumerate() {
                let start = (first_row + g) * k + first_col;
                let row = &mut a[start..start + 4 * per_register];
                for (q, &word) in words.iter().enumerate() {
                    for j in 0..per_register {
                        row[q * per_register + j] = element.value(word, j);
                    }
                }
            }
        }
    }

    /// Eight columns of B and C.
    #[inline]
    fn read_panel(&self, product: &Product, panel: usize) -> (Rows, Rows) {
        let (mut b, mut acc) = ([[0.0; PANEL]; LANES], [[0.0; PANEL]; LANES]);
        let element = product.element_b;
        let per_register = element.per_register();
        if let Some((_, b_by_column)) = product.wmma {
            let columns = panel * PANEL..(panel + 1) * PANEL;
            let fragment = product.fragment(Part::B, b_by_column);
            self.read_fragment(&fragment, &product.b, &columns, &mut b);
            let fragment = Fragment { element: product.from, ..product.accumulator() };
            self.read_fragment(&fragment, &product.c, &columns, &mut acc);
            return (b, acc);
        }
        for (i, &reg) in product.b.iter().enumerate() {
            let words = u32::row(&self.registers, reg);
            for g in 0..8 {
                for q in 0..4 {
                    for j in 0..per_register {
                        b[(4 * i + q) * per_register + j][g] = element.value(words[4 * g + q], j);
                    }
                }
            }
        }
        let per_register = product.from.per_register();
        for (i, &reg) in product.c.iter().enumerate() {
            let words = u32::row(&self.registers, reg);
            for g in 0..8 {
                for q in 0..4 {
                    for j in 0..per_register {
                        let e = i * per_register + j;
                        acc[g + 8 * (e >> 1)][2 * q + (e & 1)] =
                            product.from.value(words[4 * g + q], j);
                    }
                }
            }
        }
        (b, acc)
    }

    fn read_fragment(
        &self,
        fragment: &Fragment,
        regs: &[Reg],
        columns: &std::ops::Range<usize>,
        rows: &mut Rows,
    ) {
        let per_register = fragment.element.per_register();
        for (i, &reg) in regs.iter().enumerate() {
            for (lane, &word) in u32::row(&self.registers, reg).iter().enumerate() {
                for j in 0..per_register {
                    let place = fragment.place(lane, i * per_register + j);
                    let (row, col) = fragment.row_col(place);
                    if columns.contains(&col) {
                        rows[row][col - columns.start] = fragment.element.value(word, j);
                    }
                }
            }
        }
    }

    #[inline]
    fn write_panel(&mut self, product: &Product, panel: usize, acc: &Rows) {
        let into = product.into;
        let bits = |x: f32| match into {
            Element::F16 => F16.round(x.into(), Rounding::Nearest),
            _ => x.to_bits(),
        };
        let per_register = into.per_register();
        let accumulator =
            Fragment { element: into, n_regs: product.d.len(), ..product.accumulator() };
        for (i, &reg) in product.d.iter().enumerate() {
            let row = u32::row_mut(&mut self.registers, reg);
            for (lane, word) in row.iter_mut().enumerate() {
                for j in 0..per_register {
                    let e = i * per_register + j;
                    let (r, c) = if product.wmma.is_some() {
                        accumulator.row_col(accumulator.place(lane, e))
                    } else {
                        (lane / 4 + 8 * (e >> 1), 2 * (lane % 4) + (e & 1))
                    };
                    let Some(c) = c.checked_sub(panel * PANEL).filter(|&c| c < PANEL) else {
                        continue;
                    };
                    if per_register == 1 {
                        *word = bits(acc[r][c]);
                    } else {
                        let shift = 16 * j;
                        *word = *word & !(0xffff << shift) | bits(acc[r][c]) << shift;
                    }
                }
            }
        }
    }

    /// Products of bytes, summed in 32 bits; with `.satfinite` the sum is clamped at the end.
    fn integer_product(&mut self, product: &Product) {
        let mut a = [0.0; MAX_ELEMENTS];
        self.read_a(product, &mut a);
        let (b, _) = self.read_panel(product, 0);
        let k = product.k;
        let mut rows = vec![[0_u32; LANES]; product.d.len()];
        for (i, &reg) in product.c.iter().enumerate() {
            let words = u32::row(&self.registers, reg);
            for lane in lanes(u32::MAX) {
                let (r, c) = (lane / 4 + 8 * (i >> 1), 2 * (lane % 4) + (i & 1));
                let sum = (0..k).map(|kk| a[r * k + kk] as i64 * b[kk][c] as i64).sum::<i64>()
                    + i64::from(words[lane].cast_signed());
                let sum = if product.is_saturated {
                    sum.clamp(i32::MIN.into(), i32::MAX.into())
                } else {
                    sum
                };
                rows[i][lane] = sum as u32;
            }
        }
        for (&reg, row) in product.d.iter().zip(&rows) {
            self.registers.set(u32::MAX, reg, row);
        }
    }
}

impl Product {
    fn fragment(&self, part: Part, is_by_column: bool) -> Fragment {
        let (rows, cols, element, n_regs) = match part {
            Part::A => (self.m, self.k, self.element, self.a.len()),
            Part::B => (self.k, self.n, self.element_b, self.b.len()),
            Part::Accumulator => (self.m, self.n, self.from, self.c.len()),
        };
        let is_stored_by_column = is_by_column;
        Fragment { rows, cols, element, is_by_column, is_stored_by_column, n_regs }
    }

    fn accumulator(&self) -> Fragment {
        self.fragment(Part::Accumulator, false)
    }
}
