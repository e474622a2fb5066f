//! What is asked for, and the compiled stages that make it: known before a weight is read.

use std::sync::Arc;

use compiler::{Options, Plan};
use kernels::Target;
use models::config::{AutoencoderKl, T5};
use models::vae::{self, FrameBucket, LATENT_SCALE};
use models::{Bucket, t5};
use ops::{Builder, DType, Graph, Tensor, TensorType};

use runtime::{WeightStore, least_streamed_bytes};

use crate::Error;
use crate::model::Model;
use crate::schedule::{Noise, Scheduler};

/// The size and kind of the videos of one run.
#[derive(Clone, PartialEq, Debug)]
pub struct Request {
    /// Videos sampled at once.
    pub rows: usize,
    /// Frames of each.
    pub num_frames: usize,
    /// Pixels.
    pub height: usize,
    /// Pixels.
    pub width: usize,
    /// Frames per second, as the model is told.
    pub fps: f64,
    /// Storage type of the transformer's and VAE's weights and activations.
    pub dtype: DType,
    /// Storage type of the text encoder's weights; upstream samples with f32.
    pub text_dtype: DType,
    /// Whether frames are given (image to video): the step then has a frame mask.
    pub frame_mask: bool,
}

/// A stage of sampling.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Prompt to features.
    Text,
    /// Given frames to latents.
    Condition,
    /// Noise to latents.
    Denoise,
    /// Latents to frames.
    Decode,
}

/// The plans of a request.
#[derive(Clone, Debug)]
pub struct Plans {
    /// The text encoder, one prompt.
    pub text: Arc<Plan>,
    /// The VAE's encoder, one given frame; with [`Request::frame_mask`].
    pub condition: Option<Arc<Plan>>,
    /// One step of the sampler, all rows.
    pub denoise: Arc<Plan>,
    /// The VAE's decoder, one frame.
    pub decode: Arc<Plan>,
    /// Most bytes that a stage may hold. The text encoder's weights are streamed where they do not
    /// fit: it runs once for a prompt, the others many times.
    pub memory: Option<usize>,
}

impl Plans {
    /// Compiles the stages of `request`.
    ///
    /// # Errors
    /// [`Error::Request`] if the model has no video of this size.
    pub fn compile(
        model: &Model,
        scheduler: &Scheduler,
        request: &Request,
        target: &Target,
    ) -> Result<Plans, Error> {
        Plans::compile_with(model, scheduler, request, target, &Options::default())
    }

    /// Compiles the stages of `request`, each within `options`.
    ///
    /// # Errors
    /// As [`Plans::compile`], and [`Error::Compiler`] with the smallest limit that works if the
    /// options allow less memory.
    pub fn compile_with(
        model: &Model,
        scheduler: &Scheduler,
        request: &Request,
        target: &Target,
        options: &Options,
    ) -> Result<Plans, Error> {
        let latent = request.latent(model)?;
        let tokens = model.transformer.common().model_max_length;
        let text = text_graph(&model.t5, request.text_dtype, tokens)?;
        let condition = match request.frame_mask {
            true => Some(encode_graph(&model.vae, request.dtype, [request.height, request.width])?),
            false => None,
        };
        let noise = Noise::of(target);
        let denoise = scheduler.graph(&model.transformer, &request.bucket(model)?, noise)?;
        let decode = decode_graph(&model.vae, request.dtype, [latent[1], latent[2]])?;
        let compile = |graph: Graph| compiler::compile_with(graph, target, options);
        let stages = [
            Some(compile_text(text, Some(model.text_encoder.weights()), target, options)),
            condition.map(compile),
            Some(compile(denoise)),
            Some(compile(decode)),
        ];
        let stages = stages.map(|stage| stage.transpose().map(|plan| plan.map(Arc::new)));
        // A limit that is too small for several stages is refused with what all of them need.
        let refused = stages.iter().filter_map(|stage| match stage {
            Err(error @ compiler::Error::Memory { smallest, .. }) => Some((smallest, error)),
            _ => None,
        });
        if let Some((_, error)) = refused.max_by_key(|(smallest, _)| **smallest) {
            return Err(error.clone().into());
        }
        let [text, condition, denoise, decode] = stages;
        let made = "a graph was given";
        Ok(Plans {
            text: text?.expect(made),
            condition: condition?,
            denoise: denoise?.expect(made),
            decode: decode?.expect(made),
            memory: options.memory,
        })
    }

