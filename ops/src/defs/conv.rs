//! `conv {stride, pad_low, pad_high}`: `out[n, p, o] = sum over t, c of
//! x[n, p * stride + t - pad_low, c] * weight[o, c, t]`, with zeros outside `x`.
//!
//! `x` is `[N, spatial.., C]` (channels last), `weight` `[O, C, kernel..]` (as checkpoints store
//! it), the result `[N, spatial'.., O]` with `spatial' = (spatial + pad_low + pad_high - kernel) /
//! stride + 1`, rounded down; 1 to 3 spatial axes. All operands have one float type, which is the
//! result's; kernels accumulate in f32. Gradients: `conv_input_grad` and `conv_weight_grad`; the
//! three are the gradients of each other, being linear in each operand.

use crate::op::{arity, check_per_axis, ints, same_float};
use crate::{Attr, AttrReader, Builder, DType, Error, Example, OpDef, Tensor, TensorType, ValueId};

/// `conv`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conv {
    /// Where the window stands.
    pub window: Window,
}

/// How the window of a convolution moves: one entry per spatial axis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    /// Distance between positions, at least 1.
    pub stride: Vec<usize>,
    /// Zeros before the first element.
    pub pad_low: Vec<usize>,
    /// Zeros after the last element.
    pub pad_high: Vec<usize>,
}

impl Window {
    /// A window that moves by `stride` over zeros `pad_low` and `pad_high`.
    pub fn new(stride: &[usize], pad_low: &[usize], pad_high: &[usize]) -> Window {
        let [stride, pad_low, pad_high] = [stride, pad_low, pad_high].map(<[usize]>::to_vec);
        Window { stride, pad_low, pad_high }
    }

    pub(crate) fn parse(attrs: &mut AttrReader<'_>) -> Result<Window, Error> {
        Ok(Window {
            stride: attrs.indices("stride")?,
            pad_low: attrs.indices("pad_low")?,
            pad_high: attrs.indices("pad_high")?,
        })
    }

    pub(crate) fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("stride", ints(&self.stride)),
            ("pad_low", ints(&self.pad_low)),
            ("pad_high", ints(&self.pad_high)),
        ]
    }

    /// The result's shape for `x` `[N, spatial.., C]` and `weight` `[O, C, kernel..]`, or what is
    /// wrong with them, for `op`.
    pub(crate) fn infer(
        &self,
        op: &'static str,
        x: &TensorType,
        weight: &TensorType,
    ) -> Result<TensorType, Error> {
        let spatial = x.rank().saturating_sub(2);
        if !(1..=3).contains(&spatial) {
            return Err(Error::attr(op, format!("{x} must be [N, 1 to 3 spatial axes, C]")));
        }
        let lists =
            [("stride", &self.stride), ("pad_low", &self.pad_low), ("pad_high", &self.pad_high)];
        for (name, list) in lists {
            check_per_axis(op, name, list.len(), spatial)?;
        }
        if self.stride.contains(&0) {
            return Err(Error::attr(op, "stride must be at least 1"));
        }
        let channels = x.shape()[spatial + 1];
        if weight.rank() != x.rank() || weight.shape()[1] != channels {
            let reason =
                format!("weight {weight} must be [O, {channels}, {spatial} kernel axes] for {x}");
            return Err(Error::attr(op, reason));
        }
        let mut shape = vec![x.shape()[0]];
        for axis in 0..spatial {
            let (dim, kernel) = (x.shape()[axis + 1], weight.shape()[axis + 2]);
            // Saturated sums are above the limit on elements, so `with_shape` refuses them.
            let padded = dim.saturating_add(self.pad_low[axis]).saturating_add(self.pad_high[axis]);
            let Some(room) = padded.checked_sub(kernel) else {
                let reason = format!(
                    "a kernel of {kernel} does not fit {padded} padded positions of axis {}",
                    axis + 1
                );
                return Err(Error::attr(op, reason));
            };
            shape.push((room / self.stride[axis]).saturating_add(1));
        }
        shape.push(weight.shape()[0]);
        x.with_shape(shape)
    }

    /// Calls `visit(x position, out position, tap)` for every tap that meets an element of `x`.
    /// Positions count `[N, spatial]` row-major without channels; taps count the kernel.
    pub(crate) fn for_each_tap(
        &self,
        x: &[usize],
        weight: &[usize],
        out: &[usize],
        mut visit: impl FnMut(usize, usize, usize),
    ) {
        let spatial = self.stride.len();
        let (x, kernel, out) = (&x[..=spatial], &weight[2..], &out[..=spatial]);
        let taps: usize = kernel.iter().product();
        for out_position in 0..out.iter().product() {
            'taps: for tap in 0..taps {
                let (mut rest_out, mut rest_tap) = (out_position, tap);
                let (mut x_position, mut x_stride) = (0, 1);
                for axis in (0..spatial).rev() {
                    let p = rest_out % out[axis + 1];
                    rest_out /= out[axis + 1];
                    let t = rest_tap % kernel[axis];
                    rest_tap /= kernel[axis];
                    let at = (p * self.stride[axis] + t).checked_sub(self.pad_low[axis]);
                    let Some(at) = at.filter(|&at| at < x[axis + 1]) else { continue 'taps };
                    x_position += at * x_stride;
                    x_stride *= x[axis + 1];
                }
                visit(x_position + rest_out * x_stride, out_position, tap);
            }
        }
    }

    /// FLOPs, the same for the convolution and both gradients.
    pub(crate) fn flops(weight: &[usize], out: &[usize]) -> u64 {
        let per_output: u64 = weight[1..].iter().map(|&dim| dim as u64).product();
        let outputs: u64 = out.iter().map(|&dim| dim as u64).product();
        outputs.saturating_mul(2 * per_output)
    }

    /// Examples of an op on every window that the suites run, one of them in bf16 too: a 1-wide kernel,
    /// patches, same and one-sided padding, one and three axes. `example` gets the window and the
    /// shapes of a convolution's operand, weight and result.
    pub(crate) fn examples(example: impl Fn(Window, [&[usize]; 3]) -> Example) -> Vec<Example> {
        let case = |stride: &[usize], low: &[usize], high: &[usize], x: &[usize], w: &[usize]| {
            let window = Window::new(stride, low, high);
            let ty = |shape| TensorType::new(DType::F32, shape).expect("cases are small");
            let out = window.infer("conv", &ty(x.to_vec()), &ty(w.to_vec()));
            example(window, [x, w, out.expect("cases are valid").shape()])
        };
        let mut all = vec![
            case(&[1, 1], &[0, 0], &[0, 0], &[1, 2, 3, 4], &[2, 4, 1, 1]),
            case(&[1, 1], &[1, 1], &[1, 1], &[2, 5, 4, 3], &[5, 3, 3, 3]),
            case(&[2, 2], &[0, 0], &[1, 1], &[1, 5, 6, 2], &[3, 2, 3, 3]),
            case(&[2], &[2], &[0], &[2, 7, 3], &[1, 3, 3]),
            case(&[2, 1], &[1, 1], &[1, 1], &[1, 5, 7, 3], &[5, 3, 3, 3]),
            case(&[1, 2, 2], &[0, 0, 0], &[0, 0, 0], &[1, 3, 4, 5, 2], &[3, 2, 1, 2, 2]),
            case(&[1, 1, 1], &[2, 0, 1], &[0, 1, 1], &[1, 2, 3, 3, 1], &[2, 1, 3, 2, 3]),
        ];
        all.push(all[1].clone().of(DType::Bf16));
        all
    }
}

