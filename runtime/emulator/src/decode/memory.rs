//! Loads, stores, atomics and asynchronous copies.

use super::Lowering;
use super::operands::{as_list, space_of, types};
use super::scopes::Symbol;
use crate::Error;
use crate::ast::{Instruction, Operand, Space};
use crate::memory::MAX_ACCESS;
use crate::ops::{Address, AtomOp, Op, Slot};
use crate::stats::Class;
use crate::types::Ty;

/// Ordering, scope and cache modifiers: execution here is in order and without caches.
const HINTS: [&str; 24] = [
    "weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "seq_cst", "cta", "cluster",
    "gpu", "sys", "ca", "cg", "cs", "lu", "cv", "nc", "wb", "wt", "noftz", "v2", "v4", "mmio",
    "unified",
];

fn is_cache_hint(modifier: &str) -> bool {
    modifier.starts_with("L1::") || modifier.starts_with("L2::")
}

/// The operation of an atomic or a reduction.
pub(super) fn atom_op(text: &str) -> Option<AtomOp> {
    Some(match text {
        "add" => AtomOp::Add,
        "min" => AtomOp::Min,
        "max" => AtomOp::Max,
        "and" => AtomOp::And,
        "or" => AtomOp::Or,
        "xor" => AtomOp::Xor,
        "inc" => AtomOp::Inc,
        "dec" => AtomOp::Dec,
        "exch" => AtomOp::Exch,
        "cas" => AtomOp::Cas,
        _ => return None,
    })
}

