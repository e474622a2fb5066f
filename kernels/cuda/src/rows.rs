//! `rows`: norms and reductions of rows that are held in registers.

use cubecl::prelude::*;
use kernels::cuda::rows::{RowOp, Rows};

use crate::collective::{Join, join_row};
use crate::emit::pointer;
use crate::operands::{declare, outer_strides, run_code, starts};
use crate::position::{coordinates, position};
use crate::ptx::max;
use crate::slot::{Slot, store, store_run};

/// Declares the pointers and the body; returns how many pointers there are.
pub(crate) fn define(rows: &Rows, builder: &mut KernelBuilder) -> usize {
    let mut result = pointer(builder, rows.result.dtype.size());
    let prologue = declare(rows.prologue.memory(), builder);
    let epilogue = declare(rows.epilogue.memory(), builder);
    body::expand(&builder.scope, &mut result, &prologue, &epilogue, rows.clone());
    1 + rows.prologue.memory().count() + rows.epilogue.memory().count()
}

#[cube]
fn body(
    result: &mut Slot,
    prologue: &Sequence<Slot>,
    epilogue: &Sequence<Slot>,
    #[comptime] rows: Rows,
) {
    let threads = comptime!(rows.threads as usize);
    let count = comptime!(rows.count() as usize);
    let per_block = comptime!(rows.rows_per_block() as usize);
    let lane = UNIT_POS as usize % threads;
    let number = CUBE_POS_X as usize * per_block + UNIT_POS as usize / threads;
    let at = coordinates(number, comptime!(rows.outer.clone()));
    let from = starts(&at, comptime!(rows.prologue.clone()));
    let aside = starts(&at, comptime!(rows.epilogue.clone()));
    let to = position(&at, comptime!(outer_strides(&rows.result)));

    let chunks = comptime!(rows.chunks() as usize);
    let mut held = Array::<f32>::new(comptime!((rows.runs * rows.vector) as usize));
    if comptime!(chunks == 1) {
        // Threads behind the last row go on with zeros: shuffles need all lanes.
        if number < count {
            read(prologue, &from, &mut held, lane, 0usize, comptime!(rows.clone()));
        }
    }
    let (shift, scale) = statistics(prologue, &from, &mut held, lane, comptime!(rows.clone()));

    if comptime!(rows.op.is_reduction()) {
        if lane == 0 && number < count {
            let mut reduced = Array::<f32>::new(1usize);
            reduced[0] = scale;
            let run = run_code(
                epilogue,
                &aside,
                &reduced,
                0usize,
                comptime!(rows.epilogue.clone()),
                1usize,
            );
            store(result, to, run[0], comptime!(rows.result.dtype));
        }
    } else if number < count {
        #[unroll(chunks == 1)]
        for chunk in 0..chunks {
            if comptime!(chunks > 1) {
                read(prologue, &from, &mut held, lane, chunk, comptime!(rows.clone()));
            }
            write(
                result,
                to,
                epilogue,
                &aside,
                &held,
                lane,
                chunk,
                shift,
                scale,
                comptime!(rows.clone()),
            );
        }
    }
}

/// The element of the row at which run `run` of a chunk starts for this thread.
#[cube]
fn index_of(lane: usize, chunk: usize, run: usize, #[comptime] rows: Rows) -> usize {
    let threads = comptime!(rows.threads as usize);
    let runs = comptime!(rows.runs as usize);
    ((chunk * runs + run) * threads + lane) * comptime!(rows.vector as usize)
}

/// Whether run `run` of a chunk may lie behind the row's end.
fn is_ragged(rows: &Rows, run: usize) -> bool {
    let share = rows.threads * rows.vector;
    rows.chunks() > 1 && !rows.len.is_multiple_of(rows.held())
        || rows.chunks() == 1 && (run as u32 + 1) * share > rows.len
}

/// What elements behind the end are taken for.
fn neutral(op: RowOp) -> f32 {
    match op {
        RowOp::Softmax | RowOp::Max => f32::NEG_INFINITY,
        RowOp::LayerNorm { .. } | RowOp::RmsNorm { .. } | RowOp::Sum => 0.0,
    }
}

