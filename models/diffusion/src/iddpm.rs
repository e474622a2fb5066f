//! The IDDPM and DDIM samplers: one step as graph nodes, and the host's numbers for each step.
//!
//! A step is the same graph at every step: what changes is a timestep, a vector of coefficients and
//! noise, which are graph inputs. The state is one latent per prompt; guidance runs the model on
//! the state twice, rows of the prompts first, then rows of the null caption.
//!
//! "Improved Denoising Diffusion Probabilistic Models" (Nichol and Dhariwal, 2021), "Denoising
//! Diffusion Implicit Models" (Song et al., 2021), in the forms that Open-Sora 1.0 and 1.1 run.

use ops::{Builder, ValueId};

use crate::coefficients::Coefficients;
use crate::guidance::{Guidance, append_guidance};
use crate::schedule::{Precision, Tables};
use crate::{Error, Step};

/// What the model's first channels are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MeanKind {
    /// The noise in `x`.
    Noise,
    /// The clean latent.
    Start,
}

/// Where the variance of an ancestral step comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VarianceKind {
    /// The model's second half of channels says where between the two bounds, -1 to 1.
    LearnedRange,
    /// `β`, the upper bound. The model has no variance channels.
    FixedLarge,
    /// The posterior's, the lower bound. The model has no variance channels.
    FixedSmall,
}

/// How a step goes from the prediction to the next latent.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Update {
    /// A draw from `p(x[i-1] | x[i])`.
    Ancestral,
    /// DDIM; `eta` 0 adds no noise, 1 as much as the ancestral step.
    Ddim {
        /// Share of the noise, 0 to 1.
        eta: f64,
    },
}

/// Everything that decides the steps of a sampler.
#[derive(Clone, PartialEq, Debug)]
pub struct IddpmSettings {
    /// Which steps to visit, as upstream writes it: `"100"`, `"10,15,20"`, `"ddim25"`, `""` for all.
    pub respacing: String,
    /// Precision of the tables.
    pub precision: Precision,
    /// Meaning of the model's prediction.
    pub mean: MeanKind,
    /// Source of the variance.
    pub variance: VarianceKind,
    /// The update rule.
    pub update: Update,
    /// Classifier-free guidance; none runs the model once per step and row.
    pub guidance: Option<Guidance>,
}

/// A sampler: settings and tables.
#[derive(Clone, Debug)]
pub struct Iddpm {
    settings: IddpmSettings,
    tables: Tables,
}

/// What each frame does in one step of masked sampling, all `[rows, frames]` flattened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameRoles {
    /// Frames that the model sees at the step's timestep (the others at timestep 0).
    pub noisy: Vec<bool>,
    /// Frames that get noise of the step's level before the model runs.
    pub renoised: Vec<bool>,
    /// Frames that stay as they were before the step.
    pub kept: Vec<bool>,
}

// Places in the coefficient vector.
const RECIP: usize = 0;
const RECIPM1: usize = 1;
const START: usize = 2;
/// Weight of `x` (ancestral) or of the noise that it implies (DDIM).
const OTHER: usize = 3;
const LOG_LOW: usize = 4;
const LOG_HIGH: usize = 5;
const NOISE: usize = 6;
const SIGNAL: usize = 7;
const LEVEL: usize = 8;
const SCALE: usize = 9;

impl Iddpm {
    /// Length of the coefficient vector.
    pub const N_COEFFICIENTS: usize = 10;

    /// A sampler of the linear process of 1000 steps.
    ///
    /// # Errors
    /// Refuses a respacing that does not fit, an `eta` outside 0 to 1 and a scale that is no number.
    pub fn new(settings: IddpmSettings) -> Result<Iddpm, Error> {
        if let Update::Ddim { eta } = settings.update
            && !(0.0..=1.0).contains(&eta)
        {
            return Err(Error::Schedule(format!("DDIM eta {eta}, expected 0 to 1")));
        }
        if let Some(guidance) = &settings.guidance {
            guidance.check()?;
        }
        let tables = Tables::linear(&settings.respacing, settings.precision)?;
        Ok(Iddpm { settings, tables })
    }

