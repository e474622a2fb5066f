//! `attention`: queries in registers, keys and values through shared memory, on tensor cores.
//!
//! A warp's lanes hold matrices as the instructions want them: lane `4 g + t` has of a tile of 16x8
//! results the rows `g` and `g + 8`, columns `2 t` and `2 t + 1`. Scores of two neighboring tiles are
//! in that form what the second product takes as its left operand, 16 queries by 16 keys.

use cubecl::prelude::*;
use kernels::cuda::attention::{Attention, Problem, Tile};

use crate::attention_copy::{CHUNK, CHUNK_BYTES, Rows, advance, copy_tile, piece, row_bytes};
use crate::attention_operands::{
    Operands, declare, factor, half_name, has_key, is_ragged_or_masked, key_flags, n_pointers,
    row_address, sign,
};
use crate::attention_products::{Product, accumulate, score};
use crate::attention_softmax::{
    Running, follow, mask_keys, maxima, normalize, row_sums, start, weigh, zeros,
};
use crate::attention_write::{Target, Written, write};
use crate::position::{coordinates, position};
use crate::ptx::{Sums, Words4, commit_copies, load_global_word, shared_address, wait_copies};
use crate::slot::{Slot, load};

/// Keys of one step of the second product.
const STEP_KEYS: u32 = 16;

