//! A plan on the emulated device, launch by launch, with modules that a test may change.

use std::collections::BTreeMap;

use compiler::{BufferId, Place, Plan};
use emulator::{Device, Error, Launch, Module, Options, Stats};
use kernels::cuda::{self, Base, Gpu};
use kernels::{Kernel, KernelDef as _, Pool};
use ops::{Role, Tensor};

use crate::compile;

/// A plan and what it is given.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The plan, all of whose kernels are those of CUDA devices.
    pub plan: &'a Plan,
    /// Inputs and parameters by name.
    pub given: &'a BTreeMap<String, Tensor>,
    /// What it was compiled for.
    pub gpu: Gpu,
    /// How the device runs.
    pub options: &'a Options,
}

/// What a run made.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Outputs of the plan; what nothing has written is `None`.
    pub outputs: Vec<Option<Tensor>>,
    /// What each launch did.
    pub stats: Vec<Stats>,
}

/// A launch that did not end.
#[derive(Debug)]
pub struct Stopped<'a> {
    /// Which.
    pub launch: &'a cuda::Launch,
    /// Why.
    pub error: Error,
}

impl<'a> Run<'a> {
    /// Runs the plan; `module_of` gives the module of a launch, which has a number among those of the plan.
    pub fn run(
        &self,
        module_of: impl Fn(&cuda::Launch, usize) -> Result<Module, Error>,
    ) -> Result<Ran, Stopped<'a>> {
        let mut device = Device::new();
        let Run { plan, given, gpu, options } = *self;
        let mut stats = vec![];
        let arena = alloc(&mut device, plan.arena_bytes);
        let at = |buffer: BufferId| arena + plan.buffers[buffer.index()].offset as u64;
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
                let (source, _) = compile(&launch.function, gpu);
                let stopped = |error| Stopped { launch, error };
                let module = module_of(launch, stats.len()).map_err(stopped)?;
                let program = device.load(&module).map_err(stopped)?;
                let mut params: Vec<Vec<u8>> = launch
                    .args
                    .iter()
                    .map(|arg| {
                        let base = match &arg.base {
                            Base::Operand(operand) => operands[*operand],
                            Base::Result => at(step.result),
                            Base::Scratch => {
                                at(step.scratch.expect("a kernel with scratch has some"))
                            }
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
                let ran = device.launch(&program, &source.entry, &what, options);
                stats.push(ran.map_err(stopped)?);
            }
        }
        let outputs = plan
            .outputs
            .iter()
            .map(|port| {
                let mut bytes = vec![0; port.ty.bytes()];
                let from = at(port.buffer);
                let is_written = device.first_unwritten(from, bytes.len() as u64).is_none();
                device.download(from, &mut bytes).expect("outputs lie in the arena");
                is_written.then(|| {
                    Tensor::from_bytes(port.ty.clone(), &bytes).expect("ports have their type")
                })
            })
            .collect();
        Ok(Ran { outputs, stats })
    }
}

fn alloc(device: &mut Device, bytes: usize) -> u64 {
    device.alloc(bytes.max(1) as u64).expect("the emulated device has room")
}

fn upload(device: &mut Device, bytes: &[u8]) -> u64 {
    let address = alloc(device, bytes.len());
    device.upload(address, bytes).expect("an allocation takes its bytes");
    address
}
