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
use crate::attention_site::{AttentionSite, BIAS, K, MASK, OUT, Q, Side, V, pairs};
use crate::kernel::Site;

use super::access::{Access, MAX_ACCESS_BYTES, is_addressable, offset_bytes};
use super::heads::Heads;
use super::{Arg, Base, CudaKernel, Function, Gpu, Launch};

/// Rows of a matrix instruction's result.
const ROWS: u32 = 16;
/// Keys of a tile in shared memory.
const KEYS: u32 = 64;
/// Warps of a block.
const WARPS: u32 = 4;
/// Largest head whose outputs fit a warp's registers.
const MAX_HEAD: usize = 128;
/// Elements of 16 bytes.
const CHUNK: usize = 8;
/// Largest head whose outputs fit a thread's registers on ordinary units.
const MAX_HEAD_OF_FMA: usize = 512;
/// Where rows may start that are made in the scratch.
const SCRATCH_ALIGNMENT: usize = 256;
/// Largest head of which a warp keeps two times 16 rows.
const MAX_TALL_HEAD: usize = 80;

/// What is computed. D is contiguous everywhere.
#[derive(Clone, PartialEq, Debug)]
pub struct Problem {
    /// Dims of (batch, head) pairs, outermost first.
    pub pairs: Vec<u32>,
    /// Number of queries.
    pub sq: u32,
    /// Number of keys.
    pub sk: u32,
    /// Elements of a head.
    pub d: u32,
    /// Rows of the result: strides of pairs, then of queries.
    pub result: Access,
    /// Rows of queries: strides of pairs, then of queries.
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
}

impl Problem {
    /// (Batch, head) pairs.
    pub fn n_pairs(&self) -> u32 {
        self.pairs.iter().product()
    }
}

/// On tensor cores: rows of bf16 or f16, heads of a multiple of 8, copied in pieces of 16 bytes.
/// Pointers: the result, queries, keys, values, then the mask and the bias if there are any.
#[derive(Clone, PartialEq, Debug)]
pub struct Attention {
    /// What is computed.
    pub problem: Problem,
    /// Whether 16 bytes of a result row can be written at once.
    pub writes_vectors: bool,
    /// How work is cut.
    pub tile: Tile,
}

/// On tensor cores, for one wide head: rows of bf16 or f16, of a multiple of 32 elements, and no bias.
/// Queries lie in shared memory too, and two warps share 16 of them: each has half of a tile's keys,
/// then half of the outputs. Pointers as of [`Attention`].
#[derive(Clone, PartialEq, Debug)]
pub struct AttentionWide {
    /// What is computed.
    pub problem: Problem,
    /// Whether 16 bytes of a result row can be written at once.
    pub writes_vectors: bool,
    /// Keys in shared memory at a time: 32 or 64.
    pub keys: u32,
}

/// On ordinary units, in f32: any float type and head. Pointers as of [`Attention`].
#[derive(Clone, PartialEq, Debug)]
pub struct AttentionFma {
    /// What is computed.
    pub problem: Problem,
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
    /// Keys of a tile where there are `sk`.
    pub fn of_keys(sk: u32) -> u32 {
        sk.next_multiple_of(ROWS).min(KEYS)
    }

    /// For `sq` queries, `sk` keys and heads of `d` elements. The bias of 32 rows takes more addresses than
    /// a thread has registers for beside their scores and outputs.
    fn of(sq: usize, sk: usize, d: usize, has_bias: bool) -> Tile {
        let most = if d <= MAX_TALL_HEAD && !has_bias { 2 } else { 1 };
        let heights = (sq as u32).div_ceil(ROWS).min(most);
        let keys = Tile::of_keys(sk as u32);
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

    /// Queries of a block, or of a warp that has its own pair.
    pub fn queries(&self) -> u32 {
        let warps = if self.tile.has_pair_per_warp { 1 } else { self.tile.warps };
        ROWS * self.tile.heights * warps
    }

    /// Blocks of queries of one pair.
    pub fn query_blocks(&self) -> u32 {
        self.problem.sq.div_ceil(self.queries())
    }

    /// Tiles of keys.
    pub fn key_tiles(&self) -> u32 {
        self.problem.sk.div_ceil(self.tile.keys)
    }

    fn grid(&self) -> [u32; 3] {
        let blocks = if self.tile.has_pair_per_warp {
            self.problem.n_pairs().div_ceil(self.tile.warps)
        } else {
            self.problem.n_pairs() * self.query_blocks()
        };
        [blocks, 1, 1]
    }
}

impl AttentionWide {
    /// Queries of a block.
    pub const QUERIES: u32 = 64;

