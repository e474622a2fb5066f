//! What products and convolutions have in common: a matrix of rows times a matrix of columns, summed
//! in f32, and fused code of the sums.
//!
//! Products of halves run on tensor cores, those of f32 on ordinary units with exact arithmetic; a
//! few rows are one warp's per column, which reads each weight once and nothing twice. A block of
//! threads computes a [`Tile`]; which tile is the choice of [`Tile::choose`], from a list, or of a measured
//! table ([`Tiles`]).

use std::fmt;

use ops::DType;

use crate::kernel::Target;

use super::access::widest_vector;
use super::tiles::{Product, Tiles};
use super::{Access, Arg, Code, Gpu};

/// Lanes of a warp.
const WARP: u32 = 32;
/// Bytes that one asynchronous copy moves.
pub(super) const COPY_BYTES: u32 = 16;
/// Halves of one copy.
pub(super) const COPY_ELEMENTS: usize = 8;
/// Most rows that are computed one warp per column.
pub const FEW_ROWS: u32 = 8;
/// Elements that a thread of a warp per column takes at once: 16 bytes of halves.
pub const FEW_VECTOR: u32 = 8;
/// Warps of a block of which each computes columns of its own.
pub const FEW_WARPS: u32 = 4;
/// Rows and columns of a block of ordinary units.
pub const SCALAR_TILE: u32 = 64;
/// Depth of its tile.
pub const SCALAR_DEPTH: u32 = 16;
/// Rows and columns of each of its threads.
pub const SCALAR_RUN: u32 = 4;

/// `result[row, column] = epilogue(sum over k of left[row, k] right[column, k])`. Pointers: left,
/// right, the result, those of the epilogue's slots that are in memory.
#[derive(Clone, PartialEq, Debug)]
pub struct Gemm {
    /// Dims that both sides have.
    pub batch: Vec<u32>,
    /// Dims that rows are numbered over.
    pub rows: Vec<u32>,
    /// Number of columns.
    pub columns: u32,
    /// Number of products in a sum.
    pub depth: u32,
    /// Element type of both factors.
    pub product: DType,
    /// The left factor.
    pub left: Left,
    /// The right factor over batch, columns and depth.
    pub right: Access,
    /// Whether 16 bytes of the right factor along the depth can be copied at once.
    pub copies_right: bool,
    /// The result over batch, rows and columns.
    pub result: Access,
    /// From the sums to the result; slots over batch, rows and columns.
    pub epilogue: Code,
    /// Consecutive elements of a row that are finished at once: at most 8.
    pub vector: u32,
    /// Who computes what.
    pub method: Method,
}

/// Where rows of the left factor are.
#[derive(Clone, PartialEq, Debug)]
pub enum Left {
    /// A matrix over batch, rows and depth.
    Matrix {
        /// Its elements.
        access: Access,
        /// Whether 16 bytes along the depth can be copied at once.
        copies: bool,
    },
    /// What a window sees from each of its positions: depth is taps, then channels.
    Windows(Windows),
}

impl Left {
    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            Left::Matrix { access, copies: _ } => access.dtype,
            Left::Windows(windows) => windows.access.dtype,
        }
    }
}

/// A channels-last input that a window slides over, with zeros outside.
#[derive(Clone, PartialEq, Debug)]
pub struct Windows {
    /// Over samples, three axes of space, channels; before rows and columns are doubled.
    pub access: Access,
    /// Whether 16 bytes along the channels can be copied at once.
    pub copies: bool,
    /// Number of channels.
    pub channels: u32,
    /// Spatial dims as the window sees them.
    pub dims: [u32; 3],
    /// Whether rows and columns are each seen twice.
    pub is_doubled: bool,
    /// Positions of the window; with the samples before them they number rows.
    pub output: [u32; 3],
    /// Taps.
    pub kernel: [u32; 3],
    /// Distance between positions.
    pub stride: [u32; 3],
    /// Zeros before the first element.
    pub pad_low: [u32; 3],
}

impl Windows {
    /// Bits that hold where the window stands along the last two axes; those before are the first's.
    pub fn position_bits(&self) -> [u32; 2] {
        [1, 2].map(|axis| bits(self.last_position(axis)))
    }

    fn last_position(&self, axis: usize) -> u32 {
        (self.output[axis] - 1) * self.stride[axis]
    }

    /// Whether a word holds where the window stands.
    pub(super) fn fits_a_word(&self) -> bool {
        let [y, x] = self.position_bits();
        bits(self.last_position(0)) + y + x <= u32::BITS
    }
}

/// Bits of a number.
fn bits(number: u32) -> u32 {
    u32::BITS - number.leading_zeros()
}

/// How the sums are computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// Halves on tensor cores, warp by warp.
    Tensor(Tile),
    /// Halves on tensor cores that four warps feed together, on `sm_90a`.
    Group(Tile),
    /// f32 on ordinary units: [`SCALAR_TILE`] rows and columns a block.
    Scalar,
    /// A warp for each column and all rows.
    Few,
}

