//! `conv_input_grad {stride, pad_low, pad_high, shape}`: the gradient of `conv` with respect to its
//! first operand, of `shape`.
//!
//! Operands: `grad` `[N, spatial'.., O]`, `weight` `[O, C, kernel..]`; result `[N, spatial.., C]`.
//! Being linear in both, its own gradients are `conv` and `conv_weight_grad`.

use crate::defs::conv::Window;
use crate::op::{arity, ints, same_float};
use crate::{Attr, AttrReader, Builder, Error, Example, OpDef, Tensor, TensorType, ValueId};

/// `conv_input_grad`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConvInputGrad {
    /// The window of the convolution.
    pub window: Window,
    /// The shape of the convolution's first operand.
    pub shape: Vec<usize>,
}

impl ConvInputGrad {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<ConvInputGrad, Error> {
        let op =
            ConvInputGrad { window: Window::parse(&mut attrs)?, shape: attrs.indices("shape")? };
        attrs.end().map(|()| op)
    }

    /// All window cases, one of them in bf16 too.
    pub fn examples() -> Vec<Example> {
        Window::examples(|window, [x, weight, grad]| {
            Example::f32(ConvInputGrad { window, shape: x.to_vec() }, &[grad, weight])
        })
    }
}

impl OpDef for ConvInputGrad {
    fn name(&self) -> &'static str {
        "conv_input_grad"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        let mut attrs = self.window.attrs();
        attrs.push(("shape", ints(&self.shape)));
        attrs
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("conv_input_grad", args, 2)?;
        same_float("conv_input_grad", args)?;
        let x = args[0]
            .with_shape(self.shape.clone())
            .map_err(|error| Error::attr("conv_input_grad", error.to_string()))?;
        let grad = self.window.infer("conv_input_grad", &x, args[1])?;
        if grad != *args[0] {
            return Err(Error::operand("conv_input_grad", 0, args[0], grad.to_string()));
        }
        Ok(x)
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let (g, w) = (args[0], args[1]);
        let [o, c] = [w.shape()[0], w.shape()[1]];
        let taps: usize = w.shape()[2..].iter().product();
        let (gs, ws) = (g.as_floats(), w.as_floats());
        let mut values = vec![0.0; out.count()];
        self.window.for_each_tap(out.shape(), w.shape(), g.shape(), |xp, op, tap| {
            for j in 0..c {
                let term = |i| gs[op * o + i] * ws[(i * c + j) * taps + tap];
                values[xp * c + j] += (0..o).map(term).sum::<f64>();
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
        let weight_shape = b.shape(args[1]).to_vec();
        let dg = b.conv(grad, args[1], &self.window)?;
        let dw = b.conv_weight_grad(grad, args[0], &self.window, &weight_shape)?;
        Ok(vec![Some(dg), Some(dw)])
    }

    fn flops(&self, args: &[&TensorType], _: &TensorType) -> u64 {
        Window::flops(args[1].shape(), args[0].shape())
    }
}

impl Builder {
    /// The gradient of `conv(x, weight)` with respect to `x`, which has `shape`.
    pub fn conv_input_grad(
        &mut self,
        grad: ValueId,
        weight: ValueId,
        window: &Window,
        shape: &[usize],
    ) -> Result<ValueId, Error> {
        let op = ConvInputGrad { window: window.clone(), shape: shape.to_vec() };
        self.op(op, &[grad, weight])
    }
}
