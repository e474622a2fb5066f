//! Moving elements unchanged between two layouts: rows where both are contiguous, square tiles
//! where one is the transpose of the other. Serves `map` (views made real), `concat` and `pad`.
//!
//! Roofline: memory bandwidth. A tile's lines of the source stay in L1 until each of their elements
//! is written.

use crate::Layout;

use super::transpose::transpose;
use crate::nest::{MAX_LAYOUTS, Nest};

/// Elements per item of the pool.
const ITEM: usize = 1 << 15;
/// Tile edge of a transposing copy, in elements.
const TILE: usize = 32;

/// A copy between two layouts of one shape and element size.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Copy {
    /// Layout 0 is the destination, 1 the source.
    nest: Nest,
    size: usize,
    /// Axis of the nest along which the source is contiguous, where that is not the row.
    transposed: Option<usize>,
    rows_per_item: usize,
}

impl Copy {
    /// From `from` to `to`.
    pub(crate) fn new(to: &Layout, from: &Layout) -> Copy {
        const { assert!(MAX_LAYOUTS >= 2) };
        let nest = Nest::new(&[to, from]).expect("two layouts are few enough");
        let transposed = (nest.row_stride(1) != 1)
            .then(|| (0..nest.rank() - 1).find(|&axis| nest.stride(axis, 1) == 1))
            .flatten();
        let rows_per_item = match transposed {
            Some(_) => 1,
            None => (ITEM / nest.row_len()).max(1),
        };
        Copy { nest, size: to.dtype.size(), transposed, rows_per_item }
    }

    /// Whether it goes through tiles.
    pub(crate) fn is_transposing(&self) -> bool {
        self.transposed.is_some()
    }

    /// Where the copy is one contiguous range on both sides: its first byte in the result and in what is
    /// copied, and its bytes.
    pub(crate) fn contiguous(&self) -> Option<[usize; 3]> {
        let nest = &self.nest;
        let is_row = nest.n_rows() == 1 && nest.row_stride(0) == 1 && nest.row_stride(1) == 1;
        let start = nest.at(0);
        let elements = [start.position(0), start.position(1), nest.row_len()];
        is_row.then(|| elements.map(|n| n * self.size))
    }

    /// Items of work; disjoint in what they write.
    pub(crate) fn n_items(&self) -> usize {
        match self.transposed {
            None => self.segments() * self.nest.n_rows().div_ceil(self.rows_per_item),
            Some(axis) => {
                let dim = self.nest.dim(axis);
                self.nest.n_rows() / dim * dim.div_ceil(TILE)
            }
        }
    }

    /// Parts of one row; more than 1 only if an item is not more than one row.
    fn segments(&self) -> usize {
        self.nest.row_len().div_ceil(ITEM)
    }

    /// Does item `item`.
    ///
    /// # Safety
    /// Both bases are those of buffers that hold their layouts, and do not overlap.
    pub(crate) unsafe fn run(&self, item: usize, to: *mut u8, from: *const u8) {
        // SAFETY: passed on.
        unsafe {
            match self.size {
                1 => self.run_typed::<u8>(item, to.cast(), from.cast()),
                2 => self.run_typed::<u16>(item, to.cast(), from.cast()),
                4 => self.run_typed::<u32>(item, to.cast(), from.cast()),
                _ => self.run_typed::<u64>(item, to.cast(), from.cast()),
            }
        }
    }

    /// # Safety
    /// As [`Copy::run`].
    unsafe fn run_typed<T: std::marker::Copy>(&self, item: usize, to: *mut T, from: *const T) {
        let nest = &self.nest;
        let len = nest.row_len();
        let (to_step, from_step) = (nest.row_stride(0), nest.row_stride(1));
        if let Some(axis) = self.transposed {
            // SAFETY: passed on.
            unsafe { self.run_tile(item, axis, to, from) };
            return;
        }
        let (block, segment) = (item / self.segments(), item % self.segments());
        let (start, stop) = (segment * ITEM, len.min((segment + 1) * ITEM));
        let first = block * self.rows_per_item;
        let last = nest.n_rows().min(first + self.rows_per_item);
        let mut cursor = nest.at(first);
        for _ in first..last {
            // SAFETY: positions of a nest lie within its layouts.
            unsafe {
                let to = to.add(cursor.position(0));
                let from = from.add(cursor.position(1));
                if to_step == 1 && from_step == 1 {
                    std::ptr::copy_nonoverlapping(from.add(start), to.add(start), stop - start);
                } else {
                    for i in start..stop {
                        *to.add(i * to_step) = *from.add(i * from_step);
                    }
                }
            }
            cursor.advance();
        }
    }

    /// Up to [`TILE`] rows that are neighbors in the source, whole, tile by tile.
    ///
    /// # Safety
    /// As [`Copy::run`].
    unsafe fn run_tile<T: std::marker::Copy>(
        &self,
        item: usize,
        axis: usize,
        to: *mut T,
        from: *const T,
    ) {
        let nest = &self.nest;
        let len = nest.row_len();
        let (to_step, from_step) = (nest.row_stride(0), nest.row_stride(1));
        let tiles = nest.dim(axis).div_ceil(TILE);
        let (outer, tile) = (item / tiles, item % tiles);
        let first = tile * TILE;
        let count = TILE.min(nest.dim(axis) - first);
        // Rows with index `first` along `axis`, in row-major order of the other axes.
        let inner: usize = (axis + 1..nest.rank() - 1).map(|axis| nest.dim(axis)).product();
        let row = (outer / inner * nest.dim(axis) + first) * inner + outer % inner;
        let cursor = nest.at(row);
        let across = nest.stride(axis, 0);
        // SAFETY: positions of a nest lie within its layouts.
        unsafe {
            let to = to.add(cursor.position(0));
            let from = from.add(cursor.position(1));
            let mut start = 0;
            while start < len {
                let stop = len.min(start + TILE);
                if size_of::<T>() == 4 && to_step == 1 {
                    let from = from.add(start * from_step).cast();
                    let to = to.add(start).cast();
                    transpose((stop - start, count), from, from_step, to, across);
                    start = stop;
                    continue;
                }
                for j in 0..count {
                    for i in start..stop {
                        *to.add(j * across + i * to_step) = *from.add(j + i * from_step);
                    }
                }
                start = stop;
            }
        }
    }
}
