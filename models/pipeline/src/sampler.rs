//! Runs the plans of a request: text, denoising, decoding.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use compiler::Plan;
use runtime::{Backend, Control, Runner, Session};

use crate::Error;
use crate::model::{Model, Transformer};
use crate::plans::{Plans, Request, Stage};
use crate::schedule::Scheduler;

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
    /// Edit ratios `[rows, T]` in 0..1 (1 makes a frame, 0 keeps it) and the latents of the given
    /// frames in place; with [`Request::frame_mask`].
    pub given: Option<(&'a [f32], &'a [f32])>,
}

impl std::fmt::Debug for Conditioning<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conditioning").field("rows", &self.features.len()).finish_non_exhaustive()
    }
}

/// Is told of a stage that ends, with its session, where this CPU ran it.
pub type OnSession<'a> = &'a mut dyn FnMut(Stage, &Session);

/// Watches a stage.
#[derive(Default)]
pub struct Watch<'a> {
    /// `true` ends the stage with an interrupt error.
    pub interrupt: Option<&'a AtomicBool>,
    /// Called with the FLOPs done so far in this stage.
    pub on_flops: Option<&'a mut dyn FnMut(u64)>,
    /// Called with the stage's session when the stage ends: for the times of its steps, which are
    /// those since the session was made.
    pub on_session: Option<OnSession<'a>>,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch<'_> {
    /// Says that a stage is over.
    fn end(&mut self, stage: Stage, runner: &dyn Runner) {
        if let (Some(on_session), Some(session)) = (&mut self.on_session, runner.session()) {
            on_session(stage, session);
        }
    }

    /// Runs a session as the part of the stage that begins after `done` FLOPs.
    fn run(
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

/// Encodes given frames, one at a time. Dropped, it gives its memory back.
#[derive(Debug)]
pub struct FrameEncoder<'m> {
    runner: Box<dyn Runner + 'm>,
    flops: u64,
    /// Fields are dropped in order: weights are given back when the session no longer holds them.
    _weights: HeldWeights<'m>,
    n_done: u64,
}

/// The autoencoder's weights while something runs on them.
#[derive(Debug)]
struct HeldWeights<'m>(&'m Model);

impl FrameEncoder<'_> {
    /// The latent f32 `[channels, h, w]` of a frame f32 `[3, height, width]` in -1..1.
    ///
    /// # Errors
    /// Interrupts, and [`Error::Runtime`] for a frame of another size than the request's.
    pub fn encode(&mut self, pixels: &[f32], watch: &mut Watch<'_>) -> Result<Vec<f32>, Error> {
        let done = self.n_done * self.flops;
        let inputs = [("x", bytemuck::cast_slice(pixels))];
        watch.run(done, |control| self.runner.run_with(&inputs, control))?;
        self.n_done += 1;
        watch.end(Stage::Condition, &*self.runner);
        Ok(self.runner.output_f32(0).to_vec())
    }
}

impl Drop for HeldWeights<'_> {
    fn drop(&mut self) {
        self.0.autoencoder.weights().clear();
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
        let part = &self.model.text_encoder;
        let plan = Arc::clone(&self.plans.text);
        let flops = plan.flops();
        let mut encoder = self.backend.bind(plan, part.weights(), self.plans.memory)?;
        let mut features = Vec::with_capacity(prompts.len());
        for (i, prompt) in prompts.iter().enumerate() {
            let encoded = self.model.tokenizer.encode(prompt.as_ref(), tokens)?;
            let mask: Vec<u8> = encoded.mask.iter().map(|&m| u8::from(m != 0)).collect();
            let inputs: [(&str, &[u8]); 2] =
                [("input_ids", bytemuck::cast_slice(&encoded.ids)), ("attention_mask", &mask)];
            watch.run(i as u64 * flops, |control| encoder.run_with(&inputs, control))?;
            let values = encoder.output_f32(0).to_vec();
            features.push(Features { ids: encoded.ids, mask, values });
        }
        watch.end(Stage::Text, &*encoder);
        drop(encoder);
        part.weights().clear();
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
        let weights = self.model.autoencoder.weights();
        let runner = self.backend.bind(Arc::clone(plan), weights, None)?;
        let flops = plan.flops();
        Ok(FrameEncoder { runner, flops, _weights: HeldWeights(self.model), n_done: 0 })
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
        let mut state = State::new(self.model, &self.request, conditioning.features, n);
        (conditioning.noise)(0, &mut state.x);
        if let Some((ratios, given)) = conditioning.given {
            if ratios.len() != rows * latent[0] || given.len() != n {
                return Err(Error::request("given frames", "their shape is not the request's"));
            }
            state.place_given(ratios, given, latent);
        }
        let plan = Arc::clone(&self.plans.denoise);
        let runner = match &mut self.denoise {
            Some(runner) => runner,
            empty => empty.insert(self.backend.bind(plan, self.model.denoiser.weights(), None)?),
        };
        let flops = self.plans.denoise.flops();
        let mut draw = 0;
        for number in 0..self.scheduler.n_steps() {
            let step = self.scheduler.step(number);
            state.timestep.fill(step.timestep);
            if let (Some((ratios, _)), Scheduler::Iddpm(iddpm)) =
                (conditioning.given, &self.scheduler)
            {
                let roles = iddpm.frame_roles(number, ratios)?;
                let bytes = |flags: Vec<bool>| flags.into_iter().map(u8::from).collect();
                state.flags = [roles.noisy, roles.renoised, roles.kept].map(bytes);
                draw += 1;
                (conditioning.noise)(draw, &mut state.renoise);
            }
            if matches!(self.scheduler, Scheduler::Iddpm(_)) {
                draw += 1;
                (conditioning.noise)(draw, &mut state.noise);
            }
            let inputs = state.inputs(&step.coefficients, &self.plans.denoise);
            watch.run(number as u64 * flops, |control| runner.run_with(&inputs, control))?;
            state.x.copy_from_slice(runner.output_f32(0));
            if matches!(self.scheduler, Scheduler::DpmSolver(_)) {
                state.start.copy_from_slice(runner.output_f32(1));
            }
        }
        watch.end(Stage::Denoise, &**runner);
        Ok(state.x)
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
                frame(row, t, runner.output_f32(0))?;
            }
        }
        watch.end(Stage::Decode, &**runner);
        Ok(())
    }
}

