//! Whether an engine is consistent: every index, offset and size against what it refers to.
//!
//! What passes can be given to a device: each address lies in its space, each launch is within what every GPU
//! allows and has code for its program's target, and each image ends where it says.

use std::collections::{BTreeMap, BTreeSet};

use ops::DType;

use crate::codec::is_too_long;
use crate::cubin;
use crate::model::{
    Engine, Image, ImageKind, Kernel, Launch, MAX_DYNAMIC_SHARED_BYTES, Port, Product, Program,
    Space, Step, Weight,
};
use crate::{Arch, Error};

/// Most threads along each axis of a block, and in all.
const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
const MAX_THREADS: u64 = 1024;
/// Most blocks along each axis of a grid.
const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
/// Most bytes of parameters of a kernel.
const MAX_PARAM_BYTES: u64 = 32_764;
/// Most of a dim of a library's product, and of its strides in elements: what it counts in.
const MAX_DIM: u32 = i32::MAX as u32;
const MAX_STRIDE: u64 = i64::MAX as u64;
/// Most bytes of an arena or a weight: more than any GPU has, and small enough to add up.
const MAX_SPACE_BYTES: u64 = 1 << 44;

type Outcome = Result<(), String>;

fn require(is_right: bool, what: impl FnOnce() -> String) -> Outcome {
    if is_right { Ok(()) } else { Err(what()) }
}

fn text(what: &str, text: &str) -> Outcome {
    require(!is_too_long(text), || format!("{what} is a text of {} bytes", text.len()))
}

fn is_inside(dims: [u32; 3], most: [u32; 3]) -> bool {
    dims.iter().zip(most).all(|(&dim, most)| (1..=most).contains(&dim))
}

