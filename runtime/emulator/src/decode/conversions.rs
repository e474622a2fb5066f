//! `cvt`.

use super::Lowering;
use super::operands::types;
use crate::Error;
use crate::ast::Instruction;
use crate::ops::Op;
use crate::stats::Class;
use crate::types::Ty;

impl Lowering<'_> {
    pub(super) fn conversion(&mut self, inst: &Instruction) -> Result<(), Error> {
        let roundings = ["rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"];
        let mut known = roundings.to_vec();
        known.extend(["ftz", "sat", "relu"]);
        self.check_modifiers(inst, &known)?;
        let &[to, from] = types(inst).as_slice() else {
            return self.unknown(inst, "it takes two types");
        };
        let mode = self.mode(inst);
        let is_relu = inst.has("relu");
        if to.is_packed() {
            self.check_count(inst, &[3])?;
            if from != Ty::F32 {
                return self.unknown(inst, "pairs of other types than f32");
            }
            let regs = [
                self.dest(&inst.operands[0], to)?,
                self.source(&inst.operands[1], from)?,
                self.source(&inst.operands[2], from)?,
            ];
            return self.emit(Op::ConvertPair { to, mode, is_relu, regs }, Class::Convert);
        }
        self.check_count(inst, &[2])?;
        if from.is_packed() || from == Ty::Pred || to == Ty::Pred || from == Ty::Tf32 {
            return self.unknown(inst, "these types");
        }
        let integral = ["rni", "rzi", "rmi", "rpi"].iter().any(|rounding| inst.has(rounding));
        let is_from_float = !from.is_integer();
        if is_from_float && to.is_integer() && !integral {
            return self.unknown(inst, "a float to an integer without .rni, .rzi, .rmi or .rpi");
        }
        let slots = [self.dest_slot(&inst.operands[0], to)?, self.slot(&inst.operands[1], from)?];
        let is_integral = integral && is_from_float;
        self.emit(Op::Convert { to, from, mode, is_integral, is_relu, slots }, Class::Convert)
    }
}
