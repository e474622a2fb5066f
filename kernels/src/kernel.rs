//! The kernel contract ([`KernelDef`]), the one list of all CPU kernels ([`Kernel`]), and among them
//! what a CUDA device launches.
//!
//! A kernel is chosen for a *site*: a body graph (a fused group's, or a single op's) with the
//! layouts of its operands and of its result. Choosing is pure; what is chosen is plain data that
//! prints in the plan and runs on raw pointers.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use ops::{Attr, DType, Graph};

use crate::cuda::tiles::Tiles;
use crate::cuda::{self, CudaKernel, Gpu};
use crate::{Isa, Layout, Pool};

/// What a plan is compiled for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Instruction set of the kernels.
    pub isa: Isa,
    /// Threads that run a step.
    pub threads: usize,
    /// Per-core data caches in bytes: level 1 and 2.
    pub l1_bytes: usize,
    /// See `l1_bytes`.
    pub l2_bytes: usize,
    /// Shared last-level cache in bytes.
    pub l3_bytes: usize,
    /// The device that runs every step; `None` for this CPU.
    pub gpu: Option<Gpu>,
    /// Measured choices of the device's tiles; what they lack is chosen by a cost model.
    pub tiles: Option<Arc<Tiles>>,
}

impl Target {
    /// This machine's CPU, with its caches.
    pub fn of_cpu(isa: Isa, threads: usize) -> Self {
        let [l1_bytes, l2_bytes, l3_bytes] = crate::caches();
        Self { isa, threads, l1_bytes, l2_bytes, l3_bytes, gpu: None, tiles: None }
    }
}

/// One place in a graph that needs a kernel.
#[derive(Debug)]
pub struct Site<'a> {
    /// What is to be computed: inputs `"0"`, `"1"`, … are the operands in order, one output. Small
    /// constants are nodes of the body.
    pub body: &'a Graph,
    /// Layouts of the operands, in order.
    pub operands: &'a [Layout],
    /// Which operands are weights, known before the first run.
    pub is_param: &'a [bool],
    /// Layout of the result.
    pub result: &'a Layout,
    /// The machine.
    pub target: &'a Target,
}

/// How a weight is stored for a kernel: made once at load from the dense tensor.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Packing {
    /// Prints in the plan and tells packings apart, as `panels.f32.k1152.n32`.
    pub name: String,
    /// Bytes of the packed weight.
    pub bytes: usize,
}

/// Pointers and resources of one run of one kernel.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Threads.
    pub pool: &'a Pool,
    /// Base pointer of each operand's buffer, in operand order; layouts' offsets are not applied.
    /// For a packed operand, the packed bytes.
    pub operands: &'a [*const u8],
    /// Base pointer of the result's buffer. May equal an operand's where `may_alias` allows it.
    pub result: *mut u8,
    /// At least `scratch_bytes` bytes, aligned to 64.
    pub scratch: *mut u8,
}

/// A matrix within an operand, whose columns are added up: the elements of a term are neighbors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Columns {
    /// Which operand.
    pub operand: usize,
    /// Element type.
    pub dtype: DType,
    /// Position of the first element; like the stride in elements.
    pub offset: usize,
    /// How many columns.
    pub columns: usize,
    /// How many elements each has.
    pub terms: usize,
    /// From one term to the next.
    pub stride: usize,
}

impl Columns {
    /// Whether both are the same elements, if their operands are the same.
    pub fn are(&self, other: &Columns) -> bool {
        *self == Columns { operand: self.operand, ..*other }
    }
}

/// Everything the system knows about one kernel instance.
pub trait KernelDef: fmt::Debug {
    /// The printed name, as `matmul`.
    fn name(&self) -> &'static str;

    /// Choices that were made for this instance (tile sizes, variants), in print order.
    fn tunables(&self) -> Vec<(&'static str, Attr)> {
        vec![]
    }

