//! Standard normal noise that depends on nothing but seed, draw and element, on the host. The op `normal` draws
//! the same numbers in a graph.

use ops::philox::normal4;

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
        let four = normal4(seed, draw, element / 4).map(|x| x as f32);
        head.copy_from_slice(&four[skip..skip + count]);
        element = element.wrapping_add(count as u64);
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
