//! The trainer: compiled steps with state between them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "not every suite needs every helper")]

mod tiny;

use std::borrow::Cow;
use std::sync::Arc;

use kernels::{Isa, Pool, Target};
use models::Bucket;
use ops::{DType, Tensor, TensorType};
use runtime::{Session, WeightSource, WeightStore};
use tiny::{Tensors, bucket, given, model, relative_l2, run};
use training::{
    AdamW, Lora, Machine, Options, Outcome, PlannedStep, State, StateKind, Trainer,
    accumulation_step, training_step, update_step,
};

/// Kernels sum in another order than the interpreter; a step's direction is that of rounding where a
/// gradient is.
const LIMIT: f64 = 1e-5;

struct Weights(Tensors);

impl WeightSource for Weights {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let entry = |tensor: &Tensor| (tensor.ty().clone(), Cow::Owned(tensor.to_bytes()));
        Ok(self.0.get(name).map(entry))
    }
}

/// The tiny model's weights by checkpoint name.
fn weights(options: &Options) -> Weights {
    let graph = training_step(&model(), &bucket(), options).unwrap().graph;
    let mut weights = given(&graph);
    for (name, tensor) in given(&graph) {
        if let Some(name) = name.strip_prefix("master.") {
            weights.insert(name.into(), tensor);
        }
    }
    Weights(weights)
}

fn trainer(options: &Options, threads: usize) -> Trainer {
    trainer_within(options, threads, None)
}

fn target(threads: usize) -> Target {
    Target {
        isa: Isa::detect(),
        threads,
        l1_bytes: 48 << 10,
        l2_bytes: 1 << 20,
        l3_bytes: 32 << 20,
        gpu: None,
        tiles: None,
    }
}

fn trainer_within(options: &Options, threads: usize, memory: Option<usize>) -> Trainer {
    let target = target(threads);
    let weights = weights(options);
    let state = State::new(&model(), options, &weights).unwrap();
    let pool = Arc::new(Pool::new(threads).unwrap());
    let machine = Machine { target, pool, memory };
    let store = WeightStore::new(weights);
    Trainer::new(model(), options.clone(), state, store, machine).unwrap()
}

/// The inputs of a step that are no state.
fn batch(options: &Options) -> Tensors {
    let graph = training_step(&model(), &bucket(), options).unwrap().graph;
    let mut batch = given(&graph);
    let names: Vec<&str> = graph.inputs().map(|(_, name)| name).collect();
    batch.retain(|name, _| {
        names.contains(&name.as_str()) && !name.contains('.') && name != "optimizer"
    });
    batch
}

fn update(trainer: &mut Trainer, buckets: &[training::BucketId], batch: &Tensors) -> Outcome {
    let bytes: Vec<(&str, Vec<u8>)> =
        batch.iter().map(|(name, tensor)| (name.as_str(), tensor.to_bytes())).collect();
    let batch: Vec<(&str, &[u8])> = bytes.iter().map(|(name, b)| (*name, &b[..])).collect();
    let batches: Vec<_> = buckets.iter().map(|&bucket| (bucket, &batch[..])).collect();
    trainer.update(&batches, 1e-3).unwrap()
}

/// Three updates by the trainer and by the interpreter.
#[test]
fn updates_follow_the_interpreter() {
    // The moments tell more of a gradient than the weights, which AdamW moves at one speed. An eps above
    // the rounding of gradients keeps those that are 0 from moving at all.
    let optimizer = AdamW { eps: 1e-4, ..AdamW::default() };
    for micro_batches in [1, 2] {
        let options =
            Options { optimizer, micro_batches, ema_decay: Some(0.5), ..Options::default() };
        let mut trainer = trainer(&options, 2);
        let bucket_id = trainer.compile(&bucket()).unwrap();
        let programs = if micro_batches == 1 {
            vec![training_step(&model(), &bucket(), &options).unwrap()]
        } else {
            let add = accumulation_step(&model(), &bucket(), &options).unwrap();
            vec![add.clone(), add, update_step(&model(), &options).unwrap()]
        };
        let mut state = batch(&options);
        state.extend(weights(&options).0);
        for (kind, name, values) in trainer.state().tensors() {
            let ty = programs[0].trained.iter().find(|(known, _)| known == name).unwrap();
            state.insert(kind.input(name), Tensor::f32(ty.1.shape(), values).unwrap());
        }
        for step in 1..=3u64 {
            let outcome = update(&mut trainer, &vec![bucket_id; micro_batches], &batch(&options));
            let coefficients = optimizer.coefficients(1e-3, step);
            state.insert("optimizer".into(), Tensor::f32(&[3], &coefficients).unwrap());
            let mut last = vec![];
            for program in &programs {
                last = run(program, &state);
                if let Some(at) = program.loss {
                    let expected = last[at].as_floats()[0];
                    assert!((f64::from(outcome.loss) / expected - 1.0).abs() < LIMIT, "{step}");
                }
                for carry in &program.carries {
                    state.insert(carry.input(), last[carry.output].clone());
                }
            }
            let norm = last[programs.last().unwrap().grad_norm.unwrap()].as_floats()[0];
            assert!((f64::from(outcome.grad_norm) / norm - 1.0).abs() < LIMIT, "{step}");
            assert_eq!(outcome.row_losses.len(), 2 * micro_batches);
            // The sums of an update are of no use to the next.
            for (name, tensor) in &mut state {
                if name.starts_with("gradient_sum.") {
                    let zeros = vec![0.0; tensor.ty().count()];
                    *tensor = Tensor::floats(tensor.ty().clone(), zeros);
                }
            }
        }
        assert_eq!(trainer.state().step(), 3);
        let mut compared = 0;
        for (kind, name, values) in trainer.state().tensors() {
            if matches!(kind, StateKind::Master | StateKind::Ema) {
                let found: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
                let error = relative_l2(&found, state[&kind.input(name)].as_floats());
                assert!(error < LIMIT, "{kind:?} {name} is off by {error:e}");
                compared += 1;
            }
        }
        assert!(compared > 2 * 70, "{compared}");
    }
}

