//! `wgmma`: products of four warps whose operands lie in shared memory, summed in registers.
//!
//! The warps of a group need not be at a product at the same time: each multiplies its own 16 rows, at issue or
//! at the wait that guarantees them, and all must issue the same products in the same order. Until its wait
//! nobody may use the sums, whichever way they arrive.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Warp;
use super::matrix::{PANEL, multiply};
use crate::block::Block;
use crate::error::FaultKind;
use crate::launch::Arrival;
use crate::memory::{InLane, MAX_ACCESS, Wrong};
use crate::ops::{Element, GroupProduct};
use crate::registers::{LANES, Reg, Word};

/// Rows of a warp.
const ROWS: usize = 16;
/// Elements of a line that one product reads.
const DEPTH: usize = 16;
/// Bytes of them.
const LINE_BYTES: usize = 2 * DEPTH;
/// Lines that follow each other without a stride.
const EIGHT: u64 = 8;

/// Lines of a matrix, an operand's rows or columns, in shared memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Lines {
    start: u64,
    /// Bytes from the first 16 of a line to the next, where lines are not swizzled.
    leading: u64,
    /// Bytes from eight lines to the next eight.
    stride: u64,
    /// Bytes from a line to the next of the eight.
    pitch: u64,
}

impl Lines {
    /// Reads a descriptor.
    fn new(descriptor: u64) -> Result<Self, Box<Wrong>> {
        let wrong = |what: String| {
            let what = format!("matrix descriptor {descriptor:#018x}: {what}");
            Err(Wrong::boxed(FaultKind::BadOperand, what))
        };
        let bytes = |first_bit: u32| (descriptor >> first_bit & 0x3fff) << 4;
        let (start, leading, stride) = (bytes(0), bytes(16), bytes(32));
        let base_offset = descriptor >> 49 & 7;
        if base_offset != 0 {
            return wrong(format!("base offset {base_offset}, of which only 0 is emulated"));
        }
        let pitch = match descriptor >> 62 {
            1 => 128,
            2 => 64,
            3 => 32,
            _ => MAX_ACCESS as u64,
        };
        let is_first_line = start % (EIGHT * pitch) < pitch;
        if pitch > MAX_ACCESS as u64 && !is_first_line {
            return wrong(format!(
                "starts at {start:#x}, expected one in the first {pitch} bytes of each {} where lines are swizzled",
                EIGHT * pitch
            ));
        }
        Ok(Self { start, leading, stride, pitch })
    }

    /// Where the two halves of a line are.
    #[inline]
    fn halves(self, line: usize) -> [u64; 2] {
        let line = line as u64;
        let at = self.start + line / EIGHT * self.stride + line % EIGHT * self.pitch;
        if self.pitch == MAX_ACCESS as u64 {
            return [at, at + self.leading];
        }
        // Bits of the address that number a line are added to those that number 16 bytes, without carry.
        let swizzled = |at: u64| at ^ (at >> 7 & (self.pitch / MAX_ACCESS as u64 - 1)) << 4;
        [swizzled(at), swizzled(at + MAX_ACCESS as u64)]
    }
}

/// A product as issued.
#[derive(Clone, Debug)]
struct Issue {
    product: Arc<GroupProduct>,
    lines: [Lines; 2],
    keeps_sums: bool,
}

impl Issue {
    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.product, &other.product)
            && self.lines == other.lines
            && self.keeps_sums == other.keeps_sums
    }
}

/// Four warps that multiply together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    /// Products that not every warp has issued.
    open: VecDeque<Issue>,
    /// Products before those.
    n_closed: u64,
    n_issued: [u64; Group::WARPS],
    has_left: [bool; Group::WARPS],
}

impl Group {
    /// Warps of a group.
    pub(crate) const WARPS: usize = 4;

    fn issue(&mut self, warp: usize, issue: &Issue) -> Result<(), Box<Wrong>> {
        let member = warp % Self::WARPS;
        let index = (self.n_issued[member] - self.n_closed) as usize;
        let wrong = |what: String| Err(Wrong::boxed(FaultKind::DivergentBarrier, what));
        match self.open.get(index) {
            Some(first) if first.is_same(issue) => {}
            Some(_) => {
                return wrong(format!(
                    "warp {warp} issues another product of its group than the warps before it: another instruction, \
                     other descriptors or another scale"
                ));
            }
            None => {
                if let Some(other) = self.has_left.iter().position(|has_left| *has_left) {
                    let other = warp - member + other;
                    return wrong(format!(
                        "warp {warp} issues a product of its group, of which warp {other} has exited"
                    ));
                }
                self.open.push_back(issue.clone());
            }
        }
        self.n_issued[member] += 1;
        if self.n_issued.iter().all(|&n| n > self.n_closed) {
            self.open.pop_front();
            self.n_closed += 1;
        }
        Ok(())
    }