impl Engine {
    /// Checks everything that readers and writers of the file cannot see record by record.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        self.check().map_err(Error::Invalid)
    }

    fn check(&self) -> Outcome {
        text("the creator's name", &self.created_by)?;
        text("the model's name", &self.model)?;
        for (index, kernel) in self.kernels.iter().enumerate() {
            check_kernel(kernel).map_err(|e| format!("kernel {index} ({}): {e}", kernel.name))?;
        }
        let mut forms = BTreeSet::new();
        for weight in &self.weights {
            let of_weight = |e| format!("weight `{}`: {e}", weight.name);
            check_weight(weight).map_err(of_weight)?;
            let form = (&weight.name, weight.ty.dtype(), &weight.axes, weight.bytes);
            require(forms.insert(form), || of_weight("is listed twice in one form".into()))?;
        }
        for (index, constant) in self.constants.iter().enumerate() {
            require(!constant.is_empty(), || format!("constant {index} is empty"))?;
        }
        let mut names = BTreeSet::new();
        let mut firsts: BTreeMap<&String, &Program> = BTreeMap::new();
        for program in &self.programs {
            let of_program = |e| format!("program `{}` for {}: {e}", program.name, program.target);
            let is_new = names.insert((&program.name, program.target));
            require(is_new, || of_program("is there twice".into()))?;
            let first = firsts.entry(&program.name).or_insert(program);
            require(has_ports_of(program, first), || {
                of_program(format!("has other inputs or outputs than for {}", first.target))
            })?;
            self.check_program(program).map_err(of_program)?;
        }
        Ok(())
    }

    fn check_program(&self, program: &Program) -> Outcome {
        text("its name", &program.name)?;
        require(program.target.minor < 10, || "there is no such architecture".into())?;
        let (arena, bound) = (program.arena_bytes, program.lower_bound_bytes);
        require(arena <= MAX_SPACE_BYTES, || format!("an arena of {arena} bytes"))?;
        require(bound <= arena, || format!("{arena} bytes of arena, below the bound of {bound}"))?;
        let workspace = program.workspace_bytes;
        require(workspace <= MAX_SPACE_BYTES, || format!("a workspace of {workspace} bytes"))?;
        check_ports("input", &program.inputs, arena)?;
        check_ports("output", &program.outputs, arena)?;
        for (index, step) in program.steps.iter().enumerate() {
            self.check_step(program, step)
                .map_err(|e| format!("step {index} ({}, {}): {e}", step.label, step.scope))?;
        }
        Ok(())
    }

    fn check_step(&self, program: &Program, step: &Step) -> Outcome {
        text("its label", &step.label)?;
        text("its scope", &step.scope)?;
        let (scratch, arena) = (step.scratch_bytes, program.arena_bytes);
        require(scratch <= arena, || format!("{scratch} bytes of scratch in an arena of {arena}"))?;
        for launch in &step.launches {
            self.check_launch(program, launch)?;
        }
        Ok(())
    }

    fn check_launch(&self, program: &Program, launch: &Launch) -> Outcome {
        let Launch { kernel: index, grid, args, product } = launch;
        let Some(kernel) = self.kernels.get(*index as usize) else {
            return Err(format!("kernel {index}, of {}", self.kernels.len()));
        };
        let Arch { major, minor, .. } = program.target;
        require(kernel.image_for(Arch::of_device(major, minor)).is_some(), || {
            format!("kernel {index} (`{}`) has no code for {}", kernel.name, program.target)
        })?;
        require(is_inside(*grid, MAX_GRID), || {
            format!("grid {grid:?}, expected 1 to {MAX_GRID:?} blocks")
        })?;
        require(args.len() == kernel.n_pointers as usize, || {
            format!("{} pointers, `{}` takes {}", args.len(), kernel.name, kernel.n_pointers)
        })?;
        for (position, arg) in args.iter().enumerate() {
            let bytes = self.space_bytes(program, arg.space);
            let what = |bytes: &str| {
                format!("pointer {position} is byte {} of {:?}, {bytes}", arg.offset, arg.space)
            };
            let bytes = bytes.ok_or_else(|| what("which is not there"))?;
            require(arg.offset < bytes, || what(&format!("which has {bytes}")))?;
        }
        match product {
            Some(product) => self.check_product(program, launch, product),
            None => Ok(()),
        }
    }

    /// Bytes of a space; `None` if there is no such space.
    fn space_bytes(&self, program: &Program, space: Space) -> Option<u64> {
        match space {
            Space::Arena => Some(program.arena_bytes),
            Space::Weight(i) => self.weights.get(i as usize).map(|weight| weight.bytes),
            Space::Constant(i) => self.constants.get(i as usize).map(|blob| blob.len() as u64),
        }
    }

    /// Checks the product in place of `launch`, whose own pointers lie in their spaces.
    fn check_product(&self, program: &Program, launch: &Launch, product: &Product) -> Outcome {
        let of_product = |e: String| format!("product: {e}");
        check_matrices(product).map_err(of_product)?;
        let spans =
            product.spans().ok_or_else(|| of_product("is larger than any memory".into()))?;
        for (pointer, bytes) in spans {
            let arg = launch.args.get(pointer as usize).ok_or_else(|| {
                of_product(format!("pointer {pointer}, of {}", launch.args.len()))
            })?;
            let space = self.space_bytes(program, arg.space).unwrap_or(0);
            let end = arg.offset.checked_add(bytes);
            require(end.is_some_and(|end| end <= space), || {
                let (offset, space_name) = (arg.offset, arg.space);
                of_product(format!(
                    "{bytes} bytes at byte {offset} of {space_name:?}, which has {space}"
                ))
            })?;
        }
        let result = launch.args[product.result.pointer as usize].space;
        require(result == Space::Arena, || of_product(format!("writes to {result:?}")))
    }
}

/// Whether two programs take and give the same tensors, wherever they lie: a name is one computation.
fn has_ports_of(program: &Program, other: &Program) -> bool {
    let are_alike = |a: &[Port], b: &[Port]| {
        let alike = |(a, b): (&Port, &Port)| (&a.name, &a.ty) == (&b.name, &b.ty);
        a.len() == b.len() && a.iter().zip(b).all(alike)
    };
    are_alike(&program.inputs, &other.inputs) && are_alike(&program.outputs, &other.outputs)
}

/// Whether types, dims and strides are those of matrices that a library multiplies.
fn check_matrices(product: &Product) -> Outcome {
    let Product { factors, sums, batch, rows, columns, depth, .. } = *product;
    let are_halves = matches!(factors, DType::Bf16 | DType::F16);
    require(are_halves && [factors, DType::F32].contains(&sums), || {
        format!("{factors} to {sums}, expected bf16 or f16 to the same or f32")
    })?;
    let dims = [batch, rows, columns, depth];
    require(dims.iter().all(|dim| (1..=MAX_DIM).contains(dim)), || {
        format!("dims {dims:?}, expected 1 to {MAX_DIM}")
    })?;
    let Product { left, right, result, residual, .. } = product;
    let is_as_it_is = !result.is_transposed && residual.is_none_or(|matrix| !matrix.is_transposed);
    require(is_as_it_is, || "a result or residual that is transposed".into())?;
    let sums_of = [Some(result), residual.as_ref()].into_iter().flatten();
    let all = [(left, rows, depth), (right, columns, depth)];
    for (matrix, rows, columns) in all.into_iter().chain(sums_of.map(|m| (m, rows, columns))) {
        let (line, leading) = (matrix.line(rows, columns), matrix.leading);
        require((u64::from(line)..=MAX_STRIDE).contains(&leading), || {
            format!("lines of {line} elements {leading} apart")
        })?;
        let stride = matrix.batch_stride;
        require(stride <= MAX_STRIDE, || format!("matrices {stride} elements apart"))?;
    }
    Ok(())
}

