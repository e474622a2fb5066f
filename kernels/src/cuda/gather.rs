//! `gather`: rows of a table by id; ids outside the table give zeros. Roofline: memory bandwidth,
//! twice the result.

use ops::{Attr, Op};

use crate::Layout;
use crate::body::operand_view;
use crate::kernel::Site;

use super::access::{Access, is_addressable, offset_bytes, widest_vector};
use super::{Arg, Base, CudaKernel, Function, Gpu, Launch};

/// Threads of a block.
const BLOCK: u32 = 256;

/// `result[i.., j..] = table[ids[i..], j..]`, a thread for each run of elements. Pointers: the
/// result, the table, the ids.
#[derive(Clone, PartialEq, Debug)]
pub struct Gather {
    /// Dims of the result: those of the ids, then those of a row.
    pub dims: Vec<u32>,
    /// What is written.
    pub result: Access,
    /// The table's strides along `dims`: 0 for those of the ids.
    pub table: Access,
    /// From one row of the table to the next.
    pub row_stride: u32,
    /// Rows of the table.
    pub n_rows: u32,
    /// Strides along `dims`: 0 for those of a row. I32 or I64.
    pub ids: Access,
    /// Consecutive elements of the innermost dim for each thread.
    pub vector: u32,
}

impl Gather {
    /// Threads of a block.
    pub fn block(&self) -> [u32; 3] {
        [BLOCK, 1, 1]
    }

    /// Runs of elements, each a thread's.
    pub fn threads(&self) -> u32 {
        self.dims.iter().product::<u32>() / self.vector
    }

    /// Takes a `gather` of operands or views of them.
    pub fn select(site: &Site<'_>, _: Gpu) -> Option<CudaKernel> {
        let &[root] = &site.body.outputs[..] else { return None };
        let Some(Op::Gather(_)) = site.body.op(root) else { return None };
        let args = &site.body.node(root).args;
        let (table, table_layout) = operand_view(site.body, args[0], site.operands)?;
        let (ids, ids_layout) = operand_view(site.body, args[1], site.operands)?;
        let layouts = [site.result, &table_layout, &ids_layout];
        if !layouts.into_iter().all(is_addressable) || site.result.count() > u32::MAX as usize {
            return None;
        }
        let (index_rank, row_rank) = (ids_layout.rank(), table_layout.rank() - 1);
        let access = |layout: &Layout, strides: Vec<usize>| Access {
            dtype: layout.dtype,
            strides: strides
                .iter()
                .zip(&site.result.shape)
                .map(|(&stride, &dim)| if dim == 1 { 0 } else { stride as u32 })
                .collect(),
        };
        let none = |rank: usize| vec![0; rank];
        let mut gather = Gather {
            dims: site.result.shape.iter().map(|&dim| dim as u32).collect(),
            result: access(site.result, site.result.strides.clone()),
            table: access(&table_layout, [&none(index_rank), &table_layout.strides[1..]].concat()),
            row_stride: table_layout.strides[0] as u32,
            n_rows: table_layout.shape[0] as u32,
            ids: access(&ids_layout, [&ids_layout.strides[..], &none(row_rank)].concat()),
            vector: 1,
        };
        if gather.dims.is_empty() {
            return None;
        }
        let args = vec![
            Arg { base: Base::Result, offset: offset_bytes(site.result) },
            Arg { base: Base::Operand(table), offset: offset_bytes(&table_layout) },
            Arg { base: Base::Operand(ids), offset: offset_bytes(&ids_layout) },
        ];
        // Runs may not cross rows, whose starts must be as even as their elements.
        if row_rank > 0 && gather.result.inner_stride() == 1 && gather.table.inner_stride() == 1 {
            let row = Access { dtype: gather.table.dtype, strides: vec![gather.row_stride, 1] };
            let accesses = [&gather.result, &gather.table, &row];
            let offsets = [args[0].offset, args[1].offset, args[1].offset];
            let len = gather.dims[gather.dims.len() - 1];
            gather.vector = widest_vector(accesses.into_iter().zip(offsets), len);
        }
        Some(CudaKernel {
            name: "gather",
            tunables: vec![("vector", Attr::Int(i64::from(gather.vector)))],
            launches: vec![Launch {
                grid: [gather.threads().div_ceil(BLOCK), 1, 1],
                args,
                function: Function::Gather(gather),
            }],
            scratch_bytes: 0,
            packed: None,
            in_place: vec![],
        })
    }
}
