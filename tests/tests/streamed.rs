//! Weights that pass through a ring: the same bits as weights that are held, in the memory that is
//! allowed, and clear errors.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use compiler::Plan;
use kernels::{Isa, Pool};
use models::config::T5;
use models::t5::{self, TextBucket};
use ops::{DType, Graph, Tensor, TensorType};
use runtime::{
    Control, Error, Session, StreamedSession, WeightSource, WeightStore, least_streamed_bytes,
};
use serde_json::json;
use tests::compiled::target;
use tests::random_graph::random_values;

/// Tensors by name; counts reads, and fails on demand.
struct Source {
    tensors: BTreeMap<String, Tensor>,
    n_reads: Arc<AtomicUsize>,
    broken: Arc<Mutex<Option<String>>>,
}

impl WeightSource for Source {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        self.n_reads.fetch_add(1, Ordering::Relaxed);
        if self.broken.lock().expect("no test panics with it").as_deref() == Some(name) {
            return Err("the disk is gone".into());
        }
        let entry = |tensor: &Tensor| (tensor.ty().clone(), Cow::Owned(tensor.to_bytes()));
        Ok(self.tensors.get(name).map(entry))
    }
}

struct Fixture {
    plan: Arc<Plan>,
    weights: WeightStore,
    pool: Arc<Pool>,
    inputs: Vec<(String, Vec<u8>)>,
    n_reads: Arc<AtomicUsize>,
    broken: Arc<Mutex<Option<String>>>,
}

/// A T5 encoder of six layers.
fn graph() -> Graph {
    let config = T5::from_json(&json!({
        "d_model": 192, "d_kv": 32, "num_heads": 6, "d_ff": 512, "num_layers": 6,
        "vocab_size": 50, "feed_forward_proj": "gated-gelu",
    }));
    let bucket = TextBucket { dtype: DType::F32, rows: 1, tokens: 9, mask: true };
    t5::graph(&config.expect("the configuration is valid"), &bucket)
        .expect("the configuration is valid")
}

fn fixture() -> Fixture {
    let graph = graph();
    let values = random_values(&graph, 5);
    let plan =
        compiler::compile(graph, &target(Isa::detect(), 2)).expect("every model has kernels");
    let inputs = plan.inputs.iter();
    let inputs =
        inputs.map(|port| (port.name.to_string(), values[&*port.name].to_bytes())).collect();
    let (n_reads, broken) = <(Arc<AtomicUsize>, Arc<Mutex<Option<String>>>)>::default();
    let source =
        Source { tensors: values, n_reads: Arc::clone(&n_reads), broken: Arc::clone(&broken) };
    Fixture {
        pool: Arc::new(Pool::new(2).expect("threads start")),
        plan: Arc::new(plan),
        weights: WeightStore::new(source),
        inputs,
        n_reads,
        broken,
    }
}

impl Fixture {
    fn inputs(&self) -> Vec<(&str, &[u8])> {
        self.inputs.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect()
    }

    fn streamed(&self, memory: usize) -> Result<StreamedSession<'_>, Error> {
        StreamedSession::new(Arc::clone(&self.plan), &self.weights, Arc::clone(&self.pool), memory)
    }
}

#[test]
fn streamed_weights_give_the_same_bits_in_less_memory() {
    let fixture = fixture();
    let least = least_streamed_bytes(&fixture.plan, Some(&fixture.weights));
    let all = fixture.plan.held_bytes();
    assert!(least < all / 3, "{least} of {all}");
    let (plan, pool) = (Arc::clone(&fixture.plan), Arc::clone(&fixture.pool));
    let mut held = Session::new(plan, &fixture.weights, pool).unwrap();
    held.run(&fixture.inputs()).unwrap();
    let expected = held.output(0).to_vec();
    for memory in [least, least + 100_000, all / 2, all + 1_000_000] {
        let mut streamed = fixture.streamed(memory).unwrap();
        assert!(streamed.held_bytes() <= memory, "{} of {memory}", streamed.held_bytes());
        // The second run finds the ring as the first left it.
        for _ in 0..2 {
            streamed.run_with(&fixture.inputs(), Control::default()).unwrap();
            assert!(streamed.session().output(0) == expected, "{memory} bytes");
        }
    }
}

#[test]
fn a_run_takes_inputs_that_were_written_for_it() {
    let fixture = fixture();
    let (plan, pool) = (Arc::clone(&fixture.plan), Arc::clone(&fixture.pool));
    let mut session = Session::new(plan, &fixture.weights, pool).unwrap();
    let refused = |session: &mut Session| {
        let error = session.run_written(Control::default()).unwrap_err();
        assert!(matches!(&error, Error::Input { reason, .. } if reason.contains("write_inputs")));
    };
    refused(&mut session);
    session.run(&fixture.inputs()).unwrap();
    let expected = session.output(0).to_vec();
    // The run may have overwritten them.
    refused(&mut session);
    session.write_inputs(&fixture.inputs()).unwrap();
    session.run_written(Control::default()).unwrap();
    assert!(session.output(0) == expected);
}

#[test]
fn weights_are_read_again_in_every_run_and_small_ones_once() {
    let fixture = fixture();
    let mut streamed =
        fixture.streamed(least_streamed_bytes(&fixture.plan, Some(&fixture.weights))).unwrap();
    let n_held = fixture.n_reads.load(Ordering::Relaxed);
    assert!(n_held > 0, "norms stay");
    let mut per_run = Vec::new();
    for _ in 0..2 {
        let before = fixture.n_reads.load(Ordering::Relaxed);
        streamed.run_with(&fixture.inputs(), Control::default()).unwrap();
        per_run.push(fixture.n_reads.load(Ordering::Relaxed) - before);
    }
    // Seven products a layer.
    assert_eq!(per_run, [42, 42]);
}

#[test]
fn too_little_memory_is_refused_with_what_is_needed() {
    let fixture = fixture();
    let least = least_streamed_bytes(&fixture.plan, Some(&fixture.weights));
    for memory in [0, fixture.plan.arena_bytes, least / 2] {
        match fixture.streamed(memory) {
            Err(Error::TooLittleMemory { needed, .. }) => assert_eq!(needed, least),
            other => panic!("{memory}: {other:?}"),
        }
    }
}

#[test]
fn a_source_that_fails_in_the_middle_ends_the_run_with_its_reason() {
    let fixture = fixture();
    let mut streamed =
        fixture.streamed(least_streamed_bytes(&fixture.plan, Some(&fixture.weights))).unwrap();
    let name = "encoder.block.3.layer.1.DenseReluDense.wo.weight";
    *fixture.broken.lock().unwrap() = Some(name.into());
    let error = streamed.run_with(&fixture.inputs(), Control::default()).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("the disk is gone"), "{error}");
    // The source recovers, and so does the session.
    *fixture.broken.lock().unwrap() = None;
    streamed.run_with(&fixture.inputs(), Control::default()).unwrap();
}
