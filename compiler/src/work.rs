//! What a step has to do, in numbers: FLOPs, bytes, and the shape that its speed depends on.
//!
//! Derived from the plan alone. [`crate::cost`] turns it into seconds; tools set it beside what was
//! measured.

use kernels::Layout;
use ops::{DType, Graph, Op, TensorType, ValueId};

use crate::touches::touches;
use crate::{Operand, Place, Plan, Step};

/// The dims that a kernel's speed depends on.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Shape {
    /// A matrix product, of all rows that share operand B.
    Product {
        /// Rows of the result.
        rows: usize,
        /// Columns of the result.
        columns: usize,
        /// Terms of each sum.
        depth: usize,
    },
    /// Attention, of one sequence.
    Attention {
        /// Tokens that ask.
        queries: usize,
        /// Tokens that are asked.
        keys: usize,
        /// Channels of a head.
        width: usize,
        /// Whether numbers are added to the scores.
        is_biased: bool,
    },
    /// A convolution or a gradient of one, of one image.
    Conv {
        /// Positions of the result.
        positions: usize,
        /// Channels of a position of the operand.
        inputs: usize,
        /// Channels of a position of the result.
        outputs: usize,
        /// Elements of the window.
        taps: usize,
    },
    /// A sum or a maximum down columns: over axes beside which others lie, as gradients of norms and biases have.
    Columns(u64),
    /// Norms and their gradients, of rows or of groups of channels: a row costs more than its bytes.
    Rows {
        /// Bytes that are moved.
        bytes: u64,
        /// Elements of a row, or channels.
        width: usize,
    },
    /// Anything else, whose time is that of moving its bytes.
    Bytes(u64),
}

impl Shape {
    /// The dims as coordinates; shapes of one variant have equally many.
    pub fn coordinates(&self) -> Vec<f64> {
        let dims = match *self {
            Shape::Product { rows, columns, depth } => vec![rows, columns, depth],
            Shape::Attention { queries, keys, width, .. } => vec![queries, keys, width],
            Shape::Conv { positions, inputs, outputs, taps } => {
                vec![positions, inputs, outputs, taps]
            }
            Shape::Rows { bytes, width } => return vec![bytes as f64, width as f64],
            Shape::Columns(bytes) | Shape::Bytes(bytes) => return vec![bytes as f64],
        };
        dims.into_iter().map(|dim| dim as f64).collect()
    }

    /// What samples of this shape are called, where `kernel` makes it.
    pub fn sample_name(&self, kernel: &'static str) -> &'static str {
        match (self, kernel) {
            (Shape::Product { .. }, _) => "matmul",
            (Shape::Attention { .. }, "attention_grad") => kernel,
            (Shape::Attention { is_biased: true, .. }, _) => "biased_attention",
            (Shape::Attention { is_biased: false, .. }, _) => "attention",
            (Shape::Conv { .. }, "conv_input_grad" | "conv_weight_grad") => kernel,
            (Shape::Conv { .. }, _) => "conv",
            (Shape::Columns(_), "reduce") => "reduce_columns",
            (Shape::Columns(_) | Shape::Rows { .. } | Shape::Bytes(_), _) => kernel,
        }
    }
}

/// What a step reads that another left, or read, before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Touch {
    /// Bytes that are read.
    pub bytes: u64,
    /// Bytes that the plan moves between the last touch and this: where caches have place for no more, they are gone.
    pub since: u64,
}

/// The work of one step.
#[derive(Clone, PartialEq, Debug)]
pub struct Work {
    /// The kernel's printed name.
    pub kernel: &'static str,
    /// Element type of the largest operand, in which most bytes are.
    pub dtype: DType,
    /// FLOPs of the product, attention or convolution; 0 for other kernels.
    pub core_flops: u64,
    /// All other FLOPs: what is fused into the kernel.
    pub side_flops: u64,
    /// Bytes of operands, each element counted once.
    pub bytes_read: u64,
    /// Those of them that are weights.
    pub weight_bytes: u64,
    /// Bytes of all weights of the plan: so many are read before the same weight is read again.
    pub plan_weight_bytes: u64,
    /// The other operands.
    pub activations: Vec<Touch>,
    /// Bytes of the result.
    pub bytes_written: u64,
    /// What the plan moves between the last touch of the memory that the result goes to and the step.
    pub written_since: u64,
    /// What the speed depends on.
    pub shape: Shape,
}