    fn leave(&mut self, warp: usize) -> Result<(), Box<Wrong>> {
        let member = warp % Self::WARPS;
        self.has_left[member] = true;
        if self.n_issued[member] - self.n_closed == self.open.len() as u64 {
            return Ok(());
        }
        let what = format!("warp {warp} exits without a product that others of its group issued");
        Err(Wrong::boxed(FaultKind::DivergentBarrier, what))
    }
}

/// A warp's products that are not waited for, in order of issue, and who used their sums.
#[derive(Debug, Default)]
pub(crate) struct GroupProducts {
    /// With the groups that had been committed at issue.
    open: Vec<(u32, Issue)>,
    committed: u32,
    /// By register: the step of the last instruction that named it.
    named_at: Vec<u64>,
    /// The step of the last fence.
    fenced_at: u64,
    /// By register: open products that sum in it.
    n_open: Vec<u16>,
}

impl GroupProducts {
    fn of(&mut self, n_registers: usize) -> &mut Self {
        self.named_at.resize(n_registers, 0);
        self.n_open.resize(n_registers, 0);
        self
    }
}

/// The first lane of a row that all lanes must agree on.
fn agreed<W: Word + PartialEq>(row: &[W; LANES], what: &str) -> Result<W, Box<Wrong>> {
    match row.iter().position(|value| *value != row[0]) {
        None => Ok(row[0]),
        Some(lane) => {
            let what = format!("lanes 0 and {lane} give a product of four warps different {what}");
            Err(Wrong::boxed(FaultKind::BadOperand, what)).in_lane(lane)
        }
    }
}

impl Warp {
    /// An instruction other than a product names sums of products.
    pub(super) fn note_sums(&mut self, sums: &[Reg]) -> Result<(), Box<Wrong>> {
        let now = self.n_steps;
        let n_registers = self.registers.narrow.len();
        let products = self.group_products.of(n_registers);
        for &reg in sums {
            if products.n_open[reg as usize] != 0 {
                let what = "a register in which a wgmma sums that has not been waited for";
                return Err(Wrong::boxed(FaultKind::PendingProduct, what));
            }
            products.named_at[reg as usize] = now;
        }
        Ok(())
    }

    pub(super) fn leave_group(&self, block: &mut Block<'_>) -> Result<(), Box<Wrong>> {
        match block.groups.get_mut(self.index / Group::WARPS) {
            Some(group) => group.leave(self.index),
            None => Ok(()),
        }
    }

    pub(super) fn group_fence(&mut self, mask: u32) -> Result<(), Box<Wrong>> {
        self.check_whole(mask)?;
        self.group_products.fenced_at = self.n_steps;
        Ok(())
    }

    pub(super) fn group_commit(&mut self, mask: u32) -> Result<(), Box<Wrong>> {
        self.check_whole(mask)?;
        self.group_products.committed += 1;
        Ok(())
    }

    pub(super) fn group_product(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        product: &Arc<GroupProduct>,
    ) -> Result<(), Box<Wrong>> {
        self.check_whole(mask)?;
        let keeps = self.registers.pred(product.keeps_sums);
        let keeps = std::array::from_fn(|lane| keeps >> lane & 1);
        let [a, b] = product.descriptors.map(|reg| u64::row(&self.registers, reg));
        let lines = [
            Lines::new(agreed(a, "descriptors of A")?)?,
            Lines::new(agreed(b, "descriptors of B")?)?,
        ];
        let keeps_sums = agreed::<u32>(&keeps, "scales of D")? != 0;
        let issue = Issue { product: Arc::clone(product), lines, keeps_sums };
        self.check_sums(product)?;
        let Some(group) = block.groups.get_mut(self.index / Group::WARPS) else {
            let what = "a product of four warps in a block whose last warps are fewer";
            return Err(Wrong::boxed(FaultKind::DivergentBarrier, what));
        };
        group.issue(self.index, &issue)?;
        for &reg in &product.sums {
            self.group_products.n_open[reg as usize] += 1;
        }
        if block.options.arrival == Arrival::Early {
            self.multiply_rows(block, &issue)?;
        }
        self.group_products.open.push((self.group_products.committed, issue));
        Ok(())
    }

