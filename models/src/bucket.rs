//! What one `STDiT` graph is specialized for, and the values it is applied to.

use ops::{Builder, DType, TensorType, ValueId};

use crate::Error;
use crate::config::Stdit;
use crate::net::{Net, Value};
use crate::nn::{self, Caption, Clean, Condition};

/// Everything about a call of an `STDiT` that the graph depends on.
///
/// Inputs may have fewer rows than the result, which has [`Bucket::rows`]: they are repeated as a
/// block, as upstream repeats the mask under guidance. What is done before the repetition is done
/// once.
#[derive(Clone, PartialEq, Debug)]
pub struct Bucket {
    /// Storage type of parameters and activations; the inputs and the result are f32.
    pub dtype: DType,
    /// Rows of `y`.
    pub captions: usize,
    /// Whether the null caption is appended to each caption: the result then has the rows that
    /// follow the captions, then as many that do not.
    pub guided: bool,
    /// Rows of `x`, `timestep` and `x_mask`.
    pub latents: usize,
    /// Rows of `mask` and of the sizes.
    pub conditions: usize,
    /// Frames, height and width of the latent.
    pub latent: [usize; 3],
    /// Height and width of the video in pixels, as given to the model. The position table of
    /// `STDiT-2` depends on their values; `STDiT-1` does not look at them.
    pub pixels: [f64; 2],
    /// Tokens of a caption; at most the model's, fewer if the mask hides the rest.
    pub caption_tokens: usize,
    /// Whether there is a `mask`.
    pub caption_mask: bool,
    /// Whether there is an `x_mask`.
    pub frame_mask: bool,
}

impl Bucket {
    /// `rows` captions with a mask, each with its own latent and sizes, in f32.
    pub fn new(rows: usize, latent: [usize; 3], pixels: [f64; 2], caption_tokens: usize) -> Bucket {
        Bucket {
            dtype: DType::F32,
            captions: rows,
            guided: false,
            latents: rows,
            conditions: rows,
            latent,
            pixels,
            caption_tokens,
            caption_mask: true,
            frame_mask: false,
        }
    }

    /// Rows of the result.
    pub fn rows(&self) -> usize {
        if self.guided { 2 * self.captions } else { self.captions }
    }

    /// Fails for a bucket of which the model has no graph.
    pub(crate) fn check(&self, model: &'static str, config: &Stdit) -> Result<(), Error> {
        let fail = |reason: String| Err(Error::Bucket { model, reason });
        let rows = self.rows();
        for (what, have) in [("latents", self.latents), ("conditions", self.conditions)] {
            if have == 0 || !rows.is_multiple_of(have) {
                return fail(format!("{have} {what} cannot be repeated up to {rows} rows"));
            }
        }
        let (more, fewer) = (self.latents.max(self.conditions), self.latents.min(self.conditions));
        if !more.is_multiple_of(fewer) {
            return fail(format!("{fewer} latents or conditions cannot be repeated up to {more}"));
        }
        let is_size = |pixels: &f64| *pixels > 0.0 && pixels.is_finite();
        if !self.pixels.iter().all(is_size) {
            return fail(format!("expected a size in pixels, found {:?}", self.pixels));
        }
        if !self.dtype.is_float() {
            return fail(format!("expected a float storage type, found {}", self.dtype));
        }
        if self.latent.contains(&0) {
            return fail(format!("latent {:?} is empty", self.latent));
        }
        if !(1..=config.model_max_length).contains(&self.caption_tokens) {
            return fail(format!(
                "expected 1 to {} caption tokens, found {}",
                config.model_max_length, self.caption_tokens
            ));
        }
        Ok(())
    }

    /// The type of the input called `name` upstream.
    fn input_type(&self, config: &Stdit, name: &str) -> Result<TensorType, Error> {
        let [t, h, w] = self.latent;
        let frames = nn::token_grid(self.latent, config.patch_size)[0];
        let (dtype, shape) = match name {
            "x" => (DType::F32, vec![self.latents, config.in_channels, t, h, w]),
            "timestep" => (DType::F32, vec![self.latents]),
            "y" => {
                let shape = vec![self.captions, 1, self.caption_tokens, config.caption_channels];
                (DType::F32, shape)
            }
            "mask" => (DType::Bool, vec![self.conditions, self.caption_tokens]),
            "x_mask" => (DType::Bool, vec![self.latents, frames]),
            _ => (DType::F32, vec![self.conditions]),
        };
        Ok(TensorType::new(dtype, shape)?)
    }
}

