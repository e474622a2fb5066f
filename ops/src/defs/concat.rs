//! `concat {axis}` of one or more operands: joined along `axis`, in operand order. Element types
//! and all other dims are equal. Gradient: sliced apart.

use crate::op::check_axis;
use crate::{
    Attr, AttrReader, Builder, Class, DType, Error, Example, OpDef, Tensor, TensorType, Tolerance,
    ValueId,
};

/// `concat`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Concat {
    /// The axis that grows.
    pub axis: usize,
}

impl Concat {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<Concat, Error> {
        let op = Concat { axis: attrs.index("axis")? };
        attrs.end().map(|()| op)
    }

    /// Two and three operands, inner and outer axes, a single operand, other element types.
    pub fn examples() -> Vec<Example> {
        let example = |axis, shapes: &[&[usize]]| Example::f32(Concat { axis }, shapes);
        vec![
            example(0, &[&[2, 4], &[2, 4]]),
            example(1, &[&[3, 1, 5], &[3, 7, 5], &[3, 2, 5]]),
            example(2, &[&[2, 3, 1], &[2, 3, 4]]),
            example(0, &[&[3]]),
            example(1, &[&[3, 5], &[3, 2]]).of(DType::Bf16),
            example(1, &[&[3, 5], &[3, 2]]).of(DType::I64),
        ]
    }
}

impl OpDef for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("axis", Attr::Int(self.axis as i64))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        let Some(&first) = args.first() else {
            return Err(Error::Arity { op: "concat", expected: "1 or more".into(), found: 0 });
        };
        check_axis("concat", self.axis, first)?;
        let mut shape = first.shape().to_vec();
        for (i, arg) in args.iter().enumerate().skip(1) {
            let fits = arg.rank() == shape.len()
                && arg.dtype() == first.dtype()
                && (0..shape.len())
                    .all(|axis| axis == self.axis || arg.shape()[axis] == shape[axis]);
            if !fits {
                let expected = format!("{first}, but for axis {}", self.axis);
                return Err(Error::operand("concat", i, arg, expected));
            }
            shape[self.axis] = shape[self.axis].saturating_add(arg.shape()[self.axis]);
        }
        first.with_shape(shape)
    }

    fn class(&self) -> Class {
        Class::Movement
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let outer: usize = out.shape()[..self.axis].iter().product();
        let run = |arg: &Tensor| arg.shape()[self.axis..].iter().product::<usize>();
        if out.dtype().is_float() {
            let mut values = Vec::with_capacity(out.count());
            for i in 0..outer {
                for arg in args {
                    values.extend_from_slice(&arg.as_floats()[i * run(arg)..][..run(arg)]);
                }
            }
            return Tensor::floats(out.clone(), values);
        }
        let mut values = Vec::with_capacity(out.count());
        for i in 0..outer {
            for arg in args {
                values.extend_from_slice(&arg.as_ints()[i * run(arg)..][..run(arg)]);
            }
        }
        Tensor::ints(out.clone(), values)
    }

    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        _: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let mut start = 0;
        let mut grads = Vec::with_capacity(args.len());
        for &arg in args {
            let stop = start + b.shape(arg)[self.axis];
            grads.push(Some(b.slice_axis(grad, self.axis, start, stop)?));
            start = stop;
        }
        Ok(grads)
    }

    fn flops(&self, _: &[&TensorType], _: &TensorType) -> u64 {
        0
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }
}

impl Builder {
    /// Joins `xs` along `axis`; a single value is returned as it is.
    pub fn concat(&mut self, xs: &[ValueId], axis: usize) -> Result<ValueId, Error> {
        if let [x] = xs {
            check_axis("concat", axis, self.ty(*x))?;
            return Ok(*x);
        }
        self.op(Concat { axis }, xs)
    }
}
