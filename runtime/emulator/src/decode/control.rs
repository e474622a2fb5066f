//! Branches and exits.

use super::Lowering;
use crate::Error;
use crate::ast::{Instruction, Operand};
use crate::ops::Op;
use crate::stats::Class;
use crate::types::Ty;

impl Lowering<'_> {
    pub(super) fn control(&mut self, inst: &Instruction) -> Result<(), Error> {
        match inst.opcode[0].as_str() {
            "bra" => {
                self.check_modifiers(inst, &["uni"])?;
                let [Operand::Name(name)] = &inst.operands[..] else {
                    return self.invalid("bra takes a label".to_string());
                };
                let target = self.label(name)?;
                self.emit(Op::Branch { target, join: 0 }, Class::Control)
            }
            "brx" => {
                self.check_modifiers(inst, &["idx", "uni"])?;
                let [index, Operand::Name(table)] = &inst.operands[..] else {
                    return self.invalid("brx.idx takes an index and a table".to_string());
                };
                let index = self.source(index, Ty::U32)?;
                let labels = self.table(table)?;
                let targets =
                    labels.iter().map(|name| self.label(name)).collect::<Result<_, _>>()?;
                self.emit(Op::BranchIndex { index, targets, join: 0 }, Class::Control)
            }
            "ret" => {
                let end = self.frame().end;
                let op = end.map_or(Op::Exit, |target| Op::Branch { target, join: 0 });
                self.emit(op, Class::Control)
            }
            "exit" => self.emit(Op::Exit, Class::Control),
            "trap" | "brkpt" => self.emit(Op::Trap, Class::Control),
            "nanosleep" => self.emit(Op::Yield, Class::Control),
            _ => self.emit(Op::Nop, Class::Control),
        }
    }
}
