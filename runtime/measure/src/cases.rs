//! Which graphs a machine is measured on: each kernel on the shapes that models have, from the
//! smallest to those whose speed no longer changes.

use ops::defs::conv::Window;
use ops::{Builder, DType, Error, Graph, TensorType};

/// A graph whose steps of one kernel are measured.
#[derive(Debug)]
pub(crate) struct Case {
    /// The kernel's printed name.
    pub(crate) kernel: &'static str,
    /// The graph.
    pub(crate) graph: Graph,
}

/// Layers of few rows are measured on so many bytes of weights that they come from memory, as they
/// do in a model; at most this many layers.
const MOST_LAYERS: usize = 32;

/// Heads and channels of a head of `STDiT`.
pub(crate) const HEADS: [usize; 2] = [16, 72];

/// All cases for one element type. `weight_bytes` is more than the caches hold.
pub(crate) fn cases(dtype: DType, weight_bytes: usize) -> Result<Vec<Case>, Error> {
    let mut all = Vec::new();
    for (rows, from, to) in [
        (1, 1152, 1152),
        (1, 1152, 4608),
        (16, 1024, 1024),
        (24, 128, 128),
        (24, 128, 256),
        (120, 1024, 1024),
        (120, 1024, 2816),
        (128, 192, 768),
        (200, 1024, 1024),
        (200, 4096, 10240),
        (1024, 192, 192),
        (1024, 192, 768),
        (1024, 1152, 1152),
        (4096, 1152, 32),
        (4096, 1152, 1152),
        (4096, 1152, 4608),
    ] {
        all.push(Case { kernel: "matmul", graph: layers(dtype, rows, [from, to], weight_bytes)? });
    }
    for (sequences, tokens) in [(256, 16), (64, 64), (16, 256), (2, 1024), (1, 4096)] {
        let graph = self_attention(dtype, sequences, tokens)?;
        all.push(Case { kernel: "attention", graph });
    }
    for (queries, keys, heads, width, biased) in [
        (4096, 128, 16, 72, false),
        (128, 24, 6, 32, false),
        (24, 24, 4, 32, true),
        (120, 120, 16, 64, true),
        (200, 200, 16, 64, true),
        (1024, 1024, 1, 512, false),
    ] {
        let graph = cross_attention(dtype, [queries, keys], [heads, width], biased)?;
        all.push(Case { kernel: "attention", graph });
    }
    for (side, inputs, outputs, taps) in [
        (32, 4, 512, 3),
        (64, 3, 16, 3),
        (64, 64, 32, 1),
        (16, 64, 64, 3),
        (32, 64, 64, 3),
        (64, 16, 3, 3),
        (64, 16, 16, 3),
        (64, 32, 32, 3),
        (32, 512, 512, 3),
        (64, 512, 512, 3),
        (128, 512, 256, 3),
        (128, 256, 256, 3),
        (256, 256, 128, 3),
        (256, 256, 128, 1),
        (256, 128, 128, 3),
        (256, 128, 3, 3),
    ] {
        let graph = convolution(dtype, side, [inputs, outputs], taps)?;
        all.push(Case { kernel: "conv", graph });
    }
    #[cfg(feature = "training")]
    all.extend(crate::gradient_cases::cases(dtype)?);
    for (images, side, channels) in [(8, 16, 64), (8, 32, 32), (8, 64, 32), (32, 64, 16)] {
        let graph = column_sums(dtype, [images, side * side, channels])?;
        all.push(Case { kernel: "reduce", graph });
    }
    for rows in [4, 64, 1024, 16384] {
        all.push(Case { kernel: "map", graph: residual(dtype, [rows, 1152])? });
    }
    for shape in [[64, 1152], [1024, 1152], [8192, 1152], [2048, 192], [12288, 32], [65536, 72]] {
        all.push(Case { kernel: "norm", graph: norm(dtype, shape)? });
    }
    for rows in [64, 1024, 8192] {
        all.push(Case { kernel: "reduce", graph: reduction(dtype, [rows, 1152])? });
        all.push(Case { kernel: "concat", graph: joined(dtype, [rows, 1152])? });
    }
    for (images, side, channels, groups) in
        [(1, 32, 512, 32), (1, 128, 256, 32), (1, 256, 128, 32), (8, 64, 16, 8), (8, 32, 64, 8)]
    {
        let graph = group_norm(dtype, [images, side, side, channels], groups)?;
        all.push(Case { kernel: "group_norm", graph });
    }
    all.push(Case { kernel: "gather", graph: rows_of_a_table(dtype)? });
    Ok(all)
}

/// One step with next to nothing to do.
pub(crate) fn launch() -> Result<Case, Error> {
    Ok(Case { kernel: "map", graph: residual(DType::F32, [1, 16])? })
}

