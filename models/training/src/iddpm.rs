//! The hybrid loss of IDDPM: noising and losses as graph nodes.
//!
//! "Improved Denoising Diffusion Probabilistic Models" (Nichol and Dhariwal, 2021), section 3.1: the
//! squared error of the predicted noise trains the mean, and the variational bound, in bits and with the
//! mean taken as given, trains the variance. Frames that a mask leaves clean are given at timestep 0 and
//! have no loss, as in Open-Sora 1.1.

use std::f64::consts::{FRAC_2_PI, LN_2};

use diffusion::schedule::{Precision, SpeedTables, TRAIN_STEPS, Tables};
use ops::{Builder, DType, Error, Tensor, TensorType, ValueId};

use crate::means::{frame_axis, row_means};

/// How the squared error is weighted.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub enum Weighting {
    /// All timesteps alike.
    #[default]
    Uniform,
    /// By `1 / (1 + snr)` of the timestep: `iddpm-speed`.
    Speed,
    /// By `min(snr, gamma) / snr` of the timestep: "Efficient Diffusion Training via Min-SNR Weighting Strategy" (Hang
    /// et al., 2023), for predicted noise.
    MinSnr {
        /// The signal-to-noise ratio from which on errors count less.
        gamma: f64,
    },
}

/// The training process: a table of coefficients by timestep.
#[derive(Clone, Debug)]
pub struct Iddpm {
    /// f32 `[timesteps, N]`.
    table: Tensor,
    weighting: Weighting,
}

/// What one training example is noised from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Clean latents, f32 `[rows, channels, frames, ..]`.
    pub latents: ValueId,
    /// Standard normal noise in their shape.
    pub noise: ValueId,
    /// Timesteps, i64 `[rows]`, below 1000.
    pub timesteps: ValueId,
    /// bool `[rows, frames]`: which frames are noised and learned; without, all are.
    pub frame_mask: Option<ValueId>,
}

/// Losses of each row, f32 `[rows]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Losses {
    /// The sum of the two.
    pub total: ValueId,
    /// Weighted squared error of the noise.
    pub mse: ValueId,
    /// Variational bound in bits, which has no gradient with respect to the predicted noise.
    pub bound: ValueId,
}

// Places in a row of the table.
const SIGNAL: usize = 0;
const LEVEL: usize = 1;
const RECIP: usize = 2;
const RECIPM1: usize = 3;
const START: usize = 4;
const OTHER: usize = 5;
const LOG_LOW: usize = 6;
const LOG_HIGH: usize = 7;
const WEIGHT: usize = 8;
const N_PLACES: usize = 9;

/// Half the width of a bin of the discretized likelihood: pixels are 256 levels from -1 to 1.
const HALF_BIN: f64 = 1.0 / 255.0;
/// From here on a bin has no outer edge.
const EDGE: f64 = 0.999;
/// Least probability of a bin, so that its logarithm is finite.
const LEAST_PROBABILITY: f64 = 1e-12;

/// The coefficients of each row's timestep.
struct Coefficients {
    /// f32 `[rows, N_PLACES]`.
    rows: ValueId,
    rank: usize,
}

impl Coefficients {
    /// Entry `at` of each row, `[rows, 1, ..]`.
    fn get(&self, b: &mut Builder, at: usize) -> Result<ValueId, Error> {
        let mut shape = vec![1; self.rank];
        shape[0] = b.shape(self.rows)[0];
        let column = b.slice_axis(self.rows, 1, at, at + 1)?;
        b.reshape(column, &shape)
    }

    fn scaled(&self, b: &mut Builder, at: usize, x: ValueId) -> Result<ValueId, Error> {
        let entry = self.get(b, at)?;
        b.mul(x, entry)
    }
}

