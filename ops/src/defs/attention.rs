//! `attention {scale}`: `softmax over keys of (scale * q . k + bias)`, times `v`.
//!
//! Operands: `q` `[batch.., Sq, H, D]`, `k` and `v` `[batch.., Sk, H, D]`, of one float type, which
//! is the result's; then optionally a float `bias` `[batch or 1.., H, Sq, Sk]` (f32 or like `q`);
//! then optionally a bool `key_mask` `[batch.., Sk]`. A key whose mask is false takes no part; where
//! no key takes part the result is 0. The result is like `q`. Composite, computed in f32 for half
//! types. Kernels recognize it whole and never hold scores of `[Sq, Sk]`.

use crate::defs::attention_grad::AttentionGrad;
use crate::defs::broadcast::broadcast_shape;
use crate::op::{float_or_f32, same_float, shaped};
use crate::{Attr, AttrReader, Builder, DType, Error, Example, OpDef, TensorType, ValueId};

/// What a masked score becomes: far below any real one, yet finite, so that subtracting the maximum
/// of a fully masked row is 0 and not NaN.
pub(super) const MASKED: f64 = -1e30;

/// `attention`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Attention {
    /// Factor of `q . k`; finite.
    pub scale: f64,
}

/// The optional operands of `attention`, by position.
struct Extra {
    bias: Option<usize>,
    key_mask: Option<usize>,
}

impl Attention {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<Attention, Error> {
        let op = Attention { scale: attrs.float("scale")? };
        attrs.end().map(|()| op)
    }

    /// Self and cross, every combination of bias and mask, no batch, two batch axes, bf16.
    pub fn examples() -> Vec<Example> {
        let example = |scale, shapes: &[&[usize]]| Example::f32(Attention { scale }, shapes);
        let masked = |example: Example| {
            let last = example.args.len() - 1;
            let mask = example.args[last].with_dtype(DType::Bool);
            example.with_arg(last, mask)
        };
        let self_attention: &[&[usize]] = &[&[2, 4, 2, 4], &[2, 4, 2, 4], &[2, 4, 2, 4]];
        let q: &[usize] = &[2, 3, 2, 5];
        let k: &[usize] = &[2, 7, 2, 5];
        let bf16 = example(0.4, &[q, k, k, &[1, 2, 3, 7], &[2, 7]]).of(DType::Bf16);
        let bias = bf16.args[3].with_dtype(DType::F32);
        vec![
            example(0.5, self_attention),
            example(0.4, &[q, k, k]),
            example(1.0, &[&[3, 1, 6], &[5, 1, 6], &[5, 1, 6]]),
            example(0.4, &[q, k, k, &[1, 2, 3, 7]]),
            example(0.4, &[q, k, k, &[2, 2, 3, 7]]),
            masked(example(0.4, &[q, k, k, &[2, 7]])),
            masked(example(0.4, &[q, k, k, &[2, 2, 3, 7], &[2, 7]])),
            // Draws of two keys leave some rows without any.
            masked(example(0.7, &[&[5, 1, 1, 3], &[5, 2, 1, 3], &[5, 2, 1, 3], &[5, 2]])),
            example(0.3, &[&[2, 3, 3, 1, 4], &[2, 3, 5, 1, 4], &[2, 3, 5, 1, 4], &[1, 3, 1, 3, 5]]),
            example(0.5, self_attention).of(DType::Bf16),
            masked(bf16.with_arg(3, bias)),
        ]
    }

    fn extra(args: &[&TensorType]) -> Result<Extra, Error> {
        let is_mask = |i: usize| args[i].dtype() == DType::Bool;
        match args.len() {
            3 => Ok(Extra { bias: None, key_mask: None }),
            4 if is_mask(3) => Ok(Extra { bias: None, key_mask: Some(3) }),
            4 => Ok(Extra { bias: Some(3), key_mask: None }),
            5 if is_mask(4) => Ok(Extra { bias: Some(3), key_mask: Some(4) }),
            5 => Err(Error::operand("attention", 4, args[4], "a bool key mask")),
            found => Err(Error::Arity { op: "attention", expected: "3 to 5".into(), found }),
        }
    }
}

