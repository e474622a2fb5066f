//! `slice {start, stop, step}`: along each axis the elements `start, start + step, ...` below
//! `stop`. Gradient: zeros put back in between and around.

use crate::op::{arity, check_per_axis, ints};
use crate::{
    Attr, AttrReader, Builder, Class, DType, Error, Example, OpDef, Tensor, TensorType, Tolerance,
    ValueId, row_major_strides,
};

/// `slice`. Every list has one entry per axis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    /// First position.
    pub start: Vec<usize>,
    /// First position that is not taken; above `start`, at most the dim.
    pub stop: Vec<usize>,
    /// Distance between positions, at least 1.
    pub step: Vec<usize>,
}

impl Slice {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<Slice, Error> {
        let op = Slice {
            start: attrs.indices("start")?,
            stop: attrs.indices("stop")?,
            step: attrs.indices("step")?,
        };
        attrs.end().map(|()| op)
    }

    /// A block, strides that end on and before the last element, other element types.
    pub fn examples() -> Vec<Example> {
        let example = |start: &[usize], stop: &[usize], step: &[usize], shape: &[usize]| {
            let [start, stop, step] = [start, stop, step].map(<[usize]>::to_vec);
            Example::f32(Slice { start, stop, step }, &[shape])
        };
        vec![
            example(&[0, 1], &[2, 3], &[1, 1], &[2, 4]),
            example(&[1, 0, 2], &[3, 5, 7], &[1, 2, 3], &[3, 5, 7]),
            example(&[0, 0], &[3, 6], &[2, 4], &[3, 7]),
            example(&[2], &[3], &[9], &[5]),
            example(&[0, 1], &[3, 5], &[1, 2], &[3, 5]).of(DType::Bf16),
            example(&[1, 0], &[3, 5], &[1, 1], &[3, 5]).of(DType::Bool),
        ]
    }
}

impl OpDef for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("start", ints(&self.start)), ("stop", ints(&self.stop)), ("step", ints(&self.step))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("slice", args, 1)?;
        let rank = args[0].rank();
        for (name, list) in [("start", &self.start), ("stop", &self.stop), ("step", &self.step)] {
            check_per_axis("slice", name, list.len(), rank)?;
        }
        let mut dims = Vec::with_capacity(rank);
        for (axis, &dim) in args[0].shape().iter().enumerate() {
            let (start, stop, step) = (self.start[axis], self.stop[axis], self.step[axis]);
            if start >= stop || stop > dim || step == 0 {
                let reason = format!(
                    "{start}..{stop} by {step} is not a range of axis {axis} of {}",
                    args[0]
                );
                return Err(Error::attr("slice", reason));
            }
            dims.push((stop - start).div_ceil(step));
        }
        args[0].with_shape(dims)
    }

    fn class(&self) -> Class {
        Class::Movement
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let from = row_major_strides(args[0].shape());
        let to = row_major_strides(out.shape());
        let index = |i: usize| {
            let coordinate =
                |axis: usize| self.start[axis] + i / to[axis] % out.shape()[axis] * self.step[axis];
            (0..to.len()).map(|axis| coordinate(axis) * from[axis]).sum()
        };
        args[0].gather_elements(out.clone(), index)
    }

    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        _: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let dims = b.shape(args[0]).to_vec();
        let mut grad = grad;
        for (axis, &step) in self.step.iter().enumerate() {
            grad = dilate(b, grad, axis, step)?;
        }
        let high: Vec<usize> = (0..dims.len())
            .map(|axis| dims[axis] - self.start[axis] - b.shape(grad)[axis])
            .collect();
        Ok(vec![Some(b.pad(grad, &self.start, &high)?)])
    }

    fn flops(&self, _: &[&TensorType], _: &TensorType) -> u64 {
        0
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }
}

/// Puts `step - 1` zeros between neighbors along `axis`.
fn dilate(b: &mut Builder, x: ValueId, axis: usize, step: usize) -> Result<ValueId, Error> {
    let shape = b.shape(x).to_vec();
    let n = shape[axis];
    if step == 1 || n == 1 {
        return Ok(x);
    }
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    // [outer, n, inner] -> [outer, n, step, inner]; the zeros after the last element are cut off.
    let split = b.reshape(x, &[outer, n, 1, inner])?;
    let padded = b.pad(split, &[0; 4], &[0, 0, step - 1, 0])?;
    let merged = b.reshape(padded, &[outer, n * step, inner])?;
    let length = (n - 1) * step + 1;
    let cut = b.slice_axis(merged, 1, 0, length)?;
    let dims = [&shape[..axis], &[length], &shape[axis + 1..]].concat();
    b.reshape(cut, &dims)
}

impl Builder {
    /// Along each axis the elements `start, start + step, ...` below `stop`.
    pub fn slice(
        &mut self,
        x: ValueId,
        start: &[usize],
        stop: &[usize],
        step: &[usize],
    ) -> Result<ValueId, Error> {
        let [start, stop, step] = [start, stop, step].map(<[usize]>::to_vec);
        self.op(Slice { start, stop, step }, &[x])
    }

    /// Positions `start..stop` along `axis`, everything along the others; `x` itself where that is
    /// everything.
    pub fn slice_axis(
        &mut self,
        x: ValueId,
        axis: usize,
        start: usize,
        stop: usize,
    ) -> Result<ValueId, Error> {
        let mut stops = self.shape(x).to_vec();
        let mut starts = vec![0; stops.len()];
        crate::op::check_axis("slice", axis, self.ty(x))?;
        if start == 0 && stop == stops[axis] {
            return Ok(x);
        }
        starts[axis] = start;
        stops[axis] = stop;
        let step = vec![1; stops.len()];
        self.op(Slice { start: starts, stop: stops, step }, &[x])
    }
}
