//! Modules that are wrong in one place, to show that a test or a check would notice.

use crate::Error;
use crate::ast::{Instruction, Module, Operand, Statement};
use crate::types::Ty;

/// A change to one entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mutation {
    /// The n-th barrier of the text (`bar.sync`, `barrier.sync`) is taken out.
    RemoveBarrier(usize),
    /// The n-th wait for asynchronous copies (`cp.async.wait_group`, `.wait_all`) or products
    /// (`wgmma.wait_group`) is taken out.
    RemoveWait(usize),
    /// The n-th fence of the asynchronous proxy (`fence.proxy.async`) or of registers (`wgmma.fence`) is taken out.
    RemoveFence(usize),
    /// The n-th access of the text to global or shared memory is moved up by what it accesses.
    ShiftAddress(usize),
}

fn is_barrier(inst: &Instruction) -> bool {
    matches!(inst.opcode[0].as_str(), "bar" | "barrier") && inst.has("sync") && !inst.has("warp")
}

fn is_wait(inst: &Instruction) -> bool {
    matches!(inst.opcode[0].as_str(), "cp" | "wgmma")
        && (inst.has("wait_group") || inst.has("wait_all"))
}

fn is_fence(inst: &Instruction) -> bool {
    match inst.opcode[0].as_str() {
        "fence" => inst.has("proxy") && inst.has("async"),
        "wgmma" => inst.has("fence"),
        _ => false,
    }
}

/// The operand that is the address of an access, and the bytes of the access.
fn accessed(inst: &Instruction) -> Option<(usize, i64)> {
    let ty = inst.opcode.iter().rev().find_map(|part| Ty::parse(part));
    let bytes = |n: i64| ty.map_or(1, |ty| i64::from(ty.bytes())) * n;
    let is_elsewhere = ["param", "const", "local", "param::entry", "param::func"];
    if is_elsewhere.iter().any(|space| inst.has(space)) {
        return None;
    }
    let n_parts = if inst.has("v4") {
        4
    } else if inst.has("v2") {
        2
    } else {
        1
    };
    match inst.opcode[0].as_str() {
        "ld" | "ldu" | "atom" => Some((1, bytes(n_parts))),
        "st" | "red" => Some((0, bytes(n_parts))),
        "ldmatrix" => Some((1, 16)),
        "stmatrix" => Some((0, 16)),
        "cp" if inst.has("ca") || inst.has("cg") => match inst.operands.get(2) {
            Some(Operand::Int(bytes)) => Some((1, bytes.cast_signed())),
            _ => None,
        },
        "wmma" if inst.has("load") => Some((1, bytes(1))),
        "wmma" if inst.has("store") => Some((0, bytes(1))),
        _ => None,
    }
}

impl Mutation {
    fn applies(self, inst: &Instruction) -> bool {
        match self {
            Self::RemoveBarrier(_) => is_barrier(inst),
            Self::RemoveWait(_) => is_wait(inst),
            Self::RemoveFence(_) => is_fence(inst),
            Self::ShiftAddress(_) => accessed(inst).is_some(),
        }
    }

    fn index(self) -> usize {
        match self {
            Self::RemoveBarrier(n)
            | Self::RemoveWait(n)
            | Self::RemoveFence(n)
            | Self::ShiftAddress(n) => n,
        }
    }
}

impl Module {
    /// All mutations of an entry.
    pub fn mutations(&self, entry: &str) -> Result<Vec<Mutation>, Error> {
        let function = self.entry(entry)?;
        let kinds: [fn(usize) -> Mutation; 4] = [
            Mutation::RemoveBarrier,
            Mutation::RemoveWait,
            Mutation::RemoveFence,
            Mutation::ShiftAddress,
        ];
        let mut mutations = vec![];
        for kind in kinds {
            let is_place = |statement: &&Statement| matches!(statement, Statement::Instruction(inst) if kind(0).applies(inst));
            mutations.extend((0..function.body.iter().filter(is_place).count()).map(kind));
        }
        Ok(mutations)
    }

    /// This module with one change; lines stay as they are.
    pub fn mutated(&self, entry: &str, mutation: Mutation) -> Result<Self, Error> {
        self.entry(entry)?;
        let mut module = self.clone();
        let functions = module.functions.iter_mut();
        let mut places = functions
            .filter(|function| function.name == entry)
            .flat_map(|function| &mut function.body)
            .filter_map(|statement| match statement {
                Statement::Instruction(inst) if mutation.applies(inst) => Some(inst),
                _ => None,
            });
        let Some(inst) = places.nth(mutation.index()) else {
            return Err(Error::Unknown(format!("{entry} has no place for {mutation:?}")));
        };
        match mutation {
            Mutation::RemoveBarrier(_) | Mutation::RemoveWait(_) | Mutation::RemoveFence(_) => {
                // A hint that does nothing stands where the instruction was.
                inst.opcode = vec!["pmevent".to_string()];
                inst.operands.clear();
            }
            Mutation::ShiftAddress(_) => {
                if let Some((at, bytes)) = accessed(inst)
                    && let Some(Operand::Address { offset, .. }) = inst.operands.get_mut(at)
                {
                    *offset = offset.wrapping_add(bytes);
                }
            }
        }
        Ok(module)
    }

    /// The line of the place that a mutation changes.
    pub fn mutation_line(&self, entry: &str, mutation: Mutation) -> Result<u32, Error> {
        let places = self.entry(entry)?.body.iter().filter_map(|statement| match statement {
            Statement::Instruction(inst) if mutation.applies(inst) => Some(inst.line),
            _ => None,
        });
        let line = places.into_iter().nth(mutation.index());
        line.ok_or_else(|| Error::Unknown(format!("{entry} has no place for {mutation:?}")))
    }
}
