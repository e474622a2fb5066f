//! The minimal filtering algorithms behind the fast convolutions (Winograd, Arithmetic Complexity of
//! Computations; Lavin and Gray, Fast Algorithms for Convolutional Neural Networks): along one axis a
//! tile of outputs comes from one product per *point*, of a transformed input and a transformed
//! weight. Along two axes the transforms are applied to rows, then to columns.
//!
//! [`Quad`] is F(4, 3): 4 outputs of a 3-wide kernel from 6 products instead of 12, so 36 instead of
//! 144 along two axes. Its points are 0, +-3/4, +-3/2 and infinity: every coefficient is exact in
//! f32, and the relative error of a result, some 1.3e-6, is half of that with the usual +-1 and +-2
//! (a direct sum has some 3e-7).
//! [`Doubled`] is F(2, 3) on an input whose every element is repeated: one of its 4 products then
//! vanishes, which leaves 3 for 2 outputs, or 9 instead of 36 along two axes. Its transforms only
//! add, so it is as exact as a direct sum.

use crate::simd::Simd;

/// An algorithm along one axis: `P` points, `O` outputs of a 3-wide kernel.
pub(super) trait Transform<const P: usize, const O: usize>: Copy + Send + Sync {
    /// Of `P` neighboring inputs.
    fn input<S: Simd>(self, s: S, x: [S::F; P]) -> [S::F; P];
    /// From the sums of products to outputs.
    fn output<S: Simd>(self, s: S, sums: [S::F; P]) -> [S::F; O];
    /// Of the kernel.
    fn weight<S: Simd>(self, s: S, kernel: [S::F; 3]) -> [S::F; P];
    /// What [`Transform::input`] makes of inputs within +-1 is at most this, at each point.
    fn gain(self) -> [f32; P];
}

/// F(4, 3).
#[derive(Clone, Copy, Debug)]
pub(super) struct Quad;

/// The points beside 0 and infinity are `+-NEAR` and `+-FAR`.
const NEAR: f64 = 0.75;
const FAR: f64 = 1.5;
const NEAR_SQUARE: f32 = (NEAR * NEAR) as f32;
const FAR_SQUARE: f32 = (FAR * FAR) as f32;

impl Transform<6, 4> for Quad {
    #[inline(always)]
    fn input<S: Simd>(self, s: S, x: [S::F; 6]) -> [S::F; 6] {
        let sum = s.splat(NEAR_SQUARE + FAR_SQUARE);
        let product = s.splat(NEAR_SQUARE * FAR_SQUARE);
        // Even and odd parts at the points, where x^2 is that of the other pair.
        let even = |square| s.neg_mul_add(s.splat(square), x[2], x[4]);
        let odd = |square| s.neg_mul_add(s.splat(square), x[1], x[3]);
        let (near, far) = (s.splat(NEAR as f32), s.splat(FAR as f32));
        let (near_even, near_odd) = (even(FAR_SQUARE), odd(FAR_SQUARE));
        let (far_even, far_odd) = (even(NEAR_SQUARE), odd(NEAR_SQUARE));
        [
            s.mul_add(product, x[0], s.neg_mul_add(sum, x[2], x[4])),
            s.mul_add(near, near_odd, near_even),
            s.neg_mul_add(near, near_odd, near_even),
            s.mul_add(far, far_odd, far_even),
            s.neg_mul_add(far, far_odd, far_even),
            s.mul_add(product, x[1], s.neg_mul_add(sum, x[3], x[5])),
        ]
    }

    #[inline(always)]
    fn output<S: Simd>(self, s: S, sums: [S::F; 6]) -> [S::F; 4] {
        let near = (s.add(sums[1], sums[2]), s.sub(sums[1], sums[2]));
        let far = (s.add(sums[3], sums[4]), s.sub(sums[3], sums[4]));
        let weigh = |power: i32, near, far| {
            let far = s.mul(s.splat(FAR.powi(power) as f32), far);
            s.mul_add(s.splat(NEAR.powi(power) as f32), near, far)
        };
        [
            s.add(sums[0], s.add(near.0, far.0)),
            weigh(1, near.1, far.1),
            weigh(2, near.0, far.0),
            s.add(weigh(3, near.1, far.1), sums[5]),
        ]
    }

