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
        let (right_layout, packed) = weight(site, &conv)?;
        let right = Arg { base: Base::Operand(conv.weight), offset: offset_bytes(&right_layout) };
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
        .tuned(&args, gpu)?;
        let in_place = (0..site.operands.len())
            .map(|operand| {
                !factor.reads(operand)
                    && operand != conv.weight
                    && may_alias(&[epilogue], operand, site.result)
            })
            .collect();
        let tunables = tunables(&gemm);
        let mut launches = factor.launches;
        launches.push(Launch { grid: gemm.grid()?, function: Function::Conv(Conv(gemm)), args });
        Some(CudaKernel {
            name: "conv",
            tunables,
            launches,
            scratch_bytes: factor.scratch_bytes,
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

/// The weight over output channels and depth, and how it is stored for that: with the channels behind
/// the taps. `None` if the depth's order is not that of any one stride.
fn weight(site: &Site<'_>, conv: &ConvSite) -> Option<(Layout, Option<Packed>)> {
    let whole = &site.operands[conv.weight];
    let view = &conv.weight_view;
    let rank = view.rank();
    let axes: Vec<usize> = std::iter::once(0).chain(2..rank).chain([1]).collect();
    let depth = view.shape[1..].iter().product();
    let flat = |layout: &Layout| layout.permuted(&axes).reshaped(&[view.shape[0], depth]);
    let is_kept = *site.is_param.get(conv.weight)? && whole.is_dense() && whole.offset == 0;
    // A part of the weight has the whole's strides, and starts at an element of it.
    if !is_kept || whole.rank() != rank || whole.strides != view.strides {
        return flat(view).map(|layout| (layout, None));
    }
    if view.shape[1] == 1 || view.shape[2..].iter().all(|&dim| dim == 1) && whole == view {
        return flat(view).map(|layout| (layout, None));
    }
    let packed_shape: Vec<usize> = axes.iter().map(|&axis| whole.shape[axis]).collect();
    let packed_strides = ops::row_major_strides(&packed_shape);
    let mut stored = view.clone();
    (stored.offset, stored.strides) = (0, vec![0; rank]);
    for (&axis, &stride) in axes.iter().zip(&packed_strides) {
        let start = view.offset / whole.strides[axis] % whole.shape[axis];
        stored.offset += start * stride;
        stored.strides[axis] = stride;
    }
    let packed = Packed {
        operand: conv.weight,
        shape: whole.shape.clone(),
        element_bytes: whole.dtype.size(),
        axes: axes.clone(),
    };
    Some((flat(&stored)?, Some(packed)))
}
