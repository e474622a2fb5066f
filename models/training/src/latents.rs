//! How the latents of an autoencoder are distributed, and the same autoencoder with latents as noise processes want
//! them: per channel of mean 0 and, times [`LATENT_SCALE`], deviation 1.
//!
//! Upstream multiplies the latents of every autoencoder by that one number, whatever its `config.json` says. So it is not
//! the number that follows the data, but the 1x1 convolutions where latents end and begin.

use models::config::AutoencoderKl;
use models::vae::LATENT_SCALE;

use crate::Error;

/// Moments of latents by channel.
#[derive(Clone, PartialEq, Debug)]
pub struct LatentStatistics {
    /// Numbers of a channel so far.
    count: f64,
    sums: Vec<f64>,
    /// Of squares of the means and of variances: of squares of draws, as expected.
    squares: Vec<f64>,
}

const QUANT: [&str; 2] = ["quant_conv.weight", "quant_conv.bias"];
const POST_QUANT: [&str; 2] = ["post_quant_conv.weight", "post_quant_conv.bias"];

impl LatentStatistics {
    /// Of no latents yet, of an autoencoder with `channels` channels.
    pub fn new(channels: usize) -> LatentStatistics {
        LatentStatistics { count: 0.0, sums: vec![0.0; channels], squares: vec![0.0; channels] }
    }

    /// Adds posteriors: `mean` and `logvar` of `images` images, each f32 `[images, channels, ..]`, unscaled.
    ///
    /// # Errors
    /// [`Error::State`] if they are not of one shape with as many channels.
    pub fn add(&mut self, mean: &[f32], logvar: &[f32], images: usize) -> Result<(), Error> {
        let channels = self.sums.len();
        let rows = images * channels;
        if mean.len() != logvar.len() || rows == 0 || !mean.len().is_multiple_of(rows) {
            return Err(Error::State(format!(
                "{} means and {} variances, expected as many for {images} images of {channels} channels",
                mean.len(),
                logvar.len()
            )));
        }
        let places = mean.len() / rows;
        let planes = mean.chunks_exact(places).zip(logvar.chunks_exact(places));
        for (row, (mean, logvar)) in planes.enumerate() {
            let channel = row % channels;
            for (&mean, &logvar) in mean.iter().zip(logvar) {
                let mean = f64::from(mean);
                self.sums[channel] += mean;
                self.squares[channel] += mean * mean + f64::from(logvar).exp();
            }
        }
        self.count += (images * places) as f64;
        Ok(())
    }

    /// The mean of each channel; NaN before the first latents.
    pub fn means(&self) -> Vec<f64> {
        self.sums.iter().map(|sum| sum / self.count).collect()
    }

    /// The deviation of each channel's draws; NaN before the first latents.
    pub fn deviations(&self) -> Vec<f64> {
        let moments = self.squares.iter().zip(self.means());
        moments.map(|(square, mean)| (square / self.count - mean * mean).max(0.0).sqrt()).collect()
    }

    /// The weights and biases of both 1x1 convolutions, of what they are now, such that latents are as they should be
    /// and decode to the same images. `weight` gives a tensor of `config`'s autoencoder by its checkpoint name.
    ///
    /// # Errors
    /// [`Error::Weight`] for an autoencoder without these convolutions, and [`Error::State`] for a channel that is the
    /// same everywhere.
    pub fn folded<'a>(
        &self,
        config: &AutoencoderKl,
        weight: impl Fn(&str) -> Option<&'a [f32]>,
    ) -> Result<Vec<(&'static str, Vec<f32>)>, Error> {
        let channels = self.sums.len();
        let find = |name: &str, count: usize| -> Result<Vec<f64>, Error> {
            let fail = |reason: String| Error::Weight { name: name.into(), reason };
            let found = weight(name)
                .ok_or_else(|| fail("missing; latents are brought to one scale in it".into()))?;
            if found.len() != count {
                return Err(fail(format!("{} elements, expected {count}", found.len())));
            }
            Ok(found.iter().map(|&x| f64::from(x)).collect())
        };
        if config.latent_channels != channels {
            let (found, expected) = (channels, config.latent_channels);
            return Err(Error::State(format!("{found} channels of latents, expected {expected}")));
        }
        let (means, deviations) = (self.means(), self.deviations());
        if let Some(channel) = deviations.iter().position(|std| !(*std > 0.0 && std.is_finite())) {
            let reason = "its latents are all the same, so they carry nothing; train it longer";
            return Err(Error::State(format!("channel {channel} of the autoencoder: {reason}")));
        }
        // What a channel is multiplied by.
        let gains: Vec<f64> = deviations.iter().map(|std| 1.0 / (std * LATENT_SCALE)).collect();

        let both = 2 * channels;
        let mut quant = find(QUANT[0], both * both)?;
        let mut quant_bias = find(QUANT[1], both)?;
        for (channel, (&gain, &mean)) in gains.iter().zip(&means).enumerate() {
            quant[channel * both..][..both].iter_mut().for_each(|weight| *weight *= gain);
            quant_bias[channel] = gain * (quant_bias[channel] - mean);
            quant_bias[channels + channel] += 2.0 * gain.ln();
        }
        let mut post = find(POST_QUANT[0], channels * channels)?;
        let mut post_bias = find(POST_QUANT[1], channels)?;
        for (row, bias) in post.chunks_exact_mut(channels).zip(&mut post_bias) {
            for (weight, (&gain, &mean)) in row.iter_mut().zip(gains.iter().zip(&means)) {
                *bias += *weight * mean;
                *weight /= gain;
            }
        }
        let narrow =
            |values: Vec<f64>| -> Vec<f32> { values.into_iter().map(|x| x as f32).collect() };
        let values = [quant, quant_bias, post, post_bias].map(narrow);
        Ok(QUANT.into_iter().chain(POST_QUANT).zip(values).collect())
    }
}