    /// The settings.
    pub fn settings(&self) -> &IddpmSettings {
        &self.settings
    }

    /// The tables.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Count of steps.
    pub fn n_steps(&self) -> usize {
        self.tables.n_steps()
    }

    /// The inputs of step `number`, counted from 0 in the order of running (noisiest first).
    ///
    /// Panics if `number` is not below [`Iddpm::n_steps`].
    pub fn step(&self, number: usize) -> Step {
        let t = &self.tables;
        let i = self.index(number);
        let mut c = [0f64; Self::N_COEFFICIENTS];
        c[RECIP] = t.sqrt_recip_alphas_cumprod[i];
        c[RECIPM1] = t.sqrt_recipm1_alphas_cumprod[i];
        (c[LOG_LOW], c[LOG_HIGH]) = match self.settings.variance {
            VarianceKind::LearnedRange => (t.posterior_log_variance_clipped[i], t.log_betas[i]),
            VarianceKind::FixedLarge => (t.log_variance_large[i], t.log_variance_large[i]),
            VarianceKind::FixedSmall => {
                (t.posterior_log_variance_clipped[i], t.posterior_log_variance_clipped[i])
            }
        };
        let noise = if i == 0 { 0.0 } else { 1.0 };
        (c[START], c[OTHER], c[NOISE]) = match self.settings.update {
            Update::Ancestral => (t.posterior_mean_coef1[i], t.posterior_mean_coef2[i], noise),
            Update::Ddim { eta } => {
                let (now, before) = (t.alphas_cumprod[i], t.alphas_cumprod_prev[i]);
                let sigma =
                    eta * ((1.0 - before) / (1.0 - now)).sqrt() * (1.0 - now / before).sqrt();
                let other = (1.0 - before - sigma * sigma).max(0.0).sqrt();
                (before.sqrt(), other, noise * sigma)
            }
        };
        c[SIGNAL] = t.sqrt_alphas_cumprod[i];
        c[LEVEL] = t.sqrt_one_minus_alphas_cumprod[i];
        c[SCALE] = self.settings.guidance.as_ref().map_or(1.0, |guidance| guidance.scale);
        Step {
            timestep: t.timesteps[i] as f32,
            coefficients: c.iter().map(|&x| x as f32).collect(),
        }
    }

    /// Index of step `number` in the tables.
    fn index(&self, number: usize) -> usize {
        self.n_steps() - 1 - number
    }

    /// What each frame does in step `number`, for `mask` of edit ratios: 1 makes a frame anew, 0
    /// keeps it, between begins from its noised version at that share of the steps.
    ///
    /// # Errors
    /// Refuses a ratio outside 0 to 1.
    pub fn frame_roles(&self, number: usize, mask: &[f32]) -> Result<FrameRoles, Error> {
        if let Some(ratio) = mask.iter().find(|ratio| !(0.0..=1.0).contains(*ratio)) {
            return Err(Error::Mask(format!("edit ratio {ratio}, expected 0 to 1")));
        }
        let i = self.index(number);
        let begins: Vec<usize> =
            mask.iter().map(|ratio| (ratio * self.n_steps() as f32) as usize).collect();
        let which = |claim: fn(usize, usize) -> bool| -> Vec<bool> {
            begins.iter().map(|&begin| claim(begin, i)).collect()
        };
        Ok(FrameRoles {
            noisy: which(|begin, i| begin > i),
            renoised: which(|begin, i| begin == i),
            kept: which(|begin, i| begin < i),
        })
    }

    /// Appends the noising of frames whose turn comes at this step; its result is the step's `x`.
    ///
    /// `x` and `noise` f32 `[rows, channels, frames, ..]`, `renoised` bool `[rows, frames]`,
    /// `coefficients` f32 `[N_COEFFICIENTS]`.
    pub fn append_renoise(
        &self,
        b: &mut Builder,
        x: ValueId,
        noise: ValueId,
        renoised: ValueId,
        coefficients: ValueId,
    ) -> Result<ValueId, ops::Error> {
        let c = Coefficients::new(b, coefficients, x);
        let signal = c.scaled(b, SIGNAL, x)?;
        let noise = c.scaled(b, LEVEL, noise)?;
        let noised = b.add(signal, noise)?;
        let renoised = per_frame(b, renoised, x)?;
        b.select(renoised, noised, x)
    }

