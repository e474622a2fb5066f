//! `attention`: queries in registers, keys and values through shared memory, on tensor cores.
//!
//! A warp's lanes hold matrices as the instructions want them: lane `4 g + t` has of a tile of 16x8
//! results the rows `g` and `g + 8`, columns `2 t` and `2 t + 1`. Scores of two neighboring tiles are
//! in that form what the second product takes as its left operand, 16 queries by 16 keys.

use cubecl::prelude::*;
use kernels::cuda::Access;
use kernels::cuda::attention::{Attention, Problem};
use ops::DType;

use crate::emit::pointer;
use crate::operands;
use crate::position::{coordinates, position};
use crate::ptx::{
    Sums, Words4, ballot, commit_copies, copy_16, copy_16_of, exp2, from_lane_xor, global_address,
    load_global_word, load_matrices, load_matrices_transposed, load_matrix_pair,
    load_matrix_pair_transposed, load_shared_words, max, mma_8, mma_16, pack_halves,
    shared_address, store_global_float, store_global_half, store_global_pair, store_global_words,
    store_shared_word, wait_copies,
};
use crate::slot::{Slot, SlotExpand, load};

/// Bytes of an element of queries, keys and values.
const SIZE: u32 = 2;
/// Bytes that are copied or written at once, and their elements.
const CHUNK_BYTES: u32 = 16;
const CHUNK: u32 = CHUNK_BYTES / SIZE;
/// What the running maximum starts from: below any score, yet finite, so that a difference of two
/// is a number where all keys so far are masked.
pub(crate) const LOWEST: f32 = -1e30;
/// How far a maximum may fall behind, as a power of 2: weights stay below 2 to this, which every type
/// holds, and no sum loses a bit.
const SLACK: f32 = 8.0;
/// What a masked score is.
pub(crate) const MASKED: f32 = f32::NEG_INFINITY;

/// Declares the pointers and the body; returns how many pointers there are.
pub(crate) fn define(attention: &Attention, builder: &mut KernelBuilder) -> usize {
    let operands = declare(&attention.problem, builder);
    body::expand(&builder.scope, &operands, attention.clone());
    n_pointers(&attention.problem)
}

/// What attention reads and writes.
#[derive(CubeType)]
pub(crate) struct Operands {
    pub(crate) result: Slot,
    pub(crate) q: Slot,
    pub(crate) k: Slot,
    pub(crate) v: Slot,
    /// The mask and the bias, if there are any.
    pub(crate) sides: Sequence<Slot>,
}

/// Declares the pointers.
pub(crate) fn declare(problem: &Problem, builder: &mut KernelBuilder) -> OperandsExpand {
    let mut rows = |access: &Access| pointer(builder, access.dtype.size());
    let (result, q) = (rows(&problem.result), rows(&problem.q));
    let (k, v) = (rows(&problem.k), rows(&problem.v));
    let sides = [&problem.mask, &problem.bias].into_iter().flatten();
    OperandsExpand { result, q, k, v, sides: operands::declare(sides, builder) }
}

/// How many pointers those are.
pub(crate) fn n_pointers(problem: &Problem) -> usize {
    4 + [&problem.mask, &problem.bias].into_iter().flatten().count()
}

/// Sizes in shared memory, and of the group of threads that share a tile.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Geometry {
    /// Pieces of 16 bytes of a row.
    chunks: u32,
    /// From one row to the next.
    row_bytes: u32,
    /// Threads that share a tile.
    group: u32,
    /// Bytes of a tile of keys or values.
    tile_bytes: u32,
    /// Bytes of a group: two stages of keys and values; later, the outputs.
    group_bytes: u32,
    /// 32-bit words of the block.
    words: u32,
}

impl Geometry {
    fn of(attention: &Attention) -> Geometry {
        let chunks = attention.problem.d / CHUNK;
        // Rows start at odd multiples of 16 bytes, so that 8 of them meet all banks.
        let row_bytes = (chunks | 1) * CHUNK_BYTES;
        let tile = attention.tile;
        let group = if tile.has_pair_per_warp { 32 } else { 32 * tile.warps };
        let tile_bytes = tile.keys * row_bytes;
        let stages = attention.key_tiles().min(2);
        let staged_bytes = attention.queries() * row_bytes;
        let group_bytes = (2 * stages * tile_bytes).max(staged_bytes);
        Geometry {
            chunks,
            row_bytes,
            group,
            tile_bytes,
            group_bytes,
            words: group_bytes * (32 * tile.warps / group) / 4,
        }
    }
}

