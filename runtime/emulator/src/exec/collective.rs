//! Collectives of a warp: shuffles, votes, matches, reductions, elections.

use super::atomic;
use super::{Warp, move_bits};
use crate::error::FaultKind;
use crate::memory::{InLane, Wrong};
use crate::ops::{AtomOp, ShflMode, Slot, VoteMode};
use crate::registers::{LANES, PredUse, Reg, Word, lanes};
use crate::types::Ty;

impl Warp {
    /// `shfl.sync d|p, a, b, c, members`; `regs` are a, b, c.
    pub(super) fn shuffle(
        &mut self,
        mask: u32,
        mode: ShflMode,
        (to, pred): (Slot, Option<Reg>),
        regs: [Reg; 3],
        members: Reg,
    ) -> Result<(), Box<Wrong>> {
        self.check_member_row(mask, members)?;
        let [a, b, c] = regs.map(|reg| *u32::row(&self.registers, reg));
        let (mut row, mut bits) = ([0; LANES], 0);
        for lane in lanes(mask) {
            let offset = (b[lane] & 31) as usize;
            let (clamp, segments) = ((c[lane] & 31) as usize, (c[lane] >> 8 & 31) as usize);
            let last = lane & segments | clamp & !segments;
            let first = lane & segments;
            let (source, is_inside) = match mode {
                ShflMode::Up => (lane.wrapping_sub(offset), lane >= offset + last),
                ShflMode::Down => (lane + offset, lane + offset <= last),
                ShflMode::Bfly => (lane ^ offset, lane ^ offset <= last),
                ShflMode::Idx => {
                    let source = first | offset & !segments & 31;
                    (source, source <= last)
                }
            };
            let source = if is_inside { source } else { lane };
            if mask >> source & 1 == 0 {
                let what = format!("the shuffle reads lane {source}, which does not execute it");
                return Err(Wrong::boxed(FaultKind::InactiveLane, what)).in_lane(lane);
            }
            row[lane] = u64::from(a[source]);
            bits |= u32::from(is_inside) << lane;
        }
        move_bits::write(&mut self.registers, mask, to, &row);
        if let Some(pred) = pred {
            self.registers.set_pred(mask, pred, bits);
        }
        Ok(())
    }

    pub(super) fn vote(
        &mut self,
        mask: u32,
        mode: VoteMode,
        to: Reg,
        from: PredUse,
        members: Reg,
    ) -> Result<(), Box<Wrong>> {
        self.check_member_row(mask, members)?;
        let votes = self.registers.pred(from) & mask;
        let all = |holds: bool| if holds { u32::MAX } else { 0 };
        match mode {
            VoteMode::Ballot => self.registers.set(mask, to, &[votes; LANES]),
            VoteMode::All => self.registers.set_pred(mask, to, all(votes == mask)),
            VoteMode::Any => self.registers.set_pred(mask, to, all(votes != 0)),
            VoteMode::Uni => self.registers.set_pred(mask, to, all(votes == mask || votes == 0)),
        }
        Ok(())
    }

    pub(super) fn match_lanes(
        &mut self,
        mask: u32,
        (is_all, is_wide): (bool, bool),
        (to, pred): (Reg, Option<Reg>),
        from: Reg,
        members: Reg,
    ) -> Result<(), Box<Wrong>> {
        self.check_member_row(mask, members)?;
        let slot = if is_wide { Slot::Wide(from) } else { Slot::Narrow(from) };
        let values = move_bits::read(&self.registers, slot);
        let same = |lane: usize| {
            lanes(mask).filter(|&l| values[l] == values[lane]).fold(0, |bits, l| bits | 1 << l)
        };
        let mut row = [0; LANES];
        let mut bits = 0;
        for lane in lanes(mask) {
            let same: u32 = same(lane);
            if !is_all || same == mask {
                row[lane] = same;
                bits |= 1 << lane;
            }
        }
        self.registers.set(mask, to, &row);
        if let Some(pred) = pred {
            self.registers.set_pred(mask, pred, bits);
        }
        Ok(())
    }

    /// `redux.sync`
    pub(super) fn reduce(
        &mut self,
        mask: u32,
        (op, ty): (AtomOp, Ty),
        to: Reg,
        from: Reg,
        members: Reg,
    ) -> Result<(), Box<Wrong>> {
        self.check_member_row(mask, members)?;
        let values = *u32::row(&self.registers, from);
        let reduced = lanes(mask)
            .map(|lane| u64::from(values[lane]))
            .reduce(|old, x| atomic::combine(op, ty, old, x, 0))
            .unwrap_or(0);
        self.registers.set(mask, to, &[reduced as u32; LANES]);
        Ok(())
    }

    /// `elect.sync`: the lowest lane.
    pub(super) fn elect(
        &mut self,
        mask: u32,
        to: Slot,
        pred: Reg,
        members: Reg,
    ) -> Result<(), Box<Wrong>> {
        self.check_member_row(mask, members)?;
        let leader = mask.trailing_zeros();
        move_bits::fill(&mut self.registers, mask, to, u64::from(leader));
        self.registers.set_pred(mask, pred, 1 << leader);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registers::{ALWAYS, Registers};

    fn warp() -> Warp {
        let rows = vec![
            std::array::from_fn(|l| 100 + l as u32),
            [0; LANES],
            [0; LANES],
            [u32::MAX; LANES],
            [0; LANES],
        ];
        Warp::new(0, Registers { narrow: rows, wide: vec![], preds: vec![u32::MAX, 0] }, u32::MAX)
    }

    #[test]
    fn up_copies_from_below_within_segments() {
        let mut warp = warp();
        warp.registers.narrow[1] = [3; LANES];
        // Segments of 8 lanes: mask 0b11000, clamp 0.
        warp.registers.narrow[2] = [0x1800; LANES];
        let to = (Slot::Narrow(4), Some(1));
        warp.shuffle(u32::MAX, ShflMode::Up, to, [0, 1, 2], 3).unwrap();
        let expected: [u32; LANES] =
            std::array::from_fn(|l| 100 + if l % 8 >= 3 { l - 3 } else { l } as u32);
        assert_eq!(warp.registers.narrow[4], expected);
        assert_eq!(warp.registers.preds[1], 0xf8f8_f8f8);
    }

    #[test]
    fn reading_a_lane_that_is_off_is_wrong() {
        let mut warp = warp();
        warp.registers.narrow[1] = [1; LANES];
        warp.registers.narrow[2] = [0x1f; LANES];
        warp.registers.narrow[3] = [0x5555_5555; LANES];
        warp.live = 0x5555_5555;
        let to = (Slot::Narrow(4), None);
        let wrong = warp.shuffle(0x5555_5555, ShflMode::Bfly, to, [0, 1, 2], 3).unwrap_err();
        assert_eq!(wrong.kind, FaultKind::InactiveLane);
        assert_eq!(wrong.lane, 0);
    }

    #[test]
    fn members_that_do_not_come_are_wrong() {
        let mut warp = warp();
        let wrong = warp.vote(0xffff, VoteMode::Ballot, 4, ALWAYS, 3).unwrap_err();
        assert_eq!((wrong.kind, wrong.lane), (FaultKind::InactiveLane, 16));
        // Those that have exited need not come.
        warp.live = 0xffff;
        warp.vote(0xffff, VoteMode::Ballot, 4, ALWAYS, 3).unwrap();
        assert_eq!(warp.registers.narrow[4][0], 0xffff);
    }
}
