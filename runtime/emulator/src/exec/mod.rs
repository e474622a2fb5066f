//! A warp that executes: 32 lanes in lockstep, with a stack of masks for divergence.
//!
//! A branch that lanes disagree on pushes both sides; each runs to the branch's immediate postdominator, where
//! the lanes go on together.

mod async_copy;
mod atomic;
mod collective;
mod compare;
mod convert;
mod float;
mod group_product;
mod half;
mod integer;
mod load_store;
mod matrix;
mod mbarrier;
mod move_bits;

pub(crate) use async_copy::{Bulk, Copies};
pub(crate) use group_product::{Group, GroupProducts};
pub(crate) use mbarrier::Mbarrier;

use crate::block::Block;
use crate::error::FaultKind;
use crate::memory::Wrong;
use crate::ops::{Inst, Op};
use crate::registers::{Registers, lanes};
use convert::Conversion;

/// Where lanes are, and where they meet the others again.
#[derive(Clone, Copy, Debug)]
struct Frame {
    at: u32,
    join: u32,
    mask: u32,
}

/// Why a warp stopped running.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Pause {
    /// Its turn is over.
    Turn,
    /// It waits at a barrier.
    Barrier,
    /// All lanes have exited.
    Done,
}

/// A warp.
#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) index: usize,
    pub(crate) registers: Registers,
    stack: Vec<Frame>,
    /// Lanes that have not exited.
    pub(crate) live: u32,
    pub(crate) copies: Copies,
    pub(crate) group_products: GroupProducts,
    /// Instructions so far.
    pub(crate) n_steps: u64,
}

/// What an instruction did to the flow of its warp.
enum Flow {
    Next,
    /// The stack says where to go on.
    Jumped,
    Pause(Pause),
}

impl Warp {
    /// A warp at the first instruction with the lanes of `mask`.
    pub(crate) fn new(index: usize, registers: Registers, mask: u32) -> Self {
        let stack = vec![Frame { at: 0, join: u32::MAX, mask }];
        Self {
            index,
            registers,
            stack,
            live: mask,
            copies: Copies::default(),
            group_products: GroupProducts::default(),
            n_steps: 0,
        }
    }

    /// The instruction that the warp is at.
    pub(crate) fn at(&self) -> usize {
        self.stack.last().map_or(0, |frame| frame.at as usize)
    }

    /// The first lane at that instruction.
    pub(crate) fn first_lane(&self) -> usize {
        self.stack.last().map_or(0, |frame| frame.mask.trailing_zeros().min(31) as usize)
    }

    /// Runs up to `n_steps` instructions; an error is that of the instruction [`Warp::at`].
    pub(crate) fn run(
        &mut self,
        block: &mut Block<'_>,
        code: &[Inst],
        n_steps: u64,
    ) -> Result<Pause, Box<Wrong>> {
        let end = self.n_steps + n_steps;
        while self.n_steps < end {
            let Some(&frame) = self.stack.last() else { return Ok(Pause::Done) };
            if frame.mask == 0 || frame.at == frame.join {
                self.stack.pop();
                continue;
            }
            // Lowering ends every entry by an exit.
            let inst = &code[frame.at as usize];
            self.n_steps += 1;
            block.stats.count(inst.class);
            let mask = frame.mask & self.registers.pred(inst.guard);
            block.is_reached[frame.at as usize] |= mask != 0;
            if !inst.sums.is_empty() && mask != 0 {
                self.note_sums(&inst.sums)?;
            }
            match self.execute(block, inst, frame, mask)? {
                Flow::Next => self.advance(),
                Flow::Jumped => {}
                Flow::Pause(pause) => {
                    if pause != Pause::Done {
                        self.advance();
                    }
                    return Ok(pause);
                }
            }
        }
        Ok(Pause::Turn)
    }

    fn advance(&mut self) {
        if let Some(frame) = self.stack.last_mut() {
            frame.at += 1;
        }
    }