    #[inline(always)]
    fn weight<S: Simd>(self, s: S, kernel: [S::F; 3]) -> [S::F; 6] {
        let (near_even, near_odd) = parts_at(s, kernel, NEAR, FAR);
        let (far_even, far_odd) = parts_at(s, kernel, FAR, NEAR);
        let [first, _, last] = kernel;
        [
            s.mul(s.splat((1.0 / (NEAR * NEAR * FAR * FAR)) as f32), first),
            s.add(near_even, near_odd),
            s.sub(near_even, near_odd),
            s.add(far_even, far_odd),
            s.sub(far_even, far_odd),
            last,
        ]
    }

    fn gain(self) -> [f32; 6] {
        let (near, far) = (NEAR_SQUARE, FAR_SQUARE);
        let end = near * far + near + far + 1.0;
        let at = |p: f64, other: f32| (1.0 + other) * (1.0 + p as f32);
        [end, at(NEAR, far), at(NEAR, far), at(FAR, near), at(FAR, near), end]
    }
}

/// Even and odd part, at the point `p`, of the kernel's polynomial over the product of `p`'s distances
/// to the other points, `-p` and `+-other` among them.
#[inline(always)]
fn parts_at<S: Simd>(s: S, [a, b, c]: [S::F; 3], p: f64, other: f64) -> (S::F, S::F) {
    let scale = 1.0 / (2.0 * p * p * (p * p - other * other));
    let one = s.splat(scale as f32);
    let linear = s.splat((p * scale) as f32);
    let square = s.splat((p * p * scale) as f32);
    (s.mul_add(square, c, s.mul(one, a)), s.mul(linear, b))
}

/// F(2, 3) on a doubled input; tiles of the input are 3 elements before doubling, one apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubled;

impl Transform<3, 2> for Doubled {
    #[inline(always)]
    fn input<S: Simd>(self, s: S, x: [S::F; 3]) -> [S::F; 3] {
        [s.sub(x[0], x[1]), x[1], s.sub(x[2], x[1])]
    }

    #[inline(always)]
    fn output<S: Simd>(self, s: S, sums: [S::F; 3]) -> [S::F; 2] {
        [s.add(sums[0], sums[1]), s.add(sums[1], sums[2])]
    }

    #[inline(always)]
    fn weight<S: Simd>(self, s: S, [a, b, c]: [S::F; 3]) -> [S::F; 3] {
        [a, s.add(s.add(a, b), c), c]
    }

    fn gain(self) -> [f32; 3] {
        [2.0, 1.0, 2.0]
    }
}

/// The taps of a kernel, transformed along each of its columns.
#[inline(always)]
pub(super) fn weight_columns<S: Simd, T: Transform<P, O>, const P: usize, const O: usize>(
    s: S,
    algorithm: T,
    [a, b, c, d, e, f, g, h, i]: [S::F; 9],
) -> [[S::F; P]; 3] {
    [algorithm.weight(s, [a, d, g]), algorithm.weight(s, [b, e, h]), algorithm.weight(s, [c, f, i])]
}

/// Row `y` of the points, from what [`weight_columns`] made.
#[inline(always)]
pub(super) fn weight_row<S: Simd, T: Transform<P, O>, const P: usize, const O: usize>(
    s: S,
    algorithm: T,
    columns: &[[S::F; P]; 3],
    y: usize,
) -> [S::F; P] {
    algorithm.weight(s, [columns[0][y], columns[1][y], columns[2][y]])
}

