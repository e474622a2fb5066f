//! `scatter_add {rows}` of operands `ids` (i64 or i32) `[index..]` and `x` (float)
//! `[index.., rest..]`: `[rows, rest..]`, where row `r` is the sum of `x[i]` over all `i` with
//! `ids[i] = r`, added in ascending `i`.
//!
//! Ids outside `0..rows` are left out. Gradient: `gather`, of which this is the gradient.

use crate::defs::gather::check_ids;
use crate::op::{arity, float};
use crate::{Attr, AttrReader, Builder, DType, Error, Example, OpDef, Tensor, TensorType, ValueId};

/// `scatter_add`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScatterAdd {
    /// Rows of the result.
    pub rows: usize,
}

impl ScatterAdd {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<ScatterAdd, Error> {
        let op = ScatterAdd { rows: attrs.index("rows")? };
        attrs.end().map(|()| op)
    }

    /// Rows, scalars, blocks; ids in and out of range; bf16.
    pub fn examples() -> Vec<Example> {
        let example = |rows: usize, ids: &[usize], x: &[usize], dtype: DType| {
            let example = Example::f32(ScatterAdd { rows }, &[ids, x]);
            let ids = example.args[0].with_dtype(dtype);
            example.with_arg(0, ids).in_range(0.0, (rows - 1) as f64)
        };
        let bf16 = example(3, &[7], &[7, 5], DType::I32);
        let x = bf16.args[1].with_dtype(DType::Bf16);
        vec![
            example(4, &[2, 3], &[2, 3, 4], DType::I64),
            example(5, &[3, 1], &[3, 1], DType::I32),
            example(3, &[9], &[9, 5], DType::I64).in_range(-2.0, 4.0),
            bf16.with_arg(1, x),
        ]
    }
}

impl OpDef for ScatterAdd {
    fn name(&self) -> &'static str {
        "scatter_add"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("rows", Attr::Int(self.rows as i64))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("scatter_add", args, 2)?;
        check_ids("scatter_add", args, 0)?;
        float("scatter_add", args, 1)?;
        let Some(rest) = args[1].shape().strip_prefix(args[0].shape()) else {
            let expected = format!("dims that begin with {:?}", args[0].shape());
            return Err(Error::operand("scatter_add", 1, args[1], expected));
        };
        args[1].with_shape([&[self.rows], rest].concat())
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let width: usize = out.shape()[1..].iter().product();
        let mut values = vec![0.0; out.count()];
        for (x, &id) in args[1].as_floats().chunks_exact(width).zip(args[0].as_ints()) {
            let Some(row) = usize::try_from(id).ok().filter(|&row| row < self.rows) else {
                continue;
            };
            let sums = &mut values[row * width..][..width];
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
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
        Ok(vec![None, Some(b.gather(grad, args[0])?)])
    }

    fn flops(&self, args: &[&TensorType], _: &TensorType) -> u64 {
        args[1].count() as u64
    }
}

impl Builder {
    /// Sums the rows of `x` `[index.., rest..]` into `[rows, rest..]` by `ids` `[index..]`.
    pub fn scatter_add(&mut self, ids: ValueId, x: ValueId, rows: usize) -> Result<ValueId, Error> {
        self.op(ScatterAdd { rows }, &[ids, x])
    }
}
