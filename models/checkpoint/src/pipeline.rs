//! A pipeline folder: `model_index.json` and one sub-folder per part, as diffusers lays it out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Error;
use crate::checkpoint::read_json;
use crate::index::is_plain_name;

/// The file that makes a folder a pipeline.
pub(crate) const MODEL_INDEX: &str = "model_index.json";

/// A part of a pipeline that has a folder of its own.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Component {
    /// Python module of its class.
    pub library: String,
    /// Class name, such as `AutoencoderKL`.
    pub class: String,
    /// Its folder, which exists.
    pub path: PathBuf,
}

/// A pipeline: its parts by name, and everything else in `model_index.json`.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// The folder.
    pub path: PathBuf,
    /// Parts by name: `tokenizer`, `text_encoder`, `vae`, `transformer`.
    pub components: BTreeMap<String, Component>,
    /// The whole of `model_index.json`, with scheduler and sampling settings.
    pub model_index: Value,
}

impl Pipeline {
    /// Whether a path is a pipeline folder.
    pub fn is_pipeline(path: impl AsRef<Path>) -> bool {
        path.as_ref().join(MODEL_INDEX).is_file()
    }

    /// Reads `model_index.json`. Keys whose value is `[library, class]` are parts; a part given as `[null, null]`
    /// is absent.
    ///
    /// # Errors
    /// A missing or malformed `model_index.json`, or a part without its folder.
    pub fn open(path: impl AsRef<Path>) -> Result<Pipeline, Error> {
        let path = path.as_ref();
        let index_path = path.join(MODEL_INDEX);
        let model_index =
            read_json(&index_path, MODEL_INDEX).map_err(|error| error.within(&index_path))?;
        let components = Pipeline::parts(&model_index)
            .and_then(|parts| parts.into_iter().map(|part| component(path, part)).collect())
            .map_err(|error| error.within(path))?;
        Ok(Pipeline { path: path.to_path_buf(), components, model_index })
    }

    /// The `(part, library, class)` triples of a parsed `model_index.json`.
    fn parts(model_index: &Value) -> Result<Vec<(String, String, String)>, Error> {
        let Some(map) = model_index.as_object() else {
            let problem = "the file is not a JSON object".into();
            return Err(Error::Part { part: "(all)".into(), problem });
        };
        let mut parts = Vec::new();
        for (part, value) in map {
            let Some([library, class]) = value.as_array().map(Vec::as_slice) else { continue };
            let (Some(library), Some(class)) = (library.as_str(), class.as_str()) else { continue };
            if !is_plain_name(part) {
                let problem = "its name is not a plain folder name".into();
                return Err(Error::Part { part: part.clone(), problem });
            }
            parts.push((part.clone(), library.to_string(), class.to_string()));
        }
        Ok(parts)
    }

    /// A part's folder.
    ///
    /// # Errors
    /// [`Error::Part`] if the pipeline has none of this name.
    pub fn part(&self, name: &str) -> Result<&Path, Error> {
        let part = self.components.get(name).map(|component| component.path.as_path());
        part.ok_or_else(|| {
            let have: Vec<&str> = self.components.keys().map(String::as_str).collect();
            let problem = format!("not in this pipeline, which has {}", have.join(", "));
            Error::Part { part: name.into(), problem }.within(&self.path)
        })
    }
}

fn component(
    folder: &Path,
    (part, library, class): (String, String, String),
) -> Result<(String, Component), Error> {
    let path = folder.join(&part);
    if !path.is_dir() {
        return Err(Error::Part { part, problem: "its folder is missing".into() });
    }
    Ok((part, Component { library, class, path }))
}
