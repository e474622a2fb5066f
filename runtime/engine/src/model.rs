//! What an engine is: kernels, programs that launch them, and the weights that they read.
//!
//! Device memory is in three spaces: one arena that every program of the engine uses from its first byte, the
//! weights, and the constants. Addresses are a space and a byte offset until a device binds them.

use std::collections::BTreeSet;

use ops::{DType, TensorType};

use crate::{Arch, Blob};

/// Most dynamic shared memory of a block on any architecture, in bytes.
pub const MAX_DYNAMIC_SHARED_BYTES: u32 = 227 << 10;

/// A model compiled for GPUs, without its weights.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Engine {
    /// Name and version of the program that compiled it.
    pub created_by: String,
    /// Which model, in words for people.
    pub model: String,
    /// Element type in which activations are stored.
    pub dtype: DType,
    /// Device code, referred to by position.
    pub kernels: Vec<Kernel>,
    /// Weights, referred to by position.
    pub weights: Vec<Weight>,
    /// Bytes of constants, referred to by position; never empty ones.
    pub constants: Vec<Blob>,
    /// What can be run: for each target, one program for each bucket and part of the model.
    pub programs: Vec<Program>,
}

/// One entry point, compiled for several architectures.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kernel {
    /// Kind of kernel, for people: `matmul`.
    pub name: String,
    /// Symbol of the entry in every image.
    pub entry: String,
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// How many pointers it takes; they are its first parameters.
    pub n_pointers: u32,
    /// Words of the struct that it takes by value as last parameter; there is no such parameter if empty.
    pub info: Vec<u64>,
    /// The code, at most once per architecture and kind.
    pub images: Vec<Image>,
}

/// Code of a kernel for one architecture.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Image {
    /// What it was compiled for.
    pub arch: Arch,
    /// Machine code or PTX.
    pub kind: ImageKind,
    /// Registers of a thread; 0 for PTX.
    pub registers: u32,
    /// Bytes of registers that a thread spills to memory; 0 for PTX.
    pub spill_bytes: u32,
    /// An ELF file or a text, without a final NUL.
    pub bytes: Blob,
}

/// Form of an [`Image`].
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum ImageKind {
    /// Text that the driver compiles when it is loaded.
    Ptx,
    /// Machine code.
    Cubin,
}

/// A weight as kernels read it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Weight {
    /// Name of the tensor in checkpoints.
    pub name: String,
    /// Type as the model declares it; a checkpoint may have another float type, which is converted.
    pub ty: TensorType,
    /// Order in which the axes of `ty` lie in device memory, outermost first; empty as declared.
    pub axes: Vec<u32>,
    /// Bytes in device memory, at least those of `ty`; the others are zero.
    pub bytes: u64,
}

/// Launches that compute outputs from inputs in one arena.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Program {
    /// What it computes, for which bucket: `step 240p:16f:9:16`. Once for each target, with the same ports.
    pub name: String,
    /// The architecture that launches and kernels were chosen for.
    pub target: Arch,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// Bytes beside the arena for a library that takes over products ([`Launch::product`]), where one is used.
    pub workspace_bytes: u64,
    /// No arena for these steps can be smaller.
    pub lower_bound_bytes: u64,
    /// What is written before it runs; inputs do not overlap, and running may overwrite them.
    pub inputs: Vec<Port>,
    /// What can be read after it ran; outputs do not overlap.
    pub outputs: Vec<Port>,
    /// In order.
    pub steps: Vec<Step>,
}

/// A dense row-major tensor in the arena that the caller writes or reads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Port {
    /// Name, once among inputs and once among outputs.
    pub name: String,
    /// Element type and shape.
    pub ty: TensorType,
    /// First byte in the arena, a multiple of the size of an element.
    pub offset: u64,
}

/// Work that is timed and named as one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Step {
    /// Kind of kernel.
    pub label: String,
    /// Where in the model: `blocks.3.attn`.
    pub scope: String,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes that must be read and written at least.
    pub bytes: u64,
    /// Bytes of the arena that hold what launches before the last prepare for it.
    pub scratch_bytes: u64,
    /// In order.
    pub launches: Vec<Launch>,
}

/// One launch of a kernel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Launch {
    /// Position in [`Engine::kernels`].
    pub kernel: u32,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// The pointers, as many as the kernel takes.
    pub args: Vec<Arg>,
    /// The same computation as one call of a library, where it is one.
    pub product: Option<Product>,
}

/// A product of matrices that one call of a library computes in place of a launch, on its pointers:
/// `result[b, i, j] = sum over k of left[b, i, k] right[b, j, k] + bias[j] + residual[b, i, j]`, summed in f32 and
/// rounded once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Product {
    /// Element type of both factors, bf16 or f16.
    pub factors: DType,
    /// Element type of result, bias and residual: that of the factors, or f32.
    pub sums: DType,
    /// Number of products of these dims.
    pub batch: u32,
    /// Rows of the left factor and the result.
    pub rows: u32,
    /// Rows of the right factor, which are columns of the result.
    pub columns: u32,
    /// Length of the sums.
    pub depth: u32,
    /// `[rows, depth]`.
    pub left: Matrix,
    /// `[columns, depth]`.
    pub right: Matrix,
    /// `[rows, columns]`, as it is.
    pub result: Matrix,
    /// Position among the pointers of what is added to each row, one element a column.
    pub bias: Option<u32>,
    /// `[rows, columns]`, as it is; may be where the result is.
    pub residual: Option<Matrix>,
    /// Whether the library was measured to be faster than the kernel.
    pub is_faster: bool,
}

