//! `normal`: standard normal numbers by key, in f64 as the reference draws them, four at a time. Roofline: some
//! hundred instructions a number; drawn once a step, they are a small part of it.

use ops::Op;
use ops::philox::normal4;

use crate::Layout;
use crate::body::operand_view;
use crate::kernel::{KernelDef, Launch, Site};
use crate::nest::Nest;

use super::shared::Shared;

/// Numbers per item of the pool.
const ITEM: usize = 1024;

/// Numbers of rows, each with a key.
#[derive(Clone, Debug)]
pub struct Normal {
    key: usize,
    /// From one word of a key to the next.
    key_step: usize,
    /// Layout 0 is the first word of each row's key, 1 the first element of each row of the result.
    rows: Nest,
    /// A row of the result.
    row: Layout,
}

impl Normal {
    /// Takes a `normal` of an operand or a view of one.
    pub fn select(site: &Site<'_>) -> Option<Normal> {
        let &[root] = &site.body.outputs[..] else { return None };
        let Some(Op::Normal(_)) = site.body.op(root) else { return None };
        let (key, words) = operand_view(site.body, site.body.node(root).args[0], site.operands)?;
        let n_rows = words.rank() - 1;
        let part = |layout: &Layout, from: usize, to: usize, offset: usize| Layout {
            dtype: layout.dtype,
            shape: layout.shape[from..to].to_vec(),
            strides: layout.strides[from..to].to_vec(),
            offset,
        };
        let keys = part(&words, 0, n_rows, words.offset);
        let starts = part(site.result, 0, n_rows, site.result.offset);
        Some(Normal {
            key,
            key_step: words.strides[n_rows],
            rows: Nest::with_axes(&[&keys, &starts], &(0..n_rows).collect::<Vec<_>>()),
            row: part(site.result, n_rows, site.result.rank(), 0),
        })
    }

    /// Where element `index` of a row is, from the row's first one.
    fn position(&self, index: usize) -> usize {
        let (mut rest, mut at) = (index, 0);
        for (&dim, &stride) in self.row.shape.iter().zip(&self.row.strides).rev() {
            at += rest % dim * stride;
            rest /= dim;
        }
        at
    }
}

impl KernelDef for Normal {
    fn name(&self) -> &'static str {
        "normal"
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        let n = self.row.count();
        let n_items = n.div_ceil(ITEM);
        let (n_outer, n_inner) = (self.rows.n_rows(), self.rows.row_len());
        launch.pool.run(n_outer * n_inner * n_items, &|item, _| {
            let (row, from) = (item / n_items, item % n_items * ITEM);
            let (cursor, inner) = (self.rows.at(row / n_inner), row % n_inner);
            let place = |layout| cursor.position(layout) + inner * self.rows.row_stride(layout);
            let word = |number: usize| {
                let at = place(0) + number * self.key_step;
                // SAFETY: the caller of `run` promises a buffer that holds the keys.
                unsafe { shared.operand(self.key).cast::<u64>().add(at).read_unaligned() }
            };
            let (seed, draw, first) = (word(0), word(1), word(2));
            let mut four = [0f64; 4];
            for index in from..n.min(from + ITEM) {
                let element = first.wrapping_add(index as u64);
                if index == from || element.is_multiple_of(4) {
                    four = normal4(seed, draw, element / 4);
                }
                let x = four[(element % 4) as usize] as f32;
                let at = place(1) + self.position(index);
                // SAFETY: the caller of `run` promises a buffer that holds the result; items write different
                // elements of it.
                unsafe { shared.result().cast::<f32>().add(at).write_unaligned(x) };
            }
        });
    }
}