impl Iddpm {
    /// The linear process of 1000 steps, its tables in the precision of a release.
    ///
    /// # Errors
    /// None of the schedule's own settings can be wrong; the type is that of its tables.
    pub fn new(precision: Precision, weighting: Weighting) -> Result<Iddpm, crate::Error> {
        let tables = Tables::linear("", precision)?;
        let speed = SpeedTables::new(&tables);
        let mut values = Vec::with_capacity(TRAIN_STEPS * N_PLACES);
        for t in 0..TRAIN_STEPS {
            let mut row = [0f64; N_PLACES];
            row[SIGNAL] = tables.sqrt_alphas_cumprod[t];
            row[LEVEL] = tables.sqrt_one_minus_alphas_cumprod[t];
            row[RECIP] = tables.sqrt_recip_alphas_cumprod[t];
            row[RECIPM1] = tables.sqrt_recipm1_alphas_cumprod[t];
            row[START] = tables.posterior_mean_coef1[t];
            row[OTHER] = tables.posterior_mean_coef2[t];
            row[LOG_LOW] = tables.posterior_log_variance_clipped[t];
            row[LOG_HIGH] = tables.log_betas[t];
            row[WEIGHT] = match weighting {
                Weighting::Uniform => 1.0,
                Weighting::Speed => speed.weights[t],
                Weighting::MinSnr { gamma } => {
                    let snr = (row[SIGNAL] / row[LEVEL]).powi(2);
                    snr.min(gamma) / snr
                }
            };
            values.extend(row);
        }
        let ty = TensorType::new(DType::F32, [TRAIN_STEPS, N_PLACES])?;
        Ok(Iddpm { table: Tensor::floats(ty, values).rounded(), weighting })
    }

    fn coefficients(&self, b: &mut Builder, sample: &Sample) -> Result<Coefficients, Error> {
        let table = b.constant(self.table.clone());
        let rows = b.gather(table, sample.timesteps)?;
        Ok(Coefficients { rows, rank: b.ty(sample.latents).rank() })
    }

    /// Appends what the model sees, in the shape of the latents: each row at the noise level of its
    /// timestep, frames that the mask leaves out at that of timestep 0, with the same noise.
    pub fn append_noised(&self, b: &mut Builder, sample: &Sample) -> Result<ValueId, Error> {
        let c = self.coefficients(b, sample)?;
        let signal = c.scaled(b, SIGNAL, sample.latents)?;
        let level = c.scaled(b, LEVEL, sample.noise)?;
        let noised = b.add(signal, level)?;
        let Some(mask) = sample.frame_mask else { return Ok(noised) };
        let first = self.table.as_floats();
        let signal = b.mul_scalar(sample.latents, first[SIGNAL])?;
        let level = b.mul_scalar(sample.noise, first[LEVEL])?;
        let clean = b.add(signal, level)?;
        let mask = frame_axis(b, mask, c.rank)?;
        b.select(mask, noised, clean)
    }

    /// Appends the losses of the model's output for `noised`, f32 `[rows, 2 * channels, frames, ..]`:
    /// predicted noise, then where the variance is between its bounds, -1 to 1.
    pub fn append_losses(
        &self,
        b: &mut Builder,
        sample: &Sample,
        noised: ValueId,
        model_out: ValueId,
    ) -> Result<Losses, Error> {
        let c = self.coefficients(b, sample)?;
        let channels = b.shape(sample.latents)[1];
        let prediction = b.slice_axis(model_out, 1, 0, channels)?;
        let range = b.slice_axis(model_out, 1, channels, 2 * channels)?;

        let error = b.sub(sample.noise, prediction)?;
        let mut squares = b.square(error)?;
        if self.weighting != Weighting::Uniform {
            squares = c.scaled(b, WEIGHT, squares)?;
        }
        let mse = row_means(b, squares, sample.frame_mask)?;

        let prediction = b.stop_gradient(prediction)?;
        let mean = {
            let signal = c.scaled(b, RECIP, noised)?;
            let level = c.scaled(b, RECIPM1, prediction)?;
            let start = b.sub(signal, level)?;
            posterior_mean(b, &c, start, noised)?
        };
        // share * high + (1 - share) * low
        let log_variance = {
            let share = b.add_scalar(range, 1.0)?;
            let share = b.mul_scalar(share, 0.5)?;
            let high = c.scaled(b, LOG_HIGH, share)?;
            let rest = b.mul_scalar(share, -1.0)?;
            let rest = b.add_scalar(rest, 1.0)?;
            let low = c.scaled(b, LOG_LOW, rest)?;
            b.add(high, low)?
        };
        let true_mean = posterior_mean(b, &c, sample.latents, noised)?;
        let divergence = divergence(b, &c, [true_mean, mean], log_variance)?;
        let surprise = discretized_surprise(b, sample.latents, mean, log_variance)?;
        let terms = {
            let times = b.cast(sample.timesteps, DType::F32)?;
            let mut shape = vec![1; c.rank];
            shape[0] = b.shape(times)[0];
            let times = b.reshape(times, &shape)?;
            let zero = b.splat_like(times, 0.0)?;
            let is_last = b.equal(times, zero)?;
            b.select(is_last, surprise, divergence)?
        };
        let bound = row_means(b, terms, sample.frame_mask)?;
        let bound = b.mul_scalar(bound, 1.0 / LN_2)?;
        let total = b.add(mse, bound)?;
        Ok(Losses { total, mse, bound })
    }
}

