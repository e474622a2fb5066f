//! `group_sums` and `group_scale`: the statistics of `group_norm`.

use cubecl::prelude::*;
use kernels::cuda::group_norm::{GroupScale, GroupSums};
use ops::DType;

use crate::collective::{Join, join_lanes, join_row};
use crate::emit::pointer;
use crate::operands::{declare, run_code, starts};
use crate::position::coordinates;
use crate::slot::{Slot, load, store};

/// Declares the pointers and the body; returns how many pointers there are.
pub(crate) fn define_sums(sums: &GroupSums, builder: &mut KernelBuilder) -> usize {
    let mut result = pointer(builder, DType::F32.size());
    let slots = declare(sums.input.memory(), builder);
    sums_body::expand(&builder.scope, &mut result, &slots, sums.clone());
    1 + sums.input.memory().count()
}

/// Declares the pointers and the body; returns how many pointers there are.
pub(crate) fn define_scale(scale: &GroupScale, builder: &mut KernelBuilder) -> usize {
    let mut result = pointer(builder, DType::F32.size());
    let sums = pointer(builder, DType::F32.size());
    let weight = declare(scale.weight.memory(), builder);
    scale_body::expand(&builder.scope, &mut result, &sums, &weight, scale.clone());
    2 + scale.weight.memory().count()
}

/// How many of `runs` positions, `step` apart from `first` on, lie before `end`.
#[cube]
fn count_before(
    first: usize,
    #[comptime] end: usize,
    #[comptime] step: usize,
    #[comptime] runs: usize,
) -> usize {
    let last = comptime!(end + step - 1);
    let n = select(first < end, (last - select(first < end, first, end)) / step, 0usize);
    select(n < runs, n, runs)
}

#[cube]
fn sums_body(result: &mut Slot, slots: &Sequence<Slot>, #[comptime] sums: GroupSums) {
    let channels = comptime!(sums.channels as usize);
    let vector = comptime!(sums.vector as usize);
    let vectors = comptime!((sums.channels / sums.vector) as usize);
    let rows = comptime!(sums.rows as usize);
    let runs = comptime!(sums.runs as usize);
    let positions = comptime!(sums.positions as usize);
    let unit = UNIT_POS as usize;
    let row = unit / vectors;
    let channel = unit % vectors * vector;
    let first = CUBE_POS_X as usize * comptime!(sums.block_positions() as usize);
    let sample = CUBE_POS_Y as usize;

    // Of each thread's channels: mean, and squares around it.
    let mut means = Shared::<[f32]>::new_slice(comptime!(rows * channels));
    let mut squares = Shared::<[f32]>::new_slice(comptime!(rows * channels));
    if row < rows {
        let n = count_before(first + row, positions, rows, runs);
        let mut held = Array::<f32>::new(comptime!(runs * vector));
        #[unroll]
        for run in 0..runs {
            if run < n {
                let number = sample * positions + first + comptime!(run * rows) + row;
                let at = coordinates(number, comptime!(sums.outer.clone()));
                let from = starts(&at, comptime!(sums.input.clone()));
                let nothing = Array::<f32>::new(1usize);
                let code = comptime!(sums.input.clone());
                let x = run_code(slots, &from, &nothing, channel, code, vector);
                #[unroll]
                for j in 0..vector {
                    held[run * vector + j] = x[j];
                }
            }
        }
        let share = 1.0f32 / f32::cast_from(select(n > 0, n, 1usize));
        #[unroll]
        for j in 0..vector {
            let mut sum = 0.0f32;
            #[unroll]
            for run in 0..runs {
                sum += held[run * vector + j];
            }
            let mean = sum * share;
            let mut square = 0.0f32;
            #[unroll]
            for run in 0..runs {
                let x = select(run < n, held[run * vector + j] - mean, 0.0f32);
                square += x * x;
            }
            means[row * channels + channel + j] = mean;
            squares[row * channels + channel + j] = square;
        }
    }
    sync_cube();

    let lanes = comptime!(sums.lanes() as usize);
    let groups = comptime!(sums.groups as usize);
    let size = comptime!((sums.channels / sums.groups) as usize);
    let blocks = comptime!(sums.blocks() as usize);
    let at_once = comptime!((sums.block()[0] / sums.lanes()) as usize);
    let parts = comptime!(rows * size);
    let last = comptime!(positions - (blocks - 1) * sums.block_positions() as usize);
    let full = comptime!(sums.block_positions() as usize);
    let here = select(CUBE_POS_X as usize == comptime!(blocks - 1), last, full);
    let share = 1.0f32 / f32::cast_from(here * size);
    for turn in 0..comptime!(groups.div_ceil(at_once)) {
        let number = turn * at_once + unit / lanes;
        // Lanes without a group take the last one's numbers: shuffles need them all.
        let group = select(number < groups, number, comptime!(groups - 1));
        let mut sum = 0.0f32;
        for i in 0..comptime!(parts.div_ceil(lanes)) {
            let part = i * lanes + unit % lanes;
            if part < parts {
                let row = part / size;
                let n = f32::cast_from(count_before(first + row, positions, rows, runs));
                sum += n * means[row * channels + group * size + part % size];
            }
        }
        let mean = join_lanes(sum, lanes, Join::Sum) * share;
        let mut square = 0.0f32;
        for i in 0..comptime!(parts.div_ceil(lanes)) {
            let part = i * lanes + unit % lanes;
            if part < parts {
                let row = part / size;
                let at = row * channels + group * size + part % size;
                let n = f32::cast_from(count_before(first + row, positions, rows, runs));
                let rest = means[at] - mean;
                square += squares[at] + n * rest * rest;
            }
        }
        let square = join_lanes(square, lanes, Join::Sum);
        if unit % lanes == 0 && number < groups {
            let to = (sample * groups + group) * blocks + CUBE_POS_X as usize;
            store(result, to, mean, DType::F32);
            let all = comptime!(sums.samples as usize * groups * blocks);
            store(result, to + all, square, DType::F32);
        }
    }
}

