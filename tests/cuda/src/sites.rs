//! Small graphs, a kernel or a few each, that every device must compute as the interpreter does.

use std::collections::BTreeMap;

use ops::{Builder, DType, Graph, Tensor, TensorType};

/// A graph and how far results may be from exact ones.
#[derive(Debug)]
pub struct Site {
    /// Says what it is.
    pub name: String,
    /// The graph.
    pub graph: Graph,
    /// Largest relative distance.
    pub limit: f64,
}

impl Site {
    /// Inputs and weights, the same in every run.
    pub fn given(&self) -> BTreeMap<String, Tensor> {
        crate::given(&self.name, &self.graph, (-2.0, 2.0))
    }
}

/// All of them.
pub fn sites() -> Vec<Site> {
    let mut sites = vec![];
    for (dtype, shape) in [
        (DType::F32, vec![3, 5]),
        (DType::Bf16, vec![4, 16]),
        (DType::F16, vec![2, 3, 24]),
        (DType::Bf16, vec![70, 33]),
        (DType::Bf16, vec![1024, 1152]),
    ] {
        sites.push(elementwise(dtype, &shape));
    }
    for dims in [[300, 264, 136], [256, 512, 192], [1, 72, 64], [130, 96, 1152]] {
        sites.push(product(dims));
    }
    sites.extend(crate::row_sites::sites());
    sites
}

/// A linear layer with GELU, a gate per column and a residual.
fn product([m, n, k]: [usize; 3]) -> Site {
    let mut b = Builder::new("product");
    let half = |shape: &[usize]| TensorType::new(DType::Bf16, shape).expect("a valid shape");
    let x = b.input("x", half(&[m, k]));
    let gate = b.input("gate", half(&[1, n]));
    let residual = b.input("residual", half(&[m, n]));
    let weight = b.param("weight", half(&[n, k]));
    let bias = b.param("bias", half(&[n]));
    let y = b.linear(x, weight, Some(bias)).expect("shapes fit");
    let y = b.gelu_tanh(y).expect("a float");
    let y = b.mul(y, gate).expect("shapes fit");
    let y = b.add(y, residual).expect("shapes fit");
    let name = format!("product-{m}x{n}x{k}");
    Site { name, graph: b.finish(&[y]), limit: rounding(DType::Bf16) }
}

fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 4e-3,
        DType::F16 => 5e-4,
        _ => 1e-6,
    }
}

/// Activations with an operand that is repeated.
fn elementwise(dtype: DType, shape: &[usize]) -> Site {
    let mut b = Builder::new("elementwise");
    let ty = |shape: Vec<usize>| TensorType::new(dtype, shape).expect("a valid shape");
    let x = b.input("x", ty(shape.to_vec()));
    let width = shape[shape.len() - 1];
    let row = b.input("row", ty([vec![1; shape.len() - 1], vec![width]].concat()));
    let y = b.silu(x).expect("floats");
    let y = b.mul(y, row).expect("shapes fit");
    let y = b.gelu_tanh(y).expect("floats");
    let name = format!("elementwise-{dtype}-{shape:?}").replace([' ', '[', ']'], "");
    Site { name: name.replace(',', "x"), graph: b.finish(&[y]), limit: rounding(dtype) }
}
