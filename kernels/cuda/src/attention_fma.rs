//! `attention_fma`: attention in f32 on ordinary units, for f32 rows and for heads that tensor cores
//! do not take.
//!
//! A thread has 4 queries by 4 keys of the scores, then 4 queries by 4 of every 64 dims of the
//! outputs. Both factors of each product pass through shared memory, in parts of the head.

use cubecl::prelude::*;
use kernels::cuda::Access;
use kernels::cuda::attention::{AttentionFma, Problem};

use crate::attention_operands::{Operands, declare, n_pointers, row_start, row_stride};
use crate::attention_softmax::{LOWEST, MASKED};
use crate::position::{coordinates, position};
use crate::ptx::{exp2, from_lane_xor, max, reciprocal};
use crate::slot::{Slot, load, store};

/// Threads of a block.
const THREADS: usize = 128;
/// Queries of a block.
const QUERIES: usize = AttentionFma::QUERIES as usize;
/// Keys of a tile.
const KEYS: usize = 64;
/// Dims of a part of the first product.
const DIMS: usize = 32;
/// Dims of a part of the second product.
const WIDTH: usize = 64;
/// Rows and columns of a thread.
const SIDE: usize = 4;
/// Threads beside each other along keys, then along dims.
const ACROSS: usize = KEYS / SIDE;
/// Words from one row to the next of what has a column for each query.
const QUERY_ROW: usize = QUERIES + SIDE;
/// The same of what has a column for each key, or each dim of a part.
const KEY_ROW: usize = KEYS + SIDE;
/// Weights come first, `[KEYS, QUERIES]`.
const FACTORS: usize = KEYS * QUERY_ROW;
/// Then `[DIMS, QUERIES]` and `[DIMS, KEYS]`, or in their place `[KEYS, WIDTH]`.
const SECOND: usize = FACTORS + DIMS * QUERY_ROW;
const WORDS: usize = FACTORS + KEYS * KEY_ROW;

/// Declares the pointers and the body; returns how many pointers there are.
pub(crate) fn define(attention: &AttentionFma, builder: &mut KernelBuilder) -> usize {
    let mut operands = declare(&attention.problem, builder);
    body::expand(&builder.scope, &mut operands, attention.clone());
    n_pointers(&attention.problem)
}

/// What a thread works on.
#[derive(CubeType, Clone, Copy)]
struct Task {
    thread: usize,
    /// The block's first query.
    query: usize,
    /// The thread's place: its rows are 4 from `4 down` on, its columns from `4 across` on.
    down: usize,
    across: usize,
}

