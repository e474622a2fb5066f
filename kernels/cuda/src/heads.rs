//! `heads`: rows of queries, keys and values, made ready for attention.

use cubecl::prelude::*;
use kernels::cuda::Access;
use kernels::cuda::heads::{Heads, HeadsPart, HeadsPass, Table};
use ops::DType;

use crate::angle::{cosine, sine};
use crate::emit::pointer;
use crate::operands;
use crate::position::{coordinates, position};
use crate::ptx::from_lane_xor;
use crate::slot::{Slot, load, load_run, store_run};

/// Declares the pointers and the body; returns how many pointers there are.
pub(crate) fn define(heads: &Heads, builder: &mut KernelBuilder) -> usize {
    let mut n = 0;
    for (index, part) in heads.parts.iter().enumerate() {
        let mut to = pointer(builder, part.to.dtype.size());
        let tables = part.passes.iter().flat_map(|pass| [&pass.weight, &pass.angles]).flatten();
        let tables = tables.map(|table| &table.access);
        let reads: Vec<&Access> = std::iter::once(&part.from).chain(tables).collect();
        let slots = operands::declare(reads.iter().copied(), builder);
        n += 1 + reads.len();
        body::expand(&builder.scope, &mut to, &slots, part.clone(), index as u32);
    }
    n
}

/// Rows of one part, by the blocks with its number.
#[cube]
fn body(
    to: &mut Slot,
    slots: &Sequence<Slot>,
    #[comptime] part: HeadsPart,
    #[comptime] index: u32,
) {
    if CUBE_POS_Y == index {
        rows(to, slots, part);
    }
}

#[cube]
fn rows(to: &mut Slot, slots: &Sequence<Slot>, #[comptime] part: HeadsPart) {
    let lanes = comptime!(part.lanes() as usize);
    let vector = comptime!(part.vector as usize);
    let runs = comptime!(part.runs() as usize);
    let own_runs = comptime!(runs.div_ceil(lanes));
    let all = comptime!(part.rows() as usize);
    let thread = ABSOLUTE_POS_X as usize;
    let lane = thread % lanes;
    let row = thread / lanes;
    // Lanes beyond the last row make it once more, because all of a warp take part in sums.
    let at = coordinates(select(row < all, row, all - 1), comptime!(part.dims.clone()));
    let start = row_start(&at, comptime!(part.from.clone()));
    let stride = comptime!(*part.from.strides.last().expect("rows have elements") as usize);
    let mut x = Array::<f32>::new(comptime!(own_runs * vector));
    #[unroll]
    for i in 0..own_runs {
        let run = lane + comptime!(i * lanes);
        if run < runs {
            let dtype = comptime!(part.from.dtype);
            if comptime!(stride == 1) {
                let values = load_run(slots.index(0usize), start + run * vector, dtype, vector);
                #[unroll]
                for j in 0..vector {
                    x[i * vector + j] = values[j];
                }
            } else {
                #[unroll]
                for j in 0..vector {
                    let from = start + (run * vector + j) * stride;
                    x[i * vector + j] = load(slots.index(0usize), from, dtype);
                }
            }
        }
    }
    #[unroll]
    for pass in 0..comptime!(part.passes.len()) {
        let tables = comptime!(tables_before(&part, pass));
        run_pass(
            &mut x,
            slots,
            &at,
            lane,
            comptime!(part.passes[pass].clone()),
            comptime!(part.clone()),
            tables,
        );
    }
    let start = row_start(&at, comptime!(part.to.clone()));
    if row < all {
        #[unroll]
        for i in 0..own_runs {
            let run = lane + comptime!(i * lanes);
            if run < runs {
                let mut values = Array::<f32>::new(vector);
                #[unroll]
                for j in 0..vector {
                    values[j] = x[i * vector + j];
                }
                store_run(to, start + run * vector, &values, comptime!(part.to.dtype), vector);
            }
        }
    }
}

