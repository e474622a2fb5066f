//! From the path a user gives to the weight files it means.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::pipeline::MODEL_INDEX;

/// Weight files of a model folder, best first. Both libraries prefer safetensors, and one file to shards.
const WEIGHT_FILES: [&str; 10] = [
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "pytorch_model.safetensors.index.json",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin.index.json",
    "model_ckpt.pt",
];

/// The folder in which `ColossalAI` puts a training checkpoint's weights.
const COLOSSAL_FOLDER: &str = "model";

/// The file to read for a path: the path itself if it is a file, else the folder's weights.
pub(crate) fn weight_file(path: &Path) -> Result<PathBuf, Error> {
    let meta = std::fs::metadata(path).map_err(Error::io("open"))?;
    if !meta.is_dir() {
        return Ok(path.to_path_buf());
    }
    if let Some(found) = in_folder(path) {
        return Ok(found);
    }
    if path.join(MODEL_INDEX).is_file() {
        let example = path.join("transformer").display().to_string();
        return Err(Error::IsPipeline { example });
    }
    if let Some(found) = in_folder(&path.join(COLOSSAL_FOLDER)) {
        return Ok(found);
    }
    if let Some(found) = only_weights(path)? {
        return Ok(found);
    }
    let looked_for = WEIGHT_FILES.join(", ");
    Err(Error::NoWeights {
        looked_for: format!(
            "{looked_for}, the same in {COLOSSAL_FOLDER}/, or a single .safetensors, .pt, .pth or .bin file"
        ),
    })
}

fn in_folder(folder: &Path) -> Option<PathBuf> {
    WEIGHT_FILES.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

/// The one file in a folder that looks like weights.
fn only_weights(folder: &Path) -> Result<Option<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("list"))? {
        let path = entry.map_err(Error::io("list"))?.path();
        let is_weights = path.extension().is_some_and(|extension| {
            ["safetensors", "pt", "pth", "bin"].iter().any(|known| extension == *known)
        });
        if is_weights && path.is_file() {
            found.push(path);
        }
    }
    Ok(if found.len() == 1 { found.pop() } else { None })
}

/// The `config.json` that describes a weight file: beside it, if its name is one that model folders use.
pub(crate) fn config_file(given: &Path, weights: &Path) -> Option<PathBuf> {
    let name = weights.file_name()?.to_str()?;
    let is_model_folder = given.is_dir() || WEIGHT_FILES.contains(&name);
    let config = if given.is_dir() { given } else { weights.parent()? }.join("config.json");
    (is_model_folder && config.is_file()).then_some(config)
}
