//! Sites of norms, reductions and copies, at sizes that cut blocks and vectors unevenly, and graphs of
//! them at the models' sizes.

use ops::{Builder, DType, Error, Graph, TensorType, ValueId};

use crate::sites::Site;
use crate::speed::Speed;

fn ty(dtype: DType, shape: &[usize]) -> TensorType {
    TensorType::new(dtype, shape).expect("a valid shape")
}

/// The graph of what `body` makes of one input of type `dtype`.
fn graph(
    name: &str,
    dtype: DType,
    shape: &[usize],
    body: impl FnOnce(&mut Builder, ValueId) -> Result<ValueId, Error>,
) -> Graph {
    let mut b = Builder::new(name);
    let x = b.input("x", ty(dtype, shape));
    let y = body(&mut b, x).expect("shapes fit");
    b.finish(&[y])
}

/// A norm of rows between code.
fn modulated(dtype: DType, shape: &[usize]) -> Graph {
    graph("modulated", dtype, shape, |b, x| {
        let row = [vec![1; shape.len() - 1], shape[shape.len() - 1..].to_vec()].concat();
        let [scale, shift] = ["scale", "shift"].map(|name| b.input(name, ty(dtype, &row)));
        let y = b.layer_norm(x, 1e-6)?;
        let y = b.mul(y, scale)?;
        let y = b.add(y, shift)?;
        b.add(y, x)
    })
}

/// A group norm before an activation, as in the decoder.
fn group_norm(dtype: DType, shape: &[usize], groups: usize) -> Graph {
    graph("group_norm", dtype, shape, |b, x| {
        let by_channel = ty(dtype, &shape[shape.len() - 1..]);
        let [weight, bias] = ["weight", "bias"].map(|name| b.param(name, by_channel.clone()));
        let y = b.group_norm(x, weight, bias, groups, 1e-6)?;
        b.silu(y)
    })
}

/// All sites.
pub fn sites() -> Vec<Site> {
    let (f32, f16, bf16) = (DType::F32, DType::F16, DType::Bf16);
    let rms = |dtype, shape: &[usize]| graph("rms", dtype, shape, |b, x| b.rms_norm(x, 1e-6));
    let softmax =
        |dtype, shape: &[usize], axis| graph("softmax", dtype, shape, |b, x| b.softmax(x, axis));
    let sum = |dtype, shape: &[usize], axes: &[usize]| {
        graph("sum", dtype, shape, |b, x| {
            let x = b.square(x)?;
            b.reduce_sum(x, axes)
        })
    };
    let transpose =
        |dtype| graph("transpose", dtype, &[2, 70, 200], |b, x| b.permute(x, &[0, 2, 1]));
    let heads = graph("heads", bf16, &[2, 33, 16, 72], |b, x| b.permute(x, &[0, 2, 1, 3]));
    let pad = graph("pad", bf16, &[3, 4, 24], |b, x| b.pad(x, &[0, 1, 0], &[2, 0, 8]));
    let cases = [
        ("modulated-bf16-71x1152", bf16, modulated(bf16, &[71, 1152])),
        ("modulated-f32-5x36", f32, modulated(f32, &[5, 36])),
        ("modulated-bf16-3x4096", bf16, modulated(bf16, &[3, 4096])),
        ("rms-f16-37x72", f16, rms(f16, &[37, 72])),
        ("rms-f32-2x40000", f32, rms(f32, &[2, 40_000])),
        ("softmax-f32-9x77", f32, softmax(f32, &[9, 77], 1)),
        ("softmax-bf16-columns", bf16, softmax(bf16, &[3, 40, 6], 1)),
        ("sum-f32-rows", f32, sum(f32, &[5, 3000], &[1])),
        ("sum-f32-columns", f32, sum(f32, &[300, 40], &[0])),
        ("group-norm-bf16-2x37x29x128", bf16, group_norm(bf16, &[2, 37, 29, 128], 32)),
        ("group-norm-f32-1x9x9x320", f32, group_norm(f32, &[1, 9, 9, 320], 32)),
        ("transpose-bf16", bf16, transpose(bf16)),
        ("transpose-f32", f32, transpose(f32)),
        ("heads-bf16", bf16, heads),
        ("pad-bf16", bf16, pad),
    ];
    let site = |(name, dtype, graph): (&str, DType, Graph)| {
        let limit = match dtype {
            DType::Bf16 => 4e-3,
            DType::F16 => 1e-3,
            _ => 2e-6,
        };
        Site { name: name.to_owned(), graph, limit }
    };
    cases.into_iter().map(site).collect()
}

/// What is timed: all of it is limited by memory.
pub fn speeds() -> Vec<Speed> {
    let bf16 = DType::Bf16;
    let gated = graph("gated", bf16, &[12_480, 4608], |b, x| {
        let gate = b.input("gate", ty(bf16, &[12_480, 4608]));
        let y = b.gelu_tanh(x)?;
        b.mul(y, gate)
    });
    let transpose = graph("transpose", bf16, &[12_480, 1152], |b, x| b.permute(x, &[1, 0]));
    let cases = [
        ("gated-12480x4608", gated),
        ("modulated-12480x1152", modulated(bf16, &[12_480, 1152])),
        ("modulated-115200x1152", modulated(bf16, &[115_200, 1152])),
        ("modulated-4096x4096", modulated(bf16, &[4096, 4096])),
        ("group-norm-512x512x128", group_norm(bf16, &[1, 512, 512, 128], 32)),
        ("group-norm-64x64x512", group_norm(bf16, &[1, 64, 64, 512], 32)),
        ("transpose-12480x1152", transpose),
    ];
    let speed = |(name, graph): (&str, Graph)| Speed { name: name.to_owned(), graph };
    cases.into_iter().map(speed).collect()
}
