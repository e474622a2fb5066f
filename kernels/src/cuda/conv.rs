//! Convolution as a product: rows are positions of the window, depth is its taps and their channels.
//!
//! The matrix of windows is never stored: a block copies what its rows see at a tap straight to shared
//! memory, zeros where that is outside, and finds a doubled input's elements by halving. The weight is
//! stored with its channels innermost. Roofline: tensor cores.

use crate::Layout;
use crate::conv_site::ConvSite;
use crate::kernel::Site;
use crate::nest::Nest;

use super::access::{is_addressable, offset_bytes};
use super::code::{leaf_args, leaf_layouts, may_alias};
use super::factor::Factor;
use super::gemm::{Gemm, Left, Method, Windows, takes_copies};
use super::kernel::Packed;
use super::matmul::tunables;
use super::{Access, Arg, Base, Code, CudaKernel, Function, Gpu, Launch};

/// A convolution.
#[derive(Clone, PartialEq, Debug)]
pub struct Conv(pub Gemm);

impl Conv {
    /// Threads of a block.
    pub fn block(&self) -> [u32; 3] {
        self.0.block()
    }

    /// Takes one `conv` whose input is a view or elementwise code, and may be doubled in height and
    /// width on the way, with any elementwise code of its result.
    pub fn select(site: &Site<'_>, gpu: Gpu) -> Option<CudaKernel> {
        let conv = ConvSite::of(site)?;
        let factor = Factor::of(site, conv.input, conv.product, |_| true)?;
        let left = factor.arg.clone();
        let windows = windows(&conv, &factor.view, left.offset)?;
        let (weight, packed) = weight(site, &conv, factor.scratch_bytes)?;
        let (right, right_layout) = (weight.arg, weight.view);
        let epilogue = &conv.epilogue;
        let mut layouts = vec![site.result];
        layouts.extend(leaf_layouts(&epilogue.leaves, site.result));
        let is_within = |layout: &Layout| is_addressable(layout);
        if !layouts.iter().all(|layout| is_within(layout)) || !is_within(&factor.view) {
            return None;
        }
        let axes: Vec<usize> = (0..site.result.rank() - 1).collect();
        let rows = Nest::with_axes(&layouts, &axes);
        let strides = |index: usize| -> Vec<u32> {
            let step = |axis: usize| if rows.dim(axis) == 1 { 0 } else { rows.stride(axis, index) };
            let rows = (0..rows.rank()).map(|axis| step(axis) as u32);
            rows.chain(layouts[index].strides.last().map(|&stride| stride as u32)).collect()
        };
        let depth = conv.kernel.iter().product::<usize>() * conv.channels;
        let right_access = Access {
            dtype: right_layout.dtype,
            strides: right_layout.strides.iter().map(|&stride| stride as u32).collect(),
        };
        let to = Arg { base: Base::Result, offset: offset_bytes(site.result) };
        let args: Vec<Arg> =
            [left, right.clone(), to].into_iter().chain(leaf_args(&epilogue.leaves)).collect();
        let gemm = Gemm {
            batch: vec![],
            rows: (0..rows.rank()).map(|axis| rows.dim(axis) as u32).collect(),
            columns: u32::try_from(conv.columns).ok()?,
            depth: u32::try_from(depth).ok()?,
            product: conv.product,
            left: Left::Windows(windows),
            copies_right: takes_copies(&right_access, right.offset, depth),
            right: right_access,
            result: Access { dtype: site.result.dtype, strides: strides(0) },
            epilogue: Code::of(epilogue, |leaf| strides(1 + leaf))?,
            vector: 1,
            method: Method::Scalar,
        }
        .tuned(&args, gpu, site.target)?;
        let in_place = (0..site.operands.len())
            .map(|operand| {
                !factor.reads(operand)
                    && operand != conv.weight
                    && may_alias(&[epilogue], operand, site.result)
            })
            .collect();
        let tunables = tunables(&gemm);
        let mut launches = factor.launches;
        launches.extend(weight.launches);
        launches.push(Launch { grid: gemm.grid()?, function: Function::Conv(Conv(gemm)), args });
        Some(CudaKernel {
            name: "conv",
            tunables,
            launches,
            scratch_bytes: factor.scratch_bytes.max(weight.scratch_bytes),
            packed,
            in_place,
        })
    }
}

/// What the window slides over.
fn windows(conv: &ConvSite, view: &Layout, offset: usize) -> Option<Windows> {
    let small = |dims: [usize; 3]| dims.map(|dim| dim as u32);
    let access = Access {
        dtype: view.dtype,
        strides: ConvSite::input_strides(view).iter().map(|&stride| stride as u32).collect(),
    };
    let windows = Windows {
        copies: takes_copies(&access, offset, conv.channels),
        access,
        channels: u32::try_from(conv.channels).ok()?,
        dims: small(conv.dims),
        is_doubled: conv.is_doubled,
        output: small(conv.output),
        kernel: small(conv.kernel),
        stride: small(conv.stride),
        pad_low: small(conv.pad_low),
    };
    windows.fits_a_word().then_some(windows)
}

/// The weight over output channels and depth, taps before channels, and how it is stored for that. Where
/// no one stride steps through the depth of the stored form, it is copied to scratch from byte `scratch`
/// on.
fn weight(site: &Site<'_>, conv: &ConvSite, scratch: usize) -> Option<(Factor, Option<Packed>)> {
    let whole = &site.operands[conv.weight];
    let view = &conv.weight_view;
    let axes: Vec<usize> = std::iter::once(0).chain(2..view.rank()).chain([1]).collect();
    let shape = [view.shape[0], view.shape[1..].iter().product()];
    let flat = |layout: &Layout| layout.permuted(&axes).reshaped(&shape);
    if let Some(flat) = flat(view) {
        return Some((Factor::at(conv.weight, &flat), None));
    }
    // A part of a weight has the whole's strides, and starts at an element of it.
    let is_kept = *site.is_param.get(conv.weight)? && whole.is_dense() && whole.offset == 0;
    if is_kept && whole.strides == view.strides {
        let stored_shape: Vec<usize> = axes.iter().map(|&axis| whole.shape[axis]).collect();
        let mut stored = Layout { offset: 0, ..view.clone() };
        for (&axis, stride) in axes.iter().zip(ops::row_major_strides(&stored_shape)) {
            let start = view.offset / whole.strides[axis] % whole.shape[axis];
            stored.offset += start * stride;
            stored.strides[axis] = stride;
        }
        if let Some(flat) = flat(&stored) {
            let (shape, element_bytes) = (whole.shape.clone(), whole.dtype.size());
            let packed = Packed { operand: conv.weight, shape, element_bytes, axes };
            return Some((Factor::at(conv.weight, &flat), Some(packed)));
        }
    }
    let copied = Factor::copied(conv.weight, &view.permuted(&axes), scratch)?;
    let view = copied.view.reshaped(&shape)?;
    Some((Factor { view, ..copied }, None))
}
