//! Functions of whole rows: `layer_norm`, `rms_norm`, `softmax`, sums and maxima, with elementwise
//! code before and after.
//!
//! A row is read once, into the registers of the threads that share it: a part of a warp, a warp,
//! or a block. Statistics are taken from registers in f32, the variance from the centered row and
//! corrected for the mean's rounding (Chan, Golub and `LeVeque`, Algorithms for computing the sample
//! variance, equation 1.7). Only a row that no block can hold is read again for each pass. Roofline:
//! memory bandwidth, each operand read once and the result written once.

use ops::{Attr, DType, Graph, Op, ValueId};

use crate::Layout;
use crate::body::{Elementwise, compile_elementwise};
use crate::kernel::Site;
use crate::nest::Nest;

use super::access::{Access, is_addressable, offset_bytes, widest_vector};
use super::code::{Code, leaf_args, leaf_layouts, may_alias};
use super::columns::Columns;
use super::map::{Map, leaf_slots};
use super::{Arg, Base, CudaKernel, Function, Gpu, Launch, WARP};

/// Threads of a block whose rows are a warp's or less.
const BLOCK: u32 = 128;
/// Most threads of a block.
const MAX_BLOCK: u32 = 1024;
/// Most elements of a thread: what leaves registers for the rest.
const MAX_HELD: u32 = 64;
/// As many as hide the latency of memory, where more threads can take a row.
const FEW_HELD: u32 = 32;

/// Elements of a thread in a row that is read in parts.
const STREAMED: u32 = 16;

/// What is done to a row.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum RowOp {
    /// `(x - mean) / sqrt(variance + eps)`.
    LayerNorm {
        /// Added to the variance.
        eps: f32,
    },
    /// `x / sqrt(mean square + eps)`.
    RmsNorm {
        /// Added to the mean square.
        eps: f32,
    },
    /// `exp(x - max) / sum`.
    Softmax,
    /// One sum for the row.
    Sum,
    /// One largest element for the row.
    Max,
}

impl RowOp {
    /// Whether a row gives one element.
    pub fn is_reduction(self) -> bool {
        match self {
            RowOp::Sum | RowOp::Max => true,
            RowOp::LayerNorm { .. } | RowOp::RmsNorm { .. } | RowOp::Softmax => false,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            RowOp::LayerNorm { .. } => "layer",
            RowOp::RmsNorm { .. } => "rms",
            RowOp::Softmax => "softmax",
            RowOp::Sum => "sum",
            RowOp::Max => "max",
        }
    }
}

/// `result[row] = epilogue(op(prologue(row)))`. Pointers: the result, those of the prologue's slots,
/// those of the epilogue's slots that are in memory.
#[derive(Clone, PartialEq, Debug)]
pub struct Rows {
    /// Dims that rows are numbered over, outermost first.
    pub outer: Vec<u32>,
    /// Elements of a row.
    pub len: u32,
    /// What is done to it.
    pub op: RowOp,
    /// What is written; strides of `outer`, then that along the row.
    pub result: Access,
    /// From operands to the row, in f32.
    pub prologue: Code,
    /// From the row, or from what it was reduced to, to the result.
    pub epilogue: Code,
    /// Consecutive elements that a thread takes at a time.
    pub vector: u32,
    /// Threads that share a row: a power of two.
    pub threads: u32,
    /// Runs of `vector` elements that a thread holds.
    pub runs: u32,
}

impl Rows {
    /// Threads of a block.
    pub fn block(&self) -> [u32; 3] {
        [self.threads * self.rows_per_block(), 1, 1]
    }

    /// Number of rows.
    pub fn count(&self) -> u32 {
        self.outer.iter().product()
    }

    /// Rows of a block.
    pub fn rows_per_block(&self) -> u32 {
        match self.threads {
            // Whole warps: shuffles take all lanes.
            threads if threads <= WARP => BLOCK / threads,
            _ => 1,
        }
    }

    /// Elements that the threads of a row hold at once.
    pub fn held(&self) -> u32 {
        self.threads * self.runs * self.vector
    }

    /// Parts that a row is read in; more than one is read again for each pass.
    pub fn chunks(&self) -> u32 {
        self.len.div_ceil(self.held())
    }

