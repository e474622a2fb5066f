//! What a step makes smaller: a model and its loss, and what stands for the model's parameters in a graph.

use std::collections::BTreeMap;
use std::fmt::Debug;

use ops::{Builder, DType, Graph, Node, Role, TensorType, ValueId};

use crate::{Distribution, Error, Options, StateKind};

/// A parameter of a model.
#[derive(Clone, PartialEq, Debug)]
pub struct Param {
    /// Checkpoint name.
    pub name: String,
    /// Extents.
    pub shape: Vec<usize>,
    /// What it is before training.
    pub initial: Distribution,
}

/// A model and its loss on a batch.
///
/// Steps, states and trainers are made of any of them: [`Model`](crate::Model) with the loss of its noise process,
/// [`Autoencoder`](crate::Autoencoder) with that of its images. What each reads of a batch, its documentation says.
pub trait Objective: Debug {
    /// What a step is specialized for.
    type Bucket;

    /// Every parameter of a step, trained or not, in the order of the model.
    ///
    /// # Errors
    /// Refuses a model that there is no graph of, and options that do not fit it.
    fn parameters(&self, options: &Options) -> Result<Vec<Param>, Error>;

    /// Appends model and loss: the loss of each row of the batch, f32 `[rows]`.
    ///
    /// # Errors
    /// Refuses buckets that cannot be trained with.
    fn append_row_losses(
        &self,
        b: &mut Builder,
        bucket: &Self::Bucket,
        options: &Options,
        operands: &mut Operands<'_>,
    ) -> Result<ValueId, Error>;

    /// What the learning rate of the trained tensor `name` is multiplied by.
    fn lr_factor(&self, options: &Options, name: &str) -> f64 {
        let _ = (options, name);
        1.0
    }
}

/// What stands for a model's parameters in a step: for trained ones their masters, cast to the storage type where
/// they are used, for adapted ones the sum, for the others themselves.
#[derive(Debug)]
pub struct Operands<'a> {
    options: &'a Options,
    masters: Vec<(String, ValueId)>,
    /// What stands for each parameter that was met: a model may read one in several places.
    known: BTreeMap<String, ValueId>,
}

impl<'a> Operands<'a> {
    pub(crate) fn new(options: &'a Options) -> Operands<'a> {
        Operands { options, masters: Vec::new(), known: BTreeMap::new() }
    }

    /// Checkpoint name and input of each trained tensor, in the order of first use.
    pub(crate) fn into_masters(self) -> Vec<(String, ValueId)> {
        self.masters
    }

    /// Appends `graph`, a model as sampling has it: `input` says what stands for each of its inputs. Returns
    /// what stands for its outputs.
    ///
    /// # Errors
    /// Those of `input`, and operands that do not fit.
    pub fn append(
        &mut self,
        b: &mut Builder,
        graph: &Graph,
        mut input: impl FnMut(&mut Operands<'a>, &mut Builder, &Node, &str) -> Result<ValueId, Error>,
    ) -> Result<Vec<ValueId>, Error> {
        let mut values: Vec<ValueId> = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            values.push(match &node.role {
                Role::Input(name) => input(self, b, node, name)?,
                Role::Param(name) => self.param(b, node, name)?,
                Role::Constant(_) | Role::Op(_) => {
                    let args: Vec<ValueId> =
                        node.args.iter().map(|arg| values[arg.index()]).collect();
                    b.copy_node(node, &args)?
                }
            });
        }
        Ok(graph.outputs.iter().map(|out| values[out.index()]).collect())
    }

    fn param(&mut self, b: &mut Builder, node: &Node, name: &str) -> Result<ValueId, Error> {
        if let Some(&value) = self.known.get(name) {
            return Ok(value);
        }
        let wide = node.ty.with_dtype(DType::F32);
        let is_trained = self.options.freeze.trains(name);
        let value = match &self.options.lora {
            None if is_trained => self.master(b, name, wide),
            Some(lora) if is_trained => match lora.factors(name, node.ty.shape())? {
                Some(factors) => {
                    let factors = factors.map(|(name, ty)| self.master(b, &name, ty));
                    let base = b.param(name, wide);
                    b.scope("lora", |b| lora.append_weight(b, base, factors))?
                }
                None => b.param(name, node.ty.clone()),
            },
            None | Some(_) => b.param(name, node.ty.clone()),
        };
        let value = b.cast(value, node.ty.dtype())?;
        self.known.insert(name.to_string(), value);
        Ok(value)
    }

    /// The parameter `name`, which is never trained.
    pub(crate) fn frozen(&mut self, b: &mut Builder, name: &str, ty: TensorType) -> ValueId {
        if let Some(&value) = self.known.get(name) {
            return value;
        }
        let value = b.param(name, ty);
        self.known.insert(name.to_string(), value);
        value
    }

    /// The input that holds the master `name`.
    fn master(&mut self, b: &mut Builder, name: &str, ty: TensorType) -> ValueId {
        let master = b.input(&StateKind::Master.input(name), ty);
        self.masters.push((name.to_string(), master));
        master
    }
}
