//! `reduce_max {axes}`: the largest element over `axes`, which stay as dims of 1. Any element type.
//! Gradient: to the elements that equal the maximum, in equal shares.

use crate::defs::broadcast::broadcast_index;
use crate::defs::reduce_sum::{reduced_shape, reductions};
use crate::op::{arity, check_axes, ints};
use crate::{
    Attr, AttrReader, Builder, Class, Data, Error, Example, OpDef, Tensor, TensorType, Tolerance,
    ValueId,
};

/// `reduce_max`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReduceMax {
    /// Ascending; these axes stay as dims of 1.
    pub axes: Vec<usize>,
}

impl ReduceMax {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<ReduceMax, Error> {
        let op = ReduceMax { axes: attrs.indices("axes")? };
        attrs.end().map(|()| op)
    }

    /// What every reduction is shown on.
    pub fn examples() -> Vec<Example> {
        reductions(|axes| ReduceMax { axes })
    }
}

impl OpDef for ReduceMax {
    fn name(&self) -> &'static str {
        "reduce_max"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("axes", ints(&self.axes))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("reduce_max", args, 1)?;
        check_axes("reduce_max", &self.axes, args[0])?;
        args[0].with_shape(reduced_shape(args[0].shape(), &self.axes))
    }

    fn class(&self) -> Class {
        Class::Reduction
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let index = broadcast_index(out.shape(), args[0].shape());
        match args[0].data() {
            Data::Float(values) => {
                let mut largest = vec![f64::NEG_INFINITY; out.count()];
                for (i, &x) in values.iter().enumerate() {
                    largest[index(i)] = largest[index(i)].max(x);
                }
                Tensor::floats(out.clone(), largest)
            }
            Data::Int(values) => {
                let mut largest = vec![i64::MIN; out.count()];
                for (i, &x) in values.iter().enumerate() {
                    largest[index(i)] = largest[index(i)].max(x);
                }
                Tensor::ints(out.clone(), largest)
            }
        }
    }

    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        out: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let dtype = b.ty(args[0]).dtype();
        let is_largest = b.equal(args[0], out)?;
        let is_largest = b.cast(is_largest, dtype)?;
        let ties = b.reduce_sum(is_largest, &self.axes)?;
        let share = b.div(grad, ties)?;
        Ok(vec![Some(b.mul(share, is_largest)?)])
    }

    fn flops(&self, args: &[&TensorType], _: &TensorType) -> u64 {
        args[0].count() as u64
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }
}

impl Builder {
    /// The largest element over `axes` (ascending), which stay as dims of 1.
    pub fn reduce_max(&mut self, x: ValueId, axes: &[usize]) -> Result<ValueId, Error> {
        self.op(ReduceMax { axes: axes.to_vec() }, &[x])
    }
}
