//! Dense tensors with their axes in another order, a band at a time.

use std::ops::Range;

use ops::{TensorType, row_major_strides};

/// Elements along each side of a square that is transposed at once: both sides stay in the first cache.
const TILE: usize = 32;

/// How to read a dense tensor so that its axes come in another order.
#[derive(Debug)]
pub(crate) struct Permutation {
    /// Dims of the result, outermost first; neighbors that stay neighbors are one, and none is 1.
    dims: Vec<usize>,
    /// For each, elements of the source from one index to the next.
    strides: Vec<usize>,
    /// Bytes of an element.
    size: usize,
}

impl Permutation {
    /// `axes` are the axes of `ty` as the result has them, outermost first; none for their own order.
    pub(crate) fn new(ty: &TensorType, axes: &[u32]) -> Permutation {
        let source = ty.strides();
        let order: Vec<usize> = match axes {
            [] => (0..ty.rank()).collect(),
            _ => axes.iter().map(|&axis| axis as usize).collect(),
        };
        let (mut dims, mut strides): (Vec<usize>, Vec<usize>) = (vec![], vec![]);
        for axis in order {
            let (dim, stride) = (ty.shape()[axis], source[axis]);
            match (dims.last_mut(), strides.last_mut()) {
                _ if dim == 1 => {}
                (Some(outer), Some(step)) if *step == stride * dim => {
                    *outer *= dim;
                    *step = stride;
                }
                _ => {
                    dims.push(dim);
                    strides.push(stride);
                }
            }
        }
        if dims.is_empty() {
            (dims, strides) = (vec![1], vec![1]);
        }
        Permutation { dims, strides, size: ty.dtype().size() }
    }

    /// Whether the result is the source.
    pub(crate) fn is_identity(&self) -> bool {
        self.dims.len() == 1
    }

    /// Outermost dim of the result, which is what bands are cut along.
    pub(crate) fn n_rows(&self) -> usize {
        self.dims[0]
    }

    /// Bytes of the result for one index of its outermost dim.
    pub(crate) fn row_bytes(&self) -> usize {
        self.dims[1..].iter().product::<usize>() * self.size
    }

    /// Writes the part of the result at `rows` to `out`, which has its length.
    pub(crate) fn write(&self, source: &[u8], rows: Range<usize>, out: &mut [u8]) {
        let mut dims = self.dims.clone();
        dims[0] = rows.len();
        let source = &source[rows.start * self.strides[0] * self.size..];
        match self.size {
            1 => write_elements::<1>(source, &dims, &self.strides, out),
            2 => write_elements::<2>(source, &dims, &self.strides, out),
            4 => write_elements::<4>(source, &dims, &self.strides, out),
            8 => write_elements::<8>(source, &dims, &self.strides, out),
            size => unreachable!("no element type has {size} bytes"),
        }
    }
}

/// Elements of `N` bytes.
fn write_elements<const N: usize>(
    source: &[u8],
    dims: &[usize],
    strides: &[usize],
    out: &mut [u8],
) {
    let (source, _) = source.as_chunks::<N>();
    let (out, _) = out.as_chunks_mut::<N>();
    let out_strides = row_major_strides(dims);
    let last = dims.len() - 1;
    let fast = strides.iter().position(|&stride| stride == 1).unwrap_or(last);
    let outer: Vec<usize> = (0..last).filter(|&axis| axis != fast).collect();
    let mut index = vec![0; outer.len()];
    loop {
        let at = |strides: &[usize]| {
            outer.iter().zip(&index).map(|(&axis, i)| i * strides[axis]).sum::<usize>()
        };
        let (from, to) = (at(strides), at(&out_strides));
        if fast == last {
            out[to..to + dims[last]].copy_from_slice(&source[from..from + dims[last]]);
        } else {
            let (steps, out_step) = (strides[last], out_strides[fast]);
            for i0 in (0..dims[fast]).step_by(TILE) {
                for j0 in (0..dims[last]).step_by(TILE) {
                    for i in i0..dims[fast].min(i0 + TILE) {
                        for j in j0..dims[last].min(j0 + TILE) {
                            out[to + i * out_step + j] = source[from + i + j * steps];
                        }
                    }
                }
            }
        }
        // The next index of the outer axes, the innermost of them first.
        let Some(axis) = (0..outer.len()).rev().find(|&k| index[k] + 1 < dims[outer[k]]) else {
            return;
        };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use ops::DType;

    use super::*;

    /// Element by element.
    fn expected(ty: &TensorType, axes: &[u32], source: &[u8]) -> Vec<u8> {
        let shape: Vec<usize> = axes.iter().map(|&axis| ty.shape()[axis as usize]).collect();
        let (strides, size) = (ty.strides(), ty.dtype().size());
        let out_strides = row_major_strides(&shape);
        let mut out = Vec::new();
        for i in 0..ty.count() {
            let terms =
                (0..shape.len()).map(|k| i / out_strides[k] % shape[k] * strides[axes[k] as usize]);
            let from = terms.sum::<usize>() * size;
            out.extend(&source[from..from + size]);
        }
        out
    }

    #[test]
    fn every_order_of_axes_is_written_in_bands_of_any_height() {
        let orders: [&[u32]; 8] = [
            &[0, 1, 2, 3],
            &[1, 0, 2, 3],
            &[3, 2, 1, 0],
            &[0, 2, 3, 1],
            &[2, 3, 0, 1],
            &[0, 3, 1, 2],
            &[1, 2, 3, 0],
            &[3, 0, 2, 1],
        ];
        for dtype in [DType::U8, DType::Bf16, DType::F32, DType::I64] {
            for shape in [[3, 5, 7, 2], [1, 40, 1, 33], [2, 1, 70, 3], [1, 1, 1, 1]] {
                let ty = TensorType::new(dtype, shape).unwrap();
                let source: Vec<u8> = (0..ty.bytes()).map(|i| (i * 31 + i / 256) as u8).collect();
                for axes in orders {
                    let permutation = Permutation::new(&ty, axes);
                    for n_rows in [1, 2, 1000] {
                        let mut found = vec![];
                        for start in (0..permutation.n_rows()).step_by(n_rows) {
                            let rows = start..permutation.n_rows().min(start + n_rows);
                            let mut band = vec![0; rows.len() * permutation.row_bytes()];
                            permutation.write(&source, rows, &mut band);
                            found.extend(band);
                        }
                        assert_eq!(found, expected(&ty, axes, &source), "{ty} {axes:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_stays_in_order_is_one_row() {
        let ty = TensorType::new(DType::F32, [4, 1, 6]).unwrap();
        assert!(Permutation::new(&ty, &[]).is_identity());
        assert!(Permutation::new(&ty, &[1, 0, 2]).is_identity());
        assert!(!Permutation::new(&ty, &[2, 0, 1]).is_identity());
    }
}
