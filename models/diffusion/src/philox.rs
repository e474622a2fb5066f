//! Standard normal noise that depends on nothing but seed, draw and element.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a
//! function of a key and a counter, so element `e` of draw `d` is the same number whichever
//! thread, device or rank computes it, and in whatever order.

const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

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

/// Elements `4 * group` to `4 * group + 3` of a draw: two Box-Muller pairs, rounded from f64.
fn normal4(seed: u64, draw: u64, group: u64) -> [f32; 4] {
    let [low, high] = halves(group);
    let [draw_low, draw_high] = halves(draw);
    let words = philox4x32([low, high, draw_low, draw_high], halves(seed));
    let mut out = [0f32; 4];
    for (pair, words) in out.chunks_exact_mut(2).zip(words.chunks_exact(2)) {
        // In (0, 1): the middle of each of 2^32 cells, so that the logarithm is finite.
        let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
        let radius = (-2.0 * unit(words[0]).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * unit(words[1])).sin_cos();
        pair.copy_from_slice(&[(radius * cos) as f32, (radius * sin) as f32]);
    }
    out
}

/// Fills `out` with elements `offset..offset + out.len()` of draw number `draw`, standard normal.
///
/// A tensor's noise is its elements in row-major order of the whole (unsplit) tensor; a part of it
/// passes the index of its first element as `offset`.
pub fn fill_normal(seed: u64, draw: u64, offset: u64, out: &mut [f32]) {
    let mut element = offset;
    let mut rest = out;
    while !rest.is_empty() {
        let skip = (element % 4) as usize;
        let count = rest.len().min(4 - skip);
        let (head, tail) = rest.split_at_mut(count);
        head.copy_from_slice(&normal4(seed, draw, element / 4)[skip..skip + count]);
        element = element.wrapping_add(count as u64);
        rest = tail;
    }
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

    #[test]
    fn parts_equal_the_whole() {
        let mut whole = [0f32; 103];
        fill_normal(42, 7, 0, &mut whole);
        for (start, end) in [(0, 1), (1, 8), (5, 6), (3, 103), (100, 103)] {
            let mut part = vec![0f32; end - start];
            fill_normal(42, 7, start as u64, &mut part);
            assert_eq!(part, whole[start..end], "{start}..{end}");
        }
        let mut other = [0f32; 103];
        fill_normal(42, 8, 0, &mut other);
        assert_ne!(other, whole);
        fill_normal(43, 7, 0, &mut other);
        assert_ne!(other, whole);
        fill_normal(1, 2, u64::MAX - 1, &mut other[..4]);
    }

    /// Bounds are five standard errors of each statistic at this count.
    #[test]
    fn is_standard_normal() {
        const COUNT: usize = 1 << 20;
        let mut noise = vec![0f32; COUNT];
        fill_normal(1234, 0, 0, &mut noise);
        let moment = |power: i32| {
            noise.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / COUNT as f64
        };
        let error = |variance: f64| 5.0 * (variance / COUNT as f64).sqrt();
        assert!(moment(1).abs() < error(1.0), "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < error(2.0), "variance {}", moment(2));
        assert!(moment(3).abs() < error(15.0), "skewness {}", moment(3));
        assert!((moment(4) - 3.0).abs() < error(96.0), "kurtosis {}", moment(4));
        for lag in 1..=4 {
            let pairs = noise.iter().zip(&noise[lag..]);
            let product: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let mean = product / (COUNT - lag) as f64;
            assert!(mean.abs() < error(1.0), "correlation {mean} at lag {lag}");
        }
        let tail = noise.iter().filter(|x| x.abs() > 1.959_964).count() as f64 / COUNT as f64;
        assert!((tail - 0.05).abs() < error(0.0475), "tail {tail}");
    }
}
