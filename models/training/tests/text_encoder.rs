//! Training of a text encoder with the transformer that reads it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "not every suite needs every helper")]

mod tiny;

use std::borrow::Cow;
use std::sync::Arc;

use kernels::{Isa, Pool, Target};
use models::config::T5;
use ops::{Op, Role, Rounding, Tensor, TensorType, eval, eval_all};
use runtime::{WeightSource, WeightStore};
use serde_json::json;
use tiny::{Tensors, bucket, given, model, relative_l2, run};
use training::{
    Freeze, Initial, Keep, Machine, Objective, Options, Program, Snapshots, State, StateKind, Text,
    Trainer, gradients, training_step,
};

/// Wide, so that rounding does not show where gradients are small; what it truncates is taken out.
const STEP: f64 = 3e-3;
/// What differences of losses about 10, which are sums of many terms in f64, are off by over such a step.
const NOISE: f64 = 1e-11;

/// Two blocks, as wide as the tiny transformer's captions.
fn encoder() -> T5 {
    let file = json!({
        "d_model": 6, "d_kv": 3, "d_ff": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 11,
        "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 8,
    });
    T5::from_json(&file).unwrap()
}

fn options() -> Options {
    let text = Text::Encoder { config: encoder(), lr_factor: 1.0 };
    Options { text, ema_decay: Some(0.9), ..Options::default() }
}

/// Values of a graph's inputs; tokens are of the vocabulary, and no row is at the last step of the process, whose
/// loss is a thousand times that of others.
fn values(program: &Program) -> Tensors {
    let mut given = given(&program.graph);
    let ids = given["input_ids"].ty().clone();
    let tokens = (0..ids.count()).map(|i| (3 * i as i64 + 1) % 11).collect();
    given.insert("input_ids".into(), Tensor::ints(ids, tokens));
    let timesteps = given["timestep"].ty().clone();
    given.insert("timestep".into(), Tensor::ints(timesteps, vec![640, 210]));
    given
}

fn is_text(name: &str) -> bool {
    name.starts_with("shared.") || name.starts_with("encoder.")
}

/// The forward part of `program`. What gradients do not pass is held: it is given instead.
fn forward(program: &Program, given: &mut Tensors) -> ops::Graph {
    let loss = program.graph.outputs[program.loss.unwrap()];
    let mut graph = program.graph.clone();
    graph.nodes.truncate(loss.index() + 1);
    graph.outputs = vec![loss];
    let values = eval_all(&graph, given, Rounding::Exact).unwrap();
    for (i, node) in graph.nodes.iter_mut().enumerate() {
        if matches!(node.role, Role::Op(Op::StopGradient(_))) {
            let name = format!("held {i}");
            node.role = Role::Input(name.as_str().into());
            node.args.clear();
            given.insert(name, values[i].clone());
        }
    }
    graph
}

/// Every parameter of the encoder, each moved along a direction of its own.
#[test]
fn gradients_of_the_encoder_are_differences() {
    let program = gradients(&model(), &bucket(), &options()).unwrap();
    let mut given = values(&program);
    let found = eval(&program.graph, &given, Rounding::Exact).unwrap();
    let forward = forward(&program, &mut given);
    let at = program.gradients.unwrap();
    let mut checked = 0;
    for ((name, ty), gradient) in program.trained.iter().zip(&found[at..]) {
        if !is_text(name) {
            continue;
        }
        let input = StateKind::Master.input(name);
        let direction: Vec<f64> = (0..ty.count()).map(|i| (1.0 + 1.9 * i as f64).cos()).collect();
        let loss_at = |step: f64| {
            let moved = given[&input].as_floats().iter().zip(&direction).map(|(x, d)| x + step * d);
            let mut given = given.clone();
            given.insert(input.clone(), Tensor::floats(ty.clone(), moved.collect()));
            eval(&forward, &given, Rounding::Exact).unwrap()[0].as_floats()[0]
        };
        let over = |step: f64| (loss_at(step) - loss_at(-step)) / (2.0 * step);
        // Without the term of the step's square (Richardson).
        let difference = (4.0 * over(STEP / 2.0) - over(STEP)) / 3.0;
        let product: f64 = gradient.as_floats().iter().zip(&direction).map(|(g, d)| g * d).sum();
        let norm: f64 = gradient.as_floats().iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!(norm > 0.0, "{name} has no gradient");
        let error = (product - difference).abs();
        assert!(error < 1e-5 * norm + NOISE, "{name}: {product}, difference {difference}");
        checked += 1;
    }
    // Table, position bias, nine tensors a block, the last norm.
    assert_eq!(checked, 1 + 1 + 2 * 9 + 1);
}