impl Work {
    /// All FLOPs.
    pub fn flops(&self) -> u64 {
        self.core_flops.saturating_add(self.side_flops)
    }

    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes_read.saturating_add(self.bytes_written)
    }
}

impl Plan {
    /// The work of each step, when the plan is run again and again.
    pub fn works(&self) -> Vec<Work> {
        let plan_weight_bytes = self.weight_bytes() as u64;
        let mut works: Vec<Work> =
            self.steps.iter().map(|step| self.work(step, plan_weight_bytes)).collect();
        for step in 1..works.len() {
            if self.is_summed_before(step) {
                self.move_sums(&mut works, step);
            }
        }
        let bytes: Vec<u64> = works.iter().map(Work::bytes).collect();
        for (work, since) in works.iter_mut().zip(touches(self, &bytes)) {
            for (touch, since) in work.activations.iter_mut().zip(since.operands) {
                touch.since = since;
            }
            work.written_since = since.result;
        }
        works
    }

    /// Counts what `step` adds up as work of the step before it, which does that and reads it anyway.
    fn move_sums(&self, works: &mut [Work], step: usize) {
        let Step { kernel, operands, .. } = &self.steps[step];
        let Some(columns) = kernel.def().column_sums() else { return };
        let is_activation = |operand: &&Operand| !matches!(operand.place, Place::Param { .. });
        let before = operands[..columns.operand].iter().filter(is_activation).count();
        let [.., product, sums] = &mut works[..=step] else { return };
        product.side_flops += std::mem::take(&mut sums.side_flops);
        sums.bytes_read -= std::mem::take(&mut sums.activations[before].bytes);
        sums.shape = Shape::Bytes(sums.bytes());
    }

    /// The work of a step; of what was touched before, nothing is said.
    fn work(&self, step: &Step, plan_weight_bytes: u64) -> Work {
        let node = self.graph.node(step.value);
        let bytes_written = node.ty.bytes() as u64;
        // Of a table only the rows that are asked for are read.
        let gathers = contains(node.op(), &|op| matches!(op, Op::Gather(_)));
        let (mut bytes_read, mut weight_bytes, mut activations) = (0, 0, vec![]);
        let mut largest: Option<&Layout> = None;
        for operand in &step.operands {
            let bytes = match &operand.place {
                Place::Param { packing: Some(packing), .. } => packing.bytes as u64,
                _ => distinct_bytes(&operand.layout),
            };
            let bytes = if gathers { bytes.min(bytes_written) } else { bytes };
            bytes_read += bytes;
            match operand.place {
                Place::Param { .. } => weight_bytes += bytes,
                Place::Buffer(_) | Place::Constant(_) => {
                    activations.push(Touch { bytes, since: 0 });
                }
            }
            let count = operand.layout.count();
            if operand.layout.dtype.is_float() && largest.is_none_or(|most| count > most.count()) {
                largest = Some(&operand.layout);
            }
        }
        let core = core(&self.graph, step.value);
        let bytes = bytes_read + bytes_written;
        let moved = match norm_width(&self.graph, step.value) {
            Some(width) => Shape::Rows { bytes, width },
            None if reduces_columns(&self.graph, step.value) => Shape::Columns(bytes),
            None => Shape::Bytes(bytes),
        };
        let flops = self.graph.node_flops(step.value);
        let core_flops = core.as_ref().map_or(0, |(_, flops)| *flops).min(flops);
        Work {
            kernel: step.kernel.def().name(),
            dtype: largest.map_or(node.ty.dtype(), |layout| layout.dtype),
            core_flops,
            side_flops: flops - core_flops,
            bytes_read,
            weight_bytes,
            plan_weight_bytes,
            activations,
            bytes_written,
            written_since: 0,
            shape: core.map_or(moved, |(shape, _)| shape),
        }
    }

