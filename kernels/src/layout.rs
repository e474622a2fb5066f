//! Where the elements of a value lie in a buffer.
//!
//! A [`Layout`] is known when a plan is compiled; a base pointer is bound to it at run time. Views
//! (reshapes, permutes, slices and broadcasts of a stored value) differ from the value only here.

use std::fmt;

use ops::{DType, TensorType, row_major_strides};

/// Element type, shape, strides and start of a value within a buffer. Strides and offset count
/// elements; a stride of 0 repeats. Prints as `f32[2, 3] {3, 1} + 6`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Layout {
    /// Element type.
    pub dtype: DType,
    /// Dims, outermost first.
    pub shape: Vec<usize>,
    /// Distance between neighbors along each axis, in elements.
    pub strides: Vec<usize>,
    /// Position of element 0, in elements.
    pub offset: usize,
}

impl Layout {
    /// Dense, row-major, from the buffer's start.
    pub fn dense(ty: &TensorType) -> Layout {
        Layout {
            dtype: ty.dtype(),
            shape: ty.shape().to_vec(),
            strides: row_major_strides(ty.shape()),
            offset: 0,
        }
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Whether elements lie one after the other in row-major order.
    pub fn is_dense(&self) -> bool {
        let dense = row_major_strides(&self.shape);
        (0..self.rank()).all(|axis| self.shape[axis] == 1 || self.strides[axis] == dense[axis])
    }

    /// Elements that a buffer must hold for this layout: one past the largest position.
    pub fn extent(&self) -> usize {
        let last: usize = self.shape.iter().zip(&self.strides).map(|(d, s)| (d - 1) * s).sum();
        self.offset + last + 1
    }

    /// Whether this and another layout of the same buffer surely have no element in common. `false`
    /// may also mean that it is not obvious: what is looked for is a range of positions, or of
    /// positions modulo a stride, that holds all of one and nothing of the other.
    pub fn is_disjoint_from(&self, other: &Layout) -> bool {
        let strides = self.strides.iter().chain(&other.strides).copied();
        let moduli = strides.filter(|&stride| stride > 1).chain([usize::MAX]);
        moduli.into_iter().any(|modulus| match (self.residues(modulus), other.residues(modulus)) {
            (Some(a), Some(b)) => a.1 < b.0 || b.1 < a.0,
            _ => false,
        })
    }

    /// The smallest and largest of all positions modulo `modulus`; `None` where they wrap around.
    fn residues(&self, modulus: usize) -> Option<(usize, usize)> {
        let first = self.offset % modulus;
        let spread: usize = self
            .shape
            .iter()
            .zip(&self.strides)
            .filter(|(_, stride)| !stride.is_multiple_of(modulus))
            .map(|(dim, stride)| (dim - 1) * stride)
            .sum();
        (first + spread < modulus).then_some((first, first + spread))
    }

    /// The axes `axes`, in that order.
    #[must_use]
    pub fn permuted(&self, axes: &[usize]) -> Layout {
        Layout {
            dtype: self.dtype,
            shape: axes.iter().map(|&axis| self.shape[axis]).collect(),
            strides: axes.iter().map(|&axis| self.strides[axis]).collect(),
            offset: self.offset,
        }
    }

    /// Every `step`-th element from `start` of each axis, `shape` of them.
    #[must_use]
    pub fn sliced(&self, start: &[usize], shape: &[usize], step: &[usize]) -> Layout {
        Layout {
            dtype: self.dtype,
            shape: shape.to_vec(),
            strides: self.strides.iter().zip(step).map(|(stride, step)| stride * step).collect(),
            offset: self.offset
                + start.iter().zip(&self.strides).map(|(i, s)| i * s).sum::<usize>(),
        }
    }

    /// Repeated along axes where this has dim 1 and `shape` has more.
    #[must_use]
    pub fn broadcast(&self, shape: &[usize]) -> Layout {
        let strides = (0..shape.len())
            .map(|axis| if self.shape[axis] == shape[axis] { self.strides[axis] } else { 0 })
            .collect();
        Layout { dtype: self.dtype, shape: shape.to_vec(), strides, offset: self.offset }
    }

    /// The same elements in row-major order under another shape, if strides can say so.
    pub fn reshaped(&self, shape: &[usize]) -> Option<Layout> {
        // Neighboring axes that step evenly form one run; a new axis must lie within a run.
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (&dim, &stride) in self.shape.iter().zip(&self.strides) {
            match runs.last_mut() {
                _ if dim == 1 => {}
                Some(run) if run.1 == stride * dim => *run = (run.0 * dim, stride),
                _ => runs.push((dim, stride)),
            }
        }
        let mut strides = vec![0; shape.len()];
        // Elements of the current run not yet handed out, and the step between them.
        let (mut left, mut stride) = (1, 1);
        for axis in (0..shape.len()).rev() {
            let dim = shape[axis];
            if dim != 1 && left == 1 {
                (left, stride) = runs.pop()?;
            }
            if !left.is_multiple_of(dim) {
                return None;
            }
            strides[axis] = stride;
            left /= dim;
            stride *= dim;
        }
        Some(Layout { dtype: self.dtype, shape: shape.to_vec(), strides, offset: self.offset })
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |xs: &[usize]| xs.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        write!(f, "{}[{}]", self.dtype, join(&self.shape))?;
        if !self.is_dense() {
            write!(f, " {{{}}}", join(&self.strides))?;
        }
        if self.offset != 0 {
            write!(f, " + {}", self.offset)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dense(shape: &[usize]) -> Layout {
        Layout::dense(&TensorType::new(DType::F32, shape).unwrap())
    }

    fn positions(layout: &Layout) -> Vec<usize> {
        let dense = row_major_strides(&layout.shape);
        (0..layout.count())
            .map(|i| {
                (0..layout.rank())
                    .map(|axis| i / dense[axis] % layout.shape[axis] * layout.strides[axis])
                    .sum::<usize>()
                    + layout.offset
            })
            .collect()
    }

    #[test]
    fn reshape_keeps_the_row_major_order_or_refuses() {
        let bases = [
            dense(&[2, 3, 4]),
            dense(&[4, 3, 2]).permuted(&[2, 1, 0]),
            dense(&[4, 6]).sliced(&[0, 2], &[4, 4], &[1, 1]),
            dense(&[2, 1, 4]).broadcast(&[2, 3, 4]),
            dense(&[2, 6, 4]).permuted(&[1, 0, 2]),
            dense(&[24]),
            dense(&[1, 24, 1]),
        ];
        let shapes: [&[usize]; 9] = [
            &[24],
            &[2, 12],
            &[6, 4],
            &[2, 3, 4],
            &[3, 8],
            &[1, 2, 1, 12],
            &[4, 6],
            &[48],
            &[4, 2, 6],
        ];
        let mut kept = 0;
        for base in &bases {
            for shape in shapes {
                if shape.iter().product::<usize>() != base.count() {
                    continue;
                }
                if let Some(view) = base.reshaped(shape) {
                    assert_eq!(positions(&view), positions(base), "{base} as {shape:?}");
                    kept += 1;
                } else {
                    assert!(!base.is_dense(), "a dense layout takes every shape: {shape:?}");
                }
            }
        }
        assert!(kept > 20);
    }

    #[test]
    fn layouts_said_to_be_disjoint_share_no_element() {
        let whole = dense(&[4, 6, 5]);
        let slice = |start: [usize; 3], shape: [usize; 3]| whole.sliced(&start, &shape, &[1, 1, 1]);
        let layouts = [
            slice([0, 0, 0], [4, 3, 5]),
            slice([0, 3, 0], [4, 3, 5]),
            slice([0, 3, 0], [4, 3, 5]).permuted(&[1, 0, 2]),
            slice([0, 2, 0], [4, 2, 5]),
            slice([0, 0, 0], [2, 6, 5]),
            slice([2, 0, 0], [2, 6, 5]).reshaped(&[12, 5]).unwrap(),
            slice([0, 0, 0], [4, 6, 2]),
            slice([0, 0, 2], [4, 6, 3]),
            slice([1, 1, 1], [1, 1, 1]),
            slice([1, 4, 1], [1, 2, 1]).broadcast(&[3, 2, 2]),
            whole.clone(),
        ];
        let mut n_disjoint = 0;
        for (i, a) in layouts.iter().enumerate() {
            for b in &layouts[..=i] {
                let shared = positions(a).iter().any(|at| positions(b).contains(at));
                assert_eq!(a.is_disjoint_from(b), b.is_disjoint_from(a), "{a} and {b}");
                assert!(!(shared && a.is_disjoint_from(b)), "{a} and {b}");
                n_disjoint += usize::from(a.is_disjoint_from(b));
            }
        }
        // Halves along each axis; single elements beside them.
        assert!(n_disjoint >= 14, "{n_disjoint}");
    }

    #[test]
    fn reshape_splits_strided_axes() {
        // [B, S, 3*H*D] sliced to q, then split into heads: still a view.
        let q = dense(&[2, 5, 36]).sliced(&[0, 0, 12], &[2, 5, 12], &[1, 1, 1]);
        let heads = q.reshaped(&[2, 5, 3, 4]).unwrap();
        assert_eq!(heads.strides, [180, 36, 4, 1]);
        assert_eq!(heads.offset, 12);
    }
}
