//! Loops over the elements of several layouts of one shape, with as few axes as they allow.
//!
//! Axes are ordered by the first layout's strides, largest first, so that its elements are visited
//! in memory order; neighboring axes that all layouts step through evenly are joined. The innermost
//! axis is a *row*, which kernels run as one call.

use ops::MAX_RANK;

use crate::Layout;

/// Most layouts of one nest.
pub(crate) const MAX_LAYOUTS: usize = 66;

/// The loops.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Nest {
    /// Outermost first; never empty.
    dims: Vec<usize>,
    /// For each axis, one stride per layout.
    strides: Vec<Vec<usize>>,
    /// First element of each layout.
    starts: Vec<usize>,
}

impl Nest {
    /// Loops over `layouts`, which have one shape. `None` if there are too many.
    pub(crate) fn new(layouts: &[&Layout]) -> Option<Nest> {
        let shape = &layouts[0].shape;
        debug_assert!(layouts.iter().all(|layout| layout.shape == *shape));
        if layouts.len() > MAX_LAYOUTS {
            return None;
        }
        let mut axes: Vec<usize> = (0..shape.len()).filter(|&axis| shape[axis] > 1).collect();
        axes.sort_by_key(|&axis| std::cmp::Reverse(layouts[0].strides[axis]));
        Some(Nest::with_axes(layouts, &axes))
    }

    /// Loops over `axes` only, in that order; neighbors are joined where possible.
    pub(crate) fn with_axes(layouts: &[&Layout], axes: &[usize]) -> Nest {
        let mut nest = Nest {
            dims: vec![],
            strides: vec![],
            starts: layouts.iter().map(|layout| layout.offset).collect(),
        };
        for &axis in axes {
            let dim = layouts[0].shape[axis];
            let strides: Vec<usize> = layouts.iter().map(|layout| layout.strides[axis]).collect();
            if dim == 1 {
                continue;
            }
            let joins = nest.strides.last().is_some_and(|outer| {
                outer.iter().zip(&strides).all(|(outer, inner)| *outer == inner * dim)
            });
            if joins {
                let last = nest.dims.len() - 1;
                nest.dims[last] *= dim;
                nest.strides[last] = strides;
            } else {
                nest.dims.push(dim);
                nest.strides.push(strides);
            }
        }
        if nest.dims.is_empty() {
            nest.dims.push(1);
            nest.strides.push(vec![1; layouts.len()]);
        }
        nest
    }

    /// Loops over all axes; rows run along `row_axis`, whatever its stride, and stay whole.
    pub(crate) fn with_row(layouts: &[&Layout], row_axis: usize) -> Option<Nest> {
        if layouts.len() > MAX_LAYOUTS {
            return None;
        }
        let axes = 0..layouts[0].shape.len();
        let outer: Vec<usize> = axes.filter(|&axis| axis != row_axis).collect();
        Some(Nest::with_axes(layouts, &outer).of_rows(layouts, row_axis))
    }

    /// The same loops around rows along `row_axis`, which stay whole.
    pub(crate) fn of_rows(mut self, layouts: &[&Layout], row_axis: usize) -> Nest {
        self.dims.push(layouts[0].shape[row_axis]);
        self.strides.push(layouts.iter().map(|layout| layout.strides[row_axis]).collect());
        self
    }

    /// Number of axes.
    pub(crate) fn rank(&self) -> usize {
        self.dims.len()
    }

    /// Dim of `axis`.
    pub(crate) fn dim(&self, axis: usize) -> usize {
        self.dims[axis]
    }

    /// Number of layouts.
    pub(crate) fn n_layouts(&self) -> usize {
        self.starts.len()
    }

    /// Step of `layout` along `axis`.
    pub(crate) fn stride(&self, axis: usize, layout: usize) -> usize {
        self.strides[axis][layout]
    }

    /// Elements of a row.
    pub(crate) fn row_len(&self) -> usize {
        self.dims[self.rank() - 1]
    }

    /// Step of `layout` along a row.
    pub(crate) fn row_stride(&self, layout: usize) -> usize {
        self.strides[self.rank() - 1][layout]
    }

    /// Number of rows.
    pub(crate) fn n_rows(&self) -> usize {
        self.dims[..self.rank() - 1].iter().product()
    }

