//! Reads folders of golden vectors: numbers that the original code computed.
//!
//! The root is the folder named by `KINO_GOLDENS`, by default `tests/golden` of the workspace. A
//! damaged folder panics with its path: there is nothing to go on with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ops::{DType, Data, Graph, Rounding, Tensor, TensorType};
use safetensors::SafeTensors;
use serde_json::Value as Json;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Something that runs graphs.
#[derive(Clone, Copy, Debug)]
pub struct Executor {
    /// As reports call it.
    pub name: &'static str,
    /// The outputs of a graph, given its inputs and parameters by name.
    pub run: fn(&Graph, &Tensors) -> Vec<Tensor>,
}

/// All of these must agree with the goldens.
pub const EXECUTORS: &[Executor] = &[
    Executor { name: "interpreter", run: interpret },
    Executor { name: "compiled", run: crate::compiled::on_this_machine },
];

fn interpret(graph: &Graph, given: &Tensors) -> Vec<Tensor> {
    ops::eval(graph, given, Rounding::Stored)
        .unwrap_or_else(|error| panic!("graph @{}: {error}", graph.name))
}

/// One folder below the root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Folder {
    /// The folder's name.
    pub name: String,
    path: PathBuf,
}

/// Every folder below the root, by name.
pub fn folders() -> Vec<Folder> {
    let root = match std::env::var_os("KINO_GOLDENS") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("golden"),
    };
    let mut folders: Vec<Folder> = entries(&root)
        .into_iter()
        .filter(|path| path.is_dir())
        .map(|path| Folder { name: file_name(&path), path })
        .collect();
    folders.sort();
    folders
}

impl Folder {
    /// `config.json`, if the folder has one.
    pub fn config(&self) -> Option<Json> {
        let path = self.path.join("config.json");
        path.exists().then(|| {
            serde_json::from_slice(&read(&path))
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        })
    }

    /// Names of the safetensors files, without the ending, in order.
    pub fn tensor_files(&self) -> Vec<String> {
        let mut names: Vec<String> = entries(&self.path)
            .iter()
            .filter_map(|path| file_name(path).strip_suffix(".safetensors").map(str::to_string))
            .collect();
        names.sort();
        names
    }

    /// The tensors of `file.safetensors` by name.
    pub fn tensors(&self, file: &str) -> Tensors {
        let path = self.path.join(format!("{file}.safetensors"));
        let bytes = read(&path);
        let file = SafeTensors::deserialize(&bytes)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let tensor = |view: &safetensors::tensor::TensorView<'_>| {
            let ty = TensorType::new(dtype(view.dtype())?, view.shape()).ok()?;
            Tensor::from_bytes(ty, view.data()).ok()
        };
        let read = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            // The F64 tables of the samplers are no tensors of the language.
            tensor(&view).map(|tensor| (name, tensor))
        };
        file.tensors().into_iter().filter_map(read).collect()
    }
}

fn dtype(dtype: safetensors::Dtype) -> Option<DType> {
    match dtype {
        safetensors::Dtype::F32 => Some(DType::F32),
        safetensors::Dtype::F16 => Some(DType::F16),
        safetensors::Dtype::BF16 => Some(DType::Bf16),
        safetensors::Dtype::I64 => Some(DType::I64),
        safetensors::Dtype::I32 => Some(DType::I32),
        safetensors::Dtype::U8 => Some(DType::U8),
        safetensors::Dtype::BOOL => Some(DType::Bool),
        _ => None,
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("golden folder {}: {error}", folder.display()));
    entries.flatten().map(|entry| entry.path()).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `||found - expected|| / ||expected||` over all elements in order; shapes may differ, counts not.
/// Infinite where a number is missing or not finite.
pub fn relative_l2(found: &Tensor, expected: &Tensor) -> f64 {
    let (found, expected) = (wide(found), wide(expected));
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let error = crate::relative_l2(&found, &expected);
    if error.is_finite() { error } else { f64::INFINITY }
}

/// The same values as another type.
pub fn as_type(tensor: &Tensor, dtype: DType) -> Tensor {
    let ty = tensor.ty().with_dtype(dtype);
    if dtype.is_float() {
        Tensor::floats(ty, wide(tensor)).rounded()
    } else {
        Tensor::ints(ty, tensor.as_ints().to_vec()).rounded()
    }
}

/// The elements of `tensor` as f64, whatever its type.
pub fn wide(tensor: &Tensor) -> Vec<f64> {
    match tensor.data() {
        Data::Float(values) => values.clone(),
        Data::Int(values) => values.iter().map(|&x| x as f64).collect(),
    }
}

/// Every comparison that a suite made.
#[derive(Debug, Default)]
pub struct Report {
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    case: String,
    key: String,
    error: f64,
    limit: f64,
}

impl Report {
    /// Notes the relative error of value `key` of `case`, which passes up to `limit`.
    pub fn check(&mut self, case: &str, key: &str, error: f64, limit: f64) {
        self.lines.push(Line { case: case.into(), key: key.into(), error, limit });
    }

    /// One line per case: the number of values compared and the largest error.
    pub fn summary(&self) -> String {
        let mut cases: BTreeMap<&str, (usize, f64, &str)> = BTreeMap::new();
        for line in &self.lines {
            let (count, worst, key) = cases.entry(&line.case).or_insert((0, -1.0, ""));
            *count += 1;
            if line.error > *worst {
                (*worst, *key) = (line.error, &line.key);
            }
        }
        let row = |(case, (count, worst, key)): (&&str, &(usize, f64, &str))| {
            format!("{case:<48} {count:>3} values, worst {worst:.2e} ({key})\n")
        };
        cases.iter().map(row).collect()
    }

    /// The comparisons that failed.
    pub fn failures(&self) -> Vec<String> {
        let failed =
            self.lines.iter().filter(|line| line.error > line.limit || line.error.is_nan());
        failed
            .map(|line| {
                let Line { case, key, error, limit } = line;
                format!("{case}: {key}: relative error {error:.2e}, allowed {limit:.0e}")
            })
            .collect()
    }
}
