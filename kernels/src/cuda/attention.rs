//! Attention on tensor cores: `softmax(scale q . k + bias) v`, never holding scores of `[Sq, Sk]`
//! (Dao, `FlashAttention-2`).
//!
//! A block takes some queries of one (batch, head) pair, a warp 16 or 32 of them: their fragments
//! stay in registers, and so do scores, running maxima and sums, and the outputs. Keys and values
//! pass through shared memory tile by tile, the next tile on its way while one is used. Scores are
//! kept in units of log 2; weights are rounded to the operands' type, in the registers where the
//! first product left them and the second one wants them. Where sequences are as short as a tile,
//! each warp takes a pair of its own.
//!
//! Roofline: the tensor cores, beside one exponential for each score; memory for short sequences.

use ops::{Attr, DType};

use crate::Layout;
use crate::attention_site::{AttentionSite, BIAS, K, MASK, OUT, Q, Side, V};
use crate::head_rows::HeadRows;
use crate::kernel::Site;

use super::access::{Access, MAX_ACCESS_BYTES, is_addressable};
use super::{Arg, Base, CudaKernel, Function, Gpu, Launch};

/// Rows of a matrix instruction's result.
const ROWS: u32 = 16;
/// Keys of a tile in shared memory.
const KEYS: u32 = 64;
/// Warps of a block.
const WARPS: u32 = 4;
/// Largest head whose outputs fit a warp's registers.
const MAX_HEAD: usize = 128;
/// Largest head of which a warp keeps two times 16 rows.
const MAX_TALL_HEAD: usize = 80;

/// One function. Pointers: the result, queries, keys, values, then the mask and the bias if there are
/// any.
#[derive(Clone, PartialEq, Debug)]
pub struct Attention {
    /// Dims of (batch, head) pairs, outermost first.
    pub pairs: Vec<u32>,
    /// Number of queries.
    pub sq: u32,
    /// Number of keys.
    pub sk: u32,
    /// Elements of a head, a multiple of 8.
    pub d: u32,
    /// Rows of the result: strides of pairs, then of queries.
    pub result: Access,
    /// Rows of queries, bf16 or f16: strides of pairs, then of queries.
    pub q: Access,
    /// Rows of keys.
    pub k: Access,
    /// Rows of values.
    pub v: Access,
    /// Strides of pairs, then of keys.
    pub mask: Option<Access>,
    /// Strides of pairs, then of queries, then of keys.
    pub bias: Option<Access>,
    /// Factor of scores.
    pub scale: f32,
    /// Whether 16 bytes of a result row can be written at once.
    pub writes_vectors: bool,
    /// How work is cut.
    pub tile: Tile,
}

/// How attention is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tile {
    /// Warps of a block.
    pub warps: u32,
    /// Times 16 queries for each warp.
    pub heights: u32,
    /// Keys in shared memory at a time: a multiple of 16.
    pub keys: u32,
    /// Whether each warp takes a pair of its own, all queries and keys at once.
    pub has_pair_per_warp: bool,
}

impl Tile {
    /// For `sq` queries, `sk` keys and heads of `d` elements.
    fn of(sq: usize, sk: usize, d: usize) -> Tile {
        let most = if d <= MAX_TALL_HEAD { 2 } else { 1 };
        let heights = (sq as u32).div_ceil(ROWS).min(most);
        let keys = (sk as u32).next_multiple_of(ROWS).min(KEYS);
        let has_pair_per_warp = sq as u32 <= heights * ROWS && sk as u32 <= heights * ROWS;
        let heights = if has_pair_per_warp || sq as u32 > WARPS * ROWS { heights } else { 1 };
        Tile { warps: WARPS, heights, keys, has_pair_per_warp }
    }
}

impl Attention {
    /// Threads of a block.
    pub fn block(&self) -> [u32; 3] {
        [32 * self.tile.warps, 1, 1]
    }

    /// (Batch, head) pairs.
    pub fn n_pairs(&self) -> u32 {
        self.pairs.iter().product()
    }

    /// Queries of a block, or of a warp that has its own pair.
    pub fn queries(&self) -> u32 {
        let warps = if self.tile.has_pair_per_warp { 1 } else { self.tile.warps };
        ROWS * self.tile.heights * warps
    }

    /// Blocks of queries of one pair.
    pub fn query_blocks(&self) -> u32 {
        self.sq.div_ceil(self.queries())
    }

