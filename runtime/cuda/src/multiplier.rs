//! Products of an engine as calls of cuBLASLt: described once, with their addresses, and called in every run.
//!
//! The library's matrices lie column by column, the engine's row by row, which is the same memory read as the
//! transposed matrix. So what is computed is `result^T = right left^T`: the library's A is the right factor, its B
//! the left one, and its rows are columns of the result, to each of which belongs an element of the bias. The
//! residual is C, with a factor of 1.

use engine::{Matrix, Product};
use ops::DType;

use crate::device::ProductId;
use crate::error::Error;
use crate::lt::{
    self, LtApi, Operands, Problem, Status, Workspace, data_type, epilogue, layout_attribute,
    matmul_attribute, operation, preference_attribute,
};

/// Bytes that the library asks an address to be a multiple of at most.
const MOST_ALIGNED: u32 = 256;

/// The products of one device.
#[derive(Debug)]
pub struct Multiplier<A: LtApi> {
    api: A,
    handle: A::Object,
    prepared: Vec<Prepared<A>>,
}

/// A product that can be called.
#[derive(Debug)]
struct Prepared<A: LtApi> {
    problem: Problem<A::Object>,
    operands: Operands,
    algorithm: A::Algorithm,
    workspace: Workspace,
}

/// The error of a call that was `doing` something.
fn failed(doing: &'static str) -> impl Fn(Status) -> Error + Copy {
    move |status| Error::Library { doing, status: status.to_string() }
}

impl<A: LtApi> Multiplier<A> {
    /// Makes a handle of the library.
    ///
    /// # Errors
    /// [`Error::Library`].
    pub fn new(mut api: A) -> Result<Multiplier<A>, Error> {
        let handle = api.create_handle().map_err(failed("make a handle"))?;
        Ok(Multiplier { api, handle, prepared: vec![] })
    }

    /// What is called.
    pub fn api(&mut self) -> &mut A {
        &mut self.api
    }

    /// Describes `product` on a launch's `pointers` and finds an algorithm. `None` if the library has none.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the product is not of these pointers; [`Error::Library`].
    pub fn prepare(
        &mut self,
        product: &Product,
        pointers: &[u64],
        workspace: Workspace,
    ) -> Result<Option<ProductId>, Error> {
        spans(product, pointers)?;
        let mut made = vec![];
        match self.prepare_of(product, pointers, workspace, &mut made) {
            Ok(Some(prepared)) => {
                self.prepared.push(prepared);
                Ok(Some(ProductId::new(self.prepared.len() - 1)))
            }
            without => {
                for object in made {
                    // What failed before is what is told.
                    let _ = self.api.destroy(object);
                }
                without.map(|_| None)
            }
        }
    }

    /// Computes a product.
    ///
    /// # Errors
    /// [`Error::Misuse`] for one that was not prepared here; [`Error::Library`].
    pub fn multiply(&mut self, product: ProductId) -> Result<(), Error> {
        let number = product.number();
        let unknown = || Error::Misuse(format!("product {number} is not of this device"));
        let prepared = self.prepared.get(number).ok_or_else(unknown)?;
        let Prepared { problem, operands, algorithm, workspace } = prepared;
        self.api
            .matmul(self.handle, problem, operands, algorithm, *workspace)
            .map_err(failed("compute a product"))
    }

    /// The product and its algorithm. `made` gets what the description consists of.
    fn prepare_of(
        &mut self,
        product: &Product,
        pointers: &[u64],
        workspace: Workspace,
        made: &mut Vec<A::Object>,
    ) -> Result<Option<Prepared<A>>, Error> {
        let described = describe(&mut self.api, product, pointers, made);
        let (problem, operands) = described.map_err(failed("describe a product"))?;
        let failed = failed("look for an algorithm");
        let preference = self.api.create_preference().map_err(failed)?;
        let set = set_preference(&mut self.api, preference, &operands, workspace);
        let found = set.and_then(|()| self.api.find_algorithm(self.handle, &problem, preference));
        let destroyed = self.api.destroy(preference);
        let found = match found {
            Err(Status::NOT_SUPPORTED) => None,
            found => destroyed.and(found).map_err(failed)?,
        };
        Ok(found.map(|algorithm| Prepared { problem, operands, algorithm, workspace }))
    }
}

