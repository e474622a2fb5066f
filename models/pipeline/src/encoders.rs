//! What encodes texts and frames, one at a time, for sampling and for training.
//!
//! An encoder holds its plan's arena and weights while it exists; dropped, it gives both back.

use std::sync::Arc;

use compiler::Plan;
use runtime::{Backend, Runner, WeightStore};

use crate::Error;
use crate::model::Model;
use crate::plans::Stage;
use crate::sampler::{Features, Watch};

/// Encodes texts, one at a time.
#[derive(Debug)]
pub struct TextEncoder<'m> {
    model: &'m Model,
    runner: Box<dyn Runner + 'm>,
    tokens: usize,
    flops: u64,
    n_done: u64,
    /// Fields are dropped in order: weights are given back when the session no longer holds them.
    _weights: HeldWeights<'m>,
}

/// Encodes frames, one at a time.
#[derive(Debug)]
pub struct FrameEncoder<'m> {
    runner: Box<dyn Runner + 'm>,
    flops: u64,
    n_done: u64,
    /// As in [`TextEncoder`].
    _weights: HeldWeights<'m>,
}

/// Weights while something runs on them.
#[derive(Debug)]
struct HeldWeights<'m>(&'m WeightStore);

impl Drop for HeldWeights<'_> {
    fn drop(&mut self) {
        self.0.clear();
    }
}

impl<'m> TextEncoder<'m> {
    /// Binds a plan of [`crate::text_graph`] for texts of `tokens` tokens, within `memory` bytes: weights that do not
    /// fit are streamed.
    ///
    /// # Errors
    /// What the runtime finds wrong with the weights.
    pub fn new(
        model: &'m Model,
        plan: Arc<Plan>,
        tokens: usize,
        backend: &'m dyn Backend,
        memory: Option<usize>,
    ) -> Result<TextEncoder<'m>, Error> {
        let weights = model.text_encoder.weights();
        let flops = plan.flops();
        let runner = backend.bind(plan, weights, memory)?;
        Ok(TextEncoder { model, runner, tokens, flops, n_done: 0, _weights: HeldWeights(weights) })
    }

    /// The features of a text (already cleaned).
    ///
    /// # Errors
    /// [`Error::Text`] for a text that cannot be encoded, and interrupts.
    pub fn encode(&mut self, text: &str, watch: &mut Watch<'_>) -> Result<Features, Error> {
        let encoded = self.model.tokenizer.encode(text, self.tokens)?;
        let mask: Vec<u8> = encoded.mask.iter().map(|&m| u8::from(m != 0)).collect();
        let inputs: [(&str, &[u8]); 2] =
            [("input_ids", bytemuck::cast_slice(&encoded.ids)), ("attention_mask", &mask)];
        let done = self.n_done * self.flops;
        watch.run(done, |control| self.runner.run_with(&inputs, control))?;
        self.n_done += 1;
        let values = self.runner.output_f32(0)?.to_vec();
        Ok(Features { ids: encoded.ids, mask, values })
    }

    /// Says that all texts are encoded.
    pub(crate) fn end(&self, watch: &mut Watch<'_>) {
        watch.end(Stage::Text, &*self.runner);
    }
}

impl<'m> FrameEncoder<'m> {
    /// Binds a plan of [`crate::encode_graph`] or [`crate::posterior_graph`].
    ///
    /// # Errors
    /// What the runtime finds wrong with the weights.
    pub fn new(
        model: &'m Model,
        plan: Arc<Plan>,
        backend: &'m dyn Backend,
    ) -> Result<FrameEncoder<'m>, Error> {
        let weights = model.autoencoder.weights();
        let flops = plan.flops();
        let runner = backend.bind(plan, weights, None)?;
        Ok(FrameEncoder { runner, flops, n_done: 0, _weights: HeldWeights(weights) })
    }

    /// The latent f32 `[channels, h, w]` of a frame f32 `[3, height, width]` in -1..1: the mean of its posterior.
    ///
    /// # Errors
    /// Interrupts, and [`Error::Runtime`] for a frame of another size than the plan's.
    pub fn encode(&mut self, pixels: &[f32], watch: &mut Watch<'_>) -> Result<Vec<f32>, Error> {
        let done = self.n_done * self.flops;
        let inputs = [("x", bytemuck::cast_slice(pixels))];
        watch.run(done, |control| self.runner.run_with(&inputs, control))?;
        self.n_done += 1;
        let latent = self.runner.output_f32(0)?.to_vec();
        watch.end(Stage::Condition, &*self.runner);
        Ok(latent)
    }

    /// As [`FrameEncoder::encode`], and the deviation of the posterior in the same shape; for a plan of
    /// [`crate::posterior_graph`].
    ///
    /// # Errors
    /// As [`FrameEncoder::encode`].
    pub fn encode_posterior(
        &mut self,
        pixels: &[f32],
        watch: &mut Watch<'_>,
    ) -> Result<[Vec<f32>; 2], Error> {
        let mean = self.encode(pixels, watch)?;
        let deviation = self.runner.output_f32(1)?.to_vec();
        Ok([mean, deviation])
    }
}