/// The sizes that condition `STDiT-2`, each f32 `[conditions]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Height of the video in pixels.
    pub height: ValueId,
    /// Width of the video in pixels.
    pub width: ValueId,
    /// Frames of the video.
    pub num_frames: ValueId,
    /// Height over width.
    pub ar: ValueId,
    /// Frames per second.
    pub fps: ValueId,
}

/// The operands of an `STDiT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inputs {
    /// Noisy latent, f32 `[latents, channels, T, H, W]`.
    pub x: ValueId,
    /// Timestep 0..1000, f32 `[latents]`.
    pub timestep: ValueId,
    /// Text features, f32 `[captions, 1, tokens, caption_channels]`.
    pub caption: ValueId,
    /// Which tokens are text, bool `[conditions, tokens]`; without, all are.
    pub caption_mask: Option<ValueId>,
    /// Which token frames are noisy, bool `[latents, frames]`; without, all are. The others are
    /// conditioned on as at timestep 0.
    pub frame_mask: Option<ValueId>,
    /// For `STDiT-2`.
    pub sizes: Option<Sizes>,
}

impl Inputs {
    /// Declares graph inputs under upstream's names: `x`, `timestep`, `y`, `mask`, `x_mask`,
    /// `height`, `width`, `num_frames`, `ar`, `fps`.
    pub(crate) fn declare(
        b: &mut Builder,
        config: &Stdit,
        bucket: &Bucket,
        with_sizes: bool,
    ) -> Result<Inputs, Error> {
        let mut input = |name: &str| -> Result<ValueId, Error> {
            let ty = bucket.input_type(config, name)?;
            Ok(b.input(name, ty))
        };
        Ok(Inputs {
            x: input("x")?,
            timestep: input("timestep")?,
            caption: input("y")?,
            caption_mask: if bucket.caption_mask { Some(input("mask")?) } else { None },
            frame_mask: if bucket.frame_mask { Some(input("x_mask")?) } else { None },
            sizes: if with_sizes {
                Some(Sizes {
                    height: input("height")?,
                    width: input("width")?,
                    num_frames: input("num_frames")?,
                    ar: input("ar")?,
                    fps: input("fps")?,
                })
            } else {
                None
            },
        })
    }

    /// Fails unless the operands are those that the bucket describes.
    pub(crate) fn check(
        &self,
        b: &Builder,
        model: &'static str,
        config: &Stdit,
        bucket: &Bucket,
    ) -> Result<(), Error> {
        let fail = |reason: String| Err(Error::Bucket { model, reason });
        for (name, given, expected) in [
            ("mask", self.caption_mask.is_some(), bucket.caption_mask),
            ("x_mask", self.frame_mask.is_some(), bucket.frame_mask),
        ] {
            if given != expected {
                return fail(format!("the bucket says {expected} for `{name}`, the call {given}"));
            }
        }
        let mut operands = vec![("x", self.x), ("timestep", self.timestep), ("y", self.caption)];
        operands.extend(self.caption_mask.map(|value| ("mask", value)));
        operands.extend(self.frame_mask.map(|value| ("x_mask", value)));
        if let Some(sizes) = self.sizes {
            operands.extend([
                ("height", sizes.height),
                ("width", sizes.width),
                ("num_frames", sizes.num_frames),
                ("ar", sizes.ar),
                ("fps", sizes.fps),
            ]);
        }
        for (name, value) in operands {
            let expected = bucket.input_type(config, name)?;
            if *b.ty(value) != expected {
                return fail(format!("`{name}`: expected {expected}, found {}", b.ty(value)));
            }
        }
        Ok(())
    }

    /// The projected caption and its mask, for all rows of the result.
    pub(crate) fn caption(
        &self,
        net: &mut Net<'_>,
        config: &Stdit,
        bucket: &Bucket,
    ) -> Result<Caption, Error> {
        let rows = bucket.rows();
        let tokens = net.at("y_embedder", |net| -> Value {
            let mut caption = net.stored(self.caption)?;
            if bucket.guided {
                caption = nn::append_null_captions(net, caption, config.model_max_length)?;
            }
            nn::caption_embedder(net, caption, config.hidden_size)
        })?;
        let shape = [rows, bucket.caption_tokens, config.hidden_size];
        let tokens = net.reshape(tokens, &shape)?;
        let mask = match self.caption_mask {
            Some(mask) => Some(nn::all_rows(net, mask, rows)?),
            None => None,
        };
        Ok(Caption { tokens, mask })
    }

