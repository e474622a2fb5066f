//! Adaptations as files: read, written, and merged so that a model computes what it does with factors beside it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "not every suite needs every helper")]

mod tiny;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use checkpoint::names::fit;
use checkpoint::{Checkpoint, DType, TensorView, write_safetensors};
use ops::Tensor;
use tiny::{Tensors, bucket, given, model, relative_l2, run};
use training::{Adapter, Lora, Options, PEFT_CONFIG, PEFT_WEIGHTS, State, StateKind, gradients};

/// What is adapted: every kind of weight of a block, and the patch embedding, which has more than two axes.
const TARGETS: [&str; 3] = ["blocks.0.attn", "blocks.1.mlp", "x_embedder"];

fn lora() -> Lora {
    let targets = TARGETS.map(String::from).to_vec();
    Lora { rank: 2, alpha: 3.0, targets, seed: 7 }
}

fn adapting() -> Options {
    Options { lora: Some(lora()), caption_dropout: false, ..Options::default() }
}

/// Shape and elements by name.
type Matrices = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Made-up factors of everything that [`lora`] adapts, by the names that a file has.
fn factors() -> Matrices {
    let program = gradients(&model(), &bucket(), &adapting()).unwrap();
    let given = given(&program.graph);
    let entry = |(name, ty): &(String, ops::TensorType)| {
        let values = given[&StateKind::Master.input(name)].to_f32();
        (name.clone(), (ty.shape().to_vec(), values))
    };
    program.trained.iter().map(entry).collect()
}

fn write(path: &Path, tensors: &Matrices, metadata: &[(&str, &str)]) {
    let view = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = TensorView { dtype: DType::F32, shape: shape.clone(), bytes: Cow::Owned(bytes) };
        (name.clone(), view)
    };
    let tensors = tensors.iter().map(view).collect();
    let metadata = metadata.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
    write_safetensors(path, &tensors, &metadata.collect()).unwrap();
}

const STATED: [(&str, &str); 2] = [("rank", "2"), ("alpha", "3")];

/// The loss of each row with the factors in the graph, and with merged weights and no factors.
#[test]
fn merged_weights_compute_what_factors_in_the_graph_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    write(&path, &factors(), &STATED);
    let adapter = Adapter::open(&path, None).unwrap();
    adapter.check(&model().params().unwrap()).unwrap();

    let adapted = gradients(&model(), &bucket(), &adapting()).unwrap();
    let inputs = given(&adapted.graph);
    let row_losses = |program: &training::Program, inputs: &Tensors| {
        run(program, inputs)[program.row_losses.unwrap()].as_floats().to_vec()
    };
    let expected = row_losses(&adapted, &inputs);

    // All weights are masters where nothing is adapted.
    let plain = Options { caption_dropout: false, ..Options::default() };
    let plain = gradients(&model(), &bucket(), &plain).unwrap();
    let with_weights = |merges: bool| {
        let mut found = given(&plain.graph);
        let mut n_merged = 0;
        for (name, ty) in &plain.trained {
            let mut values = inputs[name].to_f32();
            if merges {
                n_merged += usize::from(adapter.merge(name, &mut values));
            }
            let master = Tensor::f32(ty.shape(), &values).unwrap();
            found.insert(StateKind::Master.input(name), master);
        }
        (found, n_merged)
    };
    let (merged, n_merged) = with_weights(true);
    assert_eq!(n_merged, adapter.factors().len());
    assert!(n_merged >= 5, "{n_merged}");
    let error = relative_l2(&row_losses(&plain, &merged), &expected);
    // Weights are rounded to f32 once more or less.
    assert!(error < 1e-5, "{error:e}");
    let (base, _) = with_weights(false);
    let error = relative_l2(&row_losses(&plain, &base), &expected);
    assert!(error > 1e-3, "the adaptation has no effect: {error:e}");
}