/// Arithmetic on few bytes: what is fused into other kernels.
pub(crate) fn elementwise() -> Result<Case, Error> {
    let mut b = Builder::new("elementwise");
    let x = b.input("x", TensorType::new(DType::F32, [64, 1024])?);
    let y = b.gelu_tanh(x)?;
    Ok(Case { kernel: "map", graph: b.finish(&[y]) })
}

/// Linear layers, there and back, until there are `weight_bytes` of weights or enough rows that the
/// weights' way does not matter.
fn layers(
    dtype: DType,
    rows: usize,
    [from, to]: [usize; 2],
    weight_bytes: usize,
) -> Result<Graph, Error> {
    let mut b = Builder::new("layers");
    let mut x = b.input("x", TensorType::new(dtype, [rows, from])?);
    let each = from * to * dtype.size();
    let n = if rows <= 200 { weight_bytes.div_ceil(each).min(MOST_LAYERS) } else { 2 };
    for layer in 0..n.next_multiple_of(2) {
        let [k, n] = if layer % 2 == 0 { [from, to] } else { [to, from] };
        let weight = b.param(&format!("{layer}.weight"), TensorType::new(dtype, [n, k])?);
        let bias = b.param(&format!("{layer}.bias"), TensorType::new(dtype, [n])?);
        x = b.linear(x, weight, Some(bias))?;
    }
    Ok(b.finish(&[x]))
}

/// Attention of tokens to themselves, as models lay it out: slices of one product; short sequences,
/// which run over time, strided, normed and rotated.
fn self_attention(dtype: DType, sequences: usize, tokens: usize) -> Result<Graph, Error> {
    let [heads, width] = HEADS;
    let over_time = tokens <= 64;
    let mut b = Builder::new("self_attention");
    let [outer, inner] = if over_time { [tokens, sequences] } else { [sequences, tokens] };
    let x = b.input("x", TensorType::new(dtype, [outer, inner, 3, heads, width])?);
    let mut parts = [x; 3];
    for (i, part) in parts.iter_mut().enumerate() {
        let sliced = b.slice_axis(x, 2, i, i + 1)?;
        *part = b.reshape(sliced, &[outer, inner, heads, width])?;
        if over_time {
            *part = b.permute(*part, &[1, 0, 2, 3])?;
        }
    }
    let [mut q, mut k, v] = parts;
    if over_time {
        let angles = b.input("angles", TensorType::new(DType::F32, [tokens, width / 2])?);
        let norm = TensorType::new(dtype, [1, 1, 1, width])?;
        for (part, name) in [(&mut q, "q_norm"), (&mut k, "k_norm")] {
            let weight = b.param(name, norm.clone());
            *part = b.rope(*part, angles)?;
            *part = b.rms_norm(*part, 1e-6)?;
            *part = b.mul(*part, weight)?;
        }
    }
    let out = b.attention([q, k, v], None, None, scale(width))?;
    Ok(b.finish(&[out]))
}

/// Attention of some tokens to others; with a bias and a mask, as T5 has them.
fn cross_attention(
    dtype: DType,
    [queries, keys]: [usize; 2],
    [heads, width]: [usize; 2],
    biased: bool,
) -> Result<Graph, Error> {
    let mut b = Builder::new("cross_attention");
    let q = b.input("q", TensorType::new(dtype, [1, queries, heads, width])?);
    let kv = TensorType::new(dtype, [1, keys, heads, width])?;
    let (k, v) = (b.input("k", kv.clone()), b.input("v", kv));
    let (mut bias, mut mask) = (None, None);
    if biased {
        bias = Some(b.input("bias", TensorType::new(dtype, [1, heads, queries, keys])?));
        mask = Some(b.input("mask", TensorType::new(DType::Bool, [1, keys])?));
    }
    let out = b.attention([q, k, v], bias, mask, scale(width))?;
    Ok(b.finish(&[out]))
}

pub(crate) fn scale(width: usize) -> f64 {
    (width as f64).powf(-0.5)
}

/// Images of a convolution: several of small ones, as models that have such see many at a time.
pub(crate) fn images(side: usize, inputs: usize) -> usize {
    if side * inputs > 2048 { 1 } else { 8 }
}

/// A convolution behind a norm and an activation, as decoders have them; the first one, of a few
/// channels, and those that only change the number of channels have none.
fn convolution(
    dtype: DType,
    side: usize,
    [inputs, outputs]: [usize; 2],
    taps: usize,
) -> Result<Graph, Error> {
    let mut b = Builder::new("convolution");
    let x = b.input("x", TensorType::new(dtype, [images(side, inputs), side, side, inputs])?);
    let weight = b.param("weight", TensorType::new(dtype, [outputs, inputs, taps, taps])?);
    let bias = b.param("bias", TensorType::new(dtype, [outputs])?);
    let pad = [taps / 2; 2];
    let mut x = x;
    if taps > 1 && inputs.is_multiple_of(32) {
        let norm = TensorType::new(dtype, [inputs])?;
        let (scale, shift) = (b.param("norm.weight", norm.clone()), b.param("norm.bias", norm));
        x = b.group_norm(x, scale, shift, 32, 1e-6)?;
        x = b.silu(x)?;
    }
    let y = b.conv(x, weight, &Window::new(&[1, 1], &pad, &pad))?;
    let bias = b.reshape(bias, &[1, 1, 1, outputs])?;
    let y = b.add(y, bias)?;
    Ok(b.finish(&[y]))
}

