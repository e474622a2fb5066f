//! Configurations from the names and shapes of a checkpoint's tensors, where there is no
//! `config.json`. What shapes cannot tell has the value of the published models.

use std::collections::BTreeMap;

use crate::Error;
use crate::config::{Activation, AutoencoderKl, Stdit, Stdit1, Stdit2, T5};

/// Width of a head in every published `STDiT`.
const PUBLISHED_HEAD: usize = 72;

/// The tensors of one checkpoint by name.
struct Shapes<'a> {
    model: &'static str,
    by_name: BTreeMap<&'a str, &'a [usize]>,
}

impl<'a> Shapes<'a> {
    fn new(model: &'static str, tensors: &'a [(String, Vec<usize>)]) -> Shapes<'a> {
        let by_name = tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
        Shapes { model, by_name: by_name.collect() }
    }

    fn error(&self, reason: String) -> Error {
        Error::Shapes { model: self.model, reason }
    }

    fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The dims of tensor `name`, each at least 1.
    fn dims<const N: usize>(&self, name: &str) -> Result<[usize; N], Error> {
        let Some(&shape) = self.by_name.get(name) else {
            return Err(self.error(format!("there is no `{name}`")));
        };
        match <[usize; N]>::try_from(shape) {
            Ok(dims) if dims.iter().all(|dim| (1..=1 << 20).contains(dim)) => Ok(dims),
            _ => Err(self.error(format!("`{name}`: expected {N} dims, found {shape:?}"))),
        }
    }

    /// How many of `name(0)`, `name(1)`, ... there are.
    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|&i| self.has(&name(i))).count()
    }

    fn stdit(&self, head: Option<usize>) -> Result<Stdit, Error> {
        let [hidden_size, in_channels, t, h, w] = self.dims("x_embedder.proj.weight")?;
        let [max_length, caption_channels] = self.dims("y_embedder.y_embedding")?;
        let [mlp_hidden, _] = self.dims("blocks.0.mlp.fc1.weight")?;
        let [values, _] = self.dims("final_layer.linear.weight")?;
        let head = head.unwrap_or(PUBLISHED_HEAD);
        if !hidden_size.is_multiple_of(head) {
            return Err(self.error(format!("heads of {head} do not divide width {hidden_size}")));
        }
        let one = t * h * w * in_channels;
        if values != one && values != 2 * one {
            let name = "final_layer.linear.weight";
            return Err(self.error(format!("`{name}`: expected {one} or {} rows", 2 * one)));
        }
        let config = Stdit {
            in_channels,
            patch_size: [t, h, w],
            hidden_size,
            depth: self.count(|i| format!("blocks.{i}.scale_shift_table")),
            num_heads: hidden_size / head,
            mlp_ratio: mlp_hidden as f64 / hidden_size as f64,
            pred_sigma: values == 2 * one,
            caption_channels,
            model_max_length: max_length,
        };
        if config.depth == 0 {
            return Err(self.error("there is no `blocks.0.scale_shift_table`".into()));
        }
        config.check_heads(|reason| self.error(reason))?;
        Ok(config)
    }
}

impl Stdit1 {
    /// From the tensors of a checkpoint. Heads are as wide as in the published models and positions
    /// are those of 512x512 and 16 frames.
    pub fn from_shapes(tensors: &[(String, Vec<usize>)]) -> Result<Stdit1, Error> {
        let common = Shapes::new("STDiT", tensors).stdit(None)?;
        Ok(Stdit1 { common, space_scale: 1.0, time_scale: 1.0 })
    }
}

impl Stdit2 {
    /// From the tensors of a checkpoint. Positions are in units of 512x512, as published, and
    /// queries and keys are normed as in 1.1.
    pub fn from_shapes(tensors: &[(String, Vec<usize>)]) -> Result<Stdit2, Error> {
        let shapes = Shapes::new("STDiT2", tensors);
        let [half_head] = shapes.dims("rope.freqs")?;
        let config = Stdit2 {
            common: shapes.stdit(Some(2 * half_head))?,
            input_sq_size: 512.0,
            qk_norm: shapes.has("blocks.0.attn.q_norm.weight"),
            qk_norm_legacy: true,
        };
        config.check(|reason| shapes.error(reason))?;
        Ok(config)
    }
}

