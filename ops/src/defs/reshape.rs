//! `reshape {shape}`: the same elements in row-major order under other dims. Gradient: reshaped
//! back.

use crate::op::{arity, ints};
use crate::{
    Attr, AttrReader, Builder, Class, DType, Error, Example, OpDef, Tensor, TensorType, Tolerance,
    ValueId,
};

/// `reshape`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reshape {
    /// The result's dims; as many elements as the operand.
    pub shape: Vec<usize>,
}

impl Reshape {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<Reshape, Error> {
        let op = Reshape { shape: attrs.indices("shape")? };
        attrs.end().map(|()| op)
    }

    /// Split, merge, to a scalar, other element types.
    pub fn examples() -> Vec<Example> {
        let example =
            |from: &[usize], to: &[usize]| Example::f32(Reshape { shape: to.to_vec() }, &[from]);
        vec![
            example(&[2, 6], &[2, 2, 3]),
            example(&[3, 5, 7], &[15, 7]),
            example(&[1, 1], &[]),
            example(&[3, 5], &[5, 1, 3]).of(DType::Bf16),
            example(&[3, 5], &[15]).of(DType::I64),
        ]
    }
}

impl OpDef for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("shape", ints(&self.shape))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("reshape", args, 1)?;
        let ty = args[0]
            .with_shape(self.shape.clone())
            .map_err(|error| Error::attr("reshape", error.to_string()))?;
        if ty.count() != args[0].count() {
            let expected = format!("{} elements, for shape {:?}", ty.count(), self.shape);
            return Err(Error::operand("reshape", 0, args[0], expected));
        }
        Ok(ty)
    }

    fn class(&self) -> Class {
        Class::Movement
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        args[0].clone().reshaped(out.clone())
    }

    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        _: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let shape = b.shape(args[0]).to_vec();
        Ok(vec![Some(b.reshape(grad, &shape)?)])
    }

    fn flops(&self, _: &[&TensorType], _: &TensorType) -> u64 {
        0
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }
}

impl Builder {
    /// `x` under other dims; `x` itself where it has them.
    pub fn reshape(&mut self, x: ValueId, shape: &[usize]) -> Result<ValueId, Error> {
        if self.shape(x) == shape {
            return Ok(x);
        }
        self.op(Reshape { shape: shape.to_vec() }, &[x])
    }
}