/// What a warp works on.
#[derive(CubeType, Clone, Copy)]
struct Task {
    /// Which (batch, head) pair.
    pair: usize,
    /// The warp's first query.
    query: usize,
    /// The thread's number among those that share a tile.
    member: usize,
    /// Where the group's shared memory is.
    shared: u32,
    /// Where the warp's outputs go, in the same memory.
    staged: u32,
    /// Row of the thread's sums, the other is 8 further.
    row: usize,
    /// Which pair of columns of the thread's sums.
    column: usize,
    /// Number within the warp.
    lane: usize,
}

#[cube]
fn body(operands: &Operands, #[comptime] attention: Attention) {
    let geometry = comptime!(Geometry::of(&attention));
    let memory = Shared::<[u32]>::new_aligned_slice(comptime!(geometry.words as usize), 16usize);
    let shared = shared_address(&memory);
    let thread = UNIT_POS_X as usize;
    let block = CUBE_POS_X as usize;
    let warp = thread / 32;
    let lane = thread % 32;
    let warps = comptime!(attention.tile.warps as usize);
    let warp_rows = comptime!(16 * attention.tile.heights);
    if comptime!(attention.tile.has_pair_per_warp) {
        let pair = block * warps + warp;
        let own = shared + warp as u32 * comptime!(geometry.group_bytes);
        let task = Task {
            pair,
            query: 0usize,
            member: lane,
            shared: own,
            staged: own,
            row: lane / 4,
            column: lane % 4,
            lane,
        };
        let n = comptime!(attention.problem.n_pairs() as usize);
        if comptime!(n % warps == 0) {
            attend(&task, operands, attention);
        } else if pair < n {
            attend(&task, operands, attention);
        }
    } else {
        let n = comptime!(attention.query_blocks() as usize);
        let task = Task {
            pair: block / n,
            query: block % n * comptime!(attention.queries() as usize)
                + warp * comptime!(warp_rows as usize),
            member: thread,
            shared,
            staged: shared + warp as u32 * comptime!(warp_rows * geometry.row_bytes),
            row: lane / 4,
            column: lane % 4,
            lane,
        };
        attend(&task, operands, attention);
    }
}

/// The type of the operands, as instructions name it.
fn element(attention: &Attention) -> &'static str {
    half_name(attention.problem.q.dtype)
}

fn half_name(dtype: DType) -> &'static str {
    if dtype == DType::Bf16 { "bf16" } else { "f16" }
}

