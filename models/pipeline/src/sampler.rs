//! Runs the plans of a request: text, denoising, decoding.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use compiler::Plan;
use runtime::{Backend, Control, Runner, StepTime};

use crate::Error;
use crate::encoders::{FrameEncoder, TextEncoder};
use crate::model::{Model, Transformer};
use crate::plans::{Plans, Request, Stage};
use crate::schedule::{Noise, Scheduler};

/// What the text encoder made of one prompt.
#[derive(Clone, PartialEq, Debug)]
pub struct Features {
    /// Token ids, padded.
    pub ids: Vec<i64>,
    /// Which tokens are real, 0 or 1 each.
    pub mask: Vec<u8>,
    /// f32 `[tokens, channels]`.
    pub values: Vec<f32>,
}

/// What a denoising run starts from and is held to.
pub struct Conditioning<'a> {
    /// One per row.
    pub features: &'a [Features],
    /// Fills draw number `n` for all rows, f32 `[rows, channels, T, h, w]`. Draw 0 is the initial
    /// noise; a masked run then draws twice a step (noise of given frames, noise of the step), others
    /// once.
    pub noise: &'a mut dyn FnMut(u64, &mut [f32]),
    /// For plans that draw noise themselves ([`Noise::Drawn`]), all draws but the first: the keys of draw
    /// number `n`, for each row its seed, the number of the draw, and that of the row's first element.
    pub keys: Option<&'a dyn Fn(u64) -> Vec<[u64; 3]>>,
    /// Edit ratios `[rows, T]` in 0..1 (1 makes a frame, 0 keeps it) and the latents of the given
    /// frames in place; with [`Request::frame_mask`].
    pub given: Option<(&'a [f32], &'a [f32])>,
}

impl std::fmt::Debug for Conditioning<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conditioning").field("rows", &self.features.len()).finish_non_exhaustive()
    }
}

/// Is told of a stage that ends: its plan, and the time of each step since the plan was bound.
pub type OnTimes<'a> = &'a mut dyn FnMut(Stage, &Arc<Plan>, &[StepTime]);

/// Watches a stage.
#[derive(Default)]
pub struct Watch<'a> {
    /// `true` ends the stage with an interrupt error.
    pub interrupt: Option<&'a AtomicBool>,
    /// Called with the FLOPs done so far in this stage.
    pub on_flops: Option<&'a mut dyn FnMut(u64)>,
    /// Called when the stage ends, where steps are timed.
    pub on_times: Option<OnTimes<'a>>,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch<'_> {
    /// Says that a stage is over.
    pub(crate) fn end(&mut self, stage: Stage, runner: &dyn Runner) {
        if let (Some(on_times), false) = (&mut self.on_times, runner.times().is_empty()) {
            on_times(stage, runner.plan(), runner.times());
        }
    }

    /// Runs a session as the part of the stage that begins after `done` FLOPs.
    pub(crate) fn run(
        &mut self,
        done: u64,
        run: impl FnOnce(Control<'_>) -> Result<(), runtime::Error>,
    ) -> Result<(), Error> {
        let interrupt = self.interrupt;
        let mut on_step = |flops: u64| {
            if let Some(on_flops) = &mut self.on_flops {
                on_flops(done + flops);
            }
        };
        run(Control { interrupt, on_step: Some(&mut on_step) })?;
        Ok(())
    }
}

/// A model, a request, and what runs it.
#[derive(Debug)]
pub struct Sampler<'m> {
    model: &'m Model,
    scheduler: Scheduler,
    request: Request,
    plans: Plans,
    backend: &'m dyn Backend,
    denoise: Option<Box<dyn Runner + 'm>>,
    decode: Option<Box<dyn Runner + 'm>>,
}