impl T5 {
    /// From the tensors of a checkpoint; a feed-forward layer with a gate has GELU, one without has
    /// `ReLU`.
    pub fn from_shapes(tensors: &[(String, Vec<usize>)]) -> Result<T5, Error> {
        let shapes = Shapes::new("T5", tensors);
        let first = "encoder.block.0.layer";
        let [vocab_size, d_model] = shapes.dims("shared.weight")?;
        let [inner, _] = shapes.dims(&format!("{first}.0.SelfAttention.q.weight"))?;
        let bias = format!("{first}.0.SelfAttention.relative_attention_bias.weight");
        let [buckets, num_heads] = shapes.dims(&bias)?;
        let gated = shapes.has(&format!("{first}.1.DenseReluDense.wi_0.weight"));
        let wide = if gated { "wi_0" } else { "wi" };
        let [d_ff, _] = shapes.dims(&format!("{first}.1.DenseReluDense.{wide}.weight"))?;
        if !inner.is_multiple_of(num_heads) || buckets < 4 {
            let reason = format!("{num_heads} heads, {buckets} buckets and width {inner} disagree");
            return Err(shapes.error(reason));
        }
        Ok(T5 {
            vocab_size,
            d_model,
            d_kv: inner / num_heads,
            d_ff,
            num_layers: shapes.count(|i| format!("encoder.block.{i}.layer.0.layer_norm.weight")),
            num_heads,
            relative_attention_num_buckets: buckets,
            relative_attention_max_distance: 4 * buckets,
            layer_norm_epsilon: 1e-6,
            gated,
            activation: if gated { Activation::GeluTanh } else { Activation::Relu },
        })
    }
}