/// The inputs of a denoising step, reused from step to step.
struct State {
    x: Vec<f32>,
    noise: Vec<f32>,
    renoise: Vec<f32>,
    start: Vec<f32>,
    timestep: Vec<f32>,
    caption: Vec<f32>,
    mask: Vec<u8>,
    /// `height`, `width`, `num_frames`, `ar`, `fps`, one value per row each.
    sizes: [Vec<f32>; 5],
    /// `x_mask`, `renoised`, `kept`.
    flags: [Vec<u8>; 3],
}

impl State {
    fn new(model: &Model, request: &Request, features: &[Features], n: usize) -> State {
        let rows = request.rows;
        let sized = |value: f64| vec![value as f32; rows];
        // Upstream tells STDiT-2 the frame count and the rate; for an image, a rate of 120.
        let fps = if request.num_frames == 1 { IMAGE_FPS } else { request.fps };
        let sizes = match model.transformer {
            Transformer::Stdit1(_) => Default::default(),
            Transformer::Stdit2(_) => [
                sized(request.height as f64),
                sized(request.width as f64),
                sized(request.num_frames as f64),
                sized(request.height as f64 / request.width as f64),
                sized(fps),
            ],
        };
        State {
            x: vec![0.0; n],
            noise: vec![0.0; n],
            renoise: vec![0.0; n],
            start: vec![0.0; n],
            timestep: vec![0.0; rows],
            caption: features.iter().flat_map(|f| f.values.iter().copied()).collect(),
            mask: features.iter().flat_map(|f| f.mask.iter().copied()).collect(),
            sizes,
            flags: Default::default(),
        }
    }

    /// Puts given frames (edit ratio below 1) into the initial latent.
    fn place_given(&mut self, ratios: &[f32], given: &[f32], [frames, h, w]: [usize; 3]) {
        let plane = h * w;
        let channels = self.x.len() / (ratios.len() * plane);
        for (at, (x, given)) in
            self.x.chunks_exact_mut(plane).zip(given.chunks_exact(plane)).enumerate()
        {
            let (row, t) = (at / (channels * frames), at % frames);
            if ratios[row * frames + t] < 1.0 {
                x.copy_from_slice(given);
            }
        }
    }

    /// Every input of the plan, in its order.
    fn inputs<'a>(&'a self, coefficients: &'a [f32], plan: &'a Plan) -> Vec<(&'a str, &'a [u8])> {
        let bytes = |name: &str| -> &'a [u8] {
            match name {
                "x" => bytemuck::cast_slice(&self.x),
                "noise" => bytemuck::cast_slice(&self.noise),
                "renoise" => bytemuck::cast_slice(&self.renoise),
                "start" => bytemuck::cast_slice(&self.start),
                "timestep" => bytemuck::cast_slice(&self.timestep),
                "y" => bytemuck::cast_slice(&self.caption),
                "mask" => &self.mask,
                "coefficients" => bytemuck::cast_slice(coefficients),
                "height" => bytemuck::cast_slice(&self.sizes[0]),
                "width" => bytemuck::cast_slice(&self.sizes[1]),
                "num_frames" => bytemuck::cast_slice(&self.sizes[2]),
                "ar" => bytemuck::cast_slice(&self.sizes[3]),
                "fps" => bytemuck::cast_slice(&self.sizes[4]),
                "x_mask" => &self.flags[0],
                "renoised" => &self.flags[1],
                "kept" => &self.flags[2],
                _ => unreachable!("`Scheduler::graph` declares the inputs"),
            }
        };
        plan.inputs.iter().map(|port| (&*port.name, bytes(&port.name))).collect()
    }
}

/// The rate that upstream gives for images.
const IMAGE_FPS: f64 = 120.0;
