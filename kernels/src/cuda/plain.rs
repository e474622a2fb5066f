//! Launches that are a plain product of matrices: what a library of products can do in their place, in one call.
//!
//! Plain is `left right^T`, both factors halves whose rows or columns are evenly apart, summed in f32; to the sums at
//! most a bias per column and a residual is added before they are rounded, once. A norm or code before the
//! product does no harm, since a launch of its own makes it in scratch, nor does a weight in another order of
//! axes, which is a matrix as well. Any other code of the sums (an activation, a gate) makes a product
//! not plain: what a library has of it is not known to round as the kernel does. Left out, too, are products of few
//! rows, for which there is a kernel of their own, and matrices that cannot be read 16 bytes at a time.

use ops::DType;
use ops::defs::binary::Binary;

use crate::program::{Instr, Program};

use super::gemm::{COPY_BYTES, Gemm, Left, Method};
use super::matmul::Matmul;
use super::{Access, Arg, Function, Launch};

/// `result[b, i, j] = sum over k of left[b, i, k] right[b, j, k] + bias[j] + residual[b, i, j]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlainProduct {
    /// Element type of both factors: bf16 or f16.
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
    /// `[rows, columns]`, never transposed.
    pub result: Matrix,
    /// Which pointer of the launch the bias is, if there is one.
    pub bias: Option<usize>,
    /// `[rows, columns]`, never transposed.
    pub residual: Option<Matrix>,
}

/// Where the elements of a matrix of each product lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Matrix {
    /// Which pointer of the launch.
    pub pointer: usize,
    /// Whether columns lie one after the other instead of rows.
    pub is_transposed: bool,
    /// Elements from one row to the next; from one column to the next if it is transposed.
    pub leading: u32,
    /// Elements from the matrix of one product to that of the next.
    pub batch_stride: u32,
}

impl PlainProduct {
    /// What `launch` computes, if that is a plain product.
    pub fn of(launch: &Launch) -> Option<PlainProduct> {
        let Function::Matmul(Matmul(gemm)) = &launch.function else { return None };
        if !matches!(gemm.method, Method::Tensor(_) | Method::Group(_)) {
            return None;
        }
        let Left::Matrix { access: left, copies: _ } = &gemm.left else { return None };
        let (factors, sums) = (gemm.product, gemm.result.dtype);
        let are_of_types = left.dtype == factors
            && gemm.right.dtype == factors
            && [factors, DType::F32].contains(&sums)
            && gemm.epilogue.program.result() == sums;
        if !are_of_types {
            return None;
        }
        let view = View::of(gemm, &launch.args)?;
        let (rows, columns, depth) = (view.rows, gemm.columns, gemm.depth);
        // Where rows are numbered over several axes, all but the last one are products, which share the right factor.
        let (of_batch, of_lines) = gemm.right.strides.split_at(gemm.batch.len());
        let shared = vec![0; view.outer.len()];
        let right = Access { dtype: factors, strides: [of_batch, &shared[..], of_lines].concat() };
        let mut product = PlainProduct {
            factors,
            sums,
            batch: view.batch.iter().try_fold(1u32, |product, &dim| product.checked_mul(dim))?,
            rows,
            columns,
            depth,
            left: view.matrix(0, left, [rows, depth])?,
            right: view.matrix(1, &right, [columns, depth])?,
            result: view.matrix(2, &gemm.result, [rows, columns])?,
            bias: None,
            residual: None,
        };
        let memory = gemm.epilogue.slots.iter().enumerate().filter(|(_, slot)| slot.is_some());
        let pointers: Vec<usize> = memory.map(|(slot, _)| slot).collect();
        let mut n_sums = 0;
        for slot in addends(&gemm.epilogue.program)? {
            let Some(access) = &gemm.epilogue.slots[slot] else {
                n_sums += 1;
                continue;
            };
            if access.dtype != sums {
                return None;
            }
            let pointer = 3 + pointers.iter().position(|&other| other == slot)?;
            if product.bias.is_none() && view.is_bias(pointer, access) {
                product.bias = Some(pointer);
            } else if product.residual.is_none() {
                let matrix = view.matrix(pointer, access, [rows, columns])?;
                product.residual = Some(matrix);
            } else {
                return None;
            }
        }
        let as_it_is = [Some(product.result), product.residual].into_iter().flatten();
        let is_plain = n_sums == 1 && as_it_is.into_iter().all(|matrix| !matrix.is_transposed);
        is_plain.then_some(product)
    }
}

