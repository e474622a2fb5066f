//! Low-rank adaptation: a frozen weight plus a trained product of two thin matrices.
//!
//! "Low-Rank Adaptation of Large Language Models" (Hu et al., 2022), section 4.1. The sum is made in
//! f32 and cast where it is used, as masters are, so what is trained is what a merged checkpoint has.

use models::nearest::nearest_few;
use ops::{Builder, DType, TensorType, ValueId};

use crate::initial::stream;
use crate::timesteps::uniform;
use crate::{Error, Param};

/// Names that a message offers for one that is in no weight's.
const N_OFFERED: usize = 3;

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
        let Some(module) = module(name, shape) else { return Ok(None) };
        let is_target = self.targets.iter().any(|target| name.contains(target.as_str()));
        let ([out, rest @ ..], true) = (shape, is_target) else { return Ok(None) };
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

    /// Fails for a target that is in the name of none of `params`, those that are not frozen.
    pub(crate) fn check_targets(&self, params: &[Param]) -> Result<(), Error> {
        let adaptable = |param: &Param| module(&param.name, &param.shape).is_some();
        let names: Vec<&str> =
            params.iter().filter(|param| adaptable(param)).map(|param| &*param.name).collect();
        let is_there = |target: &str| names.iter().any(|name| name.contains(target));
        match self.targets.iter().find(|target| !is_there(target)) {
            Some(target) if !names.is_empty() => {
                let offered = nearest_few(target, names.into_iter().flat_map(tails), N_OFFERED);
                Err(Error::option(
                    "lora.targets",
                    format!(
                        "`{target}` is in the name of no weight that can be adapted; did you mean one of `{}`?",
                        offered.join("`, `")
                    ),
                ))
            }
            _ => Ok(()),
        }
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

/// The module whose weight `name` is, if it is one that can be adapted: a matrix, also where it is a convolution's.
fn module<'n>(name: &'n str, shape: &[usize]) -> Option<&'n str> {
    name.strip_suffix(".weight").filter(|_| shape.len() >= 2)
}

/// Ends of a weight's name that say which one of a block it is, not of which block: `attn.qkv` and `qkv` of
/// `blocks.0.attn.qkv.weight`.
fn tails(name: &str) -> impl Iterator<Item = &str> {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let starts = std::iter::once(0).chain(module.match_indices('.').map(|(at, _)| at + 1));
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    starts.map(move |at| &module[at..]).filter(move |tail| match tail.rsplit_once('.') {
        // A layer's place in a sequence is a name only with what is before it.
        None => !is_number(tail),
        Some((before, _)) => !before.split('.').any(is_number),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_names_are_of_any_block() {
        let of = |name| tails(name).collect::<Vec<_>>();
        assert_eq!(of("blocks.10.attn.qkv.weight"), ["attn.qkv", "qkv"]);
        assert_eq!(of("t_block.1.weight"), ["t_block.1"]);
        assert_eq!(of("t_embedder.mlp.0.weight"), ["t_embedder.mlp.0", "mlp.0"]);
    }

    #[test]
    fn a_target_of_no_weight_is_refused_with_the_nearest_names() {
        let param = |name: &str, shape: &[usize]| Param {
            name: name.into(),
            shape: shape.to_vec(),
            initial: crate::Distribution::Zeros,
        };
        let params = [
            param("blocks.0.attn.qkv.weight", &[6, 2]),
            param("blocks.0.attn.q_norm.weight", &[2]),
            param("blocks.0.mlp.fc1.weight", &[8, 2]),
            param("blocks.1.attn.qkv.weight", &[6, 2]),
        ];
        let refused = |targets: &[&str]| {
            let targets = targets.iter().map(|&target| target.into()).collect();
            let lora = Lora { rank: 1, alpha: 1.0, targets, seed: 0 };
            lora.check_targets(&params).map_err(|error| error.to_string())
        };
        refused(&["attn", "blocks.1"]).unwrap();
        let error = refused(&["mlp", "attn.qkw"]).unwrap_err();
        assert!(error.contains("`attn.qkw` is in the name of no weight"), "{error}");
        assert!(error.contains("did you mean one of `attn.qkv`, `"), "{error}");
        // A norm's weight is no matrix.
        assert!(refused(&["q_norm"]).is_err());
    }
}
