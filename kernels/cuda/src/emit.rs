//! From a function to CUDA text.
//!
//! A function is expanded by hand instead of through `#[cube(launch)]`: how many pointers it has, and
//! of which types, is known only from its data.

use cubecl::Compiler as _;
use cubecl::ir::settings::Dim3;
use cubecl::ir::{AddressType, TargetProperties};
use cubecl::prelude::*;
use cubecl_cpp::shared::CppCompiler;
use cubecl_cpp::target::Cuda;
use kernels::cuda::{Function, Gpu};

use crate::attention;
use crate::attention_fma;
use crate::attention_wide;
use crate::columns;
use crate::error::Error;
use crate::gather;
use crate::gemm;
use crate::group_norm;
use crate::heads;
use crate::map;
use crate::normal;
use crate::properties::{options, properties};
use crate::rows;
use crate::shared_names;
use crate::slot::SlotExpand;
use crate::transpose;

/// A function as CUDA text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// The text, for NVRTC.
    pub text: String,
    /// The symbol to launch.
    pub entry: String,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// Pointers it takes, before `info`.
    pub pointers: usize,
    /// Words that follow the pointers by value: how many elements each has, which no function asks for.
    pub info: Vec<u64>,
}

/// Makes CUDA text of a function.
///
/// # Errors
/// [`Error::Emit`] if `CubeCL` refuses it.
pub fn emit(function: &Function, gpu: Gpu) -> Result<Source, Error> {
    let [x, y, z] = function.block();
    let settings =
        KernelSettings::new(Dim3 { x, y, z }, ExecutionMode::Unchecked, AddressType::U32)
            .kernel_name(function.name());
    let mut builder = KernelBuilder::new(settings);
    builder.runtime_properties(TargetProperties::default());
    builder.device_properties(&properties(gpu));
    let pointers = match function {
        Function::Attention(function) => attention::define(function, &mut builder),
        Function::Conv(conv) => gemm::define(&conv.0, &mut builder),
        Function::Columns(columns) => columns::define(columns, &mut builder),
        Function::Gather(gather) => gather::define(gather, &mut builder),
        Function::GroupScale(scale) => group_norm::define_scale(scale, &mut builder),
        Function::GroupSums(sums) => group_norm::define_sums(sums, &mut builder),
        Function::AttentionFma(function) => attention_fma::define(function, &mut builder),
        Function::AttentionWide(function) => attention_wide::define(function, &mut builder),
        Function::Heads(heads) => heads::define(heads, &mut builder),
        Function::Map(map) => map::define(map, &mut builder),
        Function::Matmul(matmul) => gemm::define(&matmul.0, &mut builder),
        Function::Normal(normal) => normal::define(normal, &mut builder),
        Function::Rows(rows) => rows::define(rows, &mut builder),
        Function::Transpose(transpose) => transpose::define(transpose, &mut builder),
    };
    let refuse = |reason: String| Error::Emit { function: function.name().to_owned(), reason };
    let compiled = CppCompiler::<Cuda>::default()
        .compile(builder.build(), &options(gpu))
        .map_err(|error| refuse(error.to_string()))?;
    Ok(Source {
        text: shared_names::in_order(compiled.source),
        entry: function.name().to_owned(),
        shared_bytes: compiled.shared_memory_size as u32,
        pointers,
        // One 32-bit length for each pointer.
        info: vec![0; pointers.div_ceil(2)],
    })
}

/// Declares a pointer to elements that lie as `slot` says.
pub(crate) fn pointer(builder: &mut KernelBuilder, bytes: usize) -> SlotExpand {
    SlotExpand::declare(builder, bytes)
}