#[test]
fn rows_without_their_caption_teach_the_encoder_nothing() {
    let program = gradients(&model(), &bucket(), &options()).unwrap();
    let mut given = values(&program);
    let drop = given["drop_caption"].ty().clone();
    let at = program.gradients.unwrap();
    for (dropped, learns) in [(vec![1, 1], false), (vec![1, 0], true)] {
        given.insert("drop_caption".into(), Tensor::ints(drop.clone(), dropped));
        let found = run(&program, &given);
        for ((name, _), gradient) in program.trained.iter().zip(&found[at..]) {
            let is_zero = gradient.as_floats().iter().all(|g| *g == 0.0);
            if is_text(name) {
                assert_eq!(is_zero, !learns, "{name}");
            }
        }
    }
}

/// Features that are given and features that are made in the step are the same to the transformer.
#[test]
fn the_loss_is_that_on_the_encoders_features() {
    let program = gradients(&model(), &bucket(), &options()).unwrap();
    let mut given = values(&program);
    let found = run(&program, &given);
    let of_text = models::t5::TextBucket { dtype: ops::DType::F32, rows: 2, tokens: 5, mask: true };
    let graph = models::t5::graph(&encoder(), &of_text).unwrap();
    given.insert("attention_mask".into(), given["mask"].clone());
    for (_, name) in graph.params() {
        given.insert(name.into(), given[&StateKind::Master.input(name)].clone());
    }
    let features = eval(&graph, &given, Rounding::Stored).unwrap().remove(0);
    let plain = Options { text: Text::Features, ..options() };
    let plain = gradients(&model(), &bucket(), &plain).unwrap();
    let wide = features.ty().with_shape(vec![2, 1, 5, 6]).unwrap();
    given.insert("y".into(), features.reshaped(wide));
    assert_eq!(run(&plain, &given)[..2], found[..2]);
    let n_text = program.trained.iter().filter(|(name, _)| is_text(name)).count();
    assert_eq!(program.trained.len() - n_text, plain.trained.len());
}

#[test]
fn the_encoder_has_a_learning_rate_of_its_own() {
    let decayed = |lr_factor: f64| {
        let text = Text::Encoder { config: encoder(), lr_factor };
        let optimizer = training::AdamW { weight_decay: 0.3, ..training::AdamW::default() };
        let options = Options { text, optimizer, ..options() };
        let program = training_step(&model(), &bucket(), &options).unwrap();
        let mut given = values(&program);
        // A rate of 0.01, of which 0.3 is what decay takes away.
        let coefficients = optimizer.coefficients(1e-2, 4);
        given.insert("optimizer".into(), Tensor::f32(&[3], &coefficients).unwrap());
        let outputs = run(&program, &given);
        let masters = program.carries.iter().filter(|carry| carry.kind == StateKind::Master);
        let changes = masters.map(|carry| {
            let new = outputs[carry.output].as_floats().iter();
            let old = given[&carry.input()].as_floats();
            (carry.param.clone(), new.zip(old).map(|(new, old)| new - old).collect::<Vec<f64>>())
        });
        changes.collect::<Vec<_>>()
    };
    for ((name, whole), (_, quarter)) in decayed(1.0).into_iter().zip(decayed(0.25)) {
        let factor = if is_text(&name) { 0.25 } else { 1.0 };
        let expected: Vec<f64> = whole.iter().map(|change| factor * change).collect();
        // Weights near 1 are f32; what a step changes of them is a hundredth.
        assert!(relative_l2(&quarter, &expected) < 1e-4, "{name}");
    }
}

/// Weights by checkpoint name: masters, and what is never trained.
struct Weights(Tensors);

impl WeightSource for Weights {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let found = self.0.get(&StateKind::Master.input(name)).or_else(|| self.0.get(name));
        Ok(found.map(|tensor| (tensor.ty().clone(), Cow::Owned(tensor.to_bytes()))))
    }
}

