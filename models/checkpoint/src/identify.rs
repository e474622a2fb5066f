//! Which model a checkpoint holds, for a person and for the program that loads it.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::shapes::{Shapes, values_from_shapes};
use crate::{Checkpoint, DType};

/// A kind of model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// Open-Sora 1.0's transformer.
    StDit1,
    /// Open-Sora 1.1's transformer.
    StDit2,
    /// Open-Sora 1.2's transformer.
    StDit3,
    /// `PixArt`: an image transformer with text cross attention.
    PixArt,
    /// `DiT` or Latte: a transformer with class or pooled-text conditioning.
    Dit,
    /// T5's encoder, with or without its decoder in the file.
    T5Encoder,
    /// Stable Diffusion's image autoencoder.
    AutoencoderKl,
    /// Open-Sora 1.2's video autoencoder: an image one and a temporal one.
    VideoAutoencoderPipeline,
    /// The temporal half of it.
    VaeTemporal,
    /// None of these.
    Unknown,
}

/// Class names and registry names to kinds; the first name of a kind is how it prints.
const CLASSES: [(&str, Kind); 23] = [
    ("STDiT", Kind::StDit1),
    ("STDiT-XL/2", Kind::StDit1),
    ("STDiT2", Kind::StDit2),
    ("STDiT2-XL/2", Kind::StDit2),
    ("STDiT3", Kind::StDit3),
    ("STDiT3-XL/2", Kind::StDit3),
    ("STDiT3-3B/2", Kind::StDit3),
    ("PixArt", Kind::PixArt),
    ("PixArtMS", Kind::PixArt),
    ("PixArt-XL/2", Kind::PixArt),
    ("DiT", Kind::Dit),
    ("Latte", Kind::Dit),
    ("DiT-XL/2", Kind::Dit),
    ("T5EncoderModel", Kind::T5Encoder),
    ("T5ForConditionalGeneration", Kind::T5Encoder),
    ("T5Model", Kind::T5Encoder),
    ("t5", Kind::T5Encoder),
    ("AutoencoderKL", Kind::AutoencoderKl),
    ("VideoAutoencoderKL", Kind::AutoencoderKl),
    ("VideoAutoencoderPipeline", Kind::VideoAutoencoderPipeline),
    ("OpenSoraVAE_V1_2", Kind::VideoAutoencoderPipeline),
    ("VAE_Temporal", Kind::VaeTemporal),
    ("VAE_Temporal_SD", Kind::VaeTemporal),
];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = CLASSES.iter().find(|row| row.1 == *self);
        f.write_str(class.map_or("unknown", |row| row.0))
    }
}

/// What an identification rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Evidence {
    /// The class named in `config.json`.
    Config,
    /// Tensor names and shapes alone.
    Tensors,
}

/// Tensors of one element type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DTypeTotal {
    /// Number of tensors.
    pub n_tensors: u64,
    /// Number of elements.
    pub n_elements: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// What a checkpoint is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Identity {
    /// The model.
    pub kind: Kind,
    /// Why that model.
    pub evidence: Evidence,
    /// Its class as `config.json` names it.
    pub class: Option<String>,
    /// Configuration values under upstream's names: from `config.json`, and from the tensors' shapes where it is
    /// silent.
    pub config: BTreeMap<String, Value>,
    /// Keys of `config` that nothing in the file states; they hold what all published models of this kind use.
    pub assumed: Vec<String>,
    /// Where `config.json` and the tensors contradict each other, one sentence each.
    pub contradictions: Vec<String>,
    /// Number of tensors.
    pub n_tensors: u64,
    /// Number of elements of all tensors, buffers included.
    pub n_parameters: u64,
    /// The same by element type.
    pub by_dtype: BTreeMap<DType, DTypeTotal>,
}

/// Tells which model a checkpoint holds, with its configuration and its totals. Never fails: a checkpoint of no
/// known model is [`Kind::Unknown`].
pub fn identify(checkpoint: &Checkpoint) -> Identity {
    let mut by_dtype: BTreeMap<DType, DTypeTotal> = BTreeMap::new();
    for info in checkpoint.tensors() {
        // Empty and expanded tensors of hostile files could add up beyond 64 bits.
        let total = by_dtype.entry(info.dtype).or_default();
        total.n_tensors += 1;
        total.n_elements = total.n_elements.saturating_add(info.n_elements() as u64);
        total.bytes = total.bytes.saturating_add(info.bytes as u64);
    }
    let stated = checkpoint.config().and_then(Value::as_object);
    let (class, stated_kind) = stated.and_then(class_of).unzip();
    let shapes = Shapes::new(checkpoint);
    let seen_kind = shapes.kind();
    let (kind, evidence) = match stated_kind.flatten() {
        Some(kind) => (kind, Evidence::Config),
        None => (seen_kind, Evidence::Tensors),
    };

    let seen = values_from_shapes(kind, &shapes);
    let mut contradictions = Vec::new();
    if kind != seen_kind && seen_kind != Kind::Unknown {
        contradictions
            .push(format!("config.json says {kind}, the tensors are those of {seen_kind}"));
    }
    let mut config = seen.values;
    let mut assumed = seen.assumed;
    for (key, value) in stated.into_iter().flatten().filter(|(key, _)| !key.starts_with('_')) {
        let was_assumed = assumed.iter().position(|name| name == key);
        if let Some(at) = was_assumed {
            assumed.remove(at);
        } else if let Some(shape_value) = config.get(key)
            && !value.is_null()
            && !same_value(value, shape_value)
        {
            contradictions
                .push(format!("config.json says {key} = {value}, the tensors say {shape_value}"));
        }
        if !value.is_null() || !config.contains_key(key) {
            config.insert(key.clone(), value.clone());
        }
    }
    Identity {
        kind,
        evidence,
        class,
        config,
        assumed,
        contradictions,
        n_tensors: checkpoint.len() as u64,
        n_parameters: by_dtype.values().fold(0, |sum, total| sum.saturating_add(total.n_elements)),
        by_dtype,
    }
}

/// The class name in a `config.json`, and its kind if it is a known one.
fn class_of(config: &Map<String, Value>) -> Option<(String, Option<Kind>)> {
    let class = config
        .get("_class_name")
        .or_else(|| config.get("architectures").and_then(|list| list.get(0)))
        .or_else(|| config.get("model_type"))
        .or_else(|| config.get("type"))?
        .as_str()?;
    let kind = CLASSES.iter().find(|row| row.0 == class).map(|row| row.1);
    Some((class.to_string(), kind))
}

/// Equality of configuration values, where `4` and `4.0` are one number.
fn same_value(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_value(a, b))
        }
        _ => a == b,
    }
}
