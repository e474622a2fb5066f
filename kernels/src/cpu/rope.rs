//! `rope` by itself: rotates channel pairs of each row by the angles of its position. Cosines and
//! sines are made once per run. Roofline: memory bandwidth. Not used where attention follows, which
//! rotates on the way in.

use ops::Op;

use crate::kernel::{KernelDef, Launch, Site};
use crate::program::store;
use crate::simd::{Simd, SimdJob, dispatch};
use crate::{Isa, Layout};

use super::attention_rows::padded;
use super::lanes::store_to;
use super::shared::{Shared, aligned};
use crate::head_rows::{HeadRows, MAX_TABLES, RowTable};
use crate::nest::Nest;

/// Rows per item of the pool.
const ROWS: usize = 64;

/// A rotation, with a norm or a weight before or after it.
#[derive(Clone, Debug)]
pub struct Rope {
    isa: Isa,
    rows: HeadRows,
    tables: Vec<RowTable>,
    result: Layout,
    /// Layout 0 is the result, 1 the operand, 2 counts positions.
    nest: Nest,
}

impl Rope {
    /// Takes `rope` with what attention would take before it.
    pub fn select(site: &Site<'_>) -> Option<Rope> {
        let &[root] = &site.body.outputs[..] else { return None };
        let mut tables = vec![];
        site.body.values().find(|&value| matches!(site.body.op(value), Some(Op::Rope(_))))?;
        let rows = HeadRows::of(site.body, root, site.operands, &mut tables)?;
        let result = site.result.clone();
        let rank = result.rank();
        if rows.is_plain() || result.strides[rank - 1] != 1 {
            return None;
        }
        let mut strides = vec![0; rank];
        strides[rank - 3] = 1;
        let position = Layout { strides, offset: 0, ..result.clone() };
        let nest = Nest::with_row(&[&result, &rows.layout, &position], rank - 1)?;
        Some(Rope { isa: site.target.isa, rows, tables, result, nest })
    }

    fn table_bytes(&self) -> usize {
        self.tables.iter().map(|table| aligned(4 * table.len())).sum()
    }

    fn row_bytes(&self) -> usize {
        2 * aligned(4 * padded(self.nest.row_len()))
    }
}

impl KernelDef for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        self.table_bytes() + threads * self.row_bytes()
    }

    fn may_alias(&self, operand: usize) -> bool {
        operand == self.rows.operand && self.rows.layout == self.result
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        let mut offset = 0;
        for table in &self.tables {
            launch.pool.run(table.positions(), &|position, _| {
                dispatch(self.isa, Fill { table, shared, offset, position });
            });
            offset += aligned(4 * table.len());
        }
        launch.pool.run(self.nest.n_rows().div_ceil(ROWS), &|item, worker| {
            dispatch(self.isa, Item { rope: self, shared, item, worker });
        });
    }
}

struct Fill<'a> {
    table: &'a RowTable,
    shared: Shared<'a>,
    offset: usize,
    position: usize,
}

impl SimdJob for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the caller of `KernelDef::run` promises operands and scratch.
        unsafe {
            let to = self.shared.scratch().add(self.offset).cast();
            self.table.fill(s, self.shared, self.position, to);
        }
    }
}

struct Item<'a> {
    rope: &'a Rope,
    shared: Shared<'a>,
    item: usize,
    worker: usize,
}

impl SimdJob for Item<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Item { rope, shared, item, worker } = self;
        let first = item * ROWS;
        let last = rope.nest.n_rows().min(first + ROWS);
        let mut cursor = rope.nest.at(first);
        let dtype = rope.result.dtype;
        let n = rope.nest.row_len();
        // SAFETY: the caller of `KernelDef::run` promises operands, result and scratch.
        unsafe {
            let mut tables = [std::ptr::null(); MAX_TABLES];
            let mut offset = 0;
            for (entry, table) in tables.iter_mut().zip(&rope.tables) {
                *entry = shared.scratch().add(offset).cast::<f32>().cast_const();
                offset += aligned(4 * table.len());
            }
            let made = shared.scratch().add(rope.table_bytes() + worker * rope.row_bytes());
            let made = made.cast::<f32>();
            let row = made.add(padded(n));
            for _ in first..last {
                let at = (cursor.position(1), cursor.position(2));
                rope.rows.row(s, shared, at, &tables, made, store_to(s, row));
                let dst = shared.result().add(cursor.position(0) * dtype.size());
                store(s, dtype, row.cast_const(), n, dst);
                cursor.advance();
            }
        }
    }
}
