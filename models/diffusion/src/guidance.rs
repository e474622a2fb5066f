//! Classifier-free guidance (Ho and Salimans, 2022) as Open-Sora packs it.

use ops::{Builder, ValueId};

use crate::Error;
use crate::coefficients::Coefficients;

/// How far the prediction is pushed from the null caption's to the prompt's.
#[derive(Clone, PartialEq, Debug)]
pub struct Guidance {
    /// 1 is the prompt's prediction, 0 the null caption's; configs use 4 to 7.
    pub scale: f64,
    /// How many of the predicted channels are guided; none for all. 1.0, and shipped configs of
    /// 1.1, guide 3 of 4; the rest stay the prompt's.
    pub channels: Option<usize>,
}

impl Guidance {
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !self.scale.is_finite() || self.channels == Some(0) {
            return Err(Error::Schedule(format!(
                "guidance {self:?}, expected a finite scale and at least one channel"
            )));
        }
        Ok(())
    }
}

/// Appends the doubling of `x` for a guided model: rows of the prompts, then of the null caption.
pub fn append_model_input(b: &mut Builder, x: ValueId) -> Result<ValueId, ops::Error> {
    b.concat(&[x, x], 0)
}

/// Appends the guided output of the prompts' rows. Of `out` `[2 * rows, any, ..]` the first
/// `channels` are the prediction; all others pass through.
pub(crate) fn append_guidance(
    b: &mut Builder,
    out: ValueId,
    channels: usize,
    guidance: &Guidance,
    c: &Coefficients,
    scale: usize,
) -> Result<ValueId, ops::Error> {
    let &[rows, width, ..] = b.shape(out) else {
        return Err(odd_output(b, out));
    };
    if rows % 2 != 0 {
        return Err(odd_output(b, out));
    }
    let guided = guidance.channels.map_or(channels, |count| count.min(channels));
    let prompt = b.slice_axis(out, 0, 0, rows / 2)?;
    let null = b.slice_axis(out, 0, rows / 2, rows)?;
    let prompt_part = b.slice_axis(prompt, 1, 0, guided)?;
    let null_part = b.slice_axis(null, 1, 0, guided)?;
    let difference = b.sub(prompt_part, null_part)?;
    let push = c.scaled(b, scale, difference)?;
    let mixed = b.add(null_part, push)?;
    if guided == width {
        return Ok(mixed);
    }
    let rest = b.slice_axis(prompt, 1, guided, width)?;
    b.concat(&[mixed, rest], 1)
}

fn odd_output(b: &Builder, out: ValueId) -> ops::Error {
    ops::Error::Shape(format!(
        "guidance: the model's output is {}, expected [2 * rows, channels, ..]",
        b.ty(out)
    ))
}
