//! Hyper-parameters, as in upstream's `config.json` and with its defaults.
//!
//! A configuration that exists is sane: every count is at least 1 and heads divide the width, so
//! builders divide without checks. [`crate::shapes`] derives one from tensors where there is no
//! `config.json`.

use ops::DType;
use serde_json::Value as Json;

use crate::Error;
use crate::bucket::Bucket;
use crate::json::Keys;
use crate::nn::QkNorm;

/// What all generations of `STDiT` have in common.
#[derive(Clone, PartialEq, Debug)]
pub struct Stdit {
    /// Channels of the latent.
    pub in_channels: usize,
    /// Latent frames, rows and columns that make one token.
    pub patch_size: [usize; 3],
    /// Width of a token.
    pub hidden_size: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Width of the MLP's hidden layer over that of a token.
    pub mlp_ratio: f64,
    /// Whether the result has a variance for each channel.
    pub pred_sigma: bool,
    /// Width of the text features.
    pub caption_channels: usize,
    /// Tokens of the null caption: the greatest number a caption can have.
    pub model_max_length: usize,
}

/// `STDiT`, Open-Sora 1.0.
#[derive(Clone, PartialEq, Debug)]
pub struct Stdit1 {
    /// The common part.
    pub common: Stdit,
    /// Spatial positions are divided by this: 0.5 for models of 256x256, 1 for 512x512.
    pub space_scale: f64,
    /// Temporal positions are divided by this.
    pub time_scale: f64,
}

/// `STDiT-2`, Open-Sora 1.1.
#[derive(Clone, PartialEq, Debug)]
pub struct Stdit2 {
    /// The common part.
    pub common: Stdit,
    /// Side of the square, in pixels, in whose units positions are counted.
    pub input_sq_size: f64,
    /// Whether queries and keys of self attention are normed.
    pub qk_norm: bool,
    /// Whether they are normed after rotation, as in 1.1, rather than before, as an option of 1.2.
    pub qk_norm_legacy: bool,
}

/// The T5 encoder.
#[derive(Clone, PartialEq, Debug)]
pub struct T5 {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of a token.
    pub d_model: usize,
    /// Width of a head.
    pub d_kv: usize,
    /// Width of the feed-forward layer.
    pub d_ff: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Distances that are told apart.
    pub relative_attention_num_buckets: usize,
    /// From here on all distances are one.
    pub relative_attention_max_distance: usize,
    /// Epsilon of the norms.
    pub layer_norm_epsilon: f64,
    /// Whether the feed-forward layer has a gate: T5 1.1 has one, T5 1.0 has not.
    pub gated: bool,
    /// The nonlinearity of the feed-forward layer.
    pub activation: Activation,
}

/// A nonlinearity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    /// GELU in its tanh form.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x * sigmoid(x)`.
    Silu,
}

/// `AutoencoderKL`.
#[derive(Clone, PartialEq, Debug)]
pub struct AutoencoderKl {
    /// Channels of the images it encodes.
    pub in_channels: usize,
    /// Channels of the images it decodes.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels at each level, finest first; the size halves between levels.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every norm.
    pub norm_num_groups: usize,
    /// Whether a 1x1 convolution ends the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution starts the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the middle has an attention.
    pub mid_block_add_attention: bool,
}

/// Keys of an `STDiT`'s `config.json` that do not change what it computes when sampling.
const STDIT_INERT: &[&str] = &[
    "architectures",
    "auto_map",
    "class_dropout_prob",
    "drop_path",
    "dtype",
    "enable_flash_attn",
    "enable_flashattn",
    "enable_layernorm_kernel",
    "enable_sequence_parallelism",
    "freeze",
    "from_pretrained",
    "input_size",
    "model_type",
    "no_temporal_pos_emb",
    "torch_dtype",
    "transformers_version",
    "type",
];

/// Keys of an `AutoencoderKL`'s `config.json` that do not change what it computes.
const VAE_INERT: &[&str] = &[
    "force_upcast",
    "latents_mean",
    "latents_std",
    "sample_size",
    "scaling_factor",
    "shift_factor",
];

impl Stdit {
    fn read(keys: &mut Keys, max_length: usize) -> Result<Stdit, Error> {
        let config = Stdit {
            in_channels: keys.count("in_channels", 4)?,
            patch_size: keys.take("patch_size", [1, 2, 2])?,
            hidden_size: keys.count("hidden_size", 1152)?,
            depth: keys.layers("depth", 28)?,
            num_heads: keys.count("num_heads", 16)?,
            mlp_ratio: keys.positive("mlp_ratio", 4.0)?,
            pred_sigma: keys.take("pred_sigma", true)?,
            caption_channels: keys.count("caption_channels", 4096)?,
            model_max_length: keys.count("model_max_length", max_length)?,
        };
        if config.patch_size.iter().any(|dim| !(1..=64).contains(dim)) {
            let found = config.patch_size;
            return Err(keys.wrong("patch_size", format!("expected 1 to 64, found {found:?}")));
        }
        config.check_heads(|reason| keys.wrong("num_heads", reason))?;
        if config.mlp_hidden() == 0 {
            return Err(keys.wrong("mlp_ratio", "leaves no hidden layer".into()));
        }
        Ok(config)
    }

