//! Elementwise groups and views that must become real: one thread per run of result elements.
//!
//! Loops are collapsed to as few dims as the layouts allow, so that a thread finds its elements with
//! few divisions by constants. Up to 16 bytes are read and written at once where every operand allows
//! it. Roofline: memory bandwidth, each operand read once and the result written once.

use ops::{Attr, DType};

use crate::Layout;
use crate::body::{Leaf, Source, compile_elementwise, operand_view};
use crate::kernel::Site;
use crate::nest::Nest;
use crate::program::Program;

use super::access::{Access, is_addressable, offset_bytes, widest_vector};
use super::code::leaf_args;
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
    /// What each slot of the program reads.
    pub slots: Vec<Access>,
    /// The code; a copy of one element type is a copy of bits.
    pub program: Program,
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
        let launch = Map::launch(site.result, program, &leaves, to)?;
        let Function::Map(map) = &launch.function else { return None };
        Some(CudaKernel {
            name: "map",
            tunables: vec![("vector", Attr::Int(i64::from(map.vector)))],
            launches: vec![launch],
            scratch_bytes: 0,
            packed: None,
            in_place,
        })
    }

    /// The launch that computes what lies as `result`, from `to` on, of `leaves`.
    pub(crate) fn launch(
        result: &Layout,
        program: Program,
        leaves: &[Leaf],
        to: Arg,
    ) -> Option<Launch> {
        let layouts: Vec<&Layout> =
            std::iter::once(result).chain(leaves.iter().map(|leaf| &leaf.layout)).collect();
        if !layouts.iter().all(|layout| is_addressable(layout)) {
            return None;
        }
        let is_exact = |dtype: DType| dtype.is_float() || dtype == DType::Bool;
        let keeps_bits = program.is_copy() && program.slots()[0] == program.result();
        if !keeps_bits && !is_exact(program.result()) {
            return None;
        }
        let nest = Nest::new(&layouts)?;
        let access = |index: usize| Access {
            dtype: layouts[index].dtype,
            strides: (0..nest.rank()).map(|axis| nest.stride(axis, index) as u32).collect(),
        };
        let accesses: Vec<Access> = (0..layouts.len()).map(access).collect();
        let vector = if nest.row_stride(0) == 1 {
            let offsets = layouts[1..].iter().map(|layout| offset_bytes(layout));
            let offsets = std::iter::once(to.offset).chain(offsets);
            widest_vector(accesses.iter().zip(offsets), nest.row_len() as u32)
        } else {
            1
        };
        let map = Map {
            dims: (0..nest.rank()).map(|axis| nest.dim(axis) as u32).collect(),
            result: accesses[0].clone(),
            slots: accesses[1..].to_vec(),
            program,
            vector,
        };
        Some(Launch {
            grid: [map.threads().div_ceil(BLOCK), 1, 1],
            args: std::iter::once(to).chain(leaf_args(leaves)).collect(),
            function: Function::Map(map),
        })
    }
}
