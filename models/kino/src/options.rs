//! Every option of `kino sample`, in one place: the command line, the keys of a configuration file
//! and the settings in an output's metadata are all this struct.
//!
//! An absent option is `None` (or empty), so that layers can be told apart; see `layers.rs`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::failure::{Failure, Outcome};

/// What to sample and how. Names are upstream's where upstream has the option.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SampleOptions {
    /// What the video shows; several prompts make several videos
    #[arg(value_name = "PROMPT")]
    #[serde(skip)]
    pub positional: Vec<String>,
    /// The same as an option, which may be given several times
    #[arg(long, num_args = 1.., value_name = "TEXT", help_heading = "Prompts")]
    pub prompt: Vec<String>,
    /// A text file with one prompt per line
    #[arg(long, value_name = "FILE", help_heading = "Prompts")]
    pub prompt_path: Option<PathBuf>,
    /// First prompt of the list to sample, from 0
    #[arg(long, value_name = "N", help_heading = "Prompts")]
    pub start_index: Option<usize>,
    /// One past the last prompt to sample
    #[arg(long, value_name = "N", help_heading = "Prompts")]
    pub end_index: Option<usize>,
    /// Videos per prompt [default: 1]
    #[arg(long, value_name = "N", help_heading = "Prompts")]
    pub num_sample: Option<usize>,
    /// Encode the prompt as typed (in lower case) instead of cleaning it as training captions were
    #[arg(long, help_heading = "Prompts")]
    #[serde(skip_serializing_if = "is_false")]
    pub no_clean_caption: bool,

    /// Images or videos that frames are taken of, joined by `;`: PNG, a folder of PNGs, others by
    /// ffmpeg; for all prompts, or one after the other for each
    #[arg(long, num_args = 1.., value_name = "PATH", help_heading = "Given frames")]
    pub reference_path: Vec<String>,
    /// Which frames they give: rules joined by `;`, each `loop,reference,first frame of it,first frame
    /// of the video,count,edit ratio`, where 0,0,0,0,1,0 fills up what is left out
    #[arg(long, num_args = 1.., value_name = "RULES", help_heading = "Given frames")]
    pub mask_strategy: Vec<String>,
    /// Loops of a long video, each of which begins with the last frames of the one before [default: 1]
    #[arg(long = "loop", value_name = "N", help_heading = "Given frames")]
    #[serde(rename = "loop")]
    pub n_loops: Option<usize>,
    /// Frames that loops share [default: a quarter of a loop]
    #[arg(long, value_name = "N", help_heading = "Given frames")]
    pub condition_frame_length: Option<usize>,
    /// Edit ratio of the frames that loops share: 0 keeps them, above they are denoised from that part
    /// of the way on [default: 0]
    #[arg(long, value_name = "RATIO", value_parser = finite, help_heading = "Given frames")]
    pub condition_frame_edit: Option<f64>,

    /// The embedded model (tiny-flare-1.1), or the kind that --ckpt-path must be: STDiT-XL/2, STDiT2-XL/2
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    pub model: Option<String>,
    /// A pipeline folder, or the transformer's weights (safetensors, .pth, or a folder)
    #[arg(long, value_name = "PATH", help_heading = "Model")]
    pub ckpt_path: Option<PathBuf>,
    /// The VAE's weights, where --ckpt-path has none
    #[arg(long, value_name = "PATH", help_heading = "Model")]
    pub vae: Option<PathBuf>,
    /// The T5 encoder's weights, where --ckpt-path has none
    #[arg(long, value_name = "PATH", help_heading = "Model")]
    pub text_encoder: Option<PathBuf>,
    /// tokenizer.json or spiece.model, where neither pipeline nor text encoder has one
    #[arg(long, value_name = "PATH", help_heading = "Model")]
    pub tokenizer: Option<PathBuf>,
    /// Type that weights and activations are stored in; sums are always f32 [default: f32]
    #[arg(long, value_name = "TYPE", help_heading = "Model")]
    pub dtype: Option<Storage>,
    /// The same for the text encoder's weights: f32, as upstream samples, or bf16 for half the memory
    /// [default: f32]
    #[arg(long, value_name = "TYPE", help_heading = "Model")]
    pub text_dtype: Option<Storage>,

    /// Frames: a number, or 2s 4s 8s 16s 32s [default: the model's, else 16]
    #[arg(long, value_name = "N", help_heading = "Video")]
    #[serde(deserialize_with = "text_or_number")]
    pub num_frames: Option<String>,
    /// Height and width in pixels [default: the model's]
    #[arg(long, num_args = 2, value_names = ["H", "W"], help_heading = "Video")]
    pub image_size: Option<Vec<usize>>,
    /// Size by name, such as 240p; see --aspect-ratio
    #[arg(long, value_name = "NAME", help_heading = "Video")]
    pub resolution: Option<String>,
    /// Height to width, such as 9:16 for landscape [default: 9:16]
    #[arg(long, value_name = "H:W", help_heading = "Video")]
    pub aspect_ratio: Option<String>,
    /// Frames per second that the model is told [default: the model's, else 24]
    #[arg(long, value_name = "RATE", value_parser = finite, help_heading = "Video")]
    pub fps: Option<f64>,
    /// Every how many-th frame a video has: it plays at fps / interval [default: the model's, else 3]
    #[arg(long, value_name = "N", help_heading = "Video")]
    pub frame_interval: Option<usize>,
    /// Frames per second of the output, whatever the model is told
    #[arg(long, value_name = "RATE", value_parser = finite, help_heading = "Video")]
    pub save_fps: Option<f64>,

    /// Denoising steps [default: the model's, else 100]
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub num_sampling_steps: Option<usize>,
    /// How strongly the prompt is followed [default: the model's, else 7]
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true, value_parser = finite, help_heading = "Sampling")]
    pub cfg_scale: Option<f64>,
    /// How many latent channels are guided; as many as there are for all [default: the release's]
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub cfg_channel: Option<usize>,
    /// The sampler [default: iddpm]
    #[arg(long, value_name = "NAME", help_heading = "Sampling")]
    pub scheduler: Option<SchedulerName>,
    /// The same seed gives the same video [default: 42]
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub seed: Option<u64>,
    /// Number of the first video, which chooses its noise; an output's metadata states its own
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub sample_index: Option<u64>,
    /// Videos sampled at once; does not change them [default: 1]
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub batch_size: Option<usize>,
    /// Initial noise: safetensors with tensor `z` or `noise` of the latent's shape
    #[arg(long, value_name = "FILE", help_heading = "Sampling")]
    pub initial_noise: Option<PathBuf>,

    /// The output: .mp4 .png .gif .webp .sheet.png, or a folder of PNGs with a / at the end
    #[arg(long, short, value_name = "PATH", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Folder for outputs, named by --sample-name [default: samples]
    #[arg(long, value_name = "FOLDER", help_heading = "Output")]
    pub save_dir: Option<PathBuf>,
    /// Outputs are `NAME_0000`, `NAME_0001`, ... [default: sample]
    #[arg(long, value_name = "NAME", help_heading = "Output")]
    pub sample_name: Option<String>,
    /// Format of outputs in --save-dir [default: mp4, png for one frame]
    #[arg(long, value_name = "FORMAT", help_heading = "Output")]
    pub format: Option<FormatName>,
    /// Also write the final latents: safetensors, `latents` f32 [videos, channels, frames, h, w]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub save_latents: Option<PathBuf>,

    /// Run on a GPU: the model compiled for this size by `kino compile`
    #[cfg(feature = "cuda")]
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    #[serde(skip)]
    pub engine: Option<PathBuf>,
    /// Which GPU runs the engine: cuda:0, cuda:1, ..., or cuda-emulated (cuda-emulated:sm_80) for none [default: cuda:0]
    #[cfg(feature = "cuda")]
    #[arg(long, value_name = "DEVICE", requires = "engine", help_heading = "Run")]
    #[serde(skip)]
    pub device: Option<String>,
    /// Who computes the engine's plain products [default: own]
    #[cfg(feature = "cuda")]
    #[arg(long, value_name = "WHO", requires = "engine", help_heading = "Run")]
    #[serde(skip)]
    pub products: Option<ProductsName>,
    /// Threads; does not change the video [default: all]
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub threads: Option<usize>,
    /// Most memory for activations and weights, such as 12GiB: long videos run in smaller chunks; does not change the video
    #[arg(long, value_name = "BYTES", help_heading = "Run")]
    #[serde(deserialize_with = "text_or_number")]
    pub memory: Option<String>,
    /// One JSON document on standard output: plan, seconds of each stage, outputs
    #[arg(long, help_heading = "Run")]
    #[serde(skip_serializing_if = "is_false")]
    pub json: bool,
    /// Print errors only
    #[arg(long, short, help_heading = "Run")]
    #[serde(skip_serializing_if = "is_false")]
    pub quiet: bool,
    /// A TOML file with any of these options; options given here win
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Write where the time of each stage went, as `kino profile --json` has it
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    #[serde(skip)]
    pub profile: Option<PathBuf>,
    /// Sample again what made this output: MP4, PNG, GIF, WebP or folder; options given here win
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    #[serde(skip)]
    pub from: Option<PathBuf>,
}