    /// Fails unless heads and position tables have whole widths.
    pub(crate) fn check_heads(&self, error: impl Fn(String) -> Error) -> Result<(), Error> {
        let (width, heads) = (self.hidden_size, self.num_heads);
        if !width.is_multiple_of(heads) {
            return Err(error(format!("{heads} heads do not divide a width of {width}")));
        }
        if !width.is_multiple_of(4) {
            return Err(error(format!(
                "position tables need a multiple of 4, found width {width}"
            )));
        }
        Ok(())
    }

    /// Width of a head.
    pub fn head_width(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    /// Width of the MLP's hidden layer.
    pub fn mlp_hidden(&self) -> usize {
        (self.hidden_size as f64 * self.mlp_ratio) as usize
    }

    /// Channels of the result.
    pub fn out_channels(&self) -> usize {
        if self.pred_sigma { 2 * self.in_channels } else { self.in_channels }
    }

    /// Values that the final layer gives for a token.
    pub(crate) fn patch_values(&self) -> usize {
        self.patch_size.iter().product::<usize>() * self.out_channels()
    }

    /// A bucket of one token that uses every parameter.
    pub(crate) fn smallest_bucket(&self) -> Bucket {
        Bucket {
            dtype: DType::F32,
            captions: 1,
            guided: true,
            latents: 1,
            conditions: 1,
            latent: self.patch_size,
            pixels: [1.0, 1.0],
            caption_tokens: 1,
            caption_mask: false,
            frame_mask: false,
        }
    }
}

impl Stdit1 {
    /// From the keys that upstream's constructor takes; absent ones have its defaults, unknown ones
    /// are refused.
    pub fn from_json(config: &Json) -> Result<Stdit1, Error> {
        let mut keys = Keys::new("STDiT", config)?;
        let config = Stdit1 {
            common: Stdit::read(&mut keys, 120)?,
            space_scale: keys.positive("space_scale", 1.0)?,
            time_scale: keys.positive("time_scale", 1.0)?,
        };
        keys.end(STDIT_INERT)?;
        Ok(config)
    }
}

impl Stdit2 {
    /// From the keys that upstream's constructor takes; absent ones have its defaults, unknown ones
    /// are refused.
    pub fn from_json(config: &Json) -> Result<Stdit2, Error> {
        let mut keys = Keys::new("STDiT2", config)?;
        let config = Stdit2 {
            common: Stdit::read(&mut keys, 120)?,
            input_sq_size: keys.positive("input_sq_size", 32.0)?,
            qk_norm: keys.take("qk_norm", false)?,
            qk_norm_legacy: keys.take("qk_norm_legacy", true)?,
        };
        config.check(|reason| keys.wrong("hidden_size", reason))?;
        keys.end(STDIT_INERT)?;
        Ok(config)
    }

    /// Fails unless the width splits into the three size embeddings and heads into rotated pairs.
    pub(crate) fn check(&self, error: impl Fn(String) -> Error) -> Result<(), Error> {
        let width = self.common.hidden_size;
        if !width.is_multiple_of(3) {
            return Err(error(format!("size embeddings need a multiple of 3, found {width}")));
        }
        match self.common.head_width() {
            head if !head.is_multiple_of(2) => {
                Err(error(format!("cannot rotate heads of odd width {head}")))
            }
            _ => Ok(()),
        }
    }

