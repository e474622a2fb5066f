//! `permute {axes}`: axis `i` of the result is axis `axes[i]` of the operand. Gradient: the inverse
//! permutation.

use crate::op::{arity, ints};
use crate::{
    Attr, AttrReader, Builder, Class, DType, Error, Example, OpDef, Tensor, TensorType, Tolerance,
    ValueId, row_major_strides,
};

/// `permute`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Permute {
    /// A permutation of the operand's axes.
    pub axes: Vec<usize>,
}

impl Permute {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<Permute, Error> {
        let op = Permute { axes: attrs.indices("axes")? };
        attrs.end().map(|()| op)
    }

    /// A transpose, a cycle, a swap of inner axes, other element types.
    pub fn examples() -> Vec<Example> {
        let example = |axes: &[usize], shape: &[usize]| {
            Example::f32(Permute { axes: axes.to_vec() }, &[shape])
        };
        vec![
            example(&[1, 0], &[2, 4]),
            example(&[2, 0, 1], &[3, 5, 7]),
            example(&[0, 2, 1, 3], &[2, 3, 5, 4]),
            example(&[1, 0], &[3, 5]).of(DType::F16),
            example(&[1, 0], &[3, 5]).of(DType::I32),
        ]
    }

    /// The permutation that undoes this one.
    pub fn inverse(&self) -> Permute {
        let mut axes = vec![0; self.axes.len()];
        for (i, &axis) in self.axes.iter().enumerate() {
            axes[axis] = i;
        }
        Permute { axes }
    }
}

impl OpDef for Permute {
    fn name(&self) -> &'static str {
        "permute"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("axes", ints(&self.axes))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("permute", args, 1)?;
        let mut sorted = self.axes.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..args[0].rank()) {
            let reason =
                format!("axes {:?} must be a permutation of those of {}", self.axes, args[0]);
            return Err(Error::attr("permute", reason));
        }
        let dims: Vec<usize> = self.axes.iter().map(|&axis| args[0].shape()[axis]).collect();
        args[0].with_shape(dims)
    }

    fn class(&self) -> Class {
        Class::Movement
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let from = row_major_strides(args[0].shape());
        let to = row_major_strides(out.shape());
        let index = |i: usize| {
            let coordinate = |axis: usize| i / to[axis] % out.shape()[axis];
            (0..to.len()).map(|axis| coordinate(axis) * from[self.axes[axis]]).sum()
        };
        args[0].gather_elements(out.clone(), index)
    }

    fn vjp(
        &self,
        b: &mut Builder,
        _: &[ValueId],
        _: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        Ok(vec![Some(b.op(self.inverse(), &[grad])?)])
    }

    fn flops(&self, _: &[&TensorType], _: &TensorType) -> u64 {
        0
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }
}

impl Builder {
    /// Reorders axes: axis `i` of the result is axis `axes[i]` of `x`; `x` itself where nothing moves.
    pub fn permute(&mut self, x: ValueId, axes: &[usize]) -> Result<ValueId, Error> {
        if axes.iter().copied().eq(0..self.ty(x).rank()) {
            return Ok(x);
        }
        self.op(Permute { axes: axes.to_vec() }, &[x])
    }
}
