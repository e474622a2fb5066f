//! Runs graphs on the emulated CUDA device: compiled for a GPU as users do, each function as the PTX
//! that NVRTC makes of it.

pub mod attention_sites;
pub mod case;
pub mod row_sites;
pub mod sites;
pub mod speed;

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use compiler::{Place, Plan};
use cuda_kernels::{Compiled, Nvrtc, Source};
use emulator::{Arrival, Device, Launch, Module, Options, Order};
use kernels::cuda::{Base, Function, Gpu};
use kernels::{Isa, Kernel, KernelDef as _, Pool, Target};
use ops::{Graph, Role, Rounding, Tensor};
use tests::{Rng, relative_l2};

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
    let mut found: Option<Vec<Tensor>> = None;
    for (order, arrival) in ORDERS {
        let outputs = run_plan(&plan, given, gpu, order, arrival);
        if let Some(found) = &found {
            assert!(*found == outputs, "@{}: results depend on the order {order:?}", graph.name);
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
    let mut device = Device::new();
    let options = Options { order, arrival, checks_block_races: true, ..Options::default() };
    let arena = alloc(&mut device, plan.arena_bytes);
    let at = |buffer: compiler::BufferId| arena + plan.buffers[buffer.index()].offset as u64;
    for port in &plan.inputs {
        let bytes = given[&*port.name].to_bytes();
        device.upload(at(port.buffer), &bytes).expect("inputs fit their buffers");
    }
    for step in &plan.steps {
        let Kernel::Cuda(kernel) = &step.kernel else { panic!("a CPU kernel in a GPU's plan") };
        let operands: Vec<u64> = step
            .operands
            .iter()
            .enumerate()
            .map(|(position, operand)| match &operand.place {
                Place::Buffer(buffer) => at(*buffer),
                Place::Param { name, packing, .. } => {
                    let dense = given[&**name].to_bytes();
                    let bytes = match packing {
                        None => dense,
                        Some(packing) => {
                            let mut packed = vec![0; packing.bytes];
                            let pool = Pool::new(1).expect("one thread is this one");
                            kernel.pack(position, &dense, &mut packed, &pool);
                            packed
                        }
                    };
                    upload(&mut device, &bytes)
                }
                Place::Constant(value) => {
                    let Role::Constant(tensor) = &plan.graph.node(*value).role else {
                        panic!("{value} is no constant")
                    };
                    upload(&mut device, &tensor.to_bytes())
                }
            })
            .collect();
        for launch in &kernel.launches {
            let (source, compiled) = compile(&launch.function, gpu);
            let module = Module::parse(&compiled.ptx).unwrap_or_else(|error| panic!("{error}"));
            let program = device.load(&module).unwrap_or_else(|error| panic!("{error}"));
            let mut params: Vec<Vec<u8>> = launch
                .args
                .iter()
                .map(|arg| {
                    let base = match &arg.base {
                        Base::Operand(operand) => operands[*operand],
                        Base::Result => at(step.result),
                        Base::Scratch => at(step.scratch.expect("a kernel with scratch has some")),
                        Base::Constant(bytes) => upload(&mut device, bytes),
                    };
                    (base + arg.offset as u64).to_le_bytes().to_vec()
                })
                .collect();
            if !source.info.is_empty() {
                params.push(source.info.iter().flat_map(|word| word.to_le_bytes()).collect());
            }
            let params: Vec<&[u8]> = params.iter().map(Vec::as_slice).collect();
            let what = Launch {
                grid: launch.grid,
                block: launch.function.block(),
                shared_bytes: source.shared_bytes,
                params: &params,
            };
            device.launch(&program, &source.entry, &what, &options).unwrap_or_else(|error| {
                panic!("@{}: {error}\n{}\n{:?}", plan.graph.name, source.text, launch.function)
            });
        }
    }
    plan.outputs
        .iter()
        .map(|port| {
            let mut bytes = vec![0; port.ty.bytes()];
            let from = at(port.buffer);
            assert_eq!(
                device.first_unwritten(from, bytes.len() as u64),
                None,
                "output is not written"
            );
            device.download(from, &mut bytes).expect("outputs lie in the arena");
            Tensor::from_bytes(port.ty.clone(), &bytes).expect("ports have their type")
        })
        .collect()
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

fn alloc(device: &mut Device, bytes: usize) -> u64 {
    device.alloc(bytes.max(1) as u64).expect("the emulated device has room")
}

fn upload(device: &mut Device, bytes: &[u8]) -> u64 {
    let address = alloc(device, bytes.len());
    device.upload(address, bytes).expect("an allocation takes its bytes");
    address
}
