//! The training step as one graph, and its parts as graphs of their own for accumulated gradients.
//!
//! An [`Objective`] appends model and loss; what follows from them, gradients, clipping, the optimizer's update
//! and averages, is here and is the same for all. Models are the ones that sampling has, node by node, with a
//! master in place of each trained parameter, cast to the storage type of the bucket. So there is one
//! definition of a model, and rounding in training is that of inference.

use ops::{Builder, DType, Tensor, TensorType, ValueId, append_gradients};

use crate::{
    AdamW, Carry, Error, Objective, Operands, Options, Param, Program, Slot, StateKind,
    append_clip_factor, append_ema, append_global_norm,
};

/// Name of the input with the optimizer's coefficients, see [`AdamW::coefficients`].
pub(crate) const OPTIMIZER: &str = "optimizer";

/// The whole step: state and a batch in, new state, loss and gradient norm out.
///
/// Inputs of the batch are those that the objective reads; `optimizer` is [`AdamW::coefficients`].
///
/// # Errors
/// Refuses options, buckets and freezing that leave nothing to train.
pub fn training_step<O: Objective>(
    objective: &O,
    bucket: &O::Bucket,
    options: &Options,
) -> Result<Program, Error> {
    let mut b = Builder::new("training_step");
    let forward = Forward::append(&mut b, objective, bucket, options)?;
    let gradients = forward.append_gradients(&mut b)?;
    let factor = |name: &str| objective.lr_factor(options, name);
    let update = Update::append(&mut b, options, factor, &forward.masters, &gradients)?;
    let mut outputs = vec![forward.loss, forward.row_losses, update.norm];
    let carries = update.push_state(&mut outputs);
    Ok(Program {
        trained: forward.trained(&b),
        graph: b.finish(&outputs),
        carries,
        loss: Some(0),
        row_losses: Some(1),
        grad_norm: Some(2),
        gradients: None,
    })
}

/// Loss and gradients as outputs; nothing is updated.
///
/// # Errors
/// As [`training_step`].
pub fn gradients<O: Objective>(
    objective: &O,
    bucket: &O::Bucket,
    options: &Options,
) -> Result<Program, Error> {
    let mut b = Builder::new("gradients");
    let forward = Forward::append(&mut b, objective, bucket, options)?;
    let mut outputs = vec![forward.loss, forward.row_losses];
    outputs.extend(forward.append_gradients(&mut b)?);
    Ok(Program {
        trained: forward.trained(&b),
        graph: b.finish(&outputs),
        carries: vec![],
        loss: Some(0),
        row_losses: Some(1),
        grad_norm: None,
        gradients: Some(2),
    })
}

/// Adds the gradients of one batch to the sums that [`update_step`] takes; masters are read only.
///
/// # Errors
/// As [`training_step`].
pub fn accumulation_step<O: Objective>(
    objective: &O,
    bucket: &O::Bucket,
    options: &Options,
) -> Result<Program, Error> {
    let mut b = Builder::new("accumulation_step");
    let forward = Forward::append(&mut b, objective, bucket, options)?;
    let gradients = forward.append_gradients(&mut b)?;
    let mut outputs = vec![forward.loss, forward.row_losses];
    let mut carries = Vec::with_capacity(gradients.len());
    for ((name, _), gradient) in forward.masters.iter().zip(gradients) {
        let ty = b.ty(gradient).clone();
        let sum = b.input(&StateKind::GradientSum.input(name), ty);
        let sum = b.add(sum, gradient)?;
        push_carry(&mut carries, &mut outputs, StateKind::GradientSum, name, sum);
    }
    Ok(Program {
        trained: forward.trained(&b),
        graph: b.finish(&outputs),
        carries,
        loss: Some(0),
        row_losses: Some(1),
        grad_norm: None,
        gradients: None,
    })
}

