//! `gather` of operands `table` `[V, rest..]` and `ids` (i64 or i32) `[index..]`: row `ids[i]` of the
//! table for each `i`, as `[index.., rest..]`.
//!
//! Ids outside `0..V` are the caller's mistake, which shapes cannot show; they give rows of zeros,
//! so that every id has a defined result. Gradient: `scatter_add` into the table.

use crate::op::arity;
use crate::{
    AttrReader, Builder, Class, DType, Data, Error, Example, OpDef, Tensor, TensorType, Tolerance,
    ValueId,
};

/// `gather`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gather;

impl Gather {
    /// From text.
    pub fn parse(attrs: AttrReader<'_>) -> Result<Gather, Error> {
        attrs.end().map(|()| Gather)
    }

    /// Rows, scalars, blocks; ids in and out of range; other element types.
    pub fn examples() -> Vec<Example> {
        let example = |table: &[usize], ids: &[usize], dtype: DType| {
            let example = Example::f32(Gather, &[table, ids]);
            let ids = example.args[1].with_dtype(dtype);
            example.with_arg(1, ids).in_range(0.0, (table[0] - 1) as f64)
        };
        let bf16 = example(&[5, 3], &[7], DType::I32);
        let table = bf16.args[0].with_dtype(DType::Bf16);
        vec![
            example(&[4, 8], &[2, 3], DType::I64),
            example(&[5], &[3, 1], DType::I32),
            example(&[3, 5, 7], &[2], DType::I64),
            example(&[3, 5], &[], DType::I64),
            example(&[3, 5], &[9], DType::I64).in_range(-2.0, 4.0),
            bf16.with_arg(0, table),
        ]
    }
}

/// Fails unless operand `operand` holds ids.
pub(crate) fn check_ids(
    op: &'static str,
    args: &[&TensorType],
    operand: usize,
) -> Result<(), Error> {
    if matches!(args[operand].dtype(), DType::I64 | DType::I32) {
        return Ok(());
    }
    Err(Error::operand(op, operand, args[operand], "i64 or i32 ids"))
}

impl OpDef for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("gather", args, 2)?;
        check_ids("gather", args, 1)?;
        let Some((_, rest)) = args[0].shape().split_first() else {
            return Err(Error::operand("gather", 0, args[0], "[V, rest..]"));
        };
        args[0].with_shape([args[1].shape(), rest].concat())
    }

    fn class(&self) -> Class {
        Class::Structured
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let rows = args[0].shape()[0];
        let width: usize = args[0].shape()[1..].iter().product();
        let ids = args[1].as_ints();
        let source = |i: usize| {
            let row = usize::try_from(ids[i / width]).ok().filter(|&row| row < rows)?;
            Some(row * width + i % width)
        };
        let n = 0..out.count();
        match args[0].data() {
            Data::Float(values) => {
                let value = |i| source(i).map_or(0.0, |j| values[j]);
                Tensor::floats(out.clone(), n.map(value).collect())
            }
            Data::Int(values) => {
                let value = |i| source(i).map_or(0, |j| values[j]);
                Tensor::ints(out.clone(), n.map(value).collect())
            }
        }
    }

    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        _: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let rows = b.shape(args[0])[0];
        Ok(vec![Some(b.scatter_add(args[1], grad, rows)?), None])
    }

    fn flops(&self, _: &[&TensorType], _: &TensorType) -> u64 {
        0
    }

    fn bytes(&self, args: &[&TensorType], out: &TensorType) -> u64 {
        // Only the rows that are asked for are read.
        (args[1].bytes() + 2 * out.bytes()) as u64
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }
}

impl Builder {
    /// Row `ids[i]` of `table` `[V, rest..]` for each `i`; zeros for ids outside the table.
    pub fn gather(&mut self, table: ValueId, ids: ValueId) -> Result<ValueId, Error> {
        self.op(Gather, &[table, ids])
    }
}
