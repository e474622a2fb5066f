//! Graphs that gradients are measured on: each kernel that only training has, on the shapes of models.

use ops::defs::attention_grad::AttentionGrad;
use ops::defs::conv::Window;
use ops::defs::norm_grad::NormGrad;
use ops::{Builder, DType, Error, Graph, TensorType};

use crate::cases::{Case, HEADS, images, scale};

/// Each kernel of gradients from the smallest shapes to those whose speed no longer changes.
pub(crate) fn cases(dtype: DType) -> Result<Vec<Case>, Error> {
    let mut all = Vec::new();
    for (rows, columns, depth) in
        [(576, 192, 2048), (64, 64, 8192), (1152, 1152, 4096), (128, 128, 384)]
    {
        let graph = weight_gradient(dtype, [rows, columns, depth])?;
        all.push(Case { kernel: "matmul", graph });
    }
    for (side, inputs, outputs, taps) in [
        (64, 3, 16, 3),
        (64, 16, 16, 3),
        (64, 32, 16, 1),
        (64, 32, 32, 3),
        (64, 16, 3, 3),
        (32, 32, 32, 3),
        (32, 64, 64, 3),
        (16, 64, 64, 3),
        (32, 512, 512, 3),
        (128, 128, 128, 3),
    ] {
        for kernel in ["conv_input_grad", "conv_weight_grad"] {
            let graph = convolution_gradient(dtype, side, [inputs, outputs, taps], kernel)?;
            all.push(Case { kernel, graph });
        }
    }
    for (sequences, tokens, heads) in
        [(256, 16, HEADS), (64, 64, HEADS), (16, 256, HEADS), (1, 2048, HEADS), (256, 8, [6, 32])]
    {
        let graph = attention_gradient(dtype, [sequences, tokens], heads)?;
        all.push(Case { kernel: "attention_grad", graph });
    }
    for shape in [[64, 1152], [1024, 1152], [8192, 1152], [2048, 192], [12288, 32], [65536, 72]] {
        all.push(Case { kernel: "norm_grad", graph: norm_gradient(dtype, shape)? });
    }
    Ok(all)
}

/// A gradient of a convolution of `taps` x `taps` taps, by its operand or its weight as `kernel` says, of a few images.
fn convolution_gradient(
    dtype: DType,
    side: usize,
    [inputs, outputs, taps]: [usize; 3],
    kernel: &str,
) -> Result<Graph, Error> {
    let images = images(side, inputs);
    let (x, weight) = ([images, side, side, inputs], [outputs, inputs, taps, taps]);
    let pad = [taps / 2; 2];
    let window = Window::new(&[1, 1], &pad, &pad);
    let mut b = Builder::new("convolution_gradient");
    let grad = b.input("grad", TensorType::new(dtype, [images, side, side, outputs])?);
    let out = if kernel == "conv_input_grad" {
        let weight = b.input("weight", TensorType::new(dtype, weight)?);
        b.conv_input_grad(grad, weight, &window, &x)?
    } else {
        let x = b.input("x", TensorType::new(dtype, x)?);
        b.conv_weight_grad(x, grad, &window, &weight)?
    };
    Ok(b.finish(&[out]))
}

/// The product of a linear layer's cotangents and rows over tokens, both as they lie in memory.
fn weight_gradient(dtype: DType, [rows, columns, depth]: [usize; 3]) -> Result<Graph, Error> {
    let mut b = Builder::new("weight_gradient");
    let grad = b.input("grad", TensorType::new(dtype, [depth, rows])?);
    let x = b.input("x", TensorType::new(dtype, [depth, columns])?);
    let out = b.matmul(grad, x, true, false)?;
    Ok(b.finish(&[out]))
}

fn attention_gradient(
    dtype: DType,
    [sequences, tokens]: [usize; 2],
    [heads, width]: [usize; 2],
) -> Result<Graph, Error> {
    let ty = TensorType::new(dtype, [sequences, tokens, heads, width])?;
    let mut b = Builder::new("attention_gradient");
    let args = ["q", "k", "v", "out", "grad"].map(|name| b.input(name, ty.clone()));
    let out = b.op(AttentionGrad { scale: scale(width) }, &args)?;
    Ok(b.finish(&[out]))
}

fn norm_gradient(dtype: DType, shape: [usize; 2]) -> Result<Graph, Error> {
    let mut b = Builder::new("norm_gradient");
    let ty = TensorType::new(dtype, shape)?;
    let args = ["x", "grad"].map(|name| b.input(name, ty.clone()));
    let out = b.op(NormGrad { eps: 1e-6, centered: true }, &args)?;
    Ok(b.finish(&[out]))
}