impl Lowering<'_> {
    /// The address of an operand and the space of the access; `None` is generic.
    pub(super) fn place(
        &mut self,
        inst: &Instruction,
        operand: &Operand,
    ) -> Result<(Option<Space>, Address), Error> {
        let named = inst.opcode[1..].iter().find_map(|part| space_of(part));
        let (address, of_variable) = self.address(operand)?;
        let space = match (named, of_variable) {
            // Parameters of calls are kept in local memory.
            (Some(Space::Param), Some(Space::Local)) => Some(Space::Local),
            (Some(named), Some(found)) if named != found => {
                return self.invalid(format!(
                    "{}: the variable is in another state space",
                    inst.opcode_text()
                ));
            }
            (None, Some(found)) if found != Space::Global => {
                return self.invalid(format!(
                    "{}: a generic access to a variable, whose generic address is another",
                    inst.opcode_text()
                ));
            }
            (named, _) => named,
        };
        Ok((space, address))
    }

    fn check_memory_modifiers(&self, inst: &Instruction, more: &[&str]) -> Result<(), Error> {
        let spaces = inst.opcode[1..].iter().filter(|p| space_of(p).is_some() || is_cache_hint(p));
        let mut known: Vec<&str> = spaces.map(String::as_str).collect();
        known.extend(HINTS);
        known.extend(more);
        self.check_modifiers(inst, &known)
    }

    pub(super) fn memory(&mut self, inst: &Instruction) -> Result<(), Error> {
        match inst.opcode[0].as_str() {
            "ld" | "ldu" | "st" => self.load_or_store(inst),
            "atom" | "red" => self.atomic(inst),
            "createpolicy" => {
                // A policy is a hint; its register is as good with any value.
                let Some(to) = inst.operands.first() else {
                    return self.unknown(inst, "without a destination");
                };
                let regs = [self.dest(to, Ty::U64)?, self.wide_constant(0)?];
                self.emit(Op::Move { is_wide: true, regs }, Class::Move)
            }
            _ => self.emit(Op::Nop, Class::Move),
        }
    }

    fn load_or_store(&mut self, inst: &Instruction) -> Result<(), Error> {
        self.check_memory_modifiers(inst, &[])?;
        self.check_count(inst, &[2, 3])?;
        let ty = self.ty(inst)?;
        let is_store = inst.opcode[0] == "st";
        let (data, at) = if is_store { (1, 0) } else { (0, 1) };
        let (space, address) = self.place(inst, &inst.operands[at])?;
        let n = as_list(&inst.operands[data]).len();
        let n_named = if inst.has("v2") { 2 } else { 1 };
        let n_named = if inst.has("v4") { 4 } else { n_named };
        if n != n_named || n * ty.bytes() as usize > MAX_ACCESS || ty == Ty::Pred {
            return self.unknown(inst, "vectors of that size");
        }
        if is_store {
            let from = self.slots(&inst.operands[1], ty)?;
            return self.emit(Op::Store { space, ty, address, from }, Class::Store);
        }
        let to = self.dest_slots(&inst.operands[0], ty)?;
        self.emit(Op::Load { space, ty, address, to }, Class::Load)
    }

    fn atomic(&mut self, inst: &Instruction) -> Result<(), Error> {
        let known = ["add", "min", "max", "and", "or", "xor", "inc", "dec", "exch", "cas"];
        self.check_memory_modifiers(inst, &known)?;
        let Some(op) = inst.opcode[1..].iter().find_map(|part| atom_op(part)) else {
            return self.unknown(inst, "its operation");
        };
        let ty = self.ty(inst)?;
        let is_known = match ty {
            Ty::F32 | Ty::F64 => matches!(op, AtomOp::Add),
            Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2 => {
                matches!(op, AtomOp::Add | AtomOp::Min | AtomOp::Max)
            }
            Ty::U16 | Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64 => true,
            _ => false,
        };
        if !is_known || inst.has("v2") || inst.has("v4") {
            return self.unknown(inst, "of this type");
        }
        let is_red = inst.opcode[0] == "red";
        let first = usize::from(!is_red);
        let n_sources = if op == AtomOp::Cas { 2 } else { 1 };
        let n = first + 1 + n_sources;
        self.check_count(inst, &[n, n + 1])?;
        let (space, address) = self.place(inst, &inst.operands[first])?;
        let to = if is_red { Slot::Sink } else { self.dest_slot(&inst.operands[0], ty)? };
        let x = self.slot(&inst.operands[first + 1], ty)?;
        let other =
            if op == AtomOp::Cas { self.slot(&inst.operands[first + 2], ty)? } else { Slot::Sink };
        self.has_global_atomics |= space != Some(Space::Shared);
        let from = [x, other];
        self.emit(Op::Atomic { space, op, ty, address, to, from }, Class::Atomic)
    }

    /// `cp.async` and its companions.
    pub(super) fn copy(&mut self, inst: &Instruction) -> Result<(), Error> {
        let part = |i: usize| inst.opcode.get(i).map_or("", String::as_str);
        match (part(1), part(2)) {
            ("async", "commit_group") => self.emit(Op::CopyCommit, Class::Copy),
            ("async", "wait_all") => self.emit(Op::CopyWaitAll, Class::Copy),
            ("async", "wait_group") => {
                let [Operand::Int(n)] = inst.operands[..] else {
                    return self.invalid("cp.async.wait_group takes a constant".to_string());
                };
                let n_open = u32::try_from(n).unwrap_or(u32::MAX);
                self.emit(Op::CopyWait { n_open }, Class::Copy)
            }
            ("async", "mbarrier") => {
                let known = ["async", "mbarrier", "arrive", "noinc", "shared", "shared::cta"];
                self.check_modifiers(inst, &known)?;
                self.check_count(inst, &[1])?;
                let (barrier, _) = self.address(&inst.operands[0])?;
                let is_counted = inst.has("noinc");
                self.emit(Op::CopyArrive { barrier, is_counted }, Class::Copy)
            }
            ("async", "bulk") => self.copy_bulk(inst),
            ("async", "ca" | "cg") => self.copy_async(inst),
            _ => self.unknown(inst, "this form of a copy"),
        }
    }

    fn copy_async(&mut self, inst: &Instruction) -> Result<(), Error> {
        self.check_memory_modifiers(inst, &["async"])?;
        let is_hinted = inst.has("L2::cache_hint");
        let n_hints = usize::from(is_hinted);
        self.check_count(inst, &[3 + n_hints, 4 + n_hints])?;
        let (to, of_to) = self.address(&inst.operands[0])?;
        let (from, of_from) = self.address(&inst.operands[1])?;
        let are_right =
            of_to.is_none_or(|s| s == Space::Shared) && of_from.is_none_or(|s| s == Space::Global);
        let Operand::Int(bytes @ (4 | 8 | 16)) = inst.operands[2] else {
            return self.invalid("cp.async takes 4, 8 or 16 bytes, a constant".to_string());
        };
        if !are_right || inst.has("cg") && bytes != 16 {
            return self
                .invalid("cp.async copies global to shared memory; .cg 16 bytes".to_string());
        }
        let (mut source_bytes, mut ignored) = (None, None);
        if inst.operands.len() == 4 + n_hints {
            let operand = &inst.operands[3];
            let is_pred = match operand {
                Operand::Not(_) => true,
                Operand::Name(name) => matches!(self.symbol(name)?, Symbol::Pred(_)),
                _ => false,
            };
            if is_pred {
                ignored = Some(self.pred_use(operand)?);
            } else {
                source_bytes = Some(self.source(operand, Ty::U32)?);
            }
        }
        let bytes = bytes as u32;
        self.emit(Op::CopyAsync { bytes, to, from, source_bytes, ignored }, Class::Copy)
    }

    fn copy_bulk(&mut self, inst: &Instruction) -> Result<(), Error> {
        let known = [
            "async",
            "bulk",
            "shared::cluster",
            "shared::cta",
            "global",
            "mbarrier::complete_tx::bytes",
            "L2::cache_hint",
        ];
        self.check_modifiers(inst, &known)?;
        let is_to_shared = matches!(
            inst.opcode.get(3).map(String::as_str),
            Some("shared::cluster" | "shared::cta")
        );
        if !is_to_shared || inst.opcode.get(4).is_none_or(|from| from != "global") {
            return self.unknown(inst, "other directions than global to shared");
        }
        self.check_count(inst, &[4, 5])?;
        let (to, _) = self.address(&inst.operands[0])?;
        let (from, _) = self.address(&inst.operands[1])?;
        let bytes = self.source(&inst.operands[2], Ty::U32)?;
        let (barrier, _) = self.address(&inst.operands[3])?;
        self.emit(Op::CopyBulk { to, from, bytes, barrier }, Class::Copy)
    }
}

/// Types of a reduction of a warp.
pub(super) fn is_reduced(inst: &Instruction) -> bool {
    matches!(types(inst).as_slice(), [Ty::U32 | Ty::S32])
}