/// Slots before those of pass `pass`: the rows, and what earlier passes read.
fn tables_before(part: &HeadsPart, pass: usize) -> usize {
    let earlier = part.passes[..pass].iter().flat_map(|pass| [&pass.weight, &pass.angles]);
    1 + earlier.flatten().count()
}

/// Where the row starts.
#[cube]
fn row_start(at: &Array<usize>, #[comptime] access: Access) -> usize {
    position(at, comptime!(access.strides[..access.strides.len() - 1].to_vec()))
}

/// One pass over what this lane has of a row.
#[cube]
fn run_pass(
    x: &mut Array<f32>,
    slots: &Sequence<Slot>,
    at: &Array<usize>,
    lane: usize,
    #[comptime] pass: HeadsPass,
    #[comptime] part: HeadsPart,
    #[comptime] first_table: usize,
) {
    let lanes = comptime!(part.lanes() as usize);
    let vector = comptime!(part.vector as usize);
    let own_runs = comptime!(part.runs().div_ceil(part.lanes()) as usize);
    let n = comptime!(own_runs * vector);
    if comptime!(pass.norm.is_some()) {
        // What lies beyond the row is 0.
        let mut squares = 0.0f32;
        #[unroll]
        for i in 0..n {
            squares += x[i] * x[i];
        }
        #[unroll]
        for step in 0..comptime!(lanes.ilog2()) {
            squares += from_lane_xor(squares, comptime!(1u32 << step));
        }
        let mean = squares * comptime!(1.0 / part.d as f32);
        let scale = 1.0f32 / (mean + comptime!(pass.norm.expect("there is a norm"))).sqrt();
        #[unroll]
        for i in 0..n {
            x[i] *= scale;
        }
    }
    let has_weight = comptime!(pass.weight.is_some());
    if has_weight {
        let table = comptime!(pass.weight.clone().expect("there is a weight"));
        let slot = slots.index(first_table);
        #[unroll]
        for i in 0..own_runs {
            let run = lane + comptime!(i * lanes);
            if run < comptime!(part.runs() as usize) {
                let factors = load_table(slot, 0usize, run, comptime!(table.clone()), vector);
                #[unroll]
                for j in 0..vector {
                    x[i * vector + j] *= factors[j];
                }
            }
        }
    }
    if comptime!(pass.angles.is_some()) {
        let table = comptime!(pass.angles.clone().expect("there are angles"));
        let slot = slots.index(comptime!(first_table + usize::from(has_weight)));
        let start = row_start(at, comptime!(table.access.clone()));
        let is_rough = comptime!(part.to.dtype != DType::F32);
        #[unroll]
        for i in 0..own_runs {
            let run = lane + comptime!(i * lanes);
            if run < comptime!(part.runs() as usize) {
                let pairs = comptime!(vector / 2);
                let angles = load_table(slot, start, run, comptime!(table.clone()), pairs);
                #[unroll]
                for j in 0..pairs {
                    let cos = cosine(angles[j], is_rough);
                    let sin = sine(angles[j], is_rough);
                    let (first, second) = (x[i * vector + 2 * j], x[i * vector + 2 * j + 1]);
                    x[i * vector + 2 * j] = first * cos - second * sin;
                    x[i * vector + 2 * j + 1] = second * cos + first * sin;
                }
            }
        }
    }
}

/// The `n` numbers that belong to run `run` of the row that starts at `start`.
#[cube]
fn load_table(
    slot: &Slot,
    start: usize,
    run: usize,
    #[comptime] table: Table,
    #[comptime] n: usize,
) -> Array<f32> {
    let dtype = comptime!(table.access.dtype);
    if comptime!(table.in_vectors) {
        load_run(slot, start + run * n, dtype, n)
    } else {
        let stride = comptime!(*table.access.strides.last().expect("what a row has") as usize);
        let mut numbers = Array::<f32>::new(n);
        #[unroll]
        for j in 0..n {
            numbers[j] = load(slot, start + (run * n + j) * stride, dtype);
        }
        numbers
    }
}
