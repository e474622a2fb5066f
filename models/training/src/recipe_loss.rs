//! The loss of a recipe: a noise process, or images that are compared.

use diffusion::schedule::Precision;
use serde::{Deserialize, Serialize};

use crate::recipe::fail;
use crate::{Error, Weighting};

/// The loss: its kind, and the numbers that the kind reads.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LossSection {
    /// Process and weights, or images.
    pub kind: LossKind,
    /// Precision of the process's tables: `f64` as 1.0, `f32` as 1.1.
    #[serde(default)]
    pub tables: Option<TablePrecision>,
    /// Share of the captions that are replaced by the null caption.
    #[serde(default)]
    pub caption_dropout: f64,
    /// The signal-to-noise ratio from which on errors of the noise count less; absent where all timesteps count alike.
    #[serde(default)]
    pub min_snr_gamma: Option<f64>,
    /// What the absolute error of a reconstruction counts; absent for 0.
    #[serde(default)]
    pub l1: Option<f64>,
    /// What the squared error of a reconstruction counts; absent for 0.
    #[serde(default)]
    pub mse: Option<f64>,
    /// What the divergence of an autoencoder's posterior counts.
    #[serde(default)]
    pub kl: Option<f64>,
    /// What a reconstruction's errors count where a pixel differs from the image's median color by more than an eighth
    /// of the range in some channel; absent for 1, as much as elsewhere.
    #[serde(default)]
    pub salient: Option<f64>,
    /// The deviation that an autoencoder's posteriors begin with; absent for 1, as upstream's first weights make it.
    #[serde(default)]
    pub initial_std: Option<f64>,
}

/// What is made smaller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// The hybrid loss of a transformer's noise process.
    Iddpm,
    /// The same, with timesteps drawn and weighted by their noise.
    IddpmSpeed,
    /// The error of an autoencoder's images, and the divergence of its posterior.
    Reconstruction,
}

/// Precision of the tables of a noise process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TablePrecision {
    /// Open-Sora 1.0.
    F64,
    /// Open-Sora 1.1.
    F32,
}

impl LossSection {
    /// How timesteps are weighted; a reconstruction has none.
    pub(crate) fn weighting(&self) -> Weighting {
        match (self.kind, self.min_snr_gamma) {
            (LossKind::IddpmSpeed, _) => Weighting::Speed,
            (LossKind::Iddpm, Some(gamma)) => Weighting::MinSnr { gamma },
            (LossKind::Iddpm | LossKind::Reconstruction, _) => Weighting::Uniform,
        }
    }

    /// Precision of the process's tables.
    pub(crate) fn precision(&self) -> Precision {
        match self.tables {
            Some(TablePrecision::F64) => Precision::F64,
            Some(TablePrecision::F32) | None => Precision::F32,
        }
    }

    /// Fails for numbers that the kind needs and lacks, or has and does not read.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let is_process = self.kind != LossKind::Reconstruction;
        let dropout = self.caption_dropout;
        if !(0.0..1.0).contains(&dropout) {
            return fail(format!("loss.caption_dropout {dropout}, expected 0 to below 1"));
        }
        if let Some(gamma) = self.min_snr_gamma
            && !(gamma > 0.0 && gamma.is_finite())
        {
            return fail(format!("loss.min_snr_gamma {gamma}, expected a number above 0"));
        }
        let is_plain = self.kind == LossKind::Iddpm;
        for (key, is_given, is_read, is_needed) in [
            ("tables", self.tables.is_some(), is_process, is_process),
            ("caption_dropout", dropout > 0.0, is_process, false),
            ("min_snr_gamma", self.min_snr_gamma.is_some(), is_plain, false),
            ("l1", self.l1.is_some(), !is_process, false),
            ("mse", self.mse.is_some(), !is_process, false),
            ("kl", self.kl.is_some(), !is_process, !is_process),
            ("salient", self.salient.is_some(), !is_process, false),
            ("initial_std", self.initial_std.is_some(), !is_process, false),
        ] {
            let what = match (is_given, is_read, is_needed) {
                (true, false, _) => "has no effect",
                (false, _, true) => "is missing",
                _ => continue,
            };
            return fail(format!("loss.{key} {what} with kind {:?}", self.kind));
        }
        Ok(())
    }
}