    /// Threads of a block.
    pub fn block(&self) -> [u32; 3] {
        [256, 1, 1]
    }

    /// Blocks of queries of one pair.
    pub fn query_blocks(&self) -> u32 {
        self.problem.sq.div_ceil(Self::QUERIES)
    }

    /// Bytes from one row to the next in shared memory: of queries, keys and values; of weights.
    pub fn row_bytes(&self) -> [u32; 2] {
        [self.problem.d, self.keys].map(|elements| 2 * elements + 16)
    }

    /// Bytes of shared memory: queries, a tile of keys and one of values, weights, and for each query
    /// a number of either warp.
    pub fn shared_bytes(&self) -> u32 {
        let [row, weight_row] = self.row_bytes();
        let rows = Self::QUERIES + 2 * self.keys;
        rows * row + Self::QUERIES * (weight_row + 8)
    }

    /// With as many keys as shared memory holds. `None` where it holds too little.
    fn of(problem: &Problem, writes_vectors: bool, gpu: Gpu) -> Option<AttentionWide> {
        if problem.bias.is_some() || !problem.d.is_multiple_of(32) {
            return None;
        }
        [64, 32]
            .map(|keys| AttentionWide { problem: problem.clone(), writes_vectors, keys })
            .into_iter()
            .find(|attention| attention.shared_bytes() as usize <= gpu.shared_bytes().1)
    }

    fn grid(&self) -> [u32; 3] {
        [self.problem.n_pairs() * self.query_blocks(), 1, 1]
    }
}

impl AttentionFma {
    /// Queries of a block.
    pub const QUERIES: u32 = 32;

    /// Threads of a block.
    pub fn block(&self) -> [u32; 3] {
        [128, 1, 1]
    }

    /// Blocks of queries of one pair.
    pub fn query_blocks(&self) -> u32 {
        self.problem.sq.div_ceil(Self::QUERIES)
    }