    /// Sums may be those of open products only if they are all the same, and else need a fence.
    fn check_sums(&mut self, product: &GroupProduct) -> Result<(), Box<Wrong>> {
        let n_registers = self.registers.narrow.len();
        let products = self.group_products.of(n_registers);
        let shares = |other: &GroupProduct| {
            other.sums != product.sums && other.sums.iter().any(|reg| product.sums.contains(reg))
        };
        if products.open.iter().any(|(_, open)| shares(&open.product)) {
            let what =
                "some, not all of the registers in which a wgmma sums that has not been waited for";
            return Err(Wrong::boxed(FaultKind::PendingProduct, what));
        }
        let is_late = |reg: &&Reg| products.named_at[**reg as usize] > products.fenced_at;
        if product.sums.iter().any(|reg| is_late(&reg)) {
            let what = "sums that other instructions used with no wgmma.fence since";
            return Err(Wrong::boxed(FaultKind::MissingFence, what));
        }
        Ok(())
    }

    pub(super) fn group_wait(
        &mut self,
        block: &mut Block<'_>,
        mask: u32,
        n_open: u32,
    ) -> Result<(), Box<Wrong>> {
        self.check_whole(mask)?;
        let n_done = self.group_products.committed.saturating_sub(n_open);
        let open = &self.group_products.open;
        // Groups rise in order of issue.
        let n = open.partition_point(|&(group, _)| group < n_done);
        let done: Vec<(u32, Issue)> = self.group_products.open.drain(..n).collect();
        for (_, issue) in &done {
            if block.options.arrival == Arrival::Late {
                self.multiply_rows(block, issue)?;
            }
            for &reg in &issue.product.sums {
                self.group_products.n_open[reg as usize] -= 1;
            }
        }
        Ok(())
    }

    /// The elements of one line.
    #[inline]
    fn line(
        &self,
        block: &mut Block<'_>,
        lines: Lines,
        line: usize,
        element: Element,
    ) -> Result<[f32; DEPTH], Box<Wrong>> {
        let [first, second] = lines.halves(line);
        let mut bytes = [0; LINE_BYTES];
        let low = first.min(second);
        let memory = &mut block.memory;
        if first.abs_diff(second) == MAX_ACCESS as u64 && low.is_multiple_of(LINE_BYTES as u64) {
            // Both halves at once, in either order.
            let read = memory.read_shared_by_proxy(low, self.access(0, LINE_BYTES))?;
            let (front, back) = read.split_at(MAX_ACCESS);
            let (front, back) = if first < second { (front, back) } else { (back, front) };
            bytes[..MAX_ACCESS].copy_from_slice(front);
            bytes[MAX_ACCESS..].copy_from_slice(back);
        } else {
            for (half, to) in [first, second].into_iter().zip(bytes.chunks_exact_mut(MAX_ACCESS)) {
                let read = memory.read_shared_by_proxy(half, self.access(0, MAX_ACCESS))?;
                to.copy_from_slice(read);
            }
        }
        Ok(std::array::from_fn(|k| {
            let word = u16::from_le_bytes([bytes[2 * k], bytes[2 * k + 1]]);
            element.value(word.into(), 0)
        }))
    }

    /// A product for the rows of this warp.
    fn multiply_rows(&mut self, block: &mut Block<'_>, issue: &Issue) -> Result<(), Box<Wrong>> {
        let GroupProduct { n, element, sums, is_negated, .. } = &*issue.product;
        let [left, right] = issue.lines;
        block.stats.products += 1;
        block.stats.multiply_adds += (ROWS * n * DEPTH) as u64;
        // Columns are read once for the four warps.
        block.stats.shared_loaded += (LINE_BYTES * (ROWS + n / Group::WARPS)) as u64;
        let mut a = [0.0; ROWS * DEPTH];
        let first_row = self.index % Group::WARPS * ROWS;
        for (row, to) in a.chunks_exact_mut(DEPTH).enumerate() {
            let line = self.line(block, left, first_row + row, *element)?;
            to.copy_from_slice(&line.map(|x| if *is_negated { -x } else { x }));
        }
        for (panel, sums) in sums.chunks_exact(PANEL / 2).enumerate() {
            let mut b = [[0.0; PANEL]; LANES];
            for column in 0..PANEL {
                let line = self.line(block, right, panel * PANEL + column, *element)?;
                for (b, x) in b.iter_mut().zip(line) {
                    b[column] = x;
                }
            }
            let mut acc = [[0.0; PANEL]; ROWS];
            if issue.keeps_sums {
                for (i, &reg) in sums.iter().enumerate() {
                    for (lane, &word) in u32::row(&self.registers, reg).iter().enumerate() {
                        acc[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] = f32::from_bits(word);
                    }
                }
            }
            multiply(&a, DEPTH, &b, &mut acc);
            for (i, &reg) in sums.iter().enumerate() {
                let row = u32::row_mut(&mut self.registers, reg);
                for (lane, word) in row.iter_mut().enumerate() {
                    *word = acc[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2].to_bits();
                }
            }
        }
        Ok(())
    }
}
