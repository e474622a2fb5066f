//! Fused elementwise code of a function, and what its slots read.

use crate::Layout;
use crate::body::{Elementwise, Leaf, Source};
use crate::program::{Instr, Program, ProgramBuilder, Value};

use super::access::{Access, is_addressable, offset_bytes};
use super::{Arg, Base};

/// A program whose slots read memory or what the function computes itself.
#[derive(Clone, PartialEq, Debug)]
pub struct Code {
    /// The instructions.
    pub program: Program,
    /// One for each slot; `None` is the value that the function computes.
    pub slots: Vec<Option<Access>>,
}

impl Code {
    /// Of compiled code; `strides` says how a leaf's layout is stepped through. `None` if a leaf is
    /// out of reach of 32 bits.
    pub(crate) fn of(
        code: &Elementwise,
        mut strides: impl FnMut(usize) -> Vec<u32>,
    ) -> Option<Code> {
        let mut slots = Vec::with_capacity(code.leaves.len());
        for (index, leaf) in code.leaves.iter().enumerate() {
            if !is_addressable(&leaf.layout) {
                return None;
            }
            slots.push(match leaf.source {
                Source::Frontier(_) => None,
                Source::Operand(_) | Source::Constant(_) => {
                    Some(Access { dtype: leaf.layout.dtype, strides: strides(index) })
                }
            });
        }
        Some(Code { program: code.program.clone(), slots })
    }

    /// Those slots that read memory.
    pub fn memory(&self) -> impl Iterator<Item = &Access> {
        self.slots.iter().flatten()
    }
}

/// Appends `code`, whose slots are these values.
pub(crate) fn inline(builder: &mut ProgramBuilder, code: &Program, slots: &[Value]) -> Value {
    let mut values: Vec<Value> = Vec::with_capacity(code.instrs().len());
    for instr in code.instrs() {
        let of = |value: Value| values[value.index()];
        let value = match *instr {
            Instr::Load { slot } => slots[slot],
            Instr::Const(x) => builder.constant(x),
            Instr::Unary { op, x } => builder.unary(op, of(x)),
            Instr::Binary { op, x, y } => builder.binary(op, of(x), of(y)),
            Instr::Select { condition, x, y } => builder.select(of(condition), of(x), of(y)),
            Instr::Round { dtype, x } => builder.round(dtype, of(x)),
        };
        values.push(value);
    }
    values[values.len() - 1]
}

/// Pointers of the leaves that are in memory, in order.
pub(crate) fn leaf_args(leaves: &[Leaf]) -> impl Iterator<Item = Arg> {
    leaves
        .iter()
        .filter(|leaf| !matches!(leaf.source, Source::Frontier(_)))
        .map(|leaf| Arg { base: Base::of(&leaf.source), offset: offset_bytes(&leaf.layout) })
}

/// The layouts of leaves; a computed value lies as `computed`, which keeps axes from being split.
pub(crate) fn leaf_layouts<'a>(
    leaves: &'a [Leaf],
    computed: &'a Layout,
) -> impl Iterator<Item = &'a Layout> {
    leaves.iter().map(move |leaf| match leaf.source {
        Source::Frontier(_) => computed,
        Source::Operand(_) | Source::Constant(_) => &leaf.layout,
    })
}

/// Whether a function that reads all of `codes` before it writes may write over `operand`: every
/// read of it is of the very address that is written.
pub(crate) fn may_alias(codes: &[&Elementwise], operand: usize, result: &Layout) -> bool {
    let reads =
        |code: &Elementwise| code.leaves.iter().any(|leaf| leaf.source == Source::Operand(operand));
    codes.iter().any(|code| reads(code))
        && codes.iter().all(|code| !reads(code) || code.may_alias(operand, result))
}