#[cube]
fn attend(task: &Task, operands: &Operands, #[comptime] attention: Attention) {
    let geometry = comptime!(Geometry::of(&attention));
    let heights = comptime!(attention.tile.heights as usize);
    let keys = comptime!(attention.tile.keys as usize);
    let tiles = comptime!(attention.key_tiles() as usize);
    let chunks = comptime!(geometry.chunks as usize);
    let at = coordinates(task.pair, comptime!(attention.problem.pairs.clone()));

    let row = task.member / chunks;
    let column = task.member % chunks;
    let mut k_from = row_address(&operands.k, &at, row, comptime!(attention.problem.k.clone()))
        + (column as u32 * CHUNK_BYTES) as u64;
    let mut v_from = row_address(&operands.v, &at, row, comptime!(attention.problem.v.clone()))
        + (column as u32 * CHUNK_BYTES) as u64;
    let copy_to =
        task.shared + row as u32 * comptime!(geometry.row_bytes) + column as u32 * CHUNK_BYTES;
    let k_step =
        comptime!(attention.tile.keys * attention.problem.k.strides.last().expect("rows") * SIZE);
    let v_step =
        comptime!(attention.tile.keys * attention.problem.v.strides.last().expect("rows") * SIZE);

    copy_tile(copy_to, 0u32, k_from, row, 0usize, comptime!(attention.clone()), false);
    copy_tile(copy_to, 0u32, v_from, row, 0usize, comptime!(attention.clone()), true);
    commit_copies();
    let queries = load_queries(task, &operands.q, &at, comptime!(attention.clone()));

    // Rows of matrices that this lane names: of keys for two tiles of 8 keys and both halves of 16
    // dims; of values for both halves of 16 keys and two tiles of 8 dims.
    let lane = task.lane as u32;
    let row_bytes = comptime!(geometry.row_bytes);
    let k_lane = task.shared + (lane / 16 * 8 + lane % 8) * row_bytes + lane / 8 % 2 * CHUNK_BYTES;
    let k_tail = task.shared + lane * row_bytes;
    let v_lane = task.shared + lane % 16 * row_bytes + lane / 16 * CHUNK_BYTES;

    let mut maxima = Array::<f32>::new(comptime!(2 * heights));
    let mut sums = Array::<f32>::new(comptime!(2 * heights));
    #[unroll]
    for r in 0..comptime!(2 * heights) {
        maxima[r] = LOWEST;
        sums[r] = 0.0f32;
    }
    let mut outputs = zeros(comptime!(heights * chunks));
    let mut stage = 0u32;
    for tile in 0..tiles {
        let flags =
            key_flags(task, &operands.sides, &at, tile * keys, comptime!(attention.clone()));
        wait_copies(0u32);
        sync_group(comptime!(attention.tile.has_pair_per_warp));
        if comptime!(tiles > 1) {
            if tile + 1 < tiles {
                k_from += k_step as u64;
                v_from += v_step as u64;
                let other = comptime!(2 * geometry.tile_bytes) - stage;
                let first = (tile + 1) * keys;
                copy_tile(copy_to, other, k_from, row, first, comptime!(attention.clone()), false);
                copy_tile(copy_to, other, v_from, row, first, comptime!(attention.clone()), true);
                commit_copies();
            }
        }
        if has_key(&flags, comptime!(attention.clone())) {
            let mut scores = zeros(comptime!(heights * keys / 8));
            let (k_lane, k_tail) = (k_lane + stage, k_tail + stage);
            score(&mut scores, &queries, k_lane, k_tail, comptime!(attention.clone()));
            add_bias(
                &mut scores,
                task,
                &operands.sides,
                &at,
                tile * keys,
                comptime!(attention.clone()),
            );
            mask_keys(&mut scores, task, &flags, comptime!(attention.clone()));
            let weights =
                weigh(&scores, &mut maxima, &mut sums, &mut outputs, comptime!(attention.clone()));
            accumulate(&mut outputs, &weights, v_lane + stage, comptime!(attention.clone()));
        }
        if comptime!(tiles > 1) {
            stage = comptime!(2 * geometry.tile_bytes) - stage;
        }
    }
    #[unroll]
    for r in 0..comptime!(2 * heights) {
        let half = sums[r] + from_lane_xor(sums[r], 1u32);
        let sum = half + from_lane_xor(half, 2u32);
        // No key takes part: the result is 0.
        sums[r] = select(sum > 0.0f32, 1.0f32 / sum, 0.0f32);
    }
    #[unroll]
    for height in 0..heights {
        #[unroll]
        for chunk in 0..chunks {
            let tile = outputs[height * chunks + chunk];
            let mut scaled = Sums::empty();
            #[unroll]
            for i in 0..4usize {
                scaled.insert(i, tile.extract(i) * sums[2 * height + i / 2]);
            }
            outputs[height * chunks + chunk] = scaled;
        }
    }
    write(task, &operands.result, &at, &outputs, attention);
}

#[cube]
fn zeros(#[comptime] n: usize) -> Array<Sums> {
    let mut sums = Array::<Sums>::new(n);
    #[unroll]
    for i in 0..n {
        sums[i] = Sums::new(0.0f32);
    }
    sums
}

/// Waits for the threads that share tiles.
#[cube]
fn sync_group(#[comptime] is_warp: bool) {
    if comptime!(is_warp) {
        sync_plane();
    } else {
        sync_cube();
    }
}

/// Where row `row` of pair `at` starts.
#[cube]
fn row_address(slot: &Slot, at: &Array<usize>, row: usize, #[comptime] access: Access) -> u64 {
    let start = row_start(at, comptime!(access.strides.clone()));
    let element = start + row * comptime!(*access.strides.last().expect("rows") as usize);
    slot_address(slot) + (element as u32) as u64 * comptime!(access.dtype.size() as u64)
}

#[cube]
fn slot_address(slot: &Slot) -> u64 {
    match slot {
        Slot::Bytes(x) => global_address::<u8>(x),
        Slot::Halves(x) => global_address::<u16>(x),
        Slot::Words(x) => global_address::<u32>(x),
        Slot::Longs(x) => global_address::<u64>(x),
    }
}

