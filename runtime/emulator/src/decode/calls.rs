//! Calls, inlined: parameters in memory are shared with the caller's, those in registers are moved.

use super::Lowering;
use super::scopes::{Frame, Symbol, kind_of};
use crate::Error;
use crate::ast::{Function, Instruction, Operand, Space, Variable};
use crate::ops::Op;
use crate::registers::ALWAYS;
use crate::stats::Class;
use crate::types::Ty;

/// Deepest nesting of calls.
const MAX_DEPTH: usize = 16;

impl<'m> Lowering<'m> {
    pub(super) fn call(&mut self, inst: &'m Instruction) -> Result<(), Error> {
        self.check_modifiers(inst, &["uni"])?;
        // `call (results), name, (params)`, each list optional.
        let mut operands = inst.operands.iter().peekable();
        let list =
            |operands: &mut std::iter::Peekable<std::slice::Iter<'m, Operand>>| match operands
                .peek()
            {
                Some(Operand::List(list)) => {
                    operands.next();
                    &list[..]
                }
                _ => &[],
            };
        let results: &[Operand] = list(&mut operands);
        let Some(Operand::Name(name)) = operands.next() else {
            return self.unknown(inst, "calls through registers");
        };
        let params: &[Operand] = list(&mut operands);
        if operands.next().is_some() {
            return self.unknown(inst, "calls through registers");
        }
        if name == "__assertfail" {
            return self.emit(Op::Trap, Class::Control);
        }
        let defined = |f: &&Function| f.name == *name && f.is_defined && !f.is_entry;
        let Some(function) = self.module.functions.iter().find(defined) else {
            return self.unknown(inst, &format!("the function {name}, which has no body here"));
        };
        if self.frames.len() > MAX_DEPTH
            || self.frames.iter().any(|frame| std::ptr::eq(frame.function, function))
        {
            return self.unknown(inst, "recursion, or calls this deep");
        }
        if results.len() != function.results.len() || params.len() != function.params.len() {
            return self.invalid(format!(
                "call of {name} with {} results and {} parameters, which has {} and {}",
                results.len(),
                params.len(),
                function.results.len(),
                function.params.len()
            ));
        }
        self.inline(function, results, params)
    }

    fn inline(
        &mut self,
        function: &'m Function,
        results: &[Operand],
        params: &[Operand],
    ) -> Result<(), Error> {
        let (end, skipped) = (self.labels.len() as u32, self.labels.len() as u32 + 1);
        self.labels.extend([None, None]);
        // A guarded call jumps over what it calls, and over its results.
        if self.guard.reg != ALWAYS.reg || self.guard.is_negated {
            self.guard.is_negated ^= true;
            self.emit(Op::Branch { target: skipped, join: 0 }, Class::Control)?;
            self.guard = ALWAYS;
        } else {
            self.emit(Op::Nop, Class::Control)?;
        }
        let line = self.line;
        let mut frame = Frame::new(function, Some(end));
        for (variable, operand) in function.params.iter().zip(params) {
            let symbol = self.parameter(variable, operand, true)?;
            frame.declare(&variable.name, symbol);
        }
        let mut moved = vec![];
        for (variable, operand) in function.results.iter().zip(results) {
            let symbol = self.parameter(variable, operand, false)?;
            frame.declare(&variable.name, symbol);
            if variable.space == Space::Register {
                moved.push((variable, operand, symbol));
            }
        }
        self.frames.push(frame);
        self.body(function)?;
        self.frames.pop();
        self.labels[end as usize] = Some(self.code.len() as u32);
        self.guard = ALWAYS;
        self.line = line;
        for (variable, operand, symbol) in moved {
            self.move_result(variable, operand, symbol)?;
        }
        self.labels[skipped as usize] = Some(self.code.len() as u32);
        Ok(())
    }

    /// What the callee's parameter stands for; a register is a new one, which is filled if it comes `in`.
    fn parameter(
        &mut self,
        variable: &Variable,
        operand: &Operand,
        is_in: bool,
    ) -> Result<Symbol, Error> {
        if variable.space != Space::Register {
            let Operand::Name(name) = operand else {
                return self.invalid(format!("{}: a .param variable is expected", variable.name));
            };
            return match self.symbol(name)? {
                symbol @ Symbol::Variable { space: Space::Local, .. } => Ok(symbol),
                _ => self.invalid(format!("{name} is no .param variable of the caller")),
            };
        }
        let Some(kind) = kind_of(&variable.element) else {
            return self.invalid(format!("{}: its type is not emulated", variable.name));
        };
        let symbol = self.new_register(kind)?;
        if is_in {
            match symbol {
                Symbol::Pred(to) => {
                    let from = self.pred_use(operand)?;
                    self.emit(Op::MovePred { to, from }, Class::Move)?;
                }
                Symbol::Narrow { reg, bits } => {
                    let ty = if bits == 16 { Ty::U16 } else { Ty::U32 };
                    let regs = [reg, self.source(operand, ty)?];
                    self.emit(Op::Move { is_wide: false, regs }, Class::Move)?;
                }
                Symbol::Wide(reg) => {
                    let regs = [reg, self.source(operand, Ty::U64)?];
                    self.emit(Op::Move { is_wide: true, regs }, Class::Move)?;
                }
                Symbol::Variable { .. } => {}
            }
        }
        Ok(symbol)
    }

    fn move_result(
        &mut self,
        variable: &Variable,
        operand: &Operand,
        symbol: Symbol,
    ) -> Result<(), Error> {
        match symbol {
            Symbol::Pred(reg) => {
                let Some(to) = self.pred_dest(operand)? else { return Ok(()) };
                let from = crate::registers::PredUse { reg, is_negated: false };
                self.emit(Op::MovePred { to, from }, Class::Move)
            }
            Symbol::Narrow { reg, bits } => {
                let ty = if bits == 16 { Ty::U16 } else { Ty::U32 };
                let regs = [self.dest(operand, ty)?, reg];
                self.emit(Op::Move { is_wide: false, regs }, Class::Move)
            }
            Symbol::Wide(reg) => {
                let regs = [self.dest(operand, Ty::U64)?, reg];
                self.emit(Op::Move { is_wide: true, regs }, Class::Move)
            }
            Symbol::Variable { .. } => self.invalid(format!("{} is no register", variable.name)),
        }
    }
}