#[cube]
fn scale_body(
    result: &mut Slot,
    sums: &Slot,
    weight: &Sequence<Slot>,
    #[comptime] scale: GroupScale,
) {
    let threads = comptime!(scale.block()[0] as usize);
    let groups = comptime!(scale.groups as usize);
    let blocks = comptime!(scale.blocks as usize);
    let channels = comptime!(scale.channels as usize);
    let size = comptime!(channels / groups);
    let positions = comptime!(scale.positions as usize);
    let full = comptime!(scale.block_positions as usize);
    let all = comptime!(scale.samples as usize * groups * blocks);
    let (group, sample) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let unit = UNIT_POS as usize;
    let from = (sample * groups + group) * blocks;
    let last = comptime!((positions - (blocks - 1) * full) as f32);

    // Means are weighted by positions: all have as many channels.
    let share = comptime!(1.0 / positions as f32);
    let mut sum = 0.0f32;
    for i in 0..comptime!(blocks.div_ceil(threads)) {
        let block = i * threads + unit;
        if block < blocks {
            let n = select(
                block == comptime!(blocks - 1),
                f32::new(last),
                f32::new(comptime!(full as f32)),
            );
            sum += n * load(sums, from + block, DType::F32);
        }
    }
    let mean = join_row(sum, threads, Join::Sum) * share;
    let mut square = 0.0f32;
    for i in 0..comptime!(blocks.div_ceil(threads)) {
        let block = i * threads + unit;
        if block < blocks {
            let n = select(
                block == comptime!(blocks - 1),
                f32::new(last),
                f32::new(comptime!(full as f32)),
            );
            let rest = load(sums, from + block, DType::F32) - mean;
            let within = load(sums, from + block + all, DType::F32) * comptime!(1.0 / size as f32);
            square += within + n * rest * rest;
        }
    }
    let variance = join_row(square, threads, Join::Sum) * share;
    let factor = 1.0f32 / (variance + comptime!(scale.eps)).sqrt();

    for i in 0..comptime!(size.div_ceil(threads)) {
        let within = i * threads + unit;
        if within < size {
            let channel = group * size + within;
            let nothing = Array::<f32>::new(1usize);
            let start = coordinates(0usize, comptime!(vec![]));
            let code = comptime!(scale.weight.clone());
            let weight_starts = starts(&start, comptime!(scale.weight.clone()));
            let w = run_code(weight, &weight_starts, &nothing, channel, code, 1usize);
            let to = sample * channels + channel;
            store(result, to, mean, DType::F32);
            let all = comptime!(scale.samples as usize * channels);
            store(result, to + all, factor * w[0], DType::F32);
        }
    }
}
