//! The classifier: trained as one graph, kept in a file, asked about clips.
//!
//! A step is the network on masters, the sum of the heads' cross entropies against smoothed labels, gradients,
//! clipping, `AdamW` and a moving average, all parts of `training`; the average is what judges.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use checkpoint::{Checkpoint, DType as StoredType, TensorView, write_safetensors};
use data::flare::Subject;
use kernels::Target;
use ops::{Builder, DType, Graph, Role, Tensor, TensorType, ValueId, append_gradients};
use runtime::{Backend, Control, WeightSource, WeightStore};
use training::{
    AdamW, LrSchedule, Slot, StateKind, append_clip_factor, append_ema, append_global_norm,
};

use crate::clips::{CLIP, N_FRAMES, SIDE, to_float};
use crate::labels::{HEADS, Head};
use crate::network::Network;

/// Decay of the average of the weights: that of some hundred steps.
const EMA_DECAY: f64 = 0.99;
/// Global norm that gradients are clipped to.
const MAX_NORM: f64 = 1.0;
/// Share of the weights that a step takes away, times the learning rate.
const WEIGHT_DECAY: f64 = 0.05;
/// Of a label, how much is spread over all classes.
const SMOOTHING: f32 = 0.05;
/// Deviation of positions before training.
const POSITION_SCALE: f32 = 0.02;
/// Clips that are judged at once.
const JUDGED_ROWS: usize = 16;

/// Says what a file is; the number is that of its layout.
const FORMAT: (&str, &str) = ("format", "kinograph-judge-1");

/// Where graphs run.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// What plans are made for.
    pub target: &'a Target,
    /// What runs them.
    pub backend: &'a dyn Backend,
}

/// How a classifier is trained.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Settings {
    /// Sizes.
    pub network: Network,
    /// Updates.
    pub steps: u64,
    /// Clips in a batch.
    pub rows: usize,
    /// Highest learning rate of the cycle.
    pub lr: f64,
    /// Chooses the first weights.
    pub seed: u64,
}

/// Fills row `row` of the batch of step `step`, f32 `[3, N_FRAMES, SIDE, SIDE]`, and says what it shows.
pub type Example<'a> = &'a (dyn Fn(u64, usize, &mut [f32]) -> Subject + Sync);

/// What a classifier thinks of a clip: the probability of each class, head by head.
#[derive(Clone, PartialEq, Debug)]
pub struct Verdict([Vec<f32>; HEADS.len()]);

impl Verdict {
    /// The most probable class; the first of several.
    pub fn class(&self, head: Head) -> usize {
        let probabilities = self.probabilities(head);
        let better = |best: usize, at: usize| match probabilities[at] > probabilities[best] {
            true => at,
            false => best,
        };
        (0..probabilities.len()).fold(0, better)
    }

    /// Probabilities of a head's classes.
    pub fn probabilities(&self, head: Head) -> &[f32] {
        &self.0[head as usize]
    }

    /// Whether the clip shows what is asked for, as far as this head tells.
    pub fn agrees(&self, head: Head, subject: Subject) -> bool {
        self.class(head) == head.class(subject)
    }
}

/// A trained network.
#[derive(Clone, PartialEq, Debug)]
pub struct Classifier {
    network: Network,
    weights: Weights,
    /// What its file says of how it was made.
    about: BTreeMap<String, String>,
}

/// Elements by name of the parameter, with its shape.
type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A step's graph, with names and types of the parameters.
struct Step {
    graph: Graph,
    params: Vec<(String, TensorType)>,
    /// Outputs that replace inputs.
    carries: Vec<(usize, String)>,
    /// Position of the first new average; the others follow in the order of the parameters.
    averages: usize,
}

