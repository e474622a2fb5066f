//! What a step keeps true, by the interpreter.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "not every suite needs every helper")]

mod tiny;

use models::Bucket;
use ops::{DType, Role, Tensor};
use tiny::{Tensors, bucket, given, model, relative_l2, run};
use training::{
    Freeze, Lora, Options, Program, StateKind, accumulation_step, gradients, training_step,
    update_step,
};

/// f32 operations of a step, each off by half a unit of the last place, add up to this at most.
const ROUNDING: f64 = 2e-6;

fn input(program: &Program, given: &Tensors, kind: StateKind, param: &str) -> Vec<f64> {
    assert!(program.graph.inputs().any(|(_, name)| name == kind.input(param)));
    given[&kind.input(param)].as_floats().to_vec()
}

fn carried(program: &Program, outputs: &[Tensor], kind: StateKind, param: &str) -> Vec<f64> {
    let mut of_param = program.carries.iter().filter(|c| c.kind == kind && c.param == param);
    let carry = of_param.next().expect("the parameter is trained");
    outputs[carry.output].as_floats().to_vec()
}

/// The formulas of clipping, `AdamW` with decay and averaging, in f64, on the gradients of the same batch.
#[test]
fn a_step_is_its_formulas_on_the_gradients() {
    let options = Options {
        ema_decay: Some(0.9),
        max_norm: Some(0.25),
        optimizer: training::AdamW { weight_decay: 0.1, ..training::AdamW::default() },
        ..Options::default()
    };
    let step = training_step(&model(), &bucket(), &options).unwrap();
    let only = gradients(&model(), &bucket(), &options).unwrap();
    assert_eq!(step.trained, only.trained);
    let mut given = given(&step.graph);
    let (lr, number) = (1e-2, 3);
    let coefficients = options.optimizer.coefficients(lr, number);
    given.insert("optimizer".into(), Tensor::f32(&[3], &coefficients).unwrap());
    let outputs = run(&step, &given);
    let grads = run(&only, &given);
    let at = only.gradients.unwrap();
    let grads: Vec<Vec<f64>> = grads[at..].iter().map(|g| g.as_floats().to_vec()).collect();
    assert_eq!(outputs[0], run(&only, &given)[0]);

    let norm = grads.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
    let found = outputs[step.grad_norm.unwrap()].as_floats()[0];
    assert!((found / norm - 1.0).abs() < ROUNDING, "{found}, expected {norm}");
    assert!(norm > 0.25, "{norm} is not clipped");
    let factor = 0.25 / (norm + 1e-6);
    for ((name, ty), grad) in step.trained.iter().zip(&grads) {
        assert_eq!(ty.dtype(), DType::F32);
        let read = |kind| input(&step, &given, kind, name);
        let [w, m, v, e] = [
            read(StateKind::Master),
            read(StateKind::FirstMoment),
            read(StateKind::SecondMoment),
            read(StateKind::Ema),
        ];
        let mut expected = [const { Vec::new() }; 4];
        for i in 0..grad.len() {
            let g = grad[i] * factor;
            let m = 0.9 * m[i] + 0.1 * g;
            let v = 0.999 * v[i] + 0.001 * g * g;
            let unbiased = [m / (1.0 - 0.9f64.powi(3)), v / (1.0 - 0.999f64.powi(3))];
            let new = w[i] * (1.0 - lr * 0.1) - lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8);
            for (list, value) in
                expected.iter_mut().zip([new, m, v, 0.9 * e[i] + (1.0 - 0.9) * new])
            {
                list.push(value);
            }
        }
        let kinds =
            [StateKind::Master, StateKind::FirstMoment, StateKind::SecondMoment, StateKind::Ema];
        for (kind, expected) in kinds.into_iter().zip(&expected) {
            let error = relative_l2(&carried(&step, &outputs, kind, name), expected);
            assert!(error < ROUNDING, "{kind:?} of {name} is off by {error:e}");
        }
    }
}

#[test]
fn gradients_below_the_limit_are_not_scaled() {
    let loose = Options { max_norm: Some(1e6), ..Options::default() };
    let without = Options { max_norm: None, ..Options::default() };
    let build = |options| training_step(&model(), &bucket(), options).unwrap();
    let (loose, without) = (build(&loose), build(&without));
    let given = given(&loose.graph);
    assert_eq!(run(&loose, &given), run(&without, &given));
}

/// Two equal batches have the mean gradient of one.
#[test]
fn accumulated_steps_are_the_step_of_the_mean() {
    let options = Options { micro_batches: 2, ..Options::default() };
    let whole = training_step(&model(), &bucket(), &options).unwrap();
    let add = accumulation_step(&model(), &bucket(), &options).unwrap();
    let update = update_step(&model(), &options).unwrap();
    assert_eq!(update.trained, whole.trained);
    let mut state = given(&whole.graph);
    for (name, ty) in &add.trained {
        let zeros = Tensor::floats(ty.clone(), vec![0.0; ty.count()]);
        state.insert(StateKind::GradientSum.input(name), zeros);
    }
    let expected = run(&whole, &state);
    for _ in 0..2 {
        let outputs = run(&add, &state);
        assert_eq!(outputs[0], expected[0]);
        for carry in &add.carries {
            state.insert(carry.input(), outputs[carry.output].clone());
        }
    }
    let outputs = run(&update, &state);
    for (carry, wanted) in update.carries.iter().zip(&whole.carries) {
        assert_eq!((carry.kind, &carry.param), (wanted.kind, &wanted.param));
        // g + g and its half are exact.
        assert_eq!(outputs[carry.output], expected[wanted.output], "{}", carry.input());
    }
}