/// Makes descriptors of `product` on `pointers`. `made` gets all of them, also when one fails.
pub(crate) fn describe<A: LtApi>(
    api: &mut A,
    product: &Product,
    pointers: &[u64],
    made: &mut Vec<A::Object>,
) -> Result<(Problem<A::Object>, Operands), Status> {
    let Product { factors, sums, batch, rows, columns, depth, .. } = *product;
    let Product { left, right, result, bias, residual, .. } = product;
    let added = residual.as_ref().unwrap_or(result);

    let matmul = api.create_matmul(lt::COMPUTE_32F, data_type::R_32F)?;
    made.push(matmul);
    // What the engine has as columns x depth is there depth x columns, and A's transpose; rows x depth is B.
    let of_a = if right.is_transposed { operation::N } else { operation::T };
    let of_b = if left.is_transposed { operation::T } else { operation::N };
    let of_sums = if bias.is_some() { epilogue::BIAS } else { epilogue::DEFAULT };
    api.set(matmul, matmul_attribute::TRANSA, &of_a.to_ne_bytes())?;
    api.set(matmul, matmul_attribute::TRANSB, &of_b.to_ne_bytes())?;
    api.set(matmul, matmul_attribute::EPILOGUE, &of_sums.to_ne_bytes())?;
    if let Some(bias) = bias {
        // Set before an algorithm is looked for, which depends on the address's alignment.
        let address = pointers[*bias as usize];
        api.set(matmul, matmul_attribute::BIAS_POINTER, &address.to_ne_bytes())?;
        api.set(matmul, matmul_attribute::BIAS_DATA_TYPE, &number(sums).to_ne_bytes())?;
    }

    let mut layout = |matrix: &Matrix, dtype, [rows, columns]: [u32; 2]| -> Result<_, Status> {
        let line = matrix.line(rows, columns);
        let n_lines = if matrix.is_transposed { columns } else { rows };
        let leading = matrix.leading as i64;
        let layout = api.create_layout(number(dtype), line.into(), n_lines.into(), leading)?;
        made.push(layout);
        if batch > 1 {
            let (count, stride) = (batch as i32, matrix.batch_stride as i64);
            api.set(layout, layout_attribute::BATCH_COUNT, &count.to_ne_bytes())?;
            api.set(layout, layout_attribute::STRIDED_BATCH_OFFSET, &stride.to_ne_bytes())?;
        }
        Ok(layout)
    };
    let a = layout(right, factors, [columns, depth])?;
    let b = layout(left, factors, [rows, depth])?;
    let c = layout(added, sums, [rows, columns])?;
    let d = layout(result, sums, [rows, columns])?;
    let address = |matrix: &Matrix| pointers[matrix.pointer as usize];
    let operands = Operands {
        alpha: 1.0,
        a: address(right),
        b: address(left),
        beta: if residual.is_some() { 1.0 } else { 0.0 },
        c: address(added),
        d: address(result),
    };
    Ok((Problem { matmul, a, b, c, d }, operands))
}

/// Says what an algorithm may rely on: these addresses and this workspace. Sums of parts of the depth are to be added
/// up in f32, as kernels do.
pub(crate) fn set_preference<A: LtApi>(
    api: &mut A,
    preference: A::Object,
    operands: &Operands,
    workspace: Workspace,
) -> Result<(), Status> {
    use preference_attribute as attribute;
    let mut set = |attribute, value: &[u8]| api.set(preference, attribute, value);
    set(attribute::MAX_WORKSPACE_BYTES, &workspace.bytes.to_ne_bytes())?;
    set(attribute::REDUCTION_SCHEME_MASK, &lt::REDUCTION_COMPUTE_TYPE.to_ne_bytes())?;
    set(attribute::MIN_ALIGNMENT_A_BYTES, &alignment(operands.a).to_ne_bytes())?;
    set(attribute::MIN_ALIGNMENT_B_BYTES, &alignment(operands.b).to_ne_bytes())?;
    set(attribute::MIN_ALIGNMENT_C_BYTES, &alignment(operands.c).to_ne_bytes())?;
    set(attribute::MIN_ALIGNMENT_D_BYTES, &alignment(operands.d).to_ne_bytes())
}

/// First bytes and numbers of bytes of what `product` reads and writes of a launch's `pointers`.
///
/// # Errors
/// [`Error::Misuse`] if it is not of these pointers.
pub(crate) fn spans(product: &Product, pointers: &[u64]) -> Result<Vec<(u64, u64)>, Error> {
    let at = |(pointer, bytes): (u32, u64)| Some((*pointers.get(pointer as usize)?, bytes));
    let spans = product.spans().and_then(|spans| spans.into_iter().map(at).collect());
    spans.ok_or_else(|| {
        Error::Misuse(format!("a product that is not of a launch with {} pointers", pointers.len()))
    })
}

/// The power of two that `address` is a multiple of, as far as the library asks for it.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(MOST_ALIGNED.trailing_zeros())
}

/// The library's number of an element type of products.
fn number(dtype: DType) -> i32 {
    match dtype {
        DType::F16 => data_type::R_16F,
        DType::Bf16 => data_type::R_16BF,
        DType::F32 => data_type::R_32F,
        DType::I64 | DType::I32 | DType::U8 | DType::Bool => {
            unreachable!("the engine's reader refuses products of {dtype}")
        }
    }
}

impl<A: LtApi> Drop for Multiplier<A> {
    fn drop(&mut self) {
        // Failures cannot be told any more.
        for prepared in &self.prepared {
            let Problem { matmul, a, b, c, d } = prepared.problem;
            for object in [matmul, a, b, c, d] {
                let _ = self.api.destroy(object);
            }
        }
        let _ = self.api.destroy(self.handle);
    }
}
