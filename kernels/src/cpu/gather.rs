//! `gather`: rows of a table by id. A row is copied whole; ids outside the table give zeros.
//! Roofline: memory bandwidth, twice the result.

use ops::{DType, Op};

use crate::Layout;
use crate::kernel::{KernelDef, Launch, Site};

use super::copy::Copy;
use super::shared::Shared;
use crate::body::operand_view;
use crate::nest::Nest;

/// Ids per item of the pool.
const ITEM: usize = 256;

/// Rows of a table, chosen by ids.
#[derive(Clone, Debug)]
pub struct Gather {
    table: usize,
    ids: usize,
    ids_dtype: DType,
    n_rows: usize,
    /// From the table's row 0 to the result's row 0.
    row: Copy,
    /// From a zero to the result's row 0.
    zeros: Copy,
    table_step: usize,
    /// Layout 0 is the first element of each row of the result, 1 the ids.
    nest: Nest,
    size: usize,
}

/// The largest element: all its bytes are zero.
static ZERO: [u64; 1] = [0];

impl Gather {
    /// Takes a `gather` of operands or views of them.
    pub fn select(site: &Site<'_>) -> Option<Gather> {
        let &[root] = &site.body.outputs[..] else { return None };
        let Some(Op::Gather(_)) = site.body.op(root) else { return None };
        let args = &site.body.node(root).args;
        let (table, table_layout) = operand_view(site.body, args[0], site.operands)?;
        let (ids, ids_layout) = operand_view(site.body, args[1], site.operands)?;
        let index_rank = ids_layout.rank();
        let part = |layout: &Layout, from: usize, to: usize, offset: usize| Layout {
            dtype: layout.dtype,
            shape: layout.shape[from..to].to_vec(),
            strides: layout.strides[from..to].to_vec(),
            offset,
        };
        let to = part(site.result, index_rank, site.result.rank(), 0);
        let from = part(&table_layout, 1, table_layout.rank(), table_layout.offset);
        let zero = Layout { strides: vec![0; to.rank()], offset: 0, ..to.clone() };
        let starts = part(site.result, 0, index_rank, site.result.offset);
        Some(Gather {
            table,
            ids,
            ids_dtype: ids_layout.dtype,
            n_rows: table_layout.shape[0],
            row: Copy::new(&to, &from),
            zeros: Copy::new(&to, &zero),
            table_step: table_layout.strides[0],
            nest: Nest::new(&[&starts, &ids_layout])?,
            size: site.result.dtype.size(),
        })
    }
}

impl KernelDef for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        // Rows of a table of biases are a few bytes: what is asked once need not be asked for each.
        let contiguous = self.row.contiguous();
        let segments = self.nest.row_len().div_ceil(ITEM);
        launch.pool.run(self.nest.n_rows() * segments, &|item, _| {
            let cursor = self.nest.at(item / segments);
            let first = item % segments * ITEM;
            for i in first..self.nest.row_len().min(first + ITEM) {
                let at = cursor.position(1) + i * self.nest.row_stride(1);
                // SAFETY: the caller of `run` promises buffers that hold the layouts.
                unsafe {
                    let ids = shared.operand(self.ids);
                    let id = match self.ids_dtype {
                        DType::I64 => ids.cast::<i64>().add(at).read_unaligned(),
                        _ => i64::from(ids.cast::<i32>().add(at).read_unaligned()),
                    };
                    let to = cursor.position(0) + i * self.nest.row_stride(0);
                    let to = shared.result().add(to * self.size);
                    let row = usize::try_from(id).ok().filter(|&row| row < self.n_rows);
                    let (copy, from) = match row {
                        Some(row) => {
                            let from = shared.operand(self.table);
                            (&self.row, from.add(row * self.table_step * self.size))
                        }
                        None => (&self.zeros, ZERO.as_ptr().cast()),
                    };
                    if let (Some([start, source, bytes]), Some(_)) = (contiguous, row) {
                        std::ptr::copy_nonoverlapping(from.add(source), to.add(start), bytes);
                        continue;
                    }
                    for part in 0..copy.n_items() {
                        copy.run(part, to, from);
                    }
                }
            }
        });
    }
}
