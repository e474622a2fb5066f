//! What training changes and a checkpoint of it holds: f32 tensors by kind and parameter.

use std::collections::BTreeMap;

use ops::{Tensor, TensorType};
use runtime::WeightSource;

use crate::step::trained;
use crate::{Error, Model, Options};

/// What a tensor of the state is of its parameter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum StateKind {
    /// The weight in f32.
    Master,
    /// Decaying mean of gradients.
    FirstMoment,
    /// Decaying mean of squared gradients.
    SecondMoment,
    /// Moving average of the master.
    Ema,
    /// Sum of the gradients since the last update.
    GradientSum,
}

impl StateKind {
    /// Name of the graph input that holds it for the parameter `param`.
    pub fn input(self, param: &str) -> String {
        let prefix = match self {
            StateKind::Master => "master",
            StateKind::FirstMoment => "first_moment",
            StateKind::SecondMoment => "second_moment",
            StateKind::Ema => "ema",
            StateKind::GradientSum => "gradient_sum",
        };
        format!("{prefix}.{param}")
    }
}

/// The state between two steps.
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    step: u64,
    tensors: BTreeMap<(StateKind, String), Vec<f32>>,
}

impl State {
    /// The state before the first step: masters and averages are the weights (factors of an adaptation
    /// begin as it says), moments are 0.
    ///
    /// # Errors
    /// [`Error::Weight`] for a weight that is missing, unreadable or of another shape.
    pub fn new(
        model: &Model,
        options: &Options,
        weights: &dyn WeightSource,
    ) -> Result<State, Error> {
        let mut tensors = BTreeMap::new();
        for (name, ty) in trained(model, options)? {
            let master = match &options.lora {
                Some(lora) => lora.initial(&name, &ty),
                None => read(weights, &name, &ty)?,
            };
            if options.ema_decay.is_some() {
                tensors.insert((StateKind::Ema, name.clone()), master.clone());
            }
            let zeros = vec![0f32; ty.count()];
            if options.micro_batches > 1 {
                tensors.insert((StateKind::GradientSum, name.clone()), zeros.clone());
            }
            tensors.insert((StateKind::FirstMoment, name.clone()), zeros.clone());
            tensors.insert((StateKind::SecondMoment, name.clone()), zeros);
            tensors.insert((StateKind::Master, name), master);
        }
        Ok(State { step: 0, tensors })
    }

    /// Updates so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The tensor of a kind of a parameter, row-major.
    pub fn get(&self, kind: StateKind, param: &str) -> Option<&[f32]> {
        self.tensors.get(&(kind, param.to_string())).map(Vec::as_slice)
    }

    /// Every tensor: kind, parameter, elements.
    pub fn tensors(&self) -> impl Iterator<Item = (StateKind, &str, &[f32])> {
        self.tensors.iter().map(|((kind, param), values)| (*kind, param.as_str(), &values[..]))
    }

    pub(crate) fn get_mut(&mut self, kind: StateKind, param: &str) -> Option<&mut Vec<f32>> {
        self.tensors.get_mut(&(kind, param.to_string()))
    }

    pub(crate) fn set_step(&mut self, step: u64) {
        self.step = step;
    }

    /// One update has been made: gradients are summed anew.
    pub(crate) fn advance(&mut self) {
        self.step += 1;
        for ((kind, _), values) in &mut self.tensors {
            if *kind == StateKind::GradientSum {
                values.fill(0.0);
            }
        }
    }
}

/// The weight `name` in f32, if it has the shape of `ty`.
fn read(weights: &dyn WeightSource, name: &str, ty: &TensorType) -> Result<Vec<f32>, Error> {
    let fail = |reason: String| Error::Weight { name: name.to_string(), reason };
    let found = weights.tensor(name).map_err(&fail)?;
    let (found, bytes) = found.ok_or_else(|| fail(format!("missing, expected {ty}")))?;
    if found.shape() != ty.shape() || !found.dtype().is_float() {
        return Err(fail(format!("is {found}, expected a float type of shape {:?}", ty.shape())));
    }
    let tensor = Tensor::from_bytes(found, &bytes)?;
    weights.release(name);
    Ok(tensor.to_f32())
}
