//! `stop_gradient`: the operand itself, through which no gradient passes. Any element type. A loss
//! takes a prediction as given with it; canonicalization drops it once gradients are appended.

use crate::op::arity;
use crate::{
    AttrReader, Builder, Class, DType, Error, Example, OpDef, Tensor, TensorType, Tolerance,
    ValueId,
};

/// `stop_gradient`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StopGradient;

impl StopGradient {
    /// From text.
    pub fn parse(attrs: AttrReader<'_>) -> Result<StopGradient, Error> {
        attrs.end().map(|()| StopGradient)
    }

    /// Even and odd sizes, other element types.
    pub fn examples() -> Vec<Example> {
        vec![
            Example::f32(StopGradient, &[&[2, 4]]),
            Example::f32(StopGradient, &[&[3, 1, 7]]),
            Example::f32(StopGradient, &[&[5]]).of(DType::Bf16),
            Example::f32(StopGradient, &[&[3, 5]]).of(DType::I32),
        ]
    }
}

impl OpDef for StopGradient {
    fn name(&self) -> &'static str {
        "stop_gradient"
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("stop_gradient", args, 1)?;
        Ok(args[0].clone())
    }

    fn class(&self) -> Class {
        Class::Movement
    }

    fn eval(&self, args: &[&Tensor], _: &TensorType) -> Tensor {
        args[0].clone()
    }

    fn vjp(
        &self,
        _: &mut Builder,
        _: &[ValueId],
        _: ValueId,
        _: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        Ok(vec![None])
    }

    fn flops(&self, _: &[&TensorType], _: &TensorType) -> u64 {
        0
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }
}

impl Builder {
    /// `x`, taken as given: gradients do not pass.
    pub fn stop_gradient(&mut self, x: ValueId) -> Result<ValueId, Error> {
        self.op(StopGradient, &[x])
    }
}