#[test]
fn files_hold_what_training_reached() {
    let source = tiny_weights();
    let state = State::new(&model(), &adapting(), &source).unwrap();
    for kind in [StateKind::Master, StateKind::Ema] {
        let adapter = Adapter::of_state(&lora(), &state, kind).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter.safetensors");
        adapter.write(&path).unwrap();
        let read = Adapter::open(&path, None).unwrap();
        assert_eq!((read.rank(), read.alpha()), (2, 3.0));
        assert!(read.factors().eq(adapter.factors()), "the file holds other factors");
        for (name, factors) in read.factors() {
            let module = name.strip_suffix(".weight").unwrap();
            for (factor, values) in [("lora_A", &factors.first), ("lora_B", &factors.second)] {
                let expected = state.get(kind, &format!("{module}.{factor}.weight")).unwrap();
                assert_eq!(values, expected, "{name} {factor}");
            }
        }
        fs::remove_file(&path).unwrap();
    }
    let none = Adapter::of_state(&lora(), &state, StateKind::GradientSum).unwrap_err();
    assert!(none.to_string().contains("no GradientSum of a factor"), "{none}");
    let other = Lora { rank: 5, ..lora() };
    let none = Adapter::of_state(&other, &state, StateKind::Master).unwrap_err();
    assert!(none.to_string().contains("rank 5"), "{none}");
}

/// A folder of PEFT says the same as a file of ours, in the shapes of PEFT's layers.
#[test]
fn peft_folders_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own.safetensors");
    write(&own, &factors(), &[("rank", "2"), ("alpha", "0.5")]);
    let own = Adapter::open(&own, None).unwrap();
    let path = folder.path().join(PEFT_WEIGHTS);
    let params = model().params().unwrap();
    own.write_peft_weights(&path, &params).unwrap();
    let config = folder.path().join(PEFT_CONFIG);
    fs::write(&config, own.peft_config().to_string()).unwrap();
    let read = Adapter::open(folder.path(), None).unwrap();
    assert_eq!((read.rank(), read.alpha()), (2, 0.5));
    assert!(read.factors().eq(own.factors()), "the folder holds other factors");
    // The file alone says enough.
    fs::remove_file(&config).unwrap();
    assert_eq!(Adapter::open(&path, None).unwrap().alpha(), 0.5);

    let file = Checkpoint::open(&path).unwrap();
    let mut n_convolutions = 0;
    for (name, weight) in &params {
        let Some(module) = name.strip_suffix(".weight") else { continue };
        let shape = |factor: &str| {
            let name = format!("base_model.model.{module}.{factor}.weight");
            file.tensor(&name).ok().map(|view| view.shape)
        };
        let Some(first) = shape("lora_A") else { continue };
        let ones = vec![1; weight.len() - 2];
        assert_eq!(first, [&[2], &weight[1..]].concat(), "{name}");
        assert_eq!(shape("lora_B").unwrap(), [&[weight[0], 2], &ones[..]].concat(), "{name}");
        n_convolutions += usize::from(!ones.is_empty());
    }
    assert_eq!((file.tensors().count(), n_convolutions), (2 * own.factors().len(), 1));
    // Factors of another model have no shapes.
    let other: Vec<_> = params.into_iter().filter(|(name, _)| !name.contains("mlp.fc1")).collect();
    let error = own.write_peft_weights(&path, &other).unwrap_err().to_string();
    assert!(error.contains("which the model does not have"), "{error}");
}

/// Every weight of the tiny model, by checkpoint name.
fn tiny_weights() -> Weights {
    let graph = gradients(&model(), &bucket(), &Options::default()).unwrap().graph;
    let mut weights = given(&graph);
    for (name, tensor) in given(&graph) {
        if let Some(name) = name.strip_prefix("master.") {
            weights.insert(name.into(), tensor);
        }
    }
    Weights(weights)
}

struct Weights(Tensors);

impl runtime::WeightSource for Weights {
    fn tensor(&self, name: &str) -> Result<Option<(ops::TensorType, Cow<'_, [u8]>)>, String> {
        let entry = |tensor: &Tensor| (tensor.ty().clone(), Cow::Owned(tensor.to_bytes()));
        Ok(self.0.get(name).map(entry))
    }
}

