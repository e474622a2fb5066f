//! Collects launches of plans, compiles their functions, makes the engine.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use compiler::{BufferId, Place, Plan, Work};
use cuda_kernels::{Compiled, Nvrtc, Source, emit};
use engine::{Arg, Blob, Engine, Image, ImageKind, Launch, Port, Program, Space, Step, Weight};
use kernels::cuda::{Base, CudaKernel, Function, Gpu};
use kernels::{Kernel, KernelDef as _};
use ops::{DType, Role, ValueId};

use crate::{Cache, Error};

/// How far a build is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Kernels that have code.
    pub done: usize,
    /// All kernels.
    pub all: usize,
}

/// Collects what plans for one generation of GPUs launch.
#[derive(Debug)]
pub struct Builder {
    gpu: Gpu,
    /// Distinct texts, by position, with how many launches each has.
    sources: Vec<(Source, &'static str, [u32; 3])>,
    /// Positions by text.
    texts: BTreeMap<String, usize>,
    /// Positions by everything a function is compiled for.
    functions: BTreeMap<String, usize>,
    weights: Vec<Weight>,
    weight_at: BTreeMap<(String, DType, Vec<u32>), u32>,
    constants: Vec<Blob>,
    constant_at: BTreeMap<Vec<u8>, u32>,
    programs: Vec<Program>,
}

impl Builder {
    /// A builder for `gpu`.
    pub fn new(gpu: Gpu) -> Builder {
        Builder {
            gpu,
            sources: vec![],
            texts: BTreeMap::new(),
            functions: BTreeMap::new(),
            weights: vec![],
            weight_at: BTreeMap::new(),
            constants: vec![],
            constant_at: BTreeMap::new(),
            programs: vec![],
        }
    }

    /// Adds `plan` as a program called `name`.
    ///
    /// # Errors
    /// [`Error::Target`] and [`Error::NotForGpu`] if the plan is not for this GPU, [`Error::Code`] if a
    /// function cannot be emitted.
    pub fn add(&mut self, name: &str, plan: &Plan) -> Result<(), Error> {
        if plan.target.gpu != Some(self.gpu) {
            return Err(Error::Target {
                program: name.to_owned(),
                found: plan.target.gpu.map_or("a CPU".to_owned(), |gpu| gpu.to_string()),
                expected: self.gpu.to_string(),
            });
        }
        let port = |port: &compiler::Port| Port {
            name: port.name.to_string(),
            ty: port.ty.clone(),
            offset: plan.buffers[port.buffer.index()].offset as u64,
        };
        let mut steps = Vec::with_capacity(plan.steps.len());
        for (index, (step, work)) in plan.steps.iter().zip(plan.works()).enumerate() {
            let Kernel::Cuda(kernel) = &step.kernel else {
                return Err(Error::NotForGpu {
                    program: name.to_owned(),
                    step: index,
                    kernel: step.kernel.def().name().to_owned(),
                });
            };
            steps.push(self.step(plan, step, kernel, &work)?);
        }
        self.programs.push(Program {
            name: name.to_owned(),
            arena_bytes: plan.arena_bytes as u64,
            lower_bound_bytes: plan.lower_bound_bytes as u64,
            inputs: plan.inputs.iter().map(port).collect(),
            outputs: plan.outputs.iter().map(port).collect(),
            steps,
        });
        Ok(())
    }

    fn step(
        &mut self,
        plan: &Plan,
        step: &compiler::Step,
        kernel: &CudaKernel,
        work: &Work,
    ) -> Result<Step, Error> {
        let in_arena = |buffer: BufferId, offset: usize| Arg {
            space: Space::Arena,
            offset: (plan.buffers[buffer.index()].offset + offset) as u64,
        };
        let mut launches = Vec::with_capacity(kernel.launches.len());
        for launch in &kernel.launches {
            let mut args = Vec::with_capacity(launch.args.len());
            for arg in &launch.args {
                args.push(match &arg.base {
                    Base::Operand(operand) => match &step.operands[*operand].place {
                        Place::Buffer(buffer) => in_arena(*buffer, arg.offset),
                        Place::Param { name, ty, packing } => {
                            let axes = kernel.packed.as_ref().filter(|_| packing.is_some());
                            let axes = axes.map_or(vec![], |packed| {
                                packed.axes.iter().map(|&axis| axis as u32).collect()
                            });
                            let weight = self.weight(name, ty, axes);
                            Arg { space: Space::Weight(weight), offset: arg.offset as u64 }
                        }
                        Place::Constant(value) => {
                            let constant = self.constant_of(plan, *value);
                            Arg { space: Space::Constant(constant), offset: arg.offset as u64 }
                        }
                    },
                    Base::Result => in_arena(step.result, arg.offset),
                    Base::Scratch => {
                        let scratch = step.scratch.expect("a kernel with scratch was given some");
                        in_arena(scratch, arg.offset)
                    }
                    Base::Constant(bytes) => {
                        let constant = self.constant(bytes);
                        Arg { space: Space::Constant(constant), offset: arg.offset as u64 }
                    }
                });
            }
            let kernel = self.kernel(&launch.function)? as u32;
            launches.push(Launch { kernel, grid: launch.grid, args });
        }
        Ok(Step {
            label: kernel.name().to_owned(),
            scope: plan.graph.node(step.value).scope.to_string(),
            flops: work.flops(),
            bytes: work.bytes(),
            launches,
        })
    }