impl Step {
    fn new(settings: &Settings) -> Result<Step> {
        let rows = settings.rows;
        let network = settings.network.graph(rows)?;
        let mut b = Builder::new("judge_step");
        let mut masters: Vec<(String, ValueId)> = Vec::new();
        let mut values: Vec<ValueId> = Vec::with_capacity(network.nodes.len());
        for node in &network.nodes {
            values.push(match &node.role {
                Role::Param(name) => {
                    let master = b.input(&StateKind::Master.input(name), node.ty.clone());
                    masters.push((name.to_string(), master));
                    master
                }
                Role::Input(_) | Role::Constant(_) | Role::Op(_) => {
                    let args: Vec<ValueId> =
                        node.args.iter().map(|arg| values[arg.index()]).collect();
                    b.copy_node(node, &args)?
                }
            });
        }
        let mut loss = None;
        for (head, output) in HEADS.iter().zip(&network.outputs) {
            let logits = values[output.index()];
            let share = b.scope(head.name(), |b| append_cross_entropy(b, *head, logits))?;
            loss = Some(match loss {
                Some(sum) => b.add(sum, share)?,
                None => share,
            });
        }
        let loss = loss.context("there are heads")?;
        let one = b.constant(Tensor::f32(&[], &[1.0])?);
        let wrt: Vec<ValueId> = masters.iter().map(|(_, master)| *master).collect();
        let gradients = append_gradients(&mut b, loss, one, &wrt)?;
        let gradients: Option<Vec<ValueId>> = gradients.into_iter().collect();
        let gradients = gradients.context("every parameter has an influence")?;

        let coefficients = TensorType::new(DType::F32, [AdamW::N_COEFFICIENTS])?;
        let coefficients = b.input("optimizer", coefficients);
        let norm = append_global_norm(&mut b, &gradients)?;
        let factor = append_clip_factor(&mut b, norm, MAX_NORM)?;
        let (mut outputs, mut carries, mut averages) = (vec![loss], Vec::new(), Vec::new());
        for ((name, master), gradient) in masters.iter().zip(gradients) {
            let ty = b.ty(*master).clone();
            let factor = b.reshape(factor, &vec![1; ty.rank()])?;
            let gradient = b.mul(gradient, factor)?;
            let slot = Slot {
                master: *master,
                first_moment: b.input(&StateKind::FirstMoment.input(name), ty.clone()),
                second_moment: b.input(&StateKind::SecondMoment.input(name), ty.clone()),
            };
            let slot = optimizer().append_update(&mut b, slot, gradient, coefficients)?;
            let average = b.input(&StateKind::Ema.input(name), ty);
            averages.push((name, append_ema(&mut b, average, slot.master, EMA_DECAY)?));
            for (kind, value) in [
                (StateKind::Master, slot.master),
                (StateKind::FirstMoment, slot.first_moment),
                (StateKind::SecondMoment, slot.second_moment),
            ] {
                carries.push((outputs.len(), kind.input(name)));
                outputs.push(value);
            }
        }
        let first_average = outputs.len();
        for (name, value) in averages {
            carries.push((outputs.len(), StateKind::Ema.input(name)));
            outputs.push(value);
        }
        let params =
            masters.iter().map(|(name, master)| (name.clone(), b.ty(*master).clone())).collect();
        Ok(Step { params, graph: b.finish(&outputs), carries, averages: first_average })
    }
}

/// Up within a sixth of the steps, then down.
fn schedule(steps: u64) -> LrSchedule {
    LrSchedule::OneCycle { steps, warmup_share: 0.16, divisor: 25.0, final_divisor: 1e4 }
}

fn optimizer() -> AdamW {
    AdamW { weight_decay: WEIGHT_DECAY, ..AdamW::default() }
}

/// The mean cross entropy of `logits` f32 `[rows, classes]` against the input of that shape with the labels, f32 `[]`.
fn append_cross_entropy(b: &mut Builder, head: Head, logits: ValueId) -> Result<ValueId> {
    let ty = b.ty(logits).clone();
    let labels = b.input(&label_input(head), ty.clone());
    // The largest logit is subtracted first, so that no exponential overflows.
    let largest = b.reduce_max(logits, &[1])?;
    let largest = b.stop_gradient(largest)?;
    let logits = b.sub(logits, largest)?;
    let exponentials = b.exp(logits)?;
    let sum = b.reduce_sum(exponentials, &[1])?;
    let log_sum = b.log(sum)?;
    let log_probabilities = b.sub(logits, log_sum)?;
    let products = b.mul(labels, log_probabilities)?;
    let sum = b.reduce_sum(products, &[0, 1])?;
    let sum = b.reshape(sum, &[])?;
    Ok(b.mul_scalar(sum, -1.0 / ty.shape()[0] as f64)?)
}

fn label_input(head: Head) -> String {
    format!("labels.{}", head.name())
}