/// PEFT's names, shapes of convolutions and configuration say the same as ours.
#[test]
fn peft_folders_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own.safetensors");
    write(&own, &factors(), &STATED);
    let own = Adapter::open(&own, None).unwrap();
    let peft = folder.path().join("peft");
    fs::create_dir(&peft).unwrap();
    let rename = |(name, (shape, values)): (String, (Vec<usize>, Vec<f32>))| {
        let infix = if name.contains("mlp") { ".default.weight" } else { ".weight" };
        let name = format!("base_model.model.{}{infix}", name.strip_suffix(".weight").unwrap());
        let shape = match name.contains("x_embedder") {
            // [rank, channels, 1, height, width] and [out, rank, 1, 1, 1]
            true if name.contains("lora_A") => vec![shape[0], shape[1] / 4, 1, 2, 2],
            true => [&shape[..], &[1, 1, 1]].concat(),
            false => shape,
        };
        (name, (shape, values))
    };
    let tensors: Matrices = factors().into_iter().map(rename).collect();
    write(&peft.join("adapter_model.safetensors"), &tensors, &[("format", "pt")]);
    let configure = |config: &str| fs::write(peft.join("adapter_config.json"), config).unwrap();
    let error = || Adapter::open(&peft, None).unwrap_err().to_string();
    assert!(error().contains("does not say its alpha"), "{}", error());
    let given = Adapter::open(&peft, Some(3.0)).unwrap();
    assert!(given.factors().eq(own.factors()) && given.alpha() == 3.0);

    configure(r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 3, "rank_pattern": {}}"#);
    let read = Adapter::open(&peft, None).unwrap();
    assert!(read.factors().eq(own.factors()) && read.alpha() == 3.0);
    configure(r#"{"r": 2, "lora_alpha": 3, "use_rslora": true}"#);
    let read = Adapter::open(&peft.join("adapter_model.safetensors"), None).unwrap();
    assert_eq!(read.alpha(), 3.0 * 2f64.sqrt());
    for (config, message) in [
        (r#"{"r": 2, "lora_alpha": 3, "use_dora": true}"#, "`use_dora` is set"),
        (r#"{"r": 2, "lora_alpha": 3, "alpha_pattern": {"a": 1}}"#, "`alpha_pattern` is set"),
        (r#"{"r": 2, "lora_alpha": 3, "peft_type": "LOHA"}"#, "expected \"LORA\""),
        (r#"{"r": 4, "lora_alpha": 3}"#, "has rank 2, expected 4"),
        (r#"{"r": 2, "lora_alpha": 0}"#, "alpha is 0, expected above 0"),
        (r#"{"lora_alpha": 3}"#, "`r` is missing"),
        ("{", "adapter_config.json: "),
    ] {
        configure(config);
        assert!(error().contains(message), "{message:?} is not in {:?}", error());
    }
}

#[test]
fn what_is_no_adaptation_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let params = model().params().unwrap();
    let name = "blocks.0.attn.qkv.lora_A.weight";
    let partner = "blocks.0.attn.qkv.lora_B.weight";
    let check = |change: &dyn Fn(&mut Matrices), message: &str| {
        let mut tensors = factors();
        change(&mut tensors);
        write(&path, &tensors, &STATED);
        let error = Adapter::open(&path, None).and_then(|adapter| adapter.check(&params));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(message), "{message:?} is not in {error:?}");
    };
    let shape = factors()[name].0.clone();
    let inner = shape[1];
    check(&|t| drop(t.remove(name)), "`blocks.0.attn.qkv.weight` has no lora_A");
    check(&|t| drop(t.remove(partner)), "`blocks.0.attn.qkv.weight` has no lora_B");
    check(&|t| t.get_mut(name).unwrap().1[3] = f32::NAN, "element 3 is NaN");
    check(
        &|t| drop(t.insert(name.into(), (vec![3, inner], vec![0.5; 3 * inner]))),
        "of rank 3 and 2",
    );
    check(
        &|t| drop(t.insert(name.into(), (vec![2, inner + 1], vec![0.5; 2 * inner + 2]))),
        "the weight is [",
    );
    check(&|t| drop(t.insert(name.into(), (vec![6], vec![0.5; 6]))), "expected [rank, in]");
    check(&|t| drop(t.insert("extra".into(), (vec![1], vec![0.5]))), "`extra` is no factor");
    check(
        &|t| {
            let twice = t[name].clone();
            t.insert(format!("base_model.model.{name}"), twice);
        },
        "under two names",
    );
    check(
        &|t| {
            for name in [name, partner] {
                let moved = t.remove(name).unwrap();
                t.insert(name.replace("qkv", "qvk"), moved);
            }
        },
        "does not have; did it mean `blocks.0.attn.qkv.weight`?",
    );
    check(&Matrices::clear, "no tensors");
    write(&path, &factors(), &[("rank", "two")]);
    let error = Adapter::open(&path, None).unwrap_err().to_string();
    assert!(error.contains("metadata `rank` is `two`"), "{error}");
    assert!(Adapter::open(&folder.path().join("none"), None).is_err());
}

/// Every weight is there in its own type; what is adapted has the sum, rounded once.
#[test]
fn merged_checkpoints_keep_types_and_everything_else() {
    let folder = tempfile::tempdir().unwrap();
    let [base, path, out] = ["base", "adapter", "merged"].map(|name| folder.path().join(name));
    let weights = tiny_weights().0;
    let params = model().params().unwrap();
    let mut tensors = BTreeMap::new();
    for (i, (name, shape)) in params.iter().enumerate() {
        let (dtype, bytes) = match i % 2 {
            0 => (DType::F32, weights[name].to_bytes()),
            _ => {
                let ty = weights[name].ty().with_dtype(ops::DType::Bf16);
                let values = weights[name].as_floats().to_vec();
                (DType::BF16, Tensor::floats(ty, values).to_bytes())
            }
        };
        let view = TensorView { dtype, shape: shape.clone(), bytes: Cow::Owned(bytes) };
        tensors.insert(name.clone(), view);
    }
    write_safetensors(&base, &tensors, &BTreeMap::new()).unwrap();
    write(&path, &factors(), &STATED);
    let adapter = Adapter::open(&path, None).unwrap();
    let fitted = fit(Checkpoint::open(&base).unwrap(), &params).unwrap();
    adapter.write_merged(&fitted, &out).unwrap();

    let merged = Checkpoint::open(&out).unwrap();
    assert_eq!(merged.len(), params.len());
    let mut n_changed = 0;
    for (name, _) in &params {
        let (before, after) = (&tensors[name], merged.tensor(name).unwrap());
        assert_eq!((before.dtype, &before.shape), (after.dtype, &after.shape), "{name}");
        let Some((_, factors)) = adapter.factors().find(|(found, _)| found == name) else {
            assert!(before.bytes == after.bytes, "{name} has changed");
            continue;
        };
        n_changed += 1;
        let inner = factors.first.len() / 2;
        let rounding = if before.dtype == DType::BF16 { 2f64.powi(-8) } else { 2f64.powi(-22) };
        let pairs = before.to_f32().unwrap().into_iter().zip(after.to_f32().unwrap());
        for (at, (base, found)) in pairs.enumerate() {
            let (row, column) = (at / inner, at % inner);
            let terms = [0, 1].map(|r| {
                let second = f64::from(factors.second[row * 2 + r]);
                1.5 * second * f64::from(factors.first[r * inner + column])
            });
            let (base, found) = (f64::from(base), f64::from(found));
            let expected = base + terms[0] + terms[1];
            let scale = base.abs() + terms[0].abs() + terms[1].abs();
            assert!((found - expected).abs() <= rounding * scale, "{name} {at}");
        }
    }
    assert_eq!(n_changed, adapter.factors().len());
}
