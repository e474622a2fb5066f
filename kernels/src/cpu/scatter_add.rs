//! `scatter_add`: sums of rows by id, as the gradient of a table is. An item of the pool has some columns of the result
//! and walks over all ids in their order, so bytes do not depend on threads. Ids outside the table are left out.
//!
//! Sums are f32: in the result itself, or, where that is of a half type, in scratch until they are rounded once.
//! Roofline: memory bandwidth, what is added and the result, and the ids once per item.

use half::{bf16, f16};
use ops::{DType, Op};

use crate::Layout;
use crate::body::operand_view;
use crate::kernel::{KernelDef, Launch, Site};
use crate::nest::Nest;

use super::shared::{Shared, aligned};

/// Columns of an item.
const COLUMNS: usize = 64;

/// Sums of rows, by ids.
#[derive(Clone, Debug)]
pub struct ScatterAdd {
    ids: usize,
    ids_dtype: DType,
    rows: usize,
    added: usize,
    dtype: DType,
    /// Layout 0 is the first element of each row that is added, 1 the ids; in the order of ids.
    index: Nest,
    /// Layout 0 is a row of the result, 1 a row that is added, without its start.
    row: Nest,
    /// From a row of the result to the next.
    row_step: usize,
}

/// Where an item's sums are: column `j` of row `r` at `r * row_step + j * step`.
#[derive(Clone, Copy)]
struct Sums {
    base: *mut f32,
    row_step: usize,
    step: usize,
}

impl ScatterAdd {
    /// Takes a `scatter_add` of operands or views of them.
    pub fn select(site: &Site<'_>) -> Option<ScatterAdd> {
        let &[root] = &site.body.outputs[..] else { return None };
        let Some(Op::ScatterAdd(op)) = site.body.op(root) else { return None };
        let args = &site.body.node(root).args;
        let (ids, ids_layout) = operand_view(site.body, args[0], site.operands)?;
        let (added, added_layout) = operand_view(site.body, args[1], site.operands)?;
        let dtype = site.result.dtype;
        if !matches!(dtype, DType::F32 | DType::F16 | DType::Bf16) {
            return None;
        }
        let n_index = ids_layout.rank();
        let part = |layout: &Layout, from: usize, to: usize, offset: usize| Layout {
            dtype: layout.dtype,
            shape: layout.shape[from..to].to_vec(),
            strides: layout.strides[from..to].to_vec(),
            offset,
        };
        let starts = part(&added_layout, 0, n_index, added_layout.offset);
        let from = part(&added_layout, n_index, added_layout.rank(), 0);
        let to = part(site.result, 1, site.result.rank(), site.result.offset);
        // In row-major order, whatever the strides: it is that of the sums.
        let in_order: Vec<usize> = (0..n_index).collect();
        Some(ScatterAdd {
            ids,
            ids_dtype: ids_layout.dtype,
            rows: op.rows,
            added,
            dtype,
            index: Nest::with_axes(&[&starts, &ids_layout], &in_order),
            row: Nest::new(&[&to, &from])?,
            row_step: site.result.strides[0],
        })
    }

    fn is_half(&self) -> bool {
        self.dtype != DType::F32
    }

    /// Bytes of a worker's sums.
    fn worker_bytes(&self) -> usize {
        aligned(self.rows * COLUMNS * size_of::<f32>())
    }

    /// Items of a row of the nest.
    fn segments(&self) -> usize {
        self.row.row_len().div_ceil(COLUMNS)
    }

    /// Adds `columns` columns of every row, from position `first` of each, to `sums`.
    ///
    /// # Safety
    /// As [`KernelDef::run`]; `sums` has room for `columns` columns of all rows.
    unsafe fn add(&self, shared: Shared<'_>, first: usize, columns: usize, sums: Sums) {
        let step = self.row.row_stride(1);
        let (ids, added) = (shared.operand(self.ids), shared.operand(self.added));
        let mut cursor = self.index.at(0);
        for _ in 0..self.index.n_rows() {
            for i in 0..self.index.row_len() {
                let at = cursor.position(1) + i * self.index.row_stride(1);
                // SAFETY: positions of a nest lie within its layouts, which the buffers hold.
                unsafe {
                    let id = match self.ids_dtype {
                        DType::I64 => ids.cast::<i64>().add(at).read_unaligned(),
                        _ => i64::from(ids.cast::<i32>().add(at).read_unaligned()),
                    };
                    let row = usize::try_from(id).ok().filter(|&row| row < self.rows);
                    let Some(row) = row else { continue };
                    let from = cursor.position(0) + i * self.index.row_stride(0) + first;
                    let to = sums.base.add(row * sums.row_step);
                    match self.dtype {
                        DType::F32 => {
                            let from = added.cast::<f32>().add(from);
                            for j in 0..columns {
                                *to.add(j * sums.step) += *from.add(j * step);
                            }
                        }
                        _ => {
                            let from = added.cast::<u16>().add(from);
                            for j in 0..columns {
                                *to.add(j * sums.step) += self.widened(*from.add(j * step));
                            }
                        }
                    }
                }
            }
            cursor.advance();
        }
    }

    /// The number that a half type's `bits` are.
    fn widened(&self, bits: u16) -> f32 {
        match self.dtype {
            DType::F16 => f16::from_bits(bits).to_f32(),
            _ => bf16::from_bits(bits).to_f32(),
        }
    }

    /// The half type's bits of `x`, rounded to nearest.
    fn narrowed(&self, x: f32) -> u16 {
        match self.dtype {
            DType::F16 => f16::from_f32(x).to_bits(),
            _ => bf16::from_f32(x).to_bits(),
        }
    }
}

impl KernelDef for ScatterAdd {
    fn name(&self) -> &'static str {
        "scatter_add"
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        if self.is_half() { threads * self.worker_bytes() } else { 0 }
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        let segments = self.segments();
        launch.pool.run(self.row.n_rows() * segments, &|item, worker| {
            let cursor = self.row.at(item / segments);
            let start = item % segments * COLUMNS;
            let columns = COLUMNS.min(self.row.row_len() - start);
            let step = self.row.row_stride(0);
            let to = cursor.position(0) + start * step;
            let from = cursor.position(1) + start * self.row.row_stride(1);
            // SAFETY: the caller of `run` promises buffers that hold the layouts and the scratch that was asked
            // for; items have columns of their own, and workers parts of the scratch.
            unsafe {
                let sums = if self.is_half() {
                    let base = shared.scratch().add(worker * self.worker_bytes()).cast();
                    Sums { base, row_step: COLUMNS, step: 1 }
                } else {
                    let base = shared.result().cast::<f32>().add(to);
                    Sums { base, row_step: self.row_step, step }
                };
                for row in 0..self.rows {
                    for j in 0..columns {
                        *sums.base.add(row * sums.row_step + j * sums.step) = 0.0;
                    }
                }
                self.add(shared, from, columns, sums);
                if self.is_half() {
                    let result = shared.result().cast::<u16>().add(to);
                    for row in 0..self.rows {
                        for j in 0..columns {
                            let sum = *sums.base.add(row * sums.row_step + j);
                            *result.add(row * self.row_step + j * step) = self.narrowed(sum);
                        }
                    }
                }
            }
        });
    }
}
