//! Architectures that weights were published of, by name: their `config.json`, without the weights.

use serde_json::{Value as Json, json};

use crate::config::{AutoencoderKl, Stdit1, Stdit2, T5};
use crate::{Error, stdit1, stdit2, t5, vae};

/// A configuration of any model that can be built.
#[derive(Clone, PartialEq, Debug)]
pub enum Architecture {
    /// Open-Sora 1.0's transformer.
    Stdit1(Stdit1),
    /// Open-Sora 1.1's transformer.
    Stdit2(Stdit2),
    /// T5's encoder.
    T5(T5),
    /// Stable Diffusion's image autoencoder.
    AutoencoderKl(AutoencoderKl),
}

impl Architecture {
    /// Names and shapes of the parameters, under upstream's names.
    ///
    /// # Errors
    /// Those of the model's builder.
    pub fn params(&self) -> Result<Vec<(String, Vec<usize>)>, Error> {
        match self {
            Architecture::Stdit1(config) => stdit1::params(config),
            Architecture::Stdit2(config) => stdit2::params(config),
            Architecture::T5(config) => t5::params(config),
            Architecture::AutoencoderKl(config) => vae::params(config),
        }
    }
}

/// A published architecture.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// What users call it.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    config: fn() -> Json,
    parse: fn(&Json) -> Result<Architecture, Error>,
}

/// Every one, by name.
pub const PUBLISHED: [Published; 6] = [
    Published {
        name: "sd-vae",
        about: "AutoencoderKL of Stable Diffusion, 84M parameters",
        config: sd_vae,
        parse: |json| AutoencoderKl::from_json(json).map(Architecture::AutoencoderKl),
    },
    Published {
        name: "stdit-xl",
        about: "STDiT-XL/2 of Open-Sora 1.0, 760M parameters",
        config: stdit_xl,
        parse: |json| Stdit1::from_json(json).map(Architecture::Stdit1),
    },
    Published {
        name: "stdit2-xl",
        about: "STDiT2-XL/2 of Open-Sora 1.1, 767M parameters",
        config: stdit2_xl,
        parse: |json| Stdit2::from_json(json).map(Architecture::Stdit2),
    },
    Published {
        name: "t5-large",
        about: "encoder of T5 v1.1 large, 341M parameters",
        config: || t5_v1_1(1024, 2816, 16),
        parse: |json| T5::from_json(json).map(Architecture::T5),
    },
    Published {
        name: "t5-xl",
        about: "encoder of T5 v1.1 XL, 1.2G parameters",
        config: || t5_v1_1(2048, 5120, 32),
        parse: |json| T5::from_json(json).map(Architecture::T5),
    },
    Published {
        name: "t5-xxl",
        about: "encoder of T5 v1.1 XXL, 4.8G parameters",
        config: || t5_v1_1(4096, 10240, 64),
        parse: |json| T5::from_json(json).map(Architecture::T5),
    },
];

/// The one called `name`.
pub fn find(name: &str) -> Option<&'static Published> {
    PUBLISHED.iter().find(|model| model.name == name)
}

impl Published {
    /// Its `config.json`.
    pub fn config_json(&self) -> Json {
        (self.config)()
    }

    /// Reads a `config.json` of this architecture, such as [`Published::config_json`] with some keys
    /// changed.
    ///
    /// # Errors
    /// A key that the architecture does not have, or a value that it cannot have.
    pub fn parse(&self, config: &Json) -> Result<Architecture, Error> {
        (self.parse)(config)
    }

    /// Its configuration.
    ///
    /// # Errors
    /// None, as a test shows.
    pub fn architecture(&self) -> Result<Architecture, Error> {
        self.parse(&self.config_json())
    }
}

fn sd_vae() -> Json {
    let (down, up) = (["DownEncoderBlock2D"; 4], ["UpDecoderBlock2D"; 4]);
    json!({
        "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
        "down_block_types": down, "in_channels": 3, "latent_channels": 4,
        "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 256,
        "up_block_types": up,
    })
}

fn stdit_xl() -> Json {
    json!({
        "_class_name": "STDiT", "caption_channels": 4096, "depth": 28, "hidden_size": 1152,
        "in_channels": 4, "mlp_ratio": 4.0, "model_max_length": 120, "num_heads": 16,
        "patch_size": [1, 2, 2], "pred_sigma": true,
    })
}

fn stdit2_xl() -> Json {
    json!({
        "_class_name": "STDiT2", "caption_channels": 4096, "depth": 28, "hidden_size": 1152,
        "in_channels": 4, "input_sq_size": 512, "mlp_ratio": 4.0, "model_max_length": 200,
        "num_heads": 16, "patch_size": [1, 2, 2], "pred_sigma": true, "qk_norm": true,
    })
}

fn t5_v1_1(d_model: usize, d_ff: usize, num_heads: usize) -> Json {
    json!({
        "architectures": ["T5EncoderModel"], "d_ff": d_ff, "d_kv": 64, "d_model": d_model,
        "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6, "model_type": "t5",
        "num_heads": num_heads, "num_layers": 24, "relative_attention_num_buckets": 32,
        "vocab_size": 32128,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_give_the_published_number_of_parameters() {
        for (name, expected) in [
            ("sd-vae", 83_653_863),
            ("stdit-xl", 759_620_768),
            ("stdit2-xl", 767_452_100),
            ("t5-large", 341_231_104),
            ("t5-xl", 1_223_527_424),
            ("t5-xxl", 4_762_310_656),
        ] {
            let params = find(name).unwrap().architecture().unwrap().params().unwrap();
            // Upstream counts what is trained; the null caption is a buffer.
            let trained = params.iter().filter(|(name, _)| !name.ends_with("y_embedding"));
            let count: usize = trained.map(|(_, shape)| shape.iter().product::<usize>()).sum();
            assert_eq!(count, expected, "{name}");
        }
    }

    #[test]
    fn names_are_sorted_and_found() {
        assert!(PUBLISHED.is_sorted_by_key(|model| model.name));
        assert!(PUBLISHED.iter().all(|model| find(model.name).is_some()));
        assert!(find("stdit").is_none());
    }
}