fn trainer(options: &Options, weights: impl WeightSource + 'static) -> Trainer {
    let target = Target {
        isa: Isa::detect(),
        threads: 2,
        l1_bytes: 48 << 10,
        l2_bytes: 1 << 20,
        l3_bytes: 32 << 20,
        gpu: None,
        tiles: None,
    };
    let machine = Machine { target, pool: Arc::new(Pool::new(2).unwrap()), memory: None };
    let state = State::new(&model(), options, &weights).unwrap();
    Trainer::new(model(), options.clone(), state, WeightStore::new(weights), machine).unwrap()
}

/// The inputs of a step that are no state.
fn batch(program: &Program) -> Vec<(String, Vec<u8>)> {
    let names: Vec<&str> = program.graph.inputs().map(|(_, name)| name).collect();
    let of_batch = |name: &str| names.contains(&name) && !name.contains('.') && name != "optimizer";
    let given = values(program).into_iter().filter(|(name, _)| of_batch(name));
    given.map(|(name, tensor)| (name, tensor.to_bytes())).collect()
}

/// One update by the trainer and by the interpreter: gradients of the whole encoder, its table included.
#[test]
fn what_is_compiled_follows_the_interpreter() {
    let options = options();
    let program = gradients(&model(), &bucket(), &options).unwrap();
    let given = values(&program);
    let expected = run(&program, &given);
    let norm: f64 =
        expected[2..].iter().flat_map(Tensor::as_floats).map(|g| g * g).sum::<f64>().sqrt();
    let mut trainer = trainer(&options, Weights(given));
    let id = trainer.compile(&bucket()).unwrap();
    let batch = batch(&program);
    let batch: Vec<(&str, &[u8])> = batch.iter().map(|(name, b)| (&name[..], &b[..])).collect();
    let outcome = trainer.update(&[(id, &batch[..])], 1e-3).unwrap();
    let loss = expected[0].as_floats()[0];
    assert!((f64::from(outcome.loss) / loss - 1.0).abs() < 1e-5, "{outcome:?}, expected {loss}");
    assert!((f64::from(outcome.grad_norm) / norm - 1.0).abs() < 1e-5, "{outcome:?}, {norm}");
    // The first moment is a tenth of the clipped gradient.
    let factor = (1.0 / (norm + 1e-6)).min(1.0) * 0.1;
    for ((name, _), gradient) in program.trained.iter().zip(&expected[2..]) {
        if !is_text(name) {
            continue;
        }
        let found = trainer.state().get(StateKind::FirstMoment, name).unwrap();
        let found: Vec<f64> = found.iter().map(|&x| f64::from(x)).collect();
        let expected: Vec<f64> = gradient.as_floats().iter().map(|g| factor * g).collect();
        let error = relative_l2(&found, &expected);
        assert!(error < 1e-4, "{name}: {error:e}");
    }
}

#[test]
fn both_learn_a_batch_from_nothing() {
    let options = Options { caption_dropout: false, ..options() };
    let program = training_step(&model(), &bucket(), &options).unwrap();
    let initial = Initial::new(&model(), &options, 7).unwrap();
    let mut trainer = trainer(&options, initial);
    let id = trainer.compile(&bucket()).unwrap();
    let batch = batch(&program);
    let batch: Vec<(&str, &[u8])> = batch.iter().map(|(name, b)| (&name[..], &b[..])).collect();
    let update = |_| trainer.update(&[(id, &batch[..])], 3e-3).unwrap().loss;
    let losses: Vec<f32> = (0..40).map(update).collect();
    assert!(losses[39] < 0.8 * losses[0], "{losses:?}");
    // At first the encoder has no gradient, as the last layer of the transformer is 0.
    let of_text = trainer.state().get(StateKind::SecondMoment, "shared.weight").unwrap();
    assert!(of_text.iter().any(|x| *x > 0.0));
}