    /// The norm of queries and keys.
    pub fn qk_norm(&self) -> QkNorm {
        match (self.qk_norm, self.qk_norm_legacy) {
            (false, _) => QkNorm::Off,
            (true, true) => QkNorm::AfterRope,
            (true, false) => QkNorm::BeforeRope,
        }
    }
}

impl T5 {
    /// From the `config.json` of `transformers`. Such files carry any number of keys that have to
    /// do with generation or training, so unknown ones are passed over.
    pub fn from_json(config: &Json) -> Result<T5, Error> {
        let mut keys = Keys::new("T5", config)?;
        let feed_forward: String = keys.take("feed_forward_proj", "relu".to_string())?;
        let (gated, activation) = match feed_forward.as_str() {
            "relu" => (false, Activation::Relu),
            "gated-gelu" => (true, Activation::GeluTanh),
            "gated-relu" => (true, Activation::Relu),
            "gated-silu" => (true, Activation::Silu),
            found => {
                let expected = "expected relu, gated-gelu, gated-relu or gated-silu";
                let reason = format!("{expected}, found `{found}`");
                return Err(keys.wrong("feed_forward_proj", reason));
            }
        };
        let config = T5 {
            vocab_size: keys.count("vocab_size", 32128)?,
            d_model: keys.count("d_model", 512)?,
            d_kv: keys.count("d_kv", 64)?,
            d_ff: keys.count("d_ff", 2048)?,
            num_layers: keys.layers("num_layers", 6)?,
            num_heads: keys.count("num_heads", 8)?,
            relative_attention_num_buckets: keys.count("relative_attention_num_buckets", 32)?,
            relative_attention_max_distance: keys.count("relative_attention_max_distance", 128)?,
            layer_norm_epsilon: keys.positive("layer_norm_epsilon", 1e-6)?,
            gated,
            activation,
        };
        let buckets = config.relative_attention_num_buckets;
        if buckets < 4 {
            let reason = format!("expected at least 4, found {buckets}");
            return Err(keys.wrong("relative_attention_num_buckets", reason));
        }
        if config.relative_attention_max_distance <= buckets / 4 {
            let reason = format!("expected more than a quarter of {buckets} buckets");
            return Err(keys.wrong("relative_attention_max_distance", reason));
        }
        Ok(config)
    }
}

impl AutoencoderKl {
    /// From the `config.json` of `diffusers`; unknown keys are refused.
    pub fn from_json(config: &Json) -> Result<AutoencoderKl, Error> {
        let mut keys = Keys::new("AutoencoderKL", config)?;
        let config = AutoencoderKl {
            in_channels: keys.count("in_channels", 3)?,
            out_channels: keys.count("out_channels", 3)?,
            latent_channels: keys.count("latent_channels", 4)?,
            block_out_channels: keys.take("block_out_channels", vec![64])?,
            layers_per_block: keys.layers("layers_per_block", 1)?,
            norm_num_groups: keys.count("norm_num_groups", 32)?,
            use_quant_conv: keys.take("use_quant_conv", true)?,
            use_post_quant_conv: keys.take("use_post_quant_conv", true)?,
            mid_block_add_attention: keys.take("mid_block_add_attention", true)?,
        };
        let (channels, groups) = (&config.block_out_channels, config.norm_num_groups);
        if channels.is_empty() || channels.len() > 8 {
            let reason = format!("expected 1 to 8 levels, found {}", channels.len());
            return Err(keys.wrong("block_out_channels", reason));
        }
        if channels.iter().any(|&width| width == 0 || !width.is_multiple_of(groups)) {
            let reason = format!("{channels:?} do not split into {groups} groups");
            return Err(keys.wrong("block_out_channels", reason));
        }
        keys.fixed("act_fn", "silu")?;
        keys.all("down_block_types", "DownEncoderBlock2D", channels.len())?;
        keys.all("up_block_types", "UpDecoderBlock2D", channels.len())?;
        keys.end(VAE_INERT)?;
        Ok(config)
    }

    /// Pixels per latent along each axis.
    pub fn downscale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn reads_upstreams_file() {
        let file = json!({
            "architectures": ["STDiT2"], "caption_channels": 128, "class_dropout_prob": 0.1,
            "depth": 4, "drop_path": 0.0, "dtype": "float32", "enable_flash_attn": false,
            "enable_layernorm_kernel": false, "freeze": null, "hidden_size": 192,
            "in_channels": 4, "input_size": [null, null, null], "input_sq_size": 64,
            "mlp_ratio": 4.0, "model_max_length": 24, "model_type": "STDiT2",
            "no_temporal_pos_emb": false, "num_heads": 6, "patch_size": [1, 4, 4],
            "pred_sigma": true, "qk_norm": true, "transformers_version": "4.57.6",
        });
        let config = Stdit2::from_json(&file).unwrap();
        assert_eq!(config.common.patch_size, [1, 4, 4]);
        assert_eq!(config.common.head_width(), 32);
        assert_eq!(config.qk_norm(), QkNorm::AfterRope);
    }

    #[test]
    fn names_an_unknown_key() {
        let error = message(Stdit2::from_json(&json!({ "use_spatial_rope": true })));
        assert!(error.contains("`use_spatial_rope`"), "{error}");
        let error = message(AutoencoderKl::from_json(&json!({ "mid_block_type": "x" })));
        assert!(error.contains("`mid_block_type`"), "{error}");
    }

    #[test]
    fn names_the_key_of_a_wrong_value() {
        for (key, value) in [
            ("depth", json!("28")),
            ("depth", json!(0)),
            ("depth", json!(-1)),
            ("depth", json!(257)),
            ("hidden_size", json!(1u64 << 40)),
            ("patch_size", json!([1, 2])),
            ("patch_size", json!([1, 0, 2])),
            ("mlp_ratio", json!(0.0)),
            ("num_heads", json!(7)),
            ("space_scale", json!(-1.0)),
        ] {
            let error = message(Stdit1::from_json(&json!({ key: value })));
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
        for (key, value) in [
            ("feed_forward_proj", json!("gated-sine")),
            ("relative_attention_num_buckets", json!(2)),
            ("relative_attention_max_distance", json!(8)),
        ] {
            let error = message(T5::from_json(&json!({ key: value })));
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
        for (key, value) in [
            ("act_fn", json!("gelu")),
            ("block_out_channels", json!([])),
            ("block_out_channels", json!([33])),
            ("down_block_types", json!(["AttnDownBlock2D"])),
        ] {
            let error = message(AutoencoderKl::from_json(&json!({ key: value })));
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
    }

    #[test]
    fn rejects_what_is_no_object() {
        assert!(message(T5::from_json(&json!([1]))).contains("JSON object"));
    }
}
