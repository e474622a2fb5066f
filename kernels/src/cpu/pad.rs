//! `pad`: the operand is copied to the middle of the result, and zeros are copied around it, from
//! one constant element repeated by stride 0. Each element is written once. Roofline: memory
//! bandwidth.

use ops::Op;

use crate::Layout;
use crate::kernel::{KernelDef, Launch, Site};

use super::copy::Copy;
use super::shared::Shared;
use crate::body::operand_view;

/// The largest element: all its bytes are zero.
static ZERO: [u64; 1] = [0];

/// Zeros around an operand.
#[derive(Clone, Debug)]
pub struct Pad {
    operand: usize,
    middle: Copy,
    /// Before and after the operand along each axis; they do not overlap.
    zeros: Vec<Copy>,
}

impl Pad {
    /// Takes a `pad` of an operand or a view of one.
    pub fn select(site: &Site<'_>) -> Option<Pad> {
        let &[root] = &site.body.outputs[..] else { return None };
        let Some(Op::Pad(pad)) = site.body.op(root) else { return None };
        let arg = site.body.node(root).args[0];
        let (operand, from) = operand_view(site.body, arg, site.operands)?;
        let rank = site.result.rank();
        let step = vec![1; rank];
        let middle = Copy::new(&site.result.sliced(&pad.low, &from.shape, &step), &from);
        let mut zeros = Vec::new();
        for axis in 0..rank {
            // Axes before this one keep to the middle, axes after it are whole.
            let mut start = [&pad.low[..axis], &vec![0; rank - axis]].concat();
            let mut shape = [&from.shape[..axis], &site.result.shape[axis..]].concat();
            for (first, count) in
                [(0, pad.low[axis]), (pad.low[axis] + from.shape[axis], pad.high[axis])]
            {
                if count > 0 {
                    (start[axis], shape[axis]) = (first, count);
                    let to = site.result.sliced(&start, &shape, &step);
                    let zero = Layout { strides: vec![0; rank], offset: 0, ..to.clone() };
                    zeros.push(Copy::new(&to, &zero));
                }
            }
        }
        Some(Pad { operand, middle, zeros })
    }
}

impl KernelDef for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        let parts = || std::iter::once(&self.middle).chain(&self.zeros);
        launch.pool.run(parts().map(Copy::n_items).sum(), &|item, _| {
            let mut item = item;
            for (index, copy) in parts().enumerate() {
                if item < copy.n_items() {
                    let from = if index == 0 {
                        shared.operand(self.operand)
                    } else {
                        ZERO.as_ptr().cast()
                    };
                    // SAFETY: the caller of `run` promises buffers that hold the layouts; of the
                    // zeros only one element is read.
                    unsafe { copy.run(item, shared.result(), from) };
                    return;
                }
                item -= copy.n_items();
            }
        });
    }
}
