//! Matrix instructions of a warp: shapes, types and layouts that are known.

use super::Lowering;
use super::operands::space_of;
use crate::Error;
use crate::ast::{Instruction, Operand};
use crate::ops::{Element, Fragment, Op, Part, Product};
use crate::stats::Class;
use crate::types::Ty;

/// `m16n8k16` to its numbers.
pub(super) fn shape(text: &str) -> Option<[usize; 3]> {
    let (m, rest) = text.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some([m.parse().ok()?, n.parse().ok()?, k.parse().ok()?])
}

pub(super) fn element(text: &str) -> Option<Element> {
    Some(match text {
        "f16" => Element::F16,
        "bf16" => Element::Bf16,
        "tf32" => Element::Tf32,
        "f32" => Element::F32,
        "s8" => Element::S8,
        "u8" => Element::U8,
        "s32" => Element::S32,
        _ => return None,
    })
}

fn elements(inst: &Instruction) -> Vec<Element> {
    inst.opcode[1..].iter().filter_map(|part| element(part)).collect()
}

/// Which layouts are by column, in order.
fn layouts(inst: &Instruction) -> Vec<bool> {
    let layout = |part: &String| match part.as_str() {
        "row" => Some(false),
        "col" => Some(true),
        _ => None,
    };
    inst.opcode[1..].iter().filter_map(layout).collect()
}

/// Registers of an operand of `mma`, which holds every element once.
fn n_registers(rows: usize, cols: usize, element: Element) -> usize {
    rows * cols / 32 / element.per_register()
}