    /// Takes one norm or softmax with any elementwise code around it, or one reduction of floats.
    pub fn select(site: &Site<'_>, _: Gpu) -> Option<CudaKernel> {
        let &[root] = &site.body.outputs[..] else { return None };
        let (value, op, axes) = row_op(site.body)?;
        if site.body.ty(value).shape() != site.result.shape {
            return None;
        }
        let input = site.body.node(value).args[0];
        if !site.body.ty(input).dtype().is_float() {
            return None;
        }
        let prologue = compile_elementwise(site.body, input, &[], site.operands)?.widened();
        let epilogue = compile_elementwise(site.body, root, &[value], site.operands)?;
        let to = Arg { base: Base::Result, offset: offset_bytes(site.result) };
        let codes = [&prologue, &epilogue];
        if op.is_reduction() {
            let shape = site.body.ty(input).shape();
            let rows = Rows::reducing(op, &axes, shape, site.result, codes);
            let launch = match rows {
                Some(rows) => rows.launch(to, codes.map(|code| leaf_args(&code.leaves).collect())),
                None => Columns::launch(op, &axes, shape, site.result, codes, to),
            }?;
            return Some(kernel("reduce", vec![launch], vec![]));
        }
        let rows = Rows::along(op, axes[0], site.result, codes)?;
        let launch = rows.launch(to, codes.map(|code| leaf_args(&code.leaves).collect()))?;
        let in_place = (0..site.operands.len())
            .map(|operand| may_alias(&codes, operand, site.result))
            .collect();
        Some(kernel("norm", vec![launch], in_place))
    }

    /// The launch that writes `value` of the body, dense and in type `dtype`, where `to` says: for
    /// kernels that read it many times. Takes elementwise code of operands, before which there may
    /// be one norm of the last axis, as what goes into a product.
    pub fn materialize(site: &Site<'_>, value: ValueId, dtype: DType, to: Arg) -> Option<Launch> {
        let ty = site.body.ty(value).with_dtype(dtype);
        let dense = Layout::dense(&ty);
        if let Some(code) = compile_elementwise(site.body, value, &[], site.operands) {
            let code = code.stored_as(dtype);
            return Map::launch(&dense, code.program, &leaf_slots(&code.leaves), to);
        }
        let (norm, op, axes) = row_op_before(site.body, value)?;
        if op.is_reduction() || site.body.ty(norm).shape() != ty.shape() {
            return None;
        }
        let input = site.body.node(norm).args[0];
        let prologue = compile_elementwise(site.body, input, &[], site.operands)?.widened();
        let epilogue =
            compile_elementwise(site.body, value, &[norm], site.operands)?.stored_as(dtype);
        let codes = [&prologue, &epilogue];
        let rows = Rows::along(op, axes[0], &dense, codes)?;
        rows.launch(to, codes.map(|code| leaf_args(&code.leaves).collect()))
    }

