//! What a site of attention asks for, for kernels of every target: one `attention`, with everything
//! that is done to queries and keys before, and a cast of its result.

use ops::{DType, Op};

use crate::Layout;
use crate::body::operand_view;
use crate::head_rows::{HeadRows, RowTable};
use crate::kernel::Site;
use crate::nest::Nest;

// Layouts of the nest of (batch, head) pairs, in order.
pub(crate) const OUT: usize = 0;
pub(crate) const Q: usize = 1;
pub(crate) const K: usize = 2;
pub(crate) const V: usize = 3;
pub(crate) const MASK: usize = 4;
pub(crate) const BIAS: usize = 5;

/// `softmax(scale q . k + bias) v` over the keys that `mask` keeps.
#[derive(Clone, Debug)]
pub(crate) struct AttentionSite {
    /// Type of queries, keys and values as the op sees them.
    pub(crate) dtype: DType,
    pub(crate) scale: f64,
    pub(crate) q: HeadRows,
    pub(crate) k: HeadRows,
    pub(crate) v: HeadRows,
    /// What rows are multiplied with.
    pub(crate) tables: Vec<RowTable>,
    /// `[batch.., Sk]`.
    pub(crate) mask: Option<Side>,
    /// `[batch.., H, Sq, Sk]`.
    pub(crate) bias: Option<Side>,
    /// `[batch.., Sq, H, D]`, D contiguous.
    pub(crate) result: Layout,
    /// One row of length 1 per (batch, head) pair.
    pub(crate) pairs: Nest,
    pub(crate) sq: usize,
    pub(crate) sk: usize,
    pub(crate) d: usize,
}

/// An optional operand.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    pub(crate) operand: usize,
    pub(crate) layout: Layout,
}

impl AttentionSite {
    /// Reads a site; `None` if it is no attention, or not all of it can be read by strides.
    pub(crate) fn of(site: &Site<'_>) -> Option<AttentionSite> {
        let &[root] = &site.body.outputs[..] else { return None };
        let mut value = root;
        while let Some(Op::Cast(_)) = site.body.op(value) {
            value = site.body.node(value).args[0];
        }
        let Some(Op::Attention(op)) = site.body.op(value) else { return None };
        let types = site.body.arg_types(value);
        let args = &site.body.node(value).args;
        let mut tables = vec![];
        let mut rows = |arg: usize| HeadRows::of(site.body, args[arg], site.operands, &mut tables);
        let (q, k, v) = (rows(0)?, rows(1)?, rows(2)?);
        let side = |arg: usize| {
            let (operand, layout) = operand_view(site.body, args[arg], site.operands)?;
            Some(Side { operand, layout })
        };
        let is_mask = |arg: usize| types[arg].dtype() == DType::Bool;
        let (bias, mask) = match args.len() {
            3 => (None, None),
            4 if is_mask(3) => (None, Some(side(3)?)),
            4 => (Some(side(3)?), None),
            _ => (Some(side(3)?), Some(side(4)?)),
        };
        let rank = types[0].rank();
        let result = site.result.clone();
        if !result.dtype.is_float() || result.strides[rank - 1] != 1 && result.shape[rank - 1] > 1 {
            return None;
        }
        let pairs = pairs(&result, [&q.layout, &k.layout, &v.layout], &mask, &bias)?;
        Some(AttentionSite {
            dtype: types[0].dtype(),
            scale: op.scale,
            sq: types[0].shape()[rank - 3],
            sk: types[1].shape()[rank - 3],
            d: types[0].shape()[rank - 1],
            q,
            k,
            v,
            tables,
            mask,
            bias,
            result,
            pairs,
        })
    }
}

/// Loops over (batch, head) pairs, one row of length 1 each, of layouts `[batch.., S, H, D]` and of
/// those of the mask and the bias; where one of these is missing, its place counts nothing.
pub(crate) fn pairs(
    result: &Layout,
    rows: [&Layout; 3],
    mask: &Option<Side>,
    bias: &Option<Side>,
) -> Option<Nest> {
    let batch = result.rank() - 3;
    // [batch.., H, 1]
    let mut shape = result.shape[..batch].to_vec();
    shape.extend([result.shape[batch + 1], 1]);
    let pair = |layout: &Layout, head: Option<usize>| {
        let mut strides: Vec<usize> = (0..batch)
            .map(|axis| if layout.shape[axis] == 1 { 0 } else { layout.strides[axis] })
            .collect();
        strides.extend([head.map_or(0, |axis| layout.strides[axis]), 0]);
        Layout { dtype: layout.dtype, shape: shape.clone(), strides, offset: layout.offset }
    };
    let [q, k, v] = rows;
    let mut layouts: Vec<Layout> =
        [result, q, k, v].into_iter().map(|layout| pair(layout, Some(batch + 1))).collect();
    let unused = layouts[OUT].clone();
    layouts.push(mask.as_ref().map_or(unused.clone(), |mask| pair(&mask.layout, None)));
    layouts.push(bias.as_ref().map_or(unused, |bias| pair(&bias.layout, Some(batch))));
    Nest::with_row(&layouts.iter().collect::<Vec<_>>(), batch + 1)
}