impl Lowering<'_> {
    pub(super) fn matrix(&mut self, inst: &Instruction) -> Result<(), Error> {
        match (inst.opcode[0].as_str(), inst.opcode.get(1).map(String::as_str)) {
            ("ldmatrix" | "stmatrix", _) => self.move_matrix(inst),
            ("mma", _) => self.mma(inst),
            ("wmma", Some("load")) => self.move_fragment(inst, false),
            ("wmma", Some("store")) => self.move_fragment(inst, true),
            ("wmma", Some("mma")) => self.wmma(inst),
            _ => self.unknown(inst, "this form of it"),
        }
    }

    fn move_matrix(&mut self, inst: &Instruction) -> Result<(), Error> {
        let known = ["sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta"];
        self.check_modifiers(inst, &known)?;
        self.check_count(inst, &[2])?;
        let n = match (inst.has("x1"), inst.has("x2"), inst.has("x4")) {
            (true, false, false) => 1,
            (false, true, false) => 2,
            (false, false, true) => 4,
            _ => return self.unknown(inst, "its number of matrices"),
        };
        if self.ty(inst)? != Ty::U16 || !inst.has("m8n8") {
            return self.unknown(inst, "matrices other than 8x8 of 16 bits");
        }
        let is_transposed = inst.has("trans");
        let is_load = inst.opcode[0] == "ldmatrix";
        let (data, at) = if is_load { (0, 1) } else { (1, 0) };
        let (address, _) = self.address(&inst.operands[at])?;
        let words = self.words(&inst.operands[data], is_load)?;
        if words.len() != n {
            return self.invalid(format!("{} registers for {n} matrices", words.len()));
        }
        let op = if is_load {
            Op::LoadMatrix { address, is_transposed, to: words }
        } else {
            Op::StoreMatrix { address, is_transposed, from: words }
        };
        self.emit(op, Class::Matrix)
    }

    /// Registers of an operand: halves come in pairs, also where they are named as f16x2.
    fn product_words(
        &mut self,
        operand: &Operand,
        n: usize,
        is_dest: bool,
    ) -> Result<Vec<u32>, Error> {
        let words = self.words(operand, is_dest)?;
        if words.len() == n {
            return Ok(words);
        }
        self.invalid(format!("{} registers of an operand that takes {n}", words.len()))
    }

    fn mma(&mut self, inst: &Instruction) -> Result<(), Error> {
        let Some([m, n, k]) = inst.opcode.get(3).and_then(|part| shape(part)) else {
            return self.unknown(inst, "its shape");
        };
        let name = inst.opcode[3].as_str();
        let known = ["sync", "aligned", name, "row", "col", "satfinite", "s8", "u8"];
        self.check_modifiers(inst, &known)?;
        self.check_count(inst, &[4])?;
        let &[into, element, element_b, from] = elements(inst).as_slice() else {
            return self.unknown(inst, "it takes four types");
        };
        let is_half = matches!(element, Element::F16 | Element::Bf16);
        let is_tf32 = element == Element::Tf32;
        let is_byte = matches!(element, Element::S8 | Element::U8);
        let is_known_shape = (m, n) == (16, 8)
            && (is_half && matches!(k, 8 | 16)
                || is_tf32 && matches!(k, 4 | 8)
                || is_byte && matches!(k, 16 | 32));
        if !is_known_shape {
            return self.unknown(inst, "its shape with these types");
        }
        let are_known_types = if is_byte {
            (into, from) == (Element::S32, Element::S32)
                && matches!(element_b, Element::S8 | Element::U8)
        } else {
            let is_f16 = element == Element::F16 && (into, from) == (Element::F16, Element::F16);
            element_b == element && ((into, from) == (Element::F32, Element::F32) || is_f16)
        };
        if !are_known_types || layouts(inst) != [false, true] {
            return self.unknown(inst, "these types or layouts together");
        }
        let product = Product {
            m,
            n,
            k,
            element,
            element_b,
            from,
            into,
            a: self.product_words(&inst.operands[1], n_registers(m, k, element), false)?,
            b: self.product_words(&inst.operands[2], n_registers(k, n, element_b), false)?,
            c: self.product_words(&inst.operands[3], n_registers(m, n, from), false)?,
            d: self.product_words(&inst.operands[0], n_registers(m, n, into), true)?,
            wmma: None,
            is_saturated: inst.has("satfinite"),
        };
        self.emit(Op::Product(Box::new(product)), Class::Matrix)
    }

    /// The shape of a `wmma` and whether it is known for an element type.
    fn wmma_shape(&self, inst: &Instruction) -> Result<[usize; 3], Error> {
        let found = inst.opcode[1..].iter().find_map(|part| shape(part));
        let is_known =
            |dims: &[usize; 3]| matches!(dims, [16, 16, 16 | 8] | [32, 8, 16] | [8, 32, 16]);
        found.filter(is_known).map_or_else(|| self.unknown(inst, "its shape"), Ok)
    }

    fn move_fragment(&mut self, inst: &Instruction, is_store: bool) -> Result<(), Error> {
        let shape_name = inst.opcode.iter().find(|p| shape(p).is_some()).map_or("", String::as_str);
        let space_name =
            inst.opcode.iter().find(|p| space_of(p).is_some()).map_or("", String::as_str);
        let part_name = inst.opcode.get(2).map_or("", String::as_str);
        let known =
            ["load", "store", part_name, "sync", "aligned", "row", "col", shape_name, space_name];
        self.check_modifiers(inst, &known)?;
        self.check_count(inst, &[2, 3])?;
        let [m, n, k] = self.wmma_shape(inst)?;
        let (part, rows, cols) = match part_name {
            "a" => (Part::A, m, k),
            "b" => (Part::B, k, n),
            "c" | "d" => (Part::Accumulator, m, n),
            _ => return self.unknown(inst, "its part"),
        };
        let (&[element], &[is_by_column]) = (elements(inst).as_slice(), layouts(inst).as_slice())
        else {
            return self.unknown(inst, "its type or layout");
        };
        let is_accumulator = part == Part::Accumulator;
        let is_known = match element {
            Element::F16 => k == 16,
            Element::Bf16 => k == 16 && !is_accumulator,
            Element::F32 => is_accumulator || k == 8,
            Element::Tf32 => k == 8 && !is_accumulator,
            Element::S8 | Element::U8 | Element::S32 => false,
        };
        if !is_known {
            return self.unknown(inst, "its type with this shape");
        }
        let (data, at) = if is_store { (1, 0) } else { (0, 1) };
        let (space, address) = self.place(inst, &inst.operands[at])?;
        let words = self.words(&inst.operands[data], !is_store)?;
        let n_regs = words.len();
        self.check_fragment(inst, rows, cols, element, n_regs)?;
        let stride = match inst.operands.get(2) {
            Some(operand) => Some(self.source(operand, Ty::U32)?),
            None => None,
        };
        let fragment = Fragment {
            rows,
            cols,
            element,
            // Those of accumulators do not depend on the layout in memory.
            is_by_column: is_by_column && !is_accumulator,
            is_stored_by_column: is_by_column,
            n_regs,
        };
        let op = if is_store {
            Op::StoreFragment { space, fragment, address, stride, from: words }
        } else {
            Op::LoadFragment { space, fragment, address, stride, to: words }
        };
        self.emit(op, Class::Matrix)
    }

    /// Registers hold every element once, or several times where PTX wants more of them.
    fn check_fragment(
        &self,
        inst: &Instruction,
        rows: usize,
        cols: usize,
        element: Element,
        n_regs: usize,
    ) -> Result<(), Error> {
        let once = n_registers(rows, cols, element);
        let n_expected = if element == Element::F16 && once < 8 && !inst.has("c") && !inst.has("d")
        {
            8
        } else {
            once
        };
        if n_regs == n_expected {
            return Ok(());
        }
        self.invalid(format!("{}: {n_regs} registers, expected {n_expected}", inst.opcode_text()))
    }

    fn wmma(&mut self, inst: &Instruction) -> Result<(), Error> {
        let shape_name = inst.opcode.iter().find(|p| shape(p).is_some()).map_or("", String::as_str);
        let known = ["mma", "sync", "aligned", "row", "col", shape_name, "satfinite"];
        self.check_modifiers(inst, &known)?;
        self.check_count(inst, &[4])?;
        let [m, n, k] = self.wmma_shape(inst)?;
        // With two types, those of D and C, operands are f16.
        let (into, element, from) = match *elements(inst).as_slice() {
            [into, from] if k == 16 => (into, Element::F16, from),
            [Element::F32, Element::Bf16, Element::Bf16, Element::F32] if k == 16 => {
                (Element::F32, Element::Bf16, Element::F32)
            }
            [Element::F32, Element::Tf32, Element::Tf32, Element::F32] if k == 8 => {
                (Element::F32, Element::Tf32, Element::F32)
            }
            _ => return self.unknown(inst, "these types"),
        };
        let is_float = |element| matches!(element, Element::F16 | Element::F32);
        let &[a_by_column, b_by_column] = layouts(inst).as_slice() else {
            return self.unknown(inst, "its layouts");
        };
        if !is_float(into) || !is_float(from) || inst.has("satfinite") {
            return self.unknown(inst, "its accumulators");
        }
        let n_words = |rows: usize, cols: usize| {
            let once = n_registers(rows, cols, element);
            if element == Element::F16 { once.max(8) } else { once }
        };
        let product = Product {
            m,
            n,
            k,
            element,
            element_b: element,
            from,
            into,
            a: self.product_words(&inst.operands[1], n_words(m, k), false)?,
            b: self.product_words(&inst.operands[2], n_words(k, n), false)?,
            c: self.product_words(&inst.operands[3], n_registers(m, n, from), false)?,
            d: self.product_words(&inst.operands[0], n_registers(m, n, into), true)?,
            wmma: Some((a_by_column, b_by_column)),
            is_saturated: false,
        };
        self.emit(Op::Product(Box::new(product)), Class::Matrix)
    }
}