impl Method {
    /// What a block computes, where that is a choice.
    pub fn tile(&self) -> Option<Tile> {
        match *self {
            Method::Tensor(tile) | Method::Group(tile) => Some(tile),
            Method::Scalar | Method::Few => None,
        }
    }
}

/// As tables of measured tiles name it: `group 128x256x64 4`.
impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (way, tile) = match self {
            Method::Tensor(tile) => ("tensor", tile),
            Method::Group(tile) => ("group", tile),
            Method::Scalar => return write!(f, "scalar"),
            Method::Few => return write!(f, "few"),
        };
        let Tile { rows, columns, depth, stages, .. } = tile;
        write!(f, "{way} {rows}x{columns}x{depth} {stages}")
    }
}

/// What a block of threads computes on tensor cores, in steps along the depth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tile {
    /// Rows of a block.
    pub rows: u32,
    /// Columns of a block.
    pub columns: u32,
    /// Depth of a step: 32 or 64.
    pub depth: u32,
    /// Warps along the rows.
    pub warp_rows: u32,
    /// Warps along the columns; each takes a multiple of 32.
    pub warp_columns: u32,
    /// Steps in shared memory at once.
    pub stages: u32,
}

impl Tile {
    /// From the largest to the smallest, with 64x64, 64x32 or 16x32 for each warp.
    pub const ALL: [Tile; 8] = [
        Tile::new(128, 256, 64, [2, 4], 4),
        Tile::new(256, 128, 64, [4, 2], 4),
        Tile::new(128, 128, 64, [2, 2], 3),
        Tile::new(128, 128, 32, [2, 2], 4),
        Tile::new(64, 128, 64, [1, 4], 3),
        Tile::new(64, 64, 64, [2, 2], 4),
        Tile::new(128, 32, 64, [4, 1], 4),
        Tile::new(16, 128, 64, [1, 4], 4),
    ];

    /// Those of groups of four warps, with 64 rows for each.
    pub const GROUPS: [Tile; 4] = [
        Tile::new(128, 128, 64, [8, 1], 3),
        Tile::new(128, 256, 64, [8, 1], 4),
        Tile::new(128, 256, 64, [8, 1], 3),
        Tile::new(256, 128, 64, [16, 1], 4),
    ];

    const fn new(rows: u32, columns: u32, depth: u32, warps: [u32; 2], stages: u32) -> Tile {
        Tile { rows, columns, depth, warp_rows: warps[0], warp_columns: warps[1], stages }
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.warp_rows * self.warp_columns * WARP
    }

    /// Bytes of a row or a column in shared memory.
    pub fn line_bytes(&self) -> u32 {
        self.depth * DType::Bf16.size() as u32
    }

    /// Copies of 16 bytes that fill a row or a column.
    pub fn line_copies(&self) -> u32 {
        self.line_bytes() / COPY_BYTES
    }

    /// Bytes of one step in shared memory.
    pub fn stage_bytes(&self) -> u32 {
        (self.rows + self.columns) * self.line_bytes()
    }

    /// Dynamic shared memory of a block.
    pub fn shared_bytes(&self) -> u32 {
        self.stage_bytes() * self.stages
    }

    /// Blocks that a multiprocessor runs at once; 0 where one does not fit.
    pub(super) fn residents(&self, gpu: Gpu) -> u32 {
        let (of_gpu, of_block) = gpu.shared_bytes();
        // Each block also takes 1 KiB for the system.
        let by_memory = of_gpu as u32 / (self.shared_bytes() + 1024);
        if self.shared_bytes() > of_block as u32 {
            return 0;
        }
        // Registers: sums, fragments of two steps but in groups, which have none, addresses.
        let warp_rows = self.rows / self.warp_rows;
        let warp_columns = self.columns / self.warp_columns;
        let is_group = (warp_rows, self.warp_columns) == (16, 1);
        let fragments = if is_group { 0 } else { warp_rows / 2 + warp_columns / 2 };
        let registers = warp_rows * warp_columns / WARP + fragments + 48;
        let by_registers = (64 << 10) / (registers.next_multiple_of(8) * self.threads());
        by_memory.min(by_registers).min(MAX_RESIDENT_THREADS / self.threads())
    }

    /// The way that is expected to be the fastest for `batch` products of `rows` x `columns`.
    fn choose(batch: u32, rows: u32, columns: u32, depth: u32, gpu: Gpu) -> Option<Method> {
        let costs = Tiles::methods(gpu).into_iter().filter_map(|method| {
            let is_group = matches!(method, Method::Group(_));
            let cost = method.tile()?.cost([batch, rows, columns, depth], is_group, gpu);
            Some((cost, method))
        });
        costs.min_by_key(|(cost, _)| *cost).map(|(_, method)| method)
    }

