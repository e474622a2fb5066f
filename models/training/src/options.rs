//! What decides a training step besides model and bucket.

use diffusion::schedule::Precision;
use models::config::T5;

use crate::{AdamW, Error, Freeze, Lora, Weighting};

/// Where the text features of captions come from.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Text {
    /// An encoder that stays as it is has made them; they can be kept.
    #[default]
    Features,
    /// The step has the encoder and trains it with the transformer.
    Encoder {
        /// Its hyper-parameters.
        config: T5,
        /// What its learning rate is to the transformer's.
        lr_factor: f64,
    },
}

/// The choices that are compiled into a step. What changes from step to step is an input instead.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Precision of the noise process's tables: that of the release.
    pub precision: Precision,
    /// How timesteps are weighted.
    pub weighting: Weighting,
    /// The optimizer.
    pub optimizer: AdamW,
    /// Global norm that gradients are clipped to; without, they are not.
    pub max_norm: Option<f64>,
    /// Decay of the average of the masters; without, there is none.
    pub ema_decay: Option<f64>,
    /// Which parameters stay as they are.
    pub freeze: Freeze,
    /// Adapts weights instead of training them; what it does not adapt is frozen.
    pub lora: Option<Lora>,
    /// What makes features of captions.
    pub text: Text,
    /// Whether rows may have their caption replaced by the null caption (the input `drop_caption`).
    pub caption_dropout: bool,
    /// Batches whose gradients are averaged for one update.
    pub micro_batches: usize,
}

impl Default for Options {
    /// Open-Sora 1.1's: uniform weights, `AdamW`, norms to 1, averages by 0.9999, captions dropped.
    fn default() -> Options {
        Options {
            precision: Precision::F32,
            weighting: Weighting::Uniform,
            optimizer: AdamW::default(),
            max_norm: Some(1.0),
            ema_decay: Some(0.9999),
            freeze: Freeze::Nothing,
            lora: None,
            text: Text::Features,
            caption_dropout: true,
            micro_batches: 1,
        }
    }
}

impl Options {
    /// Fails for numbers that no step can have.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.optimizer.check()?;
        if let Some(norm) = self.max_norm
            && !(norm > 0.0 && norm.is_finite())
        {
            return Err(Error::option("max_norm", format!("{norm}, expected above 0")));
        }
        if let Some(decay) = self.ema_decay
            && !(0.0..1.0).contains(&decay)
        {
            return Err(Error::option("ema_decay", format!("{decay}, expected 0 to below 1")));
        }
        if let Some(lora) = &self.lora {
            lora.check()?;
        }
        if let Text::Encoder { config: _, lr_factor } = self.text
            && !(lr_factor > 0.0 && lr_factor.is_finite())
        {
            return Err(Error::option("text.lr_factor", format!("{lr_factor}, expected above 0")));
        }
        if self.micro_batches == 0 {
            return Err(Error::option("micro_batches", "0, expected 1 or more"));
        }
        Ok(())
    }
}