/// Where the elements of a matrix of each product lie.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Matrix {
    /// Position among the pointers of the launch.
    pub pointer: u32,
    /// Whether columns lie one after the other instead of rows.
    pub is_transposed: bool,
    /// Elements from one row to the next; from one column to the next if it is transposed.
    pub leading: u64,
    /// Elements from the matrix of one product to that of the next.
    pub batch_stride: u64,
}

/// An address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Arg {
    /// What it points into.
    pub space: Space,
    /// Byte in it.
    pub offset: u64,
}

/// What an [`Arg`] points into.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Space {
    /// The arena of the program.
    Arena,
    /// A weight, by position in [`Engine::weights`].
    Weight(u32),
    /// A constant, by position in [`Engine::constants`].
    Constant(u32),
}

impl Engine {
    /// Architectures that programs are for, each once: those whose code runs on several before the specific
    /// ones, older before newer.
    pub fn targets(&self) -> Vec<Arch> {
        let mut targets: Vec<Arch> = self.programs.iter().map(|program| program.target).collect();
        targets.sort_unstable_by_key(|target| (target.is_specific, *target));
        targets.dedup();
        targets
    }

    /// The target whose programs suit a device of architecture `device` best: specific before general, later
    /// before earlier, of those that are not for a later device and whose kernels all run, as `runs` says.
    pub fn target_for(&self, device: Arch, runs: &dyn Fn(&Kernel) -> bool) -> Option<Arch> {
        let suits = |target: &Arch| {
            target.runs_on(device, ImageKind::Ptx) && self.kernels_of(*target).all(runs)
        };
        self.targets().into_iter().rev().find(suits)
    }

    /// Kernels that the programs for `target` launch, each once.
    pub fn kernels_of(&self, target: Arch) -> impl Iterator<Item = &Kernel> {
        let programs = self.programs.iter().filter(move |program| program.target == target);
        let launches = programs.flat_map(|program| &program.steps).flat_map(|step| &step.launches);
        let used: BTreeSet<u32> = launches.map(|launch| launch.kernel).collect();
        used.into_iter().filter_map(move |index| self.kernels.get(index as usize))
    }

    /// Every architecture and kind for which some kernel has code, such as `sm_90a` or `sm_80 (PTX)`, sorted.
    pub fn code(&self) -> Vec<String> {
        let images = self.kernels.iter().flat_map(|kernel| &kernel.images);
        let mut found: Vec<_> = images.map(|image| (image.arch, image.kind)).collect();
        found.sort_unstable();
        found.dedup();
        let name = |&(arch, kind): &(Arch, ImageKind)| match kind {
            ImageKind::Ptx => format!("{arch} (PTX)"),
            ImageKind::Cubin => arch.to_string(),
        };
        found.iter().map(name).collect()
    }
}

impl Kernel {
    /// The best image for a GPU of architecture `device`: machine code before PTX, specific before general,
    /// later before earlier. `None` if the GPU runs none of them.
    pub fn image_for(&self, device: Arch) -> Option<&Image> {
        let usable = self.images.iter().filter(|image| image.arch.runs_on(device, image.kind));
        usable.max_by_key(|image| (image.kind, image.arch.is_specific, image.arch))
    }
}

impl Program {
    /// FLOPs of all steps.
    pub fn flops(&self) -> u64 {
        self.steps.iter().fold(0, |sum, step| sum.saturating_add(step.flops))
    }
}

impl Product {
    /// Each matrix and vector that the product reads or writes: the position of its pointer, and bytes from its first to
    /// its last element. `None` if there is nothing to multiply, or a number exceeds 64 bits.
    pub fn spans(&self) -> Option<Vec<(u32, u64)>> {
        let Product { factors, sums, batch, bias, residual, .. } = self;
        let [rows, columns, depth] = [self.rows, self.columns, self.depth].map(u64::from);
        let span = |matrix: &Matrix, rows: u64, columns: u64, dtype: &DType| {
            let elements = matrix.extent(u64::from(*batch), rows, columns)?;
            Some((matrix.pointer, elements.checked_mul(dtype.size() as u64)?))
        };
        let mut spans = vec![
            span(&self.left, rows, depth, factors)?,
            span(&self.right, columns, depth, factors)?,
            span(&self.result, rows, columns, sums)?,
        ];
        if let Some(pointer) = bias {
            spans.push((*pointer, columns.checked_mul(sums.size() as u64)?));
        }
        if let Some(residual) = residual {
            spans.push(span(residual, rows, columns, sums)?);
        }
        Some(spans)
    }

    /// Floating-point operations of the sums.
    pub fn flops(&self) -> u64 {
        let dims = [self.batch, self.rows, self.columns, self.depth];
        dims.iter().fold(2, |product: u64, &dim| product.saturating_mul(dim.into()))
    }
}

impl Matrix {
    /// Elements from the first to the last of `batch` matrices of `rows` x `columns`.
    fn extent(&self, batch: u64, rows: u64, columns: u64) -> Option<u64> {
        let (outer, inner) = if self.is_transposed { (columns, rows) } else { (rows, columns) };
        let to_last_matrix = batch.checked_sub(1)?.checked_mul(self.batch_stride)?;
        let to_last_line = outer.checked_sub(1)?.checked_mul(self.leading)?;
        to_last_matrix.checked_add(to_last_line)?.checked_add(inner)
    }

    /// Elements that lie one after the other.
    pub fn line(&self, rows: u32, columns: u32) -> u32 {
        if self.is_transposed { rows } else { columns }
    }
}