    /// Appends the restoring of frames that this step must not change.
    ///
    /// `before` is `x` of the step, `after` its result, `kept` bool `[rows, frames]`.
    pub fn append_restore(
        &self,
        b: &mut Builder,
        before: ValueId,
        after: ValueId,
        kept: ValueId,
    ) -> Result<ValueId, ops::Error> {
        let kept = per_frame(b, kept, before)?;
        b.select(kept, before, after)
    }

    /// Appends the step from `x` to the next `x`, given the model's output for it.
    ///
    /// `x` and `noise` f32 `[rows, channels, ..]`; `model_out` f32 `[2 * rows, 2 * channels, ..]`
    /// (once the rows without guidance, once the channels without learned variance);
    /// `coefficients` f32 `[N_COEFFICIENTS]`. `noise` is not read where the update adds none.
    pub fn append_step(
        &self,
        b: &mut Builder,
        x: ValueId,
        model_out: ValueId,
        noise: ValueId,
        coefficients: ValueId,
    ) -> Result<ValueId, ops::Error> {
        let channels = b.shape(x).get(1).copied().unwrap_or(0);
        let c = Coefficients::new(b, coefficients, x);
        let out = match &self.settings.guidance {
            Some(guidance) => append_guidance(b, model_out, channels, guidance, &c, SCALE)?,
            None => model_out,
        };
        let prediction = b.slice_axis(out, 1, 0, channels)?;
        let scaled_x = c.scaled(b, RECIP, x)?;
        let start = match self.settings.mean {
            MeanKind::Start => prediction,
            MeanKind::Noise => {
                let scaled = c.scaled(b, RECIPM1, prediction)?;
                b.sub(scaled_x, scaled)?
            }
        };
        let start_part = c.scaled(b, START, start)?;
        match self.settings.update {
            Update::Ancestral => {
                let x_part = c.scaled(b, OTHER, x)?;
                let mean = b.add(start_part, x_part)?;
                let log_variance = match self.settings.variance {
                    VarianceKind::FixedLarge | VarianceKind::FixedSmall => c.get(b, LOG_LOW)?,
                    VarianceKind::LearnedRange => {
                        let v = b.slice_axis(out, 1, channels, 2 * channels)?;
                        let v = b.add_scalar(v, 1.0)?;
                        let share = b.mul_scalar(v, 0.5)?;
                        let high = c.scaled(b, LOG_HIGH, share)?;
                        let rest = b.mul_scalar(share, -1.0)?;
                        let rest = b.add_scalar(rest, 1.0)?;
                        let low = c.scaled(b, LOG_LOW, rest)?;
                        b.add(high, low)?
                    }
                };
                let half = b.mul_scalar(log_variance, 0.5)?;
                let deviation = b.exp(half)?;
                let deviation = c.scaled(b, NOISE, deviation)?;
                let noise = b.mul(deviation, noise)?;
                b.add(mean, noise)
            }
            Update::Ddim { eta } => {
                let implied = b.sub(scaled_x, start)?;
                let level = c.get(b, RECIPM1)?;
                let implied = b.div(implied, level)?;
                let other = c.scaled(b, OTHER, implied)?;
                let mean = b.add(start_part, other)?;
                if eta == 0.0 {
                    return Ok(mean);
                }
                let noise = c.scaled(b, NOISE, noise)?;
                b.add(mean, noise)
            }
        }
    }
}

/// `[rows, frames]` as `[rows, 1, frames, 1, ..]`, to broadcast over `x`.
fn per_frame(b: &mut Builder, flags: ValueId, x: ValueId) -> Result<ValueId, ops::Error> {
    let mut shape = vec![1; b.shape(x).len()];
    let flag_shape = b.shape(flags).to_vec();
    if let ([rows, frames], true) = (&flag_shape[..], shape.len() > 2) {
        shape[0] = *rows;
        shape[2] = *frames;
    }
    b.reshape(flags, &shape)
}