/// Options as JSON.
pub(crate) type Layer = Map<String, Value>;

impl SampleOptions {
    /// The options that are set.
    pub(crate) fn layer(&self) -> Layer {
        let value = serde_json::to_value(self).expect("options are plain data");
        let Value::Object(mut map) = value else { unreachable!("a struct is an object") };
        map.retain(|_, value| {
            !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty())
        });
        map
    }
}

/// Storage types, also under upstream's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Storage {
    /// 32 bits
    #[value(alias = "fp32")]
    #[serde(alias = "fp32")]
    F32,
    /// 16 bits, range of f32
    Bf16,
    /// 16 bits, IEEE
    #[value(alias = "fp16")]
    #[serde(alias = "fp16")]
    F16,
}

impl Storage {
    /// The element type.
    pub(crate) fn dtype(self) -> ops::DType {
        match self {
            Storage::F32 => ops::DType::F32,
            Storage::Bf16 => ops::DType::Bf16,
            Storage::F16 => ops::DType::F16,
        }
    }

    /// The storage type of an element type; f32 for what is no float.
    #[cfg(feature = "cuda")]
    pub(crate) fn of(dtype: ops::DType) -> Storage {
        match dtype {
            ops::DType::F16 => Storage::F16,
            ops::DType::Bf16 => Storage::Bf16,
            _ => Storage::F32,
        }
    }

