//! Graphs of one kernel at the sizes of the published models, to be timed on a machine with a GPU.

use ops::defs::conv::Window;
use ops::{Builder, DType, Graph, TensorType};

/// A graph to time.
#[derive(Debug)]
pub struct Speed {
    /// Says what it is.
    pub name: String,
    /// The graph; everything is an input or a weight.
    pub graph: Graph,
}

fn half(shape: &[usize]) -> TensorType {
    TensorType::new(DType::Bf16, shape).expect("a valid shape")
}

/// All of them.
pub fn speeds() -> Vec<Speed> {
    let mut speeds = vec![];
    for [m, n, k] in [
        [4096, 3456, 1152],
        [4096, 1152, 4608],
        [12480, 3456, 1152],
        [12480, 1152, 1152],
        [12480, 4608, 1152],
        [12480, 1152, 4608],
        [115_200, 4608, 1152],
        [115_200, 1152, 4608],
        [8192, 8192, 8192],
    ] {
        speeds.push(linear(m, n, k));
    }
    speeds.push(mlp(12480, 1152));
    for (name, shape) in [
        ("spatial-1024", [8, 1024, 16, 72]),
        ("spatial-4096", [2, 4096, 16, 72]),
        ("spatial-3600", [32, 3600, 16, 72]),
        ("spatial-405", [32, 405, 16, 72]),
        ("temporal-16", [7200, 16, 16, 72]),
        ("temporal-128", [7200, 128, 16, 72]),
        ("t5-200", [1, 200, 64, 64]),
    ] {
        speeds.push(attention(name, shape, shape[1]));
    }
    speeds.push(attention("cross-200", [2, 6480, 16, 72], 200));
    for [side, inputs, outputs] in
        [[64, 512, 512], [128, 512, 512], [256, 256, 256], [512, 128, 128]]
    {
        speeds.push(conv(side, inputs, outputs));
    }
    speeds.extend(crate::row_sites::speeds());
    speeds
}

fn linear(m: usize, n: usize, k: usize) -> Speed {
    let mut b = Builder::new("linear");
    let x = b.input("x", half(&[m, k]));
    let weight = b.param("weight", half(&[n, k]));
    let bias = b.param("bias", half(&[n]));
    let y = b.linear(x, weight, Some(bias)).expect("shapes fit");
    Speed { name: format!("linear-{m}x{n}x{k}"), graph: b.finish(&[y]) }
}

/// Norm, modulation, and a linear layer with GELU: the first half of a block's MLP.
fn mlp(m: usize, k: usize) -> Speed {
    let mut b = Builder::new("mlp");
    let x = b.input("x", half(&[m, k]));
    let [shift, scale] = ["shift", "scale"].map(|name| b.input(name, half(&[1, k])));
    let weight = b.param("weight", half(&[4 * k, k]));
    let bias = b.param("bias", half(&[4 * k]));
    let y = b.layer_norm(x, 1e-6).expect("a float");
    let scale = b.add_scalar(scale, 1.0).expect("a float");
    let y = b.mul(y, scale).expect("shapes fit");
    let y = b.add(y, shift).expect("shapes fit");
    let y = b.linear(y, weight, Some(bias)).expect("shapes fit");
    let y = b.gelu_tanh(y).expect("a float");
    Speed { name: format!("mlp-{m}x{k}"), graph: b.finish(&[y]) }
}

fn attention(name: &str, shape: [usize; 4], keys: usize) -> Speed {
    let [rows, _, heads, head] = shape;
    let mut b = Builder::new("attention");
    let q = b.input("q", half(&shape));
    let [k, v] = ["k", "v"].map(|name| b.input(name, half(&[rows, keys, heads, head])));
    let y = b.attention([q, k, v], None, None, (head as f64).powf(-0.5)).expect("shapes fit");
    Speed { name: format!("attention-{name}"), graph: b.finish(&[y]) }
}

fn conv(side: usize, inputs: usize, outputs: usize) -> Speed {
    let mut b = Builder::new("conv");
    let x = b.input("x", half(&[1, side, side, inputs]));
    let weight = b.param("weight", half(&[outputs, inputs, 3, 3]));
    let window = Window { stride: vec![1, 1], pad_low: vec![1, 1], pad_high: vec![1, 1] };
    let y = b.conv(x, weight, &window).expect("shapes fit");
    Speed { name: format!("conv-{side}x{inputs}x{outputs}"), graph: b.finish(&[y]) }
}