    /// The embedding of the timestep, followed by a row for timestep 0 if frames may be clean.
    pub(crate) fn timestep_rows(&self, net: &mut Net<'_>, width: usize) -> Value {
        let mut timestep = self.timestep;
        if self.frame_mask.is_some() {
            let zero = ops::Tensor::f32(&[1], &[0.0])?;
            let zero = net.constant(zero);
            timestep = net.concat(&[timestep, zero], 0)?;
        }
        net.at("t_embedder", |net| nn::timestep_embedder(net, timestep, width))
    }

    /// Splits an embedding whose last `clean_rows` rows are for clean frames, and repeats both up
    /// to the rows of the result.
    pub(crate) fn split_condition(
        &self,
        net: &mut Net<'_>,
        bucket: &Bucket,
        embedding: ValueId,
        clean_rows: usize,
    ) -> Result<Condition, Error> {
        let total = net.shape(embedding)[0];
        let Some(frame_mask) = self.frame_mask else {
            return Ok(Condition {
                noisy: nn::tile_rows(net, embedding, bucket.rows())?,
                clean: None,
            });
        };
        let noisy = net.slice_axis(embedding, 0, 0, total - clean_rows)?;
        let clean = net.slice_axis(embedding, 0, total - clean_rows, total)?;
        Ok(Condition {
            noisy: nn::tile_rows(net, noisy, bucket.rows())?,
            clean: Some(Clean {
                value: nn::tile_rows(net, clean, bucket.rows())?,
                frame_mask: nn::tile_rows(net, frame_mask, bucket.rows())?,
            }),
        })
    }
}

