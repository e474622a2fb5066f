//! The trained model as a pipeline folder under upstream's names, which `kino sample --ckpt-path` takes.
//!
//! Weights are the moving averages where the run has them; adapted ones have the averaged factors merged in, and the
//! adaptation is written too, as a folder that PEFT reads. Parts that the run does not train are those that it was
//! started with: linked where they are files, since they may be many times as large, else written.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use checkpoint::{DType, SafetensorsWriter, TensorSpec};
use media::PartFolder;
use ops::Tensor;
use runtime::WeightSource;
use serde_json::Value;
use training::{Adapter, ModelPart, Options, PEFT_CONFIG, PEFT_WEIGHTS, Param, State, StateKind};

use crate::{Error, Result};

const CONFIG: &str = "config.json";
const INDEX: &str = "model_index.json";

/// The files of a pipeline.
#[derive(Clone, Debug)]
pub enum PipelineFiles {
    /// A folder with a folder for each part.
    Folder(PathBuf),
    /// In the program: paths in such a folder, and bytes.
    Held(Vec<(&'static str, &'static [u8])>),
}

/// What a trained model is written of.
pub(crate) struct Trained<'a> {
    pub(crate) state: &'a State,
    /// What is not trained.
    pub(crate) weights: &'a dyn WeightSource,
    /// What is written in place of what was trained, by name.
    pub(crate) replaced: Vec<(&'static str, Vec<f32>)>,
    /// The factors of adapted weights.
    adapter: Option<Adapter>,
}

impl<'a> Trained<'a> {
    /// What training with `options` has made of `weights` when it is at `state`.
    ///
    /// # Errors
    /// As [`Adapter::of_state`].
    pub(crate) fn new(
        state: &'a State,
        weights: &'a dyn WeightSource,
        options: &Options,
    ) -> Result<Trained<'a>> {
        let kind = match options.ema_decay {
            Some(_) => StateKind::Ema,
            None => StateKind::Master,
        };
        let of_state = |lora| Adapter::of_state(lora, state, kind);
        let adapter = options.lora.as_ref().map(of_state).transpose()?;
        Ok(Trained { state, weights, replaced: Vec::new(), adapter })
    }

    /// Writes the weights `params` in f32, one tensor at a time.
    ///
    /// # Errors
    /// The system's, after which nothing is left behind, and weights that cannot be read.
    pub(crate) fn write_weights(&self, path: &Path, params: &[Param]) -> Result<()> {
        let spec = |param: &Param| TensorSpec {
            name: param.name.clone(),
            dtype: DType::F32,
            shape: param.shape.clone(),
        };
        let specs = params.iter().map(spec).collect();
        let mut writer = SafetensorsWriter::create(path, specs, &BTreeMap::new())?;
        let order: Vec<String> = writer.tensors().iter().map(|spec| spec.name.clone()).collect();
        for name in order {
            let replaced = self.replaced.iter().find(|(known, _)| *known == name);
            let averaged = replaced.map(|(_, values)| &values[..]);
            let averaged = averaged.or_else(|| self.state.get(StateKind::Ema, &name));
            match averaged.or_else(|| self.state.get(StateKind::Master, &name)) {
                Some(values) => writer.write(bytemuck::cast_slice(values))?,
                None => {
                    let mut values = self.untrained(&name)?;
                    if let Some(adapter) = &self.adapter {
                        adapter.merge(&name, &mut values);
                    }
                    writer.write(bytemuck::cast_slice(&values))?;
                }
            }
        }
        Ok(writer.finish()?)
    }

    /// A weight that is not trained.
    fn untrained(&self, name: &str) -> Result<Vec<f32>> {
        let fail = |reason| training::Error::Weight { name: name.to_string(), reason };
        let found = self.weights.tensor(name).map_err(fail)?;
        let (ty, bytes) = found.ok_or_else(|| fail("missing".into()))?;
        let tensor = Tensor::from_bytes(ty, &bytes).map_err(training::Error::from)?;
        self.weights.release(name);
        Ok(tensor.to_f32())
    }

    /// Writes the pipeline folder `target`, in place of an older one: `parts` are trained, all else is of `files`.
    ///
    /// # Errors
    /// The system's; a folder of that name that is not the run's stays.
    pub(crate) fn write_pipeline(
        &self,
        target: &Path,
        parts: &[ModelPart],
        index: &Value,
        files: &PipelineFiles,
    ) -> Result<()> {
        let of_target = |error| Error::io(target, "write the model")(error);
        let whole = PartFolder::create(target).map_err(of_target)?;
        media::write_file(&whole.path().join(INDEX), &json(index))?;
        for part in parts {
            let folder = whole.path().join(part.folder);
            fs::create_dir(&folder).map_err(of_target)?;
            media::write_file(&folder.join(CONFIG), &json(&part.config))?;
            self.write_weights(&folder.join(part.file), &part.params)?;
        }
        let is_trained = |name: &str| parts.iter().any(|part| part.folder == name);
        match files {
            PipelineFiles::Folder(folder) => {
                for (name, component) in checkpoint::Pipeline::open(folder)?.components {
                    if is_trained(&name) {
                        continue;
                    }
                    let from = fs::canonicalize(&component.path);
                    let from = from.map_err(Error::io(&component.path, "find it"))?;
                    link(&from, &whole.path().join(name)).map_err(of_target)?;
                }
            }
            PipelineFiles::Held(files) => {
                for (path, bytes) in files {
                    // What is in no folder is the index, which is written.
                    let Some((folder, name)) = path.split_once('/') else { continue };
                    if !is_trained(folder) {
                        let folder = whole.path().join(folder);
                        fs::create_dir_all(&folder).map_err(of_target)?;
                        media::write_file(&folder.join(name), bytes)?;
                    }
                }
            }
        }
        replace(whole, target, INDEX).map_err(of_target)
    }

    /// Writes the adaptation as the folder `target`, in place of an older one; `params` are those of the model that
    /// it is of. `false` if the run trains weights themselves.
    ///
    /// # Errors
    /// As [`Trained::write_pipeline`].
    pub(crate) fn write_adaptation(&self, target: &Path, params: &[Param]) -> Result<bool> {
        let Some(adapter) = &self.adapter else { return Ok(false) };
        let of_target = |error| Error::io(target, "write the adaptation")(error);
        let whole = PartFolder::create(target).map_err(of_target)?;
        let params: Vec<(String, Vec<usize>)> =
            params.iter().map(|param| (param.name.clone(), param.shape.clone())).collect();
        adapter.write_peft_weights(&whole.path().join(PEFT_WEIGHTS), &params)?;
        media::write_file(&whole.path().join(PEFT_CONFIG), &json(&adapter.peft_config()))?;
        replace(whole, target, PEFT_CONFIG).map_err(of_target)?;
        Ok(true)
    }
}

/// A JSON file.
fn json(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// Gives a folder its name, in place of one that has the file `mark`: another's folder stays.
fn replace(whole: PartFolder, target: &Path, mark: &str) -> io::Result<()> {
    if target.join(mark).is_file() {
        fs::remove_dir_all(target)?;
    }
    whole.commit()
}

/// A link to a folder.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::symlink(from, to);
    #[cfg(windows)]
    return std::os::windows::fs::symlink_dir(from, to);
    #[cfg(not(any(unix, windows)))]
    return Err(io::ErrorKind::Unsupported.into());
}
