//! `matmul {transpose_a, transpose_b}`: `out[.., m, n] = sum over k of a[.., m, k] * b[.., k, n]`.
//!
//! `a` is `[batch.., M, K]`, or `[batch.., K, M]` with `transpose_a`; `b` is `[batch.., K, N]`, or
//! `[batch.., N, K]` with `transpose_b`. Ranks are equal and batch dims equal or 1 (repeated), or
//! `b` has rank 2 and serves every batch: with `transpose_b` that is a linear layer with a weight
//! of `[out, in]`. All operands have one float type, which is the result's; kernels accumulate in
//! f32. Gradient: two products, summed over what was repeated.

use crate::defs::broadcast::{broadcast_index, broadcast_shape, sum_to};
use crate::op::{arity, same_float};
use crate::{Attr, AttrReader, Builder, DType, Error, Example, OpDef, Tensor, TensorType, ValueId};

/// `matmul`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Matmul {
    /// Whether the rows of `a` run along K.
    pub transpose_a: bool,
    /// Whether the rows of `b` run along N.
    pub transpose_b: bool,
}

impl Matmul {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<Matmul, Error> {
        let op = Matmul {
            transpose_a: attrs.bool("transpose_a")?,
            transpose_b: attrs.bool("transpose_b")?,
        };
        attrs.end().map(|()| op)
    }

    /// All transposes; linear layers on more axes; batches equal and repeated; single rows.
    pub fn examples() -> Vec<Example> {
        let example = |transpose_a, transpose_b, a: &[usize], b: &[usize]| {
            Example::f32(Matmul { transpose_a, transpose_b }, &[a, b])
        };
        vec![
            example(false, false, &[4, 8], &[8, 4]),
            example(false, true, &[3, 5], &[7, 5]),
            example(true, false, &[5, 3], &[5, 7]),
            example(true, true, &[5, 3], &[7, 5]),
            example(false, true, &[2, 3, 5], &[7, 5]),
            example(true, false, &[2, 5, 3], &[5, 7]),
            example(true, true, &[2, 5, 3], &[7, 5]),
            example(false, false, &[2, 3, 5, 7], &[2, 3, 7, 1]),
            example(false, true, &[2, 1, 3, 5], &[1, 3, 7, 5]),
            example(false, true, &[1, 9], &[17, 9]),
            example(false, true, &[3, 8], &[5, 8]).of(DType::Bf16),
            example(false, false, &[2, 3, 5], &[2, 5, 3]).of(DType::F16),
        ]
    }

    /// `[M, N, K]` of one product, and the batch dims of the result; `None` where shapes disagree.
    pub fn dims(&self, a: &[usize], b: &[usize]) -> Option<([usize; 3], Vec<usize>)> {
        if a.len() < 2 || b.len() < 2 {
            return None;
        }
        let (a_batch, a) = a.split_at(a.len() - 2);
        let (b_batch, b) = b.split_at(b.len() - 2);
        let [m, k] = if self.transpose_a { [a[1], a[0]] } else { [a[0], a[1]] };
        let [b_k, n] = if self.transpose_b { [b[1], b[0]] } else { [b[0], b[1]] };
        let batch =
            if b_batch.is_empty() { a_batch.to_vec() } else { broadcast_shape(a_batch, b_batch)? };
        (k == b_k).then_some(([m, n, k], batch))
    }
}

