//! `attention_wide`: one head too wide for the outputs of a warp's rows to be its own.
//!
//! Four pairs of warps have 16 queries each. Of a tile's scores either warp of a pair has half of the
//! keys; they exchange maxima and weights through shared memory, and each has half of the outputs.
//! Keys of the next tile are on their way while outputs are summed, values while scores are.

use cubecl::prelude::*;
use kernels::cuda::Access;
use kernels::cuda::attention::AttentionWide;

use crate::attention_copy::{CHUNK, CHUNK_BYTES, Rows, SIZE, advance, copy_tile, piece};
use crate::attention_operands::{
    Operands, declare, factor, half_name, is_ragged_or_masked, key_flags, n_pointers, sign,
};
use crate::attention_softmax::{
    follow, mask_keys, maxima, normalize, row_sums, start, weigh, zeros,
};
use crate::attention_write::{Target, Written, write};
use crate::position::coordinates;
use crate::ptx::{
    Sums, Words4, commit_copies, load_matrices, load_matrices_transposed, max, mma_16,
    shared_address, store_shared_word, wait_copies,
};

/// Queries of a block.
const QUERIES: u32 = AttentionWide::QUERIES;
/// Threads of a block.
const THREADS: u32 = 256;

/// Declares the pointers and the body; returns how many pointers there are.
pub(crate) fn define(attention: &AttentionWide, builder: &mut KernelBuilder) -> usize {
    let operands = declare(&attention.problem, builder);
    body::expand(&builder.scope, &operands, attention.clone());
    n_pointers(&attention.problem)
}

/// Where things lie in shared memory, in bytes: queries first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Places {
    keys: u32,
    values: u32,
    weights: u32,
    /// A number of either warp for each query: `[2, QUERIES]`.
    numbers: u32,
}

impl Places {
    fn of(attention: &AttentionWide) -> Places {
        let [row, weight_row] = attention.row_bytes();
        let keys = QUERIES * row;
        let values = keys + attention.keys * row;
        let weights = values + attention.keys * row;
        Places { keys, values, weights, numbers: weights + QUERIES * weight_row }
    }
}

/// How rows of `access` are copied, `rows` of them at a time.
fn rows(attention: &AttentionWide, access: &Access, rows: u32, n: u32) -> Rows {
    let chunks = attention.problem.d / CHUNK;
    Rows { group: THREADS, chunks, rows, n, access: access.clone() }
}

/// What a thread has.
#[derive(CubeType, Clone, Copy)]
struct Task {
    /// Where shared memory starts.
    shared: u32,
    /// Which of the pair of warps.
    side: usize,
    /// First row of the pair of warps in the block.
    row: usize,
    /// Number within the warp.
    lane: usize,
}

