//! What is called of cuBLASLt, NVIDIA's library of products: one method for each of its functions, attributes by
//! number and bytes, as its header has them.
//!
//! The library itself is behind it in `driver/cublaslt.rs`. Tests put a model of it there that knows nothing but
//! what the library is told, so that a wrong attribute is a wrong number.

use std::fmt;
use std::fmt::Debug;

/// What a function says that did not succeed, by its number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Status(pub i32);

impl Status {
    /// An argument that cannot be.
    pub const INVALID_VALUE: Status = Status(7);
    /// Nothing in the library computes this on this device.
    pub const NOT_SUPPORTED: Status = Status(15);
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            1 => "NOT_INITIALIZED",
            3 => "ALLOC_FAILED",
            7 => "INVALID_VALUE",
            8 => "ARCH_MISMATCH",
            11 => "MAPPING_ERROR",
            13 => "EXECUTION_FAILED",
            14 => "INTERNAL_ERROR",
            15 => "NOT_SUPPORTED",
            16 => "LICENSE_ERROR",
            other => return write!(f, "status {other}"),
        };
        write!(f, "CUBLAS_STATUS_{name}")
    }
}

/// Types of elements: `cudaDataType_t`.
pub mod data_type {
    /// f32.
    pub const R_32F: i32 = 0;
    /// f16.
    pub const R_16F: i32 = 2;
    /// bf16.
    pub const R_16BF: i32 = 14;
}

/// Sums in f32: of `cublasComputeType_t`.
pub const COMPUTE_32F: i32 = 68;

/// What is done with a factor before it is multiplied: `cublasOperation_t`.
pub mod operation {
    /// Nothing.
    pub const N: i32 = 0;
    /// It is transposed.
    pub const T: i32 = 1;
}

/// What is done with the sums before they are rounded: `cublasLtEpilogue_t`.
pub mod epilogue {
    /// Nothing.
    pub const DEFAULT: u32 = 1;
    /// The bias is added, an element for each row of D.
    pub const BIAS: u32 = 4;
}

/// Attributes of a product: `cublasLtMatmulDescAttributes_t`.
pub mod matmul_attribute {
    /// `i32`: what is done with A.
    pub const TRANSA: u32 = 3;
    /// `i32`: what is done with B.
    pub const TRANSB: u32 = 4;
    /// `u32`: what is done with the sums.
    pub const EPILOGUE: u32 = 7;
    /// `u64`: where the bias is.
    pub const BIAS_POINTER: u32 = 8;
    /// `i32`: the bias's type of elements.
    pub const BIAS_DATA_TYPE: u32 = 26;
}

/// Attributes of a matrix: `cublasLtMatrixLayoutAttribute_t`.
pub mod layout_attribute {
    /// `i32`: how many there are.
    pub const BATCH_COUNT: u32 = 5;
    /// `i64`: elements from one to the next.
    pub const STRIDED_BATCH_OFFSET: u32 = 6;
}

/// Attributes of the search for an algorithm: `cublasLtMatmulPreferenceAttributes_t`.
pub mod preference_attribute {
    /// `u64`: bytes of the workspace.
    pub const MAX_WORKSPACE_BYTES: u32 = 1;
    /// `u32`: how sums of parts of the depth may be added up.
    pub const REDUCTION_SCHEME_MASK: u32 = 3;
    /// `u32`: what the address of A is a multiple of.
    pub const MIN_ALIGNMENT_A_BYTES: u32 = 5;
    /// `u32`: the same for B.
    pub const MIN_ALIGNMENT_B_BYTES: u32 = 6;
    /// `u32`: the same for C.
    pub const MIN_ALIGNMENT_C_BYTES: u32 = 7;
    /// `u32`: the same for D.
    pub const MIN_ALIGNMENT_D_BYTES: u32 = 8;
}

/// Sums of parts are added up in the type that is computed in, not in D's: of `cublasLtReductionScheme_t`.
pub const REDUCTION_COMPUTE_TYPE: u32 = 2;

/// `D = epilogue(alpha A B + beta C)` by descriptors.
#[derive(Clone, Copy, Debug)]
pub struct Problem<Object> {
    /// The product.
    pub matmul: Object,
    /// Layout of A.
    pub a: Object,
    /// Layout of B.
    pub b: Object,
    /// Layout of C.
    pub c: Object,
    /// Layout of D.
    pub d: Object,
}

/// Factors and addresses of a product.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// Factor of A B.
    pub alpha: f32,
    /// First element of A.
    pub a: u64,
    /// First element of B.
    pub b: u64,
    /// Factor of C.
    pub beta: f32,
    /// First element of C.
    pub c: u64,
    /// First element of D.
    pub d: u64,
}

/// Memory of the device that an algorithm may use while it runs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Workspace {
    /// First byte.
    pub address: u64,
    /// Bytes; 0 for none.
    pub bytes: u64,
}

/// The library on one device and one stream. Methods fail as its functions do, with what they say.
pub trait LtApi: Debug {
    /// The library's handle, or a descriptor.
    type Object: Copy + Debug;
    /// A way to compute a product.
    type Algorithm: Copy + Debug;

    /// `cublasLtCreate`.
    fn create_handle(&mut self) -> Result<Self::Object, Status>;

    /// `cublasLtMatmulDescCreate`.
    fn create_matmul(&mut self, compute_type: i32, scale_type: i32)
    -> Result<Self::Object, Status>;

    /// `cublasLtMatrixLayoutCreate`: a matrix that lies column by column.
    fn create_layout(
        &mut self,
        data_type: i32,
        rows: u64,
        columns: u64,
        leading: i64,
    ) -> Result<Self::Object, Status>;

    /// `cublasLtMatmulPreferenceCreate`.
    fn create_preference(&mut self) -> Result<Self::Object, Status>;

    /// `cublasLtMatmulDescSetAttribute`, or that of a layout or a preference.
    fn set(&mut self, object: Self::Object, attribute: u32, value: &[u8]) -> Result<(), Status>;

    /// `cublasLtDestroy`, or that of a descriptor.
    fn destroy(&mut self, object: Self::Object) -> Result<(), Status>;

    /// `cublasLtMatmulAlgoGetHeuristic`: the first algorithm; `None` if there is none.
    fn find_algorithm(
        &mut self,
        handle: Self::Object,
        problem: &Problem<Self::Object>,
        preference: Self::Object,
    ) -> Result<Option<Self::Algorithm>, Status>;

    /// `cublasLtMatmul`.
    fn matmul(
        &mut self,
        handle: Self::Object,
        problem: &Problem<Self::Object>,
        operands: &Operands,
        algorithm: &Self::Algorithm,
        workspace: Workspace,
    ) -> Result<(), Status>;
}