    /// What is printed of the choice.
    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("op", Attr::Str(self.op.name().to_owned())),
            ("threads", Attr::Int(self.threads.into())),
            ("vector", Attr::Int(self.vector.into())),
        ]
    }

    /// The launch of rows that are not tiled yet, with the pointers of prologue and epilogue.
    fn launch(self, to: Arg, [prologue, epilogue]: [Vec<Arg>; 2]) -> Option<Launch> {
        let args: Vec<Arg> = std::iter::once(to).chain(prologue).chain(epilogue).collect();
        let rows = self.tiled(&args)?;
        Some(Launch {
            grid: [rows.count().div_ceil(rows.rows_per_block()), 1, 1],
            args,
            function: Function::Rows(rows),
        })
    }

    /// `op` of every row along `axis` of what has the result's shape.
    fn along(
        op: RowOp,
        axis: usize,
        result: &Layout,
        [prologue, epilogue]: [&Elementwise; 2],
    ) -> Option<Rows> {
        let mut layouts = vec![result];
        layouts.extend(leaf_layouts(&prologue.leaves, result));
        layouts.extend(leaf_layouts(&epilogue.leaves, result));
        if !is_addressable(result) {
            return None;
        }
        let nest = Nest::with_row(&layouts, axis)?;
        let strides = |layout: usize| -> Vec<u32> {
            (0..nest.rank()).map(|axis| step(&nest, axis, layout)).collect()
        };
        let base = 1 + prologue.leaves.len();
        let outer = (0..nest.rank() - 1).map(|axis| nest.dim(axis) as u32).collect();
        Some(Rows {
            outer,
            len: u32::try_from(nest.row_len()).ok()?,
            op,
            result: Access { dtype: result.dtype, strides: strides(0) },
            prologue: Code::of(prologue, |leaf| strides(1 + leaf))?,
            epilogue: Code::of(epilogue, |leaf| strides(base + leaf))?,
            vector: 1,
            threads: 1,
            runs: 1,
        })
    }

    /// `op` over `axes` of what has shape `shape`, where they can be one row.
    fn reducing(
        op: RowOp,
        axes: &[usize],
        shape: &[usize],
        result: &Layout,
        [prologue, epilogue]: [&Elementwise; 2],
    ) -> Option<Rows> {
        let is_reduced = |axis: &usize| axes.contains(axis);
        let (reduced, kept): (Vec<usize>, Vec<usize>) = (0..shape.len()).partition(is_reduced);
        let inputs: Vec<&Layout> = prologue.leaves.iter().map(|leaf| &leaf.layout).collect();
        if inputs.is_empty() || !is_addressable(result) {
            return None;
        }
        let row = Nest::with_axes(&inputs, &reduced);
        // Threads beside each other read terms beside each other, here or in `Columns`.
        if row.rank() != 1 || (row.row_len() > 1 && row.row_stride(0) > 1) {
            return None;
        }
        let mut layouts = vec![result];
        layouts.extend(inputs);
        layouts.extend(leaf_layouts(&epilogue.leaves, result));
        let nest = Nest::with_axes(&layouts, &kept);
        let strides = |layout: usize, along: usize| -> Vec<u32> {
            let outer = (0..nest.rank()).map(|axis| step(&nest, axis, layout));
            outer.chain([along as u32]).collect()
        };
        let base = 1 + prologue.leaves.len();
        Some(Rows {
            outer: (0..nest.rank()).map(|axis| nest.dim(axis) as u32).collect(),
            len: u32::try_from(row.row_len()).ok()?,
            op,
            result: Access { dtype: result.dtype, strides: strides(0, 0) },
            prologue: Code::of(prologue, |leaf| strides(1 + leaf, row.row_stride(leaf)))?,
            epilogue: Code::of(epilogue, |leaf| strides(base + leaf, 0))?,
            vector: 1,
            threads: 1,
            runs: 1,
        })
    }

    /// With vectors as wide as all operands allow, and threads so that a row fits registers.
    fn tiled(mut self, args: &[Arg]) -> Option<Rows> {
        let count = self.outer.iter().try_fold(1u32, |count, &dim| count.checked_mul(dim));
        count?;
        let accesses = std::iter::once(&self.result)
            .chain(self.prologue.memory())
            .chain(self.epilogue.memory());
        let offsets = args.iter().map(|arg| arg.offset);
        self.vector = widest_vector(accesses.zip(offsets), self.len);
        let n_runs = self.len / self.vector;
        let runs_within = |elements: u32| (elements / self.vector).max(1);
        // The smallest share of a warp that leaves few lanes idle, else a warp, else a block.
        let within_warp = (0..=WARP.ilog2())
            .map(|log| (1 << log, n_runs.div_ceil(1 << log)))
            .filter(|&(threads, runs)| {
                runs <= runs_within(if threads == WARP { MAX_HELD } else { FEW_HELD / 2 })
            })
            .min_by_key(|&(threads, runs): &(u32, u32)| {
                (threads * runs, std::cmp::Reverse(threads))
            });
        let beyond = || {
            let threads = n_runs.div_ceil(runs_within(FEW_HELD)).next_power_of_two();
            let threads = threads.clamp(2 * WARP, MAX_BLOCK);
            let runs = n_runs.div_ceil(threads);
            (threads, if runs <= runs_within(FEW_HELD) { runs } else { runs_within(STREAMED) })
        };
        (self.threads, self.runs) = within_warp.unwrap_or_else(beyond);
        Some(self)
    }
}

/// Step of `layout` along `axis`; 0 where there is only one element, which any vector fits.
pub(super) fn step(nest: &Nest, axis: usize, layout: usize) -> u32 {
    if nest.dim(axis) == 1 { 0 } else { nest.stride(axis, layout) as u32 }
}

fn kernel(name: &'static str, launches: Vec<Launch>, in_place: Vec<bool>) -> CudaKernel {
    let tunables = match launches.first().map(|launch| &launch.function) {
        Some(Function::Rows(rows)) => rows.tunables(),
        Some(Function::Columns(columns)) => columns.tunables(),
        _ => vec![],
    };
    CudaKernel { name, tunables, launches, scratch_bytes: 0, packed: None, in_place }
}

/// The one function of rows in a body, and its axes.
fn row_op(body: &Graph) -> Option<(ValueId, RowOp, Vec<usize>)> {
    let mut found = body.values().filter_map(|value| row_op_at(body, value));
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

/// The nearest function of rows that `value` is computed from.
fn row_op_before(body: &Graph, value: ValueId) -> Option<(ValueId, RowOp, Vec<usize>)> {
    row_op_at(body, value)
        .or_else(|| body.node(value).args.iter().find_map(|&arg| row_op_before(body, arg)))
}

fn row_op_at(body: &Graph, value: ValueId) -> Option<(ValueId, RowOp, Vec<usize>)> {
    let op = body.op(value)?;
    let last = || vec![body.ty(value).rank() - 1];
    let (op, axes) = if let Op::LayerNorm(norm) = op {
        (RowOp::LayerNorm { eps: norm.eps as f32 }, last())
    } else if let Op::RmsNorm(norm) = op {
        (RowOp::RmsNorm { eps: norm.eps as f32 }, last())
    } else if let Op::Softmax(softmax) = op {
        (RowOp::Softmax, vec![softmax.axis])
    } else if let Op::ReduceSum(sum) = op {
        (RowOp::Sum, sum.axes.clone())
    } else if let Op::ReduceMax(max) = op {
        (RowOp::Max, max.axes.clone())
    } else {
        return None;
    };
    Some((value, op, axes))
}
