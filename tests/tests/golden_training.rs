//! Losses, and whole steps of training, against the original code's.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;
use std::sync::Arc;

use diffusion::schedule::Precision;
use kernels::{Isa, Pool};
use models::Bucket;
use models::config::Stdit2;
use ops::{Builder, DType, Graph, Rounding, Tensor, TensorType, eval};
use runtime::WeightStore;
use serde_json::Value as Json;
use tests::compiled::{self, Table};
use tests::golden::{EXECUTORS, Folder, Report, Tensors, as_type, folders, relative_l2, wide};
use training::{
    AdamW, Iddpm, Machine, Model, Options, Program, Sample, State, StateKind, Trainer, Weighting,
    training_step,
};

/// f32 against f32.
const LOSS_LIMIT: f64 = 1e-5;
/// After four steps of 1e-3 on weights of 0.1 and more, an update that is off by a percent shows.
const WEIGHT_LIMIT: f64 = 1e-5;

fn folder(name: &str) -> Folder {
    let found = folders().into_iter().find(|folder| folder.name == name);
    found.unwrap_or_else(|| panic!("golden folder `{name}` is missing"))
}

/// Noised latents and losses on a golden model output.
fn loss_graph(process: &Iddpm, given: &Tensors) -> Graph {
    let mut b = Builder::new("loss");
    let mut input = |name: &str| b.input(name, given[name].ty().clone());
    let (latents, noise, timesteps) = (input("x_start"), input("noise"), input("t"));
    let out = input("model_out");
    let frame_mask = given.contains_key("mask").then(|| input("mask"));
    let sample = Sample { latents, noise, timesteps, frame_mask };
    let noised = process.append_noised(&mut b, &sample).unwrap();
    let losses = process.append_losses(&mut b, &sample, noised, out).unwrap();
    b.finish(&[noised, losses.total, losses.mse, losses.bound])
}