impl OpDef for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("scale", Attr::Float(self.scale))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        let extra = Attention::extra(args)?;
        same_float("attention", &args[..3])?;
        if !self.scale.is_finite() {
            return Err(Error::attr("attention", format!("scale {} must be finite", self.scale)));
        }
        let [batch @ .., sq, h, d] = args[0].shape() else {
            return Err(Error::operand("attention", 0, args[0], "[batch.., Sq, H, D]"));
        };
        if args[1].rank() != args[0].rank() {
            let expected = format!("[batch.., Sk, H, D] of the rank of {}", args[0]);
            return Err(Error::operand("attention", 1, args[1], expected));
        }
        let sk = args[1].shape()[batch.len()];
        let keys = [batch, &[sk, *h, *d]].concat();
        shaped("attention", args, 1, &keys)?;
        shaped("attention", args, 2, &keys)?;
        if let Some(i) = extra.bias {
            float_or_f32("attention", args, i)?;
            let scores = [batch, &[*h, *sq, sk]].concat();
            let bias = args[i].shape();
            let fits = broadcast_shape(bias, &scores).as_ref() == Some(&scores)
                && bias[batch.len()..] == scores[batch.len()..];
            if !fits {
                let expected = format!("{scores:?}, batch dims equal or 1");
                return Err(Error::operand("attention", i, args[i], expected));
            }
        }
        if let Some(i) = extra.key_mask {
            shaped("attention", args, i, &[batch, &[sk]].concat())?;
        }
        Ok(args[0].clone())
    }

    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<Result<ValueId, Error>> {
        Some(self.build(b, args))
    }

    /// One op for all three, except where a bias wants a gradient: then that of the decomposition.
    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        out: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let types: Vec<&TensorType> = args.iter().map(|&arg| b.ty(arg)).collect();
        let extra = Attention::extra(&types)?;
        if extra.bias.is_some() {
            return Err(Error::NoGradient(self.name()));
        }
        let axis = types[0].rank() - 3;
        let [sq, sk] = [0, 1].map(|arg| types[arg].shape()[axis]);
        let mut operands = vec![args[0], args[1], args[2], out, grad];
        operands.extend(extra.key_mask.map(|i| args[i]));
        let all = b.op(AttentionGrad { scale: self.scale }, &operands)?;
        let mut grads = vec![None; args.len()];
        for (at, (start, len)) in [(0, sq), (sq, sk), (sq + sk, sk)].into_iter().enumerate() {
            grads[at] = Some(b.slice_axis(all, axis, start, start + len)?);
        }
        Ok(grads)
    }

    fn flops(&self, args: &[&TensorType], out: &TensorType) -> u64 {
        let axis = args[0].rank() - 3;
        let keys = args[1].shape()[axis] as u64;
        let d = args[0].shape()[axis + 2] as u64;
        let scores = (out.count() as u64 / d).saturating_mul(keys);
        // Two products of `d` terms each, the scale, five for the softmax, one for a bias.
        scores.saturating_mul(4 * d + 6 + u64::from(args.len() > 3))
    }
}

impl Attention {
    fn build(&self, b: &mut Builder, args: &[ValueId]) -> Result<ValueId, Error> {
        let types: Vec<&TensorType> = args.iter().map(|&arg| b.ty(arg)).collect();
        let extra = Attention::extra(&types)?;
        let dtype = types[0].dtype();
        let batch = types[0].rank() - 3;
        // [batch.., S, H, D] <-> [batch.., H, S, D]
        let mut heads_first: Vec<usize> = (0..batch + 3).collect();
        heads_first.swap(batch, batch + 1);
        let mut operands = [args[0], args[1], args[2]];
        for operand in &mut operands {
            *operand = b.cast(*operand, DType::F32)?;
            *operand = b.permute(*operand, &heads_first)?;
        }
        let [q, k, v] = operands;
        let scores = b.matmul(q, k, false, true)?;
        let mut scores = b.mul_scalar(scores, self.scale)?;
        if let Some(i) = extra.bias {
            let bias = b.cast(args[i], DType::F32)?;
            scores = b.add(scores, bias)?;
        }
        let weights = match extra.key_mask {
            None => b.softmax(scores, batch + 2)?,
            Some(i) => {
                let mut shape = b.shape(args[i]).to_vec();
                let keys = shape.remove(batch);
                shape.extend([1, 1, keys]);
                let mask = b.reshape(args[i], &shape)?;
                let masked = b.splat_like(scores, MASKED)?;
                let scores = b.select(mask, scores, masked)?;
                let weights = b.softmax(scores, batch + 2)?;
                let zero = b.splat_like(weights, 0.0)?;
                b.select(mask, weights, zero)?
            }
        };
        let out = b.matmul(weights, v, false, false)?;
        let out = b.permute(out, &heads_first)?;
        b.cast(out, dtype)
    }
}

impl Builder {
    /// Attention of `q` `[batch.., Sq, H, D]` over `k` and `v` `[batch.., Sk, H, D]`, with an
    /// optional `bias` `[batch or 1.., H, Sq, Sk]` on the scores and an optional bool `key_mask`
    /// `[batch.., Sk]`.
    pub fn attention(
        &mut self,
        [q, k, v]: [ValueId; 3],
        bias: Option<ValueId>,
        key_mask: Option<ValueId>,
        scale: f64,
    ) -> Result<ValueId, Error> {
        let args: Vec<ValueId> = [q, k, v].into_iter().chain(bias).chain(key_mask).collect();
        self.op(Attention { scale }, &args)
    }
}
