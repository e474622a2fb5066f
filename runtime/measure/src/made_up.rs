//! Weights and inputs for any plan, the same each time: numbers of a size that real models have, so
//! that no kernel meets overflow, denormals or a special case that real numbers would not bring.

use std::borrow::Cow;
use std::collections::BTreeMap;

use compiler::Plan;
use ops::{DType, Graph, Tensor, TensorType};
use runtime::WeightSource;

/// Elements after which the numbers repeat: a prime, so that no axis sees one number only.
const PERIOD: usize = 1021;

/// Made-up weights of one plan.
#[derive(Clone, Debug)]
pub struct MadeUp(BTreeMap<String, TensorType>);

impl MadeUp {
    /// The weights that `graph` reads.
    pub fn of(graph: &Graph) -> MadeUp {
        let typed =
            |(value, name): (ops::ValueId, &str)| (name.to_string(), graph.ty(value).clone());
        MadeUp(graph.params().map(typed).collect())
    }

    /// Dense little-endian bytes for each input of `plan`: floats in -1..1, small integers, and masks
    /// that are true everywhere, which leaves most to do.
    pub fn inputs(plan: &Plan) -> Vec<(String, Vec<u8>)> {
        let of = |port: &compiler::Port| (port.name.to_string(), MadeUp::input(&port.ty));
        plan.inputs.iter().map(of).collect()
    }

    /// Dense little-endian bytes for an input of any type, as [`MadeUp::inputs`] has them.
    pub fn input(ty: &TensorType) -> Vec<u8> {
        repeated(ty, 1.0, 0.0)
    }
}

/// Made-up weights by name and type.
impl FromIterator<(String, TensorType)> for MadeUp {
    fn from_iter<I: IntoIterator<Item = (String, TensorType)>>(weights: I) -> MadeUp {
        MadeUp(weights.into_iter().collect())
    }
}

impl WeightSource for MadeUp {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let Some(ty) = self.0.get(name) else { return Ok(None) };
        // Matrices are scaled as trained ones are, so that the size of activations is kept; vectors
        // are norm weights about 1, or biases for which it does not matter.
        let (scale, offset) = match *ty.shape() {
            [] | [_] => (0.02, if name.ends_with("bias") { 0.0 } else { 1.0 }),
            [rows, ..] => ((rows as f64 / ty.count() as f64).sqrt(), 0.0),
        };
        Ok(Some((ty.clone(), Cow::Owned(repeated(ty, scale, offset)))))
    }
}

/// Elements about `offset`, away from it by `scale` at most.
fn repeated(ty: &TensorType, scale: f64, offset: f64) -> Vec<u8> {
    let ints = |f: fn(usize) -> i64| (0..PERIOD).map(f).collect();
    let period = ty.with_shape([PERIOD]).expect("a short vector of any element type");
    let period = match ty.dtype() {
        DType::F32 | DType::F16 | DType::Bf16 => {
            // Scattered over -1..1: the fractional parts of multiples of the golden ratio.
            let wave = |i: usize| 2.0 * (i as f64 * 0.618_033_988_749_895).fract() - 1.0;
            Tensor::floats(period, (0..PERIOD).map(|i| offset + scale * wave(i)).collect())
        }
        DType::Bool => Tensor::ints(period, ints(|_| 1)),
        DType::I64 | DType::I32 | DType::U8 => Tensor::ints(period, ints(|i| i as i64 % 100)),
    };
    let period = period.rounded().to_bytes();
    let n_bytes = ty.bytes();
    let mut bytes = Vec::with_capacity(n_bytes);
    while bytes.len() < n_bytes {
        let more = period.len().min(n_bytes - bytes.len());
        bytes.extend_from_slice(&period[..more]);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_filled_with_ordinary_numbers() {
        for dtype in DType::ALL {
            let ty = TensorType::new(dtype, [3, 700]).unwrap();
            let tensor = Tensor::from_bytes(ty.clone(), &repeated(&ty, 0.5, 0.0)).unwrap();
            let values = tensor.to_f32();
            assert_eq!(values.len(), 2100);
            assert!(values.iter().all(|x| x.abs() < 100.0), "{dtype}");
            let is_flag = dtype == DType::Bool;
            assert_eq!(values.iter().any(|x| *x != values[0]), !is_flag, "{dtype}");
        }
    }
}
