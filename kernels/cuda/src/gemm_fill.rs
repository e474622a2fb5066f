//! From global memory to the tiles that tensor cores read: rows of the left factor and columns of
//! the right one, as *lines* along the depth.
//!
//! A line is 4 or 8 copies of 16 bytes. Where a copy lies in its line depends on the line's number,
//! so that the 8 lines of a matrix that are read at once lie in different banks. A thread always
//! makes the same copy of its lines, which are a fixed number apart, so that what differs between
//! them is known when the function is compiled.

use cubecl::prelude::*;
use kernels::cuda::Access;
use kernels::cuda::gemm::{Gemm, Left, Method, Tile, Windows};
use ops::DType;

use crate::gemm_windows::{Stand, channels_behind, seen, seen_element, stand, tap};
use crate::position::{coordinates, position};
use crate::ptx::{copy_16, copy_16_of, global_address, pack_halves};
use crate::slot::{Slot, SlotExpand, load};

/// Elements of a copy.
const COPY: u32 = 8;

/// One factor's part of a step, and where it comes from.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Side {
    access: Access,
    /// Lines are what these see, instead of rows of a matrix.
    windows: Option<Windows>,
    /// Whether copies are asynchronous; else elements are read one by one.
    copies: bool,
    batch: Vec<u32>,
    /// Dims that lines are numbered over.
    dims: Vec<u32>,
    depth: u32,
    /// Lines in a tile.
    lines: u32,
    /// Bytes from the start of a stage.
    offset: u32,
    is_right: bool,
    /// Whether a group of warps reads the lines, in the hardware's own order.
    is_group: bool,
    product: DType,
    tile: Tile,
}

impl Side {
    /// Rows.
    pub(crate) fn left(gemm: &Gemm, tile: Tile) -> Side {
        let (access, copies, windows) = match &gemm.left {
            Left::Matrix { access, copies } => (access, *copies, None),
            Left::Windows(windows) => (&windows.access, windows.copies, Some(windows.clone())),
        };
        Side {
            access: access.clone(),
            windows,
            copies,
            batch: gemm.batch.clone(),
            dims: gemm.rows.clone(),
            depth: gemm.depth,
            lines: tile.rows,
            offset: 0,
            is_right: false,
            is_group: matches!(gemm.method, Method::Group(_)),
            product: gemm.product,
            tile,
        }
    }

    /// Columns.
    pub(crate) fn right(gemm: &Gemm, tile: Tile) -> Side {
        Side {
            access: gemm.right.clone(),
            windows: None,
            copies: gemm.copies_right,
            batch: gemm.batch.clone(),
            dims: vec![gemm.columns],
            depth: gemm.depth,
            lines: tile.columns,
            offset: tile.rows * tile.line_bytes(),
            is_right: true,
            is_group: matches!(gemm.method, Method::Group(_)),
            product: gemm.product,
            tile,
        }
    }

    /// Lines from one of a thread's copies to its next.
    fn step(&self) -> u32 {
        self.tile.threads() / self.tile.line_copies()
    }

    /// Copies of a thread.
    fn n_copies(&self) -> u32 {
        self.lines / self.step()
    }

    /// Number of lines of the whole factor.
    fn n_lines(&self) -> u32 {
        self.dims.iter().product()
    }

    /// Bytes from one of a thread's lines to its next, if that is the same everywhere and an
    /// instruction can add it.
    fn even_bytes(&self) -> Option<u32> {
        let stride = self.access.strides[self.batch.len()];
        let bytes = u64::from(stride) * u64::from(self.step()) * self.access.dtype.size() as u64;
        let is_even = self.windows.is_none()
            && self.dims.len() == 1
            && bytes * u64::from(self.n_copies()) < 1 << 31;
        is_even.then_some(bytes as u32)
    }

    /// What the swizzle of a thread's line `i` differs by from that of its first: steps are multiples
    /// of 8 lines.
    fn flip(&self, i: u32) -> u32 {
        let eights = i * self.step() / 8 % 4;
        match (self.is_right && !self.is_group, self.tile.line_copies()) {
            (false, _) => 0,
            (true, 4) => eights,
            (true, _) => 2 * eights,
        }
    }

    /// Strides of a matrix from line to line.
    fn line_strides(&self) -> Vec<u32> {
        self.access.strides[self.batch.len()..][..self.dims.len()].to_vec()
    }

