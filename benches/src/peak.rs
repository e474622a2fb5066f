//! The machine's limit: multiply-adds per second when nothing but registers is involved.

use std::hint::black_box;
use std::time::Instant;

use kernels::simd::{Simd, SimdJob, dispatch};
use kernels::{Isa, Pool};

/// Independent chains: more than latency times units of any CPU, few enough for its registers.
const CHAINS: usize = 12;
const STEPS: usize = 1 << 21;

struct Chains;

impl SimdJob for Chains {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let factor = s.splat(black_box(0.999_999));
        let term = s.splat(black_box(1e-6));
        let mut chains = [s.splat(1.0); CHAINS];
        for _ in 0..STEPS {
            for chain in &mut chains {
                *chain = s.mul_add(*chain, factor, term);
            }
        }
        let sum = chains.into_iter().fold(s.splat(0.0), |sum, chain| s.add(sum, chain));
        s.reduce_add(sum)
    }
}

/// FLOP/s of `pool`'s threads together, best of three short runs.
pub fn fma_peak(isa: Isa, pool: &Pool) -> f64 {
    let items = 4 * pool.threads();
    let flops = (2 * items * CHAINS * STEPS * isa.lanes()) as f64;
    let run = || {
        let start = Instant::now();
        pool.run(items, &|_, _| {
            black_box(dispatch(isa, Chains));
        });
        flops / start.elapsed().as_secs_f64()
    };
    (0..3).map(|_| run()).fold(0.0, f64::max)
}