/// Starts the copy of this thread's part of a tile of keys or values: `from` is its first piece, in
/// row `row` of the tile that begins with key `first`. Rows beyond the last key become zeros.
#[cube]
fn copy_tile(
    to: u32,
    stage: u32,
    from: u64,
    row: usize,
    first: usize,
    #[comptime] attention: Attention,
    #[comptime] are_values: bool,
) {
    let geometry = comptime!(Geometry::of(&attention));
    let keys = comptime!(attention.tile.keys);
    let rows = comptime!(geometry.group / geometry.chunks);
    let passes = comptime!(keys.div_ceil(rows));
    let stride = comptime!({
        let access = if are_values { &attention.problem.v } else { &attention.problem.k };
        *access.strides.last().expect("rows have a stride")
    });
    let sk = comptime!(attention.problem.sk as usize);
    let is_ragged = comptime!(!attention.problem.sk.is_multiple_of(keys));
    let has_idle = comptime!(!geometry.group.is_multiple_of(geometry.chunks));
    #[unroll]
    for pass in 0..passes {
        let tile_offset = comptime!(if are_values { geometry.tile_bytes } else { 0 });
        let to_offset = comptime!(tile_offset + pass * rows * geometry.row_bytes);
        let from_offset = comptime!(pass * rows * stride * SIZE);
        let key = row + comptime!((pass * rows) as usize);
        let is_last = comptime!((pass + 1) * rows > keys);
        // A thread beyond the last whole row of a pass has none, nor one beyond the tile.
        let limit = comptime!(keys.min((pass + 1) * rows) as usize);
        if comptime!(has_idle || is_last) {
            if key < limit {
                copy_chunk(to + stage, to_offset, from, from_offset, first + key, sk, is_ragged);
            }
        } else {
            copy_chunk(to + stage, to_offset, from, from_offset, first + key, sk, is_ragged);
        }
    }
}

#[cube]
fn copy_chunk(
    to: u32,
    #[comptime] to_offset: u32,
    from: u64,
    #[comptime] from_offset: u32,
    key: usize,
    #[comptime] sk: usize,
    #[comptime] is_ragged: bool,
) {
    if comptime!(is_ragged) {
        let bytes = select(key < sk, CHUNK_BYTES, 0u32);
        copy_16_of(to, to_offset, from, from_offset, bytes);
    } else {
        copy_16(to, to_offset, from, from_offset);
    }
}

/// Fragments of the warp's queries: for each height and 16 dims, rows `row` and `row + 8` of the
/// first 8 dims, then of the others, or nothing there if dims end. Rows beyond the last are the last.
#[cube]
fn load_queries(
    task: &Task,
    q: &Slot,
    at: &Array<usize>,
    #[comptime] attention: Attention,
) -> Array<Words4> {
    let heights = comptime!(attention.tile.heights as usize);
    let chunks = comptime!((attention.problem.d / CHUNK) as usize);
    let steps = comptime!(chunks.div_ceil(2));
    let last = comptime!(attention.problem.sq as usize - 1);
    let is_ragged = comptime!(!attention.problem.sq.is_multiple_of(attention.queries()));
    let mut fragments = Array::<Words4>::new(comptime!(heights * steps));
    #[unroll]
    for height in 0..heights {
        let mut addresses = Sequence::<u64>::new();
        #[unroll]
        for half in 0..2usize {
            let row = task.query + task.row + comptime!(16 * height + 8 * half);
            let row = if comptime!(is_ragged) { select(row < last, row, last) } else { row };
            let start = row_address(q, at, row, comptime!(attention.problem.q.clone()));
            addresses.push(start + (task.column as u32 * 4) as u64);
        }
        #[unroll]
        for step in 0..steps {
            let mut words = Words4::new(0u32);
            #[unroll]
            for part in 0..4usize {
                let chunk = comptime!(2 * step + part / 2);
                if comptime!(chunk < chunks) {
                    let offset = comptime!(chunk as u32 * CHUNK_BYTES);
                    let word = load_global_word(*addresses.index(comptime!(part % 2)), offset);
                    words.insert(part, sign(word, comptime!(attention.problem.scale)));
                }
            }
            fragments[height * steps + step] = words;
        }
    }
    fragments
}

/// Two halves times the sign of the scale, whose size scores are multiplied with later.
#[cube]
fn sign(halves: u32, #[comptime] scale: f32) -> u32 {
    if comptime!(scale < 0.0) {
        halves ^ 0x8000_8000u32
    } else if comptime!(scale == 0.0) {
        halves & 0u32
    } else {
        halves
    }
}

