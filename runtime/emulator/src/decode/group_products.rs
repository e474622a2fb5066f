//! `wgmma`: products of four warps with operands in shared memory.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Lowering;
use super::matrices::{element, shape};
use crate::Error;
use crate::ast::{Instruction, Operand};
use crate::ops::{Element, GroupProduct, Inst, Op};
use crate::registers::Reg;
use crate::stats::Class;
use crate::types::Ty;

/// Rows of a group.
const ROWS: usize = 64;
/// Depth of an instruction with elements of 16 bits.
const DEPTH: usize = 16;

/// Notes in each instruction which sums of products it names.
pub(super) fn set_sums(code: &mut [Inst], named: &[Vec<Reg>]) {
    let products = code.iter().filter_map(|inst| match &inst.op {
        Op::GroupProduct(product) => Some(product),
        _ => None,
    });
    let sums: BTreeSet<Reg> = products.flat_map(|product| product.sums.iter().copied()).collect();
    if sums.is_empty() {
        return;
    }
    for (inst, named) in code.iter_mut().zip(named) {
        if !matches!(inst.op, Op::GroupProduct(_)) {
            inst.sums = named.iter().copied().filter(|reg| sums.contains(reg)).collect();
        }
    }
}

impl Lowering<'_> {
    pub(super) fn group_product(&mut self, inst: &Instruction) -> Result<(), Error> {
        if self.module.target != "sm_90a" {
            let target = &self.module.target;
            return self.invalid(format!("wgmma needs .target sm_90a, the module has {target}"));
        }
        let action = inst.opcode.get(1).map_or("", String::as_str);
        let shape_name = match action {
            "mma_async" => inst.opcode.iter().find(|part| shape(part).is_some()),
            _ => None,
        };
        let shape_name = shape_name.map_or("", String::as_str);
        self.check_modifiers(inst, &[action, "sync", "aligned", shape_name])?;
        let op = match action {
            "fence" => Op::GroupFence,
            "commit_group" => Op::GroupCommit,
            "wait_group" => {
                let [Operand::Int(n)] = inst.operands[..] else {
                    return self.invalid("wgmma.wait_group takes a constant".to_string());
                };
                Op::GroupWait { n_open: u32::try_from(n).unwrap_or(u32::MAX) }
            }
            "mma_async" => return self.group_mma(inst, shape_name),
            _ => return self.unknown(inst, "this form of it"),
        };
        if action != "wait_group" {
            self.check_count(inst, &[0])?;
        }
        self.emit(op, Class::Matrix)
    }

    fn group_mma(&mut self, inst: &Instruction, shape_name: &str) -> Result<(), Error> {
        let n = match shape(shape_name) {
            Some([ROWS, n, DEPTH]) if n % 8 == 0 && (8..=256).contains(&n) => n,
            _ => return self.unknown(inst, "its shape"),
        };
        let types: Vec<Element> = inst.opcode[1..].iter().filter_map(|p| element(p)).collect();
        let element = match types[..] {
            [Element::F32, a @ (Element::F16 | Element::Bf16), b] if a == b => a,
            _ => return self.unknown(inst, "these types"),
        };
        if matches!(inst.operands.get(1), Some(Operand::Vector(_))) {
            return self.unknown(inst, "A in registers");
        }
        self.check_count(inst, &[8])?;
        let mut negated = [false; 2];
        for (is_negated, operand) in negated.iter_mut().zip(&inst.operands[4..6]) {
            *is_negated = match operand {
                Operand::Int(scale) if *scale == 1 => false,
                Operand::Int(scale) if scale.cast_signed() == -1 => true,
                _ => return self.invalid("scales of A and B are 1 or -1".to_string()),
            };
        }
        for operand in &inst.operands[6..] {
            match operand {
                Operand::Int(0) => {}
                Operand::Int(1) => return self.unknown(inst, "a transposed operand"),
                _ => return self.invalid("A and B are transposed by 0 or 1".to_string()),
            }
        }
        let sums = self.words(&inst.operands[0], true)?;
        if sums.len() != n / 2 {
            let (found, n) = (sums.len(), n / 2);
            return self.invalid(format!("{found} registers of an operand that takes {n}"));
        }
        let product = GroupProduct {
            n,
            element,
            sums,
            descriptors: [
                self.source(&inst.operands[1], Ty::U64)?,
                self.source(&inst.operands[2], Ty::U64)?,
            ],
            keeps_sums: self.pred_use(&inst.operands[3])?,
            is_negated: negated[0] != negated[1],
        };
        self.emit(Op::GroupProduct(Arc::new(product)), Class::Matrix)
    }
}
