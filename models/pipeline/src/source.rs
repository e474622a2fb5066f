//! One part of a model: a checkpoint fitted to a graph's parameters, as the runtime's weights.

use std::borrow::Cow;
use std::sync::Arc;

use checkpoint::Checkpoint;
use checkpoint::names::{Fitted, Leniency, Parameter, fit_with};
use ops::{DType, TensorType};
use runtime::{WeightSource, WeightStore};

use crate::Error;

/// A checkpoint and the weights made from it.
#[derive(Debug)]
pub struct Part {
    checkpoint: Arc<Checkpoint>,
    weights: WeightStore,
}

impl Part {
    /// Fits `checkpoint` to all of `params`.
    ///
    /// # Errors
    /// [`Error::Misfit`], listing every tensor that does not fit.
    pub fn new(checkpoint: Checkpoint, params: &[Parameter]) -> Result<Part, Error> {
        let checkpoint = Arc::new(checkpoint);
        let fitted = FittedWeights::new(Arc::clone(&checkpoint), params, Leniency::default())?;
        Ok(Part { weights: WeightStore::new(fitted), checkpoint })
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The checkpoint, to be kept.
    pub fn shared_checkpoint(&self) -> Arc<Checkpoint> {
        Arc::clone(&self.checkpoint)
    }

    /// Its weights.
    pub fn weights(&self) -> &WeightStore {
        &self.weights
    }
}

/// The tensors of a checkpoint under the names and in the shapes of a model's parameters. Parameters that are
/// left open have none.
#[derive(Debug)]
pub struct FittedWeights(Fitted<Arc<Checkpoint>>);

impl FittedWeights {
    /// Fits `checkpoint` to `params`, leaving open what `leniency` says.
    ///
    /// # Errors
    /// [`Error::Misfit`], listing every tensor that does not fit.
    pub fn new(
        checkpoint: Arc<Checkpoint>,
        params: &[Parameter],
        leniency: Leniency,
    ) -> Result<FittedWeights, Error> {
        Ok(FittedWeights(fit_with(checkpoint, params, leniency).map_err(Box::new)?))
    }
}

impl WeightSource for FittedWeights {
    fn release(&self, name: &str) {
        self.0.release(name);
    }

    fn prefetch(&self, name: &str) {
        self.0.prefetch(name);
    }

    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let view = match self.0.tensor(name) {
            Ok(view) => view,
            Err(error) if matches!(error.root(), checkpoint::Error::NoSuchTensor { .. }) => {
                return Ok(None);
            }
            Err(error) => return Err(error.to_string()),
        };
        let Some(dtype) = dtype(view.dtype) else {
            // Rare element types (f64) come as f32.
            let values = view.to_f32().ok_or_else(|| format!("{:?} is no weight", view.dtype))?;
            let ty = TensorType::new(DType::F32, view.shape).map_err(|error| error.to_string())?;
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            return Ok(Some((ty, Cow::Owned(bytes))));
        };
        let ty = TensorType::new(dtype, view.shape).map_err(|error| error.to_string())?;
        Ok(Some((ty, view.bytes)))
    }
}

fn dtype(dtype: checkpoint::DType) -> Option<DType> {
    match dtype {
        checkpoint::DType::F32 => Some(DType::F32),
        checkpoint::DType::F16 => Some(DType::F16),
        checkpoint::DType::BF16 => Some(DType::Bf16),
        _ => None,
    }
}
