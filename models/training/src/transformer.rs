//! The loss of a diffusion transformer on a batch, alone or with the text encoder before it.
//!
//! The model is the one that sampling has, node by node, on other operands: noised latents for `x`, and for each
//! trained parameter its master. With [`Text::Encoder`] the encoder's graph comes before it in the same way, and what
//! it makes of a batch's tokens stands for `y`.

use models::config::T5;
use models::t5::{self, TextBucket};
use models::{Bucket, Error as ModelError};
use ops::{Builder, DType, TensorType, ValueId};

use crate::iddpm::{Iddpm, Sample};
use crate::{Error, Model, Objective, Operands, Options, Param, Text, initial};

/// Name of the input with which rows lose their caption, bool `[rows]`.
const DROP_CAPTION: &str = "drop_caption";
/// Checkpoint name of the null caption.
const NULL_CAPTION: &str = "y_embedder.y_embedding";
/// Name of the input with a batch's tokens, i64 `[rows, tokens]`.
const TOKENS: &str = "input_ids";
/// Name of the input that says which tokens are text, bool `[rows, tokens]`.
const MASK: &str = "mask";
/// How the names of a text encoder's parameters begin, and those of no transformer's.
const OF_TEXT: [&str; 2] = ["shared.", "encoder."];

/// Whether the parameter `name` is the text encoder's.
pub(crate) fn is_of_text(name: &str) -> bool {
    OF_TEXT.iter().any(|prefix| name.starts_with(prefix))
}

/// Parameters of a text encoder, in its order.
pub(crate) fn text_parameters(config: &T5) -> Result<Vec<Param>, ModelError> {
    let param = |(name, shape): (String, Vec<usize>)| {
        let initial = initial::text(config, &name);
        Param { name, shape, initial }
    };
    Ok(t5::params(config)?.into_iter().map(param).collect())
}

impl Model {
    /// The transformer's parameters, in its order.
    pub(crate) fn own_parameters(&self) -> Result<Vec<Param>, ModelError> {
        let param = |(name, shape): (String, Vec<usize>)| {
            let initial = initial::transformer(self.common(), &name, &shape);
            Param { name, shape, initial }
        };
        Ok(self.params()?.into_iter().map(param).collect())
    }

    /// Appends the encoder: features of the batch's tokens as `y` has them, f32 `[rows, 1, tokens, channels]`, and the
    /// mask that both models read.
    fn append_text(
        &self,
        b: &mut Builder,
        config: &T5,
        bucket: &Bucket,
        operands: &mut Operands<'_>,
    ) -> Result<(ValueId, Option<ValueId>), Error> {
        let (rows, tokens) = (bucket.captions, bucket.caption_tokens);
        let of_text = TextBucket { dtype: bucket.dtype, rows, tokens, mask: bucket.caption_mask };
        let mut mask = None;
        let graph = t5::graph(config, &of_text)?;
        let out = operands.append(b, &graph, |_, b, node, name| {
            let as_given = if name == TOKENS { TOKENS } else { MASK };
            let value = b.input(as_given, node.ty.clone());
            if as_given == MASK {
                mask = Some(value);
            }
            Ok(value)
        })?;
        let features = b.reshape(out[0], &[rows, 1, tokens, config.d_model])?;
        Ok((features, mask))
    }

    /// The caption of each row, or the null caption where the row loses it.
    fn append_caption(
        &self,
        b: &mut Builder,
        bucket: &Bucket,
        options: &Options,
        operands: &mut Operands<'_>,
        caption: ValueId,
    ) -> Result<ValueId, Error> {
        if !options.caption_dropout {
            return Ok(caption);
        }
        let common = self.common();
        let (tokens, channels) = (bucket.caption_tokens, common.caption_channels);
        let drop = b.input(DROP_CAPTION, TensorType::new(DType::Bool, [bucket.captions])?);
        b.scope("y_embedder", |b| {
            let drop = b.reshape(drop, &[bucket.captions, 1, 1, 1])?;
            let shape = [common.model_max_length, channels];
            let null = TensorType::new(bucket.dtype, shape)?;
            let null = operands.frozen(b, NULL_CAPTION, null);
            let null = b.slice_axis(null, 0, 0, tokens)?;
            let null = b.reshape(null, &[1, 1, tokens, channels])?;
            let null = b.cast(null, DType::F32)?;
            Ok(b.select(drop, null, caption)?)
        })
    }
}