    fn grid(&self) -> [u32; 3] {
        [self.problem.n_pairs() * self.query_blocks(), 1, 1]
    }
}

/// Takes one `attention`, its result as it is or cast to another float type.
pub(super) fn select(site: &Site<'_>, gpu: Gpu) -> Option<CudaKernel> {
    let site = AttentionSite::of(site)?;
    let is_half = matches!(site.dtype, DType::Bf16 | DType::F16);
    let on_tensor_cores = is_half && site.d.is_multiple_of(CHUNK);
    let sides: Vec<&Side> = [&site.mask, &site.bias].into_iter().flatten().collect();
    let rows = [&site.q, &site.k, &site.v];
    let stored = rows.iter().map(|rows| &rows.layout).chain(sides.iter().map(|side| &side.layout));
    if !stored.chain([&site.result]).all(is_addressable) || site.d > MAX_HEAD_OF_FMA {
        return None;
    }

    let mut heads = Heads::default();
    let mut heads_args = vec![];
    let mut scratch_bytes = 0;
    let mut bases = vec![];
    let mut layouts = vec![];
    for rows in rows {
        let last = rows.layout.rank() - 1;
        let is_contiguous = rows.layout.strides[last] == 1 || rows.layout.shape[last] == 1;
        let is_ready = rows.is_plain()
            && rows.layout.dtype == site.dtype
            && is_contiguous
            && (!on_tensor_cores || is_copied(&rows.layout));
        if is_ready {
            bases.push(Base::Operand(rows.operand));
            layouts.push(rows.layout.clone());
            continue;
        }
        let made = made_layout(&rows.layout, site.dtype, scratch_bytes);
        scratch_bytes += (made.count() * made.dtype.size()).next_multiple_of(SCRATCH_ALIGNMENT);
        heads_args.extend(heads.add(rows, &made, Base::Scratch, &site.tables)?);
        bases.push(Base::Scratch);
        layouts.push(made);
    }
    let [q, k, v] = &layouts[..] else { unreachable!("three kinds of rows") };
    let pairs = pairs(&site.result, [q, k, v], &site.mask, &site.bias)?;
    let rank = site.result.rank();
    let access = |part: usize, layout: &Layout, axes: &[usize]| {
        let outer = (0..pairs.rank() - 1).map(|axis| pairs.stride(axis, part) as u32);
        let rest = axes.iter().map(|&axis| layout.strides[axis] as u32);
        Access { dtype: layout.dtype, strides: outer.chain(rest).collect() }
    };
    let side = |part: usize, side: &Option<Side>, axes: &[usize]| {
        side.as_ref().map(|side| access(part, &side.layout, axes))
    };
    let problem = Problem {
        pairs: (0..pairs.rank() - 1).map(|axis| pairs.dim(axis) as u32).collect(),
        sq: site.sq as u32,
        sk: site.sk as u32,
        d: site.d as u32,
        result: access(OUT, &site.result, &[rank - 3]),
        q: access(Q, q, &[rank - 3]),
        k: access(K, k, &[rank - 3]),
        v: access(V, v, &[rank - 3]),
        mask: side(MASK, &site.mask, &[rank - 3]),
        bias: side(BIAS, &site.bias, &[rank - 2, rank - 1]),
        scale: site.scale as f32,
    };

    let arg = |base: Base, layout: &Layout| Arg { base, offset: offset_bytes(layout) };
    let mut args = vec![arg(Base::Result, &site.result)];
    args.extend(bases.into_iter().zip(&layouts).map(|(base, layout)| arg(base, layout)));
    args.extend(sides.iter().map(|side| arg(Base::Operand(side.operand), &side.layout)));
    let (queries, keys, units, grid, function);
    let writes_vectors = has_whole_chunks(&site.result);
    let has_bias = site.bias.is_some();
    let wide = on_tensor_cores.then(|| AttentionWide::of(&problem, writes_vectors, gpu)).flatten();
    if on_tensor_cores && site.d <= MAX_HEAD {
        let attention = Attention {
            tile: Tile::of(site.sq, site.sk, site.d, has_bias),
            writes_vectors,
            problem,
        };
        (queries, keys, units) = (attention.queries(), attention.tile.keys, "tensor");
        (grid, function) = (attention.grid(), Function::Attention(attention));
    } else if let Some(attention) = wide {
        (queries, keys, units) = (AttentionWide::QUERIES, attention.keys, "tensor");
        (grid, function) = (attention.grid(), Function::AttentionWide(attention));
    } else {
        let attention = AttentionFma { problem };
        (queries, keys, units) = (AttentionFma::QUERIES, KEYS, "fma");
        (grid, function) = (attention.grid(), Function::AttentionFma(attention));
    }
    let mut launches = vec![];
    if !heads.parts.is_empty() {
        let grid = heads.grid();
        launches.push(Launch { grid, function: Function::Heads(heads), args: heads_args });
    }
    launches.push(Launch { grid, function, args });
    Some(CudaKernel {
        name: "attention",
        tunables: vec![
            ("queries", Attr::Int(queries.into())),
            ("keys", Attr::Int(keys.into())),
            ("units", Attr::Str(units.to_owned())),
        ],
        launches,
        scratch_bytes,
        packed: None,
        in_place: vec![],
    })
}

/// Where rows are made that are not ready: `[batch.., H, S, D]` in the scratch, seen as
/// `[batch.., S, H, D]`, so that a pair's rows lie one after the other.
fn made_layout(rows: &Layout, dtype: DType, scratch_bytes: usize) -> Layout {
    let rank = rows.rank();
    let mut axes: Vec<usize> = (0..rank).collect();
    axes.swap(rank - 3, rank - 2);
    let stored: Vec<usize> = axes.iter().map(|&axis| rows.shape[axis]).collect();
    let strides = ops::row_major_strides(&stored);
    Layout {
        dtype,
        shape: rows.shape.clone(),
        strides: axes.iter().map(|&axis| strides[axis]).collect(),
        offset: scratch_bytes / dtype.size(),
    }
}

/// Whether rows `[.., S, H, D]` can be copied to shared memory from where they lie: in aligned pieces,
/// and a tile's rows near enough for the offsets of instructions.
fn is_copied(layout: &Layout) -> bool {
    let stride = layout.strides[layout.rank() - 3] * layout.dtype.size();
    has_whole_chunks(layout) && stride <= i32::MAX as usize / KEYS as usize
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