/// A chunk of the row into registers.
#[cube]
fn read(
    slots: &Sequence<Slot>,
    starts: &Sequence<usize>,
    held: &mut Array<f32>,
    lane: usize,
    chunk: usize,
    #[comptime] rows: Rows,
) {
    let vector = comptime!(rows.vector as usize);
    #[unroll]
    for run in 0..comptime!(rows.runs as usize) {
        let index = index_of(lane, chunk, run, comptime!(rows.clone()));
        if comptime!(is_ragged(&rows, run)) {
            #[unroll]
            for j in 0..vector {
                held[run * vector + j] = f32::new(comptime!(neutral(rows.op)));
            }
            if index < comptime!(rows.len as usize) {
                read_run(slots, starts, held, index, run, comptime!(rows.clone()));
            }
        } else {
            read_run(slots, starts, held, index, run, comptime!(rows.clone()));
        }
    }
}

#[cube]
fn read_run(
    slots: &Sequence<Slot>,
    starts: &Sequence<usize>,
    held: &mut Array<f32>,
    index: usize,
    #[comptime] run: usize,
    #[comptime] rows: Rows,
) {
    let vector = comptime!(rows.vector as usize);
    let nothing = Array::<f32>::new(1usize);
    let x = run_code(slots, starts, &nothing, index, comptime!(rows.prologue.clone()), vector);
    #[unroll]
    for j in 0..vector {
        held[run * vector + j] = x[j];
    }
}

/// What element `i` of the registers adds to a sum in a pass.
#[cube]
fn term(x: f32, shift: f32, #[comptime] pass: Pass) -> f32 {
    if comptime!(pass == Pass::Centered) {
        x - shift
    } else if comptime!(pass == Pass::CenteredSquare) {
        (x - shift) * (x - shift)
    } else if comptime!(pass == Pass::Exponential) {
        (x - shift).exp()
    } else {
        x
    }
}

/// What a pass over a row adds up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Pass {
    /// `x`.
    Plain,
    /// The largest `x`.
    Largest,
    /// `x - shift`.
    Centered,
    /// `(x - shift)^2`.
    CenteredSquare,
    /// `exp(x - shift)`.
    Exponential,
}

/// One pass over a row; every thread of it gets the result.
#[cube]
fn pass(
    slots: &Sequence<Slot>,
    starts: &Sequence<usize>,
    held: &mut Array<f32>,
    lane: usize,
    shift: f32,
    #[comptime] what: Pass,
    #[comptime] rows: Rows,
) -> f32 {
    let chunks = comptime!(rows.chunks() as usize);
    let vector = comptime!(rows.vector as usize);
    let is_max = comptime!(what == Pass::Largest);
    // Four sums side by side: an addition waits for the one before it.
    let mut sums = Array::<f32>::new(4usize);
    if is_max {
        #[unroll]
        for i in 0..4usize {
            sums[i] = f32::new(comptime!(f32::NEG_INFINITY));
        }
    }
    #[unroll(chunks == 1)]
    for chunk in 0..chunks {
        if comptime!(chunks > 1) {
            read(slots, starts, held, lane, chunk, comptime!(rows.clone()));
        }
        #[unroll]
        for run in 0..comptime!(rows.runs as usize) {
            let index = index_of(lane, chunk, run, comptime!(rows.clone()));
            let is_masked = comptime!(
                is_ragged(&rows, run) && matches!(what, Pass::Centered | Pass::CenteredSquare)
            );
            #[unroll]
            for j in 0..vector {
                let x = term(held[run * vector + j], shift, what);
                let x = if is_masked {
                    select(index < comptime!(rows.len as usize), x, 0.0f32)
                } else {
                    x
                };
                let sum = comptime!((run * vector + j) % 4);
                sums[sum] = if is_max { max(sums[sum], x) } else { sums[sum] + x };
            }
        }
    }
    let threads = comptime!(rows.threads as usize);
    if is_max {
        join_row(max(max(sums[0], sums[1]), max(sums[2], sums[3])), threads, Join::Max)
    } else {
        join_row((sums[0] + sums[1]) + (sums[2] + sums[3]), threads, Join::Sum)
    }
}

