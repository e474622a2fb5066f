//! `rope` by itself: rotates channel pairs of each row by the angles of its position. Not used where
//! attention follows, which prepares its rows by the same function.

use ops::Op;

use crate::head_rows::HeadRows;
use crate::kernel::Site;

use super::access::is_addressable;
use super::heads::Heads;
use super::{Base, CudaKernel, Function, Gpu, Launch};

/// Takes `rope` with what attention would take before it.
pub(super) fn select(site: &Site<'_>, _: Gpu) -> Option<CudaKernel> {
    let &[root] = &site.body.outputs[..] else { return None };
    site.body.values().find(|&value| matches!(site.body.op(value), Some(Op::Rope(_))))?;
    let mut tables = vec![];
    let rows = HeadRows::of(site.body, root, site.operands, &mut tables)?;
    if !is_addressable(site.result) || !is_addressable(&rows.layout) {
        return None;
    }
    let mut heads = Heads::default();
    let args = heads.add(&rows, site.result, Base::Result, &tables)?;
    let in_place = (0..site.operands.len())
        .map(|operand| operand == rows.operand && rows.layout == *site.result)
        .collect();
    Some(CudaKernel {
        name: "rope",
        tunables: vec![],
        launches: vec![Launch { grid: heads.grid(), function: Function::Heads(heads), args }],
        scratch_bytes: 0,
        packed: None,
        in_place,
    })
}
