//! `rope`: rotates pairs of channels by an angle that depends on the position (Su et al., Rotary
//! Position Embedding, equation 15, with interleaved pairs).
//!
//! Operands: `x` `[.., S, H, D]`, `angles` f32 `[S, D/2]`, in radians; the result is like `x`. With
//! `a = angles[s, i]` the pair `(x[2i], x[2i+1])` becomes
//! `(x[2i] cos a - x[2i+1] sin a, x[2i+1] cos a + x[2i] sin a)`. Composite, computed in f32 for half
//! types. Gradient: the rotation back.

use crate::op::{arity, float};
use crate::{AttrReader, Builder, DType, Error, Example, OpDef, TensorType, ValueId};

/// `rope`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rope;

impl Rope {
    /// From text.
    pub fn parse(attrs: AttrReader<'_>) -> Result<Rope, Error> {
        attrs.end().map(|()| Rope)
    }

    /// With and without batch axes, one position, bf16.
    pub fn examples() -> Vec<Example> {
        let half = Example::f32(Rope, &[&[2, 3, 3, 6], &[3, 3]]);
        let x = half.args[0].with_dtype(DType::Bf16);
        vec![
            Example::f32(Rope, &[&[2, 4, 2, 4], &[4, 2]]),
            Example::f32(Rope, &[&[5, 3, 6], &[5, 3]]),
            Example::f32(Rope, &[&[3, 2, 1, 1, 10], &[1, 5]]),
            half.with_arg(0, x),
        ]
    }
}

impl OpDef for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("rope", args, 2)?;
        float("rope", args, 0)?;
        let &[.., s, _, d] = args[0].shape() else {
            return Err(Error::operand("rope", 0, args[0], "[.., S, H, D]"));
        };
        if d % 2 != 0 {
            return Err(Error::operand("rope", 0, args[0], "an even last dim"));
        }
        if args[1].dtype() != DType::F32 || args[1].shape() != [s, d / 2] {
            return Err(Error::operand("rope", 1, args[1], format!("f32[{s}, {}]", d / 2)));
        }
        Ok(args[0].clone())
    }

    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<Result<ValueId, Error>> {
        Some(decompose(b, args[0], args[1]))
    }

    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        out: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let back = b.neg(args[1])?;
        let by_x = b.rope(grad, back)?;
        // A larger angle moves each pair at a right angle to where it is.
        let ([first, second], [by_first, by_second]) = (pairs(b, out)?, pairs(b, grad)?);
        let (along, against) = (b.mul(by_second, first)?, b.mul(by_first, second)?);
        let by_angle = b.sub(along, against)?;
        let by_angle = b.reduce_sum(by_angle, &[0, 2, 4])?;
        let shape = b.shape(args[1]).to_vec();
        Ok(vec![Some(by_x), Some(b.reshape(by_angle, &shape)?)])
    }

    fn flops(&self, args: &[&TensorType], _: &TensorType) -> u64 {
        // Two products and a sum per element; sine and cosine per angle.
        3 * args[0].count() as u64 + 2 * args[1].count() as u64
    }
}

/// First and second elements of all pairs of `x` `[.., S, H, D]`, f32 `[.., S, H, D/2, 1]` with one axis before S.
fn pairs(b: &mut Builder, x: ValueId) -> Result<[ValueId; 2], Error> {
    let ty = b.ty(x).clone();
    let &[.., s, h, d] = ty.shape() else {
        return Err(Error::operand("rope", 0, &ty, "[.., S, H, D]"));
    };
    let outer = ty.count() / (s * h * d);
    let x = b.cast(x, DType::F32)?;
    let pairs = b.reshape(x, &[outer, s, h, d / 2, 2])?;
    Ok([b.slice_axis(pairs, 4, 0, 1)?, b.slice_axis(pairs, 4, 1, 2)?])
}

fn decompose(b: &mut Builder, x: ValueId, angles: ValueId) -> Result<ValueId, Error> {
    let ty = b.ty(x).clone();
    let [first, second] = pairs(b, x)?;
    let &[s, half] = b.shape(angles) else {
        return Err(Error::operand("rope", 1, b.ty(angles), "[S, D/2]"));
    };
    let angles = b.reshape(angles, &[1, s, 1, half, 1])?;
    let (cos, sin) = (b.cos(angles)?, b.sin(angles)?);
    let (first_cos, first_sin) = (b.mul(first, cos)?, b.mul(first, sin)?);
    let (second_cos, second_sin) = (b.mul(second, cos)?, b.mul(second, sin)?);
    let first = b.sub(first_cos, second_sin)?;
    let second = b.add(second_cos, first_sin)?;
    let pairs = b.concat(&[first, second], 4)?;
    let y = b.reshape(pairs, ty.shape())?;
    b.cast(y, ty.dtype())
}

impl Builder {
    /// Rotates the channel pairs of `x` `[.., S, H, D]` by `angles` `[S, D/2]`.
    pub fn rope(&mut self, x: ValueId, angles: ValueId) -> Result<ValueId, Error> {
        self.op(Rope, &[x, angles])
    }
}
