//! Reductions whose terms do not lie in a row: a thread folds each result, or as many neighbors as
//! it reads at once. Sums are compensated (Kahan), in a fixed order. Roofline: memory bandwidth
//! where results are many; a reduction to few results keeps few threads busy, which no model does.

use ops::Attr;

use crate::Layout;
use crate::body::Elementwise;
use crate::nest::Nest;

use super::access::{Access, is_addressable, widest_vector};
use super::code::{Code, leaf_args, leaf_layouts};
use super::rows::{RowOp, step};
use super::{Arg, Function, Launch};

/// Threads of a block.
const BLOCK: u32 = 128;

/// `result[kept] = epilogue(op over reduced of prologue)`. Pointers as those of
/// [`Rows`](super::rows::Rows).
#[derive(Clone, PartialEq, Debug)]
pub struct Columns {
    /// Dims of the result, outermost first.
    pub kept: Vec<u32>,
    /// Dims that are folded, outermost first.
    pub reduced: Vec<u32>,
    /// A sum or a maximum.
    pub op: RowOp,
    /// What is written, by `kept`.
    pub result: Access,
    /// From operands to terms; strides of `kept`.
    pub prologue: Code,
    /// For each of its slots: strides of `reduced`.
    pub steps: Vec<Vec<u32>>,
    /// From what was folded to the result; strides of `kept`.
    pub epilogue: Code,
    /// Consecutive results of a thread.
    pub vector: u32,
}

impl Columns {
    /// Threads of a block.
    pub fn block(&self) -> [u32; 3] {
        [BLOCK, 1, 1]
    }

    /// Runs of results, each a thread's.
    pub fn threads(&self) -> u32 {
        self.kept.iter().product::<u32>() / self.vector
    }

    /// Terms of a result.
    pub fn terms(&self) -> u32 {
        self.reduced.iter().product()
    }

    /// What is printed of the choice.
    pub(crate) fn tunables(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("op", Attr::Str(format!("{} of columns", self.op.name()))),
            ("vector", Attr::Int(self.vector.into())),
        ]
    }

    /// The launch of `op` over `axes` of what has shape `shape`.
    pub(crate) fn launch(
        op: RowOp,
        axes: &[usize],
        shape: &[usize],
        result: &Layout,
        [prologue, epilogue]: [&Elementwise; 2],
        to: Arg,
    ) -> Option<Launch> {
        let is_reduced = |axis: &usize| axes.contains(axis);
        let (reduced, kept): (Vec<usize>, Vec<usize>) = (0..shape.len()).partition(is_reduced);
        let inputs: Vec<&Layout> = prologue.leaves.iter().map(|leaf| &leaf.layout).collect();
        if inputs.is_empty() || !is_addressable(result) {
            return None;
        }
        let terms = Nest::with_axes(&inputs, &reduced);
        let mut layouts = vec![result];
        layouts.extend(&inputs);
        layouts.extend(leaf_layouts(&epilogue.leaves, result));
        let nest = Nest::with_axes(&layouts, &kept);
        let strides = |layout: usize| -> Vec<u32> {
            (0..nest.rank()).map(|axis| step(&nest, axis, layout)).collect()
        };
        let base = 1 + inputs.len();
        let steps: Vec<Vec<u32>> = (0..inputs.len())
            .map(|leaf| (0..terms.rank()).map(|axis| step(&terms, axis, leaf)).collect())
            .collect();
        let mut columns = Columns {
            kept: (0..nest.rank()).map(|axis| nest.dim(axis) as u32).collect(),
            reduced: (0..terms.rank()).map(|axis| terms.dim(axis) as u32).collect(),
            op,
            result: Access { dtype: result.dtype, strides: strides(0) },
            prologue: Code::of(prologue, |leaf| strides(1 + leaf))?,
            steps,
            epilogue: Code::of(epilogue, |leaf| strides(base + leaf))?,
            vector: 1,
        };
        let leaves = leaf_args(&prologue.leaves).chain(leaf_args(&epilogue.leaves));
        let args: Vec<Arg> = std::iter::once(to).chain(leaves).collect();
        columns.vector = columns.widest(&args);
        Some(Launch {
            grid: [columns.threads().div_ceil(BLOCK), 1, 1],
            args,
            function: Function::Columns(columns),
        })
    }

    /// The widest vector that every operand takes at every term.
    fn widest(&self, args: &[Arg]) -> u32 {
        let Some(&len) = self.kept.last() else { return 1 };
        if len > 1 && self.result.inner_stride() != 1 {
            return 1;
        }
        let with_steps = |(access, steps): (&Access, &Vec<u32>)| Access {
            dtype: access.dtype,
            strides: [steps, &access.strides[..]].concat(),
        };
        let inputs: Vec<Access> = self.prologue.memory().zip(&self.steps).map(with_steps).collect();
        let accesses = std::iter::once(&self.result).chain(&inputs).chain(self.epilogue.memory());
        widest_vector(accesses.zip(args.iter().map(|arg| arg.offset)), len)
    }
}
