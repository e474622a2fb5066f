//! `cast {dtype}`: the same values in another element type.
//!
//! Float to float rounds to nearest, ties to even; float to integer truncates and saturates (NaN
//! gives 0); integer to integer keeps the low bits; anything to bool is `x != 0`. Gradient: cast
//! back; none through integers.

use crate::op::arity;
use crate::{
    Attr, AttrReader, Builder, Class, DType, Data, Error, Example, OpDef, Tensor, TensorType,
    Tolerance, ValueId,
};

/// `cast`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cast {
    /// The result's element type.
    pub dtype: DType,
}

impl Cast {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<Cast, Error> {
        let op = Cast { dtype: attrs.dtype("dtype")? };
        attrs.end().map(|()| op)
    }

    /// Every pair of element types.
    pub fn examples() -> Vec<Example> {
        let mut all = Vec::new();
        for from in DType::ALL {
            for dtype in DType::ALL {
                let shape: &[usize] = if from.is_float() { &[2, 4] } else { &[3, 5] };
                all.push(Example::f32(Cast { dtype }, &[shape]).of(from));
            }
        }
        all
    }
}

impl OpDef for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("dtype", Attr::DType(self.dtype))]
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("cast", args, 1)?;
        Ok(args[0].with_dtype(self.dtype))
    }

    fn class(&self) -> Class {
        Class::Elementwise
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        match (args[0].data(), self.dtype.is_float()) {
            (Data::Float(values), true) => Tensor::floats(out.clone(), values.clone()),
            (Data::Float(values), false) => {
                let truncate = |&x: &f64| match self.dtype {
                    DType::I32 => i64::from(x as i32),
                    DType::U8 => i64::from(x as u8),
                    DType::Bool => i64::from(x != 0.0),
                    DType::I64 | DType::F32 | DType::F16 | DType::Bf16 => x as i64,
                };
                Tensor::ints(out.clone(), values.iter().map(truncate).collect())
            }
            (Data::Int(values), true) => {
                Tensor::floats(out.clone(), values.iter().map(|&x| x as f64).collect())
            }
            (Data::Int(values), false) => Tensor::ints(out.clone(), values.clone()).rounded(),
        }
    }

    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        _: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let dtype = b.ty(args[0]).dtype();
        if !dtype.is_float() || !self.dtype.is_float() {
            return Ok(vec![None]);
        }
        Ok(vec![Some(b.cast(grad, dtype)?)])
    }

    fn flops(&self, _: &[&TensorType], _: &TensorType) -> u64 {
        0
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }
}

impl Builder {
    /// `x` as `dtype`; `x` itself where it has that type.
    pub fn cast(&mut self, x: ValueId, dtype: DType) -> Result<ValueId, Error> {
        if self.ty(x).dtype() == dtype {
            return Ok(x);
        }
        self.op(Cast { dtype }, &[x])
    }
}