    /// The element type of a text encoder's weights.
    ///
    /// # Errors
    /// Not f16: what T5 adds up exceeds its range.
    pub(crate) fn text_dtype(self) -> Outcome<ops::DType> {
        match self {
            Storage::F32 | Storage::Bf16 => Ok(self.dtype()),
            Storage::F16 => Err(Failure::usage(
                "f16 for a text encoder: T5 exceeds its range; expected f32 or bf16",
            )),
        }
    }

    /// The element type in a file.
    pub(crate) fn stored(self) -> checkpoint::DType {
        match self {
            Storage::F32 => checkpoint::DType::F32,
            Storage::Bf16 => checkpoint::DType::BF16,
            Storage::F16 => checkpoint::DType::F16,
        }
    }
}

/// Samplers under upstream's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SchedulerName {
    /// Ancestral sampling with learned variance
    Iddpm,
    /// DPM-Solver++, second order, for few steps
    DpmSolver,
}

/// Who computes products that cuBLASLt can compute as well.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum ProductsName {
    /// The engine's kernels
    Own,
    /// cuBLASLt, which must be on this machine
    Cublaslt,
    /// cuBLASLt where `kino tune` found it faster and it is there
    Auto,
}

#[cfg(feature = "cuda")]
impl ProductsName {
    /// As engines are told.
    pub(crate) fn products(self) -> cuda::Products {
        match self {
            ProductsName::Own => cuda::Products::Own,
            ProductsName::Cublaslt => cuda::Products::Library,
            ProductsName::Auto => cuda::Products::Measured,
        }
    }
}

/// Formats of outputs in a folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FormatName {
    /// H.264
    Mp4,
    /// One frame
    Png,
    /// Animated, 256 colors
    Gif,
    /// Animated, lossless
    Webp,
    /// A folder of PNGs
    Frames,
    /// All frames on one PNG
    Sheet,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A number that JSON can hold, so that no layer loses it.
fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err("expected a finite number".into()),
    }
}

/// TOML may say `num_frames = 16` or `num_frames = "2s"`.
fn text_or_number<'de, D: serde::Deserializer<'de>>(source: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Text(String),
    }
    Ok(Option::<Either>::deserialize(source)?.map(|value| match value {
        Either::Number(number) => number.to_string(),
        Either::Text(text) => text,
    }))
}