    fn branch(&mut self, frame: Frame, mask: u32, target: u32, join: u32) {
        let (taken, rest) = (mask, frame.mask & !mask);
        let Some(top) = self.stack.last_mut() else { return };
        if rest == 0 {
            top.at = target;
        } else if taken == 0 {
            top.at += 1;
        } else {
            top.at = join;
            self.stack.push(Frame { at: frame.at + 1, join, mask: rest });
            self.stack.push(Frame { at: target, join, mask: taken });
        }
    }

    /// Branches by a table: lanes with one index stay together.
    fn branch_by_index(
        &mut self,
        frame: Frame,
        mask: u32,
        (index, targets, join): (u32, &[u32], u32),
    ) -> Result<(), Box<Wrong>> {
        let row = self.registers.narrow[index as usize];
        if let Some(lane) = lanes(mask).find(|&l| row[l] as usize >= targets.len()) {
            let what = format!("index {} of a table of {} branches", row[lane], targets.len());
            let mut wrong = Wrong::boxed(FaultKind::BadOperand, what);
            wrong.lane = lane;
            return Err(wrong);
        }
        let Some(top) = self.stack.last_mut() else { return Ok(()) };
        top.at = join;
        let rest = frame.mask & !mask;
        if rest != 0 {
            self.stack.push(Frame { at: frame.at + 1, join, mask: rest });
        }
        for (i, &target) in targets.iter().enumerate().rev() {
            let taken = lanes(mask).filter(|&l| row[l] as usize == i).fold(0, |m, l| m | 1 << l);
            if taken != 0 {
                self.stack.push(Frame { at: target, join, mask: taken });
            }
        }
        Ok(())
    }

    fn exit(&mut self, mask: u32) -> Flow {
        self.live &= !mask;
        if let Some(frame) = self.stack.last_mut() {
            frame.at += 1;
        }
        for frame in &mut self.stack {
            frame.mask &= !mask;
        }
        if self.live == 0 {
            self.stack.clear();
            return Flow::Pause(Pause::Done);
        }
        Flow::Jumped
    }

    /// Lanes named by a member mask must be those that execute, apart from exited ones.
    fn check_members(&self, mask: u32, members: u32, lane: usize) -> Result<(), Box<Wrong>> {
        let missing = members & self.live & !mask;
        let (culprit, what) = if members >> lane & 1 == 0 {
            (lane, "the lane executes it but is not in its member mask")
        } else if missing != 0 {
            (
                missing.trailing_zeros() as usize,
                "the lane is in the member mask but does not execute it",
            )
        } else {
            return Ok(());
        };
        let what = format!("lane {culprit}: {what} (mask {members:#010x}, executing {mask:#010x})");
        let mut wrong = Wrong::boxed(FaultKind::InactiveLane, what);
        wrong.lane = culprit;
        Err(wrong)
    }

    /// The same for a row of member masks.
    fn check_member_row(&self, mask: u32, members: u32) -> Result<(), Box<Wrong>> {
        let row = &self.registers.narrow[members as usize];
        lanes(mask).try_for_each(|lane| self.check_members(mask, row[lane], lane))
    }

