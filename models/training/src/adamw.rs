//! `AdamW`: the update as graph nodes, and the host's numbers for each step.
//!
//! "Decoupled Weight Decay Regularization" (Loshchilov and Hutter, 2019), algorithm 2, with the bias
//! corrections in the form that upstream's `HybridAdam` and `PyTorch` have. All f32.

use ops::{Builder, DType, Error, Tensor, TensorType, ValueId};

/// Hyper-parameters of the optimizer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AdamW {
    /// Decay rates of the first and the second moment, 0 to below 1.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of a weight that a step takes away, times the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamW {
    /// Upstream's: 0.9, 0.999, 1e-8, no decay.
    fn default() -> AdamW {
        AdamW { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 }
    }
}

/// What the optimizer holds of one parameter; f32 in the parameter's shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// The weight.
    pub master: ValueId,
    /// Decaying mean of gradients.
    pub first_moment: ValueId,
    /// Decaying mean of squared gradients.
    pub second_moment: ValueId,
}

// Places in the coefficient vector.
const STEP_SIZE: usize = 0;
const ROOT_CORRECTION: usize = 1;
const KEPT: usize = 2;

impl AdamW {
    /// Length of the coefficient vector.
    pub const N_COEFFICIENTS: usize = 3;

    /// The type of the coefficient vector.
    pub(crate) fn coefficient_type() -> Result<TensorType, Error> {
        TensorType::new(DType::F32, [AdamW::N_COEFFICIENTS])
    }

    /// The inputs of step `step`, counted from 1, at learning rate `lr`. They are computed here in f64:
    /// in f32 `1 - beta^step` would lose most of its digits in the first steps.
    pub fn coefficients(&self, lr: f64, step: u64) -> [f32; AdamW::N_COEFFICIENTS] {
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let mut c = [0f64; AdamW::N_COEFFICIENTS];
        c[STEP_SIZE] = lr / correction(self.betas[0]);
        c[ROOT_CORRECTION] = 1.0 / correction(self.betas[1]).sqrt();
        c[KEPT] = 1.0 - lr * self.weight_decay;
        c.map(|x| x as f32)
    }

    /// Appends what `coefficients` are at `factor` times their learning rate.
    pub(crate) fn append_scaled_coefficients(
        b: &mut Builder,
        coefficients: ValueId,
        factor: f64,
    ) -> Result<ValueId, Error> {
        // What a step takes away is scaled, not what it keeps: 1 - factor (1 - kept).
        let (mut scale, mut shift) = ([1f32; AdamW::N_COEFFICIENTS], [0f32; AdamW::N_COEFFICIENTS]);
        scale[STEP_SIZE] = factor as f32;
        scale[KEPT] = factor as f32;
        shift[KEPT] = (1.0 - factor) as f32;
        let scale = b.constant(Tensor::f32(&[AdamW::N_COEFFICIENTS], &scale)?);
        let shift = b.constant(Tensor::f32(&[AdamW::N_COEFFICIENTS], &shift)?);
        let scaled = b.mul(coefficients, scale)?;
        b.add(scaled, shift)
    }

    /// Appends one update of `slot` by `gradient`: its new values. `coefficients` is f32
    /// `[N_COEFFICIENTS]`, see [`AdamW::coefficients`].
    pub fn append_update(
        &self,
        b: &mut Builder,
        slot: Slot,
        gradient: ValueId,
        coefficients: ValueId,
    ) -> Result<Slot, Error> {
        let rank = b.ty(slot.master).rank();
        let coefficient = |b: &mut Builder, at: usize| {
            let entry = b.slice_axis(coefficients, 0, at, at + 1)?;
            b.reshape(entry, &vec![1; rank])
        };
        let decayed = |b: &mut Builder, moment, new, beta: f64| {
            let kept = b.mul_scalar(moment, beta)?;
            let new = b.mul_scalar(new, 1.0 - beta)?;
            b.add(kept, new)
        };
        let first_moment = decayed(b, slot.first_moment, gradient, self.betas[0])?;
        let square = b.square(gradient)?;
        let second_moment = decayed(b, slot.second_moment, square, self.betas[1])?;
        // step_size * m / (sqrt(v) / sqrt(correction) + eps)
        let root = b.sqrt(second_moment)?;
        let root_correction = coefficient(b, ROOT_CORRECTION)?;
        let root = b.mul(root, root_correction)?;
        let root = b.add_scalar(root, self.eps)?;
        let step_size = coefficient(b, STEP_SIZE)?;
        let change = b.mul(first_moment, step_size)?;
        let change = b.div(change, root)?;
        let kept = if self.weight_decay == 0.0 {
            slot.master
        } else {
            let share = coefficient(b, KEPT)?;
            b.mul(slot.master, share)?
        };
        let master = b.sub(kept, change)?;
        Ok(Slot { master, first_moment, second_moment })
    }

    /// Fails for numbers that no optimizer can have.
    pub(crate) fn check(&self) -> Result<(), crate::Error> {
        let fail = |name, reason: String| Err(crate::Error::option(name, reason));
        if let Some(beta) = self.betas.iter().find(|beta| !(0.0..1.0).contains(*beta)) {
            return fail("betas", format!("{beta}, expected 0 to below 1"));
        }
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            return fail("eps", format!("{}, expected above 0", self.eps));
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return fail("weight_decay", format!("{}, expected 0 or more", self.weight_decay));
        }
        Ok(())
    }
}
