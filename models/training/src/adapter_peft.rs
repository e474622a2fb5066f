//! Adaptations as PEFT keeps them: a folder with `adapter_model.safetensors` and `adapter_config.json`.
//!
//! PEFT has a layer for each factor, whose weight is stored: for a convolution both are convolutions, the first with
//! the window of the adapted one, the second with a window of 1. It names them below its own wrappers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use checkpoint::names::Parameter;
use serde_json::{Value, json};

use crate::adapter::{FACTORS, Stated};
use crate::{Adapter, Error};

/// The tensors in a folder of PEFT.
pub const PEFT_WEIGHTS: &str = "adapter_model.safetensors";
/// What a folder of PEFT says of its tensors, as JSON.
pub const PEFT_CONFIG: &str = "adapter_config.json";

/// What PEFT puts before the names of a model's own modules, from the outside in.
pub(crate) const PREFIX: &str = "base_model.model.";
/// And what diffusers does.
const DIFFUSERS_PREFIX: &str = "transformer.";

/// PEFT's name of an adaptation without a name, which some savers leave in.
const UNNAMED: &str = ".default";

/// Largest configuration that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

impl Adapter {
    /// Writes the factors under PEFT's names and in the shapes of its layers; `params` are the model's.
    ///
    /// # Errors
    /// As [`Adapter::check`]; [`Error::Checkpoint`] for the system's, after which nothing is left behind.
    pub fn write_peft_weights(&self, path: &Path, params: &[Parameter]) -> Result<(), Error> {
        self.check(params)?;
        self.write_factors(path, |target, [first, second]| {
            let adapted = params.iter().find(|(name, _)| name == target);
            let shape = adapted.map_or(&[][..], |(_, shape)| shape);
            let module = module_of(target);
            let name = |factor: &str| format!("{PREFIX}{module}.{factor}.weight");
            // The axes of a weight behind its first are one in the factors.
            let rest = shape.get(1..).unwrap_or_default();
            let first = [&first[..1], rest].concat();
            let second = [&second[..], &vec![1; rest.len().saturating_sub(1)]].concat();
            [(name(FACTORS[0]), first), (name(FACTORS[1]), second)]
        })
    }

    /// What [`PEFT_CONFIG`] holds. Modules are named one by one, so that PEFT adapts these and no others.
    pub fn peft_config(&self) -> Value {
        let modules: Vec<&str> = self.factors().map(|(target, _)| module_of(target)).collect();
        let alpha = self.alpha();
        // PEFT declares an integer, which a number that has a fraction may stand for.
        let alpha = match alpha.fract() == 0.0 && alpha < f64::from(u32::MAX) {
            true => json!(alpha as u64),
            false => json!(alpha),
        };
        json!({
            "peft_type": "LORA",
            "r": self.rank(),
            "lora_alpha": alpha,
            "target_modules": modules,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "use_dora": false,
            "use_rslora": false,
            "inference_mode": true,
        })
    }
}

/// The module of an adapted weight.
fn module_of(target: &str) -> &str {
    target.strip_suffix(".weight").unwrap_or(target)
}

/// A tensor's name as far as the model and the factor make it: without wrappers and the ending.
pub(crate) fn bare(name: &str) -> Option<&str> {
    let strip = |name, prefix| str::strip_prefix(name, prefix).unwrap_or(name);
    let own = [PREFIX, DIFFUSERS_PREFIX].into_iter().fold(name, strip);
    let stem = own.strip_suffix(".weight")?;
    Some(stem.strip_suffix(UNNAMED).unwrap_or(stem))
}

/// The files of an adaptation: its tensors, and where PEFT's configuration would be.
pub(crate) fn files(path: &Path) -> (PathBuf, PathBuf) {
    if path.is_dir() {
        let weights = path.join(PEFT_WEIGHTS);
        let weights = if weights.is_file() { weights } else { path.to_owned() };
        (weights, path.join(PEFT_CONFIG))
    } else {
        (path.to_owned(), path.with_file_name(PEFT_CONFIG))
    }
}

/// Reads a configuration, if there is one; `fail` makes an error of what is wrong with it.
pub(crate) fn read_config(
    path: &Path,
    fail: impl Fn(String) -> Error,
) -> Result<Option<Value>, Error> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file(path)(error)),
        Ok(found) if found.len() > MAX_CONFIG_BYTES => Err(fail(format!(
            "{PEFT_CONFIG} has {} bytes, expected at most {MAX_CONFIG_BYTES}",
            found.len()
        ))),
        Ok(_) => {
            let text = fs::read(path).map_err(Error::file(path))?;
            let json = serde_json::from_slice(&text);
            Ok(Some(json.map_err(|error| fail(format!("{PEFT_CONFIG}: {error}")))?))
        }
    }
}

/// What a configuration says. Kinds of adaptation that are more than a product of two factors are refused.
pub(crate) fn stated(config: &Value) -> Result<Stated, String> {
    let refuse = |key: &str, reason: &str| Err(format!("{PEFT_CONFIG}: `{key}` {reason}"));
    let is_on = |key: &str| match config.get(key) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Object(map)) => !map.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(_) => true,
    };
    if let Some(kind) = config.get("peft_type")
        && kind != "LORA"
    {
        return refuse("peft_type", &format!("is {kind}, expected \"LORA\""));
    }
    for key in ["use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern"] {
        if is_on(key) {
            return refuse(key, "is set, which cannot be merged here");
        }
    }
    let Some(rank) = config.get("r").and_then(Value::as_u64) else {
        return refuse("r", "is missing, expected the rank");
    };
    let Some(alpha) = config.get("lora_alpha").and_then(Value::as_f64) else {
        return refuse("lora_alpha", "is missing, expected a number");
    };
    // "Rank-stabilized" adaptations divide by the root of the rank.
    let alpha = if is_on("use_rslora") { alpha * (rank as f64).sqrt() } else { alpha };
    let rank = usize::try_from(rank).map_err(|_| format!("{PEFT_CONFIG}: `r` is {rank}"))?;
    Ok(Stated { rank: Some(rank), alpha: Some(alpha) })
}
