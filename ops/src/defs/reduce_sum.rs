//! `reduce_sum {axes}`: sums over `axes`, which stay as dims of 1. Floats and integers (which wrap).
//! Gradient: repeated along `axes`. Also what reductions share.

use crate::defs::broadcast::broadcast_index;
use crate::op::{arity, check_axes, ints};
use crate::{
    Attr, AttrReader, Builder, Class, DType, Data, Error, Example, Op, OpDef, Tensor, TensorType,
    ValueId,
};

/// `reduce_sum`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReduceSum {
    /// Ascending; these axes stay as dims of 1.
    pub axes: Vec<usize>,
}

impl ReduceSum {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<ReduceSum, Error> {
        let op = ReduceSum { axes: attrs.indices("axes")? };
        attrs.end().map(|()| op)
    }

    /// What every reduction is shown on.
    pub fn examples() -> Vec<Example> {
        reductions(|axes| ReduceSum { axes })
    }
}

impl OpDef for ReduceSum {
    fn name(&self) -> &'static str {
        "reduce_sum"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("axes", ints(&self.axes))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("reduce_sum", args, 1)?;
        check_axes("reduce_sum", &self.axes, args[0])?;
        if args[0].dtype() == DType::Bool {
            return Err(Error::operand("reduce_sum", 0, args[0], "a number type"));
        }
        args[0].with_shape(reduced_shape(args[0].shape(), &self.axes))
    }

    fn class(&self) -> Class {
        Class::Reduction
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let index = broadcast_index(out.shape(), args[0].shape());
        match args[0].data() {
            Data::Float(values) => {
                let mut sums = vec![0.0; out.count()];
                values.iter().enumerate().for_each(|(i, x)| sums[index(i)] += x);
                Tensor::floats(out.clone(), sums)
            }
            Data::Int(values) => {
                let mut sums = vec![0i64; out.count()];
                for (i, &x) in values.iter().enumerate() {
                    sums[index(i)] = sums[index(i)].wrapping_add(x);
                }
                Tensor::ints(out.clone(), sums)
            }
        }
    }

    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        _: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let shape = b.shape(args[0]).to_vec();
        Ok(vec![Some(b.broadcast(grad, &shape)?)])
    }

    fn flops(&self, args: &[&TensorType], _: &TensorType) -> u64 {
        args[0].count() as u64
    }
}

/// Examples of a reduction over the last, the first, two and all axes, and of other element types.
pub(crate) fn reductions<R: Into<Op>>(over: impl Fn(Vec<usize>) -> R) -> Vec<Example> {
    let example = |axes: &[usize], shape: &[usize]| Example::f32(over(axes.to_vec()), &[shape]);
    vec![
        example(&[1], &[2, 4]),
        example(&[0, 2], &[3, 5, 7]),
        example(&[0], &[7, 3]),
        example(&[0, 1], &[3, 1]),
        example(&[1], &[3, 17]).of(DType::Bf16),
        example(&[0], &[3, 5]).of(DType::I32),
    ]
}

/// `shape` with 1 in place of every dim of `axes`.
pub fn reduced_shape(shape: &[usize], axes: &[usize]) -> Vec<usize> {
    let dim = |(axis, &dim): (usize, &usize)| if axes.contains(&axis) { 1 } else { dim };
    shape.iter().enumerate().map(dim).collect()
}

impl Builder {
    /// Sums over `axes` (ascending), which stay as dims of 1.
    pub fn reduce_sum(&mut self, x: ValueId, axes: &[usize]) -> Result<ValueId, Error> {
        self.op(ReduceSum { axes: axes.to_vec() }, &[x])
    }

    /// The mean over `axes` (ascending), which stay as dims of 1: a sum and a scaling.
    pub fn reduce_mean(&mut self, x: ValueId, axes: &[usize]) -> Result<ValueId, Error> {
        let sum = self.reduce_sum(x, axes)?;
        let n = self.ty(x).count() / self.ty(sum).count();
        self.mul_scalar(sum, 1.0 / n as f64)
    }
}
