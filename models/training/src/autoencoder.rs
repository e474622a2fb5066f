//! The loss of an autoencoder on images.
//!
//! Encoder and decoder are those that sampling has, with a draw from the posterior between them: the host gives the
//! noise ("Auto-Encoding Variational Bayes", Kingma and Welling, 2014, section 2.4).

use std::collections::BTreeMap;

use models::config::AutoencoderKl;
use models::vae::{self, FrameBucket};
use ops::{Builder, DType, Graph, TensorType, ValueId};

use crate::means::row_means;
use crate::{Distribution, Error, Objective, Operands, Options, Param, initial};

/// Names of a batch's inputs.
const IMAGES: &str = "x";
const NOISE: &str = "noise";
const WEIGHT: &str = "weight";

/// What is added to means and logarithms of variances last.
const POSTERIOR_BIAS: &str = "quant_conv.bias";

/// An autoencoder and how its reconstruction is measured.
///
/// Its bucket is of the encoder: images in place of frames, which may be of any videos. It reads of a batch: `x` f32
/// `[images, channels, height, width]`, -1 to 1; `noise` standard normal, f32 `[images, latent_channels, h, w]`, smaller by
/// [`AutoencoderKl::downscale`]; and if [`salient`](Autoencoder::salient) is not 1, `weight` f32 `[images, 1, height, width]`.
/// Of [`Options`] it takes what is not of noise or captions.
#[derive(Clone, PartialEq, Debug)]
pub struct Autoencoder {
    /// Its hyper-parameters.
    pub config: AutoencoderKl,
    /// What the absolute error counts; 0 leaves it out.
    pub l1: f64,
    /// What the squared error counts; 0 leaves it out.
    pub mse: f64,
    /// What the divergence of the posterior from the normal distribution counts. Both are sums over an image, divided
    /// by the number of its elements, so that upstream's 1e-6 means the same at any size.
    pub kl: f64,
    /// The deviation that posteriors begin with, where upstream's first weights make it about 1: more than the first
    /// means differ by, so that many updates pass before anything is seen in them.
    pub initial_std: f64,
    /// What errors of salient pixels count, which the host tells by the input `weight`; 1 for as much as others, without
    /// such an input.
    pub salient: f64,
}

impl Autoencoder {
    /// Whether there is an input `weight`.
    pub fn is_weighted(&self) -> bool {
        self.salient != 1.0
    }

    /// Fails for numbers that no loss can have.
    pub(crate) fn check(&self) -> Result<(), Error> {
        for (name, number) in [("loss.l1", self.l1), ("loss.mse", self.mse), ("loss.kl", self.kl)] {
            if !(number >= 0.0 && number.is_finite()) {
                return Err(Error::option(name, format!("{number}, expected 0 or more")));
            }
        }
        for (name, number) in
            [("loss.initial_std", self.initial_std), ("loss.salient", self.salient)]
        {
            if !(number > 0.0 && number.is_finite()) {
                return Err(Error::option(name, format!("{number}, expected above 0")));
            }
        }
        if self.l1 == 0.0 && self.mse == 0.0 {
            return Err(Error::option("loss.l1", "0, as is loss.mse: nothing tells images apart"));
        }
        if self.config.in_channels != self.config.out_channels {
            let (from, to) = (self.config.in_channels, self.config.out_channels);
            let reason = format!("{to} for {from} in_channels: images cannot be compared");
            return Err(Error::option("out_channels", reason));
        }
        Ok(())
    }

    /// Images, posterior's mean and logarithm of its variance.
    fn graph(&self, bucket: &FrameBucket) -> Result<Graph, Error> {
        let config = &self.config;
        let FrameBucket { dtype: _, frames, height, width } = *bucket;
        let step = config.downscale();
        if !height.is_multiple_of(step) || !width.is_multiple_of(step) {
            return Err(Error::Bucket(format!(
                "images of {height}x{width}, expected multiples of {step} that decode to their own size"
            )));
        }
        let (h, w) = (height / step, width / step);
        let images = TensorType::new(DType::F32, [frames, config.in_channels, height, width])?;
        let latents = TensorType::new(DType::F32, [frames, config.latent_channels, h, w])?;
        let mut b = Builder::new("autoencoder");
        let x = b.input(IMAGES, images);
        let noise = b.input(NOISE, latents);
        let posterior = vae::encode(&mut b, config, bucket, x)?;
        let z = vae::draw(&mut b, &posterior, noise)?;
        let out = vae::decode(&mut b, config, &FrameBucket { height: h, width: w, ..*bucket }, z)?;
        Ok(b.finish(&[out, posterior.mean, posterior.logvar]))
    }