    /// Bytes that the steps of one run read and write.
    pub fn bytes_moved(&self) -> u64 {
        self.works().iter().map(Work::bytes).fold(0, u64::saturating_add)
    }
}

/// Bytes of the elements of a layout, a repeated one counted once.
fn distinct_bytes(layout: &Layout) -> u64 {
    let dims = layout.shape.iter().zip(&layout.strides);
    let count: usize = dims.map(|(&dim, &stride)| if stride == 0 { 1 } else { dim }).product();
    (count * layout.dtype.size()) as u64
}

/// Whether an op, or one of a fused group's, is what `is` asks for.
fn contains(op: Option<&Op>, is: &dyn Fn(&Op) -> bool) -> bool {
    match op {
        Some(Op::Fused(group)) => {
            let body = group.body();
            body.values().any(|value| contains(body.op(value), is))
        }
        Some(op) => is(op),
        None => false,
    }
}

/// The product, attention or convolution that makes `value`, by itself or in a fused group: its
/// shape and FLOPs.
fn core(graph: &Graph, value: ValueId) -> Option<(Shape, u64)> {
    let node = graph.node(value);
    let types = graph.arg_types(value);
    let shape = match node.op()? {
        Op::Fused(group) => {
            let body = group.body();
            return body.values().find_map(|value| core(body, value));
        }
        Op::Matmul(op) => product(op.dims(types[0].shape(), types[1].shape())?, types[1]),
        Op::Attention(_) => {
            let [.., queries, _, width] = *types[0].shape() else { return None };
            let [.., keys, _, _] = *types[1].shape() else { return None };
            let is_biased = types.get(3).is_some_and(|ty| ty.dtype().is_float());
            Shape::Attention { queries, keys, width, is_biased }
        }
        // Its products are as large.
        Op::AttentionGrad(_) => {
            let [.., queries, _, width] = *types[0].shape() else { return None };
            let [.., keys, _, _] = *types[1].shape() else { return None };
            Shape::Attention { queries, keys, width, is_biased: false }
        }
        Op::Conv(_) => {
            let (weight, out) = (types[1].shape(), node.ty.shape());
            let (&outputs, &inputs) = (weight.first()?, weight.get(1)?);
            let positions = out.get(1..out.len() - 1)?.iter().product();
            Shape::Conv { positions, inputs, outputs, taps: weight[2..].iter().product() }
        }
        // Its gradients have as many products.
        Op::ConvInputGrad(_) => {
            let (grad, weight) = (types[0].shape(), types[1].shape());
            let (&inputs, &outputs) = (weight.first()?, weight.get(1)?);
            let positions = grad.get(1..grad.len() - 1)?.iter().product();
            Shape::Conv { positions, inputs, outputs, taps: weight[2..].iter().product() }
        }
        Op::ConvWeightGrad(_) => {
            let (grad, weight) = (types[1].shape(), node.ty.shape());
            let (&outputs, &inputs) = (weight.first()?, weight.get(1)?);
            let positions = grad.get(1..grad.len() - 1)?.iter().product();
            Shape::Conv { positions, inputs, outputs, taps: weight[2..].iter().product() }
        }
        _ => return None,
    };
    Some((shape, graph.node_flops(value)))
}

/// Elements of a row, or channels, of the norm or its gradient that makes `value`, by itself or in a fused group.
fn norm_width(graph: &Graph, value: ValueId) -> Option<usize> {
    match graph.op(value)? {
        Op::Fused(group) => {
            let body = group.body();
            body.values().find_map(|value| norm_width(body, value))
        }
        Op::Softmax(op) => graph.arg_types(value)[0].shape().get(op.axis).copied(),
        Op::LayerNorm(_) | Op::RmsNorm(_) | Op::GroupNorm(_) | Op::NormGrad(_) => {
            graph.arg_types(value)[0].shape().last().copied()
        }
        _ => None,
    }
}

