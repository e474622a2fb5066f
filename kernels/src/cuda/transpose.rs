//! Copies between layouts of which each is contiguous along another axis, by tiles in shared memory:
//! both sides move whole sectors. Roofline: memory bandwidth.

use crate::nest::Nest;

use super::access::Access;
use super::{Arg, Function, Launch};

/// Rows and columns of a tile: a warp takes one of either at a time.
pub const TILE: u32 = 32;
/// Warps of a block.
const WARPS: u32 = 8;
/// Shorter axes are copied element by element.
const MIN_DIM: usize = 16;
/// Bytes of the largest element that is moved.
const MAX_SIZE: usize = 4;

/// `result[outer.., i, j] = source[outer.., i, j]`, contiguous in `j` there and in `i` here. Pointers:
/// the result, the source.
#[derive(Clone, PartialEq, Debug)]
pub struct Transpose {
    /// All other dims, outermost first.
    pub outer: Vec<u32>,
    /// Elements along which the source is contiguous.
    pub rows: u32,
    /// Elements along which the result is contiguous.
    pub columns: u32,
    /// Strides of `outer`, then of rows.
    pub result: Access,
    /// Strides of `outer`, then of columns.
    pub source: Access,
}

impl Transpose {
    /// Threads of a block.
    pub fn block(&self) -> [u32; 3] {
        [TILE * WARPS, 1, 1]
    }

    /// Tiles along rows and columns.
    pub fn tiles(&self) -> [u32; 2] {
        [self.rows.div_ceil(TILE), self.columns.div_ceil(TILE)]
    }

    /// The launch for a copy from layout 1 of `nest` to layout 0, if tiles serve it.
    pub(super) fn launch(nest: &Nest, result: &Access, args: &[Arg]) -> Option<Launch> {
        let [to, from] = args else { return None };
        let columns = nest.rank() - 1;
        let rows = (0..columns).find(|&axis| nest.stride(axis, 1) == 1 && nest.dim(axis) > 1)?;
        let is_long = |axis: usize| nest.dim(axis) >= MIN_DIM;
        let crosses = nest.row_stride(0) == 1 && nest.row_stride(1) > 1;
        if !crosses || !is_long(rows) || !is_long(columns) || result.dtype.size() > MAX_SIZE {
            return None;
        }
        let outer: Vec<usize> = (0..columns).filter(|&axis| axis != rows).collect();
        let access = |layout: usize, last: usize| Access {
            dtype: result.dtype,
            strides: (outer.iter().chain([&last]))
                .map(|&axis| nest.stride(axis, layout) as u32)
                .collect(),
        };
        let transpose = Transpose {
            rows: nest.dim(rows) as u32,
            columns: nest.dim(columns) as u32,
            result: access(0, rows),
            source: access(1, columns),
            outer: outer.iter().map(|&axis| nest.dim(axis) as u32).collect(),
        };
        let blocks = transpose.outer.iter().chain(&transpose.tiles()).product();
        Some(Launch {
            grid: [blocks, 1, 1],
            args: vec![to.clone(), from.clone()],
            function: Function::Transpose(transpose),
        })
    }
}