/// What scores are multiplied with, in units of log 2.
fn factor(attention: &Attention) -> f32 {
    let scale = attention.problem.scale;
    let size = if scale == 0.0 { 1.0 } else { scale.abs() };
    size * std::f32::consts::LOG2_E
}

/// `scores += queries keys^T`.
#[cube]
fn score(
    scores: &mut Array<Sums>,
    queries: &Array<Words4>,
    k_lane: u32,
    k_tail: u32,
    #[comptime] attention: Attention,
) {
    let geometry = comptime!(Geometry::of(&attention));
    let element = comptime!(element(&attention));
    let heights = comptime!(attention.tile.heights as usize);
    let tiles = comptime!((attention.tile.keys / 8) as usize);
    let steps = comptime!((geometry.chunks / 2) as usize);
    let has_tail = comptime!(geometry.chunks % 2 == 1);
    let all_steps = comptime!(geometry.chunks.div_ceil(2) as usize);
    #[unroll]
    for step in 0..steps {
        #[unroll]
        for pair in 0..comptime!(tiles / 2) {
            let offset =
                comptime!(pair as u32 * 16 * geometry.row_bytes + step as u32 * 2 * CHUNK_BYTES);
            let b = load_matrices(k_lane, offset);
            #[unroll]
            for height in 0..heights {
                let a = queries[height * all_steps + step];
                #[unroll]
                for i in 0..2usize {
                    let to = comptime!(height * tiles + 2 * pair + i);
                    scores[to] =
                        mma_16(a, b.extract(2 * i), b.extract(2 * i + 1), scores[to], element);
                }
            }
        }
    }
    if has_tail {
        // Four tiles of keys at once, or two if there are no more.
        let at_once = comptime!(if tiles % 4 == 0 { 4 } else { 2usize });
        #[unroll]
        for some in 0..comptime!(tiles / at_once) {
            let offset = comptime!(
                (some * at_once) as u32 * 8 * geometry.row_bytes + 2 * steps as u32 * CHUNK_BYTES
            );
            let mut b = Sequence::<u32>::new();
            if comptime!(at_once == 4) {
                let words = load_matrices(k_tail, offset);
                #[unroll]
                for i in 0..4usize {
                    b.push(words.extract(i));
                }
            } else {
                let words = load_matrix_pair(k_tail, offset);
                b.push(words.extract(0usize));
                b.push(words.extract(1usize));
            }
            #[unroll]
            for height in 0..heights {
                let a = queries[height * all_steps + steps];
                #[unroll]
                for i in 0..at_once {
                    let to = comptime!(height * tiles + some * at_once + i);
                    let (a0, a1) = (a.extract(0usize), a.extract(1usize));
                    scores[to] = mma_8(a0, a1, *b.index(i), scores[to], element);
                }
            }
        }
    }
}

/// Scales scores and adds the bias, if there is one.
#[cube]
fn add_bias(
    scores: &mut Array<Sums>,
    task: &Task,
    sides: &Sequence<Slot>,
    at: &Array<usize>,
    first: usize,
    #[comptime] attention: Attention,
) {
    if comptime!(attention.problem.bias.is_some()) {
        let bias = comptime!(attention.problem.bias.clone().expect("there is a bias"));
        let slot = sides.index(comptime!(usize::from(attention.problem.mask.is_some())));
        let factor = comptime!(factor(&attention));
        let n = comptime!(bias.strides.len() - 2);
        let (row_step, key_step) =
            comptime!((bias.strides[n] as usize, bias.strides[n + 1] as usize));
        let start = position(at, comptime!(bias.strides[..n].to_vec()));
        let tiles = comptime!((attention.tile.keys / 8) as usize);
        let (last_row, last_key) =
            comptime!((attention.problem.sq as usize - 1, attention.problem.sk as usize - 1));
        #[unroll]
        for height in 0..comptime!(attention.tile.heights as usize) {
            #[unroll]
            for tile in 0..tiles {
                let index = comptime!(height * tiles + tile);
                let mut biased = Sums::empty();
                #[unroll]
                for i in 0..4usize {
                    let row = task.query + task.row + comptime!(16 * height + i / 2 * 8);
                    let key = first + 2 * task.column + comptime!(8 * tile + i % 2);
                    // What lies beyond is read elsewhere and not used.
                    let row = select(row < last_row, row, last_row);
                    let key = select(key < last_key, key, last_key);
                    let from = start + row * row_step + key * key_step;
                    let x = load(slot, from, comptime!(bias.dtype));
                    let y = scores[index].extract(i);
                    biased.insert(i, y * factor + x * comptime!(std::f32::consts::LOG2_E));
                }
                scores[index] = biased;
            }
        }
    }
}

