//! The left factor of a product or a convolution: read where it lies, or made in scratch before.

use ops::{DType, ValueId};

use crate::Layout;
use crate::body::operand_view;
use crate::kernel::Site;

use super::access::offset_bytes;
use super::rows::Rows;
use super::{Arg, Base, Launch, group_norm};

/// Bytes that parts of the scratch start at a multiple of.
const ALIGNMENT: usize = 256;

/// Where the factor is when it is multiplied.
pub(super) struct Factor {
    /// Its first element.
    pub(super) arg: Arg,
    /// Its shape and strides; the offset is in `arg`.
    pub(super) view: Layout,
    /// What makes it.
    pub(super) launches: Vec<Launch>,
    /// What that needs.
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
        let to = Arg { base: Base::Scratch, offset: 0 };
        let ty = site.body.ty(value).with_dtype(dtype);
        let made = |launches: Vec<Launch>, scratch_bytes: usize| Factor {
            arg: to.clone(),
            view: Layout::dense(&ty),
            launches,
            scratch_bytes,
        };
        if let Some(launch) = Rows::materialize(site, value, dtype, to.clone()) {
            return Some(made(vec![launch], ty.bytes()));
        }
        let statistics = ty.bytes().next_multiple_of(ALIGNMENT);
        let group_norm = group_norm::materialize(site, value, dtype, to.clone(), statistics);
        if let Some((launches, bytes)) = group_norm {
            return Some(made(launches, statistics + bytes));
        }
        view.map(|(operand, view)| Factor::at(operand, &view))
    }

    fn at(operand: usize, view: &Layout) -> Factor {
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
