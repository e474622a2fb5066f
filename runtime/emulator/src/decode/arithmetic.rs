//! Arithmetic and bits.

use super::Lowering;
use super::operands::types;
use crate::Error;
use crate::ast::Instruction;
use crate::ops::{FloatOp, FloatTest, IntOp, Logic, Op};
use crate::registers::Reg;
use crate::stats::Class;
use crate::types::Ty;

/// The type of twice the width.
fn double(ty: Ty) -> Ty {
    match ty {
        Ty::U16 => Ty::U32,
        Ty::S16 => Ty::S32,
        Ty::S32 => Ty::S64,
        _ => Ty::U64,
    }
}

impl Lowering<'_> {
    pub(super) fn arithmetic(&mut self, inst: &Instruction) -> Result<(), Error> {
        if inst.opcode[0] == "testp" {
            return self.test(inst);
        }
        if matches!(inst.opcode[0].as_str(), "dp4a" | "dp2a") {
            return self.dot_of_parts(inst);
        }
        let ty = self.ty(inst)?;
        if types(inst).len() != 1 {
            return self.unknown(inst, "operands of several types");
        }
        if ty.is_integer() { self.integer(inst, ty) } else { self.float(inst, ty) }
    }

    fn integer(&mut self, inst: &Instruction, ty: Ty) -> Result<(), Error> {
        let name = inst.opcode[0].as_str();
        if inst.has("cc") || name == "addc" || name == "subc" {
            return self.carry(inst, ty);
        }
        self.check_modifiers(inst, &["lo", "hi", "wide", "sat"])?;
        let (is_high, is_wide, is_sat) = (inst.has("hi"), inst.has("wide"), inst.has("sat"));
        let op = match (name, is_high, is_wide, is_sat) {
            ("add", false, false, false) => IntOp::Add,
            ("sub", false, false, false) => IntOp::Sub,
            ("add", false, false, true) if ty == Ty::S32 => IntOp::AddSat,
            ("sub", false, false, true) if ty == Ty::S32 => IntOp::SubSat,
            ("mul", false, false, false) if inst.has("lo") => IntOp::MulLo,
            ("mul", true, false, false) => IntOp::MulHi,
            ("mul", false, true, false) if !ty.is_wide() => IntOp::MulWide,
            ("mad", false, false, false) if inst.has("lo") => IntOp::MadLo,
            ("mad", true, false, false) => IntOp::MadHi,
            ("mad", false, true, false) if !ty.is_wide() => IntOp::MadWide,
            ("mul24", false, false, false) if inst.has("lo") => IntOp::Mul24,
            ("mad24", false, false, false) if inst.has("lo") => IntOp::Mad24,
            ("div", false, false, false) => IntOp::Div,
            ("rem", false, false, false) => IntOp::Rem,
            ("abs", false, false, false) => IntOp::Abs,
            ("neg", false, false, false) => IntOp::Neg,
            ("min", false, false, false) => IntOp::Min,
            ("max", false, false, false) => IntOp::Max,
            ("sad", false, false, false) => IntOp::Sad,
            _ => return self.unknown(inst, "this combination of modifiers"),
        };
        let result = if is_wide { double(ty) } else { ty };
        let n_sources = match op {
            IntOp::Abs | IntOp::Neg => 1,
            IntOp::MadLo | IntOp::MadHi | IntOp::MadWide | IntOp::Mad24 | IntOp::Sad => 3,
            _ => 2,
        };
        let sources = [ty, ty, result];
        let regs = self.regs(inst, result, &sources[..n_sources])?;
        self.emit(Op::Int { op, ty, regs }, Class::Integer)
    }

    /// Destination and sources, the last repeated where there are fewer than three.
    fn regs(&mut self, inst: &Instruction, to: Ty, from: &[Ty]) -> Result<[Reg; 4], Error> {
        self.check_count(inst, &[1 + from.len()])?;
        let mut regs = [self.dest(&inst.operands[0], to)?; 4];
        for i in 0..3 {
            regs[i + 1] = match from.get(i) {
                Some(&ty) => self.source(&inst.operands[i + 1], ty)?,
                None => regs[i],
            };
        }
        Ok(regs)
    }

    fn carry(&mut self, inst: &Instruction, ty: Ty) -> Result<(), Error> {
        self.check_modifiers(inst, &["cc"])?;
        if ty.bytes() < 4 {
            return self.unknown(inst, "the carry of narrow types");
        }
        let [d, a, b, _] = self.regs(inst, ty, &[ty, ty])?;
        let carry = match self.carry {
            Some(carry) => carry,
            None => self.new_pred()?,
        };
        self.carry = Some(carry);
        let (is_sub, takes, gives) = match (inst.opcode[0].as_str(), inst.has("cc")) {
            ("add", gives) => (false, false, gives),
            ("addc", gives) => (false, true, gives),
            ("sub", gives) => (true, false, gives),
            ("subc", gives) => (true, true, gives),
            _ => return self.unknown(inst, "its carry"),
        };
        let regs = [d, a, b];
        self.emit(Op::Carry { ty, is_sub, regs, carry, takes, gives }, Class::Integer)
    }

    fn float(&mut self, inst: &Instruction, ty: Ty) -> Result<(), Error> {
        let known = ["rn", "rz", "rm", "rp", "ftz", "sat", "approx", "full", "NaN", "relu"];
        self.check_modifiers(inst, &known)?;
        let is_nan = inst.has("NaN");
        let op = match inst.opcode[0].as_str() {
            "add" => FloatOp::Add,
            "sub" => FloatOp::Sub,
            "mul" => FloatOp::Mul,
            "fma" | "mad" => FloatOp::Fma,
            "div" => FloatOp::Div,
            "abs" => FloatOp::Abs,
            "neg" => FloatOp::Neg,
            "min" if is_nan => FloatOp::MinNan,
            "max" if is_nan => FloatOp::MaxNan,
            "min" => FloatOp::Min,
            "max" => FloatOp::Max,
            "sqrt" => FloatOp::Sqrt,
            "rsqrt" => FloatOp::Rsqrt,
            "rcp" => FloatOp::Rcp,
            "ex2" => FloatOp::Ex2,
            "lg2" => FloatOp::Lg2,
            "sin" => FloatOp::Sin,
            "cos" => FloatOp::Cos,
            "tanh" => FloatOp::Tanh,
            "copysign" => FloatOp::CopySign,
            _ => return self.unknown(inst, "it has no such type"),
        };
        let n_sources = match op {
            FloatOp::Add
            | FloatOp::Sub
            | FloatOp::Mul
            | FloatOp::Div
            | FloatOp::Min
            | FloatOp::Max
            | FloatOp::MinNan
            | FloatOp::MaxNan
            | FloatOp::CopySign => 2,
            FloatOp::Fma => 3,
            _ => 1,
        };
        let is_special = matches!(
            op,
            FloatOp::Sqrt
                | FloatOp::Rsqrt
                | FloatOp::Rcp
                | FloatOp::Ex2
                | FloatOp::Lg2
                | FloatOp::Sin
                | FloatOp::Cos
                | FloatOp::Tanh
                | FloatOp::Div
        );
        let mode = self.mode(inst);
        let regs = self.regs(inst, ty, &[ty; 3][..n_sources])?;
        if ty.is_half() {
            let is_known = !is_special || matches!(op, FloatOp::Ex2 | FloatOp::Tanh);
            if !is_known || op == FloatOp::CopySign {
                return self.unknown(inst, "of half precision");
            }
            let is_relu = inst.has("relu");
            let class = if is_special { Class::Special } else { Class::Half };
            return self.emit(Op::Half { op, ty, mode, is_relu, regs }, class);
        }
        if inst.has("relu") || !matches!(ty, Ty::F32 | Ty::F64) {
            return self.unknown(inst, "this type with these modifiers");
        }
        if ty == Ty::F64
            && op == FloatOp::Fma
            && mode.rounding != crate::rounding::Rounding::Nearest
        {
            return self.unknown(inst, "another rounding than .rn");
        }
        let class = if is_special { Class::Special } else { Class::Float };
        self.emit(Op::Float { op, ty, mode, regs }, class)
    }

    fn test(&mut self, inst: &Instruction) -> Result<(), Error> {
        self.check_count(inst, &[2])?;
        let ty = self.ty(inst)?;
        let test = match inst.opcode[1].as_str() {
            "finite" => FloatTest::Finite,
            "infinite" => FloatTest::Infinite,
            "number" => FloatTest::Number,
            "notanumber" => FloatTest::NotANumber,
            "normal" => FloatTest::Normal,
            "subnormal" => FloatTest::Subnormal,
            _ => return self.unknown(inst, "its property"),
        };
        if !matches!(ty, Ty::F32 | Ty::F64) {
            return self.unknown(inst, "its type");
        }
        let Some(to) = self.pred_dest(&inst.operands[0])? else { return Ok(()) };
        let from = self.source(&inst.operands[1], ty)?;
        self.emit(Op::TestFinite { ty, test, to, from }, Class::Predicate)
    }

    /// A sum of products of bytes with bytes or with halves.
    fn dot_of_parts(&mut self, inst: &Instruction) -> Result<(), Error> {
        let op = match (inst.opcode[0].as_str(), inst.opcode[1].as_str()) {
            ("dp4a", _) => IntOp::Dp4a,
            (_, "lo") => IntOp::Dp2aLow,
            (_, "hi") => IntOp::Dp2aHigh,
            _ => return self.unknown(inst, "which bytes it takes"),
        };
        self.check_modifiers(inst, if op == IntOp::Dp4a { &[] } else { &["lo", "hi"] })?;
        let types = types(inst);
        if types != [Ty::S32, Ty::S32] && types != [Ty::U32, Ty::U32] {
            return self.unknown(inst, "operands of different signedness");
        }
        let ty = types[0];
        let regs = self.regs(inst, ty, &[ty; 3])?;
        self.emit(Op::Int { op, ty, regs }, Class::Integer)
    }

    pub(super) fn bits(&mut self, inst: &Instruction) -> Result<(), Error> {
        let name = inst.opcode[0].as_str();
        if name == "lop3" {
            return self.lop3(inst);
        }
        if name == "prmt" {
            self.check_modifiers(inst, &[])?;
            let regs = self.regs(inst, Ty::U32, &[Ty::U32; 3])?;
            let op = IntOp::Prmt;
            return self.emit(Op::Int { op, ty: Ty::U32, regs }, Class::Integer);
        }
        let ty = self.ty(inst)?;
        if ty == Ty::Pred {
            return self.pred_logic(inst);
        }
        if !ty.is_integer() {
            return self.unknown(inst, "its type");
        }
        self.check_modifiers(inst, &["shiftamt", "l", "r", "wrap", "clamp"])?;
        let word = Ty::U32;
        let (op, to, from): (IntOp, Ty, &[Ty]) = match name {
            "and" => (IntOp::And, ty, &[ty, ty]),
            "or" => (IntOp::Or, ty, &[ty, ty]),
            "xor" => (IntOp::Xor, ty, &[ty, ty]),
            "not" => (IntOp::Not, ty, &[ty]),
            "cnot" => (IntOp::Cnot, ty, &[ty]),
            "shl" => (IntOp::Shl, ty, &[ty, word]),
            "shr" => (IntOp::Shr, ty, &[ty, word]),
            "bfe" => (IntOp::Bfe, ty, &[ty, word, word]),
            "bfind" if inst.has("shiftamt") => (IntOp::BfindShift, word, &[ty]),
            "bfind" => (IntOp::Bfind, word, &[ty]),
            "brev" => (IntOp::Brev, ty, &[ty]),
            "popc" => (IntOp::Popc, word, &[ty]),
            "clz" => (IntOp::Clz, word, &[ty]),
            "bfi" => return self.bfi(inst, ty),
            "shf" => {
                let op = match (inst.has("l"), inst.has("clamp")) {
                    (true, false) => IntOp::FunnelLeft,
                    (true, true) => IntOp::FunnelLeftClamp,
                    (false, false) => IntOp::FunnelRight,
                    (false, true) => IntOp::FunnelRightClamp,
                };
                (op, word, &[word, word, word])
            }
            _ => return self.unknown(inst, "its name"),
        };
        let regs = self.regs(inst, to, from)?;
        self.emit(Op::Int { op, ty, regs }, Class::Integer)
    }

    fn bfi(&mut self, inst: &Instruction, ty: Ty) -> Result<(), Error> {
        self.check_count(inst, &[5])?;
        let regs = [
            self.dest(&inst.operands[0], ty)?,
            self.source(&inst.operands[1], ty)?,
            self.source(&inst.operands[2], ty)?,
            self.source(&inst.operands[3], Ty::U32)?,
            self.source(&inst.operands[4], Ty::U32)?,
        ];
        self.emit(Op::Bfi { is_wide: ty.is_wide(), regs }, Class::Integer)
    }

    /// `lop3.b32 d, a, b, c, table` and `lop3.or.b32 d|p, a, b, c, table, q`.
    fn lop3(&mut self, inst: &Instruction) -> Result<(), Error> {
        self.check_modifiers(inst, &["and", "or"])?;
        self.check_count(inst, &[5, 6])?;
        let (to, pred) = self.dest_pair(&inst.operands[0])?;
        let regs = [
            self.dest(&to, Ty::U32)?,
            self.source(&inst.operands[1], Ty::U32)?,
            self.source(&inst.operands[2], Ty::U32)?,
            self.source(&inst.operands[3], Ty::U32)?,
        ];
        let crate::ast::Operand::Int(table) = inst.operands[4] else {
            return self.invalid("lop3 without a table of constants".to_string());
        };
        let any = match (pred, inst.operands.get(5)) {
            (Some(pred), Some(with)) => {
                let logic = if inst.has("and") { Logic::And } else { Logic::Or };
                Some((pred, logic, self.pred_use(with)?))
            }
            _ => None,
        };
        self.emit(Op::Lop3 { table: table as u8, regs, any }, Class::Integer)
    }

    fn pred_logic(&mut self, inst: &Instruction) -> Result<(), Error> {
        self.check_modifiers(inst, &[])?;
        let is_not = inst.opcode[0] == "not";
        self.check_count(inst, &[if is_not { 2 } else { 3 }])?;
        let Some(to) = self.pred_dest(&inst.operands[0])? else { return Ok(()) };
        let mut first = self.pred_use(&inst.operands[1])?;
        if is_not {
            first.is_negated ^= true;
            return self.emit(Op::MovePred { to, from: first }, Class::Predicate);
        }
        let second = self.pred_use(&inst.operands[2])?;
        let logic = match inst.opcode[0].as_str() {
            "and" => Logic::And,
            "or" => Logic::Or,
            "xor" => Logic::Xor,
            _ => return self.unknown(inst, "of predicates"),
        };
        self.emit(Op::PredLogic { logic, to, from: [first, second] }, Class::Predicate)
    }
}