/// Whether some key of a tile may take no part.
fn is_checked(attention: &Attention) -> bool {
    attention.problem.mask.is_some() || !attention.problem.sk.is_multiple_of(attention.tile.keys)
}

/// For each 32 keys of the tile that begins with key `first`, which of them take part.
#[cube]
fn key_flags(
    task: &Task,
    sides: &Sequence<Slot>,
    at: &Array<usize>,
    first: usize,
    #[comptime] attention: Attention,
) -> Array<u32> {
    let words = comptime!(attention.tile.keys.div_ceil(32) as usize);
    let mut flags = Array::<u32>::new(words);
    if comptime!(is_checked(&attention)) {
        let sk = comptime!(attention.problem.sk as usize);
        #[unroll]
        for word in 0..words {
            let key = first + task.lane + comptime!(32 * word);
            let is_key = key < sk;
            let mut flag = u32::cast_from(is_key);
            if comptime!(attention.problem.mask.is_some()) {
                let mask = comptime!(attention.problem.mask.clone().expect("there is a mask"));
                let start = row_start(at, comptime!(mask.strides.clone()));
                let step = comptime!(*mask.strides.last().expect("a mask has a stride") as usize);
                let from = start + select(is_key, key, comptime!(sk - 1)) * step;
                let x = load(sides.index(0usize), from, comptime!(mask.dtype));
                flag = select(x != 0.0f32, flag, 0u32);
            }
            flags[word] = ballot(flag);
        }
    }
    flags
}

/// Whether the tile has a key that takes part.
#[cube]
fn has_key(flags: &Array<u32>, #[comptime] attention: Attention) -> bool {
    if comptime!(attention.problem.mask.is_some()) {
        let mut any = flags[0];
        #[unroll]
        for word in 1..comptime!(attention.tile.keys.div_ceil(32) as usize) {
            any |= flags[word];
        }
        any != 0u32
    } else {
        true.runtime()
    }
}

/// Makes scores of keys that take no part as low as can be.
#[cube]
fn mask_keys(
    scores: &mut Array<Sums>,
    task: &Task,
    flags: &Array<u32>,
    #[comptime] attention: Attention,
) {
    let tiles = comptime!((attention.tile.keys / 8) as usize);
    if comptime!(is_checked(&attention)) {
        #[unroll]
        for word in 0..comptime!(tiles.div_ceil(4)) {
            if flags[word] != 0xffff_ffffu32 {
                let own = flags[word] >> (2 * task.column as u32);
                #[unroll]
                for tile in comptime!(4 * word)..comptime!(tiles.min(4 * word + 4)) {
                    #[unroll]
                    for height in 0..comptime!(attention.tile.heights as usize) {
                        let index = comptime!(height * tiles + tile);
                        let mut masked = Sums::empty();
                        #[unroll]
                        for i in 0..4usize {
                            let bit = comptime!(1u32 << (tile % 4 * 8 + i % 2));
                            let x = scores[index].extract(i);
                            masked.insert(i, select(own & bit != 0, x, MASKED));
                        }
                        scores[index] = masked;
                    }
                }
            }
        }
    }
}

/// Where the pair's first element lies; the last stride is not of pairs.
#[cube]
fn row_start(at: &Array<usize>, #[comptime] strides: Vec<u32>) -> usize {
    position(at, comptime!(strides[..strides.len() - 1].to_vec()))
}