/// What is subtracted from an element, and what the difference or its exponential is multiplied by;
/// of a reduction, the second is its result.
#[cube]
fn statistics(
    slots: &Sequence<Slot>,
    starts: &Sequence<usize>,
    held: &mut Array<f32>,
    lane: usize,
    #[comptime] rows: Rows,
) -> (f32, f32) {
    let share = comptime!(1.0 / rows.len as f32);
    let eps = comptime!(eps_of(rows.op));
    let first = if comptime!(matches!(rows.op, RowOp::Softmax | RowOp::Max)) {
        pass(slots, starts, held, lane, 0.0f32, Pass::Largest, comptime!(rows.clone()))
    } else if comptime!(matches!(rows.op, RowOp::RmsNorm { .. })) {
        pass(slots, starts, held, lane, 0.0f32, Pass::CenteredSquare, comptime!(rows.clone()))
    } else {
        pass(slots, starts, held, lane, 0.0f32, Pass::Plain, comptime!(rows.clone()))
    };
    if comptime!(matches!(rows.op, RowOp::LayerNorm { .. })) {
        let mean = first * share;
        let rest = pass(slots, starts, held, lane, mean, Pass::Centered, comptime!(rows.clone()));
        let squares =
            pass(slots, starts, held, lane, mean, Pass::CenteredSquare, comptime!(rows.clone()));
        let rest = rest * share;
        let variance = squares * share - rest * rest;
        (mean + rest, 1.0f32 / (variance + eps).sqrt())
    } else if comptime!(matches!(rows.op, RowOp::RmsNorm { .. })) {
        (0.0f32.runtime(), 1.0f32 / (first * share + eps).sqrt())
    } else if comptime!(matches!(rows.op, RowOp::Softmax)) {
        let sum =
            pass(slots, starts, held, lane, first, Pass::Exponential, comptime!(rows.clone()));
        (first, 1.0f32 / sum)
    } else {
        (0.0f32.runtime(), first)
    }
}

fn eps_of(op: RowOp) -> f32 {
    match op {
        RowOp::LayerNorm { eps } | RowOp::RmsNorm { eps } => eps,
        RowOp::Softmax | RowOp::Sum | RowOp::Max => 0.0,
    }
}

/// Writes what a chunk in registers becomes.
#[cube]
fn write(
    result: &mut Slot,
    to: usize,
    slots: &Sequence<Slot>,
    starts: &Sequence<usize>,
    held: &Array<f32>,
    lane: usize,
    chunk: usize,
    shift: f32,
    scale: f32,
    #[comptime] rows: Rows,
) {
    #[unroll]
    for run in 0..comptime!(rows.runs as usize) {
        let index = index_of(lane, chunk, run, comptime!(rows.clone()));
        let is_inside = if comptime!(is_ragged(&rows, run)) {
            index < comptime!(rows.len as usize)
        } else {
            true.runtime()
        };
        if is_inside {
            let vector = comptime!(rows.vector as usize);
            let mut x = Array::<f32>::new(vector);
            #[unroll]
            for j in 0..vector {
                let centered = held[run * vector + j] - shift;
                x[j] = if comptime!(matches!(rows.op, RowOp::Softmax)) {
                    centered.exp() * scale
                } else {
                    centered * scale
                };
            }
            let code = comptime!(rows.epilogue.clone());
            let y = run_code(slots, starts, &x, index, code, vector);
            let stride = comptime!(rows.result.strides[rows.outer.len()] as usize);
            let dtype = comptime!(rows.result.dtype);
            if comptime!(stride == 1) {
                store_run(result, to + index, &y, dtype, vector);
            } else {
                store(result, to + index * stride, y[0], dtype);
            }
        }
    }
}
