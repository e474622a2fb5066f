//! `select` of operands `cond` (bool), `x`, `y`: `x` where `cond`, else `y`.
//!
//! `x` and `y` have one element type; all three broadcast as elementwise ops of two operands do.
//! Gradient: `grad` where chosen, 0 elsewhere, summed over what was broadcast.

use crate::defs::broadcast::{broadcast_index, broadcast_shape, sum_to};
use crate::op::arity;
use crate::{
    AttrReader, Builder, Class, DType, Data, Error, Example, OpDef, Tensor, TensorType, Tolerance,
    ValueId,
};

/// `select`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Select;

impl Select {
    /// From text.
    pub fn parse(attrs: AttrReader<'_>) -> Result<Select, Error> {
        attrs.end().map(|()| Select)
    }

    /// Equal shapes; each operand broadcast; integers.
    pub fn examples() -> Vec<Example> {
        let example = |shapes: [&[usize]; 3], dtype: DType| {
            let example = Example::f32(Select, &shapes).of(dtype);
            let cond = example.args[0].with_dtype(DType::Bool);
            example.with_arg(0, cond)
        };
        vec![
            example([&[2, 3], &[2, 3], &[2, 3]], DType::F32),
            example([&[3, 1, 5], &[3, 7, 5], &[1, 1, 1]], DType::F32),
            example([&[3, 7], &[1, 7], &[3, 1]], DType::Bf16),
            example([&[3, 5], &[3, 5], &[1, 1]], DType::I32),
        ]
    }
}

impl OpDef for Select {
    fn name(&self) -> &'static str {
        "select"
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("select", args, 3)?;
        let [cond, x, y] = [args[0], args[1], args[2]];
        if cond.dtype() != DType::Bool {
            return Err(Error::operand("select", 0, cond, "bool"));
        }
        let Some(shape) = broadcast_shape(cond.shape(), x.shape()) else {
            let expected = format!("dims equal to those of {cond}, or 1");
            return Err(Error::operand("select", 1, x, expected));
        };
        let both = broadcast_shape(&shape, y.shape()).filter(|_| x.dtype() == y.dtype());
        let Some(shape) = both else {
            let expected = format!("{} with dims equal to {shape:?}, or 1", x.dtype());
            return Err(Error::operand("select", 2, y, expected));
        };
        x.with_shape(shape)
    }

    fn class(&self) -> Class {
        Class::Elementwise
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let index = |arg: usize| broadcast_index(args[arg].shape(), out.shape());
        let (cond, x, y) = (index(0), index(1), index(2));
        let chosen = |i: usize| args[0].as_ints()[cond(i)] != 0;
        let n = 0..out.count();
        match (args[1].data(), args[2].data()) {
            (Data::Float(xs), Data::Float(ys)) => {
                let value = |i| if chosen(i) { xs[x(i)] } else { ys[y(i)] };
                Tensor::floats(out.clone(), n.map(value).collect())
            }
            _ => {
                let (xs, ys) = (args[1].as_ints(), args[2].as_ints());
                let value = |i| if chosen(i) { xs[x(i)] } else { ys[y(i)] };
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
        let zero = b.splat_like(grad, 0.0)?;
        let dx = b.select(args[0], grad, zero)?;
        let dy = b.select(args[0], zero, grad)?;
        Ok(vec![None, Some(sum_to(b, dx, args[1])?), Some(sum_to(b, dy, args[2])?)])
    }

    fn flops(&self, _: &[&TensorType], _: &TensorType) -> u64 {
        0
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }
}

impl Builder {
    /// `x` where `cond`, else `y`.
    pub fn select(&mut self, cond: ValueId, x: ValueId, y: ValueId) -> Result<ValueId, Error> {
        self.op(Select, &[cond, x, y])
    }
}
