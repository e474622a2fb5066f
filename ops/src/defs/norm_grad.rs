//! `norm_grad {eps, centered}`: the gradient of `layer_norm` (`centered`) or `rms_norm` by its operand.
//!
//! Operands: what was normalized, `x`, and the cotangent of its norm, `grad`, both `[.., N]` of one float type,
//! which is that of the result. With `c = x - mean(x)` or `x`, `r = 1 / sqrt(mean(c^2) + eps)` and `y = c r`, means
//! over the last axis: `r (grad - mean(grad) - y mean(grad y))`, without the first mean where nothing is centered.
//! Composite, computed in f32 for half types. Kernels read each operand once. Rank 1 or more.

use crate::op::{arity, check_eps, same_float};
use crate::{Attr, AttrReader, Builder, DType, Error, Example, OpDef, TensorType, ValueId};

/// `norm_grad`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct NormGrad {
    /// The norm's: added to the variance or mean square; finite, not negative.
    pub eps: f64,
    /// Whether the norm takes the mean off.
    pub centered: bool,
}

impl NormGrad {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<NormGrad, Error> {
        let op = NormGrad { eps: attrs.float("eps")?, centered: attrs.bool("centered")? };
        attrs.end().map(|()| op)
    }

    /// Of both norms: even and odd rows, one row, many axes, bf16.
    pub fn examples() -> Vec<Example> {
        let mut all = Vec::new();
        for centered in [true, false] {
            let example =
                |eps, shape: &[usize]| Example::f32(NormGrad { eps, centered }, &[shape, shape]);
            all.push(example(1e-3, &[2, 8]));
            all.push(example(1e-3, &[3, 1, 17]));
            all.push(example(1e-2, &[5]));
            all.push(example(1e-3, &[3, 9]).of(DType::Bf16));
        }
        all
    }
}

impl OpDef for NormGrad {
    fn name(&self) -> &'static str {
        "norm_grad"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("eps", Attr::Float(self.eps)), ("centered", Attr::Bool(self.centered))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("norm_grad", args, 2)?;
        same_float("norm_grad", args)?;
        check_eps("norm_grad", self.eps)?;
        if args[0].rank() == 0 {
            return Err(Error::operand("norm_grad", 0, args[0], "rank 1 or more"));
        }
        if args[1].shape() != args[0].shape() {
            let expected = format!("the shape of {}", args[0]);
            return Err(Error::operand("norm_grad", 1, args[1], expected));
        }
        Ok(args[0].clone())
    }

    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<Result<ValueId, Error>> {
        Some(self.build(b, args))
    }

    fn flops(&self, args: &[&TensorType], _: &TensorType) -> u64 {
        // The norm's five, two sums, their product, two differences, three products.
        13 * args[0].count() as u64
    }
}

impl NormGrad {
    fn build(&self, b: &mut Builder, args: &[ValueId]) -> Result<ValueId, Error> {
        let dtype = b.ty(args[0]).dtype();
        let last = [b.ty(args[0]).rank() - 1];
        let mut x = b.cast(args[0], DType::F32)?;
        let mut grad = b.cast(args[1], DType::F32)?;
        if self.centered {
            let mean = b.reduce_mean(x, &last)?;
            x = b.sub(x, mean)?;
        }
        let squares = b.square(x)?;
        let variance = b.reduce_mean(squares, &last)?;
        let variance = b.add_scalar(variance, self.eps)?;
        let scale = b.rsqrt(variance)?;
        let y = b.mul(x, scale)?;
        let along = b.mul(grad, y)?;
        let along = b.reduce_mean(along, &last)?;
        if self.centered {
            let mean = b.reduce_mean(grad, &last)?;
            grad = b.sub(grad, mean)?;
        }
        let along = b.mul(y, along)?;
        let across = b.sub(grad, along)?;
        let by_x = b.mul(across, scale)?;
        b.cast(by_x, dtype)
    }
}
