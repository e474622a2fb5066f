//! Comparisons, selections, moves, and addresses between spaces.

use super::Lowering;
use super::operands::{as_list, space_of, types};
use super::scopes::Symbol;
use crate::Error;
use crate::ast::{Instruction, Operand};
use crate::ops::{Cmp, Destination, Logic, Op, Slot};
use crate::stats::Class;
use crate::types::Ty;

fn comparison(text: &str) -> Option<Cmp> {
    Some(match text {
        "eq" => Cmp::Eq,
        "ne" => Cmp::Ne,
        "lt" | "lo" => Cmp::Lt,
        "le" | "ls" => Cmp::Le,
        "gt" | "hi" => Cmp::Gt,
        "ge" | "hs" => Cmp::Ge,
        "equ" => Cmp::Equ,
        "neu" => Cmp::Neu,
        "ltu" => Cmp::Ltu,
        "leu" => Cmp::Leu,
        "gtu" => Cmp::Gtu,
        "geu" => Cmp::Geu,
        "num" => Cmp::Num,
        "nan" => Cmp::Nan,
        _ => return None,
    })
}

impl Lowering<'_> {
    pub(super) fn data(&mut self, inst: &Instruction) -> Result<(), Error> {
        match inst.opcode[0].as_str() {
            "setp" | "set" => self.compare(inst),
            "selp" => {
                self.check_modifiers(inst, &[])?;
                self.check_count(inst, &[4])?;
                let ty = self.ty(inst)?;
                let regs = [
                    self.dest(&inst.operands[0], ty)?,
                    self.source(&inst.operands[1], ty)?,
                    self.source(&inst.operands[2], ty)?,
                ];
                let pred = self.pred_use(&inst.operands[3])?;
                self.emit(Op::Select { is_wide: ty.is_wide(), regs, pred }, Class::Predicate)
            }
            "slct" => {
                self.check_modifiers(inst, &["ftz"])?;
                self.check_count(inst, &[4])?;
                let &[ty, sign] = types(inst).as_slice() else {
                    return self.unknown(inst, "its types");
                };
                if !matches!(sign, Ty::S32 | Ty::F32) {
                    return self.unknown(inst, "the type of its last operand");
                }
                let regs = [
                    self.dest(&inst.operands[0], ty)?,
                    self.source(&inst.operands[1], ty)?,
                    self.source(&inst.operands[2], ty)?,
                    self.source(&inst.operands[3], sign)?,
                ];
                let (is_wide, is_float) = (ty.is_wide(), sign == Ty::F32);
                self.emit(Op::SelectSign { is_wide, is_float, regs }, Class::Predicate)
            }
            "mov" => self.mov(inst),
            _ => self.window(inst),
        }
    }

    fn compare(&mut self, inst: &Instruction) -> Result<(), Error> {
        let Some(cmp) = inst.opcode.get(1).and_then(|part| comparison(part)) else {
            return self.unknown(inst, "its comparison");
        };
        let logic = match inst.opcode.get(2).map(String::as_str) {
            Some("and") => Some(Logic::And),
            Some("or") => Some(Logic::Or),
            Some("xor") => Some(Logic::Xor),
            _ => None,
        };
        let known = [inst.opcode[1].as_str(), "and", "or", "xor", "ftz"];
        self.check_modifiers(inst, &known)?;
        self.check_count(inst, &[if logic.is_some() { 4 } else { 3 }])?;
        let ty = self.ty(inst)?;
        if matches!(ty, Ty::Pred | Ty::Tf32) {
            return self.unknown(inst, "its type");
        }
        let to = if inst.opcode[0] == "set" {
            let result = types(inst)[0];
            let is_float = !result.is_integer();
            // A float result of halves is of their type, and no other has one.
            if is_float && (ty.is_half() || result.is_half()) && result != ty {
                return self.unknown(inst, "its types");
            }
            Destination::Word { to: self.dest(&inst.operands[0], result)?, is_float }
        } else {
            match &inst.operands[0] {
                Operand::Pair(p, q) => Destination::Preds(self.pred_named(p)?, self.pred_named(q)?),
                operand => Destination::Preds(self.pred_dest(operand)?, None),
            }
        };
        let regs = [self.source(&inst.operands[1], ty)?, self.source(&inst.operands[2], ty)?];
        let combined = match logic {
            Some(logic) => Some((logic, self.pred_use(&inst.operands[3])?)),
            None => None,
        };
        let is_ftz = inst.has("ftz");
        self.emit(Op::Compare { cmp, ty, is_ftz, regs, combined, to }, Class::Predicate)
    }

    fn mov(&mut self, inst: &Instruction) -> Result<(), Error> {
        self.check_modifiers(inst, &[])?;
        self.check_count(inst, &[2])?;
        let ty = self.ty(inst)?;
        let (to, from) = (&inst.operands[0], &inst.operands[1]);
        if ty == Ty::Pred {
            let Some(reg) = self.pred_dest(to)? else { return Ok(()) };
            let from = match from {
                Operand::Int(value) => {
                    crate::registers::PredUse { reg: 0, is_negated: *value == 0 }
                }
                _ => self.pred_use(from)?,
            };
            return self.emit(Op::MovePred { to: reg, from }, Class::Predicate);
        }
        if matches!(to, Operand::Vector(_)) || matches!(from, Operand::Vector(_)) {
            return self.pack(inst, ty);
        }
        if let Operand::Name(name) = from
            && matches!(name.as_str(), "%clock" | "%clock_hi" | "%clock64" | "%globaltimer")
        {
            let to = self.dest_slot(to, ty)?;
            return self.emit(Op::Clock { to }, Class::Move);
        }
        let regs = [self.dest(to, ty)?, self.source(from, ty)?];
        self.emit(Op::Move { is_wide: ty.is_wide(), regs }, Class::Move)
    }

    /// `mov.b32 d, {a, b}` and `mov.b32 {a, b}, d`.
    fn pack(&mut self, inst: &Instruction, ty: Ty) -> Result<(), Error> {
        let (to, from) = (&inst.operands[0], &inst.operands[1]);
        let is_pack = matches!(from, Operand::Vector(_));
        let n_parts = as_list(if is_pack { from } else { to }).len() as u32;
        let part = match (ty.bytes(), n_parts) {
            (4, 2) | (8, 4) => Ty::U16,
            (8, 2) => Ty::U32,
            (2, 2) | (4, 4) => Ty::U8,
            _ => return self.unknown(inst, "vectors of that many parts"),
        };
        let bits = 8 * part.bytes();
        let op = if is_pack {
            Op::Pack { bits, from: self.slots(from, part)?, to: self.dest_slot(to, ty)? }
        } else {
            Op::Unpack { bits, from: self.slot(from, ty)?, to: self.dest_slots(to, part)? }
        };
        self.emit(op, Class::Move)
    }

    /// `cvta` and `isspacep`.
    fn window(&mut self, inst: &Instruction) -> Result<(), Error> {
        self.check_count(inst, &[2])?;
        let found = inst.opcode[1..].iter().find_map(|part| Some((part, space_of(part)?)));
        let Some((name, space)) = found else { return self.unknown(inst, "its state space") };
        self.check_modifiers(inst, &["to", name])?;
        let (to, from) = (&inst.operands[0], &inst.operands[1]);
        if inst.opcode[0] == "isspacep" {
            let Some(to) = self.pred_dest(to)? else { return Ok(()) };
            let from = self.slot(from, Ty::U64)?;
            return self.emit(Op::IsSpace { space, to, from }, Class::Predicate);
        }
        let ty = self.ty(inst)?;
        let is_to_generic = !inst.has("to");
        // Only variables of the named space have addresses in it.
        if let Operand::Name(name) = from
            && let Some(Symbol::Variable { space: found, .. }) = self.find_symbol(name)?
            && (found != space || !is_to_generic)
        {
            return self.invalid(format!("{name} is in another state space than cvta says"));
        }
        let slots: [Slot; 2] = [self.dest_slot(to, ty)?, self.slot(from, ty)?];
        self.emit(Op::Window { is_to_generic, space, slots }, Class::Move)
    }
}