impl OpDef for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("transpose_a", Attr::Bool(self.transpose_a)),
            ("transpose_b", Attr::Bool(self.transpose_b)),
        ]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("matmul", args, 2)?;
        same_float("matmul", args)?;
        if args[0].rank() < 2 {
            return Err(Error::operand("matmul", 0, args[0], "rank 2 or more"));
        }
        let Some(([m, n, _], mut shape)) = self.dims(args[0].shape(), args[1].shape()) else {
            let row = if self.transpose_a { 0 } else { 1 };
            let k = args[0].shape()[args[0].rank() - 2 + row];
            let expected =
                if self.transpose_b { format!("[.., N, {k}]") } else { format!("[.., {k}, N]") };
            let expected = format!("{expected} of rank 2, or with the batch dims of {}", args[0]);
            return Err(Error::operand("matmul", 1, args[1], expected));
        };
        shape.extend([m, n]);
        args[0].with_shape(shape)
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let (a, b) = (args[0].as_floats(), args[1].as_floats());
        let ([m, n, k], batch) =
            self.dims(args[0].shape(), args[1].shape()).expect("infer checked the shapes");
        let a_batch = broadcast_index(&args[0].shape()[..batch.len()], &batch);
        let b_dims = if args[1].shape().len() == 2 {
            vec![1; batch.len()]
        } else {
            args[1].shape()[..batch.len()].to_vec()
        };
        let b_batch = broadcast_index(&b_dims, &batch);
        let (a_row, a_col) = if self.transpose_a { (1, m) } else { (k, 1) };
        let (b_row, b_col) = if self.transpose_b { (1, k) } else { (n, 1) };
        let mut values = Vec::with_capacity(out.count());
        for i in 0..batch.iter().product() {
            let a = &a[a_batch(i) * m * k..][..m * k];
            let b = &b[b_batch(i) * k * n..][..k * n];
            for row in 0..m {
                for col in 0..n {
                    let term = |j| a[row * a_row + j * a_col] * b[j * b_row + col * b_col];
                    values.push((0..k).map(term).sum());
                }
            }
        }
        Tensor::floats(out.clone(), values)
    }

    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        _: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let [x, y] = [args[0], args[1]];
        let (ta, tb) = (self.transpose_a, self.transpose_b);
        let rank = b.ty(x).rank();
        // A rank-2 `b` under batches, as an operand that a batched product takes on the left.
        let mut wide = vec![1; rank - b.ty(y).rank()];
        wide.extend(b.shape(y));
        let dx = if ta {
            let y = b.reshape(y, &wide)?;
            b.matmul(y, grad, tb, true)?
        } else {
            b.matmul(grad, y, false, !tb)?
        };
        let dx = sum_to(b, dx, x)?;
        // Without batches in `b` and with rows in order, all batches are rows of one product.
        let shared = b.ty(y).rank() < rank;
        let (x, grad) = if shared && !ta { (flatten(b, x)?, flatten(b, grad)?) } else { (x, grad) };
        let dy = if tb { b.matmul(grad, x, true, ta)? } else { b.matmul(x, grad, !ta, false)? };
        let dy = if shared && ta {
            let batches: Vec<usize> = (0..rank - 2).collect();
            let dy = b.reduce_sum(dy, &batches)?;
            let shape = b.shape(y).to_vec();
            b.reshape(dy, &shape)?
        } else {
            sum_to(b, dy, y)?
        };
        Ok(vec![Some(dx), Some(dy)])
    }

    fn flops(&self, args: &[&TensorType], out: &TensorType) -> u64 {
        let rank = args[0].rank();
        let k = args[0].shape()[if self.transpose_a { rank - 2 } else { rank - 1 }];
        (out.count() as u64).saturating_mul(2 * k as u64)
    }
}

/// `[.., K]` to `[rows, K]`.
fn flatten(b: &mut Builder, x: ValueId) -> Result<ValueId, Error> {
    let k = b.shape(x)[b.ty(x).rank() - 1];
    let rows = b.ty(x).count() / k;
    b.reshape(x, &[rows, k])
}

impl Builder {
    /// The product of `x` and `y` over their last two axes, each transposed first if asked.
    pub fn matmul(
        &mut self,
        x: ValueId,
        y: ValueId,
        transpose_a: bool,
        transpose_b: bool,
    ) -> Result<ValueId, Error> {
        self.op(Matmul { transpose_a, transpose_b }, &[x, y])
    }

    /// A linear layer: `x` `[.., in]`, `weight` `[out, in]`, `bias` `[out]`.
    pub fn linear(
        &mut self,
        x: ValueId,
        weight: ValueId,
        bias: Option<ValueId>,
    ) -> Result<ValueId, Error> {
        let y = self.matmul(x, weight, false, true)?;
        let Some(bias) = bias else { return Ok(y) };
        let mut shape = vec![1; self.ty(y).rank() - 1];
        shape.push(self.ty(bias).count());
        let bias = self.reshape(bias, &shape)?;
        self.add(y, bias)
    }
}