#[test]
fn iddpm_losses_are_upstreams() {
    let mut report = Report::default();
    for (name, precision) in [("iddpm_v1_0_0", Precision::F64), ("iddpm_v1_1_0", Precision::F32)] {
        let golden = folder(name).tensors("training_losses");
        assert!(golden["in.t"].as_ints().contains(&0), "the last step has a loss of its own");
        let mut prefixes = vec![""];
        if golden.contains_key("masked.in.mask") {
            prefixes.push("masked.");
        }
        for prefix in prefixes {
            let mut given: Tensors = ["x_start", "noise", "t"]
                .map(|key| (key.to_string(), golden[&format!("in.{key}")].clone()))
                .into();
            let of_case = |key: &str| golden[&format!("{prefix}{key}")].clone();
            given.insert("model_out".into(), of_case("mid.model_out"));
            if !prefix.is_empty() {
                given.insert("mask".into(), of_case("in.mask"));
            }
            let process = Iddpm::new(precision, Weighting::Uniform).unwrap();
            let graph = loss_graph(&process, &given);
            for executor in EXECUTORS {
                let found = (executor.run)(&graph, &given);
                let case = format!("{name} {prefix} [{}]", executor.name);
                let keys = ["mid.x_t", "out.loss", "out.mse", "out.vb"];
                for (key, found) in keys.into_iter().zip(&found) {
                    let expected = of_case(key);
                    report.check(&case, key, relative_l2(found, &expected), LOSS_LIMIT);
                }
                // Each on its own: the bound at timestep 0 is a thousand times the others.
                for (row, (found, expected)) in
                    wide(&found[3]).iter().zip(wide(&of_case("out.vb"))).enumerate()
                {
                    let error = (found / expected - 1.0).abs();
                    // A divergence is the small rest of terms near 1.
                    report.check(&case, &format!("vb of row {row}"), error, 1e-3);
                }
            }
        }
    }
    print!("{}", report.summary());
    let failures = report.failures();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn speed_weights_are_upstreams() {
    let golden = folder("iddpm_v1_1_0").tensors("training_losses");
    let weights = wide(&folder("iddpm_speed_v1_1_0").tensors("tables")["weights"]);
    let mut given: Tensors = ["x_start", "noise", "t"]
        .map(|key| (key.to_string(), golden[&format!("in.{key}")].clone()))
        .into();
    given.insert("model_out".into(), golden["mid.model_out"].clone());
    let process = Iddpm::new(Precision::F32, Weighting::Speed).unwrap();
    let found = eval(&loss_graph(&process, &given), &given, Rounding::Stored).unwrap();
    let rows = golden["in.t"].as_ints().iter().zip(wide(&golden["out.mse"]));
    let weighted: Vec<f64> = rows.map(|(&t, mse)| weights[t as usize] * mse).collect();
    let error = tests::relative_l2(&wide(&found[2]), &weighted);
    assert!(error < LOSS_LIMIT, "{error:e}");
    assert!(relative_l2(&found[3], &golden["out.vb"]) < LOSS_LIMIT);
}

/// The golden run: four steps of a model of two blocks.
struct Run {
    config: Json,
    model: Model,
    options: Options,
    bucket: Bucket,
    before: Tensors,
    steps: Tensors,
}

impl Run {
    fn open(folder: &Folder) -> Run {
        let config = folder.config().unwrap();
        let number = |value: &Json| value.as_f64().unwrap();
        let optimizer = &config["optimizer"];
        let options = Options {
            optimizer: AdamW {
                betas: [0, 1].map(|i| number(&optimizer["betas"][i])),
                eps: number(&optimizer["eps"]),
                weight_decay: number(&optimizer["weight_decay"]),
            },
            max_norm: Some(number(&config["grad_clip_total_norm"])),
            ema_decay: Some(number(&config["ema_decay"])),
            caption_dropout: false,
            ..Options::default()
        };
        let stdit = Stdit2::from_json(&config["config"]).expect("a supported configuration");
        let sizes = ["height", "width"].map(|key| number(&config["extra_inputs"][key]));
        let steps = folder.tensors("steps");
        let &[rows, _, t, h, w] = steps["step0.x_start"].shape() else { panic!("rank 5") };
        let tokens = steps["step0.mask"].shape()[1];
        Run {
            bucket: Bucket { frame_mask: true, ..Bucket::new(rows, [t, h, w], sizes, tokens) },
            model: Model::Stdit2(stdit),
            options,
            before: folder.tensors("weights_before"),
            steps,
            config,
        }
    }

    fn lr(&self) -> f64 {
        self.config["optimizer"]["lr"].as_f64().unwrap()
    }

    fn n_steps(&self) -> usize {
        self.config["losses"].as_array().unwrap().len()
    }

    /// The batch of step `step`, by input name.
    fn batch(&self, step: usize) -> Tensors {
        let of_step = |key: &str| self.steps[&format!("step{step}.{key}")].clone();
        let mut batch: Tensors = [
            ("x", of_step("x_start")),
            ("noise", of_step("noise")),
            ("timestep", of_step("t")),
            ("y", of_step("y")),
            ("mask", as_type(&of_step("mask"), DType::Bool)),
            ("x_mask", of_step("x_mask")),
        ]
        .map(|(key, tensor)| (key.to_string(), tensor))
        .into();
        let rows = TensorType::new(DType::F32, [self.bucket.captions]).unwrap();
        for (key, value) in self.config["extra_inputs"].as_object().unwrap() {
            let values = vec![value.as_f64().unwrap(); self.bucket.captions];
            batch.insert(key.clone(), Tensor::floats(rows.clone(), values).rounded());
        }
        batch
    }

    /// Compares one step's loss, losses of rows and norm.
    fn check_step(&self, report: &mut Report, case: &str, step: usize, found: [&[f32]; 3]) {
        let listed = |key: &str| vec![self.config[key][step].as_f64().unwrap()];
        let expected = [
            ("loss", listed("losses")),
            ("row losses", wide(&self.steps[&format!("step{step}.loss_per_sample")])),
            ("gradient norm", listed("grad_norm_before_clip")),
        ];
        for ((key, expected), found) in expected.into_iter().zip(found) {
            let found: Vec<f64> = found.iter().map(|&x| f64::from(x)).collect();
            let error = tests::relative_l2(&found, &expected);
            report.check(case, &format!("{key} of step {step}"), error, LOSS_LIMIT);
        }
    }

    /// Compares weights and averages after the last step.
    fn check_state(
        &self,
        report: &mut Report,
        case: &str,
        folder: &Folder,
        state: &dyn Fn(StateKind, &str) -> Vec<f64>,
    ) {
        let mut n_trained = 0;
        for (kind, file) in [(StateKind::Master, "weights_after"), (StateKind::Ema, "ema_after")] {
            for (name, expected) in folder.tensors(file) {
                let before = wide(&self.before[&name]);
                if !self.options.freeze.trains(&name) {
                    assert_eq!(wide(&expected), before, "{name} is not trained");
                    continue;
                }
                n_trained += 1;
                let (found, expected) = (state(kind, &name), wide(&expected));
                // Keys that all move by the same vector leave a softmax as it is: the gradient of
                // their bias is rounding alone, whose sign AdamW follows at full speed.
                let width = before.len() / 2;
                let kept = if name.ends_with("cross_attn.kv_linear.bias") {
                    let most = 1.01 * self.lr() * self.n_steps() as f64;
                    let moved = found[..width].iter().zip(&before).map(|(x, y)| (x - y).abs());
                    assert!(moved.fold(0.0, f64::max) <= most, "{name}");
                    width..
                } else {
                    0..
                };
                let error = tests::relative_l2(&found[kept.clone()], &expected[kept]);
                report.check(case, &format!("{kind:?} {name}"), error, WEIGHT_LIMIT);
            }
        }
        assert!(n_trained > 2 * 70, "{n_trained} tensors are trained");
    }
}

/// The trainer, as users run it: compiled, with state between steps.
#[test]
fn four_steps_of_the_trainer_are_upstreams() {
    let folder = folder("train_stdit2_iddpm");
    let run = Run::open(&folder);
    let mut report = Report::default();
    let target = compiled::target(Isa::detect(), 2);
    let weights = Table(run.before.clone());
    let state = State::new(&run.model, &run.options, &weights).unwrap();
    let pool = Arc::new(Pool::new(target.threads).unwrap());
    let machine = Machine { target, pool, memory: None };
    let (model, options) = (run.model.clone(), run.options.clone());
    let mut trainer =
        Trainer::new(model, options, state, WeightStore::new(weights), machine).unwrap();
    let bucket = trainer.compile(&run.bucket).unwrap();
    for step in 0..run.n_steps() {
        let batch: BTreeMap<String, Vec<u8>> =
            run.batch(step).iter().map(|(key, tensor)| (key.clone(), tensor.to_bytes())).collect();
        let batch: Vec<(&str, &[u8])> =
            batch.iter().map(|(key, bytes)| (key.as_str(), &bytes[..])).collect();
        let outcome = trainer.update(&[(bucket, &batch)], run.lr()).unwrap();
        let found = [&[outcome.loss][..], &outcome.row_losses, &[outcome.grad_norm]];
        run.check_step(&mut report, "compiled", step, found);
    }
    assert_eq!(trainer.state().step(), run.n_steps() as u64);
    let state = |kind, name: &str| {
        let values = trainer.state().get(kind, name).expect("the parameter is trained");
        values.iter().map(|&x| f64::from(x)).collect()
    };
    run.check_state(&mut report, "compiled", &folder, &state);
    print!("{}", report.summary());
    let failures = report.failures();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The same graph by the interpreter.
#[test]
fn four_steps_of_the_graph_are_upstreams() {
    let folder = folder("train_stdit2_iddpm");
    let run = Run::open(&folder);
    let mut report = Report::default();
    let program: Program = training_step(&run.model, &run.bucket, &run.options).unwrap();
    let weights = Table(run.before.clone());
    let mut given = run.before.clone();
    for (kind, name, values) in State::new(&run.model, &run.options, &weights).unwrap().tensors() {
        let tensor = Tensor::f32(run.before[name].shape(), values).unwrap();
        given.insert(kind.input(name), tensor);
    }
    for step in 0..run.n_steps() {
        given.extend(run.batch(step));
        let coefficients = run.options.optimizer.coefficients(run.lr(), step as u64 + 1);
        given.insert("optimizer".into(), Tensor::f32(&[3], &coefficients).unwrap());
        let outputs = eval(&program.graph, &given, Rounding::Stored).unwrap();
        let places = [program.loss, program.row_losses, program.grad_norm];
        let found = places.map(|place| outputs[place.unwrap()].to_f32());
        let found = [&found[0][..], &found[1], &found[2]];
        run.check_step(&mut report, "interpreter", step, found);
        for carry in &program.carries {
            given.insert(carry.input(), outputs[carry.output].clone());
        }
    }
    let state = |kind: StateKind, name: &str| wide(&given[&kind.input(name)]);
    run.check_state(&mut report, "interpreter", &folder, &state);
    print!("{}", report.summary());
    let failures = report.failures();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