/// Sums over the positions of images, as gradients of their norms have.
fn column_sums(dtype: DType, shape: [usize; 3]) -> Result<Graph, Error> {
    let mut b = Builder::new("column_sums");
    let ty = TensorType::new(dtype, shape)?;
    let [x, y] = ["x", "y"].map(|name| b.input(name, ty.clone()));
    let product = b.mul(x, y)?;
    let sums = b.reduce_sum(product, &[1])?;
    Ok(b.finish(&[sums]))
}

fn residual(dtype: DType, shape: [usize; 2]) -> Result<Graph, Error> {
    let mut b = Builder::new("residual");
    let ty = TensorType::new(dtype, shape)?;
    let (x, y) = (b.input("x", ty.clone()), b.input("y", ty));
    let sum = b.add(x, y)?;
    Ok(b.finish(&[sum]))
}

fn norm(dtype: DType, shape: [usize; 2]) -> Result<Graph, Error> {
    let mut b = Builder::new("norm");
    let x = b.input("x", TensorType::new(dtype, shape)?);
    let weight = b.param("weight", TensorType::new(dtype, [1, shape[1]])?);
    let x = b.rms_norm(x, 1e-6)?;
    let y = b.mul(x, weight)?;
    Ok(b.finish(&[y]))
}

fn reduction(dtype: DType, shape: [usize; 2]) -> Result<Graph, Error> {
    let mut b = Builder::new("reduction");
    let x = b.input("x", TensorType::new(dtype, shape)?);
    let y = b.reduce_mean(x, &[1])?;
    Ok(b.finish(&[y]))
}

fn joined(dtype: DType, shape: [usize; 2]) -> Result<Graph, Error> {
    let mut b = Builder::new("joined");
    let ty = TensorType::new(dtype, shape)?;
    let (x, y) = (b.input("x", ty.clone()), b.input("y", ty));
    let both = b.concat(&[x, y], 1)?;
    Ok(b.finish(&[both]))
}

fn group_norm(dtype: DType, shape: [usize; 4], groups: usize) -> Result<Graph, Error> {
    let mut b = Builder::new("group_norm");
    let x = b.input("x", TensorType::new(dtype, shape)?);
    let [.., channels] = shape;
    let weight = b.param("weight", TensorType::new(dtype, [channels])?);
    let bias = b.param("bias", TensorType::new(dtype, [channels])?);
    let y = b.group_norm(x, weight, bias, groups, 1e-6)?;
    let y = b.silu(y)?;
    Ok(b.finish(&[y]))
}

fn rows_of_a_table(dtype: DType) -> Result<Graph, Error> {
    let mut b = Builder::new("rows_of_a_table");
    let table = b.param("table", TensorType::new(dtype, [4096, 1024])?);
    let ids = b.input("ids", TensorType::new(DType::I64, [128])?);
    let rows = b.gather(table, ids)?;
    Ok(b.finish(&[rows]))
}

#[cfg(test)]
mod tests {
    use kernels::{Isa, Kernel, Target};

    use super::*;

    #[test]
    fn every_case_has_a_step_of_its_kernel() {
        let target = Target {
            isa: Isa::detect(),
            threads: 2,
            l1_bytes: 32 << 10,
            l2_bytes: 1 << 20,
            l3_bytes: 16 << 20,
            gpu: None,
            tiles: None,
        };
        let mut kernels: Vec<&str> = vec![];
        for dtype in [DType::F32, DType::Bf16] {
            for case in cases(dtype, 1 << 20).unwrap() {
                let plan = compiler::compile(case.graph, &target).unwrap();
                let works = plan.works();
                let found = works.iter().find(|work| work.kernel == case.kernel);
                let work = found.unwrap_or_else(|| panic!("{}: {works:?}", case.kernel));
                assert_eq!(work.dtype, dtype, "{work:?}");
                kernels.push(case.kernel);
            }
        }
        // The others move bytes, and are taken for `map`.
        let without: Vec<&&str> =
            Kernel::names().iter().filter(|name| !kernels.contains(name)).collect();
        assert_eq!(without, [&"normal", &"pad", &"rope", &"scatter_add"]);
        for case in [launch().unwrap(), elementwise().unwrap()] {
            let plan = compiler::compile(case.graph, &target).unwrap();
            assert_eq!(plan.steps.len(), 1);
            assert_eq!(plan.works()[0].kernel, "map");
        }
    }
}
