//! `softmax {axis}`: `exp(x - max) / sum exp(x - max)` along `axis`. Composite, computed in f32 for
//! half types. Its gradient is its own, `y * (g - sum(g * y))`: that of the decomposition would pass
//! through the maximum, whose share cancels.

use crate::op::{arity, check_axis, float};
use crate::{Attr, AttrReader, Builder, DType, Error, Example, OpDef, TensorType, ValueId};

/// `softmax`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Softmax {
    /// The axis along which the result sums to 1.
    pub axis: usize,
}

impl Softmax {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<Softmax, Error> {
        let op = Softmax { axis: attrs.index("axis")? };
        attrs.end().map(|()| op)
    }

    /// The last axis, one before it, a single element; large values; bf16.
    pub fn examples() -> Vec<Example> {
        let example = |axis, shape: &[usize]| Example::f32(Softmax { axis }, &[shape]);
        vec![
            example(1, &[2, 8]),
            example(1, &[2, 5, 3]),
            example(2, &[3, 1, 17]).in_range(-50.0, 50.0),
            example(0, &[1, 3]),
            example(1, &[3, 7]).of(DType::Bf16),
        ]
    }
}

impl OpDef for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("axis", Attr::Int(self.axis as i64))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("softmax", args, 1)?;
        float("softmax", args, 0)?;
        check_axis("softmax", self.axis, args[0])?;
        Ok(args[0].clone())
    }

    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<Result<ValueId, Error>> {
        Some(decompose(b, args[0], self.axis))
    }

    fn vjp(
        &self,
        b: &mut Builder,
        _: &[ValueId],
        out: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let dtype = b.ty(out).dtype();
        let y = b.cast(out, DType::F32)?;
        let g = b.cast(grad, DType::F32)?;
        let gy = b.mul(g, y)?;
        let sum = b.reduce_sum(gy, &[self.axis])?;
        let rest = b.sub(g, sum)?;
        let dx = b.mul(y, rest)?;
        Ok(vec![Some(b.cast(dx, dtype)?)])
    }

    fn flops(&self, args: &[&TensorType], _: &TensorType) -> u64 {
        // Maximum, difference, exponential, sum, quotient.
        5 * args[0].count() as u64
    }
}

fn decompose(b: &mut Builder, x: ValueId, axis: usize) -> Result<ValueId, Error> {
    let dtype = b.ty(x).dtype();
    let x = b.cast(x, DType::F32)?;
    let largest = b.reduce_max(x, &[axis])?;
    let shifted = b.sub(x, largest)?;
    let exp = b.exp(shifted)?;
    let sum = b.reduce_sum(exp, &[axis])?;
    let y = b.div(exp, sum)?;
    b.cast(y, dtype)
}

impl Builder {
    /// Softmax along `axis`.
    pub fn softmax(&mut self, x: ValueId, axis: usize) -> Result<ValueId, Error> {
        self.op(Softmax { axis }, &[x])
    }
}