    /// What the lines of a convolution are seen by.
    fn windows(&self) -> Windows {
        self.windows.clone().expect("only asked where there are some")
    }

    /// Whether all copies of a step are of one tap.
    fn has_one_tap(&self) -> bool {
        self.windows
            .as_ref()
            .is_some_and(|windows| windows.channels.is_multiple_of(self.tile.depth))
    }

    /// Stride along the depth.
    fn depth_stride(&self) -> usize {
        self.access.strides.last().copied().unwrap_or(0) as usize
    }
}

/// A thread's lines of a tile.
#[derive(CubeType)]
pub(crate) struct Lines {
    /// Where they start at this thread's copy: the first only, if the others are evenly apart.
    starts: Sequence<usize>,
    /// The same in bytes of global memory; of windows, where the input starts.
    addresses: Sequence<u64>,
    /// Where windows stand.
    stands: Sequence<Stand>,
    /// Number of the first one in the whole factor.
    first: u32,
    /// Number of this thread's first line in the tile, and of its copy in the line.
    line: u32,
    copy: u32,
}

/// The lines that this thread fills of the tile that starts at line `first`.
#[cube]
pub(crate) fn lines(slot: &Slot, first: u32, #[comptime] side: Side) -> Lines {
    let copies = comptime!(side.tile.line_copies());
    let line = UNIT_POS / copies;
    let copy = UNIT_POS % copies;
    // Columns of a group of warps are in another order than their lines.
    let mut source = line;
    if comptime!(side.is_right && side.is_group) {
        source = line / 32 * 32 + line % 8 / 2 * 8 + line % 32 / 8 * 2 + line % 2;
    }
    let base = address(slot);
    let mut found = Sequence::<usize>::new();
    let mut addresses = Sequence::<u64>::new();
    let n_batch = comptime!(side.batch.len());
    let batch = coordinates(CUBE_POS_Z as usize, comptime!(side.batch.clone()));
    let of_batch = position(&batch, comptime!(side.access.strides[..n_batch].to_vec()));
    let of_depth = copy as usize * comptime!(COPY as usize * side.depth_stride());
    let n = comptime!(if side.copies && side.even_bytes().is_some() { 1 } else { side.n_copies() });
    let mut stands = Sequence::<Stand>::new();
    if comptime!(side.windows.is_some()) {
        addresses.push(base);
    }
    #[unroll]
    for i in 0..n {
        let number = first + source + comptime!(i * side.step());
        if comptime!(side.windows.is_some()) {
            stands.push(stand(number, comptime!(side.windows())));
        } else {
            let at = coordinates(number as usize, comptime!(side.dims.clone()));
            let strides = comptime!(side.line_strides());
            let start = of_batch + position(&at, strides) + of_depth;
            found.push(start);
            addresses.push(base + start as u64 * comptime!(side.access.dtype.size() as u64));
        }
    }
    Lines { starts: found, addresses, stands, first: first + source, line, copy }
}

/// Where a slot's elements start.
#[cube]
fn address(slot: &Slot) -> u64 {
    match slot {
        Slot::Bytes(x) => global_address::<u8>(x),
        Slot::Halves(x) => global_address::<u16>(x),
        Slot::Words(x) => global_address::<u32>(x),
        Slot::Longs(x) => global_address::<u64>(x),
    }
}

