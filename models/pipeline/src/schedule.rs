//! The sampler of a request: IDDPM or DPM-Solver++, as one graph with the model.

use diffusion::schedule::Precision;
use diffusion::{DpmSolver, Guidance, Iddpm, IddpmSettings, MeanKind, Step, Update, VarianceKind};
use kernels::Target;
use models::{Bucket, Inputs, Sizes, stdit1, stdit2};
use ops::{Builder, DType, Graph, TensorType, ValueId};

use crate::Error;
use crate::model::Transformer;

/// Which sampler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SchedulerKind {
    /// IDDPM, the sampler of Open-Sora 1.0 and 1.1.
    Iddpm,
    /// DPM-Solver++ of second order, for images.
    DpmSolver,
}

impl SchedulerKind {
    /// Upstream's name.
    pub fn name(self) -> &'static str {
        match self {
            SchedulerKind::Iddpm => "iddpm",
            SchedulerKind::DpmSolver => "dpm-solver",
        }
    }
}

/// Where the noise of a step comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Noise {
    /// Inputs of the latent's type, `noise` and `renoise`.
    Given,
    /// Drawn in the graph by the op `normal`; inputs are its keys, `noise_key` and `renoise_key`, i64
    /// `[rows, 3]`.
    Drawn,
}

impl Noise {
    /// What suits the target: a GPU draws what would take the host and the bus longer.
    pub fn of(target: &Target) -> Noise {
        if target.gpu.is_some() { Noise::Drawn } else { Noise::Given }
    }

    /// Name of the input that stands for `noise` or `renoise`.
    pub(crate) fn input(self, name: &'static str) -> String {
        match self {
            Noise::Given => name.to_string(),
            Noise::Drawn => format!("{name}_key"),
        }
    }

    /// Appends noise of the latent's type.
    fn append(
        self,
        b: &mut Builder,
        name: &'static str,
        latent: &TensorType,
    ) -> Result<ValueId, Error> {
        let input = self.input(name);
        match self {
            Noise::Given => Ok(b.input(&input, latent.clone())),
            Noise::Drawn => {
                let (rows, shape) = (latent.shape()[0], &latent.shape()[1..]);
                let key = b.input(&input, TensorType::new(DType::I64, [rows, 3])?);
                Ok(b.scope(name, |b| b.normal(key, shape))?)
            }
        }
    }
}

/// A sampler with its tables.
#[derive(Clone, Debug)]
pub enum Scheduler {
    /// IDDPM.
    Iddpm(Box<Iddpm>),
    /// DPM-Solver++.
    DpmSolver(DpmSolver),
}

impl Scheduler {
    /// The sampler `kind` as the transformer's release runs it: 1.0 has f64 tables and guides
    /// three channels, 1.1 has f32 tables and guides all unless `cfg_channel` says otherwise.
    pub fn new(
        kind: SchedulerKind,
        steps: usize,
        cfg_scale: f64,
        cfg_channel: Option<usize>,
        transformer: &Transformer,
    ) -> Result<Scheduler, Error> {
        let is_first = matches!(transformer, Transformer::Stdit1(_));
        if !transformer.common().pred_sigma && kind == SchedulerKind::Iddpm {
            let reason = "iddpm needs a model that predicts its variance (pred_sigma)";
            return Err(Error::request("scheduler", reason));
        }
        match kind {
            SchedulerKind::Iddpm => Ok(Scheduler::Iddpm(Box::new(Iddpm::new(IddpmSettings {
                respacing: steps.to_string(),
                precision: if is_first { Precision::F64 } else { Precision::F32 },
                mean: MeanKind::Noise,
                variance: VarianceKind::LearnedRange,
                update: Update::Ancestral,
                guidance: Some(Guidance {
                    scale: cfg_scale,
                    channels: cfg_channel.or(is_first.then_some(3)),
                }),
            })?))),
            SchedulerKind::DpmSolver => {
                let guidance = Guidance { scale: cfg_scale, channels: None };
                Ok(Scheduler::DpmSolver(DpmSolver::new(steps, Some(guidance))?))
            }
        }
    }

    /// Count of steps.
    pub fn n_steps(&self) -> usize {
        match self {
            Scheduler::Iddpm(iddpm) => iddpm.n_steps(),
            Scheduler::DpmSolver(solver) => solver.n_steps(),
        }
    }

