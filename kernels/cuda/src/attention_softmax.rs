//! The softmax of attention, in the registers where the first product leaves scores and the second
//! takes weights.
//!
//! Scores are in units of log 2, times a factor that is known when a function is compiled. A warp has
//! `heights` times 16 rows and `tiles` times 8 keys, as `Sums`; row `2 height + half` of a lane's
//! arrays is the row `16 height + 8 half` below its first.

use cubecl::prelude::*;

use crate::ptx::{Sums, Words4, ballot, exp2, from_lane_xor, max, pack_halves, reciprocal};

/// What the running maximum starts from: below any score, yet finite, so that a difference of two
/// is a number where all keys so far are masked.
pub(crate) const LOWEST: f32 = -1e30;
/// What a masked score is.
pub(crate) const MASKED: f32 = f32::NEG_INFINITY;
/// How far a maximum may fall behind, as a power of 2: weights stay below 2 to this, which every type
/// holds, and no sum loses a bit.
const SLACK: f32 = 8.0;

/// What is known of the rows so far.
#[derive(CubeType)]
pub(crate) struct Running {
    /// What weights are relative to.
    pub(crate) references: Array<f32>,
    /// Sums of this lane's weights.
    pub(crate) sums: Array<f32>,
}

/// Nothing yet.
#[cube]
pub(crate) fn start(#[comptime] heights: usize) -> Running {
    let mut references = Array::<f32>::new(comptime!(2 * heights));
    let mut sums = Array::<f32>::new(comptime!(2 * heights));
    #[unroll]
    for row in 0..comptime!(2 * heights) {
        references[row] = LOWEST;
        sums[row] = 0.0f32;
    }
    Running { references, sums }
}

/// `n` tiles of zeros.
#[cube]
pub(crate) fn zeros(#[comptime] n: usize) -> Array<Sums> {
    let mut sums = Array::<Sums>::new(n);
    #[unroll]
    for i in 0..n {
        sums[i] = Sums::new(0.0f32);
    }
    sums
}

/// Makes scores of keys that take no part as low as can be: those whose bit in `flags` is not set,
/// a word for each 32 of the `keys`.
#[cube]
pub(crate) fn mask_keys(
    scores: &mut Array<Sums>,
    column: usize,
    flags: &Array<u32>,
    #[comptime] keys: u32,
    #[comptime] heights: usize,
    #[comptime] tiles: usize,
) {
    #[unroll]
    for word in 0..comptime!(tiles.div_ceil(4)) {
        let bits = comptime!((keys - 32 * word as u32).min(32));
        if flags[word] != comptime!(u32::MAX >> (32 - bits)) {
            let own = flags[word] >> (2 * column as u32);
            #[unroll]
            for tile in comptime!(4 * word)..comptime!(tiles.min(4 * word + 4)) {
                #[unroll]
                for height in 0..heights {
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

/// The largest score of each row, no less than its reference.
#[cube]
pub(crate) fn maxima(
    scores: &Array<Sums>,
    running: &Running,
    #[comptime] heights: usize,
    #[comptime] tiles: usize,
) -> Array<f32> {
    let mut largest = Array::<f32>::new(comptime!(2 * heights));
    #[unroll]
    for row in 0..comptime!(2 * heights) {
        let (height, half) = comptime!((row / 2, row % 2));
        let mut most = running.references[row];
        #[unroll]
        for tile in 0..tiles {
            let score = scores[height * tiles + tile];
            most = max(most, score.extract(2 * half));
            most = max(most, score.extract(2 * half + 1));
        }
        most = max(most, from_lane_xor(most, 1u32));
        largest[row] = max(most, from_lane_xor(most, 2u32));
    }
    largest
}

/// Makes `largest` the references, and what was summed so far smaller, if a row's reference has fallen
/// behind by [`SLACK`]: rarely, so that outputs are seldom scaled.
#[cube]
pub(crate) fn follow(
    largest: &Array<f32>,
    running: &mut Running,
    outputs: &mut Array<Sums>,
    #[comptime] heights: usize,
    #[comptime] chunks: usize,
    #[comptime] factor: f32,
) {
    let rows = comptime!(2 * heights);
    let mut rises = 0u32;
    #[unroll]
    for row in 0..rows {
        let rise = largest[row] - running.references[row];
        rises = select(rise > comptime!(SLACK / factor), 1u32, rises);
    }
    if ballot(rises) != 0u32 {
        #[unroll]
        for row in 0..rows {
            let (height, half) = comptime!((row / 2, row % 2));
            let shrink = exp2((running.references[row] - largest[row]) * factor);
            running.references[row] = largest[row];
            running.sums[row] *= shrink;
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
}

/// Weights as the second product's left operand, for each height and 16 keys, rounded to `element`;
/// they are summed before.
#[cube]
pub(crate) fn weigh(
    scores: &Array<Sums>,
    running: &mut Running,
    #[comptime] heights: usize,
    #[comptime] tiles: usize,
    #[comptime] factor: f32,
    #[comptime] element: &'static str,
) -> Array<Words4> {
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
                let reference = running.references[row] * factor;
                let low = exp2(score.extract(2 * half) * factor - reference);
                let high = exp2(score.extract(2 * half + 1) * factor - reference);
                running.sums[row] += low + high;
                words.insert(part, pack_halves(low, high, element));
            }
            weights[height * comptime!(tiles / 2) + step] = words;
        }
    }
    weights
}

/// Sums of rows over the lanes that share them.
#[cube]
pub(crate) fn row_sums(running: &Running, #[comptime] heights: usize) -> Array<f32> {
    let mut sums = Array::<f32>::new(comptime!(2 * heights));
    #[unroll]
    for row in 0..comptime!(2 * heights) {
        let half = running.sums[row] + from_lane_xor(running.sums[row], 1u32);
        sums[row] = half + from_lane_xor(half, 2u32);
    }
    sums
}

/// Divides outputs by the sums of weights. Where no key takes part, they are 0.
#[cube]
pub(crate) fn normalize(
    outputs: &mut Array<Sums>,
    sums: &Array<f32>,
    #[comptime] heights: usize,
    #[comptime] chunks: usize,
) {
    #[unroll]
    for row in 0..comptime!(2 * heights) {
        let (height, half) = comptime!((row / 2, row % 2));
        let scale = select(sums[row] > 0.0f32, reciprocal(sums[row]), 0.0f32);
        #[unroll]
        for chunk in 0..chunks {
            let index = comptime!(height * chunks + chunk);
            let mut output = outputs[index];
            output.insert(2 * half, output.extract(2 * half) * scale);
            output.insert(2 * half + 1, output.extract(2 * half + 1) * scale);
            outputs[index] = output;
        }
    }
}