/// The mean of `q(x[t-1] | x[t], x0)`.
fn posterior_mean(
    b: &mut Builder,
    c: &Coefficients,
    start: ValueId,
    noised: ValueId,
) -> Result<ValueId, Error> {
    let start = c.scaled(b, START, start)?;
    let other = c.scaled(b, OTHER, noised)?;
    b.add(start, other)
}

/// The Kullback-Leibler divergence of the model's step, with mean `means[1]` and `log_variance`, from the
/// true one, with mean `means[0]` and the posterior's variance, in nats.
fn divergence(
    b: &mut Builder,
    c: &Coefficients,
    means: [ValueId; 2],
    log_variance: ValueId,
) -> Result<ValueId, Error> {
    // 0.5 (log_variance - low - 1 + exp(low - log_variance) + (difference)^2 exp(-log_variance))
    let low = c.get(b, LOG_LOW)?;
    let wider = b.sub(log_variance, low)?;
    let narrower = b.neg(wider)?;
    let ratio = b.exp(narrower)?;
    let difference = b.sub(means[0], means[1])?;
    let square = b.square(difference)?;
    let minus = b.neg(log_variance)?;
    let precision = b.exp(minus)?;
    let distance = b.mul(square, precision)?;
    let sum = b.add_scalar(wider, -1.0)?;
    let sum = b.add(sum, ratio)?;
    let sum = b.add(sum, distance)?;
    b.mul_scalar(sum, 0.5)
}

/// Minus the logarithm of the probability that a normal variable falls into the bin of `x`, one of 256
/// between -1 and 1, in nats; the outer bins reach to infinity.
fn discretized_surprise(
    b: &mut Builder,
    x: ValueId,
    mean: ValueId,
    log_variance: ValueId,
) -> Result<ValueId, Error> {
    let half = b.mul_scalar(log_variance, -0.5)?;
    let inverse_deviation = b.exp(half)?;
    let centered = b.sub(x, mean)?;
    let below = |b: &mut Builder, shift: f64| {
        let edge = b.add_scalar(centered, shift)?;
        let edge = b.mul(inverse_deviation, edge)?;
        normal_cdf(b, edge)
    };
    let (upper, lower) = (below(b, HALF_BIN)?, below(b, -HALF_BIN)?);
    let above = b.mul_scalar(lower, -1.0)?;
    let above = b.add_scalar(above, 1.0)?;
    let inside = b.sub(upper, lower)?;
    let log = |b: &mut Builder, probability| {
        let probability = b.max_scalar(probability, LEAST_PROBABILITY)?;
        b.log(probability)
    };
    let (upper, above, inside) = (log(b, upper)?, log(b, above)?, log(b, inside)?);
    let first_edge = b.splat_like(x, -EDGE)?;
    let last_edge = b.splat_like(x, EDGE)?;
    let is_first = b.less(x, first_edge)?;
    let is_last = b.less(last_edge, x)?;
    let log = b.select(is_last, above, inside)?;
    let log = b.select(is_first, upper, log)?;
    b.neg(log)
}

/// The distribution function of the standard normal, by the hyperbolic tangent as upstream:
/// `0.5 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
fn normal_cdf(b: &mut Builder, x: ValueId) -> Result<ValueId, Error> {
    let square = b.square(x)?;
    let cube = b.mul(square, x)?;
    let cube = b.mul_scalar(cube, 0.044_715)?;
    let inner = b.add(x, cube)?;
    let inner = b.mul_scalar(inner, FRAC_2_PI.sqrt())?;
    let y = b.tanh(inner)?;
    let y = b.add_scalar(y, 1.0)?;
    b.mul_scalar(y, 0.5)
}
