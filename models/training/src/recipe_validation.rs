//! What of a model in training is looked at now and then.

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::recipe::fail;

/// Most sampling steps: those of the noise process.
const MAX_STEPS: usize = 1000;

/// Videos that are sampled with the averaged weights.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ValidationSection {
    /// Updates between two times.
    pub every: u64,
    /// What the videos show, one of each.
    pub prompts: Vec<String>,
    /// Sampling steps.
    pub steps: usize,
    /// Guidance scale.
    pub cfg_scale: f64,
    /// Frames; 1 makes an image.
    pub frames: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// Frames per second, as the model is told and as the file is played.
    pub fps: f64,
}

impl ValidationSection {
    /// Fails for numbers that no video can have.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let counts = [
            ("every", self.every),
            ("steps", self.steps as u64),
            ("frames", self.frames as u64),
            ("height", self.height as u64),
            ("width", self.width as u64),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return fail(format!("validation.{key} is 0, expected 1 or more"));
        }
        if self.steps > MAX_STEPS {
            return fail(format!("validation.steps {}, expected 1 to {MAX_STEPS}", self.steps));
        }
        if self.prompts.is_empty() || self.prompts.iter().any(|prompt| prompt.trim().is_empty()) {
            return fail("validation.prompts: expected texts of what videos show".into());
        }
        if !self.cfg_scale.is_finite() {
            return fail(format!("validation.cfg_scale {}, expected a number", self.cfg_scale));
        }
        if !(self.fps > 0.0 && self.fps.is_finite()) {
            return fail(format!("validation.fps {}, expected above 0", self.fps));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn videos_that_cannot_be_are_refused_with_the_key() {
        let good = ValidationSection {
            every: 100,
            prompts: vec!["a zombie runs".into()],
            steps: 50,
            cfg_scale: 2.5,
            frames: 8,
            height: 64,
            width: 64,
            fps: 8.0,
        };
        good.check().unwrap();
        for (wrong, expected) in [
            (ValidationSection { every: 0, ..good.clone() }, "validation.every is 0"),
            (ValidationSection { steps: 1001, ..good.clone() }, "validation.steps 1001"),
            (ValidationSection { prompts: vec![" ".into()], ..good.clone() }, "prompts"),
            (ValidationSection { cfg_scale: f64::NAN, ..good.clone() }, "cfg_scale NaN"),
            (ValidationSection { fps: -1.0, ..good.clone() }, "validation.fps -1"),
            (ValidationSection { width: 0, ..good }, "validation.width is 0"),
        ] {
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