    /// A cursor at row `row`.
    pub(crate) fn at(&self, row: usize) -> Cursor<'_> {
        let mut cursor = Cursor { nest: self, index: [0; MAX_RANK], positions: [0; MAX_LAYOUTS] };
        cursor.positions[..self.starts.len()].copy_from_slice(&self.starts);
        let mut rest = row;
        for axis in (0..self.rank() - 1).rev() {
            let index = rest % self.dims[axis];
            rest /= self.dims[axis];
            cursor.index[axis] = index;
            for (position, stride) in cursor.positions.iter_mut().zip(&self.strides[axis]) {
                *position += index * stride;
            }
        }
        cursor
    }
}

/// One row of a nest: where it starts in every layout.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    nest: &'a Nest,
    index: [usize; MAX_RANK],
    positions: [usize; MAX_LAYOUTS],
}

impl Cursor<'_> {
    /// Position of the row's first element in `layout`, in elements.
    #[inline(always)]
    pub(crate) fn position(&self, layout: usize) -> usize {
        self.positions[layout]
    }

    /// Goes to the next row; after the last one, back to the first.
    #[inline(always)]
    pub(crate) fn advance(&mut self) {
        self.advance_by(1);
    }

    /// Goes `rows` on, all but the last of which lie along one axis.
    #[inline(always)]
    pub(crate) fn advance_by(&mut self, rows: usize) {
        let mut step = rows;
        for axis in (0..self.nest.rank() - 1).rev() {
            let strides = &self.nest.strides[axis];
            let before = self.index[axis];
            self.index[axis] += step;
            if self.index[axis] < self.nest.dims[axis] {
                for (position, stride) in self.positions.iter_mut().zip(strides) {
                    *position += step * stride;
                }
                return;
            }
            debug_assert_eq!(self.index[axis], self.nest.dims[axis], "rows end with their axis");
            self.index[axis] = 0;
            for (position, stride) in self.positions.iter_mut().zip(strides) {
                *position -= before * stride;
            }
            step = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use ops::{DType, TensorType};

    use super::*;

    fn dense(shape: &[usize]) -> Layout {
        Layout::dense(&TensorType::new(DType::F32, shape).unwrap())
    }

    #[test]
    fn joins_axes_that_all_layouts_step_through_evenly() {
        let result = dense(&[2, 3, 4, 5]);
        let row = dense(&[2, 1, 1, 5]).broadcast(&[2, 3, 4, 5]);
        let nest = Nest::new(&[&result, &row]).unwrap();
        assert_eq!(nest.dims, [2, 12, 5]);
        assert_eq!(Nest::new(&[&result, &result]).unwrap().dims, [120]);
        assert_eq!(Nest::new(&[&dense(&[])]).unwrap().dims, [1]);
    }

    #[test]
    fn cursor_visits_rows_of_every_layout_in_order() {
        let result = dense(&[3, 4, 5]);
        let other = dense(&[5, 4, 3]).permuted(&[2, 1, 0]);
        let nest = Nest::new(&[&result, &other]).unwrap();
        let mut cursor = nest.at(0);
        for row in 0..nest.n_rows() {
            let direct = nest.at(row);
            let (i, j) = (row / 4, row % 4);
            assert_eq!(cursor.position(0), (i * 4 + j) * 5);
            assert_eq!(cursor.position(1), i + 3 * j);
            assert_eq!(direct.position(1), cursor.position(1));
            cursor.advance();
        }
        assert_eq!(cursor.position(0), 0);
    }
    #[test]
    fn rows_that_lie_along_one_axis_are_passed_at_once() {
        let result = dense(&[3, 4, 5]);
        let other = dense(&[5, 4, 3]).permuted(&[2, 1, 0]);
        let nest = Nest::new(&[&result, &other]).unwrap();
        for row in 0..nest.n_rows() {
            for rows in 1..=4 - row % 4 {
                let mut cursor = nest.at(row);
                cursor.advance_by(rows);
                let there = nest.at((row + rows) % nest.n_rows());
                assert_eq!(cursor.positions, there.positions, "{rows} rows from {row} on");
            }
        }
    }
}
