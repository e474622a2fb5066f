//! Low-rank adaptation: a frozen weight plus a trained product of two thin matrices.
//!
//! "Low-Rank Adaptation of Large Language Models" (Hu et al., 2022), section 4.1. The sum is made in
//! f32 and cast where it is used, as masters are, so what is trained is what a merged checkpoint has.

use ops::{Builder, DType, TensorType, ValueId};

use crate::Error;
use crate::initial::stream;
use crate::timesteps::uniform;

/// Which weights are adapted, and by how much.
#[derive(Clone, PartialEq, Debug)]
pub struct Lora {
    /// Columns of the thin matrices.
    pub rank: usize,
    /// The product counts `alpha / rank` times.
    pub alpha: f64,
    /// A weight of two or more axes is adapted if its name contains one of these.
    pub targets: Vec<String>,
    /// Seed of the first factors before training; the second ones are 0.
    pub seed: u64,
}

impl Lora {
    /// Names and types of the two factors of the weight `name`, `[rank, in]` and `[out, rank]`; `None` if
    /// it is not adapted. Axes behind the first are one, as in the linear layer that a patch embedding is.
    pub(crate) fn factors(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<[(String, TensorType); 2]>, Error> {
        let Some(module) = name.strip_suffix(".weight") else { return Ok(None) };
        let is_target = self.targets.iter().any(|target| name.contains(target.as_str()));
        let ([out, rest @ ..], true) = (shape, is_target && shape.len() >= 2) else {
            return Ok(None);
        };
        let inner: usize = rest.iter().product();
        Ok(Some([
            (format!("{module}.lora_A.weight"), TensorType::new(DType::F32, [self.rank, inner])?),
            (format!("{module}.lora_B.weight"), TensorType::new(DType::F32, [*out, self.rank])?),
        ]))
    }

    /// Elements of the factor `name` before training: the first uniform within `1 / sqrt(in)`, the second
    /// 0, so that the sum begins as the frozen weight.
    pub(crate) fn initial(&self, name: &str, ty: &TensorType) -> Vec<f32> {
        if name.ends_with(".lora_B.weight") {
            return vec![0.0; ty.count()];
        }
        let bound = (ty.shape()[1] as f64).powf(-0.5);
        let stream = stream(name);
        let element = |i| (bound * (2.0 * uniform(self.seed, stream, i) - 1.0)) as f32;
        (0..ty.count()).map(element).collect()
    }

    /// Appends `base + alpha / rank * second first`, all f32, in the shape of `base`.
    pub(crate) fn append_weight(
        &self,
        b: &mut Builder,
        base: ValueId,
        [first, second]: [ValueId; 2],
    ) -> Result<ValueId, ops::Error> {
        let shape = b.shape(base).to_vec();
        let product = b.matmul(second, first, false, false)?;
        let product = b.mul_scalar(product, self.alpha / self.rank as f64)?;
        let product = b.reshape(product, &shape)?;
        b.add(base, product)
    }

    /// Fails for numbers that no adaptation can have.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.rank == 0 {
            return Err(Error::option("lora.rank", "0, expected 1 or more"));
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return Err(Error::option("lora.alpha", format!("{}, expected above 0", self.alpha)));
        }
        if self.targets.is_empty() || self.targets.iter().any(String::is_empty) {
            return Err(Error::option("lora.targets", "expected parts of names of weights"));
        }
        Ok(())
    }
}