/// The loops of a launch as those of products of matrices.
struct View<'a> {
    args: &'a [Arg],
    /// Dims that products are numbered over.
    batch: Vec<u32>,
    /// Those of them that are rows in the launch.
    outer: &'a [u32],
    /// Rows of one product.
    rows: u32,
}

impl<'a> View<'a> {
    fn of(gemm: &'a Gemm, args: &'a [Arg]) -> Option<View<'a>> {
        let (&rows, outer) = gemm.rows.split_last()?;
        Some(View { args, batch: [&gemm.batch, outer].concat(), outer, rows })
    }

    /// What pointer `pointer` reads or writes over the batch and `dims`, if those are evenly spaced matrices.
    fn matrix(&self, pointer: usize, access: &Access, dims: [u32; 2]) -> Option<Matrix> {
        let (batch, lines) = access.strides.split_at(self.batch.len());
        let (&[rows, columns], &[row, column]) = (&dims, lines) else { return None };
        let (is_transposed, leading) = match (row, column) {
            (_, 1) if row >= columns => (false, row),
            (1, _) if column >= rows => (true, column),
            _ => return None,
        };
        let batch_stride = even_stride(&self.batch, batch)?;
        let is_aligned = |elements: u32| {
            (elements as usize * access.dtype.size()).is_multiple_of(COPY_BYTES as usize)
        };
        (is_aligned(leading) && is_aligned(batch_stride) && self.is_aligned(pointer))
            .then_some(Matrix { pointer, is_transposed, leading, batch_stride })
    }

    /// Whether every row of every product reads the same elements, one for each column.
    fn is_bias(&self, pointer: usize, access: &Access) -> bool {
        let (batch, lines) = access.strides.split_at(self.batch.len());
        lines == [0, 1] && even_stride(&self.batch, batch) == Some(0) && self.is_aligned(pointer)
    }

    fn is_aligned(&self, pointer: usize) -> bool {
        self.args[pointer].offset.is_multiple_of(COPY_BYTES as usize)
    }
}

/// The distance between neighbors where axes of `dims` are numbered as one; `None` if they are not evenly apart.
fn even_stride(dims: &[u32], strides: &[u32]) -> Option<u32> {
    // Of the inner axes, and how many they number.
    let mut inner: Option<(u32, u32)> = None;
    for (&dim, &stride) in dims.iter().zip(strides).rev().filter(|(dim, _)| **dim > 1) {
        inner = Some(match inner {
            None => (stride, dim),
            Some((step, count)) if step.checked_mul(count)? == stride => (step, count * dim),
            Some(_) => return None,
        });
    }
    Some(inner.map_or(0, |(step, _)| step))
}

/// Most terms of a sum that one call computes: the product, a bias, a residual.
const MAX_ADDENDS: usize = 3;

/// The slots that `program` adds up, if it does nothing else.
fn addends(program: &Program) -> Option<Vec<usize>> {
    let instrs = program.instrs();
    let (mut slots, mut open) = (vec![], vec![instrs.len() - 1]);
    while let Some(at) = open.pop() {
        match instrs[at] {
            Instr::Load { slot } => slots.push(slot),
            Instr::Binary { op: Binary::Add, x, y } => open.extend([x.index(), y.index()]),
            Instr::Binary { .. }
            | Instr::Const(_)
            | Instr::Unary { .. }
            | Instr::Select { .. }
            | Instr::Round { .. } => return None,
        }
        if slots.len() + open.len() > MAX_ADDENDS {
            return None;
        }
    }
    Some(slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_that_are_evenly_apart_are_numbered_as_one() {
        assert_eq!(even_stride(&[], &[]), Some(0));
        assert_eq!(even_stride(&[1, 1], &[7, 9]), Some(0));
        assert_eq!(even_stride(&[2, 3], &[30, 10]), Some(10));
        assert_eq!(even_stride(&[2, 1, 3], &[30, 5, 10]), Some(10));
        assert_eq!(even_stride(&[2, 3], &[0, 0]), Some(0));
        assert_eq!(even_stride(&[2, 3], &[0, 10]), None);
        assert_eq!(even_stride(&[2, 3], &[40, 10]), None);
    }
}