impl Classifier {
    /// Trains a network on examples; `on_step` is told the number of each step and its loss.
    ///
    /// # Errors
    /// Settings that no network can have; a loss that is no number.
    pub fn train(
        settings: &Settings,
        machine: Machine<'_>,
        example: Example<'_>,
        on_step: &mut dyn FnMut(u64, f32),
    ) -> Result<Classifier> {
        ensure!(settings.steps > 0 && settings.rows > 0, "expected 1 step and 1 row or more");
        let step = Step::new(settings)?;
        let plan = compiler::compile_training(step.graph, machine.target, None)?.plan;
        let store = WeightStore::new(Table(Weights::new()));
        let mut runner = machine.backend.bind(Arc::new(plan), &store, None)?;
        for (index, (name, ty)) in step.params.iter().enumerate() {
            let first = initial(settings.seed, index as u64, name, ty);
            let zeros = vec![0f32; ty.count()];
            for (kind, values) in [
                (StateKind::Master, &first),
                (StateKind::Ema, &first),
                (StateKind::FirstMoment, &zeros),
                (StateKind::SecondMoment, &zeros),
            ] {
                runner.write_input(&kind.input(name), bytemuck::cast_slice(values))?;
            }
        }
        for (output, input) in &step.carries {
            runner.carry(*output, input)?;
        }
        let schedule = schedule(settings.steps);
        let mut batch = Batch::new(settings.rows);
        for number in 0..settings.steps {
            batch.fill(number, machine.target.threads, example);
            let rate = schedule.rate(settings.lr, number);
            let coefficients = optimizer().coefficients(rate, number + 1);
            runner.write_input("x", bytemuck::cast_slice(&batch.pixels))?;
            for head in HEADS {
                let labels = batch.labels(head);
                runner.write_input(&label_input(head), bytemuck::cast_slice(&labels))?;
            }
            runner.write_input("optimizer", bytemuck::cast_slice(&coefficients))?;
            runner.run(Control::default())?;
            let loss = runner.output_f32(0)?[0];
            ensure!(loss.is_finite(), "the loss of step {number} is {loss}");
            on_step(number, loss);
        }
        let mut weights = Weights::new();
        for (index, (name, ty)) in step.params.into_iter().enumerate() {
            let values = runner.output_f32(step.averages + index)?.to_vec();
            weights.insert(name, (ty.shape().to_vec(), values));
        }
        let about = BTreeMap::from([
            ("steps".to_owned(), settings.steps.to_string()),
            ("rows".to_owned(), settings.rows.to_string()),
            ("seed".to_owned(), settings.seed.to_string()),
        ]);
        Ok(Classifier { network: settings.network, weights, about })
    }

    /// Its sizes.
    pub fn network(&self) -> Network {
        self.network
    }

    /// Elements of all its weights.
    pub fn n_parameters(&self) -> usize {
        self.weights.values().map(|(_, values)| values.len()).sum()
    }

    /// How it was made: steps, rows of a batch, seed, and what [`Classifier::note`] added.
    pub fn about(&self) -> &BTreeMap<String, String> {
        &self.about
    }

    /// Adds something to say of how it was made.
    pub fn note(&mut self, key: &str, value: String) {
        self.about.insert(key.to_owned(), value);
    }

    /// Writes it as safetensors.
    ///
    /// # Errors
    /// The system's; nothing is left behind then.
    pub fn save(&self, path: &Path) -> Result<()> {
        let view = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let (dtype, shape) = (StoredType::F32, shape.clone());
            (name.clone(), TensorView { dtype, shape, bytes: Cow::Owned(bytes) })
        };
        let tensors = self.weights.iter().map(view).collect();
        let mut metadata = self.about.clone();
        metadata.insert(FORMAT.0.into(), FORMAT.1.into());
        for (key, value) in sizes(self.network) {
            metadata.insert(key.into(), value.to_string());
        }
        Ok(write_safetensors(path, &tensors, &metadata)?)
    }

    /// Reads what [`Classifier::save`] wrote.
    ///
    /// # Errors
    /// A file that is no classifier, or not of this layout.
    pub fn open(path: &Path) -> Result<Classifier> {
        let file = Checkpoint::open(path)?;
        let what = || format!("{}: it is no classifier of this version; remove it", path.display());
        let mut about = file.metadata().clone();
        let format = about.remove(FORMAT.0);
        ensure!(format.as_deref() == Some(FORMAT.1), what());
        let mut found = sizes(Network::default());
        for (key, value) in &mut found {
            let text = about.remove(*key).with_context(what)?;
            *value = text.parse().with_context(what)?;
        }
        let [(_, width), (_, heads), (_, space_blocks), (_, time_blocks)] = found;
        let network = Network { width, heads, space_blocks, time_blocks };
        let has_heads = (1..=4096).contains(&width) && (1..=width).contains(&heads);
        ensure!(has_heads && width.is_multiple_of(heads), what());
        ensure!(space_blocks.max(time_blocks) <= 64, what());
        let mut weights = Weights::new();
        for (name, shape) in network.params()? {
            let stored = file.info(&name).map(|info| info.shape.to_vec());
            if stored.as_ref() != Some(&shape) {
                bail!("{}: `{name}` is {stored:?}, expected {shape:?}", what());
            }
            let values = file.to_f32(&name)?;
            weights.insert(name, (shape, values));
        }
        Ok(Classifier { network, weights, about })
    }

    /// What it thinks of clips, bytes `[3, N_FRAMES, SIDE, SIDE]` each, in their order.
    ///
    /// # Errors
    /// What the compiler or the runtime refuse.
    pub fn judge<'c>(
        &self,
        machine: Machine<'_>,
        clips: impl IntoIterator<Item = &'c [u8]>,
    ) -> Result<Vec<Verdict>> {
        let clips: Vec<&[u8]> = clips.into_iter().collect();
        let plan = compiler::compile(self.network.graph(JUDGED_ROWS)?, machine.target)?;
        let store = WeightStore::new(Table(self.weights.clone()));
        let mut runner = machine.backend.bind(Arc::new(plan), &store, None)?;
        let mut x = vec![0f32; JUDGED_ROWS * CLIP];
        let mut verdicts = Vec::with_capacity(clips.len());
        for group in clips.chunks(JUDGED_ROWS) {
            for (clip, to) in group.iter().zip(x.chunks_exact_mut(CLIP)) {
                ensure!(clip.len() == CLIP, "a clip is not {N_FRAMES} frames of {SIDE}x{SIDE}");
                to.iter_mut().zip(*clip).for_each(|(to, &byte)| *to = to_float(byte));
            }
            runner.run_with(&[("x", bytemuck::cast_slice(&x))], Control::default())?;
            let first = verdicts.len();
            verdicts.resize(first + group.len(), Verdict(Default::default()));
            for (index, head) in HEADS.into_iter().enumerate() {
                let logits = runner.output_f32(index)?;
                let rows = logits.chunks_exact(head.n_classes());
                for (verdict, row) in verdicts[first..].iter_mut().zip(rows) {
                    verdict.0[head as usize] = softmax(row);
                }
            }
        }
        Ok(verdicts)
    }
}