fn check_kernel(kernel: &Kernel) -> Outcome {
    let Kernel { name, entry, block, shared_bytes, n_pointers, info, images } = kernel;
    text("its name", name)?;
    let is_symbol = !entry.is_empty() && !is_too_long(entry);
    require(is_symbol && entry.bytes().all(|b| b.is_ascii_graphic()), || {
        format!("entry `{}` is no symbol", entry.escape_debug())
    })?;
    let n_threads: u64 = block.iter().map(|&dim| u64::from(dim)).fold(1, u64::saturating_mul);
    require(is_inside(*block, MAX_BLOCK) && n_threads <= MAX_THREADS, || {
        format!(
            "block {block:?}, expected 1 to {MAX_THREADS} threads, {MAX_BLOCK:?} along the axes"
        )
    })?;
    require(*shared_bytes <= MAX_DYNAMIC_SHARED_BYTES, || {
        format!("{shared_bytes} bytes of shared memory, at most {MAX_DYNAMIC_SHARED_BYTES}")
    })?;
    let param_bytes = 8 * (u64::from(*n_pointers) + info.len() as u64);
    require(param_bytes <= MAX_PARAM_BYTES, || {
        format!("{param_bytes} bytes of parameters, at most {MAX_PARAM_BYTES}")
    })?;
    require(!images.is_empty(), || "has no image".into())?;
    let mut targets = BTreeSet::new();
    for image in images {
        let of_image = |e| format!("image for {} ({:?}) {e}", image.arch, image.kind);
        let is_new = targets.insert((image.arch, image.kind));
        require(is_new, || of_image("is there twice".into()))?;
        require(image.arch.minor < 10, || of_image("has no such architecture".into()))?;
        image_problem(image).map_or(Ok(()), |e| Err(of_image(e)))?;
    }
    Ok(())
}

fn image_problem(image: &Image) -> Option<String> {
    match image.kind {
        ImageKind::Cubin => cubin::problem(&image.bytes),
        // The driver reads a text up to the first NUL, which the loader appends.
        ImageKind::Ptx => match std::str::from_utf8(&image.bytes) {
            Ok("") => Some("is empty".into()),
            Ok(text) if text.contains('\0') => Some("has a NUL in its text".into()),
            Ok(_) => None,
            Err(e) => Some(format!("is no text: {e}")),
        },
    }
}

fn check_weight(weight: &Weight) -> Outcome {
    let Weight { name, ty, axes, bytes } = weight;
    text("its name", name)?;
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    let is_permutation = sorted.iter().copied().eq(0..ty.rank() as u32);
    require(axes.is_empty() || is_permutation, || {
        format!("axes {axes:?}, expected a permutation of the {} of {ty}", ty.rank())
    })?;
    require((ty.bytes() as u64..=MAX_SPACE_BYTES).contains(bytes), || {
        format!("{bytes} bytes, {ty} has {}", ty.bytes())
    })
}

/// Ports in the arena, none twice, no two in one place.
fn check_ports(what: &str, ports: &[Port], arena_bytes: u64) -> Outcome {
    let mut names = BTreeSet::new();
    let mut ranges = Vec::new();
    for Port { name, ty, offset } in ports {
        text("the name of a port", name)?;
        require(names.insert(name), || format!("{what} `{name}` is there twice"))?;
        require(offset.is_multiple_of(ty.dtype().size() as u64), || {
            format!("{what} `{name}` at byte {offset}, no multiple of an element of {ty}")
        })?;
        let end = offset.checked_add(ty.bytes() as u64).filter(|&end| end <= arena_bytes);
        let end = end.ok_or_else(|| {
            format!("{what} `{name}` ({ty}) at byte {offset} of an arena of {arena_bytes}")
        })?;
        ranges.push((*offset, end, name));
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let ((_, end, first), (start, _, second)) = (pair[0], pair[1]);
        require(end <= start, || format!("{what}s `{first}` and `{second}` overlap"))?;
    }
    Ok(())
}
