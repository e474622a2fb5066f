//! `attention_grad {scale}`: the gradients of `attention` by queries, keys and values at once, because they
//! share the weights.
//!
//! Operands: `q` `[batch.., Sq, H, D]`, `k` and `v` `[batch.., Sk, H, D]`, the attention's result `out` and its
//! cotangent `grad`, both like `q`, all of one float type; then optionally a bool `key_mask` `[batch.., Sk]`.
//! The result `[batch.., Sq + 2 Sk, H, D]` has the gradients one after the other along the sequence. With
//! weights `P = softmax(scale q . k)`: `dv = P' grad`, `dS = scale P (grad v' - rowsum(grad out))`, `dq = dS k`,
//! `dk = dS' q` (Dao et al., `FlashAttention`, algorithm 4). Keys that are masked have zeros. Composite, computed
//! in f32 for half types. Kernels recognize it whole and never hold weights of `[Sq, Sk]`.

use crate::op::{same_float, shaped};
use crate::{Attr, AttrReader, Builder, DType, Error, Example, OpDef, TensorType, ValueId};

use super::attention::MASKED;

/// `attention_grad`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AttentionGrad {
    /// Factor of `q . k`; finite.
    pub scale: f64,
}

impl AttentionGrad {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<AttentionGrad, Error> {
        let op = AttentionGrad { scale: attrs.float("scale")? };
        attrs.end().map(|()| op)
    }

    /// Self and cross, masked, no batch, two batch axes, a negative scale, bf16.
    pub fn examples() -> Vec<Example> {
        let example = |scale, q: &[usize], k: &[usize]| {
            Example::f32(AttentionGrad { scale }, &[q, k, k, q, q])
        };
        let masked = |mut example: Example| {
            let keys = example.args[1].shape();
            let mask = keys[..keys.len() - 2].to_vec();
            example.args.push(TensorType::new(DType::Bool, mask).expect("examples are small"));
            example
        };
        let (q, k): (&[usize], &[usize]) = (&[2, 3, 2, 5], &[2, 7, 2, 5]);
        vec![
            example(0.5, &[2, 4, 2, 4], &[2, 4, 2, 4]),
            example(0.4, q, k),
            example(-0.4, q, k),
            example(1.0, &[3, 1, 6], &[5, 1, 6]),
            masked(example(0.4, q, k)),
            // Draws of two keys leave some rows without any.
            masked(example(0.7, &[5, 1, 1, 3], &[5, 2, 1, 3])),
            example(0.3, &[2, 3, 3, 1, 4], &[2, 3, 5, 1, 4]),
            example(0.4, q, k).of(DType::Bf16),
        ]
    }
}

impl OpDef for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention_grad"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("scale", Attr::Float(self.scale))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        if !(5..=6).contains(&args.len()) {
            let (op, expected, found) = ("attention_grad", "5 or 6".into(), args.len());
            return Err(Error::Arity { op, expected, found });
        }
        same_float("attention_grad", &args[..5])?;
        if !self.scale.is_finite() {
            let reason = format!("scale {} must be finite", self.scale);
            return Err(Error::attr("attention_grad", reason));
        }
        let [batch @ .., sq, h, d] = args[0].shape() else {
            return Err(Error::operand("attention_grad", 0, args[0], "[batch.., Sq, H, D]"));
        };
        if args[1].rank() != args[0].rank() {
            let expected = format!("[batch.., Sk, H, D] of the rank of {}", args[0]);
            return Err(Error::operand("attention_grad", 1, args[1], expected));
        }
        let sk = args[1].shape()[batch.len()];
        let keys = [batch, &[sk, *h, *d]].concat();
        for (at, shape) in [(1, &keys[..]), (2, &keys), (3, args[0].shape()), (4, args[0].shape())]
        {
            shaped("attention_grad", args, at, shape)?;
        }
        if args.len() == 6 {
            shaped("attention_grad", args, 5, &[batch, &[sk]].concat())?;
            if args[5].dtype() != DType::Bool {
                return Err(Error::operand("attention_grad", 5, args[5], "a bool key mask"));
            }
        }
        TensorType::new(args[0].dtype(), [batch, &[sq + 2 * sk, *h, *d]].concat())
    }

    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<Result<ValueId, Error>> {
        Some(self.build(b, args))
    }

    fn flops(&self, args: &[&TensorType], _: &TensorType) -> u64 {
        let axis = args[0].rank() - 3;
        let keys = args[1].shape()[axis] as u64;
        let d = args[0].shape()[axis + 2] as u64;
        let scores = (args[0].count() as u64 / d).saturating_mul(keys);
        // Five products of `d` terms each, the scale, five for the softmax, three for `dS`.
        scores.saturating_mul(10 * d + 9)
    }
}

impl AttentionGrad {
    fn build(&self, b: &mut Builder, args: &[ValueId]) -> Result<ValueId, Error> {
        let dtype = b.ty(args[0]).dtype();
        let batch = b.ty(args[0]).rank() - 3;
        // [batch.., S, H, D] <-> [batch.., H, S, D]
        let mut heads_first: Vec<usize> = (0..batch + 3).collect();
        heads_first.swap(batch, batch + 1);
        let mut operands = [args[0], args[1], args[2], args[3], args[4]];
        for operand in &mut operands {
            *operand = b.cast(*operand, DType::F32)?;
            *operand = b.permute(*operand, &heads_first)?;
        }
        let [q, k, v, out, grad] = operands;
        let scores = b.matmul(q, k, false, true)?;
        let scores = b.mul_scalar(scores, self.scale)?;
        let weights = match args.get(5) {
            None => b.softmax(scores, batch + 2)?,
            Some(&mask) => {
                let mut shape = b.shape(mask).to_vec();
                let keys = shape.remove(batch);
                shape.extend([1, 1, keys]);
                let mask = b.reshape(mask, &shape)?;
                let masked = b.splat_like(scores, MASKED)?;
                let scores = b.select(mask, scores, masked)?;
                let weights = b.softmax(scores, batch + 2)?;
                let zero = b.splat_like(weights, 0.0)?;
                b.select(mask, weights, zero)?
            }
        };
        let product = b.mul(grad, out)?;
        let sums = b.reduce_sum(product, &[batch + 2])?;
        let by_weights = b.matmul(grad, v, false, true)?;
        let by_scores = b.sub(by_weights, sums)?;
        let by_scores = b.mul(weights, by_scores)?;
        let by_scores = b.mul_scalar(by_scores, self.scale)?;
        let by_q = b.matmul(by_scores, k, false, false)?;
        let by_k = b.matmul(by_scores, q, true, false)?;
        let by_v = b.matmul(weights, grad, true, false)?;
        let all = b.concat(&[by_q, by_k, by_v], batch + 1)?;
        let all = b.permute(all, &heads_first)?;
        b.cast(all, dtype)
    }
}