impl Conv {
    /// From text.
    pub fn parse(mut attrs: AttrReader<'_>) -> Result<Conv, Error> {
        let op = Conv { window: Window::parse(&mut attrs)? };
        attrs.end().map(|()| op)
    }

    /// All window cases, one of them in bf16 too.
    pub fn examples() -> Vec<Example> {
        Window::examples(|window, [x, weight, _]| Example::f32(Conv { window }, &[x, weight]))
    }
}

impl OpDef for Conv {
    fn name(&self) -> &'static str {
        "conv"
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        self.window.attrs()
    }

    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, Error> {
        arity("conv", args, 2)?;
        same_float("conv", args)?;
        self.window.infer("conv", args[0], args[1])
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Tensor {
        let (x, w) = (args[0], args[1]);
        let [o, c] = [w.shape()[0], w.shape()[1]];
        let taps: usize = w.shape()[2..].iter().product();
        let (xs, ws) = (x.as_floats(), w.as_floats());
        let mut values = vec![0.0; out.count()];
        self.window.for_each_tap(x.shape(), w.shape(), out.shape(), |xp, op, tap| {
            for i in 0..o {
                let term = |j| xs[xp * c + j] * ws[(i * c + j) * taps + tap];
                values[op * o + i] += (0..c).map(term).sum::<f64>();
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
        let [x, weight] = [args[0], args[1]];
        let (x_shape, weight_shape) = (b.shape(x).to_vec(), b.shape(weight).to_vec());
        let dx = b.conv_input_grad(grad, weight, &self.window, &x_shape)?;
        let dw = b.conv_weight_grad(x, grad, &self.window, &weight_shape)?;
        Ok(vec![Some(dx), Some(dw)])
    }

    fn flops(&self, args: &[&TensorType], out: &TensorType) -> u64 {
        Window::flops(args[1].shape(), out.shape())
    }
}

impl Builder {
    /// The convolution of `x` `[N, spatial.., C]` with `weight` `[O, C, kernel..]`.
    pub fn conv(&mut self, x: ValueId, weight: ValueId, window: &Window) -> Result<ValueId, Error> {
        self.op(Conv { window: window.clone() }, &[x, weight])
    }
}
