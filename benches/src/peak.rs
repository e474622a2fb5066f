//! The machine's limit: multiply-adds per second when nothing but registers is involved.

use std::hint::black_box;
use std::time::Instant;

use kernels::isa::Bf16Dot;
use kernels::simd::{Simd, SimdJob, dispatch};
use kernels::{Isa, Pool};
use ops::DType;

/// Independent chains: more than latency times units of any CPU, few enough for its registers.
const CHAINS: usize = 12;
const STEPS: usize = 1 << 21;

/// f32 multiply-adds.
struct Chains;

impl SimdJob for Chains {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let factor = s.splat(black_box(0.999_999));
        let term = s.splat(black_box(1e-6));
        chains(s, |chain| s.mul_add(chain, factor, term))
    }
}

/// Products of bf16 pairs.
struct PairChains(Bf16Dot);

impl SimdJob for PairChains {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let pair = s.splat(black_box(1e-3));
        chains(s, |chain| s.dot_bf16(self.0, pair, pair, chain))
    }
}

struct InPairs(Bf16Dot);

impl SimdJob for InPairs {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        s.outline_bf16(self.0, PairChains(self.0))
    }
}

#[inline(always)]
fn chains<S: Simd>(s: S, step: impl Fn(S::F) -> S::F) -> f32 {
    let mut chains = [s.splat(1.0); CHAINS];
    for _ in 0..STEPS {
        for chain in &mut chains {
            *chain = step(*chain);
        }
    }
    let sum = chains.into_iter().fold(s.splat(0.0), |sum, chain| s.add(sum, chain));
    s.reduce_add(sum)
}

/// FLOP/s of `pool`'s threads together in `dtype`: that of f32 where the CPU has no bf16 arithmetic.
pub fn peak(isa: Isa, dtype: DType, pool: &Pool) -> f64 {
    let bf16 = if dtype == DType::Bf16 { bf16_peak(isa, pool) } else { None };
    bf16.unwrap_or_else(|| fma_peak(isa, pool))
}

/// f32 FLOP/s of `pool`'s threads together, best of three short runs.
pub fn fma_peak(isa: Isa, pool: &Pool) -> f64 {
    best_rate(pool, isa.lanes(), &|| dispatch(isa, Chains))
}

/// The same for products of bf16 pairs; `None` where `isa` has none.
pub fn bf16_peak(isa: Isa, pool: &Pool) -> Option<f64> {
    let dot = isa.bf16_dot()?;
    Some(best_rate(pool, 2 * isa.lanes(), &|| dispatch(isa, InPairs(dot))))
}

/// `products` is the number of multiply-adds of one step of one chain.
fn best_rate(pool: &Pool, products: usize, run: &(dyn Fn() -> f32 + Sync)) -> f64 {
    let items = 4 * pool.threads();
    let flops = (2 * items * CHAINS * STEPS * products) as f64;
    let rate = || {
        let start = Instant::now();
        pool.run(items, &|_, _| {
            black_box(run());
        });
        flops / start.elapsed().as_secs_f64()
    };
    (0..3).map(|_| rate()).fold(0.0, f64::max)
}
