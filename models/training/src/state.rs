//! What training changes and a checkpoint of it holds: f32 tensors by kind and parameter.
//!
//! They are in one place only: the memory that steps read and write. Between two updates whoever saves or evaluates
//! a state reads it there.

use std::collections::BTreeMap;

use ops::{Tensor, TensorType};
use runtime::{InputStore, WeightSource};

use crate::step::trained;
use crate::stored::Stored;
use crate::{Error, Objective, Options};

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
    /// Every kind.
    pub const ALL: [StateKind; 5] = [
        StateKind::Master,
        StateKind::FirstMoment,
        StateKind::SecondMoment,
        StateKind::Ema,
        StateKind::GradientSum,
    ];

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
#[derive(Clone, Debug)]
pub struct State {
    step: u64,
    /// The name of the graph input that each tensor is.
    inputs: BTreeMap<(StateKind, String), String>,
    /// The tensors, by that name.
    store: InputStore,
}

impl PartialEq for State {
    fn eq(&self, other: &State) -> bool {
        self.step == other.step && self.tensors().eq(other.tensors())
    }
}

impl State {
    /// The state before the first step: masters and averages are the weights (factors of an adaptation
    /// begin as it says), moments are 0.
    ///
    /// # Errors
    /// [`Error::Weight`] for a weight that is missing, unreadable or of another shape.
    pub fn new<O: Objective>(
        objective: &O,
        options: &Options,
        weights: &dyn WeightSource,
    ) -> Result<State, Error> {
        let mut state = State { step: 0, inputs: BTreeMap::new(), store: InputStore::new() };
        for (name, ty) in trained(objective, options)? {
            let master = match &options.lora {
                Some(lora) => lora.initial(&name, &ty),
                None => read(weights, &name, &ty)?,
            };
            let master: &[u8] = bytemuck::cast_slice(&master);
            let mut kinds =
                vec![StateKind::Master, StateKind::FirstMoment, StateKind::SecondMoment];
            kinds.extend(options.ema_decay.map(|_| StateKind::Ema));
            kinds.extend((options.micro_batches > 1).then_some(StateKind::GradientSum));
            for kind in kinds {
                let input = kind.input(&name);
                match kind {
                    StateKind::Master | StateKind::Ema => state.store.write(&input, master)?,
                    StateKind::FirstMoment | StateKind::SecondMoment | StateKind::GradientSum => {
                        state.store.write_zeros(&input, master.len())?;
                    }
                }
                state.inputs.insert((kind, name.clone()), input);
            }
        }
        Ok(state)
    }

    /// Updates so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The tensor of a kind of a parameter, row-major.
    pub fn get(&self, kind: StateKind, param: &str) -> Option<&[f32]> {
        self.store.get(&kind.input(param)).map(bytemuck::cast_slice)
    }

    /// Every tensor: kind, parameter, elements.
    pub fn tensors(&self) -> impl Iterator<Item = (StateKind, &str, &[f32])> {
        self.inputs.iter().map(|((kind, param), input)| {
            let values = self.store.get(input).expect("each is written when it is named");
            (*kind, param.as_str(), bytemuck::cast_slice(values))
        })
    }

    pub(crate) fn get_mut(&mut self, kind: StateKind, param: &str) -> Option<&mut [f32]> {
        self.store.get_mut(&kind.input(param)).map(bytemuck::cast_slice_mut)
    }

    /// Makes a stored weight of its master.
    ///
    /// # Errors
    /// [`Error::State`] if that is not there.
    pub(crate) fn store_weight(&mut self, weight: &Stored) -> Result<(), Error> {
        let master = self.get(StateKind::Master, &weight.param);
        let master = master.ok_or_else(|| {
            Error::State(format!("`{}` is not of this model and options", weight.param))
        })?;
        let ty = TensorType::new(weight.dtype, [master.len()])?;
        let values = master.iter().map(|&x| f64::from(x)).collect();
        let bytes = Tensor::floats(ty, values).rounded().to_bytes();
        Ok(self.store.write(&weight.input(), &bytes)?)
    }

    /// What steps run on.
    pub(crate) fn store_mut(&mut self) -> &mut InputStore {
        &mut self.store
    }

    pub(crate) fn set_step(&mut self, step: u64) {
        self.step = step;
    }

    /// One update has been made: gradients are summed anew.
    pub(crate) fn advance(&mut self) {
        self.step += 1;
        for ((kind, _), input) in &self.inputs {
            if *kind == StateKind::GradientSum {
                self.store.get_mut(input).expect("each is written when it is named").fill(0);
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