/// Fills one factor's part of the stage at `stage` bytes with the step at depth `k`; zeros where
/// there is no line or no more depth.
#[cube]
pub(crate) fn fill(
    slot: &Slot,
    lines: &Lines,
    memory: &mut Shared<[u32]>,
    base: u32,
    stage: u32,
    k: u32,
    #[comptime] side: Side,
) {
    let line_bytes = comptime!(side.tile.line_bytes());
    let copies = comptime!(side.tile.line_copies());
    let place =
        lines.copy ^ swizzle(lines.line, copies, comptime!(side.is_right && !side.is_group));
    let line_at = stage + comptime!(side.offset) + lines.line * line_bytes;
    let has_all_lines = comptime!(side.n_lines().is_multiple_of(side.lines));
    let has_all_depth = comptime!(side.depth.is_multiple_of(side.tile.depth));
    let depth_left = k + lines.copy * COPY < comptime!(side.depth);
    #[unroll]
    for i in 0..comptime!(side.n_copies()) {
        let to = line_at + (place ^ comptime!(side.flip(i))) * 16;
        let to_offset = comptime!(i * side.step() * line_bytes);
        let mut is_there = true.runtime();
        if comptime!(!has_all_lines) {
            is_there = lines.first + comptime!(i * side.step()) < comptime!(side.n_lines());
        }
        if comptime!(!has_all_depth) {
            is_there = is_there && depth_left;
        }
        if comptime!(!side.copies) {
            let word = (to + to_offset) as usize / 4;
            let first = k + lines.copy * COPY;
            #[unroll]
            for pair in 0..comptime!(COPY / 2) {
                let at = first + comptime!(2 * pair);
                let low = element_at(slot, lines, i, is_there, at, comptime!(side.clone()));
                let high = element_at(slot, lines, i, is_there, at + 1, comptime!(side.clone()));
                memory[word + comptime!(pair as usize)] =
                    pack_halves(low, high, comptime!(element(side.product)));
            }
        } else if comptime!(side.windows.is_some()) {
            let windows = comptime!(side.windows());
            let at = if comptime!(side.has_one_tap()) {
                let first = tap(k, comptime!(windows.clone()));
                channels_behind(first, lines.copy * COPY, comptime!(windows.clone()))
            } else {
                tap(k + lines.copy * COPY, comptime!(windows.clone()))
            };
            let seen = seen(lines.stands.index(comptime!(i as usize)), at, windows);
            let from = *lines.addresses.index(0usize)
                + seen.position as u64 * comptime!(side.access.dtype.size() as u64);
            let bytes = select(is_there && seen.is_inside, 16u32, 0u32);
            copy_16_of(base + to, to_offset, from, 0u32, bytes);
        } else {
            let even = comptime!(side.even_bytes());
            let which = comptime!(if even.is_some() { 0usize } else { i as usize });
            let from_offset = comptime!(even.map_or(0, |bytes| i * bytes));
            let from = *lines.addresses.index(which)
                + k as u64 * comptime!(side.access.dtype.size() as u64);
            if comptime!(has_all_lines && has_all_depth) {
                copy_16(base + to, to_offset, from, from_offset);
            } else {
                let bytes = select(is_there, 16u32, 0u32);
                copy_16_of(base + to, to_offset, from, from_offset, bytes);
            }
        }
    }
}

/// Element `at` along the depth of a thread's line `i`; zero where there is none.
#[cube]
fn element_at(
    slot: &Slot,
    lines: &Lines,
    #[comptime] i: u32,
    is_there: bool,
    at: u32,
    #[comptime] side: Side,
) -> f32 {
    let mut element = 0.0f32;
    if is_there && at < comptime!(side.depth) {
        if comptime!(side.windows.is_some()) {
            let stand = lines.stands.index(comptime!(i as usize));
            element = seen_element(slot, stand, at, comptime!(side.windows()));
        } else {
            // The line starts at this thread's copy.
            let behind = (at - lines.copy * COPY) as usize * comptime!(side.depth_stride());
            let from = *lines.starts.index(comptime!(i as usize)) + behind;
            element = load(slot, from, comptime!(side.access.dtype));
        }
    }
    element
}

/// What the number of a copy is xored with, by the number of its line.
#[cube]
fn swizzle(line: u32, #[comptime] copies: u32, #[comptime] is_right: bool) -> u32 {
    if comptime!(is_right) { swizzle_right(line, copies) } else { swizzle_left(line, copies) }
}

/// Of a row: 8 neighbors are read at once. Two lines of 4 copies share all banks.
#[cube]
pub(crate) fn swizzle_left(line: u32, #[comptime] copies: u32) -> u32 {
    if comptime!(copies == 4) { line / 2 % 4 } else { line % 8 }
}

/// Of a column: two neighbors are read at once, and those 8, 16 and 24 behind.
#[cube]
pub(crate) fn swizzle_right(line: u32, #[comptime] copies: u32) -> u32 {
    if comptime!(copies == 4) { line / 8 % 4 } else { line % 2 + line / 8 % 4 * 2 }
}

/// The name of a half type in PTX.
pub(crate) fn element(product: DType) -> &'static str {
    if product == DType::Bf16 { "bf16" } else { "f16" }
}