    fn kernel(&mut self, function: &Function) -> Result<usize, Error> {
        // Debug output names every field, so it tells functions apart as their code does.
        let key = format!("{function:?}");
        if let Some(&at) = self.functions.get(&key) {
            return Ok(at);
        }
        let source = emit(function, self.gpu)?;
        let block = function.block();
        let text = format!("{block:?} {} {}", source.shared_bytes, source.text);
        let at = *self.texts.entry(text).or_insert_with(|| {
            self.sources.push((source, function.name(), block));
            self.sources.len() - 1
        });
        self.functions.insert(key, at);
        Ok(at)
    }

    fn weight(&mut self, name: &str, ty: &ops::TensorType, axes: Vec<u32>) -> u32 {
        let key = (name.to_owned(), ty.dtype(), axes.clone());
        *self.weight_at.entry(key).or_insert_with(|| {
            let bytes = ty.bytes() as u64;
            self.weights.push(Weight { name: name.to_owned(), ty: ty.clone(), axes, bytes });
            (self.weights.len() - 1) as u32
        })
    }

    fn constant_of(&mut self, plan: &Plan, value: ValueId) -> u32 {
        let Role::Constant(tensor) = &plan.graph.node(value).role else {
            unreachable!("a constant's place names a constant")
        };
        self.constant(&tensor.to_bytes())
    }

    fn constant(&mut self, bytes: &[u8]) -> u32 {
        if let Some(&at) = self.constant_at.get(bytes) {
            return at;
        }
        let at = self.constants.len() as u32;
        self.constants.push(Blob::from(bytes.to_vec()));
        self.constant_at.insert(bytes.to_vec(), at);
        at
    }

    /// Distinct kernels so far.
    pub fn kernels(&self) -> usize {
        self.sources.len()
    }

    /// Compiles every kernel, on `threads` threads, and makes the engine. `model` and `dtype` describe
    /// it; `created_by` is the program's name and version.
    ///
    /// # Errors
    /// [`Error::Code`] if a function does not compile.
    pub fn build(
        self,
        (created_by, model, dtype): (String, String, DType),
        nvrtc: &Nvrtc,
        cache: Option<&Cache>,
        threads: usize,
        on_progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Engine, Error> {
        let all = self.sources.len();
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let compiled: Mutex<Vec<Option<Result<Compiled, cuda_kernels::Error>>>> =
            Mutex::new((0..all).map(|_| None).collect());
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some((source, ..)) = self.sources.get(at) else { break };
                let kept = cache.and_then(|cache| cache.get(source, self.gpu));
                let result = kept.map_or_else(
                    || {
                        let result = nvrtc.compile(source, self.gpu);
                        if let (Ok(compiled), Some(cache)) = (&result, cache) {
                            cache.put(source, self.gpu, compiled);
                        }
                        result
                    },
                    Ok,
                );
                compiled.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(result);
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                on_progress(Progress { done, all });
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, all.max(1)) {
                scope.spawn(work);
            }
        });
        let compiled = compiled.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut kernels = Vec::with_capacity(all);
        for ((source, name, block), compiled) in self.sources.into_iter().zip(compiled) {
            let compiled = compiled.expect("every kernel had its turn")?;
            kernels.push(kernel(source, name, block, compiled, self.gpu));
        }
        Ok(Engine {
            created_by,
            model,
            dtype,
            kernels,
            weights: self.weights,
            constants: self.constants,
            programs: self.programs,
        })
    }
}

fn kernel(
    source: Source,
    name: &str,
    block: [u32; 3],
    compiled: Compiled,
    gpu: Gpu,
) -> engine::Kernel {
    let arch = gpu.code_name().parse().expect("generations have names of architectures");
    let image = |kind, registers, spill_bytes, bytes: Vec<u8>| Image {
        arch,
        kind,
        registers,
        spill_bytes,
        bytes: Blob::from(bytes),
    };
    let resources = compiled.resources;
    engine::Kernel {
        name: name.to_owned(),
        entry: source.entry,
        block,
        shared_bytes: source.shared_bytes,
        n_pointers: source.pointers as u32,
        info: source.info,
        images: vec![
            image(ImageKind::Ptx, 0, 0, compiled.ptx.into_bytes()),
            image(
                ImageKind::Cubin,
                resources.registers,
                resources.spill_bytes + resources.stack_bytes,
                compiled.cubin,
            ),
        ],
    }
}
