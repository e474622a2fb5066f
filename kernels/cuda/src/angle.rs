//! Sines and cosines of angles up to some hundred thousand, without the library's memory for larger
//! ones. Rough ones are within 1e-6 for angles up to some thousand, which half types do not see.

use cubecl::prelude::*;

use crate::ptx::{cosine_of_turn, sine_of_turn};

/// Added and subtracted, rounds to the nearest integer, which is then in the low bits.
const ROUND: f32 = 12_582_912.0;
/// A turn in two parts, the first of 8 bits.
const TURN: f32 = 6.281_25;
const TURN_REST: f32 = (std::f64::consts::TAU - 6.281_25) as f32;

/// Sine of radians.
#[cube]
pub(crate) fn sine(x: f32, #[comptime] is_rough: bool) -> f32 {
    if is_rough { sine_of_turn(within_turn(x)) } else { turned_sine(x, 0u32) }
}

/// Cosine of radians.
#[cube]
pub(crate) fn cosine(x: f32, #[comptime] is_rough: bool) -> f32 {
    if is_rough { cosine_of_turn(within_turn(x)) } else { turned_sine(x, 1u32) }
}

/// `x` less whole turns: between -pi and pi.
#[cube]
fn within_turn(x: f32) -> f32 {
    let turns = x * comptime!(0.5 * std::f32::consts::FRAC_1_PI) + ROUND - ROUND;
    x - turns * TURN - turns * TURN_REST
}

/// `sin(x + quarter_turns pi / 2)`, within 1.2e-7: polynomials on the nearest quarter turn.
#[cube]
fn turned_sine(x: f32, #[comptime] quarter_turns: u32) -> f32 {
    let biased = x * comptime!(std::f32::consts::FRAC_2_PI) + ROUND;
    let n = biased - ROUND;
    // pi / 2 in four parts, so that the products with n are exact.
    let r = x - n * comptime!(f32::from_bits(0x3fc9_0000));
    let r = r - n * comptime!(f32::from_bits(0x39fd_0000));
    let r = r - n * comptime!(f32::from_bits(0x35aa_0000));
    let r = r - n * comptime!(f32::from_bits(0x3088_5a30));
    quarter_sine(r, u32::reinterpret(biased) + quarter_turns)
}

/// Turns counted in parts of `2^-32`.
const PART: f32 = (std::f64::consts::TAU / 4_294_967_296.0) as f32;

/// `sin((parts + 1/2) 2 pi / 2^32 + quarter_turns pi / 2)`, within a few units in the last place.
#[cube]
pub(crate) fn sine_of_parts(parts: u32, quarter_turns: u32) -> f32 {
    // The nearest quarter turn is found, and taken away, in integers.
    let quarters = (parts + 0x2000_0000u32) >> 30;
    let rest = i32::reinterpret(parts - (quarters << 30));
    quarter_sine((f32::cast_from(rest) + 0.5f32) * PART, quarters + quarter_turns)
}

/// `sin(r + quadrant pi / 2)` for `r` of at most an eighth of a turn.
#[cube]
fn quarter_sine(r: f32, quadrant: u32) -> f32 {
    let z = r * r;
    let p = (-1.951_529_6e-4f32 * z + 8.332_161e-3f32) * z - 1.666_665_5e-1f32;
    let sine = p * z * r + r;
    let p = (2.443_315_7e-5f32 * z - 1.388_731_6e-3f32) * z + 4.166_664_6e-2f32;
    let cosine = p * z * z + (1.0f32 - 0.5f32 * z);
    // Bit 0 of the quadrant chooses the function, bit 1 the sign.
    let y = select(quadrant & 1u32 == 0u32, sine, cosine);
    select(quadrant & 2u32 == 0u32, y, -y)
}
