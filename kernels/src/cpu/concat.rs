//! `concat`: each operand is copied to its part of the result. Roofline: memory bandwidth.

use ops::Op;

use crate::Layout;
use crate::kernel::{KernelDef, Launch, Site};

use super::copy::Copy;
use super::shared::Shared;
use crate::body::operand_view;

/// A join of operands along one axis.
#[derive(Clone, Debug)]
pub struct Concat {
    /// Which operand goes where.
    parts: Vec<(usize, Copy)>,
}

impl Concat {
    /// Takes a `concat` of operands or views of them.
    pub fn select(site: &Site<'_>) -> Option<Concat> {
        let &[root] = &site.body.outputs[..] else { return None };
        let Some(Op::Concat(concat)) = site.body.op(root) else { return None };
        let mut start = vec![0; site.result.rank()];
        let step = vec![1; site.result.rank()];
        let mut parts = Vec::new();
        for &arg in &site.body.node(root).args {
            let (operand, from) = operand_view(site.body, arg, site.operands)?;
            let to: Layout = site.result.sliced(&start, &from.shape, &step);
            start[concat.axis] += from.shape[concat.axis];
            parts.push((operand, Copy::new(&to, &from)));
        }
        Some(Concat { parts })
    }
}

impl KernelDef for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    unsafe fn run(&self, launch: &Launch<'_>) {
        let shared = Shared::new(launch);
        let n_items = self.parts.iter().map(|(_, copy)| copy.n_items()).sum();
        launch.pool.run(n_items, &|item, _| {
            let mut item = item;
            for (operand, copy) in &self.parts {
                if item < copy.n_items() {
                    // SAFETY: the caller of `run` promises buffers that hold the layouts.
                    unsafe { copy.run(item, shared.result(), shared.operand(*operand)) };
                    return;
                }
                item -= copy.n_items();
            }
        });
    }
}