/// The update by the mean of the gradients that were summed over [`Options::micro_batches`]. It does not
/// depend on a bucket.
///
/// # Errors
/// As [`training_step`].
pub fn update_step<O: Objective>(objective: &O, options: &Options) -> Result<Program, Error> {
    options.check()?;
    let mut b = Builder::new("update_step");
    let mut masters = Vec::new();
    let mut gradients = Vec::new();
    for (name, ty) in trained(objective, options)? {
        let sum = b.input(&StateKind::GradientSum.input(&name), ty.clone());
        gradients.push(b.mul_scalar(sum, 1.0 / options.micro_batches as f64)?);
        masters.push((name.clone(), b.input(&StateKind::Master.input(&name), ty)));
    }
    let factor = |name: &str| objective.lr_factor(options, name);
    let update = Update::append(&mut b, options, factor, &masters, &gradients)?;
    let mut outputs = vec![update.norm];
    let carries = update.push_state(&mut outputs);
    Ok(Program {
        trained: with_types(&b, &masters),
        graph: b.finish(&outputs),
        carries,
        loss: None,
        row_losses: None,
        grad_norm: Some(0),
        gradients: None,
    })
}

/// Names and f32 types of the parameters that `options` train, in the order of the model.
///
/// # Errors
/// Refuses a freezing that leaves none, and an adaptation of weights that there are not.
pub(crate) fn trained<O: Objective>(
    objective: &O,
    options: &Options,
) -> Result<Vec<(String, TensorType)>, Error> {
    let mut params = objective.parameters(options)?;
    params.retain(|param| options.freeze.trains(&param.name));
    if let Some(lora) = &options.lora {
        lora.check_targets(&params)?;
    }
    let mut trained = Vec::new();
    for Param { name, shape, initial: _ } in params {
        match &options.lora {
            Some(lora) => trained.extend(lora.factors(&name, &shape)?.into_iter().flatten()),
            None => trained.push((name, TensorType::new(DType::F32, shape)?)),
        }
    }
    if trained.is_empty() {
        let (freeze, lora) = (&options.freeze, &options.lora);
        let reason = format!("{freeze:?} with {lora:?} leaves no parameter of the model to train");
        return Err(Error::option("freeze", reason));
    }
    Ok(trained)
}

fn with_types(b: &Builder, masters: &[(String, ValueId)]) -> Vec<(String, TensorType)> {
    masters.iter().map(|(name, value)| (name.clone(), b.ty(*value).clone())).collect()
}

/// Model and loss on a batch.
struct Forward {
    /// Checkpoint name and master of each trained parameter.
    masters: Vec<(String, ValueId)>,
    loss: ValueId,
    row_losses: ValueId,
}

impl Forward {
    fn append<O: Objective>(
        b: &mut Builder,
        objective: &O,
        bucket: &O::Bucket,
        options: &Options,
    ) -> Result<Forward, Error> {
        options.check()?;
        let names = trained(objective, options)?;
        let mut operands = Operands::new(options);
        let row_losses = objective.append_row_losses(b, bucket, options, &mut operands)?;
        let loss = b.scope("loss", |b| {
            let mean = b.reduce_mean(row_losses, &[0])?;
            b.reshape(mean, &[])
        })?;
        // In the order of the model's own list, which is that of the state, not of first use.
        let mut masters = operands.into_masters();
        let place = |name: &String| names.iter().position(|(known, _)| known == name);
        masters.sort_by_key(|(name, _)| place(name));
        if let Some((name, _)) =
            names.iter().find(|(name, _)| !masters.iter().any(|(known, _)| known == name))
        {
            return Err(Error::NoInfluence(name.clone()));
        }
        Ok(Forward { masters, loss, row_losses })
    }

    /// The gradient of the loss with respect to each master, in their order.
    fn append_gradients(&self, b: &mut Builder) -> Result<Vec<ValueId>, Error> {
        let one = b.constant(Tensor::f32(&[], &[1.0])?);
        let wrt: Vec<ValueId> = self.masters.iter().map(|(_, value)| *value).collect();
        let gradients = b.scope("gradients", |b| append_gradients(b, self.loss, one, &wrt))?;
        let named = self.masters.iter().zip(gradients);
        named
            .map(|((name, _), gradient)| gradient.ok_or_else(|| Error::NoInfluence(name.clone())))
            .collect()
    }