/// Whether `value`, or a part of a fused group that makes it, is a reduction that keeps the last axis.
fn reduces_columns(graph: &Graph, value: ValueId) -> bool {
    let axes = match graph.op(value) {
        Some(Op::Fused(group)) => {
            let body = group.body();
            return body.values().any(|value| reduces_columns(body, value));
        }
        Some(Op::ReduceSum(op)) => &op.axes,
        Some(Op::ReduceMax(op)) => &op.axes,
        _ => return false,
    };
    let shape = graph.arg_types(value)[0].shape();
    // Where the last axes are of one element, the one before them is the last.
    let last = shape.iter().rposition(|dim| *dim > 1);
    last.is_some_and(|last| !axes.contains(&last) && axes.iter().any(|axis| shape[*axis] > 1))
}

fn product(([m, columns, depth], batch): ([usize; 3], Vec<usize>), b: &TensorType) -> Shape {
    // One B for the whole batch: its rows are those of one product.
    let rows = if b.rank() == 2 { m * batch.iter().product::<usize>() } else { m };
    Shape::Product { rows, columns, depth }
}

#[cfg(test)]
mod tests {
    use kernels::{Isa, Target};
    use ops::Builder;

    use super::*;

    fn plan(build: impl FnOnce(&mut Builder) -> ValueId) -> Plan {
        let mut b = Builder::new("g");
        let out = build(&mut b);
        let graph = b.finish(&[out]);
        let target = Target {
            isa: Isa::PORTABLE,
            threads: 1,
            l1_bytes: 32 << 10,
            l2_bytes: 1 << 20,
            l3_bytes: 16 << 20,
            gpu: None,
            tiles: None,
        };
        crate::compile(graph, &target).unwrap()
    }

    fn f32(shape: &[usize]) -> TensorType {
        TensorType::new(DType::F32, shape).unwrap()
    }

    #[test]
    fn a_linear_layer_is_a_product_with_a_side() {
        let plan = plan(|b| {
            let x = b.input("x", f32(&[2, 3, 8]));
            let w = b.param("w", f32(&[5, 8]));
            let bias = b.param("b", f32(&[5]));
            b.linear(x, w, Some(bias)).unwrap()
        });
        let work = &plan.works()[0];
        assert_eq!(work.kernel, "matmul");
        assert_eq!(work.shape, Shape::Product { rows: 6, columns: 5, depth: 8 });
        assert_eq!((work.core_flops, work.side_flops), (2 * 6 * 5 * 8, 30));
        assert_eq!(work.bytes_written, 6 * 5 * 4);
        // The weight is packed, the bias is read as it is.
        assert_eq!(work.weight_bytes, work.plan_weight_bytes);
        assert_eq!(work.bytes_read, work.weight_bytes + 2 * 3 * 8 * 4);
        assert_eq!(work.flops(), plan.flops());
    }

    #[test]
    fn repeated_elements_count_once() {
        let plan = plan(|b| {
            let x = b.input("x", f32(&[64, 1]));
            let y = b.input("y", f32(&[1, 32]));
            b.add(x, y).unwrap()
        });
        let work = &plan.works()[0];
        assert_eq!((work.bytes_read, work.bytes_written), ((64 + 32) * 4, 64 * 32 * 4));
        assert_eq!(work.shape, Shape::Bytes(work.bytes()));
        assert_eq!(plan.bytes_moved(), work.bytes());
    }

    #[test]
    fn norms_are_of_rows() {
        let plan = plan(|b| {
            let x = b.input("x", f32(&[5, 6, 8]));
            let y = b.rms_norm(x, 1e-6).unwrap();
            b.add(y, x).unwrap()
        });
        let work = &plan.works()[0];
        assert_eq!(work.shape, Shape::Rows { bytes: work.bytes(), width: 8 });
    }

    #[test]
    fn attention_and_convolutions_have_their_shapes() {
        let plan = plan(|b| {
            let q = b.input("q", f32(&[2, 7, 3, 4]));
            let k = b.input("k", f32(&[2, 9, 3, 4]));
            let v = b.input("v", f32(&[2, 9, 3, 4]));
            b.attention([q, k, v], None, None, 0.5).unwrap()
        });
        let attention = Shape::Attention { queries: 7, keys: 9, width: 4, is_biased: false };
        assert_eq!(plan.works()[0].shape, attention);
        assert_eq!(plan.works()[0].side_flops, 0);
    }
}