/// Tokens to the result: unpatched, cut to the latent, f32.
pub(crate) fn video_out(
    net: &mut Net<'_>,
    tokens: ValueId,
    config: &Stdit,
    bucket: &Bucket,
) -> Value {
    let video = nn::unpatchify(net, tokens, bucket.latent, config.patch_size)?;
    net.cast_to(video, DType::F32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ops::{Role, Rounding, Tensor};
    use serde_json::json;

    use super::*;
    use crate::config::Stdit2;
    use crate::stdit2;

    fn config() -> Stdit2 {
        let file = json!({
            "hidden_size": 24, "depth": 1, "num_heads": 2, "caption_channels": 8,
            "model_max_length": 5, "qk_norm": true,
        });
        Stdit2::from_json(&file).unwrap()
    }

    /// Some value for every input and parameter; the same for the same name and count.
    fn given(graph: &ops::Graph) -> BTreeMap<String, Tensor> {
        let mut given = BTreeMap::new();
        for node in &graph.nodes {
            let (Role::Input(name) | Role::Param(name)) = &node.role else { continue };
            let seed = name.bytes().map(f64::from).sum::<f64>();
            let value = |i: usize| 0.3 * (seed + 0.7 * i as f64).sin();
            let tensor = match node.ty.dtype() {
                DType::Bool => {
                    let on = |i: usize| i64::from(i % node.ty.shape()[1] < 3);
                    Tensor::ints(node.ty.clone(), (0..node.ty.count()).map(on).collect())
                }
                _ => Tensor::floats(node.ty.clone(), (0..node.ty.count()).map(value).collect()),
            };
            given.insert(name.to_string(), tensor.rounded());
        }
        given
    }

    fn run(bucket: &Bucket, given: &BTreeMap<String, Tensor>) -> Tensor {
        let graph = stdit2::graph(&config(), bucket).unwrap();
        ops::eval(&graph, given, Rounding::Stored).unwrap().remove(0)
    }

    fn relative_l2(found: &Tensor, expected: &Tensor) -> f64 {
        let pairs = found.as_floats().iter().zip(expected.as_floats());
        let difference: f64 = pairs.map(|(x, y)| (x - y) * (x - y)).sum();
        let norm: f64 = expected.as_floats().iter().map(|y| y * y).sum();
        (difference / norm).sqrt()
    }

    /// `times` copies of a tensor along its first axis.
    fn repeated(tensor: &Tensor, times: usize) -> Tensor {
        let mut shape = tensor.shape().to_vec();
        shape[0] *= times;
        let ty = tensor.ty().with_shape(shape).unwrap();
        let count = tensor.ty().count();
        tensor.gather_elements(ty, |i| i % count)
    }

    #[test]
    fn guidance_is_a_batch_with_null_captions() {
        for latents in [1, 2] {
            let guided = Bucket {
                guided: true,
                frame_mask: true,
                ..Bucket::new(latents, [2, 3, 4], [16.0, 16.0], 4)
            };
            let mut given = given(&stdit2::graph(&config(), &guided).unwrap());
            let found = run(&guided, &given);

            let plain = Bucket {
                frame_mask: true,
                ..Bucket::new(2 * latents, guided.latent, guided.pixels, 4)
            };
            // The first 4 of 5 rows of the null caption, once per sample, below the captions.
            let null = given["y_embedder.y_embedding"].as_floats()[..4 * 8].to_vec();
            let mut captions = given["y"].as_floats().to_vec();
            (0..latents).for_each(|_| captions.extend(&null));
            let ty = TensorType::new(DType::F32, [2 * latents, 1, 4, 8]).unwrap();
            given.insert("y".into(), Tensor::floats(ty, captions));
            for name in
                ["x", "timestep", "mask", "x_mask", "height", "width", "num_frames", "ar", "fps"]
            {
                let tensor = repeated(&given[name], 2);
                given.insert(name.into(), tensor);
            }
            assert_eq!(found, run(&plain, &given));
        }
    }

    #[test]
    fn half_types_stay_near_f32() {
        let bucket = Bucket::new(1, [2, 4, 4], [16.0, 16.0], 5);
        let graph = stdit2::graph(&config(), &bucket).unwrap();
        let given = given(&graph);
        let expected = run(&bucket, &given);
        // About ten roundings deep: some units of the last place, 2^-8 and 2^-11.
        for (dtype, limit) in [(DType::Bf16, 4e-2), (DType::F16, 5e-3)] {
            let bucket = Bucket { dtype, ..bucket.clone() };
            let graph = stdit2::graph(&config(), &bucket).unwrap();
            let mut half = given.clone();
            for (value, name) in graph.params() {
                let values = given[name].as_floats().to_vec();
                half.insert(name.into(), Tensor::floats(graph.ty(value).clone(), values).rounded());
            }
            let found = ops::eval(&graph, &half, Rounding::Stored).unwrap().remove(0);
            assert_eq!(found.ty(), expected.ty());
            let error = relative_l2(&found, &expected);
            assert!(error < limit, "{dtype}: {error}");
            assert!(error > limit / 1000.0, "{dtype}: nothing was rounded: {error}");
        }
    }

    #[test]
    fn bf16_rounds_timesteps_as_upstream() {
        let bucket = Bucket { dtype: DType::Bf16, ..Bucket::new(2, [1, 2, 2], [16.0, 16.0], 5) };
        let graph = stdit2::graph(&config(), &bucket).unwrap();
        let mut given = given(&graph);
        let timesteps = Tensor::f32(&[2], &[999.0, 1000.0]).unwrap();
        given.insert("timestep".into(), timesteps);
        let values = ops::eval_all(&graph, &given, Rounding::Stored).unwrap();
        let embedding = crate::module_output(&graph, "t_embedder").unwrap();
        let rows = values[embedding.index()].as_floats();
        assert_eq!(rows[..24], rows[24..]);
    }

    #[test]
    fn rejects_rows_that_do_not_repeat_and_captions_that_are_too_long() {
        let good = Bucket::new(4, [2, 4, 4], [16.0, 16.0], 5);
        assert!(stdit2::graph(&config(), &good).is_ok());
        for bad in [
            Bucket { latents: 3, ..good.clone() },
            Bucket { conditions: 0, ..good.clone() },
            Bucket { captions: 6, latents: 2, conditions: 3, ..good.clone() },
            Bucket { caption_tokens: 6, ..good.clone() },
            Bucket { caption_tokens: 0, ..good.clone() },
            Bucket { latent: [0, 4, 4], ..good.clone() },
            Bucket { dtype: DType::I64, ..good.clone() },
            Bucket { pixels: [0.0, 16.0], ..good.clone() },
            Bucket { pixels: [f64::NAN, 16.0], ..good.clone() },
        ] {
            assert!(stdit2::graph(&config(), &bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn rejects_operands_of_another_bucket() {
        let config = config();
        let bucket = Bucket::new(2, [2, 4, 4], [16.0, 16.0], 5);
        let mut b = Builder::new("call");
        let inputs = Inputs::declare(&mut b, &config.common, &bucket, true).unwrap();
        let other = Bucket { latent: [2, 4, 6], ..bucket.clone() };
        let error = stdit2::forward(&mut b, &config, &other, &inputs).unwrap_err().to_string();
        assert!(error.contains("`x`"), "{error}");
        let unmasked = Inputs { caption_mask: None, ..inputs };
        assert!(stdit2::forward(&mut b, &config, &bucket, &unmasked).is_err());
        let without_sizes = Inputs { sizes: None, ..inputs };
        assert!(stdit2::forward(&mut b, &config, &bucket, &without_sizes).is_err());
    }
}
