//! Tensors by name, as the weights of a session.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ops::{Tensor, TensorType};
use runtime::WeightSource;

/// Weights as the interpreter is given them.
#[derive(Clone, Debug)]
pub struct Table(pub BTreeMap<String, Tensor>);

impl WeightSource for Table {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let entry = |tensor: &Tensor| (tensor.ty().clone(), Cow::Owned(tensor.to_bytes()));
        Ok(self.0.get(name).map(entry))
    }
}