    fn execute(
        &mut self,
        block: &mut Block<'_>,
        inst: &Inst,
        frame: Frame,
        mask: u32,
    ) -> Result<Flow, Box<Wrong>> {
        let registers = &mut self.registers;
        match &inst.op {
            // These look at lanes that the guard turns off, too.
            Op::Branch { target, join } => {
                self.branch(frame, mask, *target, *join);
                return Ok(Flow::Jumped);
            }
            _ if mask == 0 => {}
            Op::BranchIndex { index, targets, join } => {
                self.branch_by_index(frame, mask, (*index, targets, *join))?;
                return Ok(Flow::Jumped);
            }
            Op::Exit => {
                if mask == self.live {
                    self.leave_group(block)?;
                }
                return Ok(self.exit(mask));
            }
            Op::Trap => return Err(Wrong::boxed(FaultKind::Trap, "the kernel trapped")),
            Op::Yield => return Ok(Flow::Pause(Pause::Turn)),
            Op::Barrier { kind, is_aligned, id, threads } => {
                let waits = self.barrier(block, mask, *kind, *is_aligned, *id, *threads)?;
                return Ok(if waits { Flow::Pause(Pause::Barrier) } else { Flow::Next });
            }
            Op::WarpBarrier { mask: members } => self.check_member_row(mask, *members)?,
            Op::Nop => {}
            Op::Move { is_wide: false, regs: [d, a] } => {
                let row = registers.narrow[*a as usize];
                registers.set(mask, *d, &row);
            }
            Op::Move { is_wide: true, regs: [d, a] } => {
                let row = registers.wide[*a as usize];
                registers.set(mask, *d, &row);
            }
            Op::MovePred { to, from } => {
                let bits = registers.pred(*from);
                registers.set_pred(mask, *to, bits);
            }
            Op::Pack { bits, to, from } => move_bits::pack(registers, mask, *bits, *to, from),
            Op::Unpack { bits, from, to } => move_bits::unpack(registers, mask, *bits, *from, to),
            Op::Clock { to } => move_bits::fill(registers, mask, *to, self.n_steps),
            Op::Window { is_to_generic, space, slots } => {
                move_bits::change_window(registers, mask, *is_to_generic, *space, *slots)?;
            }
            Op::IsSpace { space, to, from } => {
                move_bits::is_space(registers, mask, *space, *to, *from);
            }
            Op::Int { op, ty, regs } => integer::integer(registers, mask, *op, *ty, *regs),
            Op::Bfi { is_wide, regs } => integer::insert(registers, mask, *is_wide, *regs),
            Op::Lop3 { table, regs, any } => {
                integer::lop3(registers, mask, *table, *regs);
                if let Some((to, logic, pred)) = any {
                    let bits = registers.compare([regs[0], regs[0]], |x: u32, _| x != 0);
                    let bits = compare::combine(*logic, bits, registers.pred(*pred));
                    registers.set_pred(mask, *to, bits);
                }
            }
            Op::Carry { ty, is_sub, regs, carry, takes, gives } => {
                let flag = (*carry, *takes, *gives);
                integer::with_carry(registers, mask, *ty, *is_sub, *regs, flag);
            }
            Op::Float { op, ty, mode, regs } => {
                float::float(registers, mask, (*op, *ty, *mode), *regs);
            }
            Op::Half { op, ty, mode, is_relu, regs } => {
                half::half(registers, mask, (*op, *ty, *mode, *is_relu), *regs);
            }
            Op::TestFinite { ty, test, to, from } => {
                float::test(registers, mask, (*ty, *test), *to, *from);
            }
            Op::Compare { cmp, ty, is_ftz, regs, combined, to } => {
                let how = (*cmp, *ty, *is_ftz);
                compare::compare(registers, mask, how, *regs, *combined, *to);
            }
            Op::Select { is_wide, regs, pred } => {
                compare::select(registers, mask, *is_wide, *regs, *pred);
            }
            Op::SelectSign { is_wide, is_float, regs } => {
                compare::select_by_sign(registers, mask, *is_wide, *is_float, *regs);
            }
            Op::PredLogic { logic, to, from: [a, b] } => {
                let bits = compare::combine(*logic, registers.pred(*a), registers.pred(*b));
                registers.set_pred(mask, *to, bits);
            }
            Op::Convert { to, from, mode, is_integral, is_relu, slots } => {
                let (to, from, mode) = (*to, *from, *mode);
                let (is_integral, is_relu) = (*is_integral, *is_relu);
                let conversion = Conversion { to, from, mode, is_integral, is_relu };
                convert::convert(registers, mask, conversion, *slots);
            }
            Op::ConvertPair { to, mode, is_relu, regs } => {
                convert::convert_pair(registers, mask, (*to, *mode, *is_relu), *regs);
            }
            Op::ActiveMask { to } => registers.set(mask, *to, &[mask; 32]),
            Op::CopyCommit => self.copies.commit(mask),
            _ => return self.execute_with_block(block, inst, mask),
        }
        Ok(Flow::Next)
    }