/// Applies `f` to the rows of a square, then to the columns of what comes out.
#[inline(always)]
pub(super) fn along_both<F: Copy, const P: usize, const O: usize>(
    zero: F,
    row: impl Fn(usize) -> [F; P],
    f: impl Fn([F; P]) -> [F; O],
) -> [[F; O]; O] {
    let mut rows = [[zero; O]; P];
    for (i, to) in rows.iter_mut().enumerate() {
        *to = f(row(i));
    }
    let mut out = [[zero; O]; O];
    for column in 0..O {
        let line = f(std::array::from_fn(|i| rows[i][column]));
        for (row, value) in line.into_iter().enumerate() {
            out[row][column] = value;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::{SimdJob, dispatch};

    /// The outputs of one lane by `T`, on `x` as the transform takes it.
    struct Run<T, const P: usize, const O: usize>(T, [[f32; P]; P], [[f64; 3]; 3]);

    impl<T: Transform<P, O>, const P: usize, const O: usize> SimdJob for Run<T, P, O> {
        type Output = [[f32; O]; O];

        fn run<S: Simd>(self, s: S) -> [[f32; O]; O] {
            let Run(algorithm, x, kernel) = self;
            let taps = std::array::from_fn(|tap| s.splat(kernel[tap / 3][tap % 3] as f32));
            let columns = weight_columns(s, algorithm, taps);
            let weight = |i: usize, j: usize| weight_row(s, algorithm, &columns, i)[j];
            let zero = s.splat(0.0);
            let points =
                along_both(zero, |i| x[i].map(|x| s.splat(x)), |line| algorithm.input(s, line));
            let product = |i: usize, j: usize| s.mul(points[i][j], weight(i, j));
            let row = |i: usize| std::array::from_fn(|j| product(i, j));
            along_both(zero, row, |line| algorithm.output(s, line))
                .map(|row| row.map(|y| s.first(y)))
        }
    }

    fn kernel() -> [[f64; 3]; 3] {
        [[0.5, -1.25, 0.75], [2.0, 1.0, -0.5], [-1.5, 0.25, 3.0]]
    }

    fn direct(x: impl Fn(usize, usize) -> f64, i: usize, j: usize) -> f64 {
        let taps = (0..9).map(|tap| (tap / 3, tap % 3));
        taps.map(|(a, b)| x(i + a, j + b) * kernel()[a][b]).sum()
    }

    #[test]
    fn quad_computes_a_tile_of_a_3x3_kernel() {
        let x: [[f32; 6]; 6] =
            std::array::from_fn(|i| std::array::from_fn(|j| ((i * 7 + j * 5) % 11) as f32 - 5.0));
        let y = dispatch(Isa::PORTABLE, Run(Quad, x, kernel()));
        for (i, row) in y.iter().enumerate() {
            for (j, &y) in row.iter().enumerate() {
                let expected = direct(|i, j| f64::from(x[i][j]), i, j);
                // A few dozen roundings of numbers up to 100.
                assert!((f64::from(y) - expected).abs() < 1e-4, "{i} {j}: {y} {expected}");
            }
        }
    }

    /// Largest value at each point over all inputs of +-1.
    struct Largest<T, const P: usize, const O: usize>(T);

    impl<T: Transform<P, O>, const P: usize, const O: usize> SimdJob for Largest<T, P, O> {
        type Output = [f32; P];

        fn run<S: Simd>(self, s: S) -> [f32; P] {
            let mut largest = [0.0f32; P];
            for signs in 0..1 << P {
                let x =
                    std::array::from_fn(|i| s.splat(if signs >> i & 1 == 1 { 1.0 } else { -1.0 }));
                for (largest, value) in largest.iter_mut().zip(self.0.input(s, x)) {
                    *largest = largest.max(s.first(value));
                }
            }
            largest
        }
    }

    #[test]
    fn gains_are_what_inputs_of_one_can_reach() {
        assert_eq!(dispatch(Isa::PORTABLE, Largest(Quad)), Quad.gain());
        assert_eq!(dispatch(Isa::PORTABLE, Largest(Doubled)), Doubled.gain());
    }

    #[test]
    fn doubled_computes_a_tile_of_the_doubled_input() {
        let x = [[1.0, -2.0, 3.5], [0.25, 4.0, -1.0], [2.0, -0.5, 1.5]];
        let y = dispatch(Isa::PORTABLE, Run(Doubled, x, kernel()));
        for (i, row) in y.iter().enumerate() {
            for (j, &y) in row.iter().enumerate() {
                // Element k of a repeated line is x[k.div_ceil(2)].
                let expected = direct(|i, j| f64::from(x[i.div_ceil(2)][j.div_ceil(2)]), i, j);
                assert!((f64::from(y) - expected).abs() < 1e-5, "{i} {j}: {y} {expected}");
            }
        }
    }
}