#[cube]
fn body(operands: &Operands, #[comptime] attention: AttentionWide) {
    let places = comptime!(Places::of(&attention));
    let words = comptime!(attention.shared_bytes() as usize / 4);
    let mut memory = Shared::<[u32]>::new_aligned_slice(words, 16usize);
    let problem = comptime!(attention.problem.clone());
    let thread = UNIT_POS_X as usize;
    let block = CUBE_POS_X as usize;
    let warp = thread / 32;
    let task = Task {
        shared: shared_address(&memory),
        side: warp % 2,
        row: warp / 2 * 16,
        lane: thread % 32,
    };
    let blocks = comptime!(attention.query_blocks() as usize);
    let query = block % blocks * comptime!(QUERIES as usize);
    let at = coordinates(block / blocks, comptime!(problem.pairs.clone()));

    let q_rows = comptime!(rows(&attention, &problem.q, QUERIES, problem.sq));
    let k_rows = comptime!(rows(&attention, &problem.k, attention.keys, problem.sk));
    let v_rows = comptime!(rows(&attention, &problem.v, attention.keys, problem.sk));
    let q_piece = piece(thread, &operands.q, &at, query, comptime!(q_rows.clone()));
    let mut k_piece = piece(thread, &operands.k, &at, 0usize, comptime!(k_rows.clone()));
    let mut v_piece = piece(thread, &operands.v, &at, 0usize, comptime!(v_rows.clone()));
    copy_tile(&q_piece, task.shared, 0u32, query, q_rows);
    copy_tile(&k_piece, task.shared, comptime!(places.keys), 0usize, comptime!(k_rows.clone()));
    commit_copies();

    let keys = comptime!(attention.keys as usize);
    let own_keys = comptime!(attention.keys / 2);
    let tiles = comptime!((own_keys / 8) as usize);
    let key_tiles = comptime!(problem.sk.div_ceil(attention.keys) as usize);
    let chunks = comptime!((problem.d / 2 / CHUNK) as usize);
    let element = comptime!(half_name(problem.q.dtype));
    let factor = comptime!(factor(&problem));
    let mut running = start(1usize);
    let mut outputs = zeros(chunks);
    for tile in 0..key_tiles {
        let first = tile * keys;
        let own_first = first + task.side * comptime!(own_keys as usize);
        let sides = &operands.sides;
        let is_checked = comptime!(is_ragged_or_masked(&problem, attention.keys));
        let problem = comptime!(problem.clone());
        let flags = key_flags(task.lane, sides, &at, own_first, problem, own_keys, is_checked);
        wait_copies(0u32);
        sync_cube();
        copy_tile(
            &v_piece,
            task.shared,
            comptime!(places.values),
            first,
            comptime!(v_rows.clone()),
        );
        commit_copies();
        advance(&mut v_piece, comptime!(v_rows.clone()));
        let mut scores = zeros(tiles);
        score(&mut scores, &task, comptime!(attention.clone()));
        if is_checked {
            mask_keys(&mut scores, task.lane % 4, &flags, own_keys, 1usize, tiles);
        }
        let own = maxima(&scores, &running, 1usize, tiles);
        let other = exchange(&own, &mut memory, &task, comptime!(attention.clone()));
        let mut largest = Array::<f32>::new(2usize);
        #[unroll]
        for half in 0..2usize {
            largest[half] = max(own[half], other[half]);
        }
        // All have read this tile's keys.
        if tile + 1 < key_tiles {
            advance(&mut k_piece, comptime!(k_rows.clone()));
            let next = first + keys;
            copy_tile(
                &k_piece,
                task.shared,
                comptime!(places.keys),
                next,
                comptime!(k_rows.clone()),
            );
        }
        commit_copies();
        follow(&largest, &mut running, &mut outputs, 1usize, chunks, factor);
        let weights = weigh(&scores, &mut running, 1usize, tiles, factor, element);
        put_weights(&weights, &task, comptime!(attention.clone()));
        wait_copies(1u32);
        sync_cube();
        accumulate(&mut outputs, &task, comptime!(attention.clone()));
    }
    let sums = row_sums(&running, 1usize);
    let other = exchange(&sums, &mut memory, &task, comptime!(attention.clone()));
    let mut all = Array::<f32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        all[half] = sums[half] + other[half];
    }
    normalize(&mut outputs, &all, 1usize, chunks);
    // Nobody needs queries and keys any more: each warp has room for half a row of its 16.
    let staged = comptime!(16 * ((problem.d / 2 / CHUNK) | 1) * CHUNK_BYTES);
    let target = Target {
        query: query + task.row,
        dim: task.side * comptime!(problem.d as usize / 2),
        staged: task.shared + warp as u32 * staged,
        lane: task.lane,
    };
    let written = comptime!(Written {
        heights: 1,
        chunks,
        n: problem.sq as usize,
        access: problem.result.clone(),
        in_vectors: attention.writes_vectors,
    });
    write(&target, &operands.result, &at, &outputs, written);
}

/// What the other warp of the pair has for the lane's two rows. All threads of the block take part,
/// and have done what they did before.
#[cube]
fn exchange(
    own: &Array<f32>,
    memory: &mut Shared<[u32]>,
    task: &Task,
    #[comptime] attention: AttentionWide,
) -> Array<f32> {
    let numbers = comptime!(Places::of(&attention).numbers as usize / 4);
    let queries = comptime!(QUERIES as usize);
    let row = numbers + task.row + task.lane / 4;
    if task.lane % 4 == 0 {
        #[unroll]
        for half in 0..2usize {
            memory[task.side * queries + row + 8 * half] = u32::reinterpret(own[half]);
        }
    }
    sync_cube();
    let mut other = Array::<f32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        other[half] = f32::reinterpret(memory[(1 - task.side) * queries + row + 8 * half]);
    }
    other
}