impl<'m> Sampler<'m> {
    /// Nothing is loaded until a stage runs.
    pub fn new(
        model: &'m Model,
        scheduler: Scheduler,
        request: Request,
        plans: Plans,
        backend: &'m dyn Backend,
    ) -> Sampler<'m> {
        Sampler { model, scheduler, request, plans, backend, denoise: None, decode: None }
    }

    /// The plans.
    pub fn plans(&self) -> &Plans {
        &self.plans
    }

    /// The request.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Gives back the memory of a stage that has run. It is made again if the stage runs again.
    pub fn release(&mut self, stage: Stage) {
        let part = match stage {
            // These give their memory back by themselves.
            Stage::Text | Stage::Condition => return,
            Stage::Denoise => {
                self.denoise = None;
                &self.model.denoiser
            }
            Stage::Decode => {
                self.decode = None;
                &self.model.autoencoder
            }
        };
        part.weights().clear();
    }

    /// Encodes prompts (already cleaned). The encoder's memory is given back afterwards.
    ///
    /// # Errors
    /// [`Error::Text`] for a prompt that cannot be encoded.
    pub fn encode_text(
        &self,
        prompts: &[impl AsRef<str>],
        watch: &mut Watch<'_>,
    ) -> Result<Vec<Features>, Error> {
        let tokens = self.model.transformer.common().model_max_length;
        let plan = Arc::clone(&self.plans.text);
        let memory = self.plans.memory;
        let mut encoder = TextEncoder::new(self.model, plan, tokens, self.backend, memory)?;
        let mut features = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            features.push(encoder.encode(prompt.as_ref(), watch)?);
        }
        encoder.end(watch);
        Ok(features)
    }

    /// What encodes given frames; the request must have [`Request::frame_mask`].
    ///
    /// # Errors
    /// [`Error::Request`] without it, and what the runtime finds wrong with the weights.
    pub fn frame_encoder(&self) -> Result<FrameEncoder<'m>, Error> {
        let Some(plan) = &self.plans.condition else {
            return Err(Error::request("given frames", "the plans are made for none"));
        };
        FrameEncoder::new(self.model, Arc::clone(plan), self.backend)
    }

    /// Samples one batch of latents, f32 `[rows, channels, T, h, w]`.
    ///
    /// # Errors
    /// Interrupts, and what the runtime finds wrong with the weights.
    pub fn denoise(
        &mut self,
        conditioning: &mut Conditioning<'_>,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<f32>, Error> {
        let rows = self.request.rows;
        if conditioning.features.len() != rows {
            let reason = format!("{} prompts for {rows} rows", conditioning.features.len());
            return Err(Error::request("batch", reason));
        }
        let latent = self.request.latent(self.model)?;
        let n =
            rows * self.model.transformer.common().in_channels * latent.iter().product::<usize>();
        let mut draw = vec![0f32; n];
        (conditioning.noise)(0, &mut draw);
        if let Some((ratios, given)) = conditioning.given {
            if ratios.len() != rows * latent[0] || given.len() != n {
                return Err(Error::request("given frames", "their shape is not the request's"));
            }
            place_given(&mut draw, ratios, given, latent);
        }
        let plan = &self.plans.denoise;
        let runner = match &mut self.denoise {
            Some(runner) => runner,
            empty => {
                let weights = self.model.denoiser.weights();
                let mut runner = self.backend.bind(Arc::clone(plan), weights, None)?;
                for &(output, input) in self.scheduler.carries() {
                    runner.carry(output, input)?;
                }
                empty.insert(runner)
            }
        };
        runner.write_input("x", bytemuck::cast_slice(&draw))?;
        self.request.write_constants(self.model, conditioning.features, &mut **runner)?;
        if let Scheduler::DpmSolver(_) = self.scheduler {
            // What the step before the first predicted: anything finite.
            draw.fill(0.0);
            runner.write_input("start", bytemuck::cast_slice(&draw))?;
        }
        let flops = plan.flops();
        let noise = Noise::of(&plan.target);
        let mut number_of_draw = 0;
        for number in 0..self.scheduler.n_steps() {
            let step = self.scheduler.step(number);
            let timesteps = vec![step.timestep; rows];
            runner.write_input("timestep", bytemuck::cast_slice(&timesteps))?;
            runner.write_input("coefficients", bytemuck::cast_slice(&step.coefficients))?;
            let mut write_draw = |runner: &mut dyn Runner,
                                  name: &'static str|
             -> Result<(), Error> {
                number_of_draw += 1;
                let input = noise.input(name);
                match (noise, conditioning.keys) {
                    (Noise::Given, _) => {
                        (conditioning.noise)(number_of_draw, &mut draw);
                        runner.write_input(&input, bytemuck::cast_slice(&draw))?;
                    }
                    (Noise::Drawn, Some(keys)) => {
                        let keys = keys(number_of_draw);
                        runner.write_input(&input, bytemuck::cast_slice(keys.as_flattened()))?;
                    }
                    (Noise::Drawn, None) => {
                        let reason = "the plans draw it by keys, and none are given";
                        return Err(Error::request("noise", reason));
                    }
                }
                Ok(())
            };
            if let Scheduler::Iddpm(iddpm) = &self.scheduler {
                if let Some((ratios, _)) = conditioning.given {
                    let roles = iddpm.frame_roles(number, ratios)?;
                    let flags = [
                        ("x_mask", roles.noisy),
                        ("renoised", roles.renoised),
                        ("kept", roles.kept),
                    ];
                    for (name, flags) in flags {
                        let bytes: Vec<u8> = flags.into_iter().map(u8::from).collect();
                        runner.write_input(name, &bytes)?;
                    }
                    write_draw(&mut **runner, "renoise")?;
                }
                write_draw(&mut **runner, "noise")?;
            }
            watch.run(number as u64 * flops, |control| runner.run(control))?;
        }
        let latents = runner.output_f32(0)?.to_vec();
        watch.end(Stage::Denoise, &**runner);
        Ok(latents)
    }

    /// Decodes the frames of latents f32 `[rows, channels, T, h, w]`, row by row in order of time:
    /// `frame(row, t, pixels)` gets f32 `[3, H, W]` in -1..1.
    ///
    /// # Errors
    /// Interrupts, and whatever `frame` returns.
    pub fn decode<E: From<Error>>(
        &mut self,
        latents: &[f32],
        watch: &mut Watch<'_>,
        mut frame: impl FnMut(usize, usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let [frames, height, width] = self.request.latent(self.model)?;
        let channels = self.model.vae.latent_channels;
        let plane = height * width;
        let (plan, weights) = (Arc::clone(&self.plans.decode), self.model.autoencoder.weights());
        let runner = match &mut self.decode {
            Some(runner) => runner,
            empty => empty.insert(self.backend.bind(plan, weights, None).map_err(Error::from)?),
        };
        let flops = self.plans.decode.flops();
        let mut z = vec![0f32; channels * plane];
        for row in 0..self.request.rows {
            for t in 0..frames {
                for c in 0..channels {
                    let from = ((row * channels + c) * frames + t) * plane;
                    z[c * plane..][..plane].copy_from_slice(&latents[from..from + plane]);
                }
                let done = (row * frames + t) as u64 * flops;
                let inputs: [(&str, &[u8]); 1] = [("z", bytemuck::cast_slice(&z))];
                watch.run(done, |control| runner.run_with(&inputs, control))?;
                frame(row, t, runner.output_f32(0).map_err(Error::from)?)?;
            }
        }
        watch.end(Stage::Decode, &**runner);
        Ok(())
    }
}

