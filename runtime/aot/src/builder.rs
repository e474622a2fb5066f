//! Collects launches of plans, compiles their functions, makes the engine.

use std::collections::BTreeMap;

use compiler::{BufferId, Place, Plan, Work};
use cuda_kernels::{Compiled, Nvrtc};
use engine::{
    Arch, Arg, Blob, Engine, Image, ImageKind, Launch, Matrix, Port, Product, Program, Space, Step,
    Weight,
};
use kernels::cuda::plain::{self, PlainProduct};
use kernels::cuda::{Base, CudaKernel, Gpu, tiles};
use kernels::{Kernel, KernelDef as _};
use ops::{DType, Role, ValueId};

use crate::kernel_set::{Distinct, KernelSet, Progress};
use crate::{Cache, Error};

/// Collects what plans launch, for one generation of GPUs or several.
#[derive(Debug, Default)]
pub struct Builder {
    kernels: KernelSet,
    weights: Vec<Weight>,
    weight_at: BTreeMap<(String, DType, Vec<u32>), u32>,
    constants: Vec<Blob>,
    constant_at: BTreeMap<Vec<u8>, u32>,
    programs: Vec<Program>,
}

impl Builder {
    /// A builder without programs.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Adds `plan` as a program called `name` for the generation that it was made for. A name may be
    /// there once for each.
    ///
    /// # Errors
    /// [`Error::Target`] and [`Error::NotForGpu`] if the plan is not for a GPU, [`Error::Code`] if a
    /// function cannot be emitted.
    pub fn add(&mut self, name: &str, plan: &Plan) -> Result<(), Error> {
        self.add_within(name, plan, None)
    }

    /// As [`Builder::add`]; what a library may use beside the arena and the weights stays within `memory` bytes with
    /// them, if that is given.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn add_within(
        &mut self,
        name: &str,
        plan: &Plan,
        memory: Option<usize>,
    ) -> Result<(), Error> {
        let gpu = plan.target.gpu.ok_or_else(|| Error::Target { program: name.to_owned() })?;
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
            steps.push(self.step(plan, gpu, step, kernel, &work)?);
        }
        let mut launches = steps.iter().flat_map(|step| &step.launches);
        let has_products = launches.any(|launch| launch.product.is_some());
        let most = if has_products { workspace_bytes(gpu) } else { 0 };
        let free = memory.map_or(usize::MAX, |memory| memory.saturating_sub(plan.held_bytes()));
        self.programs.push(Program {
            name: name.to_owned(),
            target: arch(gpu),
            arena_bytes: plan.arena_bytes as u64,
            workspace_bytes: most.min(free as u64),
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
        gpu: Gpu,
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
            let kernel = self.kernels.add(&launch.function, gpu)? as u32;
            let product = PlainProduct::of(launch).map(|plain| {
                let known =
                    tiles::Product::of(&launch.function, gpu).zip(plan.target.tiles.as_ref());
                let is_faster = known.is_some_and(|((key, _), tiles)| tiles.prefers_library(&key));
                product(&plain, is_faster)
            });
            launches.push(Launch { kernel, grid: launch.grid, args, product });
        }
        let scratch_bytes = step.scratch.map_or(0, |buffer| plan.buffers[buffer.index()].bytes);
        Ok(Step {
            label: kernel.name().to_owned(),
            scope: plan.graph.node(step.value).scope.to_string(),
            flops: work.flops(),
            bytes: work.bytes(),
            scratch_bytes: scratch_bytes as u64,
            launches,
        })
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

    /// Texts to compile, each counted once for each generation.
    pub fn compilations(&self) -> usize {
        self.kernels.compilations()
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
        let compiled = self.kernels.compile(nvrtc, cache, threads, on_progress)?;
        let kernels = self.kernels.kernels().iter().zip(compiled);
        Ok(Engine {
            created_by,
            model,
            dtype,
            kernels: kernels.map(|(distinct, compiled)| kernel(distinct, compiled)).collect(),
            weights: self.weights,
            constants: self.constants,
            programs: self.programs,
        })
    }
}

/// Bytes that NVIDIA recommends as workspace of its library of products.
fn workspace_bytes(gpu: Gpu) -> u64 {
    if gpu >= Gpu(90) { 32 << 20 } else { 4 << 20 }
}

/// A plain product as the engine has it.
fn product(plain: &PlainProduct, is_faster: bool) -> Product {
    let matrix = |matrix: plain::Matrix| {
        let plain::Matrix { pointer, is_transposed, leading, batch_stride } = matrix;
        let (leading, batch_stride) = (leading.into(), batch_stride.into());
        Matrix { pointer: pointer as u32, is_transposed, leading, batch_stride }
    };
    let &PlainProduct { factors, sums, batch, rows, columns, depth, .. } = plain;
    Product {
        factors,
        sums,
        batch,
        rows,
        columns,
        depth,
        left: matrix(plain.left),
        right: matrix(plain.right),
        result: matrix(plain.result),
        bias: plain.bias.map(|pointer| pointer as u32),
        residual: plain.residual.map(matrix),
        is_faster,
    }
}

fn arch(gpu: Gpu) -> Arch {
    gpu.code_name().parse().expect("generations have names of architectures")
}

/// Machine code for each generation, and PTX for the least of them, which later ones run too and the
/// emulated device takes.
fn kernel(distinct: &Distinct, compiled: BTreeMap<Gpu, Compiled>) -> engine::Kernel {
    let mut images = vec![];
    for (gpu, compiled) in compiled {
        let image = |kind, registers, spill_bytes, bytes: Vec<u8>| Image {
            arch: arch(gpu),
            kind,
            registers,
            spill_bytes,
            bytes: Blob::from(bytes),
        };
        if images.is_empty() {
            images.push(image(ImageKind::Ptx, 0, 0, compiled.ptx.into_bytes()));
        }
        let resources = compiled.resources;
        let spill_bytes = resources.spill_bytes + resources.stack_bytes;
        images.push(image(ImageKind::Cubin, resources.registers, spill_bytes, compiled.cubin));
    }
    let Distinct { function, source, gpus: _ } = distinct;
    engine::Kernel {
        name: function.name().to_owned(),
        entry: source.entry.clone(),
        block: function.block(),
        shared_bytes: source.shared_bytes,
        n_pointers: source.pointers as u32,
        info: source.info.clone(),
        images,
    }
}
