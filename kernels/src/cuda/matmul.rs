//! `matmul` with what is fused into it.
//!
//! A is read where it lies if it is a view whose rows can be copied 16 bytes at a time; what goes
//! through a norm or elementwise code is made in scratch before, in the product's type. Roofline: tensor cores for many rows, the
//! memory that weights are read from for few.

use ops::{Attr, DType};

use crate::Layout;
use crate::kernel::Site;
use crate::matmul_site::MatmulSite;
use crate::nest::Nest;

use super::access::{is_addressable, offset_bytes};
use super::code::{leaf_args, leaf_layouts, may_alias};
use super::factor::Factor;
use super::gemm::{COPY_ELEMENTS, FEW_ROWS, Gemm, Left, Method, takes_copies};
use super::kernel::Packed;
use super::{Access, Arg, Base, Code, CudaKernel, Function, Gpu, Launch};

/// A product.
#[derive(Clone, PartialEq, Debug)]
pub struct Matmul(pub Gemm);

impl Matmul {
    /// Threads of a block.
    pub fn block(&self) -> [u32; 3] {
        self.0.block()
    }

    /// Takes one `matmul` with a norm and elementwise code of A, and elementwise code of its result.
    pub fn select(site: &Site<'_>, gpu: Gpu) -> Option<CudaKernel> {
        let product = MatmulSite::of(site)?;
        // What cannot be copied as it lies is made dense before, unless that would not help.
        let helps = product.product != DType::F32
            && product.depth.is_multiple_of(COPY_ELEMENTS)
            && product.rows.iter().product::<usize>() > FEW_ROWS as usize
            && !product.transposes_a();
        let factor = Factor::of(site, product.a, product.product, |view| {
            !helps || copies_rows(&product, view)
        })?;
        let left = factor.arg.clone();
        let a_rows = product.a_rows(&factor.view);
        let packed = packed(site, &product);
        let (b_depth_stride, b_column_stride) =
            if packed.is_some() { (1, product.depth) } else { product.b_strides() };
        let right = Arg {
            base: Base::Operand(product.b),
            offset: if packed.is_some() { 0 } else { offset_bytes(&product.b_view) },
        };
        let epilogue = &product.epilogue;
        // Rows of A, the result and what its code reads step together.
        let leading = product.batch.len() + product.rows.len();
        let mut layouts = vec![site.result, &a_rows];
        layouts.extend(leaf_layouts(&epilogue.leaves, site.result));
        if !layouts.iter().all(|layout| is_addressable(layout)) || !is_addressable(&product.b_view)
        {
            return None;
        }
        let axes: Vec<usize> = (product.batch.len()..leading).collect();
        let rows = Nest::with_axes(&layouts, &axes);
        let strides = |index: usize| -> Vec<u32> {
            let layout = layouts[index];
            let batch = layout.strides[..product.batch.len()].iter().map(|&stride| stride as u32);
            // A single row is at its pointer, whatever its stride.
            let step = |axis: usize| if rows.dim(axis) == 1 { 0 } else { rows.stride(axis, index) };
            let rows = (0..rows.rank()).map(|axis| step(axis) as u32);
            batch.chain(rows).chain(layout.strides.last().map(|&stride| stride as u32)).collect()
        };
        let access = |layout: &Layout, strides| Access { dtype: layout.dtype, strides };
        let left_access = access(&factor.view, strides(1));
        let b_batch = product.b_batch_strides();
        let right_access = access(
            &product.b_view,
            b_batch
                .into_iter()
                .chain([b_column_stride, b_depth_stride])
                .map(|x| x as u32)
                .collect(),
        );
        let to = Arg { base: Base::Result, offset: offset_bytes(site.result) };
        let args: Vec<Arg> = [left.clone(), right.clone(), to]
            .into_iter()
            .chain(leaf_args(&epilogue.leaves))
            .collect();
        let gemm = Gemm {
            batch: product.batch.iter().map(|&dim| dim as u32).collect(),
            rows: (0..rows.rank()).map(|axis| rows.dim(axis) as u32).collect(),
            columns: u32::try_from(product.columns).ok()?,
            depth: u32::try_from(product.depth).ok()?,
            product: product.product,
            copies_right: takes_copies(&right_access, right.offset, product.depth),
            left: Left::Matrix {
                copies: takes_copies(&left_access, left.offset, product.depth),
                access: left_access,
            },
            right: right_access,
            result: access(site.result, strides(0)),
            epilogue: Code::of(epilogue, |leaf| strides(2 + leaf))?,
            vector: 1,
            method: Method::Few,
        }
        .tuned(&args, gpu, site.target)?;
        let in_place = (0..site.operands.len())
            .map(|operand| {
                !factor.reads(operand)
                    && operand != product.b
                    && may_alias(&[epilogue], operand, site.result)
            })
            .collect();
        let tunables = tunables(&gemm);
        let mut launches = factor.launches;
        launches.push(Launch {
            grid: gemm.grid()?,
            function: Function::Matmul(Matmul(gemm)),
            args,
        });
        Some(CudaKernel {
            name: "matmul",
            tunables,
            launches,
            scratch_bytes: factor.scratch_bytes,
            packed,
            in_place,
        })
    }
}

/// Whether a view of A can be copied 16 bytes at a time along the depth.
fn copies_rows(product: &MatmulSite<'_>, view: &Layout) -> bool {
    let rows = product.a_rows(view);
    let strides = rows.shape.iter().zip(&rows.strides);
    // An axis of one element is never stepped along.
    let strides = strides.map(|(&dim, &stride)| if dim == 1 { 0 } else { stride as u32 });
    let access = Access { dtype: view.dtype, strides: strides.collect() };
    takes_copies(&access, offset_bytes(view), product.depth)
}

/// What is printed of the choice.
pub(super) fn tunables(gemm: &Gemm) -> Vec<(&'static str, Attr)> {
    match gemm.method {
        Method::Tensor(tile) => vec![
            ("rows", Attr::Int(tile.rows.into())),
            ("columns", Attr::Int(tile.columns.into())),
            ("depth", Attr::Int(tile.depth.into())),
            ("stages", Attr::Int(tile.stages.into())),
            ("way", Attr::Str("tensor".to_owned())),
        ],
        Method::Group(tile) => vec![
            ("rows", Attr::Int(tile.rows.into())),
            ("columns", Attr::Int(tile.columns.into())),
            ("stages", Attr::Int(tile.stages.into())),
            ("way", Attr::Str("group".to_owned())),
        ],
        Method::Scalar => vec![("way", Attr::Str("scalar".to_owned()))],
        Method::Few => vec![("way", Attr::Str("few".to_owned()))],
    }
}

/// A weight whose depth does not run along its rows is stored so that it does.
fn packed(site: &Site<'_>, product: &MatmulSite<'_>) -> Option<Packed> {
    let whole = &site.operands[product.b];
    let is_whole =
        whole.rank() == 2 && whole.offset == 0 && whole.count() == product.b_view.count();
    let (depth_stride, column_stride) = product.b_strides();
    let runs_along_columns = column_stride == 1 && depth_stride == product.columns;
    (product.is_weight
        && is_whole
        && runs_along_columns
        && product.columns > 1
        && product.depth > 1)
        .then(|| Packed {
            operand: product.b,
            shape: whole.shape.clone(),
            element_bytes: whole.dtype.size(),
            axes: vec![1, 0],
        })
}
