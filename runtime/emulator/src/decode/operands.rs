//! Operands of instructions to rows.

use super::Lowering;
use super::scopes::Symbol;
use crate::Error;
use crate::ast::{Instruction, Operand, Space};
use crate::ops::{Address, Base, Mode, Slot};
use crate::program::Special;
use crate::registers::{LANES, PredUse, Reg};
use crate::rounding::Rounding;
use crate::types::Ty;

/// The types among the modifiers of an instruction.
pub(super) fn types(inst: &Instruction) -> Vec<Ty> {
    inst.opcode[1..].iter().filter_map(|part| Ty::parse(part)).collect()
}

/// The state space that a modifier names.
pub(super) fn space_of(modifier: &str) -> Option<Space> {
    Some(match modifier {
        "global" => Space::Global,
        "shared" | "shared::cta" | "shared::cluster" => Space::Shared,
        "local" => Space::Local,
        "const" => Space::Const,
        "param" | "param::entry" | "param::func" => Space::Param,
        _ => return None,
    })
}

impl Lowering<'_> {
    /// Refuses modifiers that are neither types nor in `known`.
    pub(super) fn check_modifiers(&self, inst: &Instruction, known: &[&str]) -> Result<(), Error> {
        let is_known = |part: &&String| known.contains(&part.as_str()) || Ty::parse(part).is_some();
        match inst.opcode[1..].iter().find(|part| !is_known(part)) {
            Some(part) => self.unknown(inst, &format!("modifier .{part}")),
            None => Ok(()),
        }
    }

    pub(super) fn check_count(&self, inst: &Instruction, counts: &[usize]) -> Result<(), Error> {
        let n = inst.operands.len();
        if counts.contains(&n) {
            return Ok(());
        }
        self.invalid(format!("{} with {n} operands, expected {counts:?}", inst.opcode_text()))
    }

    /// The last type of the instruction.
    pub(super) fn ty(&self, inst: &Instruction) -> Result<Ty, Error> {
        types(inst).last().map_or_else(|| self.unknown(inst, "it has no type"), |&ty| Ok(ty))
    }

    pub(super) fn mode(&self, inst: &Instruction) -> Mode {
        let rounding = inst.opcode[1..].iter().find_map(|part| Rounding::parse(part));
        Mode {
            rounding: rounding.unwrap_or(Rounding::Nearest),
            is_ftz: inst.has("ftz"),
            is_saturated: inst.has("sat"),
        }
    }

    pub(super) fn narrow_constant(&mut self, value: u32) -> Result<Reg, Error> {
        if let Some(&reg) = self.narrow_constants.get(&value) {
            return Ok(reg);
        }
        let reg = self.new_narrow()?;
        self.registers.narrow[reg as usize] = [value; LANES];
        self.narrow_constants.insert(value, reg);
        Ok(reg)
    }

    pub(super) fn wide_constant(&mut self, value: u64) -> Result<Reg, Error> {
        if let Some(&reg) = self.wide_constants.get(&value) {
            return Ok(reg);
        }
        let reg = self.new_wide()?;
        self.registers.wide[reg as usize] = [value; LANES];
        self.wide_constants.insert(value, reg);
        Ok(reg)
    }

    fn constant(&mut self, ty: Ty, value: u64) -> Result<Reg, Error> {
        if ty.is_wide() {
            return self.wide_constant(value);
        }
        let kept = if ty.bytes() < 4 { (1 << (8 * ty.bytes())) - 1 } else { u64::from(u32::MAX) };
        self.narrow_constant((value & kept) as u32)
    }

    /// The slot of a special register.
    fn special(&mut self, name: &str) -> Result<Option<Slot>, Error> {
        let Some((special, is_wide)) = Special::parse(name) else { return Ok(None) };
        if let Some(&slot) = self.specials.get(&(special, is_wide)) {
            return Ok(Some(slot));
        }
        let slot =
            if is_wide { Slot::Wide(self.new_wide()?) } else { Slot::Narrow(self.new_narrow()?) };
        self.specials.insert((special, is_wide), slot);
        Ok(Some(slot))
    }

    /// The register of an operand that is read as `ty`, of exactly its width.
    pub(super) fn source(&mut self, operand: &Operand, ty: Ty) -> Result<Reg, Error> {
        match operand {
            Operand::Int(value) if ty == Ty::F32 || ty == Ty::F64 => {
                self.invalid(format!("{value} where a register or float is expected"))
            }
            Operand::Int(value) => self.constant(ty, *value),
            Operand::F32(bits) if ty == Ty::F64 => {
                self.wide_constant(f64::from(f32::from_bits(*bits)).to_bits())
            }
            Operand::F32(bits) => self.constant(ty, u64::from(*bits)),
            Operand::F64(bits) if ty == Ty::F32 => {
                self.narrow_constant((f64::from_bits(*bits) as f32).to_bits())
            }
            Operand::F64(bits) => self.constant(ty, *bits),
            Operand::NameOffset(name, offset) => match self.symbol(name)? {
                Symbol::Variable { address, .. } => {
                    self.constant(ty, address.wrapping_add_signed(*offset))
                }
                _ => self.invalid(format!("{name} with an offset is no variable")),
            },
            Operand::Name(name) => match self.find_symbol(name)? {
                Some(Symbol::Variable { address, .. }) => self.constant(ty, address),
                Some(Symbol::Narrow { reg, bits }) if bits == 8 * ty.bytes() => Ok(reg),
                Some(Symbol::Wide(reg)) if ty.is_wide() => Ok(reg),
                Some(Symbol::Narrow { bits, .. }) => self.wrong_width(name, bits, ty),
                Some(Symbol::Wide(_)) => self.wrong_width(name, 64, ty),
                Some(Symbol::Pred(_)) => self.wrong_width(name, 1, ty),
                None => match (self.special(name)?, ty.is_wide()) {
                    (Some(Slot::Narrow(reg)), false) => Ok(reg),
                    (Some(Slot::Wide(reg)), true) => Ok(reg),
                    (Some(_), _) => self.invalid(format!("{name} has another width than {ty:?}")),
                    (None, _) => self.invalid(format!("unknown name {name}")),
                },
            },
            _ => self.invalid(format!("operand where a register of type {ty:?} is expected")),
        }
    }

    fn wrong_width<T>(&self, name: &str, bits: u32, ty: Ty) -> Result<T, Error> {
        self.invalid(format!("{name} has {bits} bits where {} are expected", 8 * ty.bytes()))
    }

    /// The register that an operand of type `ty` is written to.
    pub(super) fn dest(&mut self, operand: &Operand, ty: Ty) -> Result<Reg, Error> {
        match operand {
            Operand::Name(name) if name == "_" => match ty.is_wide() {
                true => self.new_wide(),
                false => self.new_narrow(),
            },
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Narrow { reg, bits } if bits == 8 * ty.bytes() => Ok(reg),
                Symbol::Wide(reg) if ty.is_wide() => Ok(reg),
                Symbol::Narrow { bits, .. } => self.wrong_width(name, bits, ty),
                Symbol::Wide(_) => self.wrong_width(name, 64, ty),
                Symbol::Pred(_) => self.wrong_width(name, 1, ty),
                Symbol::Variable { .. } => self.invalid(format!("{name} is no register")),
            },
            _ => self.invalid("operand where a destination register is expected".to_string()),
        }
    }

    /// The register of an operand that may be wider than `ty`, as of loads, stores and conversions.
    pub(super) fn slot(&mut self, operand: &Operand, ty: Ty) -> Result<Slot, Error> {
        if let Operand::Name(name) = operand {
            if name == "_" {
                return Ok(Slot::Sink);
            }
            match self.find_symbol(name)? {
                Some(Symbol::Narrow { reg, bits }) if bits >= 8 * ty.bytes() => {
                    return Ok(Slot::Narrow(reg));
                }
                Some(Symbol::Wide(reg)) => return Ok(Slot::Wide(reg)),
                _ => {}
            }
        }
        let reg = self.source(operand, ty)?;
        Ok(if ty.is_wide() { Slot::Wide(reg) } else { Slot::Narrow(reg) })
    }

    /// A slot that is written, so that constants and special registers are refused.
    pub(super) fn dest_slot(&mut self, operand: &Operand, ty: Ty) -> Result<Slot, Error> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(Slot::Sink),
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Variable { .. } => self.invalid(format!("{name} is no register")),
                _ => self.slot(operand, ty),
            },
            _ => self.invalid("operand where a destination register is expected".to_string()),
        }
    }

    pub(super) fn dest_slots(&mut self, operand: &Operand, ty: Ty) -> Result<Vec<Slot>, Error> {
        let list = as_list(operand);
        list.iter().map(|operand| self.dest_slot(operand, ty)).collect()
    }

    pub(super) fn slots(&mut self, operand: &Operand, ty: Ty) -> Result<Vec<Slot>, Error> {
        let list = as_list(operand);
        list.iter().map(|operand| self.slot(operand, ty)).collect()
    }

    /// Registers of a vector of 32-bit words.
    pub(super) fn words(&mut self, operand: &Operand, is_dest: bool) -> Result<Vec<Reg>, Error> {
        let list = as_list(operand);
        let one = |operand: &Operand| {
            if is_dest { self.dest(operand, Ty::U32) } else { self.source(operand, Ty::U32) }
        };
        list.iter().map(one).collect()
    }

    pub(super) fn pred_use(&mut self, operand: &Operand) -> Result<PredUse, Error> {
        match operand {
            Operand::Name(name) => self.pred(name),
            Operand::Not(name) => {
                let mut used = self.pred(name)?;
                used.is_negated = true;
                Ok(used)
            }
            _ => self.invalid("operand where a predicate is expected".to_string()),
        }
    }

    /// The predicate that is written; none for `_`.
    pub(super) fn pred_dest(&mut self, operand: &Operand) -> Result<Option<Reg>, Error> {
        match operand {
            Operand::Name(name) => self.pred_named(name),
            _ => self.invalid("operand where a predicate is expected".to_string()),
        }
    }

    /// Both halves of `d|p`, the second being none where it is missing or `_`.
    pub(super) fn dest_pair<'o>(
        &mut self,
        operand: &'o Operand,
    ) -> Result<(std::borrow::Cow<'o, Operand>, Option<Reg>), Error> {
        use std::borrow::Cow;
        match operand {
            Operand::Pair(first, second) => {
                let pred = self.pred_named(second)?;
                Ok((Cow::Owned(Operand::Name(first.clone())), pred))
            }
            _ => Ok((Cow::Borrowed(operand), None)),
        }
    }

    pub(super) fn pred_named(&mut self, name: &str) -> Result<Option<Reg>, Error> {
        if name == "_" { Ok(None) } else { Ok(Some(self.pred(name)?.reg)) }
    }

    /// An address, and the space of the variable that it is based on.
    pub(super) fn address(&mut self, operand: &Operand) -> Result<(Address, Option<Space>), Error> {
        let Operand::Address { base, offset } = operand else {
            return self.invalid("operand where an address in [ ] is expected".to_string());
        };
        let offset = offset.cast_unsigned();
        let Some(name) = base else { return Ok((Address { base: Base::None, offset }, None)) };
        let base = match self.symbol(name)? {
            Symbol::Narrow { reg, bits: 32 } => Base::Narrow(reg),
            Symbol::Wide(reg) => Base::Wide(reg),
            Symbol::Variable { space, address } => {
                let offset = address.wrapping_add(offset);
                return Ok((Address { base: Base::None, offset }, Some(space)));
            }
            Symbol::Narrow { .. } | Symbol::Pred(_) => {
                return self.invalid(format!("{name} cannot hold an address"));
            }
        };
        Ok((Address { base, offset }, None))
    }
}

/// The parts of a vector, or the operand alone.
pub(super) fn as_list(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::Vector(list) => list,
        other => std::slice::from_ref(other),
    }
}
