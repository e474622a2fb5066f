//! `normal`: random words by integer arithmetic, two of which make a pair of normal numbers, each thread one of
//! them. Integers are those of the reference; logarithm, root and sine are of f32, within a few units in the last
//! place.

use cubecl::prelude::*;
use kernels::cuda::normal::Normal;
use ops::DType;
use ops::philox::{MULTIPLIERS, ROUNDS, WEYL};

use crate::angle::sine_of_parts;
use crate::emit::pointer;
use crate::position::{coordinates, position, thread_index};
use crate::slot::{Slot, load_long, store};

/// Declares the pointers and the body; returns how many pointers there are.
pub(crate) fn define(normal: &Normal, builder: &mut KernelBuilder) -> usize {
    let mut result = pointer(builder, normal.result.dtype.size());
    let keys = pointer(builder, normal.keys.dtype.size());
    body::expand(&builder.scope, &mut result, &keys, normal.clone());
    2
}

#[cube]
fn body(result: &mut Slot, keys: &Slot, #[comptime] normal: Normal) {
    let thread = thread_index(comptime!(normal.block()[0] as usize));
    if thread < comptime!(normal.threads() as usize) {
        let at = coordinates(thread, comptime!(normal.dims.clone()));
        let key = position(&at, comptime!(normal.keys.strides.clone()));
        let step = comptime!(normal.word_stride as usize);
        let seed = load_long(keys, key);
        let draw = load_long(keys, key + step);
        let within = thread % comptime!(normal.row_len as usize);
        let element = load_long(keys, key + 2 * step) + u64::cast_from(within);
        let to = position(&at, comptime!(normal.result.strides.clone()));
        store(result, to, number(seed, draw, element), comptime!(DType::F32));
    }
}

/// Element `element` of a draw.
#[cube]
fn number(seed: u64, draw: u64, element: u64) -> f32 {
    let words = philox(element >> 2, draw, seed);
    let lane = low(element) & 3u32;
    let is_second = lane >= 2u32;
    let radius = (2.0f32 * negative_log(select(is_second, words[2], words[0]))).sqrt();
    // The first of a pair is the cosine, which is the sine a quarter turn on.
    let quarter = select(lane & 1u32 == 0u32, 1u32, 0u32);
    radius * sine_of_parts(select(is_second, words[3], words[1]), quarter)
}

#[cube]
fn low(x: u64) -> u32 {
    u32::cast_from(x & 0xffff_ffffu64)
}

#[cube]
fn high(x: u64) -> u32 {
    u32::cast_from(x >> 32)
}

/// Four random words for a counter of two halves and a key.
#[cube]
fn philox(counter_low: u64, counter_high: u64, key: u64) -> Array<u32> {
    let mut words = Array::<u32>::new(4usize);
    words[0] = low(counter_low);
    words[1] = high(counter_low);
    words[2] = low(counter_high);
    words[3] = high(counter_high);
    let key_low = low(key);
    let key_high = high(key);
    #[unroll]
    for round in 0..comptime!(ROUNDS) {
        let a = u64::cast_from(words[0]) * comptime!(u64::from(MULTIPLIERS[0]));
        let b = u64::cast_from(words[2]) * comptime!(u64::from(MULTIPLIERS[1]));
        words[0] = high(b) ^ words[1] ^ (key_low + comptime!(WEYL[0].wrapping_mul(round as u32)));
        words[1] = low(b);
        words[2] = high(a) ^ words[3] ^ (key_high + comptime!(WEYL[1].wrapping_mul(round as u32)));
        words[3] = low(a);
    }
    words
}

/// What each value of a word stands for, of (0, 1).
const CELL: f32 = 1.0 / 4_294_967_296.0;

/// `-ln((word + 1/2) / 2^32)`.
#[cube]
fn negative_log(word: u32) -> f32 {
    let is_low = word < 0x8000_0000u32;
    // The distance to the nearer end of (0, 1), which a float holds to its last place.
    let t = (f32::cast_from(select(is_low, word, word ^ 0xffff_ffffu32)) + 0.5f32) * CELL;
    // ln(1 - t) by the logarithm of what 1 - t is rounded to (Goldberg, "What Every Computer Scientist Should Know
    // About Floating-Point Arithmetic", theorem 4).
    let rest = 1.0f32 - t;
    let near_one = select(rest == 1.0f32, t, -rest.ln() * t / (1.0f32 - rest));
    select(is_low, -t.ln(), near_one)
}
