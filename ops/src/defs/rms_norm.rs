//! `rms_norm {eps}`: `x / sqrt(mean(x^2) + eps)` over the last axis, without a weight. Composite,
//! computed in f32 for half types. Rank 1 or more. Gradient: `norm_grad`.

use crate::defs::norm_grad::NormGrad;
use crate::op::{arity, check_eps, float};
use crate::{Attr, AttrReader, Builder, DType, Error, Example, OpDef, TensorType, ValueId};

/// `rms_norm`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RmsNorm {
    /// Added to the mean square; finite, not negative.
    pub eps: f64,
}

impl RmsNorm {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<RmsNorm, Error> {
        let op = RmsNorm { eps: attrs.float("eps")? };
        attrs.end().map(|()| op)
    }

    /// Even and odd rows, one row, many axes, bf16.
    pub fn examples() -> Vec<Example> {
        let example = |eps, shape: &[usize]| Example::f32(RmsNorm { eps }, &[shape]);
        vec![
            example(1e-6, &[2, 8]),
            example(1e-5, &[3, 1, 17]),
            example(1e-2, &[5]),
            example(1e-6, &[3, 9]).of(DType::Bf16),
        ]
    }
}

impl OpDef for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("eps", Attr::Float(self.eps))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("rms_norm", args, 1)?;
        float("rms_norm", args, 0)?;
        check_eps("rms_norm", self.eps)?;
        if args[0].rank() == 0 {
            return Err(Error::operand("rms_norm", 0, args[0], "rank 1 or more"));
        }
        Ok(args[0].clone())
    }

    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<Result<ValueId, Error>> {
        Some(decompose(b, args[0], self.eps))
    }

    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        _: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let op = NormGrad { eps: self.eps, centered: false };
        Ok(vec![Some(b.op(op, &[args[0], grad])?)])
    }

    fn flops(&self, args: &[&TensorType], _: &TensorType) -> u64 {
        // Square, sum, product.
        3 * args[0].count() as u64
    }
}

fn decompose(b: &mut Builder, x: ValueId, eps: f64) -> Result<ValueId, Error> {
    let dtype = b.ty(x).dtype();
    let last = [b.ty(x).rank() - 1];
    let x = b.cast(x, DType::F32)?;
    let squares = b.square(x)?;
    let mean = b.reduce_mean(squares, &last)?;
    let mean = b.add_scalar(mean, eps)?;
    let scale = b.rsqrt(mean)?;
    let y = b.mul(x, scale)?;
    b.cast(y, dtype)
}

impl Builder {
    /// Unit mean square along the last axis.
    pub fn rms_norm(&mut self, x: ValueId, eps: f64) -> Result<ValueId, Error> {
        self.op(RmsNorm { eps }, &[x])
    }
}
