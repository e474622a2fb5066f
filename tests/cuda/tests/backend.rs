//! A plan on a device as its runner sees it: what passes between host and device, and what is told of a device
//! that records no graph.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use aot::Builder as EngineBuilder;
use compiler::Plan;
use cuda::{Device, EngineBackend};
use cuda_tests::watched::{Graphs, Traffic, Watched};
use emulator::Options;
use engine::Engine;
use kernels::cuda::Gpu;
use ops::{Builder, DType, TensorType};
use runtime::{Backend, Control, Cpu, Runner, WeightSource, WeightStore};

const GPU: Gpu = Gpu(80);
const N: usize = 300;

/// The weight `w`: ones.
struct Ones;

impl WeightSource for Ones {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let bytes = [1f32; N].iter().flat_map(|x| x.to_le_bytes()).collect();
        let ty = TensorType::new(DType::F32, [N]).unwrap();
        Ok((name == "w").then_some((ty, Cow::Owned(bytes))))
    }
}

/// `x` times `scale` plus the weight.
fn plan(target: &kernels::Target) -> Arc<Plan> {
    let mut b = Builder::new("step");
    let ty = |n| TensorType::new(DType::F32, [n]).unwrap();
    let (x, scale, w) = (b.input("x", ty(N)), b.input("scale", ty(1)), b.param("w", ty(N)));
    let scaled = b.mul(x, scale).unwrap();
    let y = b.add(scaled, w).unwrap();
    Arc::new(compiler::compile(b.finish(&[y]), target).unwrap())
}

/// A backend of such devices.
fn backend(plan: &Plan, graphs: Graphs) -> (EngineBackend, Arc<Mutex<Traffic>>) {
    let mut builder = EngineBuilder::new();
    builder.add("step", plan).unwrap();
    let about = ("tests".to_owned(), "step".to_owned(), DType::F32);
    let engine: Engine = builder.build(about, cuda_tests::nvrtc(), None, 1, &|_| {}).unwrap();
    let traffic = Arc::new(Mutex::new(Traffic::default()));
    let watched = Arc::clone(&traffic);
    let open = move || {
        let arch = GPU.code_name().parse().unwrap();
        let device = Watched::new(arch, Options::default(), Arc::clone(&watched));
        Ok(Box::new(device.with_graphs(graphs)) as Box<dyn Device>)
    };
    (EngineBackend::new(Arc::new(engine), Box::new(open)), traffic)
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Five steps, each of which takes the output of the one before; what they come to.
fn steps(runner: &mut dyn Runner, mut after: impl FnMut(usize)) -> Vec<f32> {
    runner.carry(0, "x").unwrap();
    runner.write_input("x", &bytes(&[0.5; N])).unwrap();
    for number in 0..5 {
        runner.write_input("scale", &bytes(&[number as f32])).unwrap();
        runner.run(Control::default()).unwrap();
        after(number);
    }
    runner.output_f32(0).unwrap().to_vec()
}

#[test]
fn latents_stay_on_the_device_and_what_changes_is_uploaded() {
    let on_gpu = plan(&cuda_tests::target(GPU));
    let (backend, traffic) = backend(&on_gpu, Graphs::Recorded);
    let store = WeightStore::new(Ones);
    let mut runner = backend.bind(Arc::clone(&on_gpu), &store, None).unwrap();
    assert_eq!(std::mem::take(&mut traffic.lock().unwrap().uploaded), [4 * N], "the weight");
    let found = steps(&mut *runner, |number| {
        let first: &[usize] = if number == 0 { &[4 * N] } else { &[] };
        let uploaded = [first, &[4]].concat();
        let expected = Traffic { uploaded, n_graphs: 1, ..Traffic::default() };
        assert_eq!(std::mem::take(&mut *traffic.lock().unwrap()), expected, "step {number}");
    });
    assert_eq!(traffic.lock().unwrap().downloaded, [4 * N], "the result");

    let target = tests::compiled::target(kernels::Isa::detect(), 1);
    let cpu = Cpu::new(Arc::new(kernels::Pool::new(1).unwrap()));
    let mut runner = cpu.bind(plan(&target), &store, None).unwrap();
    assert_eq!(steps(&mut *runner, |_| {}), found, "the CPU carries as devices do");
    // Inputs keep their values: one more step with the last scale.
    runner.run(Control::default()).unwrap();
    assert_eq!(runner.output_f32(0).unwrap()[0], 4.0 * found[0] + 1.0);
}

#[test]
fn a_graph_that_cannot_be_recorded_is_told_and_done_without() {
    let plan = plan(&cuda_tests::target(GPU));
    let store = WeightStore::new(Ones);
    let mut found = vec![];
    for graphs in [Graphs::None, Graphs::Failing, Graphs::Recorded] {
        let (backend, traffic) = backend(&plan, graphs);
        let mut runner = backend.bind(Arc::clone(&plan), &store, None).unwrap();
        found.push(steps(&mut *runner, |_| {}));
        let n_graphs = if graphs == Graphs::Recorded { 5 } else { 0 };
        assert_eq!(traffic.lock().unwrap().n_graphs, n_graphs, "{graphs:?}");
        let note = "`step` runs launch by launch, which is slower: no memory for a graph";
        let expected: &[&str] = if graphs == Graphs::Failing { &[note] } else { &[] };
        assert_eq!(backend.take_notes(), expected, "{graphs:?}");
        assert!(backend.take_notes().is_empty(), "it is told once");
    }
    assert!(found[0] == found[1] && found[0] == found[2]);
}

#[test]
fn timed_steps_are_not_recorded() {
    let plan = plan(&cuda_tests::target(GPU));
    let store = WeightStore::new(Ones);
    let (backend, traffic) = backend(&plan, Graphs::Recorded);
    let backend = backend.with_step_times();
    let mut runner = backend.bind(Arc::clone(&plan), &store, None).unwrap();
    let mut done = 0;
    runner.write_input("x", &bytes(&[1.0; N])).unwrap();
    runner.write_input("scale", &bytes(&[1.0])).unwrap();
    let control = Control { on_step: Some(&mut |flops| done = flops), ..Control::default() };
    runner.run(control).unwrap();
    assert_eq!(done, plan.flops(), "a timed run is waited for");
    let [time] = runner.times() else { panic!("the plan has one step") };
    assert!(time.runs == 1 && time.seconds > 0.0);
    let traffic = traffic.lock().unwrap();
    assert_eq!((traffic.n_launches, traffic.n_graphs), (1, 0));
}

#[test]
fn what_cannot_be_carried_is_refused() {
    let on_gpu = plan(&cuda_tests::target(GPU));
    let (backend, _) = backend(&on_gpu, Graphs::None);
    let store = WeightStore::new(Ones);
    let target = tests::compiled::target(kernels::Isa::detect(), 1);
    let cpu = Cpu::new(Arc::new(kernels::Pool::new(1).unwrap()));
    for mut runner in [
        backend.bind(Arc::clone(&on_gpu), &store, None).unwrap(),
        cpu.bind(plan(&target), &store, None).unwrap(),
    ] {
        let mut said = |input| runner.carry(0, input).unwrap_err().to_string();
        let error = said("scale");
        assert!(error.contains("f32[1]") && error.contains("f32[300]"), "{error}");
        assert!(said("y").contains("unknown"), "{}", said("y"));
        let error = runner.run(Control::default()).unwrap_err().to_string();
        assert!(error.contains("input `"), "{error}");
    }
}
