//! Elementwise groups and views that must become real: one thread per run of result elements.
//!
//! Loops are collapsed to as few dims as the layouts allow, so that a thread finds its elements with
//! few divisions by constants. Up to 16 bytes are read and written at once where every operand allows
//! it. Roofline: memory bandwidth, each operand read once and the result written once.

use ops::Attr;

use crate::Layout;
use crate::body::{Leaf, Source, compile_elementwise, operand_view};
use crate::kernel::Site;
use crate::nest::Nest;
use crate::program::{Instr, Program};

use super::access::{Access, is_addressable, offset_bytes, widest_vector};
use super::code::{Code, leaf_args};
use super::transpose::Transpose;
use super::{Arg, Base, CudaKernel, Function, Gpu, Launch};

/// Threads of a block.
const BLOCK: u32 = 256;

/// `result[i] = program(slots[i])` over `dims`. Pointers: the result, then one for each slot.
#[derive(Clone, PartialEq, Debug)]
pub struct Map {
    /// Loop dims, outermost first.
    pub dims: Vec<u32>,
    /// What is written.
    pub result: Access,
    /// What is computed; a copy of one element type is a copy of bits.
    pub code: Code,
    /// Consecutive elements of the innermost dim for each thread.
    pub vector: u32,
}

impl Map {
    /// Threads of a block.
    pub fn block(&self) -> [u32; 3] {
        [BLOCK, 1, 1]
    }

    /// Runs of elements, each a thread's.
    pub fn threads(&self) -> u32 {
        self.dims.iter().product::<u32>() / self.vector
    }

    /// Whether elements are moved as they are.
    pub fn keeps_bits(&self) -> bool {
        let program = &self.code.program;
        program.is_copy() && program.slots()[0] == program.result()
    }

    /// Takes elementwise bodies and views.
    pub fn select(site: &Site<'_>, _: Gpu) -> Option<CudaKernel> {
        let &[root] = &site.body.outputs[..] else { return None };
        let view = operand_view(site.body, root, site.operands)
            .filter(|(_, from)| from.shape == site.result.shape);
        let (program, leaves) = match view {
            Some((operand, layout)) => {
                let program = Program::copy(layout.dtype, site.result.dtype);
                (program, vec![Leaf { source: Source::Operand(operand), layout }])
            }
            None => {
                let code = compile_elementwise(site.body, root, &[], site.operands)?;
                (code.program, code.leaves)
            }
        };
        let in_place = (0..site.operands.len())
            .map(|operand| {
                let code =
                    crate::body::Elementwise { program: program.clone(), leaves: leaves.clone() };
                code.may_alias(operand, site.result)
            })
            .collect();
        let to = Arg { base: Base::Result, offset: offset_bytes(site.result) };
        let slots = leaf_slots(&leaves);
        let launch = Map::launch(site.result, program, &slots, to)?;
        let tunables = match &launch.function {
            Function::Map(map) => vec![("vector", Attr::Int(map.vector.into()))],
            _ => vec![("code", Attr::Str("transpose".to_owned()))],
        };
        Some(CudaKernel {
            name: "map",
            tunables,
            launches: vec![launch],
            scratch_bytes: 0,
            packed: None,
            in_place,
        })
    }

    /// The launch that copies what lies as `from`, of operand `operand`, to what lies as `to`.
    pub(crate) fn copy(to: &Layout, base: Base, operand: usize, from: &Layout) -> Option<Launch> {
        let program = Program::copy(from.dtype, to.dtype);
        let arg = Arg { base: Base::Operand(operand), offset: offset_bytes(from) };
        let to_arg = Arg { base, offset: offset_bytes(to) };
        Map::launch(to, program, &[(from, arg)], to_arg)
    }

    /// The launch that fills `to` with zeros.
    pub(crate) fn zeros(to: &Layout, base: Base) -> Option<Launch> {
        let program = Program::new(vec![], vec![Instr::Const(0.0)], to.dtype).ok()?;
        Map::launch(to, program, &[], Arg { base, offset: offset_bytes(to) })
    }

    /// The launch that computes what lies as `result`, from `to` on, of `slots`. Layouts' offsets are
    /// in the arguments already.
    pub(crate) fn launch(
        result: &Layout,
        program: Program,
        slots: &[(&Layout, Arg)],
        to: Arg,
    ) -> Option<Launch> {
        let layouts: Vec<&Layout> =
            std::iter::once(result).chain(slots.iter().map(|(layout, _)| *layout)).collect();
        if !layouts.iter().all(|layout| is_addressable(layout)) {
            return None;
        }
        let nest = Nest::new(&layouts)?;
        let access = |index: usize| Access {
            dtype: layouts[index].dtype,
            strides: (0..nest.rank())
                .map(|axis| if nest.dim(axis) == 1 { 0 } else { nest.stride(axis, index) as u32 })
                .collect(),
        };
        let args: Vec<Arg> =
            std::iter::once(to).chain(slots.iter().map(|(_, arg)| arg.clone())).collect();
        let accesses: Vec<Access> = (0..layouts.len()).map(access).collect();
        let vector = if nest.row_stride(0) == 1 {
            let offsets = args.iter().map(|arg| arg.offset);
            widest_vector(accesses.iter().zip(offsets), nest.row_len() as u32)
        } else {
            1
        };
        let map = Map {
            dims: (0..nest.rank()).map(|axis| nest.dim(axis) as u32).collect(),
            result: accesses[0].clone(),
            code: Code { program, slots: accesses[1..].iter().cloned().map(Some).collect() },
            vector,
        };
        if map.keeps_bits()
            && let Some(launch) = Transpose::launch(&nest, &map.result, &args)
        {
            return Some(launch);
        }
        Some(Launch {
            grid: [map.threads().div_ceil(BLOCK), 1, 1],
            args,
            function: Function::Map(map),
        })
    }
}

/// Layouts and pointers of leaves in memory.
pub(crate) fn leaf_slots(leaves: &[Leaf]) -> Vec<(&Layout, Arg)> {
    let in_memory = leaves.iter().filter(|leaf| !matches!(leaf.source, Source::Frontier(_)));
    in_memory.map(|leaf| &leaf.layout).zip(leaf_args(leaves)).collect()
}