    /// Instructions that need memory or other lanes.
    fn execute_with_block(
        &mut self,
        block: &mut Block<'_>,
        inst: &Inst,
        mask: u32,
    ) -> Result<Flow, Box<Wrong>> {
        match &inst.op {
            Op::Load { space, ty, address, to } => {
                self.load(block, mask, *space, *ty, *address, to)?;
            }
            Op::Store { space, ty, address, from } => {
                self.store(block, mask, *space, *ty, *address, from)?;
            }
            Op::Atomic { space, op, ty, address, to, from } => {
                self.atomic(block, mask, (*space, *op, *ty), *address, (*to, *from))?;
            }
            Op::Shuffle { mode, to, pred, regs, mask: members } => {
                self.shuffle(mask, *mode, (*to, *pred), *regs, *members)?;
            }
            Op::Vote { mode, to, from, mask: members } => {
                self.vote(mask, *mode, *to, *from, *members)?;
            }
            Op::Match { is_all, is_wide, to, pred, from, mask: members } => {
                self.match_lanes(mask, (*is_all, *is_wide), (*to, *pred), *from, *members)?;
            }
            Op::Reduce { op, ty, to, from, mask: members } => {
                self.reduce(mask, (*op, *ty), *to, *from, *members)?;
            }
            Op::Elect { to, pred, mask: members } => self.elect(mask, *to, *pred, *members)?,
            Op::CopyAsync { bytes, to, from, source_bytes, ignored } => {
                let source = (*source_bytes, *ignored);
                self.copy_async(block, mask, *bytes, (*to, *from), source)?;
            }
            Op::CopyWait { n_open } => self.copy_wait(block, mask, *n_open)?,
            Op::CopyWaitAll => self.copy_wait_all(block, mask)?,
            Op::CopyArrive { barrier, is_counted } => {
                self.copy_arrive(block, mask, *barrier, *is_counted)?;
            }
            Op::CopyBulk { to, from, bytes, barrier } => {
                self.copy_bulk(block, mask, (*to, *from), *bytes, *barrier)?;
            }
            Op::MbarrierInit { barrier, count } => {
                self.mbarrier_init(block, mask, *barrier, *count)?;
            }
            Op::MbarrierInvalidate { barrier } => {
                self.mbarrier_invalidate(block, mask, *barrier)?;
            }
            Op::MbarrierArrive { barrier, to, count, expected, drops } => {
                self.mbarrier_arrive(block, mask, *barrier, *to, (*count, *expected, *drops))?;
            }
            Op::MbarrierExpect { barrier, bytes } => {
                self.mbarrier_expect(block, mask, *barrier, *bytes)?;
            }
            Op::MbarrierTest { barrier, to, state } => {
                let is_over = self.mbarrier_test(block, mask, *barrier, *to, *state)?;
                // Whoever it waits for must get a turn.
                return Ok(if is_over { Flow::Next } else { Flow::Pause(Pause::Turn) });
            }
            Op::LoadMatrix { address, is_transposed, to } => {
                self.load_matrix(block, mask, *address, *is_transposed, to)?;
            }
            Op::StoreMatrix { address, is_transposed, from } => {
                self.store_matrix(block, mask, *address, *is_transposed, from)?;
            }
            Op::LoadFragment { space, fragment, address, stride, to } => {
                self.load_fragment(block, mask, *space, fragment, (*address, *stride), to)?;
            }
            Op::StoreFragment { space, fragment, address, stride, from } => {
                self.store_fragment(block, mask, *space, fragment, (*address, *stride), from)?;
            }
            Op::Product(product) => self.product(block, mask, product)?,
            Op::GroupProduct(product) => self.group_product(block, mask, product)?,
            Op::GroupFence => self.group_fence(mask)?,
            Op::GroupCommit => self.group_commit(mask)?,
            Op::GroupWait { n_open } => self.group_wait(block, mask, *n_open)?,
            // Which lane wrote a byte is not known, so that only a fence of the whole warp counts.
            Op::ProxyFence if mask == self.live => block.memory.shared.clocks.fence(self.index),
            _ => {}
        }
        Ok(Flow::Next)
    }
}
