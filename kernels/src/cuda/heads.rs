//! Rows of queries, keys or values on their way into attention: read, normalized, weighted, rotated,
//! rounded and written side by side, where attention reads each of them many times.
//!
//! A few lanes share a row, so that a pass over it is in registers. Roofline: memory bandwidth, each
//! row read once and written once.

use ops::DType;

use crate::Layout;
use crate::body::Leaf;
use crate::head_rows::{HeadRows, Pass, RowTable};

use super::access::{Access, is_addressable, offset_bytes};
use super::{Arg, Base};

/// Threads of a block.
const BLOCK: u32 = 256;
/// Most runs of elements that a lane has of a row.
const MAX_RUNS: u32 = 3;

/// One function: the rows of several operands, each by blocks of its own. Pointers: for each part the
/// rows that are written, those that are read, then weight and angles of each pass.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Heads {
    /// The operands.
    pub parts: Vec<HeadsPart>,
}

/// Rows of one operand.
#[derive(Clone, PartialEq, Debug)]
pub struct HeadsPart {
    /// Dims of rows, `[batch.., S, H]`.
    pub dims: Vec<u32>,
    /// Elements of a row.
    pub d: u32,
    /// What is read: strides of rows, then of elements.
    pub from: Access,
    /// What is written.
    pub to: Access,
    /// In order.
    pub passes: Vec<HeadsPass>,
    /// Consecutive elements that are read and written at once.
    pub vector: u32,
}

/// One pass over a row: any of these, in this order.
#[derive(Clone, PartialEq, Debug)]
pub struct HeadsPass {
    /// `rms_norm` with this epsilon.
    pub norm: Option<f32>,
    /// Factors of elements.
    pub weight: Option<Table>,
    /// Angles by which neighbors are rotated: strides of rows, then of pairs of elements.
    pub angles: Option<Table>,
}

/// What rows are multiplied with or rotated by.
#[derive(Clone, PartialEq, Debug)]
pub struct Table {
    /// Strides of rows, then of what a row has.
    pub access: Access,
    /// Whether what belongs to a run of elements is read at once.
    pub in_vectors: bool,
}

impl HeadsPart {
    /// Rows.
    pub fn rows(&self) -> u32 {
        self.dims.iter().product()
    }

    /// Runs of a row.
    pub fn runs(&self) -> u32 {
        self.d / self.vector
    }

    /// Lanes that share a row: a power of two.
    pub fn lanes(&self) -> u32 {
        self.runs().div_ceil(MAX_RUNS).next_power_of_two().min(32)
    }
}

impl Heads {
    /// Threads of a block.
    pub fn block(&self) -> [u32; 3] {
        [BLOCK, 1, 1]
    }

    /// Blocks: along y, parts.
    pub(super) fn grid(&self) -> [u32; 3] {
        let blocks = self.parts.iter().map(|part| part.rows().div_ceil(BLOCK / part.lanes()));
        [blocks.max().unwrap_or(0), self.parts.len() as u32, 1]
    }

    /// Adds what makes `rows` at `to` in `base`; returns the pointers. `None` if something lies too far
    /// apart.
    pub(super) fn add(
        &mut self,
        rows: &HeadRows,
        to: &Layout,
        base: Base,
        tables: &[RowTable],
    ) -> Option<Vec<Arg>> {
        let rank = to.rank();
        let d = to.shape[rank - 1];
        let access = |layout: &Layout| Access {
            dtype: layout.dtype,
            strides: layout.strides.iter().map(|&stride| stride as u32).collect(),
        };
        let (from, to_access) = (access(&rows.layout), access(to));
        let takes = |vector: usize| {
            d.is_multiple_of(vector)
                && to_access.takes_vectors(vector, offset_bytes(to))
                && from.takes_vectors(vector, offset_bytes(&rows.layout))
        };
        let vector = if from.strides[rank - 1] == 1 && takes(8) {
            8
        } else if d.is_multiple_of(2) {
            2
        } else {
            1
        };
        let mut args = vec![
            Arg { base, offset: offset_bytes(to) },
            Arg { base: Base::Operand(rows.operand), offset: offset_bytes(&rows.layout) },
        ];
        // A table repeats along all row dims but, that of angles, the sequence.
        let mut read = |leaf: &Leaf, [position, element]: [usize; 2], is_of_pairs: bool| {
            args.push(Arg { base: Base::of(&leaf.source), offset: offset_bytes(&leaf.layout) });
            let mut strides = vec![0; rank];
            strides[rank - 3] = position as u32;
            strides[rank - 1] = element as u32;
            let access = Access { dtype: leaf.layout.dtype, strides };
            let n = if is_of_pairs { vector / 2 } else { vector };
            let in_vectors = element == 1 && access.takes_vectors(n, offset_bytes(&leaf.layout));
            is_addressable(&leaf.layout).then_some(Table { access, in_vectors })
        };
        let mut passes = vec![];
        for Pass { norm, weight, rope } in &rows.passes {
            let (mut weights, mut angles) = (None, None);
            if let Some(RowTable::Weight { vector: factors, d: _ }) =
                weight.map(|table| &tables[table])
            {
                let last = factors.layout.rank() - 1;
                let is_one = factors.layout.shape[last] == 1;
                let stride = if is_one { 0 } else { factors.layout.strides[last] };
                weights = Some(read(factors, [0, stride], false)?);
            }
            if let Some(RowTable::Rope(leaf)) = rope.map(|table| &tables[table]) {
                let strides = [leaf.layout.strides[0], leaf.layout.strides[1]];
                angles = Some(read(leaf, strides, true)?);
            }
            let norm = norm.map(|epsilon| epsilon as f32);
            passes.push(HeadsPass { norm, weight: weights, angles });
        }
        debug_assert!(matches!(to.dtype, DType::F32 | DType::F16 | DType::Bf16));
        let dims = to.shape[..rank - 1].iter().map(|&dim| dim as u32).collect();
        let (d, vector) = (d as u32, vector as u32);
        self.parts.push(HeadsPart { dims, d, from, to: to_access, passes, vector });
        Some(args)
    }
}