    /// Bytes of arenas and weights at the fullest moment. Each stage is given back before the next
    /// ([`crate::Sampler::release`]); but all that make video stay together where a run `returns` to
    /// encode what was decoded.
    pub fn peak_bytes(&self, returns: bool) -> usize {
        let condition = self.condition.as_deref().map_or(0, Plan::held_bytes);
        let video = [condition, self.denoise.held_bytes(), self.decode.held_bytes()];
        let most = if returns { video.iter().sum() } else { video.into_iter().fold(0, usize::max) };
        self.streamed_memory().unwrap_or(self.text.held_bytes()).max(most)
    }

    /// What the text encoder may hold if its weights are streamed; `None` if they are held.
    pub fn streamed_memory(&self) -> Option<usize> {
        self.memory.filter(|&memory| self.text.held_bytes() > memory)
    }

    /// FLOPs of one batch of `rows` videos of `frames` frames in `steps` steps, by stage. Given
    /// frames are encoded once for all batches; `given` is their number.
    pub fn flops(
        &self,
        rows: usize,
        frames: usize,
        steps: usize,
        given: usize,
    ) -> [(Stage, u64); 4] {
        let condition = self.condition.as_ref().map_or(0, |plan| plan.flops());
        [
            (Stage::Text, self.text.flops() * rows as u64),
            (Stage::Condition, condition * given as u64),
            (Stage::Denoise, self.denoise.flops() * steps as u64),
            (Stage::Decode, self.decode.flops() * (rows * frames) as u64),
        ]
    }
}

/// The plan of a text encoder, whose weights may be streamed: only what must be held at once counts.
/// Without `weights`, they are taken to be stored as the graph reads them.
///
/// # Errors
/// As [`compiler::compile_with`], with the smallest limit that works with streamed weights.
pub fn compile_text(
    graph: Graph,
    weights: Option<&WeightStore>,
    target: &Target,
    options: &Options,
) -> Result<Plan, compiler::Error> {
    let refused = match compiler::compile_with(graph.clone(), target, options) {
        Err(refused @ compiler::Error::Memory { .. }) => refused,
        other => return other,
    };
    let plan = compiler::compile(graph, target)?;
    let needed = least_streamed_bytes(&plan, weights);
    match (refused, options.memory) {
        (_, Some(memory)) if needed <= memory => Ok(plan),
        (compiler::Error::Memory { name, memory, .. }, _) => Err(compiler::Error::Memory {
            name,
            memory,
            smallest: needed,
            arena: plan.arena_bytes,
            weights: needed - plan.arena_bytes,
        }),
        (refused, _) => Err(refused),
    }
}

impl Request {
    /// Frames, height and width of the latent.
    ///
    /// # Errors
    /// [`Error::Request`] if there is none.
    pub fn latent(&self, model: &Model) -> Result<[usize; 3], Error> {
        let downscale = model.vae.downscale();
        if self.rows == 0 {
            return Err(Error::request("batch size", "0; expected at least 1"));
        }
        if self.num_frames == 0 {
            return Err(Error::request("number of frames", "0; expected at least 1"));
        }
        if self.height < downscale || self.width < downscale {
            let reason = format!(
                "{}x{} is too small; the VAE needs at least {downscale}x{downscale} pixels",
                self.height, self.width
            );
            return Err(Error::request("image size", reason));
        }
        Ok([self.num_frames, self.height / downscale, self.width / downscale])
    }

    /// Height and width of the frames that come out: whole multiples of the VAE's factor.
    ///
    /// # Errors
    /// As [`Request::latent`].
    pub fn frame_size(&self, model: &Model) -> Result<[usize; 2], Error> {
        let [_, height, width] = self.latent(model)?;
        Ok([height * model.vae.downscale(), width * model.vae.downscale()])
    }

