//! `broadcast {shape}`: repeats dims of 1 up to `shape` (same rank). Gradient: sum over what was
//! repeated. Also the broadcasting rule that elementwise ops share.

use crate::op::{arity, ints};
use crate::{
    Attr, AttrReader, Builder, Class, DType, Error, Example, OpDef, Tensor, TensorType, Tolerance,
    ValueId, row_major_strides,
};

/// `broadcast`.
#[derive(Clone, PartialEq, Debug)]
pub struct Broadcast {
    /// The result's dims; each is the operand's, or the operand's is 1.
    pub shape: Vec<usize>,
}

impl Broadcast {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<Broadcast, Error> {
        let op = Broadcast { shape: attrs.indices("shape")? };
        attrs.end().map(|()| op)
    }

    /// One repeated axis; two of them; none; other element types.
    pub fn examples() -> Vec<Example> {
        vec![
            Example::f32(Broadcast { shape: vec![2, 3] }, &[&[2, 1]]),
            Example::f32(Broadcast { shape: vec![2, 4, 3, 5] }, &[&[2, 1, 3, 1]]),
            Example::f32(Broadcast { shape: vec![2, 3] }, &[&[2, 3]]),
            Example::f32(Broadcast { shape: vec![3, 5] }, &[&[3, 1]]).of(DType::Bf16),
            Example::f32(Broadcast { shape: vec![3, 5] }, &[&[1, 5]]).of(DType::I64),
        ]
    }
}

impl OpDef for Broadcast {
    fn name(&self) -> &'static str {
        "broadcast"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("shape", ints(&self.shape))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("broadcast", args, 1)?;
        if broadcast_shape(args[0].shape(), &self.shape).as_deref() != Some(&self.shape) {
            let expected = format!("dims of {:?} or 1", self.shape);
            return Err(Error::operand("broadcast", 0, args[0], expected));
        }
        args[0].with_shape(self.shape.clone())
    }

    fn class(&self) -> Class {
        Class::Movement
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let index = broadcast_index(args[0].shape(), out.shape());
        args[0].gather_elements(out.clone(), index)
    }

    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        _: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        Ok(vec![Some(sum_to(b, grad, args[0])?)])
    }

    fn flops(&self, _: &[&TensorType], _: &TensorType) -> u64 {
        0
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }
}

impl Builder {
    /// Repeats dims of 1 up to `shape`; returns `x` itself where nothing is repeated.
    pub fn broadcast(&mut self, x: ValueId, shape: &[usize]) -> Result<ValueId, Error> {
        if self.shape(x) == shape {
            return Ok(x);
        }
        self.op(Broadcast { shape: shape.to_vec() }, &[x])
    }
}

/// The shape that `a` and `b` broadcast to: same rank, dims equal or 1.
pub fn broadcast_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    if a.len() != b.len() {
        return None;
    }
    let dim = |(&x, &y): (&usize, &usize)| match (x, y) {
        (x, y) if x == y => Some(x),
        (1, y) => Some(y),
        (x, 1) => Some(x),
        _ => None,
    };
    a.iter().zip(b).map(dim).collect()
}

/// Maps a row-major element index of `out` to that of an operand of shape `arg` broadcast to it.
pub fn broadcast_index(arg: &[usize], out: &[usize]) -> impl Fn(usize) -> usize + use<> {
    let out_strides = row_major_strides(out);
    let strides: Vec<usize> = row_major_strides(arg)
        .into_iter()
        .zip(arg.iter().zip(out))
        .map(|(stride, (&a, &o))| if a == o { stride } else { 0 })
        .collect();
    let out = out.to_vec();
    move |i| (0..out.len()).map(|axis| i / out_strides[axis] % out[axis] * strides[axis]).sum()
}

/// Undoes broadcasting in a gradient: sums `grad` over the axes along which `arg` was repeated.
pub fn sum_to(b: &mut Builder, grad: ValueId, arg: ValueId) -> Result<ValueId, Error> {
    let axes: Vec<usize> =
        (0..b.shape(arg).len()).filter(|&axis| b.shape(arg)[axis] != b.shape(grad)[axis]).collect();
    if axes.is_empty() { Ok(grad) } else { b.reduce_sum(grad, &axes) }
}