    /// The errors of pixels, as they count.
    fn append_errors(
        &self,
        b: &mut Builder,
        images: ValueId,
        out: ValueId,
    ) -> Result<ValueId, ops::Error> {
        let error = b.sub(out, images)?;
        let absolute = |b: &mut Builder| {
            let absolute = b.abs(error)?;
            b.mul_scalar(absolute, self.l1)
        };
        let squared = |b: &mut Builder| {
            let square = b.square(error)?;
            b.mul_scalar(square, self.mse)
        };
        if self.mse == 0.0 {
            return absolute(b);
        }
        if self.l1 == 0.0 {
            return squared(b);
        }
        let (absolute, squared) = (absolute(b)?, squared(b)?);
        b.add(absolute, squared)
    }

    /// The divergence of each image's posterior, over the number of `elements` of the image: f32 `[images]`.
    fn append_divergence(
        &self,
        b: &mut Builder,
        [mean, logvar]: [ValueId; 2],
        elements: usize,
    ) -> Result<ValueId, ops::Error> {
        // 0.5 sum(mean^2 + exp(logvar) - logvar - 1)
        let square = b.square(mean)?;
        let variance = b.exp(logvar)?;
        let sum = b.add(square, variance)?;
        let sum = b.sub(sum, logvar)?;
        let sum = b.add_scalar(sum, -1.0)?;
        let images = b.shape(sum)[0];
        let sum = b.reduce_sum(sum, &[1, 2, 3])?;
        let sum = b.reshape(sum, &[images])?;
        b.mul_scalar(sum, 0.5 * self.kl / elements as f64)
    }
}

impl Objective for Autoencoder {
    type Bucket = FrameBucket;

    fn parameters(&self, _: &Options) -> Result<Vec<Param>, Error> {
        let params = vae::params(&self.config)?;
        let products = |shape: &[usize]| shape.iter().skip(1).product::<usize>();
        // A bias is drawn as its weight is, so it has to know that one's shape.
        let of_modules: BTreeMap<String, usize> = params
            .iter()
            .filter_map(|(name, shape)| {
                Some((name.strip_suffix(".weight")?.into(), products(shape)))
            })
            .collect();
        let param = |(name, shape): (String, Vec<usize>)| {
            let module = name.rsplit_once('.').map_or("", |(module, _)| module);
            let fan_in = of_modules.get(module).copied().unwrap_or_else(|| products(&shape));
            let initial = match initial::autoencoder(&name, fan_in) {
                // The later half of its channels are logarithms of variances.
                Distribution::Uniform { bound } if name == POSTERIOR_BIAS => {
                    Distribution::HalfShifted { bound, shift: 2.0 * self.initial_std.ln() }
                }
                initial => initial,
            };
            Param { name, shape, initial }
        };
        Ok(params.into_iter().map(param).collect())
    }

    fn append_row_losses(
        &self,
        b: &mut Builder,
        bucket: &FrameBucket,
        _: &Options,
        operands: &mut Operands<'_>,
    ) -> Result<ValueId, Error> {
        self.check()?;
        let graph = self.graph(bucket)?;
        let mut images = None;
        let out = operands.append(b, &graph, |_, b, node, name| {
            let value = b.copy_node(node, &[])?;
            if name == IMAGES {
                images = Some(value);
            }
            Ok(value)
        })?;
        let images = images.expect("the encoder reads images");
        let &[frames, channels, height, width] = b.shape(images) else {
            unreachable!("images are of rank 4")
        };
        b.scope("loss", |b| {
            let mut errors = self.append_errors(b, images, out[0])?;
            if self.is_weighted() {
                let pixels = TensorType::new(DType::F32, [frames, 1, height, width])?;
                let weight = b.input(WEIGHT, pixels);
                errors = b.mul(errors, weight)?;
            }
            let errors = row_means(b, errors, None)?;
            if self.kl == 0.0 {
                return Ok(errors);
            }
            let elements = channels * height * width;
            let divergence = self.append_divergence(b, [out[1], out[2]], elements)?;
            Ok(b.add(errors, divergence)?)
        })
    }
}