/// Weights of a tile's keys as the second product's left operand: for each height and 16 keys.
/// They are relative to the running maxima, which follow the true ones only when one has fallen
/// behind by [`SLACK`]: rarely, so that outputs are seldom scaled down.
#[cube]
fn weigh(
    scores: &Array<Sums>,
    maxima: &mut Array<f32>,
    sums: &mut Array<f32>,
    outputs: &mut Array<Sums>,
    #[comptime] attention: Attention,
) -> Array<Words4> {
    let element = comptime!(element(&attention));
    let heights = comptime!(attention.tile.heights as usize);
    let rows = comptime!(2 * heights);
    let tiles = comptime!((attention.tile.keys / 8) as usize);
    let chunks = comptime!((attention.problem.d / CHUNK) as usize);
    let factor =
        comptime!(if attention.problem.bias.is_some() { 1.0f32 } else { factor(&attention) });
    let mut largest = Array::<f32>::new(rows);
    let mut rises = 0u32;
    #[unroll]
    for row in 0..rows {
        let (height, half) = comptime!((row / 2, row % 2));
        let mut most = maxima[row];
        #[unroll]
        for tile in 0..tiles {
            let score = scores[height * tiles + tile];
            most = max(most, score.extract(2 * half));
            most = max(most, score.extract(2 * half + 1));
        }
        most = max(most, from_lane_xor(most, 1u32));
        most = max(most, from_lane_xor(most, 2u32));
        largest[row] = most;
        rises = select(most - maxima[row] > comptime!(SLACK / factor), 1u32, rises);
    }
    if ballot(rises) != 0u32 {
        #[unroll]
        for row in 0..rows {
            let (height, half) = comptime!((row / 2, row % 2));
            let shrink = exp2((maxima[row] - largest[row]) * factor);
            maxima[row] = largest[row];
            sums[row] = sums[row] * shrink;
            #[unroll]
            for chunk in 0..chunks {
                let index = comptime!(height * chunks + chunk);
                let mut output = outputs[index];
                output.insert(2 * half, output.extract(2 * half) * shrink);
                output.insert(2 * half + 1, output.extract(2 * half + 1) * shrink);
                outputs[index] = output;
            }
        }
    }
    let mut weights = Array::<Words4>::new(comptime!(heights * tiles / 2));
    #[unroll]
    for height in 0..heights {
        #[unroll]
        for step in 0..comptime!(tiles / 2) {
            let mut words = Words4::empty();
            #[unroll]
            for part in 0..4usize {
                // Rows alternate, tiles come two after two.
                let half = comptime!(part % 2);
                let row = comptime!(2 * height + half);
                let score = scores[height * tiles + 2 * step + comptime!(part / 2)];
                let reference = maxima[row] * factor;
                let low = exp2(score.extract(2 * half) * factor - reference);
                let high = exp2(score.extract(2 * half + 1) * factor - reference);
                sums[row] = sums[row] + (low + high);
                words.insert(part, pack_halves(low, high, element));
            }
            weights[height * comptime!(tiles / 2) + step] = words;
        }
    }
    weights
}

/// `outputs += weights values`.
#[cube]
fn accumulate(
    outputs: &mut Array<Sums>,
    weights: &Array<Words4>,
    v_lane: u32,
    #[comptime] attention: Attention,
) {
    let geometry = comptime!(Geometry::of(&attention));
    let element = comptime!(element(&attention));
    let heights = comptime!(attention.tile.heights as usize);
    let chunks = comptime!(geometry.chunks as usize);
    let steps = comptime!((attention.tile.keys / 16) as usize);
    #[unroll]
    for step in 0..steps {
        #[unroll]
        for pair in 0..comptime!(chunks.div_ceil(2)) {
            let offset = comptime!(
                geometry.tile_bytes
                    + step as u32 * 16 * geometry.row_bytes
                    + pair as u32 * 2 * CHUNK_BYTES
            );
            let mut b = Sequence::<u32>::new();
            let n = comptime!(2.min(chunks - 2 * pair));
            if comptime!(n == 2) {
                let words = load_matrices_transposed(v_lane, offset);
                #[unroll]
                for i in 0..4usize {
                    b.push(words.extract(i));
                }
            } else {
                let words = load_matrix_pair_transposed(v_lane, offset);
                b.push(words.extract(0usize));
                b.push(words.extract(1usize));
            }
            #[unroll]
            for height in 0..heights {
                let a = weights[height * steps + step];
                #[unroll]
                for i in 0..n {
                    let to = comptime!(height * chunks + 2 * pair + i);
                    let (b0, b1) = (*b.index(2 * i), *b.index(2 * i + 1));
                    outputs[to] = mma_16(a, b0, b1, outputs[to], element);
                }
            }
        }
    }
}

/// Writes the warp's rows.
#[cube]
fn write(
    task: &Task,
    result: &Slot,
    at: &Array<usize>,
    outputs: &Array<Sums>,
    #[comptime] attention: Attention,
) {
    if comptime!(attention.writes_vectors && attention.problem.result.dtype == DType::F32) {
        write_pairs(task, result, at, outputs, attention);
    } else if comptime!(attention.writes_vectors) {
        write_staged(task, result, at, outputs, attention);
    } else {
        write_elements(task, result, at, outputs, attention);
    }
}

