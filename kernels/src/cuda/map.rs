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

use super::access::{Access, MAX_ACCESS_BYTES, is_addressable, offset_bytes};
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
        let (map, args) = Map::over(site.result, program, &leaves)?;
        Some(CudaKernel {
            name: "map",
            tunables: vec![("vector", Attr::Int(i64::from(map.vector)))],
            launches: vec![Launch {
                grid: [map.threads().div_ceil(BLOCK), 1, 1],
                function: Function::Map(map),
                args,
            }],
            scratch_bytes: 0,
            packed: None,
            in_place,
        })
    }

    /// The function that computes `result` from `leaves`, and its pointers.
    fn over(result: &Layout, program: Program, leaves: &[Leaf]) -> Option<(Map, Vec<Arg>)> {
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
        let largest = layouts.iter().map(|layout| layout.dtype.size()).max()?;
        let mut vector = MAX_ACCESS_BYTES / layouts[0].dtype.size().min(largest);
        let fits = |vector: usize| {
            nest.row_len().is_multiple_of(vector)
                && accesses[0].strides.last() == Some(&1)
                && accesses
                    .iter()
                    .zip(&layouts)
                    .all(|(access, layout)| access.takes_vectors(vector, offset_bytes(layout)))
        };
        while vector > 1 && !fits(vector) {
            vector /= 2;
        }
        let args = std::iter::once(Arg { base: Base::Result, offset: offset_bytes(result) })
            .chain(leaves.iter().map(|leaf| Arg {
                base: Base::of(&leaf.source),
                offset: offset_bytes(&leaf.layout),
            }))
            .collect();
        let map = Map {
            dims: (0..nest.rank()).map(|axis| nest.dim(axis) as u32).collect(),
            result: accesses[0].clone(),
            slots: accesses[1..].to_vec(),
            program,
            vector: vector as u32,
        };
        Some((map, args))
    }
}
