//! How large errors are: of bf16, and of f32 beside chains of multiply-adds.

use kernels::cpu::matmul::{BOperand, BView};
use ops::DType;

use super::{
    Buffer, Operands, Random, assert_close, buffer, decode, encode, of_digits, plain, product, run,
    sum_tolerance,
};

#[test]
fn bf16_products_lose_nothing_but_the_rounding_of_sums() {
    let mut random = Random(5);
    let mut shapes = vec![(1, 1, 1), (9, 49, 3), (8, 48, 640), (250, 100, 33), (3, 800, 2901)];
    for _ in 0..25 {
        shapes.push((1 + random.below(70), 1 + random.below(140), 1 + random.below(1400)));
    }
    for (m, n, k) in shapes {
        let a = buffer(&mut random, DType::Bf16, m * k);
        let b = buffer(&mut random, DType::Bf16, n * k);
        let b_strides = if random.below(2) == 0 { (1, k) } else { (n, 1) };
        let mut spec = plain(m, n, k);
        spec.product = DType::Bf16;
        spec.a.dtype = DType::Bf16;
        spec.b = match random.below(2) {
            0 => BOperand::Packed(DType::Bf16),
            _ => BOperand::Dense(BView {
                dtype: DType::Bf16,
                batch_strides: vec![],
                depth_stride: b_strides.0,
                column_stride: b_strides.1,
                offset: 0,
            }),
        };
        let at = |i: usize, c: usize| i * b_strides.0 + c * b_strides.1;
        let expected = product((m, n, k), |r, i| a.values[r * k + i], |i, c| b.values[at(i, c)]);
        let c = vec![0xff; m * n * 4];
        for (isa, c) in run(&spec, &Operands::plain(&a, &b, b_strides), &c) {
            let what = format!("{m}x{n}x{k} {:?}", spec.b);
            assert_close(isa, &what, &decode(DType::F32, &c), &expected, sum_tolerance(k));
        }
    }
}

/// What numbers a row of A and a column of B are made of in tests of errors.
#[derive(Clone, Copy, Debug)]
enum Numbers {
    /// Of about one size.
    Uniform,
    Normal,
    /// Many small ones and few large ones, as gradients are.
    LogNormal,
    /// Of sizes that differ by up to 2^20 within a row.
    AllSizes,
    /// A's of a large size in one half of the depth, B's in the other.
    Opposite,
    /// One element of a row larger than the others, where B has small ones.
    Outlier,
}

impl Numbers {
    /// Elements of `lines` rows of A, or columns of B, of this depth.
    fn make(self, random: &mut Random, lines: usize, depth: usize, is_b: bool) -> Buffer {
        let mut numbers = Buffer { bytes: Vec::new(), values: Vec::new() };
        for at in 0..lines * depth {
            let k = at % depth;
            let normal: f64 = (0..12).map(|_| (random.value() + 1.0) / 2.0).sum::<f64>() - 6.0;
            let x = match self {
                Numbers::Uniform => random.value(),
                Numbers::Normal => normal,
                Numbers::LogNormal => random.value().signum() * (1.5 * normal).exp(),
                Numbers::AllSizes => random.value() * (random.below(21) as f64).exp2(),
                Numbers::Opposite if (k < depth / 2) == is_b => normal * 1e-3,
                Numbers::Outlier if k == depth / 3 => normal * if is_b { 0.03 } else { 30.0 },
                Numbers::Opposite | Numbers::Outlier => normal,
            };
            let (bytes, value) = encode(DType::F32, x as f32);
            numbers.bytes.extend(bytes);
            numbers.values.push(value);
        }
        numbers
    }
}

#[test]
fn f32_products_are_as_right_on_every_instruction_set_as_chains_of_multiply_adds() {
    use Numbers::{AllSizes, LogNormal, Normal, Opposite, Outlier, Uniform};
    // Half of the last place of f32.
    const HALF_ULP: f64 = f32::EPSILON as f64 / 2.0;
    let mut random = Random(11);
    for ((m, n, k), numbers) in [(33, 40, 32), (40, 33, 192), (64, 48, 1152), (40, 33, 4608)]
        .into_iter()
        .flat_map(|shape| {
            [Uniform, Normal, LogNormal, AllSizes, Opposite, Outlier]
                .map(|numbers| (shape, numbers))
        })
    {
        let a = numbers.make(&mut random, m, k, false);
        let b = numbers.make(&mut random, n, k, true);
        let expected = product((m, n, k), |r, i| a.values[r * k + i], |i, c| b.values[c * k + i]);
        // Root mean square of errors, relative to the sum of absolute products.
        let error = |found: &[f64]| {
            let squares =
                found.iter().zip(&expected).map(|(x, (y, scale))| ((x - y) / scale).powi(2));
            (squares.sum::<f64>() / found.len() as f64).sqrt()
        };
        let mut chains = Vec::with_capacity(m * n);
        for (r, c) in (0..m).flat_map(|r| (0..n).map(move |c| (r, c))) {
            let terms = (0..k).map(|i| (a.values[r * k + i] as f32, b.values[c * k + i] as f32));
            chains.push(f64::from(terms.fold(0f32, |sum, (a, b)| a.mul_add(b, sum))));
        }
        let limit = error(&chains);
        let empty = vec![0xff; m * n * 4];
        for (isa, c) in run(&of_digits(m, n, k, (1, k)), &Operands::plain(&a, &b, (1, k)), &empty) {
            let error = error(&decode(DType::F32, &c));
            // Blocks of the depth are summed one by one, which no chain is worse for but a short one.
            let what = format!("{isa} {numbers:?} {m}x{n}x{k}: {error:e}, a chain {limit:e}");
            // Digits hold what a large element's size leaves.
            let is_uneven = match numbers {
                Outlier => true,
                LogNormal => k < 1152,
                _ => false,
            };
            let least = if is_uneven { 8.0 * HALF_ULP } else { HALF_ULP };
            assert!(error <= (1.1 * limit).max(least), "{what}");
        }
    }
}
