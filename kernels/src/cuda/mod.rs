//! What a CUDA device runs for a site, as plain data: which launches, of which functions, with which
//! pointers.
//!
//! A [`Function`] holds everything that is known when it is compiled: shapes, strides, element types,
//! fused code, tile sizes. The crate `cuda-kernels` makes CUDA text of it. Where it reads and writes
//! is not part of it: a [`Launch`] gives each pointer and its offset, so that the same function serves
//! every place in a model that differs in addresses only.
//!
//! A step may be several launches. What goes into a product, an attention or a convolution through a
//! norm is made by a launch of its own, into the step's scratch: it is read many times there, and only
//! plain memory can be copied to shared memory asynchronously.

mod access;
pub mod attention;
mod code;
pub mod columns;
pub mod conv;
mod factor;
pub mod gather;
pub mod gemm;
pub mod group_norm;
pub mod heads;
mod join;
mod kernel;
pub mod map;
pub mod matmul;
pub mod normal;
mod occupancy;
pub mod plain;
mod rope;
pub mod rows;
pub mod tiles;
pub mod transpose;

use std::fmt;
use std::sync::Arc;

use crate::body::Source;

pub use access::Access;
pub use code::Code;
pub use kernel::{CudaKernel, select};
pub use occupancy::{BlockNeeds, Multiprocessor};

/// Lanes of a warp.
pub const WARP: u32 = 32;

/// A generation of devices, by compute capability; prints as `sm_90`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Gpu(pub u32);

impl Gpu {
    /// Generations that kernels are made for.
    pub const ALL: [Gpu; 4] = [Gpu(80), Gpu(86), Gpu(89), Gpu(90)];

    /// The generation that prints as `name`; `sm_90a` is `sm_90`.
    pub fn from_name(name: &str) -> Option<Gpu> {
        Gpu::ALL.into_iter().find(|gpu| gpu.to_string() == name || gpu.code_name() == name)
    }

    /// The target that its code is compiled for: `sm_90a` has instructions that no other has.
    pub fn code_name(self) -> String {
        if self.0 == 90 { "sm_90a".to_owned() } else { self.to_string() }
    }

    /// Bytes of shared memory of a multiprocessor, and the most of a block.
    pub fn shared_bytes(self) -> (usize, usize) {
        match self.0 {
            80 => (164 << 10, 163 << 10),
            90 => (228 << 10, 227 << 10),
            _ => (100 << 10, 99 << 10),
        }
    }

    /// Multiprocessors of the usual device of the generation, for choices of tiles.
    pub fn multiprocessors(self) -> usize {
        match self.0 {
            80 => 108,
            86 => 84,
            89 => 128,
            _ => 132,
        }
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.0)
    }
}

/// Whose memory a pointer points into.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Base {
    /// Operand of the step, by number.
    Operand(usize),
    /// The result.
    Result,
    /// The step's scratch.
    Scratch,
    /// These bytes, kept on the device.
    Constant(Arc<[u8]>),
}

/// One pointer that a function gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arg {
    /// What it points into.
    pub base: Base,
    /// Bytes from there.
    pub offset: usize,
}

/// One launch.
#[derive(Clone, PartialEq, Debug)]
pub struct Launch {
    /// What runs.
    pub function: Function,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Pointers, in the order that the function says.
    pub args: Vec<Arg>,
}

/// Lists every function once. Expands to the enum and lookups, no semantics.
macro_rules! functions {
    ($($name:literal => $module:ident :: $function:ident),* $(,)?) => {
        /// A device function, by everything that it is compiled for.
        #[derive(Clone, PartialEq, Debug)]
        pub enum Function {
            $(
                #[doc = concat!("`", $name, "`.")]
                $function($module::$function),
            )*
        }

        impl Function {
            /// The printed name.
            pub fn name(&self) -> &'static str {
                match self { $(Function::$function(_) => $name),* }
            }

            /// Threads of a block along x, y, z.
            pub fn block(&self) -> [u32; 3] {
                match self { $(Function::$function(function) => function.block()),* }
            }
        }
    };
}

functions! {
    "attention" => attention::Attention,
    "conv" => conv::Conv,
    "columns" => columns::Columns,
    "gather" => gather::Gather,
    "group_scale" => group_norm::GroupScale,
    "group_sums" => group_norm::GroupSums,
    "attention_fma" => attention::AttentionFma,
    "attention_wide" => attention::AttentionWide,
    "heads" => heads::Heads,
    "map" => map::Map,
    "matmul" => matmul::Matmul,
    "normal" => normal::Normal,
    "rows" => rows::Rows,
    "transpose" => transpose::Transpose,
}

impl Base {
    /// Where a leaf of elementwise code lies. What the kernel computes itself has no place.
    pub(crate) fn of(source: &Source) -> Base {
        match source {
            Source::Operand(operand) => Base::Operand(*operand),
            Source::Constant(bytes) => Base::Constant(Arc::clone(bytes)),
            Source::Frontier(_) => unreachable!("a frontier value is in registers"),
        }
    }
}