/// Rows of f32: what a lane has in a row is 8 bytes, and four lanes have 32 of them.
#[cube]
fn write_pairs(
    task: &Task,
    result: &Slot,
    at: &Array<usize>,
    outputs: &Array<Sums>,
    #[comptime] attention: Attention,
) {
    let sq = comptime!(attention.problem.sq as usize);
    let chunks = comptime!((attention.problem.d / CHUNK) as usize);
    #[unroll]
    for row in 0..comptime!(2 * attention.tile.heights as usize) {
        let (height, half) = comptime!((row / 2, row % 2));
        let query = task.query + task.row + comptime!(16 * height + 8 * half);
        if query < sq {
            let to = row_address(result, at, query, comptime!(attention.problem.result.clone()))
                + (task.column as u32 * 8) as u64;
            #[unroll]
            for chunk in 0..chunks {
                let tile = outputs[height * chunks + chunk];
                let (low, high) = (tile.extract(2 * half), tile.extract(2 * half + 1));
                store_global_pair(to, comptime!(chunk as u32 * 32), low, high);
            }
        }
    }
}

/// Rows of half types: through shared memory, whose tiles nobody needs any more, so that lanes write
/// 16 bytes beside each other.
#[cube]
fn write_staged(
    task: &Task,
    result: &Slot,
    at: &Array<usize>,
    outputs: &Array<Sums>,
    #[comptime] attention: Attention,
) {
    let geometry = comptime!(Geometry::of(&attention));
    let element = comptime!(half_name(attention.problem.result.dtype));
    let heights = comptime!(attention.tile.heights as usize);
    let chunks = comptime!(geometry.chunks as usize);
    let row_bytes = comptime!(geometry.row_bytes);
    sync_group(comptime!(attention.tile.has_pair_per_warp));
    let own = task.staged + task.row as u32 * row_bytes + task.column as u32 * 4;
    #[unroll]
    for row in 0..comptime!(2 * heights) {
        let (height, half) = comptime!((row / 2, row % 2));
        #[unroll]
        for chunk in 0..chunks {
            let tile = outputs[height * chunks + chunk];
            let (low, high) = (tile.extract(2 * half), tile.extract(2 * half + 1));
            let offset = comptime!(row as u32 * 8 * row_bytes + chunk as u32 * CHUNK_BYTES);
            store_shared_word(own, offset, pack_halves(low, high, element));
        }
    }
    sync_plane();
    let pieces = comptime!(16 * heights * chunks);
    #[unroll]
    for pass in 0..comptime!(pieces.div_ceil(32)) {
        let piece = task.lane + comptime!(32 * pass);
        let row = piece / chunks;
        let column = piece % chunks;
        let query = task.query + row;
        if query < comptime!(attention.problem.sq as usize) && piece < pieces {
            let from = task.staged + row as u32 * row_bytes + column as u32 * CHUNK_BYTES;
            let to = row_address(result, at, query, comptime!(attention.problem.result.clone()))
                + (column as u32 * CHUNK_BYTES) as u64;
            store_global_words(to, load_shared_words(from));
        }
    }
}

/// Rows that are not aligned.
#[cube]
fn write_elements(
    task: &Task,
    result: &Slot,
    at: &Array<usize>,
    outputs: &Array<Sums>,
    #[comptime] attention: Attention,
) {
    let chunks = comptime!((attention.problem.d / CHUNK) as usize);
    let dtype = comptime!(attention.problem.result.dtype);
    let size = comptime!(dtype.size() as u32);
    #[unroll]
    for row in 0..comptime!(2 * attention.tile.heights as usize) {
        let (height, half) = comptime!((row / 2, row % 2));
        let query = task.query + task.row + comptime!(16 * height + 8 * half);
        if query < comptime!(attention.problem.sq as usize) {
            let to = row_address(result, at, query, comptime!(attention.problem.result.clone()))
                + (task.column as u32 * 2 * size) as u64;
            #[unroll]
            for i in 0..comptime!(2 * chunks) {
                let (chunk, part) = comptime!((i / 2, i % 2));
                let offset = comptime!((8 * chunk + part) as u32 * size);
                let x = outputs[height * chunks + chunk].extract(comptime!(2 * half + part));
                if comptime!(dtype == DType::F32) {
                    store_global_float(to, offset, x);
                } else {
                    let word = pack_halves(x, 0.0f32, comptime!(half_name(dtype)));
                    store_global_half(to, offset, word);
                }
            }
        }
    }
}