/// Declares the pointers and the body; returns how many pointers there are.
pub(crate) fn define(attention: &Attention, builder: &mut KernelBuilder) -> usize {
    let operands = declare(&attention.problem, builder);
    body::expand(&builder.scope, &operands, attention.clone());
    n_pointers(&attention.problem)
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
        let row_bytes = row_bytes(chunks);
        let tile = attention.tile;
        let group = if tile.has_pair_per_warp { 32 } else { 32 * tile.warps };
        // Of the largest tile, which a rest shares.
        let tile_bytes = Tile::of_keys(attention.problem.sk) * row_bytes;
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

/// How keys are copied, or values.
fn rows(attention: &Attention, are_values: bool) -> Rows {
    let Problem { k, v, sk, .. } = &attention.problem;
    let Geometry { group, chunks, .. } = Geometry::of(attention);
    let access = if are_values { v } else { k }.clone();
    Rows { group, chunks, rows: attention.tile.keys, n: *sk, access }
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

/// What a warp keeps from tile to tile.
#[derive(CubeType)]
struct Kept {
    queries: Array<Words4>,
    running: Running,
    outputs: Array<Sums>,
    /// Rows of matrices that this lane names for the products, in the first stage.
    k_lane: u32,
    k_tail: u32,
    v_lane: u32,
}

#[cube]
fn attend(task: &Task, operands: &Operands, #[comptime] attention: Attention) {
    let geometry = comptime!(Geometry::of(&attention));
    let problem = comptime!(attention.problem.clone());
    let is_warp = comptime!(attention.tile.has_pair_per_warp);
    let heights = comptime!(attention.tile.heights as usize);
    let keys = comptime!(attention.tile.keys as usize);
    let tiles = comptime!(attention.key_tiles() as usize);
    let chunks = comptime!(geometry.chunks as usize);
    let at = coordinates(task.pair, comptime!(problem.pairs.clone()));

    let (k_rows, v_rows) = comptime!((rows(&attention, false), rows(&attention, true)));
    let mut k_piece = piece(task.member, &operands.k, &at, 0usize, comptime!(k_rows.clone()));
    let mut v_piece = piece(task.member, &operands.v, &at, 0usize, comptime!(v_rows.clone()));
    let v_offset = comptime!(geometry.tile_bytes);
    copy_tile(&k_piece, task.shared, 0u32, 0usize, comptime!(k_rows.clone()));
    copy_tile(&v_piece, task.shared, v_offset, 0usize, comptime!(v_rows.clone()));
    commit_copies();
    let lane = task.lane as u32;
    let row_bytes = comptime!(geometry.row_bytes);
    let mut kept = Kept {
        queries: load_queries(task, &operands.q, &at, comptime!(attention.clone())),
        running: start(heights),
        outputs: zeros(comptime!(heights * chunks)),
        k_lane: task.shared + (lane / 16 * 8 + lane % 8) * row_bytes + lane / 8 % 2 * CHUNK_BYTES,
        k_tail: task.shared + lane * row_bytes,
        v_lane: task.shared + v_offset + lane % 16 * row_bytes + lane / 16 * CHUNK_BYTES,
    };
    let rest = comptime!(rest(&attention));
    let whole = comptime!(if rest.is_some() { tiles - 1 } else { tiles });
    let is_checked =
        comptime!(is_ragged_or_masked(&problem, attention.tile.keys) && rest.is_none());
    let is_checked = comptime!(is_checked || problem.mask.is_some());
    let tile_keys = comptime!(attention.tile.keys);
    let mut stage = 0u32;
    for tile in 0..whole {
        let first = tile * keys;
        let problem = comptime!(problem.clone());
        let flags =
            key_flags(task.lane, &operands.sides, &at, first, problem, tile_keys, is_checked);
        wait_copies(0u32);
        sync_group(is_warp);
        if comptime!(tiles > 1) {
            if tile + 1 < tiles {
                advance(&mut k_piece, comptime!(k_rows.clone()));
                advance(&mut v_piece, comptime!(v_rows.clone()));
                let to = task.shared + comptime!(2 * geometry.tile_bytes) - stage;
                copy_tile(&k_piece, to, 0u32, first + keys, comptime!(k_rows.clone()));
                copy_tile(&v_piece, to, v_offset, first + keys, comptime!(v_rows.clone()));
                commit_copies();
            }
        }
        let attention = comptime!(attention.clone());
        add_tile(&mut kept, task, operands, &at, &flags, first, stage, attention, is_checked);
        if comptime!(tiles > 1) {
            stage = comptime!(2 * geometry.tile_bytes) - stage;
        }
    }
    if comptime!(rest.is_some()) {
        let attention = comptime!(rest.clone().expect("there is a rest"));
        let first = comptime!(whole * keys);
        let tile_keys = comptime!(attention.tile.keys);
        let is_checked = comptime!(is_ragged_or_masked(&problem, STEP_KEYS));
        let problem = comptime!(problem.clone());
        let flags =
            key_flags(task.lane, &operands.sides, &at, first, problem, tile_keys, is_checked);
        wait_copies(0u32);
        sync_group(is_warp);
        add_tile(&mut kept, task, operands, &at, &flags, first, stage, attention, is_checked);
    }
    let sums = row_sums(&kept.running, heights);
    normalize(&mut kept.outputs, &sums, heights, chunks);
    // Tiles make room for outputs.
    sync_group(is_warp);
    let target = Target { query: task.query, dim: 0usize, staged: task.staged, lane: task.lane };
    let written = comptime!(Written {
        heights,
        chunks,
        n: problem.sq as usize,
        access: problem.result.clone(),
        in_vectors: attention.writes_vectors,
    });
    write(&target, &operands.result, &at, &kept.outputs, written);
}

/// The last tile where it has fewer keys than others, by 16 at least.
fn rest(attention: &Attention) -> Option<Attention> {
    let Attention { problem, tile, .. } = attention;
    let keys = (problem.sk % tile.keys).next_multiple_of(STEP_KEYS);
    (problem.sk > tile.keys && keys != 0 && keys < tile.keys)
        .then(|| Attention { tile: Tile { keys, ..*tile }, ..attention.clone() })
}

/// Adds the tile that begins with key `first` and lies in `stage` to what is kept. A warp without
/// queries does nothing.
#[cube]
#[allow(clippy::too_many_arguments, reason = "a tile, and what is known of it")]
fn add_tile(
    kept: &mut Kept,
    task: &Task,
    operands: &Operands,
    at: &Array<usize>,
    flags: &Array<u32>,
    first: usize,
    stage: u32,
    #[comptime] attention: Attention,
    #[comptime] is_checked: bool,
) {
    let geometry = comptime!(Geometry::of(&attention));
    let heights = comptime!(attention.tile.heights as usize);
    let chunks = comptime!(geometry.chunks as usize);
    let keys = comptime!(attention.tile.keys);
    let (tiles, words) = comptime!(((keys / 8) as usize, keys.div_ceil(32) as usize));
    let element = comptime!(half_name(attention.problem.q.dtype));
    let factor = comptime!(score_factor(&attention));
    let problem = comptime!(attention.problem.clone());
    let row_bytes = comptime!(geometry.row_bytes);
    let product = comptime!(Product { heights, tiles, chunks, row_bytes, element });
    let has_queries = has_queries(task, comptime!(attention.clone()));
    if has_queries && has_key(flags, comptime!(problem.clone()), words) {
        let mut scores = zeros(comptime!(heights * tiles));
        let (k_lane, k_tail) = (kept.k_lane + stage, kept.k_tail + stage);
        score(&mut scores, &kept.queries, k_lane, k_tail, product);
        if comptime!(problem.bias.is_some()) {
            let slot = operands.sides.index(comptime!(usize::from(problem.mask.is_some())));
            add_bias(&mut scores, task, slot, at, first, comptime!(attention.clone()));
        }
        if is_checked {
            mask_keys(&mut scores, task.column, flags, keys, heights, tiles);
        }
        let largest = maxima(&scores, &kept.running, heights, tiles);
        follow(&largest, &mut kept.running, &mut kept.outputs, heights, chunks, factor);
        let weights = weigh(&scores, &mut kept.running, heights, tiles, factor, element);
        accumulate(&mut kept.outputs, &weights, kept.v_lane + stage, product);
    }
}

/// Whether the warp has a query.
#[cube]
fn has_queries(task: &Task, #[comptime] attention: Attention) -> bool {
    if comptime!(attention.problem.sq.is_multiple_of(attention.queries())) {
        true.runtime()
    } else {
        task.query < comptime!(attention.problem.sq as usize)
    }
}

/// What is left to multiply scores with when they are weighed: a bias is added to what is scaled.
fn score_factor(attention: &Attention) -> f32 {
    if attention.problem.bias.is_some() { 1.0 } else { factor(&attention.problem) }
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

/// Scales scores and adds the bias.
#[cube]
fn add_bias(
    scores: &mut Array<Sums>,
    task: &Task,
    slot: &Slot,
    at: &Array<usize>,
    first: usize,
    #[comptime] attention: Attention,
) {
    let bias = comptime!(attention.problem.bias.clone().expect("there is a bias"));
    let factor = comptime!(factor(&attention.problem));
    let n = comptime!(bias.strides.len() - 2);
    let (row_step, key_step) = comptime!((bias.strides[n] as usize, bias.strides[n + 1] as usize));
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