/// Scores of the pair's queries and the warp's half of the keys.
#[cube]
fn score(scores: &mut Array<Sums>, task: &Task, #[comptime] attention: AttentionWide) {
    let places = comptime!(Places::of(&attention));
    let row_bytes = comptime!(attention.row_bytes()[0]);
    let element = comptime!(half_name(attention.problem.q.dtype));
    let lane = task.lane as u32;
    let q_lane = task.shared + (task.row as u32 + lane % 16) * row_bytes + lane / 16 * CHUNK_BYTES;
    let own_key = task.side as u32 * comptime!(attention.keys / 2);
    let k_lane =
        task.shared + (own_key + lane / 16 * 8 + lane % 8) * row_bytes + lane / 8 % 2 * CHUNK_BYTES;
    #[unroll]
    for step in 0..comptime!(attention.problem.d / 16) {
        let dim = comptime!(step * 16 * SIZE);
        let mut a = load_matrices(q_lane, dim);
        #[unroll]
        for i in 0..4usize {
            a.insert(i, sign(a.extract(i), comptime!(attention.problem.scale)));
        }
        #[unroll]
        for pair in 0..comptime!((attention.keys / 32) as usize) {
            let b =
                load_matrices(k_lane, comptime!(places.keys + pair as u32 * 16 * row_bytes + dim));
            #[unroll]
            for i in 0..2usize {
                let to = comptime!(2 * pair + i);
                scores[to] = mma_16(a, b.extract(2 * i), b.extract(2 * i + 1), scores[to], element);
            }
        }
    }
}

/// Puts the warp's weights where the pair reads them.
#[cube]
fn put_weights(weights: &Array<Words4>, task: &Task, #[comptime] attention: AttentionWide) {
    let places = comptime!(Places::of(&attention));
    let row_bytes = comptime!(attention.row_bytes()[1]);
    let lane = task.lane as u32;
    let own = task.shared
        + (task.row as u32 + lane / 4) * row_bytes
        + (task.side as u32 * comptime!(attention.keys / 2) + lane % 4 * 2) * SIZE;
    #[unroll]
    for step in 0..comptime!((attention.keys / 32) as usize) {
        let words = weights[step];
        #[unroll]
        for part in 0..4usize {
            let row = comptime!(part as u32 % 2 * 8 * row_bytes);
            let key = comptime!((step as u32 * 16 + part as u32 / 2 * 8) * SIZE);
            store_shared_word(own, comptime!(places.weights + row + key), words.extract(part));
        }
    }
}

/// The warp's half of the outputs, of all keys of the tile.
#[cube]
fn accumulate(outputs: &mut Array<Sums>, task: &Task, #[comptime] attention: AttentionWide) {
    let places = comptime!(Places::of(&attention));
    let row_bytes = comptime!(attention.row_bytes()[0]);
    let weight_row_bytes = comptime!(attention.row_bytes()[1]);
    let element = comptime!(half_name(attention.problem.q.dtype));
    let lane = task.lane as u32;
    let p_lane =
        task.shared + (task.row as u32 + lane % 16) * weight_row_bytes + lane / 16 * CHUNK_BYTES;
    let v_lane = task.shared
        + lane % 16 * row_bytes
        + lane / 16 * CHUNK_BYTES
        + task.side as u32 * comptime!(attention.problem.d / 2 * SIZE);
    #[unroll]
    for step in 0..comptime!(attention.keys / 16) {
        let a = load_matrices(p_lane, comptime!(places.weights + step * 16 * SIZE));
        #[unroll]
        for pair in 0..comptime!((attention.problem.d / 2 / 16) as usize) {
            let offset = comptime!(places.values + step * 16 * row_bytes + pair as u32 * 16 * SIZE);
            let b = load_matrices_transposed(v_lane, offset);
            #[unroll]
            for i in 0..2usize {
                let to = comptime!(2 * pair + i);
                outputs[to] =
                    mma_16(a, b.extract(2 * i), b.extract(2 * i + 1), outputs[to], element);
            }
        }
    }
}
