//! `group_norm {groups, eps}`: `(x - mean) / sqrt(variance + eps) * weight + bias`, with mean and
//! biased variance over all positions and the channels of one group.
//!
//! Operands: `x` `[N, spatial.., C]` (channels last, `groups` divides C), `weight` `[C]`, `bias`
//! `[C]`; these may be f32 beside an `x` of another float type, which is the result's. Composite,
//! computed in f32 for half types, with a gradient of its own.

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

    /// Sums over positions stay sums of channels, which lie side by side, and groups are summed from those:
    /// no value has an axis for the few channels of a group but a list of channels.
    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        _: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let [x_type, weight_type, bias_type] = [0, 1, 2].map(|i| b.ty(args[i]).dtype());
        let x = b.cast(args[0], DType::F32)?;
        let grad = b.cast(grad, DType::F32)?;
        let weight = b.cast(args[1], DType::F32)?;
        let shape = b.shape(x).to_vec();
        let mut one_row = vec![1; shape.len()];
        one_row[shape.len() - 1] = shape[shape.len() - 1];
        let weight = b.reshape(weight, &one_row)?;

        let sums = sum_positions(b, x)?;
        let mean = self.mean_of_groups(b, sums, &shape)?;
        let deviation = b.sub(x, mean)?;
        let squares = b.square(deviation)?;
        let sums = sum_positions(b, squares)?;
        let variance = self.mean_of_groups(b, sums, &shape)?;
        let variance = b.add_scalar(variance, self.eps)?;
        let scale = b.rsqrt(variance)?;

        // By weight and bias, for each sample.
        let by_bias = sum_positions(b, grad)?;
        let moment = b.mul(grad, deviation)?;
        let moment = sum_positions(b, moment)?;
        let by_weight = b.mul(moment, scale)?;

        // scale * (weight * grad - mean(weight * grad) - y * mean(weight * grad * y)), y = deviation * scale.
        let weighted = b.mul(by_bias, weight)?;
        let center = self.mean_of_groups(b, weighted, &shape)?;
        let weighted = b.mul(by_weight, weight)?;
        let slope = self.mean_of_groups(b, weighted, &shape)?;
        let gain = b.mul(weight, scale)?;
        let shift = b.mul(center, scale)?;
        let slope = b.mul(slope, scale)?;
        let slope = b.mul(slope, scale)?;
        let by_x = b.mul(grad, gain)?;
        let tilt = b.mul(deviation, slope)?;
        let by_x = b.sub(by_x, tilt)?;
        let by_x = b.sub(by_x, shift)?;
        let by_x = b.cast(by_x, x_type)?;

        let mut channels = |by: ValueId, dtype: DType| {
            let sum = b.reduce_sum(by, &[0])?;
            let sum = b.reshape(sum, &one_row[shape.len() - 1..])?;
            b.cast(sum, dtype)
        };
        let by_weight = channels(by_weight, weight_type)?;
        let by_bias = channels(by_bias, bias_type)?;
        Ok(vec![Some(by_x), Some(by_weight), Some(by_bias)])
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

    /// For each channel the mean of its group, from sums over positions, `[N, 1.., C]` both; `shape` is what
    /// was summed.
    fn mean_of_groups(
        &self,
        b: &mut Builder,
        sums: ValueId,
        shape: &[usize],
    ) -> Result<ValueId, Error> {
        let (n, channels) = (shape[0], shape[shape.len() - 1]);
        let per_group = channels / self.groups;
        let n_terms = shape.iter().product::<usize>() / n / self.groups;
        let x = b.reshape(sums, &[n, self.groups, per_group])?;
        let x = b.reduce_sum(x, &[2])?;
        let x = b.mul_scalar(x, 1.0 / n_terms as f64)?;
        let x = b.broadcast(x, &[n, self.groups, per_group])?;
        let out = b.shape(sums).to_vec();
        b.reshape(x, &out)
    }
}

/// Sums of `[N, spatial.., C]` over its spatial axes, which stay as dims of 1.
fn sum_positions(b: &mut Builder, x: ValueId) -> Result<ValueId, Error> {
    let axes: Vec<usize> = (1..b.shape(x).len() - 1).collect();
    if axes.is_empty() { Ok(x) } else { b.reduce_sum(x, &axes) }
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
