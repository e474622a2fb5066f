//! Random numbers as a function of a key and a counter: Philox4x32-10 (Salmon et al., "Parallel random
//! numbers: as easy as 1, 2, 3", SC 2011), and normal ones made of them.
//!
//! Element `e` of draw `d` under a seed is the same number whichever thread or device computes it, and in
//! whatever order.

/// Rounds of the function.
pub const ROUNDS: usize = 10;
/// What words 0 and 2 of the counter are multiplied by in each round.
pub const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What is added to the words of the key after each round.
pub const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four random words for a counter and a key.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let product = |k: usize| u64::from(MULTIPLIERS[k]) * u64::from(counter[2 * k]);
        let (a, b) = (product(0), product(1));
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

/// Elements `4 * group` to `4 * group + 3` of draw `draw`, standard normal: two pairs of Box and Muller, "A Note on
/// the Generation of Random Normal Deviates". The group is the low half of the counter, the draw the high one,
/// the seed is the key.
pub fn normal4(seed: u64, draw: u64, group: u64) -> [f64; 4] {
    let [low, high] = halves(group);
    let [draw_low, draw_high] = halves(draw);
    let words = philox4x32([low, high, draw_low, draw_high], halves(seed));
    let mut out = [0f64; 4];
    for (pair, words) in out.chunks_exact_mut(2).zip(words.chunks_exact(2)) {
        // In (0, 1): the middle of each of 2^32 cells, so that the logarithm is finite.
        let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
        let radius = (-2.0 * unit(words[0]).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * unit(words[1])).sin_cos();
        pair.copy_from_slice(&[radius * cos, radius * sin]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with Random123.
    #[test]
    fn gives_the_published_answers() {
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]),
            ([!0; 4], [!0; 2], [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]),
            (
                [0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344],
                [0xA409_3822, 0x299F_31D0],
                [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1],
            ),
        ] {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }
}