    /// How this instance computes, for tables: those choices that are words, as `quad` or `bf16`.
    fn way(&self) -> String {
        let words = self.tunables().into_iter().filter_map(|(_, value)| match value {
            Attr::Str(word) => Some(word),
            _ => None,
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// Bytes of scratch for a run with `threads` threads.
    fn scratch_bytes(&self, threads: usize) -> usize {
        let _ = threads;
        0
    }

    /// The packing this kernel wants for operand `operand`, a weight; `None` to read it as it is.
    fn packing(&self, operand: usize) -> Option<Packing> {
        let _ = operand;
        None
    }

    /// Writes the packed form of weight `operand` from its dense little-endian bytes: every byte of
    /// `packed` that a run reads.
    fn pack(&self, operand: usize, dense: &[u8], packed: &mut [u8], pool: &Pool) {
        let _ = (operand, dense, packed, pool);
        unreachable!("{} packs no operand", self.name())
    }

    /// Whether the result may be written over operand `operand` (same buffer, same layout).
    fn may_alias(&self, operand: usize) -> bool {
        let _ = operand;
        false
    }

    /// How many elements the result has, if it is dense and each of its elements is made without the others, from
    /// what lies at fixed places in the operands: then [`KernelDef::run_elements`] may make them part by part.
    fn elements(&self) -> Option<usize> {
        None
    }

    /// Makes the elements `elements` of the result, in row-major order, on thread `worker` of the launch's pool.
    /// Parts may be made in any order and at the same time.
    ///
    /// # Safety
    /// As [`KernelDef::run`], for the elements that are read and written; no other thread uses the part of the
    /// scratch that is for `worker`.
    unsafe fn run_elements(&self, launch: &Launch<'_>, elements: Range<usize>, worker: usize) {
        let _ = (launch, elements, worker);
        unreachable!("{} is not made part by part", self.name())
    }

    /// The columns that this kernel reads block by block, so that another kernel's sums of them can be made of what is
    /// in cache.
    fn columns_read(&self) -> Option<Columns> {
        None
    }

    /// The columns that this kernel adds up, if nothing else is done to their elements. It needs the same scratch
    /// whoever adds them up.
    fn column_sums(&self) -> Option<Columns> {
        None
    }

    /// Runs, and adds up the columns that it reads for the launch of `sums`, whose result is then made by
    /// [`KernelDef::finish_sums`]: the same bytes as those of a run of `sums`.
    ///
    /// # Safety
    /// As [`KernelDef::run`] for both launches, and what one writes is not touched by the other. The columns that are
    /// read are those that `sums` adds up.
    unsafe fn run_with_sums(&self, launch: &Launch<'_>, sums: (&Kernel, &Launch<'_>)) {
        let _ = (launch, sums);
        unreachable!("the plan was checked: it reads columns")
    }

    /// Makes the result of columns that [`KernelDef::run_with_sums`] of another kernel has added up for this launch.
    ///
    /// # Safety
    /// As [`KernelDef::run`].
    unsafe fn finish_sums(&self, launch: &Launch<'_>) {
        let _ = launch;
        unreachable!("the plan was checked: it adds up columns")
    }

    /// Runs.
    ///
    /// # Safety
    /// Every operand pointer is valid for reads of its layout's extent, the result pointer for
    /// writes of its layout's extent, `scratch` for `scratch_bytes(pool.threads())`; nothing else
    /// writes them meanwhile; the result overlaps an operand only where `may_alias` allows it; the
    /// CPU has the instruction set the kernel was chosen for.
    unsafe fn run(&self, launch: &Launch<'_>) {
        let _ = launch;
        unreachable!("{} runs on a device", self.name())
    }
}

/// Lists every kernel once, in order of preference, with the crate's feature that it is part of if it is not
/// always there. Expands to the enum and lookups, no semantics.
macro_rules! kernels {
    ($($name:literal => $module:ident :: $kernel:ident $(if $feature:literal)?),* $(,)?) => {
        /// A kernel instance: what one plan step runs.
        #[derive(Clone, Debug)]
        pub enum Kernel {
            $(
                #[doc = concat!("`", $name, "`.")]
                $(#[cfg(feature = $feature)])?
                $kernel(crate::cpu::$module::$kernel),
            )*
            /// Launches on a CUDA device.
            Cuda(CudaKernel),
        }

        impl Kernel {
            /// The first kernel of the list that takes this site.
            pub fn select(site: &Site<'_>) -> Option<Kernel> {
                if let Some(gpu) = site.target.gpu {
                    return cuda::select(site, gpu).map(Kernel::Cuda);
                }
                $($(#[cfg(feature = $feature)])?
                if let Some(kernel) = crate::cpu::$module::$kernel::select(site) {
                    return Some(Kernel::$kernel(kernel));
                })*
                None
            }

            /// The kernel's contract.
            pub fn def(&self) -> &dyn KernelDef {
                match self {
                    $(
                        $(#[cfg(feature = $feature)])?
                        Kernel::$kernel(kernel) => kernel,
                    )*
                    Kernel::Cuda(kernel) => kernel,
                }
            }

            /// Printed names in list order.
            pub fn names() -> &'static [&'static str] {
                &[$($(#[cfg(feature = $feature)])? $name),*]
            }
        }
    };
}

// The last entries take anything that their class covers, so order matters only between a
// specialized kernel and those.
kernels! {
    "attention" => attention::Attention,
    "attention_grad" => attention_grad::AttentionGrad if "training",
    "concat" => concat::Concat,
    "conv" => conv::Conv,
    "conv_input_grad" => conv_input_grad::ConvInputGrad if "training",
    "conv_weight_grad" => conv_weight_grad::ConvWeightGrad if "training",
    "gather" => gather::Gather,
    "group_norm" => group_norm::GroupNorm,
    "matmul" => fused_matmul::FusedMatmul,
    "norm" => norm::Norm,
    "norm_grad" => norm_grad::NormGrad if "training",
    "normal" => normal::Normal,
    "pad" => pad::Pad,
    "reduce" => reduce::Reduce,
    "rope" => rope::Rope,
    "scatter_add" => scatter_add::ScatterAdd if "training",
    "map" => map::Map,
}