    fn trained(&self, b: &Builder) -> Vec<(String, TensorType)> {
        with_types(b, &self.masters)
    }
}

/// The optimizer's coefficients by what the learning rate is multiplied by: one vector for all tensors of one rate.
struct Rates(Vec<(f64, ValueId)>);

impl Rates {
    fn at(&mut self, b: &mut Builder, factor: f64) -> Result<ValueId, ops::Error> {
        if let Some((_, known)) = self.0.iter().find(|(known, _)| *known == factor) {
            return Ok(*known);
        }
        let (_, given) = self.0[0];
        let scaled =
            b.scope("optimizer", |b| AdamW::append_scaled_coefficients(b, given, factor))?;
        self.0.push((factor, scaled));
        Ok(scaled)
    }
}

/// New state of every trained parameter.
struct Update<'a> {
    masters: &'a [(String, ValueId)],
    slots: Vec<Slot>,
    emas: Vec<ValueId>,
    norm: ValueId,
}

impl<'a> Update<'a> {
    /// `lr_factor` says what the learning rate of each trained tensor is multiplied by.
    fn append(
        b: &mut Builder,
        options: &Options,
        lr_factor: impl Fn(&str) -> f64,
        masters: &'a [(String, ValueId)],
        gradients: &[ValueId],
    ) -> Result<Update<'a>, Error> {
        let coefficients = b.input(OPTIMIZER, AdamW::coefficient_type()?);
        let mut rates = Rates(vec![(1.0, coefficients)]);
        let (norm, factor) = b.scope("clip", |b| {
            let norm = append_global_norm(b, gradients)?;
            let factor = options.max_norm.map(|max_norm| append_clip_factor(b, norm, max_norm));
            Ok::<_, ops::Error>((norm, factor.transpose()?))
        })?;
        let mut slots = Vec::with_capacity(masters.len());
        let mut emas = Vec::new();
        for ((name, master), &gradient) in masters.iter().zip(gradients) {
            let ty = b.ty(*master).clone();
            let slot = Slot {
                master: *master,
                first_moment: b.input(&StateKind::FirstMoment.input(name), ty.clone()),
                second_moment: b.input(&StateKind::SecondMoment.input(name), ty.clone()),
            };
            let coefficients = rates.at(b, lr_factor(name))?;
            let slot = b.scope("optimizer", |b| {
                let gradient = match factor {
                    Some(factor) => {
                        let factor = b.reshape(factor, &vec![1; ty.rank()])?;
                        b.mul(gradient, factor)?
                    }
                    None => gradient,
                };
                options.optimizer.append_update(b, slot, gradient, coefficients)
            })?;
            if let Some(decay) = options.ema_decay {
                let ema = b.input(&StateKind::Ema.input(name), ty);
                let ema = b.scope("ema", |b| append_ema(b, ema, slot.master, decay))?;
                emas.push(ema);
            }
            slots.push(slot);
        }
        Ok(Update { masters, slots, emas, norm })
    }

    /// Adds the new state to `outputs`, and says where.
    fn push_state(&self, outputs: &mut Vec<ValueId>) -> Vec<Carry> {
        let mut carries = Vec::new();
        for (i, ((name, _), slot)) in self.masters.iter().zip(&self.slots).enumerate() {
            let mut push = |kind, value| push_carry(&mut carries, outputs, kind, name, value);
            push(StateKind::Master, slot.master);
            push(StateKind::FirstMoment, slot.first_moment);
            push(StateKind::SecondMoment, slot.second_moment);
            if let Some(&ema) = self.emas.get(i) {
                push(StateKind::Ema, ema);
            }
        }
        carries
    }
}

fn push_carry(
    carries: &mut Vec<Carry>,
    outputs: &mut Vec<ValueId>,
    kind: StateKind,
    param: &str,
    value: ValueId,
) {
    carries.push(Carry { kind, param: param.to_string(), output: outputs.len() });
    outputs.push(value);
}