#[cube]
fn body(operands: &mut Operands, #[comptime] attention: AttentionFma) {
    let problem = comptime!(attention.problem.clone());
    let mut memory = Shared::<[f32]>::new_aligned_slice(WORDS, 16usize);
    let thread = UNIT_POS_X as usize;
    let block = CUBE_POS_X as usize;
    let blocks = comptime!(attention.query_blocks() as usize);
    let task = Task {
        thread,
        query: block % blocks * QUERIES,
        down: thread / ACROSS,
        across: thread % ACROSS,
    };
    let at = coordinates(block / blocks, comptime!(problem.pairs.clone()));
    let d = comptime!(problem.d as usize);
    let (sq, sk) = comptime!((problem.sq as usize, problem.sk as usize));
    let parts = comptime!(d.div_ceil(WIDTH));
    let tiles = comptime!(sk.div_ceil(KEYS));
    let mut maxima = Array::<f32>::new(SIDE);
    let mut sums = Array::<f32>::new(SIDE);
    #[unroll]
    for i in 0..SIDE {
        maxima[i] = LOWEST;
        sums[i] = 0.0f32;
    }
    let mut outputs = zeros(comptime!(parts * SIDE * SIDE));
    for tile in 0..tiles {
        let first = tile * KEYS;
        let mut scores = zeros(comptime!(SIDE * SIDE));
        for part in 0..comptime!(d.div_ceil(DIMS)) {
            let dim = part * DIMS;
            sync_cube();
            let (q, k) = comptime!((problem.q.clone(), problem.k.clone()));
            fill(&mut memory, &task, &operands.q, &at, task.query, dim, q, sq, d, FACTORS, true);
            fill(&mut memory, &task, &operands.k, &at, first, dim, k, sk, d, SECOND, false);
            sync_cube();
            multiply(&mut scores, 0usize, &memory, &task, FACTORS, SECOND, DIMS);
        }
        adjust(&mut scores, &task, &operands.sides, &at, first, comptime!(problem.clone()));
        weigh(&mut scores, &mut maxima, &mut sums, &mut outputs, parts);
        #[unroll]
        for j in 0..SIDE {
            #[unroll]
            for i in 0..SIDE {
                let to = (SIDE * task.across + j) * QUERY_ROW + SIDE * task.down + i;
                memory[to] = scores[i * SIDE + j];
            }
        }
        #[unroll]
        for part in 0..parts {
            sync_cube();
            fill_values(
                &mut memory,
                &task,
                &operands.v,
                &at,
                first,
                part,
                comptime!(problem.clone()),
            );
            sync_cube();
            let index = comptime!(part * SIDE * SIDE);
            multiply(&mut outputs, index, &memory, &task, 0usize, FACTORS, KEYS);
        }
    }
    let start = row_start(&at, comptime!(problem.result.clone()));
    let stride = comptime!(row_stride(&problem.result) as usize);
    #[unroll]
    for i in 0..SIDE {
        let mut sum = sums[i];
        #[unroll]
        for step in 0..comptime!(ACROSS.ilog2()) {
            sum += from_lane_xor(sum, comptime!(1u32 << step));
        }
        let scale = select(sum > 0.0f32, reciprocal(sum), 0.0f32);
        let row = task.query + SIDE * task.down + i;
        #[unroll]
        for part in 0..parts {
            #[unroll]
            for j in 0..SIDE {
                let column = comptime!(part * WIDTH) + SIDE * task.across + j;
                if row < sq && column < d {
                    let x = outputs[comptime!(part * SIDE * SIDE + i * SIDE + j)] * scale;
                    let to = start + row * stride + column;
                    store(&mut operands.result, to, x, comptime!(problem.result.dtype));
                }
            }
        }
    }
}

#[cube]
fn zeros(#[comptime] n: usize) -> Array<f32> {
    let mut sums = Array::<f32>::new(n);
    #[unroll]
    for i in 0..n {
        sums[i] = 0.0f32;
    }
    sums
}

/// Puts dims from `dim` on of the rows from `first` on at `to`, transposed: `[DIMS, rows]`. What lies
/// beyond the last row or the head is 0.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what is read, and where it goes")]
fn fill(
    memory: &mut Shared<[f32]>,
    task: &Task,
    slot: &Slot,
    at: &Array<usize>,
    first: usize,
    dim: usize,
    #[comptime] access: Access,
    #[comptime] n: usize,
    #[comptime] d: usize,
    #[comptime] to: usize,
    #[comptime] are_queries: bool,
) {
    let (rows, step) = comptime!(if are_queries { (QUERIES, QUERY_ROW) } else { (KEYS, KEY_ROW) });
    let stride = comptime!(row_stride(&access) as usize);
    let start = row_start(at, comptime!(access.clone()));
    #[unroll]
    for pass in 0..comptime!(rows * DIMS / THREADS) {
        let column = task.thread % DIMS;
        let row = task.thread / DIMS + comptime!(pass * THREADS / DIMS);
        let mut x = 0.0f32;
        if first + row < n && dim + column < d {
            x = load(slot, start + (first + row) * stride + dim + column, comptime!(access.dtype));
        }
        memory[to + column * step + row] = x;
    }
}

/// Puts part `part` of the values from key `first` on in its place: `[KEYS, WIDTH]`.
#[cube]
fn fill_values(
    memory: &mut Shared<[f32]>,
    task: &Task,
    slot: &Slot,
    at: &Array<usize>,
    first: usize,
    #[comptime] part: usize,
    #[comptime] problem: Problem,
) {
    let stride = comptime!(row_stride(&problem.v) as usize);
    let (n, d) = comptime!((problem.sk as usize, problem.d as usize));
    let start = row_start(at, comptime!(problem.v.clone()));
    #[unroll]
    for pass in 0..comptime!(KEYS * WIDTH / THREADS) {
        let column = task.thread % WIDTH;
        let row = task.thread / WIDTH + comptime!(pass * THREADS / WIDTH);
        let dim = comptime!(part * WIDTH) + column;
        let mut x = 0.0f32;
        if first + row < n && dim < d {
            x = load(slot, start + (first + row) * stride + dim, comptime!(problem.v.dtype));
        }
        memory[FACTORS + row * KEY_ROW + column] = x;
    }
}

