//! States on disk: a run that goes on from one is the run that never stopped; what is damaged is refused.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "not every suite needs every helper")]

mod tiny;

use std::borrow::Cow;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use kernels::{Isa, Pool, Target};
use ops::{TensorType, row_major_strides};
use runtime::{WeightSource, WeightStore};
use tiny::{Tensors, bucket, given, model};
use training::{Keep, Machine, Options, Snapshots, State, Trainer, training_step};

struct Weights(Tensors);

impl WeightSource for Weights {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let found = self.0.get(name).or_else(|| self.0.get(&format!("master.{name}")));
        Ok(found.map(|tensor| (tensor.ty().clone(), Cow::Owned(tensor.to_bytes()))))
    }
}

fn options() -> Options {
    Options { ema_decay: Some(0.9), ..Options::default() }
}

fn weights() -> Weights {
    Weights(given(&training_step(&model(), &bucket(), &options()).unwrap().graph))
}

fn fresh() -> State {
    State::new(&model(), &options(), &weights()).unwrap()
}

/// Makes `n` updates from `state` on, with other inputs in each.
fn train(state: State, n: usize) -> State {
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
    let store = WeightStore::new(weights());
    let mut trainer = Trainer::new(model(), options(), state, store, machine).unwrap();
    let step = trainer.compile(&bucket()).unwrap();
    let graph = training_step(&model(), &bucket(), &options()).unwrap().graph;
    let mut inputs = given(&graph);
    let names: Vec<&str> = graph.inputs().map(|(_, name)| name).collect();
    inputs.retain(|name, _| {
        names.contains(&name.as_str()) && !name.contains('.') && name != "optimizer"
    });
    for _ in 0..n {
        let number = trainer.state().step();
        let bytes: Vec<(&str, Vec<u8>)> = inputs
            .iter()
            .map(|(name, tensor)| {
                let mut bytes = tensor.to_bytes();
                // Elements move round with the number of the update.
                if tensor.ty().dtype().is_float() && tensor.ty().rank() > 1 {
                    let row = tensor.ty().dtype().size() * row_major_strides(tensor.shape())[0];
                    bytes.rotate_left(row / 4 / 4 * 4 * number as usize % row);
                }
                (name.as_str(), bytes)
            })
            .collect();
        let batch: Vec<(&str, &[u8])> = bytes.iter().map(|(name, b)| (*name, &b[..])).collect();
        trainer.update(&[(step, &batch[..])], 1e-3).unwrap();
    }
    trainer.state().clone()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_run_goes_on_as_if_it_had_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(folder.path(), Keep { last: 2, every: 0 }).unwrap();
    assert_eq!(snapshots.latest().unwrap(), None);
    let uninterrupted = train(fresh(), 4);
    let half = train(fresh(), 2);
    assert!(half != uninterrupted && half.step() == 2);
    let path = snapshots.save(&half, "{\"row\": 17}").unwrap();
    assert_eq!(snapshots.latest().unwrap(), Some(path.clone()));
    let mut state = fresh();
    assert_eq!(Snapshots::load(&path, &mut state).unwrap(), "{\"row\": 17}");
    assert!(state == half);
    assert!(train(state, 2) == uninterrupted);
}

#[test]
fn the_last_and_every_so_many_stay() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(folder.path(), Keep { last: 2, every: 3 }).unwrap();
    let mut state = fresh();
    let mut saved = vec![];
    for step in 0..8 {
        saved.push(state.clone());
        snapshots.save(&state, "").unwrap();
        if step < 7 {
            state = train(state, 1);
        }
    }
    let file = |step: usize| format!("step-{step:08}.safetensors");
    assert_eq!(names(folder.path()), ["latest".into(), file(0), file(3), file(6), file(7)]);
    // A run that goes on from an older one lets go of what came after it.
    let mut older = fresh();
    Snapshots::load(&folder.path().join(file(3)), &mut older).unwrap();
    assert!(older == saved[3]);
    snapshots.save(&train(older, 1), "").unwrap();
    assert_eq!(names(folder.path()), ["latest".into(), file(0), file(3), file(4)]);
}

#[test]
fn what_cannot_be_written_leaves_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(folder.path(), Keep { last: 1, every: 0 }).unwrap();
    let first = train(fresh(), 1);
    let path = snapshots.save(&first, "first").unwrap();
    // A folder is where the next file would go.
    fs::create_dir(folder.path().join("step-00000002.safetensors")).unwrap();
    let message = snapshots.save(&train(first.clone(), 1), "second").unwrap_err().to_string();
    assert!(message.contains("step-00000002"), "{message}");
    assert_eq!(snapshots.latest().unwrap(), Some(path.clone()));
    let mut state = fresh();
    assert_eq!(Snapshots::load(&path, &mut state).unwrap(), "first");
    assert!(state == first);
    assert_eq!(names(folder.path()).len(), 3, "nothing half-written");
}

#[test]
fn damaged_and_other_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(folder.path(), Keep { last: 1, every: 0 }).unwrap();
    let path = snapshots.save(&train(fresh(), 1), "about").unwrap();
    let whole = fs::read(&path).unwrap();
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&path, bytes).unwrap();
        let before = fresh();
        let mut state = before.clone();
        let error = Snapshots::load(&path, &mut state).err();
        let message = error.unwrap_or_else(|| panic!("{what} is read")).to_string();
        assert!(message.contains("step-00000001"), "{what}: {message}");
        assert!(state == before, "{what}");
    };
    for at in (8..whole.len()).step_by(whole.len() / 61) {
        let mut bytes = whole.clone();
        // White space of the header may change: no byte of it means something else then.
        bytes[at] ^= 0x10;
        refused(&bytes, &format!("byte {at} changed"));
    }
    for len in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        refused(&whole[..len], &format!("{len} bytes"));
    }
    fs::write(&path, &whole).unwrap();
    let other = Options { ema_decay: None, ..options() };
    let mut state = State::new(&model(), &other, &weights()).unwrap();
    let message = Snapshots::load(&path, &mut state).unwrap_err().to_string();
    assert!(message.contains("not trained"), "{message}");
    fs::write(folder.path().join("latest"), "step-00000009.safetensors\n").unwrap();
    let message = snapshots.latest().unwrap_err().to_string();
    assert!(message.contains("step-00000009"), "{message}");
    let message =
        Snapshots::new(folder.path(), Keep { last: 0, every: 1 }).unwrap_err().to_string();
    assert!(message.contains("at least 1"), "{message}");
}
