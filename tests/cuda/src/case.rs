//! Cases for a machine with a GPU: an engine, and a file with what it is given and what must come out.

use std::collections::BTreeMap;
use std::path::Path;

use aot::{Builder, Cache};
use compiler::Plan;
use kernels::cuda::Gpu;
use kernels::cuda::gemm::{Method, Tile};
use ops::{DType, Graph, Tensor};
use safetensors::tensor::{Dtype, TensorView};

use crate::tiles;

/// Writes `NAME.engine` and `NAME.safetensors` to `folder`: inputs as `in.NAME`, weights as `w.NAME`,
/// what must come out, f32, as `out.INDEX`, and `limit`, the largest relative distance that is right.
pub fn write(
    folder: &Path,
    name: &str,
    graph: &Graph,
    given: &BTreeMap<String, Tensor>,
    expected: &[Tensor],
    limit: f64,
    gpu: Gpu,
) {
    write_engine(folder, name, graph, gpu);
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = vec![];
    let inputs: Vec<&str> = graph.inputs().map(|(_, name)| name).collect();
    let params = graph.params().map(|(_, name)| name);
    let declared = inputs.iter().map(|name| ("in", *name)).chain(params.map(|name| ("w", name)));
    for (prefix, name) in declared {
        let tensor = &given[name];
        let dtype = match tensor.ty().dtype() {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::Bf16 => Dtype::BF16,
            DType::I64 => Dtype::I64,
            DType::I32 => Dtype::I32,
            DType::U8 => Dtype::U8,
            DType::Bool => Dtype::BOOL,
        };
        let shape = tensor.shape().to_vec();
        tensors.push((format!("{prefix}.{name}"), dtype, shape, tensor.to_bytes()));
    }
    for (index, tensor) in expected.iter().enumerate() {
        let values = match tensor.data() {
            ops::Data::Float(values) => values.iter().map(|&x| x as f32).collect::<Vec<f32>>(),
            ops::Data::Int(values) => values.iter().map(|&x| x as f32).collect(),
        };
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.push((format!("out.{index}"), Dtype::F32, tensor.shape().to_vec(), bytes));
    }
    tensors.push(("limit".to_owned(), Dtype::F32, vec![1], (limit as f32).to_le_bytes().to_vec()));
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes).expect("bytes fit the shape");
            (name.as_str(), view)
        })
        .collect();
    let path = folder.join(format!("{name}.safetensors"));
    safetensors::serialize_to_file(views, None, &path).unwrap_or_else(|error| panic!("{error}"));
}

/// Writes `NAME.engine` to `folder`.
pub fn write_engine(folder: &Path, name: &str, graph: &Graph, gpu: Gpu) {
    let plan = compiler::compile(graph.clone(), &crate::target(gpu))
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    write_plan(folder, name, &plan);
}

/// Writes an engine for each tile that products can have.
pub fn write_tiles(folder: &Path, name: &str, graph: &Graph, gpu: Gpu) {
    let plan = compiler::compile(graph.clone(), &crate::target(gpu))
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    for method in tiles::methods(gpu) {
        let plan = tiles::with_method(&plan, method);
        let (Method::Tensor(tile) | Method::Group(tile)) = method else { continue };
        let way = if matches!(method, Method::Group(_)) { "group" } else { "warp" };
        let Tile { rows, columns, depth, stages, .. } = tile;
        let name = format!("{name}@{way}-{rows}x{columns}x{depth}x{stages}");
        write_plan(folder, &name, &plan);
    }
}

fn write_plan(folder: &Path, name: &str, plan: &Plan) {
    let mut builder = Builder::new();
    builder.add(name, plan).unwrap_or_else(|error| panic!("{name}: {error}"));
    let about = ("tests".to_owned(), name.to_owned(), DType::Bf16);
    let cache = Cache::in_folder(folder.join("cache"));
    let engine = builder
        .build(about, crate::nvrtc(), Some(&cache), 2, &|_| {})
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let path = folder.join(format!("{name}.engine"));
    engine.save(&path).unwrap_or_else(|error| panic!("{error}"));
}
