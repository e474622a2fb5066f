//! The training step as one graph, and its parts as graphs of their own for accumulated gradients.
//!
//! The model is the one that sampling has, node by node, on other operands: noised latents for `x`, and
//! for each trained parameter its master, cast to the storage type of the bucket. So there is one
//! definition of a model, and rounding in training is that of inference.

use std::collections::BTreeMap;

use models::Bucket;
use ops::{Builder, DType, Node, Role, Tensor, TensorType, ValueId, append_gradients};

use crate::iddpm::{Iddpm, Sample};
use crate::{
    AdamW, Carry, Error, Model, Options, Program, Slot, StateKind, append_clip_factor, append_ema,
    append_global_norm,
};

/// Name of the input with the optimizer's coefficients, see [`AdamW::coefficients`].
pub(crate) const OPTIMIZER: &str = "optimizer";
/// Name of the input with which rows lose their caption, bool `[rows]`.
const DROP_CAPTION: &str = "drop_caption";
/// Checkpoint name of the null caption.
const NULL_CAPTION: &str = "y_embedder.y_embedding";

/// The whole step: state and a batch in, new state, loss and gradient norm out.
///
/// Inputs of the batch: `x` clean latents, `noise` in their shape, `timestep` i64 `[rows]`, `drop_caption`
/// bool `[rows]` if captions are dropped, and `y`, `mask`, `x_mask` and sizes as the model has them.
/// `optimizer` is [`AdamW::coefficients`].
///
/// # Errors
/// Refuses options, buckets and freezing that leave nothing to train.
pub fn training_step(model: &Model, bucket: &Bucket, options: &Options) -> Result<Program, Error> {
    let mut b = Builder::new("training_step");
    let forward = Forward::append(&mut b, model, bucket, options)?;
    let gradients = forward.append_gradients(&mut b)?;
    let update = Update::append(&mut b, options, &forward.masters, &gradients)?;
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
pub fn gradients(model: &Model, bucket: &Bucket, options: &Options) -> Result<Program, Error> {
    let mut b = Builder::new("gradients");
    let forward = Forward::append(&mut b, model, bucket, options)?;
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
pub fn accumulation_step(
    model: &Model,
    bucket: &Bucket,
    options: &Options,
) -> Result<Program, Error> {
    let mut b = Builder::new("accumulation_step");
    let forward = Forward::append(&mut b, model, bucket, options)?;
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
pub fn update_step(model: &Model, options: &Options) -> Result<Program, Error> {
    options.check()?;
    let mut b = Builder::new("update_step");
    let mut masters = Vec::new();
    let mut gradients = Vec::new();
    for (name, ty) in trained(model, options)? {
        let sum = b.input(&StateKind::GradientSum.input(&name), ty.clone());
        gradients.push(b.mul_scalar(sum, 1.0 / options.micro_batches as f64)?);
        masters.push((name.clone(), b.input(&StateKind::Master.input(&name), ty)));
    }
    let update = Update::append(&mut b, options, &masters, &gradients)?;
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
/// Refuses a freezing that leaves none.
pub(crate) fn trained(
    model: &Model,
    options: &Options,
) -> Result<Vec<(String, TensorType)>, Error> {
    let mut trained = Vec::new();
    for (name, shape) in model.params()? {
        if !options.freeze.trains(&name) {
            continue;
        }
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
    fn append(
        b: &mut Builder,
        model: &Model,
        bucket: &Bucket,
        options: &Options,
    ) -> Result<Forward, Error> {
        options.check()?;
        check_bucket(model, bucket)?;
        let names = trained(model, options)?;
        let graph = model.graph(bucket)?;
        let process = Iddpm::new(options.precision, options.weighting)?;

        let [t, h, w] = bucket.latent;
        let latent =
            TensorType::new(DType::F32, [bucket.latents, model.common().in_channels, t, h, w])?;
        let rows = |dtype| TensorType::new(dtype, [bucket.latents]);
        let flags = TensorType::new(DType::Bool, [bucket.latents, t])?;
        let sample = Sample {
            latents: b.input("x", latent.clone()),
            noise: b.input("noise", latent),
            timesteps: b.input("timestep", rows(DType::I64)?),
            frame_mask: bucket.frame_mask.then(|| b.input("x_mask", flags)),
        };
        let noised = b.scope("noising", |b| process.append_noised(b, &sample))?;

        let mut operands = Operands { options, masters: Vec::new(), known: BTreeMap::new() };
        let mut values: Vec<ValueId> = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            values.push(match &node.role {
                Role::Input(name) => match (&**name, sample.frame_mask) {
                    ("x", _) => noised,
                    ("timestep", _) => b.cast(sample.timesteps, DType::F32)?,
                    ("x_mask", Some(mask)) => mask,
                    ("y", _) => {
                        let caption = b.copy_node(node, &[])?;
                        operands.caption(b, model, bucket, caption)?
                    }
                    _ => b.copy_node(node, &[])?,
                },
                Role::Param(name) => operands.param(b, node, name)?,
                Role::Constant(_) | Role::Op(_) => {
                    let args: Vec<ValueId> =
                        node.args.iter().map(|arg| values[arg.index()]).collect();
                    b.copy_node(node, &args)?
                }
            });
        }
        let out = values[graph.outputs[0].index()];
        let losses = b.scope("loss", |b| process.append_losses(b, &sample, noised, out))?;
        let loss = b.scope("loss", |b| {
            let mean = b.reduce_mean(losses.total, &[0])?;
            b.reshape(mean, &[])
        })?;
        // In the order of the model's own list, which is that of the state, not of first use.
        let mut masters = operands.masters;
        let place = |name: &String| names.iter().position(|(known, _)| known == name);
        masters.sort_by_key(|(name, _)| place(name));
        if let Some((name, _)) =
            names.iter().find(|(name, _)| !masters.iter().any(|(known, _)| known == name))
        {
            return Err(Error::NoInfluence(name.clone()));
        }
        Ok(Forward { masters, loss, row_losses: losses.total })
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

/// What stands for the model's parameters and captions.
struct Operands<'a> {
    options: &'a Options,
    masters: Vec<(String, ValueId)>,
    /// What stands for each parameter that was met: a model may read one in several places.
    known: BTreeMap<String, ValueId>,
}

impl Operands<'_> {
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

    /// The input that holds the master `name`.
    fn master(&mut self, b: &mut Builder, name: &str, ty: TensorType) -> ValueId {
        let master = b.input(&StateKind::Master.input(name), ty);
        self.masters.push((name.to_string(), master));
        master
    }

    /// The caption of each row, or the null caption where the row loses it.
    fn caption(
        &mut self,
        b: &mut Builder,
        model: &Model,
        bucket: &Bucket,
        caption: ValueId,
    ) -> Result<ValueId, Error> {
        if !self.options.caption_dropout {
            return Ok(caption);
        }
        let common = model.common();
        let (tokens, channels) = (bucket.caption_tokens, common.caption_channels);
        let drop = b.input(DROP_CAPTION, TensorType::new(DType::Bool, [bucket.captions])?);
        b.scope("y_embedder", |b| {
            let drop = b.reshape(drop, &[bucket.captions, 1, 1, 1])?;
            let shape = [common.model_max_length, channels];
            let null = b.param(NULL_CAPTION, TensorType::new(bucket.dtype, shape)?);
            self.known.insert(NULL_CAPTION.to_string(), null);
            let null = b.slice_axis(null, 0, 0, tokens)?;
            let null = b.reshape(null, &[1, 1, tokens, channels])?;
            let null = b.cast(null, DType::F32)?;
            Ok(b.select(drop, null, caption)?)
        })
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
    fn append(
        b: &mut Builder,
        options: &Options,
        masters: &'a [(String, ValueId)],
        gradients: &[ValueId],
    ) -> Result<Update<'a>, Error> {
        let coefficients = b.input(OPTIMIZER, AdamW::coefficient_type()?);
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

/// Fails for buckets that only sampling has.
fn check_bucket(model: &Model, bucket: &Bucket) -> Result<(), Error> {
    let fail = |reason: String| Err(Error::Bucket(reason));
    if bucket.guided {
        return fail("guidance is for sampling; expected `guided` to be false".into());
    }
    let rows = bucket.captions;
    if bucket.latents != rows || bucket.conditions != rows {
        return fail(format!(
            "{rows} captions, {} latents, {} conditions; expected one of each per row",
            bucket.latents, bucket.conditions
        ));
    }
    let frames = model.common().patch_size[0];
    if bucket.frame_mask && frames != 1 {
        return fail(format!("a frame mask needs patches of 1 frame, the model's have {frames}"));
    }
    if !model.common().pred_sigma {
        return fail("the loss trains a variance, the model predicts none (`pred_sigma`)".into());
    }
    Ok(())
}
