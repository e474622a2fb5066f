//! A model's kind and configuration, read off its tensors' names and shapes.
//!
//! Keys are upstream's own. What shapes cannot tell is left out, or listed as assumed where every published model
//! of the kind agrees.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{Checkpoint, Kind};

/// Head width of every published `STDiT`, `PixArt` and `DiT`.
const USUAL_HEAD_WIDTH: usize = 72;

/// Names (without the `module.` of wrappers) to shapes.
pub(crate) struct Shapes<'c>(BTreeMap<&'c str, &'c [usize]>);

/// Configuration values, and the keys among them that no shape supports.
#[derive(Default)]
pub(crate) struct Values {
    pub(crate) values: BTreeMap<String, Value>,
    pub(crate) assumed: Vec<String>,
}

impl Values {
    fn set(&mut self, key: &str, value: Option<Value>) {
        if let Some(value) = value {
            self.values.insert(key.to_string(), value);
        }
    }

    fn assume(&mut self, key: &str, value: Value) {
        self.values.insert(key.to_string(), value);
        self.assumed.push(key.to_string());
    }
}

impl<'c> Shapes<'c> {
    pub(crate) fn new(checkpoint: &'c Checkpoint) -> Shapes<'c> {
        let named = checkpoint
            .tensors()
            .map(|info| (info.name.strip_prefix("module.").unwrap_or(info.name), info.shape));
        Shapes(named.collect())
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn has_under(&self, prefix: &str) -> bool {
        self.0.range(prefix..).next().is_some_and(|(name, _)| name.starts_with(prefix))
    }

    /// One dim of a tensor; `None` without the tensor or the axis.
    fn dim(&self, name: &str, axis: usize) -> Option<usize> {
        self.0.get(name)?.get(axis).copied()
    }

    /// How many of `prefix0., prefix1., ...` there are, without gaps.
    fn count(&self, prefix: &str) -> usize {
        (0..self.0.len()).take_while(|i| self.has_under(&format!("{prefix}{i}."))).count()
    }

    /// The kind that the names speak for.
    pub(crate) fn kind(&self) -> Kind {
        if self.has("x_embedder.proj.weight") {
            let first = "blocks.0.";
            return match () {
                () if self.has_under("spatial_blocks.0.") => Kind::StDit3,
                () if self.has("t_block_temp.1.weight") => Kind::StDit2,
                () if self.has_under(&format!("{first}attn_temp.")) => Kind::StDit1,
                () if self.has(&format!("{first}scale_shift_table")) => Kind::PixArt,
                () if self.has(&format!("{first}adaLN_modulation.1.weight")) => Kind::Dit,
                () => Kind::Unknown,
            };
        }
        if self.has("encoder.block.0.layer.0.SelfAttention.q.weight") {
            return Kind::T5Encoder;
        }
        if self.has_under("temporal_vae.") && self.has_under("spatial_vae.") {
            return Kind::VideoAutoencoderPipeline;
        }
        if self.has_under("encoder.block_res_blocks.") {
            return Kind::VaeTemporal;
        }
        if self.has("encoder.conv_in.weight") || self.has("decoder.conv_in.weight") {
            return Kind::AutoencoderKl;
        }
        Kind::Unknown
    }
}

/// The configuration of a model of this kind, as far as shapes tell it.
pub(crate) fn values_from_shapes(kind: Kind, shapes: &Shapes<'_>) -> Values {
    let mut values = Values::default();
    match kind {
        Kind::StDit1 | Kind::StDit2 | Kind::StDit3 | Kind::PixArt | Kind::Dit => {
            transformer(kind, shapes, &mut values);
        }
        Kind::T5Encoder => t5(shapes, &mut values),
        Kind::AutoencoderKl => autoencoder_kl("", shapes, &mut values),
        Kind::VideoAutoencoderPipeline => {
            autoencoder_kl("spatial_vae.module.", shapes, &mut values);
        }
        Kind::VaeTemporal | Kind::Unknown => {}
    }
    values
}

fn transformer(kind: Kind, shapes: &Shapes<'_>, out: &mut Values) {
    let patch_weight = "x_embedder.proj.weight";
    let hidden = shapes.dim(patch_weight, 0);
    let channels = shapes.dim(patch_weight, 1);
    // Image models have a 2-D patch: [h, c, p, p].
    let patch = shapes.0.get(patch_weight).and_then(|shape| match **shape {
        [_, _, t, h, w] => Some([t, h, w]),
        [_, _, h, w] => Some([1, h, w]),
        _ => None,
    });
    let blocks = if kind == Kind::StDit3 { "spatial_blocks." } else { "blocks." };
    out.set("hidden_size", hidden.map(Value::from));
    out.set("in_channels", channels.map(Value::from));
    out.set("patch_size", patch.map(|patch| json!(patch)));
    out.set("depth", Some(json!(shapes.count(blocks))));
    out.set("caption_channels", shapes.dim("y_embedder.y_proj.fc1.weight", 1).map(Value::from));
    out.set("model_max_length", shapes.dim("y_embedder.y_embedding", 0).map(Value::from));
    let mlp = shapes.dim(&format!("{blocks}0.mlp.fc1.weight"), 0);
    if let (Some(hidden), Some(mlp)) = (hidden.filter(|hidden| *hidden > 0), mlp) {
        out.set("mlp_ratio", Some(json!(mlp as f64 / hidden as f64)));
    }
    let outputs = shapes.dim("final_layer.linear.weight", 0);
    if let (Some(patch), Some(outputs), Some(channels)) = (patch, outputs, channels) {
        let volume = patch.iter().try_fold(1usize, |volume, dim| volume.checked_mul(*dim));
        if let Some(volume) = volume.filter(|volume| *volume > 0) {
            out.set("pred_sigma", Some(json!(outputs / volume == channels.saturating_mul(2))));
        }
    }
    let q_norm = shapes.dim(&format!("{blocks}0.attn.q_norm.weight"), 0);
    if matches!(kind, Kind::StDit2 | Kind::StDit3) {
        out.set("qk_norm", Some(json!(q_norm.is_some())));
    }
    let rope = shapes.dim("rope.freqs", 0).map(|half| half.saturating_mul(2));
    match (hidden, q_norm.or(rope).filter(|width| *width > 0)) {
        (Some(hidden), Some(width)) => out.set("num_heads", Some(json!(hidden / width))),
        (Some(hidden), None) if hidden % USUAL_HEAD_WIDTH == 0 => {
            out.assume("num_heads", json!(hidden / USUAL_HEAD_WIDTH));
        }
        _ => {}
    }
    // The stored position tables tell the size that a fixed-size model was built for.
    out.set("n_spatial_tokens", shapes.dim("pos_embed", 1).map(Value::from));
    out.set("n_temporal_tokens", shapes.dim("pos_embed_temporal", 1).map(Value::from));
    out.set("num_classes", shapes.dim("y_embedder.embedding_table.weight", 0).map(Value::from));
}

fn t5(shapes: &Shapes<'_>, out: &mut Values) {
    let embedding = ["shared.weight", "encoder.embed_tokens.weight"];
    let embedding = embedding.into_iter().find(|name| shapes.has(name)).unwrap_or_default();
    let attention = "encoder.block.0.layer.0.SelfAttention";
    let bias = format!("{attention}.relative_attention_bias.weight");
    let heads = shapes.dim(&bias, 1).filter(|heads| *heads > 0);
    out.set("vocab_size", shapes.dim(embedding, 0).map(Value::from));
    out.set("d_model", shapes.dim(embedding, 1).map(Value::from));
    out.set("num_layers", Some(json!(shapes.count("encoder.block."))));
    out.set("num_heads", heads.map(Value::from));
    out.set("relative_attention_num_buckets", shapes.dim(&bias, 0).map(Value::from));
    if let (Some(heads), Some(width)) = (heads, shapes.dim(&format!("{attention}.q.weight"), 0)) {
        out.set("d_kv", Some(json!(width / heads)));
    }
    let dense = "encoder.block.0.layer.1.DenseReluDense";
    let gated = shapes.dim(&format!("{dense}.wi_0.weight"), 0);
    let plain = shapes.dim(&format!("{dense}.wi.weight"), 0);
    out.set("d_ff", gated.or(plain).map(Value::from));
    // Every published gated T5 uses GELU, every plain one ReLU.
    out.assume("feed_forward_proj", json!(if gated.is_some() { "gated-gelu" } else { "relu" }));
}

fn autoencoder_kl(prefix: &str, shapes: &Shapes<'_>, out: &mut Values) {
    let dim = |name: &str, axis| shapes.dim(&format!("{prefix}{name}"), axis);
    let down = format!("{prefix}encoder.down_blocks.");
    let up = format!("{prefix}decoder.up_blocks.");
    let widths = |blocks: &str| -> Vec<usize> {
        let width = |i| shapes.dim(&format!("{blocks}{i}.resnets.0.conv1.weight"), 0);
        (0..shapes.count(blocks)).map_while(width).collect()
    };
    let mut channels = widths(&down);
    let mut layers = shapes.count(&format!("{down}0.resnets."));
    if channels.is_empty() {
        // A decoder alone: its levels run the other way and have one layer more.
        channels = widths(&up);
        channels.reverse();
        layers = shapes.count(&format!("{up}0.resnets.")).saturating_sub(1);
    }
    if !channels.is_empty() {
        out.set("block_out_channels", Some(json!(channels)));
        out.set("layers_per_block", Some(json!(layers)));
    }
    out.set("in_channels", dim("encoder.conv_in.weight", 1).map(Value::from));
    out.set("out_channels", dim("decoder.conv_out.weight", 0).map(Value::from));
    out.set("latent_channels", dim("decoder.conv_in.weight", 1).map(Value::from));
    out.assume("norm_num_groups", json!(32));
    let has = |name: &str| shapes.has(&format!("{prefix}{name}"));
    out.set("use_quant_conv", Some(json!(has("quant_conv.weight"))));
    out.set("use_post_quant_conv", Some(json!(has("post_quant_conv.weight"))));
}