#[test]
fn snapshots_have_both() {
    let initial = Initial::new(&model(), &options(), 7).unwrap();
    let state = State::new(&model(), &options(), &initial).unwrap();
    for name in ["shared.weight", "blocks.1.mlp.fc1.weight"] {
        let (_, bytes) = initial.tensor(name).unwrap().unwrap();
        let master = state.get(StateKind::Master, name).unwrap();
        assert_eq!(&*bytes, master.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
        assert_eq!(state.get(StateKind::Ema, name), Some(master));
    }
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(folder.path(), Keep { last: 1, every: 0 }).unwrap();
    let path = snapshots.save(&state, "both").unwrap();
    let other = Initial::new(&model(), &options(), 8).unwrap();
    let mut loaded = State::new(&model(), &options(), &other).unwrap();
    assert_ne!(loaded, state);
    Snapshots::load(&path, &mut loaded).unwrap();
    assert_eq!(loaded, state);
    // A run of the transformer alone is another one.
    let plain = Options { text: Text::Features, ..options() };
    let mut alone = State::new(&model(), &plain, &initial).unwrap();
    let error = Snapshots::load(&path, &mut alone).unwrap_err().to_string();
    assert!(error.contains("which is not trained"), "{error}");
}

#[test]
fn models_begin_as_they_do_upstream() {
    let initial = Initial::new(&model(), &options(), 7).unwrap();
    let values = |name: &str| -> Vec<f64> {
        let (ty, bytes) = initial.tensor(name).unwrap().unwrap();
        Tensor::from_bytes(ty, &bytes).unwrap().as_floats().to_vec()
    };
    let square = |name: &str| {
        let values = values(name);
        values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64
    };
    for name in [
        "blocks.0.attn.qkv.bias",
        "blocks.1.cross_attn.proj.weight",
        "blocks.0.attn_temp.proj.weight",
        "final_layer.linear.weight",
        "final_layer.linear.bias",
    ] {
        assert_eq!(square(name), 0.0, "{name}");
    }
    for name in ["blocks.0.attn.q_norm.weight", "encoder.block.1.layer.0.layer_norm.weight"] {
        assert!(values(name).iter().all(|x| *x == 1.0), "{name}");
    }
    // Variances: the width is 24, captions are 6 wide, heads of the encoder 3. Draws are few: within a half.
    for (name, expected) in [
        ("blocks.0.attn.qkv.weight", 2.0 / f64::from(72 + 24)),
        ("blocks.1.attn.proj.weight", 2.0 / f64::from(24 + 24)),
        ("x_embedder.proj.weight", 2.0 / f64::from(24 + 16)),
        ("t_block.1.weight", 4e-4),
        ("y_embedder.y_proj.fc2.weight", 4e-4),
        ("blocks.0.scale_shift_table", 1.0 / 24.0),
        ("y_embedder.y_embedding", 1.0 / 6.0),
        ("shared.weight", 1.0),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", 1.0 / f64::from(6 * 3)),
        ("encoder.block.0.layer.0.SelfAttention.v.weight", 1.0 / 6.0),
        ("encoder.block.1.layer.1.DenseReluDense.wi_1.weight", 1.0 / 6.0),
        ("encoder.block.1.layer.1.DenseReluDense.wo.weight", 1.0 / 8.0),
    ] {
        let found = square(name);
        assert!((found / expected - 1.0).abs() < 0.5, "{name}: {found}, expected {expected}");
    }
    let frequencies = values("rope.freqs");
    assert_eq!(frequencies.len(), 6);
    assert!((frequencies[3] - 0.01).abs() < 1e-9 && frequencies[0] == 1.0, "{frequencies:?}");
    for param in model().parameters(&options()).unwrap() {
        let (ty, _) = initial.tensor(&param.name).unwrap().unwrap();
        assert_eq!(ty.shape(), param.shape, "{}", param.name);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let error =
        |options: Options| gradients(&model(), &bucket(), &options).unwrap_err().to_string();
    let with = |config: T5, lr_factor| Options {
        text: Text::Encoder { config, lr_factor },
        ..Options::default()
    };
    let found = error(with(T5 { d_model: 8, ..encoder() }, 1.0));
    assert!(found.contains("features are 8 wide, the transformer reads 6"), "{found}");
    let found = error(with(encoder(), 0.0));
    assert!(found.contains("`text.lr_factor`: 0, expected above 0"), "{found}");
    // What is not trained is read as it is.
    let frozen = Options { freeze: Freeze::NotTemporal, ..options() };
    let program = gradients(&model(), &bucket(), &frozen).unwrap();
    assert!(program.trained.iter().all(|(name, _)| name.contains("attn_temp")));
    assert!(program.graph.params().any(|(_, name)| name == "shared.weight"));
}