#[test]
fn frozen_parameters_have_no_state() {
    let all = training_step(&model(), &bucket(), &Options::default()).unwrap();
    let options = Options { freeze: Freeze::NotTemporal, ..Options::default() };
    let temporal = training_step(&model(), &bucket(), &options).unwrap();
    assert!(!temporal.trained.is_empty());
    assert!(temporal.trained.len() < all.trained.len());
    assert!(temporal.trained.iter().all(|(name, _)| name.contains("attn_temp")));
    let state = ["master.", "first_moment.", "second_moment.", "ema."];
    for (_, name) in temporal.graph.inputs() {
        let of_state = state.iter().any(|prefix| name.starts_with(prefix));
        assert!(!of_state || name.contains("attn_temp"), "{name}");
    }
    let frozen: Vec<&str> = temporal.graph.params().map(|(_, name)| name).collect();
    assert!(frozen.contains(&"blocks.0.attn.qkv.weight"), "{frozen:?}");
    // What both train has the same gradients' norm in neither, but the same loss.
    let mut given = given(&all.graph);
    for (_, name) in temporal.graph.params() {
        if let Some(master) = given.get(&StateKind::Master.input(name)).cloned() {
            given.insert(name.to_string(), master);
        }
    }
    assert_eq!(run(&all, &given)[..2], run(&temporal, &given)[..2]);

    let none = Options { freeze: Freeze::Except(vec!["nothing".into()]), ..Options::default() };
    let error = training_step(&model(), &bucket(), &none).unwrap_err().to_string();
    assert!(error.contains("leaves no parameter"), "{error}");
}

/// The loss of an adapted model is that of the model with the sums for weights; only factors have state.
#[test]
fn adapted_weights_are_sums() {
    let lora = Lora { rank: 3, alpha: 6.0, targets: vec!["attn".into()], seed: 5 };
    let options = Options { lora: Some(lora), ..Options::default() };
    let adapted = gradients(&model(), &bucket(), &options).unwrap();
    assert!(adapted.trained.iter().all(|(name, _)| name.contains("lora_")));
    // qkv and proj of two attentions, three of the cross attention, in two blocks, two factors each.
    assert_eq!(adapted.trained.len(), 2 * 7 * 2);
    let plain = gradients(&model(), &bucket(), &Options::default()).unwrap();
    let mut given = given(&adapted.graph);
    let mut sums = given.clone();
    for (value, name) in adapted.graph.params() {
        let base = given[name].as_floats().to_vec();
        let factor = |kind: &str| {
            let name = name.replace(".weight", &format!(".lora_{kind}.weight"));
            given.get(&StateKind::Master.input(&name)).map(|t| t.as_floats().to_vec())
        };
        let weight = match (factor("A"), factor("B")) {
            (Some(first), Some(second)) => {
                let inner = first.len() / 3;
                let product = |i: usize| -> f64 {
                    (0..3).map(|k| second[i / inner * 3 + k] * first[k * inner + i % inner]).sum()
                };
                base.iter().enumerate().map(|(i, w)| w + 2.0 * product(i)).collect()
            }
            _ => base,
        };
        let tensor = Tensor::floats(adapted.graph.ty(value).clone(), weight).rounded();
        sums.insert(StateKind::Master.input(name), tensor);
    }
    let (found, expected) = (run(&adapted, &given), run(&plain, &sums));
    let loss = |outputs: &[Tensor]| outputs[0].as_floats()[0];
    assert!((loss(&found) / loss(&expected) - 1.0).abs() < ROUNDING);
    // The chain rule: of the second factor, `2 G first^T`.
    let at = |program: &Program, name: &str| {
        let place = program.trained.iter().position(|(known, _)| known == name).unwrap();
        program.gradients.unwrap() + place
    };
    let name = "blocks.1.attn.proj";
    let of_sum = expected[at(&plain, &format!("{name}.weight"))].as_floats();
    let first = given.remove(&StateKind::Master.input(&format!("{name}.lora_A.weight"))).unwrap();
    let (first, width) = (first.as_floats(), 24);
    let chained: Vec<f64> = (0..width * 3)
        .map(|i| {
            let term = |j: usize| of_sum[i / 3 * width + j] * first[i % 3 * width + j];
            2.0 * (0..width).map(term).sum::<f64>()
        })
        .collect();
    let of_second = found[at(&adapted, &format!("{name}.lora_B.weight"))].as_floats();
    assert!(relative_l2(of_second, &chained) < 10.0 * ROUNDING);
}

