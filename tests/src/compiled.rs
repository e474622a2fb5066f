//! Runs graphs as users do: compiled for this machine, on the runtime.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use compiler::Plan;
use kernels::{Isa, Pool, Target};
use ops::{DType, Graph, Tensor, TensorType};
use runtime::{Session, WeightSource, WeightStore};

/// A target with the caches of a common core.
pub fn target(isa: Isa, threads: usize) -> Target {
    Target {
        isa,
        threads,
        l1_bytes: 48 << 10,
        l2_bytes: 1 << 20,
        l3_bytes: 32 << 20,
        gpu: None,
        tiles: None,
    }
}

/// Tensors by name, as weights.
#[derive(Debug)]
pub struct Table(pub BTreeMap<String, Tensor>);

impl WeightSource for Table {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let entry = |tensor: &Tensor| (tensor.ty().clone(), Cow::Owned(tensor.to_bytes()));
        Ok(self.0.get(name).map(entry))
    }
}

/// The outputs of `graph`, given its inputs and parameters by name.
pub fn run(graph: &Graph, given: &BTreeMap<String, Tensor>, target: &Target) -> Vec<Tensor> {
    let plan = compiler::compile(graph.clone(), target)
        .unwrap_or_else(|error| panic!("graph @{}: {error}", graph.name));
    run_plan(plan, given)
}

/// The outputs of `plan`, given its inputs and parameters by name.
pub fn run_plan(plan: Plan, given: &BTreeMap<String, Tensor>) -> Vec<Tensor> {
    let name = plan.graph.name.clone();
    let weights = WeightStore::new(Table(given.clone()));
    let pool = Arc::new(Pool::new(plan.target.threads).expect("threads start"));
    let mut session = Session::new(Arc::new(plan), &weights, pool)
        .unwrap_or_else(|error| panic!("graph @{name}: {error}"));
    let inputs: Vec<(String, Vec<u8>)> = session
        .plan()
        .inputs
        .iter()
        .map(|port| (port.name.to_string(), given[&*port.name].to_bytes()))
        .collect();
    let inputs: Vec<(&str, &[u8])> =
        inputs.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    session.run(&inputs).unwrap_or_else(|error| panic!("graph @{name}: {error}"));
    let plan = session.plan();
    plan.outputs
        .iter()
        .enumerate()
        .map(|(i, port)| {
            Tensor::from_bytes(port.ty.clone(), session.output(i)).expect("ports have their type")
        })
        .collect()
}

/// The executor of the best instruction set of this machine, 2 threads.
pub fn on_this_machine(graph: &Graph, given: &BTreeMap<String, Tensor>) -> Vec<Tensor> {
    // Sessions take inputs in the graph's types, as callers store them.
    let given =
        given.iter().map(|(name, tensor)| (name.clone(), typed(graph, name, tensor))).collect();
    run(graph, &given, &target(Isa::detect(), 2))
}

/// Masks of goldens are i64 where graphs take bool.
fn typed(graph: &Graph, name: &str, tensor: &Tensor) -> Tensor {
    let declared =
        graph.inputs().find(|(_, input)| *input == name).map(|(value, _)| graph.ty(value));
    match declared {
        Some(ty) if ty.dtype() == DType::Bool && !tensor.ty().dtype().is_float() => {
            Tensor::ints(ty.clone(), tensor.as_ints().iter().map(|&x| i64::from(x != 0)).collect())
        }
        _ => tensor.clone(),
    }
}