    /// Tiles of keys.
    pub fn key_tiles(&self) -> u32 {
        self.sk.div_ceil(self.tile.keys)
    }

    fn grid(&self) -> [u32; 3] {
        let blocks = if self.tile.has_pair_per_warp {
            self.n_pairs().div_ceil(self.tile.warps)
        } else {
            self.n_pairs() * self.query_blocks()
        };
        [blocks, 1, 1]
    }

    /// Takes one `attention`, its result as it is or cast to another float type.
    pub fn select(site: &Site<'_>, _: Gpu) -> Option<CudaKernel> {
        let site = AttentionSite::of(site)?;
        let is_half = matches!(site.dtype, DType::Bf16 | DType::F16);
        let rows = [&site.q, &site.k, &site.v];
        if !is_half
            || site.d > MAX_HEAD
            || !rows.into_iter().all(|rows| is_copied(rows, site.dtype))
        {
            return None;
        }
        let sides = [&site.mask, &site.bias].into_iter().flatten().map(|side| &side.layout);
        if !rows.into_iter().map(|rows| &rows.layout).chain(sides).all(is_addressable) {
            return None;
        }
        let rank = site.result.rank();
        let access = |part: usize, layout: &Layout, axes: &[usize]| {
            let pair = (0..site.pairs.rank() - 1).map(|axis| site.pairs.stride(axis, part) as u32);
            let rest = axes.iter().map(|&axis| layout.strides[axis] as u32);
            Access { dtype: layout.dtype, strides: pair.chain(rest).collect() }
        };
        let side = |part: usize, side: &Option<Side>, axes: &[usize]| {
            side.as_ref().map(|side| access(part, &side.layout, axes))
        };
        let function = Attention {
            pairs: (0..site.pairs.rank() - 1).map(|axis| site.pairs.dim(axis) as u32).collect(),
            sq: site.sq as u32,
            sk: site.sk as u32,
            d: site.d as u32,
            result: access(OUT, &site.result, &[rank - 3]),
            q: access(Q, &site.q.layout, &[rank - 3]),
            k: access(K, &site.k.layout, &[rank - 3]),
            v: access(V, &site.v.layout, &[rank - 3]),
            mask: side(MASK, &site.mask, &[rank - 3]),
            bias: side(BIAS, &site.bias, &[rank - 2, rank - 1]),
            scale: site.scale as f32,
            writes_vectors: has_whole_chunks(&site.result),
            tile: Tile::of(site.sq, site.sk, site.d),
        };
        let arg =
            |base: Base, layout: &Layout| Arg { base, offset: layout.offset * layout.dtype.size() };
        let row_arg = |rows: &HeadRows| arg(Base::Operand(rows.operand), &rows.layout);
        let mut args = vec![arg(Base::Result, &site.result)];
        args.extend(rows.map(row_arg));
        let sides = [&site.mask, &site.bias].into_iter().flatten();
        args.extend(sides.map(|side| arg(Base::Operand(side.operand), &side.layout)));
        Some(CudaKernel {
            name: "attention",
            tunables: vec![
                ("queries", Attr::Int(function.queries().into())),
                ("keys", Attr::Int(function.tile.keys.into())),
                ("words", Attr::Str(site.dtype.to_string())),
            ],
            launches: vec![Launch {
                grid: function.grid(),
                function: Function::Attention(function),
                args,
            }],
            scratch_bytes: 0,
            packed: None,
            in_place: vec![],
        })
    }
}

/// Whether rows can be copied to shared memory as they are, in pieces of 16 bytes.
fn is_copied(rows: &HeadRows, dtype: DType) -> bool {
    rows.is_plain() && rows.layout.dtype == dtype && has_whole_chunks(&rows.layout)
}

/// Whether rows `[.., S, H, D]` are contiguous, and consist of 16 bytes that are aligned.
fn has_whole_chunks(layout: &Layout) -> bool {
    let Layout { dtype, shape, strides, offset } = layout;
    let is_whole = |elements: &usize| (elements * dtype.size()).is_multiple_of(MAX_ACCESS_BYTES);
    let (&d, outer) = shape.split_last().expect("attention has a head dim");
    let (&step, outer_strides) = strides.split_last().expect("attention has a head dim");
    let mut outer = outer.iter().zip(outer_strides);
    (step == 1 || d == 1)
        && is_whole(&d)
        && is_whole(offset)
        && outer.all(|(&dim, stride)| dim == 1 || is_whole(stride))
}
