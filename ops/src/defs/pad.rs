//! `pad {low, high}`: zeros (`false`) before and after along each axis. Gradient: the middle.

use crate::op::{arity, check_per_axis, ints};
use crate::{
    Attr, AttrReader, Builder, Class, DType, Data, Error, Example, OpDef, Tensor, TensorType,
    Tolerance, ValueId, row_major_strides,
};

/// `pad`. Both lists have one entry per axis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pad {
    /// Zeros before the first element.
    pub low: Vec<usize>,
    /// Zeros after the last element.
    pub high: Vec<usize>,
}

impl Pad {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<Pad, Error> {
        let op = Pad { low: attrs.indices("low")?, high: attrs.indices("high")? };
        attrs.end().map(|()| op)
    }

    /// One side, both sides, other element types.
    pub fn examples() -> Vec<Example> {
        let example = |low: &[usize], high: &[usize], shape: &[usize]| {
            Example::f32(Pad { low: low.to_vec(), high: high.to_vec() }, &[shape])
        };
        vec![
            example(&[0, 0], &[0, 2], &[2, 4]),
            example(&[1, 0, 2], &[0, 3, 1], &[3, 5, 1]),
            example(&[2, 1], &[1, 2], &[3, 5]).of(DType::F16),
            example(&[0, 1], &[1, 1], &[3, 5]).of(DType::Bool),
            example(&[0, 1], &[1, 1], &[3, 5]).of(DType::I32),
        ]
    }
}

impl OpDef for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("low", ints(&self.low)), ("high", ints(&self.high))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("pad", args, 1)?;
        check_per_axis("pad", "low", self.low.len(), args[0].rank())?;
        check_per_axis("pad", "high", self.high.len(), args[0].rank())?;
        let ends = self.low.iter().zip(&self.high);
        // A saturated dim is above the limit on elements, so `with_shape` refuses it.
        let dim = |(&dim, (&low, &high)): (&usize, (&usize, &usize))| {
            dim.saturating_add(low).saturating_add(high)
        };
        let dims: Vec<usize> = args[0].shape().iter().zip(ends).map(dim).collect();
        args[0].with_shape(dims)
    }

    fn class(&self) -> Class {
        Class::Movement
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let from = row_major_strides(args[0].shape());
        let to = row_major_strides(out.shape());
        let source = |i: usize| {
            (0..to.len()).try_fold(0, |sum, axis| {
                let coordinate = (i / to[axis] % out.shape()[axis]).checked_sub(self.low[axis])?;
                (coordinate < args[0].shape()[axis]).then_some(sum + coordinate * from[axis])
            })
        };
        let n = 0..out.count();
        match args[0].data() {
            Data::Float(values) => {
                let value = |i| source(i).map_or(0.0, |j| values[j]);
                Tensor::floats(out.clone(), n.map(value).collect())
            }
            Data::Int(values) => {
                let value = |i| source(i).map_or(0, |j| values[j]);
                Tensor::ints(out.clone(), n.map(value).collect())
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
        let stop: Vec<usize> =
            self.low.iter().zip(b.shape(args[0])).map(|(low, dim)| low + dim).collect();
        let step = vec![1; stop.len()];
        Ok(vec![Some(b.slice(grad, &self.low, &stop, &step)?)])
    }

    fn flops(&self, _: &[&TensorType], _: &TensorType) -> u64 {
        0
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }
}

impl Builder {
    /// Puts zeros around `x`; `x` itself where there are none to put.
    pub fn pad(&mut self, x: ValueId, low: &[usize], high: &[usize]) -> Result<ValueId, Error> {
        let rank = self.ty(x).rank();
        let nothing = low.len() == rank && high.len() == rank;
        if nothing && low.iter().chain(high).all(|&n| n == 0) {
            return Ok(x);
        }
        self.op(Pad { low: low.to_vec(), high: high.to_vec() }, &[x])
    }
}