/// A batch that is seen again and again is learned.
#[test]
fn a_batch_is_learned() {
    let options = Options { caption_dropout: false, ..Options::default() };
    let mut trainer = trainer(&options, 2);
    let bucket_id = trainer.compile(&bucket()).unwrap();
    let batch = batch(&options);
    let losses: Vec<f32> =
        (0..40).map(|_| update(&mut trainer, &[bucket_id], &batch).loss).collect();
    assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    assert!(losses[39] < 0.7 * losses[0], "{losses:?}");
}

#[test]
fn updates_do_not_depend_on_threads_and_repeat() {
    let options = Options { micro_batches: 2, ..Options::default() };
    let after = |threads: usize| {
        let mut trainer = trainer(&options, threads);
        let half = Bucket { dtype: DType::Bf16, ..bucket() };
        let buckets = [bucket(), half].map(|bucket| trainer.compile(&bucket).unwrap());
        let batch = batch(&options);
        let outcomes = [(); 2].map(|()| update(&mut trainer, &buckets, &batch));
        (outcomes, trainer.state().clone())
    };
    let first = after(1);
    assert!(first == after(2), "two threads give other bits");
    assert!(first == after(1), "a second run gives other bits");
}

/// Within a limit, however high, masters are cast where they are used; without, when they change.
#[test]
fn weights_are_the_cast_masters_wherever_they_are_cast() {
    let half = Bucket { dtype: DType::Bf16, ..bucket() };
    for (micro_batches, order) in [(1, [0, 0, 0]), (1, [0, 1, 0]), (2, [1, 0, 0])] {
        let options = Options { micro_batches, ..Options::default() };
        let after = |memory: Option<usize>| {
            let mut trainer = trainer_within(&options, 2, memory);
            let buckets = [&half, &bucket()].map(|bucket| trainer.compile(bucket).unwrap());
            let batch = batch(&options);
            let outcomes = order.map(|first| {
                let mixed = [buckets[first], buckets[0]];
                update(&mut trainer, &mixed[..micro_batches], &batch)
            });
            (outcomes, trainer.state().clone())
        };
        assert!(after(None) == after(Some(usize::MAX)), "{micro_batches}, {order:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let options = Options { micro_batches: 2, ..Options::default() };
    let mut trainer = trainer(&options, 1);
    let bucket_id = trainer.compile(&bucket()).unwrap();
    let nothing: &[(&str, &[u8])] = &[];
    let error = trainer.update(&[(bucket_id, nothing)], 1e-3).unwrap_err().to_string();
    assert!(error.contains("`micro_batches`: 1 batches, expected 2"), "{error}");
    let error = trainer.update(&[(bucket_id, nothing); 2], 1e-3).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");

    let mut source = weights(&options);
    let name = "blocks.0.mlp.fc1.weight";
    let state = |source: &Weights| State::new(&model(), &options, source).unwrap_err().to_string();
    source.0.insert(name.into(), tiny::vector(&[1.0, 2.0]));
    assert!(state(&source).contains("`blocks.0.mlp.fc1.weight`: is f32[2], expected"));
    source.0.remove(name);
    assert!(state(&source).contains("`blocks.0.mlp.fc1.weight`: missing"));
}

/// What a plan says of frozen weights is what a store holds for all steps together.
#[test]
fn steps_share_frozen_weights() {
    let targets = vec!["attn.qkv".into()];
    let lora = Lora { rank: 2, alpha: 2.0, targets, seed: 1 };
    let options = Options { lora: Some(lora), ..Options::default() };
    let store = WeightStore::new(weights(&Options { lora: None, ..options.clone() }));
    let pool = Arc::new(Pool::new(1).unwrap());
    let mut steps = vec![];
    let mut sessions = vec![];
    for dtype in [DType::F32, DType::Bf16] {
        for frames in [3, 2] {
            let bucket = Bucket { dtype, latent: [frames, 4, 4], ..bucket() };
            let step =
                PlannedStep::of_bucket(&model(), &bucket, &options, &target(1), None).unwrap();
            let plan = Arc::new(step.plan().clone());
            sessions.push(Session::new(plan, &store, Arc::clone(&pool)).unwrap());
            steps.push(step);
            assert_eq!(PlannedStep::frozen_bytes_of(&steps), store.bytes());
        }
    }
    let sum: usize = steps.iter().map(PlannedStep::frozen_bytes).sum();
    let all = PlannedStep::frozen_bytes_of(&steps);
    // Two of each type; weights that are adapted are f32 in all four.
    assert!(all < sum / 2, "{all} of {sum}");
}
