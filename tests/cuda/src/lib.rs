//! Runs graphs on the emulated CUDA device: compiled for a GPU as users do, each function as the PTX
//! that NVRTC makes of it.

pub mod attention_sites;
pub mod case;
pub mod lt_model;
pub mod plain_sites;
pub mod row_sites;
mod run;
pub mod sites;
pub mod speed;
pub mod table;
pub mod tiles;
pub mod watched;

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use compiler::Plan;
use cuda_kernels::{Compiled, Nvrtc, Source};
use emulator::{Arrival, Module, Options, Order};
use kernels::cuda::{Function, Gpu};
use kernels::{Isa, Kernel, Target};
use ops::{Graph, Rounding, Tensor};
use tests::{Rng, relative_l2};

pub use run::{Ran, Run, Stopped};

/// The compiler, found once.
static NVRTC: LazyLock<Nvrtc> =
    LazyLock::new(|| Nvrtc::find().unwrap_or_else(|error| panic!("{error}")));

/// Compiled functions by text and generation: tests of one file share many.
static COMPILED: Mutex<BTreeMap<(String, Gpu), Compiled>> = Mutex::new(BTreeMap::new());

/// The compiler of all tests.
pub fn nvrtc() -> &'static Nvrtc {
    &NVRTC
}

/// How warps take turns, and when asynchronous copies land.
pub const ORDERS: [(Order, Arrival); 3] = [
    (Order::Forward, Arrival::Late),
    (Order::Reverse, Arrival::Early),
    (Order::Random(7), Arrival::Late),
];

/// A target for `gpu`.
pub fn target(gpu: Gpu) -> Target {
    Target { gpu: Some(gpu), ..tests::compiled::target(Isa::PORTABLE, 1) }
}

/// A function's text and machine code.
pub fn compile(function: &Function, gpu: Gpu) -> (Source, Compiled) {
    let source = cuda_kernels::emit(function, gpu).unwrap_or_else(|error| panic!("{error}"));
    let key = (source.text.clone(), gpu);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let compiled = compiled.entry(key).or_insert_with(|| {
        NVRTC.compile(&source, gpu).unwrap_or_else(|error| panic!("{error}\n{}", source.text))
    });
    (source, compiled.clone())
}

/// The outputs of `graph`, given its inputs and parameters by name, in every order of [`ORDERS`],
/// which must not differ in a bit.
pub fn run(graph: &Graph, given: &BTreeMap<String, Tensor>, gpu: Gpu) -> Vec<Tensor> {
    let plan = compiler::compile(graph.clone(), &target(gpu))
        .unwrap_or_else(|error| panic!("graph @{}: {error}", graph.name));
    run_orders(&plan, given, gpu)
}

/// The outputs of `plan` in every order of [`ORDERS`], which must not differ in a bit.
pub fn run_orders(plan: &Plan, given: &BTreeMap<String, Tensor>, gpu: Gpu) -> Vec<Tensor> {
    let mut found: Option<Vec<Tensor>> = None;
    for (order, arrival) in ORDERS {
        let outputs = run_plan(plan, given, gpu, order, arrival);
        if let Some(found) = &found {
            let name = &plan.graph.name;
            assert!(*found == outputs, "@{name}: results depend on the order {order:?}");
        }
        found = Some(outputs);
    }
    found.expect("there are orders")
}

/// The outputs of `plan` in one order.
pub fn run_plan(
    plan: &Plan,
    given: &BTreeMap<String, Tensor>,
    gpu: Gpu,
    order: Order,
    arrival: Arrival,
) -> Vec<Tensor> {
    let options = Options { order, arrival, checks_block_races: true, ..Options::default() };
    let run = Run { plan, given, gpu, options: &options };
    let ran = run.run(|launch, _| Module::parse(&compile(&launch.function, gpu).1.ptx));
    match ran {
        Ok(ran) => {
            let outputs = ran.outputs.into_iter();
            outputs.map(|output| output.expect("all of an output is written")).collect()
        }
        Err(Stopped { launch, error }) => {
            let (source, _) = compile(&launch.function, gpu);
            panic!("@{}: {error}\n{}\n{:?}", plan.graph.name, source.text, launch.function)
        }
    }
}

/// Runs a site, and panics if a result is further from the interpreter's than the site says.
pub fn check(site: &sites::Site, gpu: Gpu) {
    let error = distance(&site.graph, &site.given(), gpu);
    assert!(error <= site.limit, "{}: {error}", site.name);
}

/// Inputs and parameters of `graph` within `range`; `name` seeds them.
pub fn given(name: &str, graph: &Graph, range: (f64, f64)) -> BTreeMap<String, Tensor> {
    let mut rng = Rng::named(name);
    let declared = graph.inputs().chain(graph.params());
    declared.map(|(value, name)| (name.to_string(), rng.tensor(graph.ty(value), range))).collect()
}

/// Names of the functions that `graph` is launched as, compiled for `gpu`; none of them keeps registers
/// in memory.
pub fn functions(graph: &Graph, gpu: Gpu) -> Vec<&'static str> {
    let plan = compiler::compile(graph.clone(), &target(gpu))
        .unwrap_or_else(|error| panic!("graph @{}: {error}", graph.name));
    let mut names = vec![];
    for step in &plan.steps {
        let Kernel::Cuda(kernel) = &step.kernel else { panic!("a CPU kernel in a GPU's plan") };
        for launch in &kernel.launches {
            let resources = compile(&launch.function, gpu).1.resources;
            assert_eq!((resources.spill_bytes, resources.stack_bytes), (0, 0), "{launch:?}");
            names.push(launch.function.name());
        }
    }
    names
}

/// How far the outputs of `graph` on the emulated device are from what the interpreter makes of them.
pub fn distance(graph: &Graph, given: &BTreeMap<String, Tensor>, gpu: Gpu) -> f64 {
    let (found, expected) = (run(graph, given, gpu), expected(graph, given));
    let distances = found.iter().zip(&expected);
    distances.map(|(a, b)| relative_l2(a.as_floats(), b.as_floats())).fold(0.0, f64::max)
}

/// What the interpreter makes of the same graph.
pub fn expected(graph: &Graph, given: &BTreeMap<String, Tensor>) -> Vec<Tensor> {
    ops::eval(graph, given, Rounding::Exact).unwrap_or_else(|error| panic!("{error}"))
}