/// Puts given frames (edit ratio below 1) into the initial latent.
fn place_given(x: &mut [f32], ratios: &[f32], given: &[f32], [frames, h, w]: [usize; 3]) {
    let plane = h * w;
    let channels = x.len() / (ratios.len() * plane);
    let planes = x.chunks_exact_mut(plane).zip(given.chunks_exact(plane));
    for (at, (x, given)) in planes.enumerate() {
        let (row, t) = (at / (channels * frames), at % frames);
        if ratios[row * frames + t] < 1.0 {
            x.copy_from_slice(given);
        }
    }
}

impl Request {
    /// Writes the inputs of a denoising step that are the same at every step: captions and sizes.
    fn write_constants(
        &self,
        model: &Model,
        features: &[Features],
        runner: &mut dyn Runner,
    ) -> Result<(), Error> {
        let caption: Vec<f32> = features.iter().flat_map(|f| f.values.iter().copied()).collect();
        let mask: Vec<u8> = features.iter().flat_map(|f| f.mask.iter().copied()).collect();
        runner.write_input("y", bytemuck::cast_slice(&caption))?;
        runner.write_input("mask", &mask)?;
        // Upstream tells STDiT-2 the frame count and the rate; for an image, a rate of 120.
        if let Transformer::Stdit2(_) = model.transformer {
            let [height, width] = [self.height as f64, self.width as f64];
            let fps = if self.num_frames == 1 { IMAGE_FPS } else { self.fps };
            for (name, value) in [
                ("height", height),
                ("width", width),
                ("num_frames", self.num_frames as f64),
                ("ar", height / width),
                ("fps", fps),
            ] {
                let values = vec![value as f32; self.rows];
                runner.write_input(name, bytemuck::cast_slice(&values))?;
            }
        }
        Ok(())
    }
}

/// The rate that upstream gives for images.
const IMAGE_FPS: f64 = 120.0;
