//! Barriers, fences, mbarriers and collectives of a warp.

use super::Lowering;
use super::memory::{atom_op, is_reduced};
use crate::Error;
use crate::ast::Instruction;
use crate::ops::{BarrierKind, Logic, MbarrierState, Op, ShflMode, VoteMode};
use crate::stats::Class;
use crate::types::Ty;

impl Lowering<'_> {
    pub(super) fn collective(&mut self, inst: &Instruction) -> Result<(), Error> {
        match inst.opcode[0].as_str() {
            "bar" | "barrier" => self.barrier(inst),
            "membar" => self.emit(Op::Nop, Class::Barrier),
            "fence" => self.fence(inst),
            "shfl" => self.shuffle(inst),
            "vote" => self.vote(inst),
            "match" => self.match_lanes(inst),
            "redux" => self.reduce(inst),
            "elect" => {
                self.check_modifiers(inst, &["sync"])?;
                self.check_count(inst, &[2])?;
                let (to, pred) = self.dest_pair(&inst.operands[0])?;
                let to = self.dest_slot(&to, Ty::U32)?;
                let Some(pred) = pred else { return self.unknown(inst, "without a predicate") };
                let mask = self.source(&inst.operands[1], Ty::U32)?;
                self.emit(Op::Elect { to, pred, mask }, Class::Collective)
            }
            _ => {
                self.check_modifiers(inst, &[])?;
                self.check_count(inst, &[1])?;
                let to = self.dest(&inst.operands[0], Ty::U32)?;
                self.emit(Op::ActiveMask { to }, Class::Collective)
            }
        }
    }

    /// Memory is in order here, but for what products of a group read of it.
    fn fence(&mut self, inst: &Instruction) -> Result<(), Error> {
        let is_of_proxy = inst.has("proxy") && inst.has("async");
        // One that names a space orders accesses to that space only.
        let is_of_shared = !inst.has("global");
        let op = if is_of_proxy && is_of_shared { Op::ProxyFence } else { Op::Nop };
        self.emit(op, Class::Barrier)
    }

    fn barrier(&mut self, inst: &Instruction) -> Result<(), Error> {
        let known = ["cta", "warp", "sync", "arrive", "red", "aligned", "popc", "and", "or"];
        self.check_modifiers(inst, &known)?;
        let operands = &inst.operands;
        if inst.has("warp") {
            self.check_count(inst, &[1])?;
            let mask = self.source(&operands[0], Ty::U32)?;
            return self.emit(Op::WarpBarrier { mask }, Class::Barrier);
        }
        let is_aligned = inst.opcode[0] == "bar" || inst.has("aligned");
        let is_red = inst.has("red");
        let first = usize::from(is_red);
        let n_last = usize::from(is_red);
        self.check_count(inst, &[first + 1 + n_last, first + 2 + n_last])?;
        let id = self.source(&operands[first], Ty::U32)?;
        let threads = match operands.len() == first + 2 + n_last {
            true => Some(self.source(&operands[first + 1], Ty::U32)?),
            false => None,
        };
        let kind = if is_red {
            let pred = self.pred_use(&operands[operands.len() - 1])?;
            if inst.has("popc") {
                BarrierKind::Popc { pred, to: self.dest(&operands[0], Ty::U32)? }
            } else {
                let logic = if inst.has("and") { Logic::And } else { Logic::Or };
                let Some(to) = self.pred_dest(&operands[0])? else {
                    return self.unknown(inst, "without a destination");
                };
                BarrierKind::Logic { logic, pred, to }
            }
        } else if inst.has("arrive") {
            BarrierKind::Arrive
        } else if inst.has("sync") {
            BarrierKind::Sync
        } else {
            return self.unknown(inst, "this kind of barrier");
        };
        self.emit(Op::Barrier { kind, is_aligned, id, threads }, Class::Barrier)
    }

    fn shuffle(&mut self, inst: &Instruction) -> Result<(), Error> {
        self.check_modifiers(inst, &["sync", "up", "down", "bfly", "idx"])?;
        if !inst.has("sync") {
            return self.unknown(inst, "without .sync, which targets from sm_70 on lack");
        }
        self.check_count(inst, &[5])?;
        let mode = match inst.opcode.get(2).map(String::as_str) {
            Some("up") => ShflMode::Up,
            Some("down") => ShflMode::Down,
            Some("bfly") => ShflMode::Bfly,
            _ => ShflMode::Idx,
        };
        let (to, pred) = self.dest_pair(&inst.operands[0])?;
        let to = self.dest_slot(&to, Ty::U32)?;
        let mut regs = [0; 3];
        for (reg, operand) in regs.iter_mut().zip(&inst.operands[1..]) {
            *reg = self.source(operand, Ty::U32)?;
        }
        let mask = self.source(&inst.operands[4], Ty::U32)?;
        self.emit(Op::Shuffle { mode, to, pred, regs, mask }, Class::Collective)
    }

    fn vote(&mut self, inst: &Instruction) -> Result<(), Error> {
        self.check_modifiers(inst, &["sync", "all", "any", "uni", "ballot"])?;
        if !inst.has("sync") {
            return self.unknown(inst, "without .sync, which targets from sm_70 on lack");
        }
        self.check_count(inst, &[3])?;
        let mode = match inst.opcode.get(2).map(String::as_str) {
            Some("all") => VoteMode::All,
            Some("any") => VoteMode::Any,
            Some("uni") => VoteMode::Uni,
            _ => VoteMode::Ballot,
        };
        let to = if mode == VoteMode::Ballot {
            self.dest(&inst.operands[0], Ty::U32)?
        } else {
            match self.pred_dest(&inst.operands[0])? {
                Some(to) => to,
                None => return self.unknown(inst, "without a destination"),
            }
        };
        let from = self.pred_use(&inst.operands[1])?;
        let mask = self.source(&inst.operands[2], Ty::U32)?;
        self.emit(Op::Vote { mode, to, from, mask }, Class::Collective)
    }

    fn match_lanes(&mut self, inst: &Instruction) -> Result<(), Error> {
        self.check_modifiers(inst, &["any", "all", "sync"])?;
        self.check_count(inst, &[3])?;
        let ty = self.ty(inst)?;
        if !matches!(ty, Ty::U32 | Ty::U64) {
            return self.unknown(inst, "its type");
        }
        let (to, pred) = self.dest_pair(&inst.operands[0])?;
        let to = self.dest(&to, Ty::U32)?;
        let from = self.source(&inst.operands[1], ty)?;
        let mask = self.source(&inst.operands[2], Ty::U32)?;
        let (is_all, is_wide) = (inst.has("all"), ty.is_wide());
        self.emit(Op::Match { is_all, is_wide, to, pred, from, mask }, Class::Collective)
    }

    fn reduce(&mut self, inst: &Instruction) -> Result<(), Error> {
        self.check_modifiers(inst, &["sync", "add", "min", "max", "and", "or", "xor"])?;
        self.check_count(inst, &[3])?;
        let op = inst.opcode[1..].iter().find_map(|part| atom_op(part));
        let Some(op) = op.filter(|_| is_reduced(inst)) else {
            return self.unknown(inst, "its operation or type");
        };
        let ty = self.ty(inst)?;
        let to = self.dest(&inst.operands[0], ty)?;
        let from = self.source(&inst.operands[1], ty)?;
        let mask = self.source(&inst.operands[2], Ty::U32)?;
        self.emit(Op::Reduce { op, ty, to, from, mask }, Class::Collective)
    }

    pub(super) fn mbarrier(&mut self, inst: &Instruction) -> Result<(), Error> {
        let known = [
            "init",
            "inval",
            "arrive",
            "arrive_drop",
            "expect_tx",
            "test_wait",
            "try_wait",
            "parity",
            "shared",
            "shared::cta",
            "relaxed",
            "acquire",
            "release",
            "cta",
            "cluster",
        ];
        self.check_modifiers(inst, &known)?;
        let operands = &inst.operands;
        let action = inst.opcode.get(1).map_or("", String::as_str);
        let is_waiting = matches!(action, "test_wait" | "try_wait");
        let counts: &[usize] = match action {
            "init" => &[2],
            "inval" => &[1],
            "arrive" | "arrive_drop" => &[2, 3],
            "expect_tx" => &[2],
            _ if is_waiting => &[3, 4],
            _ => return self.unknown(inst, "this form of an mbarrier"),
        };
        self.check_count(inst, counts)?;
        let at = match action {
            "arrive" | "arrive_drop" => 1,
            _ if is_waiting => 1,
            _ => 0,
        };
        let (barrier, _) = self.address(&operands[at])?;
        let op = match action {
            "init" => Op::MbarrierInit { barrier, count: self.source(&operands[1], Ty::U32)? },
            "inval" => Op::MbarrierInvalidate { barrier },
            "expect_tx" => {
                Op::MbarrierExpect { barrier, bytes: self.source(&operands[1], Ty::U32)? }
            }
            _ if is_waiting => {
                let Some(to) = self.pred_dest(&operands[0])? else {
                    return self.unknown(inst, "without a destination");
                };
                let state = if inst.has("parity") {
                    MbarrierState::Parity(self.source(&operands[2], Ty::U32)?)
                } else {
                    MbarrierState::Token(self.source(&operands[2], Ty::U64)?)
                };
                Op::MbarrierTest { barrier, to, state }
            }
            _ => {
                let to = self.dest_slot(&operands[0], Ty::U64)?;
                let third = match operands.get(2) {
                    Some(operand) => Some(self.source(operand, Ty::U32)?),
                    None => None,
                };
                let (count, expected) =
                    if inst.has("expect_tx") { (None, third) } else { (third, None) };
                let drops = action == "arrive_drop";
                Op::MbarrierArrive { barrier, to, count, expected, drops }
            }
        };
        self.emit(op, Class::Barrier)
    }
}