    /// The inputs of step `number`, noisiest first.
    pub fn step(&self, number: usize) -> Step {
        match self {
            Scheduler::Iddpm(iddpm) => iddpm.step(number),
            Scheduler::DpmSolver(solver) => solver.step(number),
        }
    }

    /// Outputs of a step's graph, by index, with the inputs that the next step takes them as.
    pub fn carries(&self) -> &'static [(usize, &'static str)] {
        match self {
            Scheduler::Iddpm(_) => &[(0, "x")],
            Scheduler::DpmSolver(_) => &[(0, "x"), (1, "start")],
        }
    }

    /// One denoising step as a graph: the guided model and the update.
    ///
    /// Inputs: `x`, `y`, `mask`, `timestep`, the sizes for STDiT-2, `coefficients`; for IDDPM `noise`,
    /// and with [`Bucket::frame_mask`] `renoise`, `x_mask`, `renoised`, `kept`; for DPM-Solver++ `start`.
    /// Where noise is [`Noise::Drawn`], there are `noise_key` and `renoise_key` instead.
    /// Outputs: the next `x`; for DPM-Solver++ also the next `start`.
    pub fn graph(
        &self,
        transformer: &Transformer,
        bucket: &Bucket,
        noise: Noise,
    ) -> Result<Graph, Error> {
        let common = transformer.common();
        let rows = bucket.captions;
        let [t, h, w] = bucket.latent;
        let latent = TensorType::new(DType::F32, [rows, common.in_channels, t, h, w])?;
        let vector = |n: usize| TensorType::new(DType::F32, [n]);
        let flags = || TensorType::new(DType::Bool, [rows, t]);
        let mut b = Builder::new("denoise_step");
        let x_in = b.input("x", latent.clone());
        let timestep = b.input("timestep", vector(rows)?);
        let caption = b.input(
            "y",
            TensorType::new(DType::F32, [rows, 1, bucket.caption_tokens, common.caption_channels])?,
        );
        let mask = b.input("mask", TensorType::new(DType::Bool, [rows, bucket.caption_tokens])?);
        let n_coefficients = self.step(0).coefficients.len();
        let coefficients = b.input("coefficients", vector(n_coefficients)?);

        let mut x = x_in;
        let mut frame_mask = None;
        if let (true, Scheduler::Iddpm(iddpm)) = (bucket.frame_mask, self) {
            let noise = noise.append(&mut b, "renoise", &latent)?;
            let renoised = b.input("renoised", flags()?);
            x =
                b.scope("renoise", |b| iddpm.append_renoise(b, x, noise, renoised, coefficients))?;
            frame_mask = Some(b.input("x_mask", flags()?));
        }
        let sizes = match transformer {
            Transformer::Stdit1(_) => None,
            Transformer::Stdit2(_) => {
                let mut size =
                    |name: &str| -> Result<_, Error> { Ok(b.input(name, vector(rows)?)) };
                Some(Sizes {
                    height: size("height")?,
                    width: size("width")?,
                    num_frames: size("num_frames")?,
                    ar: size("ar")?,
                    fps: size("fps")?,
                })
            }
        };
        let inputs = Inputs { x, timestep, caption, caption_mask: Some(mask), frame_mask, sizes };
        let out = match transformer {
            Transformer::Stdit1(config) => stdit1::forward(&mut b, config, bucket, &inputs)?,
            Transformer::Stdit2(config) => stdit2::forward(&mut b, config, bucket, &inputs)?,
        };
        let outputs = match self {
            Scheduler::Iddpm(iddpm) => {
                let noise = noise.append(&mut b, "noise", &latent)?;
                let kept = if bucket.frame_mask { Some(b.input("kept", flags()?)) } else { None };
                let next = b.scope("iddpm", |b| -> Result<_, ops::Error> {
                    let next = iddpm.append_step(b, x, out, noise, coefficients)?;
                    // Upstream restores frames to what they were before they were noised again.
                    kept.map_or(Ok(next), |kept| iddpm.append_restore(b, x, next, kept))
                })?;
                vec![next]
            }
            Scheduler::DpmSolver(solver) => {
                let start = b.input("start", latent);
                let step =
                    b.scope("dpm_solver", |b| solver.append_step(b, x, start, out, coefficients))?;
                vec![step.x, step.start]
            }
        };
        Ok(b.finish(&outputs))
    }
}