/// `sums[index..] += a^T b`, of `terms` rows of queries at `a` and as many at `b`.
#[cube]
fn multiply(
    sums: &mut Array<f32>,
    #[comptime] index: usize,
    memory: &Shared<[f32]>,
    task: &Task,
    #[comptime] a: usize,
    #[comptime] b: usize,
    #[comptime] terms: usize,
) {
    for term in 0..terms {
        let words = memory.as_vectorized().with_vector_size::<Const<4>>();
        let x = words[(a + term * QUERY_ROW) / SIDE + task.down];
        let y = words[(b + term * KEY_ROW) / SIDE + task.across];
        #[unroll]
        for i in 0..SIDE {
            #[unroll]
            for j in 0..SIDE {
                let to = comptime!(index + i * SIDE + j);
                sums[to] += x.extract(i) * y.extract(j);
            }
        }
    }
}

/// Scales scores into units of log 2, adds the bias, and makes those of keys that take no part as low
/// as can be.
#[cube]
fn adjust(
    scores: &mut Array<f32>,
    task: &Task,
    sides: &Sequence<Slot>,
    at: &Array<usize>,
    first: usize,
    #[comptime] problem: Problem,
) {
    let sk = comptime!(problem.sk as usize);
    let has_mask = comptime!(problem.mask.is_some());
    #[unroll]
    for j in 0..SIDE {
        let key = first + SIDE * task.across + j;
        let mut takes_part = key < sk;
        let near = select(takes_part, key, comptime!(sk - 1));
        if has_mask {
            let mask = comptime!(problem.mask.clone().expect("there is a mask"));
            let step = comptime!(row_stride(&mask) as usize);
            let from = row_start(at, comptime!(mask.clone())) + near * step;
            let x = load(sides.index(0usize), from, comptime!(mask.dtype));
            takes_part = takes_part && x != 0.0f32;
        }
        #[unroll]
        for i in 0..SIDE {
            let index = comptime!(i * SIDE + j);
            let mut x = scores[index] * comptime!(problem.scale * std::f32::consts::LOG2_E);
            if comptime!(problem.bias.is_some()) {
                let bias = comptime!(problem.bias.clone().expect("there is a bias"));
                let slot = sides.index(comptime!(usize::from(has_mask)));
                let n = comptime!(bias.strides.len() - 2);
                let start = position(at, comptime!(bias.strides[..n].to_vec()));
                let row = task.query + SIDE * task.down + i;
                let last = comptime!(problem.sq as usize - 1);
                let row = select(row < last, row, last);
                let from = start
                    + row * comptime!(bias.strides[n] as usize)
                    + near * comptime!(bias.strides[n + 1] as usize);
                x += load(slot, from, comptime!(bias.dtype)) * comptime!(std::f32::consts::LOG2_E);
            }
            scores[index] = select(takes_part, x, MASKED);
        }
    }
}

/// Makes weights of scores. Where a maximum rises, what was summed so far shrinks.
#[cube]
fn weigh(
    scores: &mut Array<f32>,
    maxima: &mut Array<f32>,
    sums: &mut Array<f32>,
    outputs: &mut Array<f32>,
    #[comptime] parts: usize,
) {
    #[unroll]
    for i in 0..SIDE {
        let mut most = maxima[i];
        #[unroll]
        for j in 0..SIDE {
            most = max(most, scores[i * SIDE + j]);
        }
        #[unroll]
        for step in 0..comptime!(ACROSS.ilog2()) {
            most = max(most, from_lane_xor(most, comptime!(1u32 << step)));
        }
        let shrink = exp2(maxima[i] - most);
        maxima[i] = most;
        let mut sum = sums[i] * shrink;
        #[unroll]
        for j in 0..SIDE {
            let weight = exp2(scores[i * SIDE + j] - most);
            scores[i * SIDE + j] = weight;
            sum += weight;
        }
        sums[i] = sum;
        #[unroll]
        for part in 0..parts {
            #[unroll]
            for j in 0..SIDE {
                let index = comptime!(part * SIDE * SIDE + i * SIDE + j);
                outputs[index] *= shrink;
            }
        }
    }
}
