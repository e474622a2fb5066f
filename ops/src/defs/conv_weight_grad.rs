//! `conv_weight_grad {stride, pad_low, pad_high, shape}`: the gradient of `conv` with respect to its
//! weight, of `shape`.
//!
//! Operands: `x` `[N, spatial.., C]`, `grad` `[N, spatial'.., O]`; result `[O, C, kernel..]`. Being
//! linear in both, its own gradients are `conv_input_grad` and `conv`.

use crate::defs::conv::Window;
use crate::op::{arity, ints, same_float};
use crate::{Attr, AttrReader, Builder, Error, Example, OpDef, Tensor, TensorType, ValueId};

/// `conv_weight_grad`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConvWeightGrad {
    /// The window of the convolution.
    pub window: Window,
    /// The shape of the convolution's weight.
    pub shape: Vec<usize>,
}

impl ConvWeightGrad {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<ConvWeightGrad, Error> {
        let op =
            ConvWeightGrad { window: Window::parse(&mut attrs)?, shape: attrs.indices("shape")? };
        attrs.end().map(|()| op)
    }

    /// All window cases, one of them in bf16 too.
    pub fn examples() -> Vec<Example> {
        Window::examples(|window, [x, weight, grad]| {
            Example::f32(ConvWeightGrad { window, shape: weight.to_vec() }, &[x, grad])
        })
    }
}

impl OpDef for ConvWeightGrad {
    fn name(&self) -> &'static str {
        "conv_weight_grad"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        let mut attrs = self.window.attrs();
        attrs.push(("shape", ints(&self.shape)));
        attrs
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("conv_weight_grad", args, 2)?;
        same_float("conv_weight_grad", args)?;
        let weight = args[0]
            .with_shape(self.shape.clone())
            .map_err(|error| Error::attr("conv_weight_grad", error.to_string()))?;
        let grad = self.window.infer("conv_weight_grad", args[0], &weight)?;
        if grad != *args[1] {
            return Err(Error::operand("conv_weight_grad", 1, args[1], grad.to_string()));
        }
        Ok(weight)
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let (x, g) = (args[0], args[1]);
        let [o, c] = [out.shape()[0], out.shape()[1]];
        let taps: usize = out.shape()[2..].iter().product();
        let (xs, gs) = (x.as_floats(), g.as_floats());
        let mut values = vec![0.0; out.count()];
        self.window.for_each_tap(x.shape(), out.shape(), g.shape(), |xp, op, tap| {
            for i in 0..o {
                for j in 0..c {
                    values[(i * c + j) * taps + tap] += xs[xp * c + j] * gs[op * o + i];
                }
            }
        });
        Tensor::floats(out.clone(), values)
    }

    fn vjp(
        &self,
        b: &mut Builder,
        args: &[ValueId],
        _: ValueId,
        grad: ValueId,
    ) -> Result<Vec<Option<ValueId>>, Error> {
        let x_shape = b.shape(args[0]).to_vec();
        let dx = b.conv_input_grad(args[1], grad, &self.window, &x_shape)?;
        let dg = b.conv(args[0], grad, &self.window)?;
        Ok(vec![Some(dx), Some(dg)])
    }

    fn flops(&self, args: &[&TensorType], out: &TensorType) -> u64 {
        Window::flops(out.shape(), args[1].shape())
    }
}

impl Builder {
    /// The gradient of `conv(x, weight)` with respect to `weight`, which has `shape`.
    pub fn conv_weight_grad(
        &mut self,
        x: ValueId,
        grad: ValueId,
        window: &Window,
        shape: &[usize],
    ) -> Result<ValueId, Error> {
        let op = ConvWeightGrad { window: window.clone(), shape: shape.to_vec() };
        self.op(op, &[x, grad])
    }
}
