//! `layer_norm {eps}`: `(x - mean) / sqrt(variance + eps)` over the last axis, with the biased
//! variance and without an affine map. Composite, computed in f32 for half types. Rank 1 or more.
//! Gradient: `norm_grad`.

use crate::defs::norm_grad::NormGrad;
use crate::op::{arity, check_eps, float};
use crate::{Attr, AttrReader, Builder, DType, Error, Example, OpDef, TensorType, ValueId};

/// `layer_norm`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LayerNorm {
    /// Added to the variance; finite, not negative.
    pub eps: f64,
}

impl LayerNorm {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<LayerNorm, Error> {
        let op = LayerNorm { eps: attrs.float("eps")? };
        attrs.end().map(|()| op)
    }

    /// Even and odd rows, one row, many axes, bf16.
    pub fn examples() -> Vec<Example> {
        let example = |eps, shape: &[usize]| Example::f32(LayerNorm { eps }, &[shape]);
        vec![
            example(1e-6, &[2, 8]),
            example(1e-5, &[3, 1, 17]),
            example(1e-2, &[5]),
            example(1e-6, &[3, 9]).of(DType::Bf16),
        ]
    }
}

impl OpDef for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("eps", Attr::Float(self.eps))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("layer_norm", args, 1)?;
        float("layer_norm", args, 0)?;
        check_eps("layer_norm", self.eps)?;
        if args[0].rank() == 0 {
            return Err(Error::operand("layer_norm", 0, args[0], "rank 1 or more"));
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
        let op = NormGrad { eps: self.eps, centered: true };
        Ok(vec![Some(b.op(op, &[args[0], grad])?)])
    }

    fn flops(&self, args: &[&TensorType], _: &TensorType) -> u64 {
        // Sum, difference, square, sum, product.
        5 * args[0].count() as u64
    }
}

fn decompose(b: &mut Builder, x: ValueId, eps: f64) -> Result<ValueId, Error> {
    let dtype = b.ty(x).dtype();
    let last = [b.ty(x).rank() - 1];
    let x = b.cast(x, DType::F32)?;
    let mean = b.reduce_mean(x, &last)?;
    let centered = b.sub(x, mean)?;
    let squares = b.square(centered)?;
    let variance = b.reduce_mean(squares, &last)?;
    let variance = b.add_scalar(variance, eps)?;
    let scale = b.rsqrt(variance)?;
    let y = b.mul(centered, scale)?;
    b.cast(y, dtype)
}

impl Builder {
    /// Zero mean and unit variance along the last axis.
    pub fn layer_norm(&mut self, x: ValueId, eps: f64) -> Result<ValueId, Error> {
        self.op(LayerNorm { eps }, &[x])
    }
}