    /// Bytes that any plan of this request needs at least: two copies of the transformer's tokens
    /// and of the decoder's widest frame. Known without a graph, so that a size beyond all reason
    /// is refused before even its position table is built.
    ///
    /// # Errors
    /// As [`Request::latent`].
    pub fn floor_bytes(&self, model: &Model) -> Result<f64, Error> {
        let latent = self.latent(model)?;
        let common = model.transformer.common();
        let tokens: f64 = latent
            .iter()
            .zip(common.patch_size)
            .map(|(&dim, patch)| dim.div_ceil(patch) as f64)
            .product();
        let stream = 2.0 * self.rows as f64 * tokens * common.hidden_size as f64;
        let pixels = self.height as f64 * self.width as f64;
        let frame = pixels * model.vae.block_out_channels[0] as f64;
        Ok(2.0 * (stream + frame) * self.dtype.size() as f64)
    }

    /// The transformer's bucket.
    ///
    /// # Errors
    /// As [`Request::latent`].
    pub fn bucket(&self, model: &Model) -> Result<Bucket, Error> {
        let tokens = model.transformer.common().model_max_length;
        let pixels = [self.height as f64, self.width as f64];
        let bucket = Bucket::new(self.rows, self.latent(model)?, pixels, tokens);
        Ok(Bucket { dtype: self.dtype, guided: true, frame_mask: self.frame_mask, ..bucket })
    }
}

/// The text encoder on one prompt. Upstream runs it in f32 whatever the transformer's type.
///
/// # Errors
/// [`Error::Model`] for no tokens.
pub fn text_graph(config: &T5, dtype: DType, tokens: usize) -> Result<Graph, Error> {
    let bucket = t5::TextBucket { dtype, rows: 1, tokens, mask: true };
    Ok(t5::graph(config, &bucket)?)
}

/// The encoder on one frame: `x` f32 `[1, 3, H, W]` in -1..1 to f32 `[1, channels, h, w]` as the
/// sampler takes it. It is the mean of the VAE's posterior, which upstream draws from: given frames
/// then are the same in every run. `size` is that of the frame, height first.
///
/// # Errors
/// [`Error::Model`] for a frame smaller than one latent.
pub fn encode_graph(
    config: &AutoencoderKl,
    dtype: DType,
    size: [usize; 2],
) -> Result<Graph, Error> {
    encoder_graph("encode_frame", config, dtype, size, false)
}

/// As [`encode_graph`], with the deviation of the posterior as second output, f32 in the shape of the mean: a
/// latent to train on is drawn from both.
///
/// # Errors
/// As [`encode_graph`].
pub fn posterior_graph(
    config: &AutoencoderKl,
    dtype: DType,
    size: [usize; 2],
) -> Result<Graph, Error> {
    encoder_graph("encode_posterior", config, dtype, size, true)
}

fn encoder_graph(
    name: &str,
    config: &AutoencoderKl,
    dtype: DType,
    [height, width]: [usize; 2],
    with_deviation: bool,
) -> Result<Graph, Error> {
    let bucket = FrameBucket { dtype, frames: 1, height, width };
    let mut b = Builder::new(name);
    let x = b.input("x", TensorType::new(DType::F32, [1, config.in_channels, height, width])?);
    let posterior = vae::encode(&mut b, config, &bucket, x)?;
    let mut outputs = vec![b.mul_scalar(posterior.mean, LATENT_SCALE)?];
    if with_deviation {
        let half = b.mul_scalar(posterior.logvar, 0.5)?;
        let deviation = b.exp(half)?;
        outputs.push(b.mul_scalar(deviation, LATENT_SCALE)?);
    }
    Ok(b.finish(&outputs))
}

/// The decoder on one frame: `z` f32 `[1, channels, h, w]` as the sampler gives it, to f32
/// `[1, 3, H, W]`. `size` is that of the latent, height first.
///
/// # Errors
/// [`Error::Model`] for an empty frame.
pub fn decode_graph(
    config: &AutoencoderKl,
    dtype: DType,
    size: [usize; 2],
) -> Result<Graph, Error> {
    let [height, width] = size;
    let bucket = FrameBucket { dtype, frames: 1, height, width };
    let mut b = Builder::new("decode_frame");
    let z = b.input("z", TensorType::new(DType::F32, [1, config.latent_channels, height, width])?);
    let scale = b.constant(Tensor::f32(&[1, 1, 1, 1], &[LATENT_SCALE as f32])?);
    let z = b.div(z, scale)?;
    let x = vae::decode(&mut b, config, &bucket, z)?;
    Ok(b.finish(&[x]))
}