/// Sizes of a network by their key in a file.
fn sizes(network: Network) -> [(&'static str, usize); 4] {
    let Network { width, heads, space_blocks, time_blocks } = network;
    [
        ("width", width),
        ("heads", heads),
        ("space_blocks", space_blocks),
        ("time_blocks", time_blocks),
    ]
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = exponentials.iter().sum();
    exponentials.into_iter().map(|exponential| exponential / sum).collect()
}

/// Elements of parameter number `index` before training: products keep the size of what they multiply, positions are
/// small, biases 0.
fn initial(seed: u64, index: u64, name: &str, ty: &TensorType) -> Vec<f32> {
    let mut values = vec![0f32; ty.count()];
    let scale = match ty.shape() {
        _ if name.ends_with(".bias") => return values,
        [out, ..] if name.ends_with(".weight") => (*out as f32 / ty.count() as f32).sqrt(),
        _ => POSITION_SCALE,
    };
    diffusion::fill_normal(seed, index, 0, &mut values);
    values.iter_mut().for_each(|value| *value *= scale);
    values
}

/// The clips of one step.
struct Batch {
    /// f32 `[rows, 3, N_FRAMES, SIDE, SIDE]`.
    pixels: Vec<f32>,
    subjects: Vec<Subject>,
}

impl Batch {
    fn new(rows: usize) -> Batch {
        let nothing = Subject { creature: 0, action: 0, direction: 0, ground: 0 };
        Batch { pixels: vec![0.0; rows * CLIP], subjects: vec![nothing; rows] }
    }

    /// Makes the batch of a step; rows do not depend on who makes them.
    fn fill(&mut self, step: u64, n_threads: usize, example: Example<'_>) {
        let per_thread = self.subjects.len().div_ceil(n_threads.max(1));
        thread::scope(|scope| {
            let pixels = self.pixels.chunks_mut(per_thread * CLIP);
            let parts = pixels.zip(self.subjects.chunks_mut(per_thread)).enumerate();
            for (part, (pixels, subjects)) in parts {
                scope.spawn(move || {
                    let rows = pixels.chunks_exact_mut(CLIP).zip(subjects);
                    for (row, (pixels, subject)) in rows.enumerate() {
                        *subject = example(step, part * per_thread + row, pixels);
                    }
                });
            }
        });
    }

    /// f32 `[rows, classes]`: most of it at the class that is shown.
    fn labels(&self, head: Head) -> Vec<f32> {
        let n = head.n_classes();
        let mut labels = vec![SMOOTHING / n as f32; self.subjects.len() * n];
        for (subject, row) in self.subjects.iter().zip(labels.chunks_exact_mut(n)) {
            row[head.class(*subject)] += 1.0 - SMOOTHING;
        }
        labels
    }
}

/// Weights as the runtime asks for them.
struct Table(Weights);

impl WeightSource for Table {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let Some((shape, values)) = self.0.get(name) else { return Ok(None) };
        let ty = TensorType::new(DType::F32, shape.clone()).map_err(|error| error.to_string())?;
        Ok(Some((ty, Cow::Borrowed(bytemuck::cast_slice(values)))))
    }
}