    /// Expected time in cycles of the multiprocessor with the most blocks: those share its tensor cores,
    /// its shared memory and its way to the L2 cache, whichever is busiest.
    fn cost(&self, [batch, rows, columns, depth]: [u32; 4], is_group: bool, gpu: Gpu) -> u64 {
        let blocks = u64::from(rows.div_ceil(self.rows))
            * u64::from(columns.div_ceil(self.columns))
            * u64::from(batch);
        let of_one = blocks.div_ceil(gpu.multiprocessors() as u64);
        let residents = u64::from(self.residents(gpu)).min(of_one);
        let products_per_cycle = match gpu.0 {
            80 => 1024,
            90 if is_group => 2048,
            // What instructions of one warp were measured to reach.
            90 => 930,
            _ => 512,
        };
        let arithmetic = u64::from(self.rows * self.columns * self.depth) / products_per_cycle;
        // Lines that are read from shared memory: all columns by each group of four warps, or those of
        // each warp.
        let read = if is_group {
            self.rows + self.warp_rows / 4 * self.columns
        } else {
            self.warp_columns * self.rows + self.warp_rows * self.columns
        };
        let shared = u64::from(read * self.line_bytes() + self.stage_bytes()) / 128;
        let cache = u64::from(self.stage_bytes()) / 36;
        // A step of one block waits for its barrier and its first matrices, unless others work.
        let step = arithmetic.max(shared).max(cache).max(500 / residents) + 20;
        let alone = if is_group && residents == 1 { step / 3 } else { 0 };
        let around = (1000 + u64::from(self.rows * self.columns) / 10) / residents;
        of_one * (u64::from(depth.div_ceil(self.depth)) * (step + alone) + around)
    }
}

/// Threads that a multiprocessor of any generation keeps.
const MAX_RESIDENT_THREADS: u32 = 1536;

impl Gemm {
    /// Rows of one product.
    pub fn n_rows(&self) -> u32 {
        self.rows.iter().product()
    }

    /// Products.
    pub fn n_batch(&self) -> u32 {
        self.batch.iter().product()
    }

    /// Threads of a block.
    pub fn block(&self) -> [u32; 3] {
        let threads = match self.method {
            Method::Tensor(tile) | Method::Group(tile) => tile.threads(),
            Method::Scalar => (SCALAR_TILE / SCALAR_RUN) * (SCALAR_TILE / SCALAR_RUN),
            Method::Few => FEW_WARPS * WARP,
        };
        [threads, 1, 1]
    }

    /// Blocks along x, y, z: tiles, nothing, the batch.
    pub fn grid(&self) -> Option<[u32; 3]> {
        let tiles = match self.method {
            Method::Tensor(tile) | Method::Group(tile) => [tile.rows, tile.columns],
            Method::Scalar => [SCALAR_TILE; 2],
            Method::Few => [FEW_ROWS, FEW_WARPS],
        };
        let n_tiles = self.n_rows().div_ceil(tiles[0]).checked_mul(self.columns.div_ceil(tiles[1]));
        (self.n_batch() <= u32::from(u16::MAX)).then_some([n_tiles?, 1, self.n_batch()])
    }

    /// With the method and the vectors that suit the target's device and the pointers `args`.
    pub(super) fn tuned(mut self, args: &[Arg], gpu: Gpu, target: &Target) -> Option<Gemm> {
        let accesses = std::iter::once(&self.result).chain(self.epilogue.memory());
        let offsets = args[2..].iter().map(|arg| arg.offset);
        let is_run = self.result.strides.last() == Some(&1);
        let widest = widest_vector(accesses.zip(offsets), self.columns);
        let is_half = matches!(self.product, DType::Bf16 | DType::F16);
        let (n_rows, n_batch) = (self.n_rows(), self.n_batch());
        self.method = if n_rows <= FEW_ROWS && matches!(self.left, Left::Matrix { .. }) {
            Method::Few
        } else if is_half {
            let tiles = target.tiles.as_deref();
            match tiles.and_then(|tiles| tiles.method(&Product::of_gemm(&self, gpu))) {
                Some(measured) => measured,
                None => Tile::choose(n_batch, n_rows, self.columns, self.depth, gpu)?,
            }
        } else {
            Method::Scalar
        };
        let most = match self.method {
            Method::Tensor(_) | Method::Group(_) => 8,
            Method::Scalar => SCALAR_RUN,
            Method::Few => 1,
        };
        self.vector = if is_run { widest.min(most) } else { 1 };
        Some(self)
    }
}

/// Whether 16 bytes along the innermost dim, of length `len`, can be copied at once from `offset` bytes.
pub(super) fn takes_copies(access: &Access, offset: usize, len: usize) -> bool {
    let elements = COPY_BYTES as usize / access.dtype.size();
    access.strides.last() == Some(&1)
        && len.is_multiple_of(elements)
        && access.takes_vectors(elements, offset)
}
