//! The one product of a body, as every device reads it: its dims, where B lies, what becomes of the
//! sums. How operand A is made is left to the device.

use ops::defs::matmul::Matmul;
use ops::{DType, Op, ValueId};

use crate::Layout;
use crate::body::{Elementwise, compile_elementwise, operand_view};
use crate::kernel::Site;

/// A body that is one product and elementwise code of its result. Leading dims of the result that B
/// has, too, are a batch; all others number rows.
#[derive(Debug)]
pub(crate) struct MatmulSite<'a> {
    op: &'a Matmul,
    /// The node of operand A.
    pub(crate) a: ValueId,
    /// The operand that B is a view of.
    pub(crate) b: usize,
    /// B as the view that it is.
    pub(crate) b_view: Layout,
    /// Whether B is a dense weight that all rows share.
    pub(crate) is_weight: bool,
    /// Dims of the batch.
    pub(crate) batch: Vec<usize>,
    /// Dims that rows are numbered over.
    pub(crate) rows: Vec<usize>,
    /// N.
    pub(crate) columns: usize,
    /// K.
    pub(crate) depth: usize,
    /// Element type of what is multiplied.
    pub(crate) product: DType,
    /// From the sums, frontier value 0, to the result.
    pub(crate) epilogue: Elementwise,
}

impl<'a> MatmulSite<'a> {
    /// Reads a body with one `matmul` whose B is a view of an operand and whose result has the shape
    /// of the body's.
    pub(crate) fn of(site: &Site<'a>) -> Option<MatmulSite<'a>> {
        let Site { body, operands, .. } = *site;
        let &[root] = &body.outputs[..] else { return None };
        let mut found = body.values().filter_map(|value| match body.op(value)? {
            Op::Matmul(op) => Some((value, op)),
            _ => None,
        });
        let (product, op) = found.next()?;
        if found.next().is_some() || body.ty(root).shape() != body.ty(product).shape() {
            return None;
        }
        let [a, b] = body.node(product).args[..] else { return None };
        let shape = body.ty(product).shape();
        let ([_, columns, depth], _) = op.dims(body.ty(a).shape(), body.ty(b).shape())?;
        let (b, b_view) = operand_view(body, b, operands)?;
        let is_shared = b_view.shape[..b_view.rank() - 2].iter().all(|&dim| dim == 1);
        let n_leading = shape.len() - 1;
        let n_batch = if is_shared { 0 } else { n_leading - 1 };
        let (batch, rows) = shape[..n_leading].split_at(n_batch);
        Some(MatmulSite {
            op,
            a,
            b,
            is_weight: is_shared && site.is_param[b] && b_view.is_dense(),
            b_view,
            batch: batch.to_vec(),
            rows: rows.to_vec(),
            columns,
            depth,
            product: body.ty(a).dtype(),
            epilogue: compile_elementwise(body, root, &[product], operands)?,
        })
    }

    /// Whether A is stored with its rows along the depth.
    pub(crate) fn transposes_a(&self) -> bool {
        self.op.transpose_a
    }

    /// Strides of B along the depth and from column to column.
    pub(crate) fn b_strides(&self) -> (usize, usize) {
        let [outer, inner] = self.b_view.strides[self.b_view.rank() - 2..] else {
            unreachable!("operands of a product have two axes or more")
        };
        if self.op.transpose_b { (inner, outer) } else { (outer, inner) }
    }

    /// Strides of B along the batch.
    pub(crate) fn b_batch_strides(&self) -> Vec<usize> {
        let n_batch = self.batch.len();
        if n_batch == 0 {
            return vec![];
        }
        let shape = [&self.batch[..], &self.b_view.shape[n_batch..]].concat();
        self.b_view.broadcast(&shape).strides[..n_batch].to_vec()
    }

    /// A layout of operand A, or of what is computed into it, over batch, rows and depth.
    pub(crate) fn a_rows(&self, layout: &Layout) -> Layout {
        let mut shape = [&self.batch[..], &self.rows, &[self.depth]].concat();
        let rank = shape.len();
        if self.op.transpose_a {
            shape.swap(rank - 2, rank - 1);
        }
        let mut layout = layout.broadcast(&shape);
        if self.op.transpose_a {
            layout.shape.swap(rank - 2, rank - 1);
            layout.strides.swap(rank - 2, rank - 1);
        }
        layout
    }
}
