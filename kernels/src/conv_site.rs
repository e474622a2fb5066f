//! The one convolution of a body, as every device reads it: where the window stands, where the weight
//! lies, what becomes of the sums. What is done to the input before is left to the device, but for a
//! doubling of its height and width.

use ops::defs::conv::Window;
use ops::{DType, Graph, Op, ValueId};

use crate::Layout;
use crate::body::{Elementwise, compile_elementwise, operand_view};
use crate::kernel::Site;

/// Spatial axes; missing ones count as 1, in front.
pub(crate) const SPATIAL: usize = 3;

/// A body that is one convolution and elementwise code of its result.
#[derive(Debug)]
pub(crate) struct ConvSite {
    /// The node of the input, before it is doubled.
    pub(crate) input: ValueId,
    /// Whether each row and column of the input is repeated.
    pub(crate) is_doubled: bool,
    /// Spatial dims of the input as the window sees them.
    pub(crate) dims: [usize; SPATIAL],
    pub(crate) samples: usize,
    pub(crate) channels: usize,
    /// The operand that the weight is a view of.
    pub(crate) weight: usize,
    /// `[O, C, kernel..]`.
    pub(crate) weight_view: Layout,
    pub(crate) output: [usize; SPATIAL],
    pub(crate) kernel: [usize; SPATIAL],
    pub(crate) stride: [usize; SPATIAL],
    pub(crate) pad_low: [usize; SPATIAL],
    /// O.
    pub(crate) columns: usize,
    /// Element type of what is multiplied.
    pub(crate) product: DType,
    /// From the sums, frontier value 0, to the result.
    pub(crate) epilogue: Elementwise,
}

impl ConvSite {
    /// Reads a body with one `conv` whose weight is a view of an operand and whose result has the
    /// shape of the body's.
    pub(crate) fn of(site: &Site<'_>) -> Option<ConvSite> {
        let &[root] = &site.body.outputs[..] else { return None };
        let mut found = site.body.values().filter_map(|value| match site.body.op(value)? {
            Op::Conv(conv) => Some((value, &conv.window)),
            _ => None,
        });
        let (value, window) = found.next()?;
        let shape = site.body.ty(value).shape();
        if found.next().is_some() || shape != site.result.shape {
            return None;
        }
        let [input, weight] = site.body.node(value).args[..] else { return None };
        let (weight, weight_view) = operand_view(site.body, weight, site.operands)?;
        let input_ty = site.body.ty(input);
        let doubled = doubled_source(site.body, input);
        let spatial = shape.len() - 2;
        let Window { stride, pad_low, pad_high: _ } = window;
        Some(ConvSite {
            input: doubled.unwrap_or(input),
            is_doubled: doubled.is_some(),
            dims: per_axis(&input_ty.shape()[1..=spatial], 1),
            samples: shape[0],
            channels: input_ty.shape()[spatial + 1],
            output: per_axis(&shape[1..=spatial], 1),
            kernel: per_axis(&weight_view.shape[2..], 1),
            weight,
            weight_view,
            stride: per_axis(stride, 1),
            pad_low: per_axis(pad_low, 0),
            columns: shape[spatial + 1],
            product: input_ty.dtype(),
            epilogue: compile_elementwise(site.body, root, &[value], site.operands)?,
        })
    }

    /// Strides of a layout of the input, or of what is computed into it: samples, space, channels.
    pub(crate) fn input_strides(layout: &Layout) -> [usize; 2 + SPATIAL] {
        let mut all = [0; 2 + SPATIAL];
        all[0] = layout.strides[0];
        all[3 + SPATIAL - layout.rank()..].copy_from_slice(&layout.strides[1..]);
        all
    }
}

/// Numbers of spatial axes as of [`SPATIAL`] many: `fill` for those that are missing.
pub(crate) fn per_axis<T: Copy>(numbers: &[T], fill: T) -> [T; SPATIAL] {
    let mut all = [fill; SPATIAL];
    all[SPATIAL - numbers.len()..].copy_from_slice(numbers);
    all
}

/// What `value`, `[N, 2 H, 2 W, C]`, repeats twice along height and width: the operand of reshape,
/// broadcast and reshape.
fn doubled_source(body: &Graph, value: ValueId) -> Option<ValueId> {
    let arg = |value: ValueId| body.node(value).args[0];
    let Some(Op::Reshape(_)) = body.op(value) else { return None };
    let repeated = arg(value);
    let Some(Op::Broadcast(_)) = body.op(repeated) else { return None };
    let spread = arg(repeated);
    let Some(Op::Reshape(_)) = body.op(spread) else { return None };
    let source = arg(spread);
    let &[n, h, w, c] = body.ty(source).shape() else { return None };
    let is_doubled = body.ty(spread).shape() == [n, h, 1, w, 1, c]
        && body.ty(repeated).shape() == [n, h, 2, w, 2, c]
        && body.ty(value).shape() == [n, 2 * h, 2 * w, c];
    is_doubled.then_some(source)
}
