//! Parameters before training, as upstream initializes them: a function of seed, name and element, so that the
//! same seed gives the same model on any machine.
//!
//! Transformers: "Scalable Diffusion Models with Transformers" (Peebles and Xie, 2023), section 3.2, as Open-Sora has it:
//! what ends a residual branch that is new to an image model, and the last layer, is 0. T5: that of its first
//! implementation, by the widths of its layers. Autoencoder: `PyTorch`'s of convolutions.

use std::borrow::Cow;
use std::collections::BTreeMap;

use models::config::{Stdit, T5};
use ops::{DType, TensorType};
use runtime::WeightSource;

use crate::timesteps::uniform;
use crate::{Error, Objective, Options, Param};

/// Base of the frequencies of rotary positions.
const ROTARY_BASE: f64 = 1e4;
/// Deviation of the weights of a transformer's embeddings and modulations.
const EMBEDDING_STD: f64 = 0.02;

/// What the elements of a parameter are drawn from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Distribution {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// Uniform between `-bound` and `bound`.
    Uniform {
        /// The largest element.
        bound: f64,
    },
    /// Uniform between `-bound` and `bound`, and the later half of all elements moved by `shift`.
    HalfShifted {
        /// The largest distance from the middle.
        bound: f64,
        /// The middle of the later half.
        shift: f64,
    },
    /// Normal with mean 0.
    Normal {
        /// The deviation.
        std: f64,
    },
    /// Nothing is drawn: element `i` of `n` is `10000^(-i / n)`, a frequency of rotary positions.
    Frequencies,
}

impl Distribution {
    /// The `count` elements of the parameter `name`.
    pub fn values(self, seed: u64, name: &str, count: usize) -> Vec<f32> {
        let stream = stream(name);
        match self {
            Distribution::Zeros => vec![0.0; count],
            Distribution::Ones => vec![1.0; count],
            Distribution::Uniform { bound } => {
                let element = |i| (bound * (2.0 * uniform(seed, stream, i) - 1.0)) as f32;
                (0..count).map(element).collect()
            }
            Distribution::HalfShifted { bound, shift } => {
                let mut values = Distribution::Uniform { bound }.values(seed, name, count);
                values[count / 2..].iter_mut().for_each(|x| *x += shift as f32);
                values
            }
            Distribution::Normal { std } => {
                let mut values = vec![0f32; count];
                diffusion::fill_normal(seed, stream, 0, &mut values);
                values.iter_mut().for_each(|x| *x = (std * f64::from(*x)) as f32);
                values
            }
            Distribution::Frequencies => {
                let element = |i| ROTARY_BASE.powf(-(i as f64) / count as f64) as f32;
                (0..count).map(element).collect()
            }
        }
    }

    /// Uniform, of the deviation that keeps the size of what a weight `[out, fan_in]` is multiplied with, there
    /// and back.
    fn xavier(out: usize, fan_in: usize) -> Distribution {
        Distribution::Uniform { bound: (6.0 / (out + fan_in) as f64).sqrt() }
    }

    /// Normal with the deviation `1 / sqrt(width)`.
    fn over_root(width: usize) -> Distribution {
        Distribution::Normal { std: (width as f64).powf(-0.5) }
    }
}

/// The stream of random numbers of the parameter `name`: FNV-1a, so that each has one of its own.
pub(crate) fn stream(name: &str) -> u64 {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, fold)
}

/// The weights of a model before training: of trained parameters, and of those that never are.
#[derive(Clone, Debug)]
pub struct Initial {
    seed: u64,
    params: BTreeMap<String, Param>,
}

impl Initial {
    /// Those that a step of `objective` with `options` has, by their distributions.
    ///
    /// # Errors
    /// As [`Objective::parameters`].
    pub fn new<O: Objective>(
        objective: &O,
        options: &Options,
        seed: u64,
    ) -> Result<Initial, Error> {
        let params = objective.parameters(options)?;
        let params = params.into_iter().map(|param| (param.name.clone(), param)).collect();
        Ok(Initial { seed, params })
    }
}

impl WeightSource for Initial {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let Some(param) = self.params.get(name) else { return Ok(None) };
        let ty = TensorType::new(DType::F32, param.shape.clone());
        let ty = ty.map_err(|error| error.to_string())?;
        let values = param.initial.values(self.seed, name, ty.count());
        Ok(Some((ty, Cow::Owned(bytemuck::cast_slice(&values).to_vec()))))
    }
}

/// What the parameter `name` of a transformer is before training.
pub(crate) fn transformer(config: &Stdit, name: &str, shape: &[usize]) -> Distribution {
    let (module, kind) = name.rsplit_once('.').unwrap_or(("", name));
    let fan_in: usize = shape.iter().skip(1).product();
    let is_last = |modules: &[&str]| modules.iter().any(|last| module.ends_with(last));
    if name == "rope.freqs" {
        return Distribution::Frequencies;
    }
    if name == "y_embedder.y_embedding" {
        return Distribution::over_root(config.caption_channels);
    }
    if kind.starts_with("scale_shift_table") {
        return Distribution::over_root(config.hidden_size);
    }
    if is_last(&["q_norm", "k_norm"]) {
        return Distribution::Ones;
    }
    if is_last(&["cross_attn.proj", "attn_temp.proj", "final_layer.linear"]) {
        return Distribution::Zeros;
    }
    match (module, kind) {
        // The patch embedding is a convolution, whose bias is not set to 0 as that of linear layers is.
        ("x_embedder.proj", "bias") => {
            let patch: usize = config.patch_size.iter().product();
            let fan_in = (config.in_channels * patch) as f64;
            Distribution::Uniform { bound: fan_in.powf(-0.5) }
        }
        (_, "bias") => Distribution::Zeros,
        (
            "t_embedder.mlp.0"
            | "t_embedder.mlp.2"
            | "t_block.1"
            | "t_block_temp.1"
            | "y_embedder.y_proj.fc1"
            | "y_embedder.y_proj.fc2",
            _,
        ) => Distribution::Normal { std: EMBEDDING_STD },
        _ => Distribution::xavier(shape.iter().take(1).product(), fan_in),
    }
}

/// What the parameter `name` of a T5 encoder is before training.
pub(crate) fn text(config: &T5, name: &str) -> Distribution {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    match module.rsplit('.').next().unwrap_or(module) {
        "shared" => Distribution::Normal { std: 1.0 },
        // Scores are not scaled: the projection of queries is narrower instead.
        "q" => Distribution::over_root(config.d_model * config.d_kv),
        "o" => Distribution::over_root(config.num_heads * config.d_kv),
        "wo" => Distribution::over_root(config.d_ff),
        "layer_norm" | "final_layer_norm" => Distribution::Ones,
        _ => Distribution::over_root(config.d_model),
    }
}

/// What the parameter `name` of an autoencoder is before training. `fan_in` is the number of products in a sum of
/// the module's weight.
pub(crate) fn autoencoder(name: &str, fan_in: usize) -> Distribution {
    let is_norm = name.rsplit('.').nth(1).is_some_and(|module| module.contains("norm"));
    match (is_norm, name.ends_with(".bias")) {
        (true, false) => Distribution::Ones,
        (true, true) => Distribution::Zeros,
        (false, _) => Distribution::Uniform { bound: (fan_in as f64).powf(-0.5) },
    }
}
