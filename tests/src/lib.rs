//! What the suites share: a seeded generator, operands for examples, and distances.
//!
//! Everything is a function of its seed, so a failure repeats.

pub mod compiled;
pub mod golden;
pub mod gradients;
pub mod model_cases;
pub mod random_graph;
pub mod whole_run;

use ops::{DType, Example, Tensor, TensorType};

/// `SplitMix64` (Steele et al., Fast Splittable Pseudorandom Number Generators).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The generator of a name, for tests that run many named cases.
    pub fn named(name: &str) -> Rng {
        Rng(name.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(257) ^ u64::from(byte)))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// A number in `low..=high`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.bits() >> 11) as f64 / ((1u64 << 53) - 1) as f64
    }

    /// A tensor of values in `range`, rounded to the type: floats evenly, integers among those of
    /// the range, booleans by a fair coin.
    pub fn tensor(&mut self, ty: &TensorType, range: (f64, f64)) -> Tensor {
        let n = ty.count();
        let (low, high) = range;
        if ty.dtype().is_float() {
            let values = (0..n).map(|_| self.uniform(low, high)).collect();
            return Tensor::floats(ty.clone(), values).rounded();
        }
        let (low, high) = match ty.dtype() {
            DType::Bool => (0, 1),
            DType::U8 => (low.max(0.0) as i64, high.max(0.0) as i64),
            _ => (low.ceil() as i64, high.floor() as i64),
        };
        let choices = (high - low + 1) as usize;
        let values = (0..n).map(|_| low + self.below(choices) as i64).collect();
        Tensor::ints(ty.clone(), values)
    }

    /// One tensor for each operand of `example`.
    pub fn operands(&mut self, example: &Example) -> Vec<Tensor> {
        example.args.iter().map(|ty| self.tensor(ty, example.range)).collect()
    }
}

/// `|found - expected| / |expected|` in the Euclidean norm; the plain distance where `expected` is
/// zero.
pub fn relative_l2(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len(), "distances need as many elements");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let distance = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let scale = norm(&mut expected.iter().copied());
    if scale == 0.0 { distance } else { distance / scale }
}