impl AutoencoderKl {
    /// From the tensors of a checkpoint, whose norms have 32 groups as in the published ones.
    pub fn from_shapes(tensors: &[(String, Vec<usize>)]) -> Result<AutoencoderKl, Error> {
        let shapes = Shapes::new("AutoencoderKL", tensors);
        let norm_num_groups = 32;
        let [_, in_channels, ..] = shapes.dims::<4>("encoder.conv_in.weight")?;
        let [out_channels, ..] = shapes.dims::<4>("decoder.conv_out.weight")?;
        let [_, latent_channels, ..] = shapes.dims::<4>("decoder.conv_in.weight")?;
        let first = |level: usize| format!("encoder.down_blocks.{level}.resnets.0.conv1.weight");
        let mut block_out_channels = Vec::new();
        for level in 0..shapes.count(first) {
            let [channels, ..] = shapes.dims::<4>(&first(level))?;
            if !channels.is_multiple_of(norm_num_groups) {
                let name = first(level);
                let reason = format!("`{name}`: {channels} channels are not in groups of 32");
                return Err(shapes.error(reason));
            }
            block_out_channels.push(channels);
        }
        if block_out_channels.is_empty() || block_out_channels.len() > 8 {
            let found = block_out_channels.len();
            return Err(shapes.error(format!("expected 1 to 8 levels, found {found}")));
        }
        let resnet = |i| format!("encoder.down_blocks.0.resnets.{i}.conv1.weight");
        let attention = "encoder.mid_block.attentions.0.group_norm.weight";
        Ok(AutoencoderKl {
            in_channels,
            out_channels,
            latent_channels,
            block_out_channels,
            layers_per_block: shapes.count(resnet),
            norm_num_groups,
            use_quant_conv: shapes.has("quant_conv.weight"),
            use_post_quant_conv: shapes.has("post_quant_conv.weight"),
            mid_block_add_attention: shapes.has(attention),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{stdit1, stdit2, t5, vae};

    fn total(params: &[(String, Vec<usize>)]) -> usize {
        params.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    fn without_null_caption(params: &[(String, Vec<usize>)]) -> Vec<(String, Vec<usize>)> {
        let is_weight = |name: &str| name != "y_embedder.y_embedding";
        params.iter().filter(|(name, _)| is_weight(name)).cloned().collect()
    }

    // Counts of tensors and of trained numbers are those of upstream's modules; the null caption
    // and, in STDiT-2, nothing else is stored without being trained.

    #[test]
    fn stdit1_has_the_published_parameters() {
        let config = Stdit1::from_json(&json!({})).unwrap();
        let params = stdit1::params(&config).unwrap();
        assert_eq!(params.len(), 548);
        assert_eq!(total(&without_null_caption(&params)), 759_620_768);
        assert_eq!(Stdit1::from_shapes(&params).unwrap(), config);
    }

    #[test]
    fn stdit2_has_the_published_parameters() {
        let file = json!({ "model_max_length": 200, "qk_norm": true, "input_sq_size": 512 });
        let config = Stdit2::from_json(&file).unwrap();
        let params = stdit2::params(&config).unwrap();
        assert_eq!(params.len(), 707);
        assert_eq!(total(&without_null_caption(&params)), 767_452_100);
        assert_eq!(Stdit2::from_shapes(&params).unwrap(), config);
    }

    #[test]
    fn autoencoder_has_the_published_parameters() {
        let file = json!({ "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2 });
        let config = AutoencoderKl::from_json(&file).unwrap();
        let params = vae::params(&config).unwrap();
        assert_eq!(params.len(), 248);
        assert_eq!(total(&params), 83_653_863);
        assert_eq!(AutoencoderKl::from_shapes(&params).unwrap(), config);
    }

    #[test]
    fn t5_xxl_has_the_published_parameters() {
        let file = json!({
            "d_model": 4096, "d_ff": 10240, "num_heads": 64, "num_layers": 24,
            "feed_forward_proj": "gated-gelu",
        });
        let config = T5::from_json(&file).unwrap();
        let params = t5::params(&config).unwrap();
        assert_eq!(params.len(), 3 + 24 * 9);
        assert_eq!(total(&params), 4_762_310_656);
        assert_eq!(T5::from_shapes(&params).unwrap(), config);
    }

    #[test]
    fn every_parameter_has_one_name() {
        let config = Stdit2::from_json(&json!({ "depth": 2, "qk_norm": true })).unwrap();
        let mut names: Vec<String> =
            stdit2::params(&config).unwrap().into_iter().map(|(name, _)| name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn odd_variants_are_told_by_their_tensors() {
        let file = json!({
            "depth": 1, "hidden_size": 144, "num_heads": 4, "patch_size": [2, 4, 4],
            "pred_sigma": false, "input_sq_size": 512, "mlp_ratio": 1.5,
        });
        let config = Stdit2::from_json(&file).unwrap();
        let found = Stdit2::from_shapes(&stdit2::params(&config).unwrap()).unwrap();
        assert_eq!(found, config);

        let file = json!({ "num_layers": 1, "d_model": 64, "d_ff": 96 });
        let config = T5::from_json(&file).unwrap();
        assert_eq!(T5::from_shapes(&t5::params(&config).unwrap()).unwrap(), config);

        let file = json!({
            "block_out_channels": [32], "use_quant_conv": false, "use_post_quant_conv": false,
            "mid_block_add_attention": false, "latent_channels": 16,
        });
        let config = AutoencoderKl::from_json(&file).unwrap();
        let params = vae::params(&config).unwrap();
        assert_eq!(AutoencoderKl::from_shapes(&params).unwrap(), config);
    }

    #[test]
    fn names_the_tensor_that_is_missing_or_misshapen() {
        let config = Stdit2::from_json(&json!({ "depth": 1 })).unwrap();
        let params = stdit2::params(&config).unwrap();
        for name in ["rope.freqs", "x_embedder.proj.weight", "blocks.0.scale_shift_table"] {
            let rest: Vec<_> = params.iter().filter(|(other, _)| other != name).cloned().collect();
            let error = Stdit2::from_shapes(&rest).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
        let mut wrong = params;
        for (name, shape) in &mut wrong {
            if name == "final_layer.linear.weight" {
                shape[0] = 5;
            }
        }
        let error = Stdit2::from_shapes(&wrong).unwrap_err().to_string();
        assert!(error.contains("`final_layer.linear.weight`"), "{error}");
    }
}
