//! The machine's limit: multiply-adds per second when nothing but registers is involved.
//!
//! In f32 by multiply-add; in bf16 by the instruction that multiplies pairs (`vdpbf16ps`), where the CPU has it.

use std::hint::black_box;
use std::time::Instant;

use kernels::isa::Kind;
use kernels::simd::{Simd, SimdJob, dispatch};
use kernels::{Isa, Pool, isa};
use ops::DType;

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

/// FLOP/s of `pool`'s threads together in `dtype`: that of f32 where the CPU has no bf16 arithmetic.
pub fn peak(isa: Isa, dtype: DType, pool: &Pool) -> f64 {
    let has_bf16 = isa.kind() == Kind::Avx512 && isa::has_avx512_bf16();
    if dtype == DType::Bf16 && has_bf16 { bf16_peak(pool) } else { fma_peak(isa, pool) }
}

/// FLOP/s of `pool`'s threads together in f32, best of three short runs.
pub fn fma_peak(isa: Isa, pool: &Pool) -> f64 {
    best(pool, 2 * isa.lanes(), &|| {
        black_box(dispatch(isa, Chains));
    })
}

/// As [`fma_peak`], for [`CHAINS`] times [`STEPS`] steps of `flops_per_step` in `chains`.
fn best(pool: &Pool, flops_per_step: usize, chains: &(dyn Fn() + Sync)) -> f64 {
    let items = 4 * pool.threads();
    let flops = (items * CHAINS * STEPS * flops_per_step) as f64;
    let run = || {
        let start = Instant::now();
        pool.run(items, &|_, _| chains());
        flops / start.elapsed().as_secs_f64()
    };
    (0..3).map(|_| run()).fold(0.0, f64::max)
}

#[cfg(target_arch = "x86_64")]
fn bf16_peak(pool: &Pool) -> f64 {
    // Each lane of 32 bits takes two products and two sums.
    best(pool, 4 * Isa::detect().lanes(), &|| {
        // SAFETY: `peak` asked the CPU for the feature.
        black_box(unsafe { bf16_chains() });
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16_peak(_: &Pool) -> f64 {
    unreachable!("`peak` found no such instruction")
}

/// # Safety
/// The CPU has AVX-512 F and BF16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16_chains() -> f32 {
    use std::arch::x86_64::{
        _mm512_add_ps, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_reduce_add_ps, _mm512_set1_ps,
    };
    let one = |x: f32| _mm512_set1_ps(black_box(x));
    let (a, b) =
        (_mm512_cvtne2ps_pbh(one(1e-3), one(-1e-3)), _mm512_cvtne2ps_pbh(one(1.0), one(1.0)));
    let mut chains = [_mm512_set1_ps(0.0); CHAINS];
    for _ in 0..STEPS {
        for chain in &mut chains {
            *chain = _mm512_dpbf16_ps(*chain, a, b);
        }
    }
    let sum = chains.into_iter().fold(_mm512_set1_ps(0.0), |sum, chain| _mm512_add_ps(sum, chain));
    _mm512_reduce_add_ps(sum)
}