#[test]
fn a_dropped_caption_is_the_null_caption() {
    let options = Options::default();
    let program = gradients(&model(), &bucket(), &options).unwrap();
    let plain = Options { caption_dropout: false, ..Options::default() };
    let plain = gradients(&model(), &bucket(), &plain).unwrap();
    let mut given = given(&program.graph);
    let null = given["y_embedder.y_embedding"].clone();
    let dropped = given["drop_caption"].as_ints().to_vec();
    assert_eq!(dropped, [1, 0]);
    let outputs = run(&program, &given);
    let kept = given["y"].clone();
    let row = null.as_floats().len();
    let captions = [null.as_floats(), &kept.as_floats()[row..]].concat();
    given.insert("y".into(), Tensor::floats(kept.ty().clone(), captions));
    assert_eq!(outputs, run(&plain, &given));
    given.insert("y".into(), kept);
    assert_ne!(outputs, run(&plain, &given));
}

/// Frames that the mask leaves out do not count, whatever they are; a row without any frame is 0.
#[test]
fn clean_frames_have_no_loss() {
    let options = Options::default();
    let program = gradients(&model(), &bucket(), &options).unwrap();
    let mut given = given(&program.graph);
    let mask = given["x_mask"].clone();
    given.insert("x_mask".into(), Tensor::ints(mask.ty().clone(), vec![1, 1, 1, 0, 0, 0]));
    let outputs = run(&program, &given);
    let losses = outputs[program.row_losses.unwrap()].as_floats();
    assert!(losses[0] > 0.0);
    assert_eq!(losses[1], 0.0);
    assert_eq!(outputs[0].as_floats()[0], losses[0] / 2.0);
}

/// Masters stay f32 where the model computes in bf16, and so do their gradients.
#[test]
fn bf16_computes_near_f32_with_masters_in_f32() {
    let options = Options::default();
    let wide = gradients(&model(), &bucket(), &options).unwrap();
    let half = Bucket { dtype: DType::Bf16, ..bucket() };
    let half = gradients(&model(), &half, &options).unwrap();
    assert_eq!(half.trained, wide.trained);
    let types = |program: &Program| -> Vec<DType> {
        program.graph.inputs().map(|(value, _)| program.graph.ty(value).dtype()).collect()
    };
    assert_eq!(types(&half), types(&wide));
    let mut given = given(&wide.graph);
    let expected = run(&wide, &given);
    for (value, name) in half.graph.params() {
        let values = given[name].as_floats().to_vec();
        given.insert(name.into(), Tensor::floats(half.graph.ty(value).clone(), values).rounded());
    }
    let found = run(&half, &given);
    let loss = |outputs: &[Tensor]| outputs[0].as_floats()[0];
    // 2^-8 a value, a dozen roundings deep.
    assert!((loss(&found) / loss(&expected) - 1.0).abs() < 2e-2);
    let all = |outputs: &[Tensor]| -> Vec<f64> {
        outputs[2..].iter().flat_map(|g| g.as_floats().to_vec()).collect()
    };
    let error = relative_l2(&all(&found), &all(&expected));
    assert!(error > 1e-6 && error < 0.1, "{error}");
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let wrong = |bucket: Bucket, options: Options| {
        training_step(&model(), &bucket, &options).unwrap_err().to_string()
    };
    let default = Options::default();
    for (bucket, options, expected) in [
        (Bucket { guided: true, ..bucket() }, default.clone(), "guidance is for sampling"),
        (Bucket { latents: 1, ..bucket() }, default.clone(), "expected one of each per row"),
        (bucket(), Options { max_norm: Some(0.0), ..default.clone() }, "`max_norm`: 0"),
        (bucket(), Options { ema_decay: Some(1.0), ..default.clone() }, "`ema_decay`: 1"),
        (bucket(), Options { micro_batches: 0, ..default.clone() }, "`micro_batches`: 0"),
        (
            bucket(),
            Options {
                optimizer: training::AdamW { betas: [1.0, 0.9], ..training::AdamW::default() },
                ..default.clone()
            },
            "`betas`: 1",
        ),
    ] {
        let error = wrong(bucket, options);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn every_carry_replaces_an_input_of_its_type() {
    let options = Options { micro_batches: 2, ..Options::default() };
    for program in [
        training_step(&model(), &bucket(), &options).unwrap(),
        accumulation_step(&model(), &bucket(), &options).unwrap(),
        update_step(&model(), &options).unwrap(),
    ] {
        assert!(ops::verify(&program.graph).is_empty(), "{}", program.graph.name);
        let mut replaced: Vec<String> = Vec::new();
        for carry in &program.carries {
            let new = program.graph.ty(program.graph.outputs[carry.output]);
            let name = carry.input();
            let old = program.graph.inputs().find(|(_, input)| *input == name);
            let (old, _) = old.unwrap_or_else(|| panic!("no input `{name}`"));
            assert_eq!(program.graph.ty(old), new, "{name}");
            assert!(matches!(program.graph.node(old).role, Role::Input(_)));
            replaced.push(name);
        }
        replaced.sort();
        replaced.dedup();
        assert_eq!(replaced.len(), program.carries.len());
        assert!(!replaced.is_empty());
    }
}
