//! `group_norm {groups, eps}`: `(x - mean) / sqrt(variance + eps) * weight + bias`, with mean and
//! biased variance over all positions and the channels of one group.
//!
//! Operands: `x` `[N, spatial.., C]` (channels last, `groups` divides C), `weight` `[C]`, `bias`
//! `[C]`; these may be f32 beside an `x` of another float type, which is the result's. Composite,
//! computed in f32 for half types.

use crate::op::{arity, check_eps, float, float_or_f32, shaped};
use crate::{Attr, AttrReader, Builder, DType, Error, Example, OpDef, TensorType, ValueId};

/// `group_norm`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct GroupNorm {
    /// How many groups the channels fall into.
    pub groups: usize,
    /// Added to the variance; finite, not negative.
    pub eps: f64,
}

impl GroupNorm {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<GroupNorm, Error> {
        let op = GroupNorm { groups: attrs.index("groups")?, eps: attrs.float("eps")? };
        attrs.end().map(|()| op)
    }

    /// Some groups, one group, a channel per group without spatial axes, bf16 with f32 weights.
    pub fn examples() -> Vec<Example> {
        let example = |groups, eps, x: &[usize]| {
            let c = [x[x.len() - 1]];
            Example::f32(GroupNorm { groups, eps }, &[x, &c, &c])
        };
        let half = example(3, 1e-6, &[1, 5, 9]);
        let x = half.args[0].with_dtype(DType::Bf16);
        vec![
            example(2, 1e-6, &[2, 2, 4, 4]),
            example(1, 1e-5, &[1, 3, 5, 7]),
            example(3, 1e-2, &[2, 5, 3]),
            example(2, 1e-6, &[3, 6]),
            half.with_arg(0, x),
            example(3, 1e-6, &[1, 5, 9]).of(DType::F16),
        ]
    }
}

impl OpDef for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("groups", Attr::Int(self.groups as i64)), ("eps", Attr::Float(self.eps))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("group_norm", args, 3)?;
        float("group_norm", args, 0)?;
        check_eps("group_norm", self.eps)?;
        if args[0].rank() < 2 {
            return Err(Error::operand("group_norm", 0, args[0], "[N, spatial.., C]"));
        }
        let channels = args[0].shape()[args[0].rank() - 1];
        if self.groups == 0 || !channels.is_multiple_of(self.groups) {
            let reason = format!("{channels} channels do not split into {} groups", self.groups);
            return Err(Error::attr("group_norm", reason));
        }
        for operand in 1..3 {
            float_or_f32("group_norm", args, operand)?;
            shaped("group_norm", args, operand, &[channels])?;
        }
        Ok(args[0].clone())
    }

    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<Result<ValueId, Error>> {
        Some(self.build(b, args))
    }

    fn flops(&self, args: &[&TensorType], _: &TensorType) -> u64 {
        // Sum, difference, square, sum, product; then weight and bias.
        7 * args[0].count() as u64
    }
}

impl GroupNorm {
    fn build(&self, b: &mut Builder, args: &[ValueId]) -> Result<ValueId, Error> {
        let ty = b.ty(args[0]).clone();
        let (n, channels) = (ty.shape()[0], ty.shape()[ty.rank() - 1]);
        let positions = ty.count() / n / channels;
        let per_group = channels / self.groups;
        let x = b.cast(args[0], DType::F32)?;
        let x = b.reshape(x, &[n, positions, self.groups, per_group])?;
        let mean = b.reduce_mean(x, &[1, 3])?;
        let centered = b.sub(x, mean)?;
        let squares = b.square(centered)?;
        let variance = b.reduce_mean(squares, &[1, 3])?;
        let variance = b.add_scalar(variance, self.eps)?;
        let scale = b.rsqrt(variance)?;
        let y = b.mul(centered, scale)?;
        let weight = b.cast(args[1], DType::F32)?;
        let weight = b.reshape(weight, &[1, 1, self.groups, per_group])?;
        let bias = b.cast(args[2], DType::F32)?;
        let bias = b.reshape(bias, &[1, 1, self.groups, per_group])?;
        let y = b.mul(y, weight)?;
        let y = b.add(y, bias)?;
        let y = b.reshape(y, ty.shape())?;
        b.cast(y, ty.dtype())
    }
}

impl Builder {
    /// Normalizes groups of channels of `x` `[N, spatial.., C]`, then scales and shifts by
    /// `weight` and `bias` `[C]`.
    pub fn group_norm(
        &mut self,
        x: ValueId,
        weight: ValueId,
        bias: ValueId,
        groups: usize,
        eps: f64,
    ) -> Result<ValueId, Error> {
        self.op(GroupNorm { groups, eps }, &[x, weight, bias])
    }
}
