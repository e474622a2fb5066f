//! Rows of queries, keys and values on their way into attention, as the body says: read from an
//! operand, then normalized, weighted and rotated in one or more passes.

use ops::defs::binary::Binary;
use ops::{Graph, Op, ValueId};

use crate::Layout;
use crate::body::{Leaf, leaf, operand_view};

/// Tables of one kernel, at most: weight and angles of queries, keys and values.
pub(crate) const MAX_TABLES: usize = 6;

/// One pass over a row: any of these, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Pass {
    /// `rms_norm` of the row, with this epsilon.
    pub(crate) norm: Option<f64>,
    /// Product with a vector of head dims: table `weight` of the kernel.
    pub(crate) weight: Option<usize>,
    /// Rotation by angles that depend on the position: table `rope` of the kernel.
    pub(crate) rope: Option<usize>,
}

/// The rows `[batch.., S, H, D]` of one operand of `attention` or `rope`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeadRows {
    /// Which operand of the site.
    pub(crate) operand: usize,
    /// As the op sees it.
    pub(crate) layout: Layout,
    /// From stored row to used row.
    pub(crate) passes: Vec<Pass>,
}

/// What rows are multiplied with, as f32.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RowTable {
    /// Cosines and sines of an operand `[S, D / 2]` of angles.
    Rope(Leaf),
    /// Of a vector `[.., D]`, or of one element for all D.
    Weight { vector: Leaf, d: usize },
}

impl HeadRows {
    /// The rows behind `value`: an operand, then any of cast, `rms_norm`, a product with a vector of
    /// head dims, and `rope`. What they multiply with is appended to `tables`.
    pub(crate) fn of(
        body: &Graph,
        value: ValueId,
        operands: &[Layout],
        tables: &mut Vec<RowTable>,
    ) -> Option<HeadRows> {
        if let Some((operand, layout)) = operand_view(body, value, operands) {
            return Some(HeadRows { operand, layout, passes: vec![] });
        }
        let args = &body.node(value).args;
        let op = body.op(value)?;
        let mut index_of = |table: RowTable| {
            let known = tables.iter().position(|known| *known == table);
            known.unwrap_or_else(|| {
                tables.push(table);
                tables.len() - 1
            })
        };
        let mut pass = Pass::default();
        let source = if let Op::Cast(cast) = op {
            if !cast.dtype.is_float() {
                return None;
            }
            args[0]
        } else if let Op::RmsNorm(norm) = op {
            pass.norm = Some(norm.eps);
            args[0]
        } else if let Op::Binary(Binary::Mul) = op {
            let shape = body.ty(value).shape();
            let (source, weight) = if body.ty(args[0]).shape() == shape {
                (args[0], args[1])
            } else {
                (args[1], args[0])
            };
            let vector = weight_vector(body, weight, operands)?;
            pass.weight = Some(index_of(RowTable::Weight { vector, d: *shape.last()? }));
            source
        } else if let Op::Rope(_) = op {
            pass.rope = Some(index_of(RowTable::Rope(leaf(body, args[1], operands)?)));
            args[0]
        } else {
            return None;
        };
        if body.ty(source).shape() != body.ty(value).shape() || tables.len() > MAX_TABLES {
            return None;
        }
        let mut rows = HeadRows::of(body, source, operands, tables)?;
        rows.append(pass);
        Some(rows)
    }

    /// Adds what `pass` does, to the last pass if that does nothing that comes later in a pass.
    fn append(&mut self, pass: Pass) {
        if pass == Pass::default() {
            return;
        }
        if let Some(last) = self.passes.last_mut() {
            let is_free = last.rope.is_none() && pass.norm.is_none();
            if is_free && (last.weight.is_none() || pass.weight.is_none()) {
                last.weight = last.weight.or(pass.weight);
                last.rope = pass.rope;
                return;
            }
        }
        self.passes.push(pass);
    }

    /// Whether rows are used as they are stored.
    pub(crate) fn is_plain(&self) -> bool {
        self.passes.is_empty()
    }

    /// The step from one position of the sequence to the next.
    pub(crate) fn seq_stride(&self) -> usize {
        self.layout.strides[self.layout.rank() - 3]
    }
}

/// The vector of head dims behind `weight`.
fn weight_vector(body: &Graph, mut weight: ValueId, operands: &[Layout]) -> Option<Leaf> {
    while let Some(Op::Cast(_) | Op::Broadcast(_)) = body.op(weight) {
        weight = body.node(weight).args[0];
    }
    let leaf = leaf(body, weight, operands)?;
    let Layout { shape, strides, dtype, .. } = &leaf.layout;
    let mut outer = shape.iter().zip(strides).rev().skip(1);
    (outer.all(|(&dim, &stride)| dim == 1 || stride == 0) && dtype.is_float()).then_some(leaf)
}
