//! A factor of a product or a convolution: read where it lies, or made in scratch before.

use ops::{DType, TensorType, ValueId};

use crate::Layout;
use crate::body::operand_view;
use crate::kernel::Site;
use crate::program::Program;

use super::access::offset_bytes;
use super::map::Map;
use super::rows::Rows;
use super::{Arg, Base, Launch, group_norm};

/// Parts of the scratch start at multiples of as many bytes.
const SCRATCH_ALIGNMENT: usize = 256;

/// Where the factor is when it is multiplied.
pub(super) struct Factor {
    /// Its first element.
    pub(super) arg: Arg,
    /// Its shape and strides; the offset is in `arg`.
    pub(super) view: Layout,
    /// What makes it.
    pub(super) launches: Vec<Launch>,
    /// Where what it needs of the scratch ends.
    pub(super) scratch_bytes: usize,
}

impl Factor {
    /// `value` of the body in type `dtype`: as it lies if it is a view of an operand that `suits`, else
    /// made dense.
    pub(super) fn of(
        site: &Site<'_>,
        value: ValueId,
        dtype: DType,
        suits: impl Fn(&Layout) -> bool,
    ) -> Option<Factor> {
        let view = operand_view(site.body, value, site.operands);
        let is_ready = |view: &Layout| view.dtype == dtype && suits(view);
        if let Some((operand, view)) = &view
            && is_ready(view)
        {
            return Some(Factor::at(*operand, view));
        }
        let made = Factor::made(site, value, dtype);
        made.or_else(|| view.map(|(operand, view)| Factor::at(operand, &view)))
    }

    /// `value`, dense in type `dtype` from the start of the scratch on.
    fn made(site: &Site<'_>, value: ValueId, dtype: DType) -> Option<Factor> {
        let arg = Arg { base: Base::Scratch, offset: 0 };
        let ty = site.body.ty(value).with_dtype(dtype);
        let view = Layout::dense(&ty);
        if let Some(launch) = Rows::materialize(site, value, dtype, arg.clone()) {
            let scratch_bytes = ty.bytes();
            return Some(Factor { arg, view, launches: vec![launch], scratch_bytes });
        }
        // What the norm measures lies behind what it makes.
        let behind = ty.bytes().next_multiple_of(SCRATCH_ALIGNMENT);
        let (launches, bytes) = group_norm::materialize(site, value, dtype, arg.clone(), behind)?;
        Some(Factor { arg, view, launches, scratch_bytes: behind + bytes })
    }

    /// The elements of a view of operand `operand` in row-major order, in scratch from byte `scratch` on.
    pub(super) fn copied(operand: usize, view: &Layout, scratch: usize) -> Option<Factor> {
        let scratch = scratch.next_multiple_of(SCRATCH_ALIGNMENT);
        let ty = TensorType::new(view.dtype, &view.shape[..]).ok()?;
        let arg = Arg { base: Base::Scratch, offset: scratch };
        let from = Arg { base: Base::Operand(operand), offset: offset_bytes(view) };
        let program = Program::copy(view.dtype, view.dtype);
        let dense = Layout::dense(&ty);
        let launch = Map::launch(&dense, program, &[(view, from)], arg.clone())?;
        let scratch_bytes = scratch + ty.bytes();
        Some(Factor { arg, view: dense, launches: vec![launch], scratch_bytes })
    }

    /// A view of operand `operand`, where it lies.
    pub(super) fn at(operand: usize, view: &Layout) -> Factor {
        Factor {
            arg: Arg { base: Base::Operand(operand), offset: offset_bytes(view) },
            view: view.clone(),
            launches: vec![],
            scratch_bytes: 0,
        }
    }

    /// Whether operand `operand` is read while the result is written.
    pub(super) fn reads(&self, operand: usize) -> bool {
        self.arg.base == Base::Operand(operand)
    }
}