/// Reads of a batch: `x` clean latents f32 `[rows, channels, frames, ..]`, `noise` in their shape, `timestep` i64
/// `[rows]`, `drop_caption` bool `[rows]` if captions are dropped, `mask`, `x_mask` and sizes as the model has them, and
/// `y` as the model has it, or with [`Text::Encoder`] `input_ids` i64 `[rows, tokens]`.
impl Objective for Model {
    type Bucket = Bucket;

    fn parameters(&self, options: &Options) -> Result<Vec<Param>, Error> {
        let mut params = self.own_parameters()?;
        if let Text::Encoder { config, lr_factor: _ } = &options.text {
            let (width, channels) = (config.d_model, self.common().caption_channels);
            if width != channels {
                let reason = format!(
                    "the encoder's features are {width} wide, the transformer reads {channels}: make \
                     `d_model` and `caption_channels` the same"
                );
                return Err(Error::option("text", reason));
            }
            params.extend(text_parameters(config)?);
        }
        Ok(params)
    }

    fn append_row_losses(
        &self,
        b: &mut Builder,
        bucket: &Bucket,
        options: &Options,
        operands: &mut Operands<'_>,
    ) -> Result<ValueId, Error> {
        check_bucket(self, bucket)?;
        let graph = self.graph(bucket)?;
        let process = Iddpm::new(options.precision, options.weighting)?;

        let [t, h, w] = bucket.latent;
        let latent =
            TensorType::new(DType::F32, [bucket.latents, self.common().in_channels, t, h, w])?;
        let rows = |dtype| TensorType::new(dtype, [bucket.latents]);
        let flags = TensorType::new(DType::Bool, [bucket.latents, t])?;
        let sample = Sample {
            latents: b.input("x", latent.clone()),
            noise: b.input("noise", latent),
            timesteps: b.input("timestep", rows(DType::I64)?),
            frame_mask: bucket.frame_mask.then(|| b.input("x_mask", flags)),
        };
        let noised = b.scope("noising", |b| process.append_noised(b, &sample))?;
        let (features, mask) = match &options.text {
            Text::Features => (None, None),
            Text::Encoder { config, lr_factor: _ } => {
                let (features, mask) = self.append_text(b, config, bucket, operands)?;
                (Some(features), mask)
            }
        };

        let out = operands.append(b, &graph, |operands, b, node, name| {
            let given = match name {
                "x" => Some(noised),
                "x_mask" => sample.frame_mask,
                MASK => mask,
                "timestep" => Some(b.cast(sample.timesteps, DType::F32)?),
                "y" => {
                    let caption = match features {
                        Some(features) => features,
                        None => b.copy_node(node, &[])?,
                    };
                    Some(self.append_caption(b, bucket, options, operands, caption)?)
                }
                _ => None,
            };
            Ok(match given {
                Some(value) => value,
                None => b.copy_node(node, &[])?,
            })
        })?;
        let losses = b.scope("loss", |b| process.append_losses(b, &sample, noised, out[0]))?;
        Ok(losses.total)
    }

    fn lr_factor(&self, options: &Options, name: &str) -> f64 {
        match &options.text {
            Text::Encoder { config: _, lr_factor } if is_of_text(name) => *lr_factor,
            Text::Encoder { .. } | Text::Features => 1.0,
        }
    }
}

/// Fails for buckets that only sampling has.
fn check_bucket(model: &Model, bucket: &Bucket) -> Result<(), Error> {
    let fail = |reason: String| Err(Error::Bucket(reason));
    if bucket.guided {
        return fail("guidance is for sampling; expected `guided` to be false".into());
    }
    let rows = bucket.captions;
    if bucket.latents != rows || bucket.conditions != rows {
        return fail(format!(
            "{rows} captions, {} latents, {} conditions; expected one of each per row",
            bucket.latents, bucket.conditions
        ));
    }
    let frames = model.common().patch_size[0];
    if bucket.frame_mask && frames != 1 {
        return fail(format!("a frame mask needs patches of 1 frame, the model's have {frames}"));
    }
    if !model.common().pred_sigma {
        return fail("the loss trains a variance, the model predicts none (`pred_sigma`)".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use models::published::{Architecture, PUBLISHED};

    use super::*;

    #[test]
    fn names_tell_a_text_encoders_parameters_from_a_transformers() {
        for published in &PUBLISHED {
            let architecture = published.architecture().unwrap();
            let expected = match architecture {
                Architecture::T5(_) => true,
                Architecture::Stdit1(_) | Architecture::Stdit2(_) => false,
                // Trained alone.
                Architecture::AutoencoderKl(_) => continue,
            };
            for (name, _) in architecture.params().unwrap() {
                assert_eq!(is_of_text(&name), expected, "{}: {name}", published.name);
            }
        }
    }
}
