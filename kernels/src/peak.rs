//! The machine's limits: arithmetic per second when nothing but registers is involved, and bytes per
//! second when nothing is computed.
//!
//! Several independent chains hide the latency of each instruction. The instructions that make the
//! rate are the ones that kernels use, so no kernel can be faster.

use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ops::DType;

use crate::isa::Bf16Dot;
use crate::simd::{Simd, SimdJob, TILE_ROWS, TILE_WORDS, TileSession, dispatch};
use crate::{Isa, Pool};

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

/// Rounds of products of tiles in one run.
const ROUNDS: usize = 1 << 17;
/// Multiply-adds of a round: four products of tiles, whose words are pairs.
const ROUND: usize = 4 * TILE_ROWS * TILE_ROWS * 2 * TILE_WORDS;
/// Products of tiles of bytes for one of f32 in digits, each of which takes half the time of one of bf16.
const PRODUCTS_OF_DIGITS: f64 = 6.0;

/// FLOP/s of `pool`'s threads together in `dtype`: that of f32 where the CPU has no bf16 arithmetic.
pub fn peak(isa: Isa, dtype: DType, pool: &Pool) -> f64 {
    let bf16 = if dtype == DType::Bf16 { bf16_peak(isa, pool) } else { None };
    bf16.unwrap_or_else(|| f32_peak(isa, pool))
}

/// f32 FLOP/s of `pool`'s threads together, best of three short runs: of multiply-adds in vector registers, or in tile
/// registers, which multiply digits of f32.
pub fn f32_peak(isa: Isa, pool: &Pool) -> f64 {
    let rate = best_rate(pool, CHAINS * STEPS * isa.lanes(), &|| dispatch(isa, Chains));
    let in_tiles = isa.tiles().and_then(|_| bf16_peak(isa, pool));
    in_tiles.map_or(rate, |bf16| rate.max(2.0 * bf16 / PRODUCTS_OF_DIGITS))
}

/// The same for products of bf16 pairs, in tile registers where `isa` has them; `None` where it has neither.
pub fn bf16_peak(isa: Isa, pool: &Pool) -> Option<f64> {
    if let Some(tiles) = isa.tiles() {
        return Some(best_rate(pool, ROUNDS * ROUND, &|| {
            TileSession::begin(tiles).spin(ROUNDS);
            0.0
        }));
    }
    let dot = isa.bf16_dot()?;
    Some(best_rate(pool, CHAINS * STEPS * 2 * isa.lanes(), &|| dispatch(isa, InPairs(dot))))
}

/// `products` is the number of multiply-adds of one run.
fn best_rate(pool: &Pool, products: usize, run: &(dyn Fn() -> f32 + Sync)) -> f64 {
    let items = 4 * pool.threads();
    let flops = (2 * items * products) as f64;
    let rate = || {
        let start = Instant::now();
        pool.run(items, &|_, _| {
            black_box(run());
        });
        flops / start.elapsed().as_secs_f64()
    };
    (0..3).map(|_| rate()).fold(0.0, f64::max)
}

/// Bytes a second at which `pool`'s threads together read and write blocks of `bytes` in all, each
/// thread its own part over and over: best of three.
pub fn memory_rates(isa: Isa, pool: &Pool, bytes: usize) -> [f64; 2] {
    let count = (bytes / 4 / pool.threads()).next_multiple_of(UNROLL * isa.lanes());
    let blocks: Vec<Mutex<Vec<f32>>> =
        (0..pool.threads()).map(|i| Mutex::new(vec![i as f32; count])).collect();
    // Enough passes that starting the threads does not count.
    let passes = (PASS_BYTES / (4 * count)).max(1);
    let rate = |writes: bool| {
        let run = || {
            let start = Instant::now();
            pool.run(blocks.len(), &|item, _| {
                let mut block = blocks[item].lock().unwrap_or_else(PoisonError::into_inner);
                for _ in 0..passes {
                    black_box(dispatch(isa, Pass { block: &mut block, writes }));
                }
            });
            (passes * 4 * count * blocks.len()) as f64 / start.elapsed().as_secs_f64()
        };
        (0..3).map(|_| run()).fold(0.0, f64::max)
    };
    [rate(false), rate(true)]
}

/// Bytes that each thread moves in one measurement, at least.
const PASS_BYTES: usize = 64 << 20;

/// Vectors that are read or written per turn of the loop.
const UNROLL: usize = 8;

/// One pass over a block of whole turns: reads all of it, or writes all of it.
struct Pass<'a> {
    block: &'a mut [f32],
    writes: bool,
}

impl SimdJob for Pass<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let value = s.splat(black_box(1.0));
        let mut sums = [s.splat(0.0); UNROLL];
        for turn in self.block.chunks_exact_mut(UNROLL * S::LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                let p = turn[i * S::LANES..][..S::LANES].as_mut_ptr();
                // SAFETY: the slice has one vector of elements.
                unsafe {
                    if self.writes {
                        s.store(p, value);
                    } else {
                        *sum = s.add(*sum, s.load(p));
                    }
                }
            }
        }
        s.reduce_add(sums.into_iter().fold(s.splat(0.0), |a, b| s.add(a, b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dot_product_is_where_the_instruction_set_has_it() {
        let pool = Pool::new(1).unwrap();
        for isa in Isa::available() {
            let rate = bf16_peak(isa, &pool);
            assert_eq!(rate.is_some(), isa.bf16_dot().is_some(), "{isa}");
            assert!(rate.is_none_or(|rate| rate > 1e9), "{isa}: {rate:?}");
        }
    }

    #[test]
    fn near_memory_is_read_and_written_at_some_rate() {
        let pool = Pool::new(2).unwrap();
        for isa in Isa::available() {
            for rate in memory_rates(isa, &pool, 1 << 18) {
                assert!(rate.is_finite() && rate > 1e7, "{isa}: {rate}");
            }
        }
    }

    #[test]
    fn a_pass_writes_what_a_pass_reads() {
        for isa in Isa::available() {
            let mut block = vec![0.5; 4 * UNROLL * isa.lanes()];
            let sum = dispatch(isa, Pass { block: &mut block, writes: false });
            assert_eq!(sum, 0.5 * block.len() as f32);
            dispatch(isa, Pass { block: &mut block, writes: true });
            assert!(block.iter().all(|&x| x == 1.0));
        }
    }
}
