//! Whole models in bf16 from engine files, on the emulated device: no further from f32 than twice what
//! upstream's own bf16 is.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use aot::Builder;
use cuda::{Emulated, Session};
use cuda_tests::table::Table;
use engine::Engine;
use kernels::cuda::Gpu;
use ops::{DType, Graph, Tensor};
use runtime::WeightStore;
use tests::golden::{Report, relative_l2};
use tests::model_cases::half_cases;

/// The first output of `graph` from an engine file on the emulated device.
fn run(graph: &Graph, given: &BTreeMap<String, Tensor>, gpu: Gpu) -> Tensor {
    let plan = compiler::compile(graph.clone(), &cuda_tests::target(gpu)).unwrap();
    let mut builder = Builder::new();
    builder.add(&graph.name, &plan).unwrap();
    let about = ("tests".to_owned(), graph.name.clone(), DType::Bf16);
    let engine = builder.build(about, cuda_tests::nvrtc(), None, 2, &|_| {}).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.engine");
    engine.save(&path).unwrap();

    let engine = Arc::new(Engine::open(&path).unwrap());
    let threads = NonZeroUsize::new(2).unwrap();
    let options = emulator::Options { threads, ..emulator::Options::default() };
    let device = Emulated::new(gpu.code_name().parse().unwrap(), options);
    let store = WeightStore::new(Table(given.clone()));
    let mut session = Session::new(Box::new(device), Arc::clone(&engine), &[], &store).unwrap();
    let program = &engine.programs[0];
    let id = session.find(&program.name).unwrap();
    for port in &program.inputs {
        session.write_input(id, &port.name, &given[&port.name].to_bytes()).unwrap();
    }
    session.run(id).unwrap();
    let port = &program.outputs[0];
    Tensor::from_bytes(port.ty.clone(), &session.read_output(id, &port.name).unwrap()).unwrap()
}

#[test]
fn engines_are_as_close_to_f32_as_upstream() {
    let mut report = Report::default();
    let cases = half_cases();
    // The generation whose code every later one runs, and the one with instructions of its own, in turns.
    for (case, gpu) in cases.iter().zip([Gpu(80), Gpu(90)].into_iter().cycle()) {
        let expected = cuda_tests::expected(&case.wide, &case.typed(&case.wide)).remove(0);
        let found = run(&case.half, &case.typed(&case.half), gpu);
        let limit = 2.0 * case.upstream_error;
        report.check(
            &format!("{} [{gpu}]", case.name),
            "bf16",
            relative_l2(&found, &expected),
            limit,
        );
    }
    print!("{}", report.summary());
    assert!(cases.len() >= 10, "the goldens have {} cases with an error of bf16", cases.len());
    let failures = report.failures();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
