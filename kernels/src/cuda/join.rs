//! `concat` and `pad`: copies into parts of the result. Roofline: memory bandwidth.

use ops::Op;

use crate::body::operand_view;
use crate::kernel::Site;

use super::map::Map;
use super::{Base, CudaKernel, Gpu, Launch};

/// Takes a `concat` of operands or views of them: one copy each.
pub(super) fn concat(site: &Site<'_>, _: Gpu) -> Option<CudaKernel> {
    let &[root] = &site.body.outputs[..] else { return None };
    let Some(Op::Concat(concat)) = site.body.op(root) else { return None };
    let mut start = vec![0; site.result.rank()];
    let step = vec![1; site.result.rank()];
    let mut launches = Vec::new();
    for &arg in &site.body.node(root).args {
        let (operand, from) = operand_view(site.body, arg, site.operands)?;
        let to = site.result.sliced(&start, &from.shape, &step);
        start[concat.axis] += from.shape[concat.axis];
        launches.push(Map::copy(&to, Base::Result, operand, &from)?);
    }
    Some(kernel("concat", launches))
}

/// Takes a `pad` of an operand or a view of one: zeros everywhere, then the operand over them.
pub(super) fn pad(site: &Site<'_>, _: Gpu) -> Option<CudaKernel> {
    let &[root] = &site.body.outputs[..] else { return None };
    let Some(Op::Pad(pad)) = site.body.op(root) else { return None };
    let arg = site.body.node(root).args[0];
    let (operand, from) = operand_view(site.body, arg, site.operands)?;
    let middle = site.result.sliced(&pad.low, &from.shape, &vec![1; site.result.rank()]);
    let launches = vec![
        Map::zeros(site.result, Base::Result)?,
        Map::copy(&middle, Base::Result, operand, &from)?,
    ];
    Some(kernel("pad", launches))
}

fn kernel(name: &'static str, launches: Vec<Launch>) -> CudaKernel {
    CudaKernel {
        name,
        tunables: vec![],
        launches,
        scratch_bytes: 0,
        packed: None,
        in_place: vec![],
    }
}
