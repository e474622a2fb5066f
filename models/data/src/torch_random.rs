//! The numbers of torch's generator for CPUs, which upstream shuffles epochs with.

use crate::mersenne_twister::MersenneTwister;

/// A `torch.Generator` for CPUs.
#[derive(Clone, Debug)]
pub struct TorchRandom(MersenneTwister);

impl TorchRandom {
    /// Most elements of a permutation: above, torch draws in another way.
    pub const MAX_PERMUTED: usize = u32::MAX as usize / 20;

    /// As `manual_seed(seed)`, which uses the low 32 bits.
    pub fn new(seed: u64) -> TorchRandom {
        TorchRandom(MersenneTwister::from_word(seed as u32))
    }

    /// As `torch.randperm(n)`; `n` is below [`TorchRandom::MAX_PERMUTED`].
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        debug_assert!(n < TorchRandom::MAX_PERMUTED, "{n} elements");
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in 0..n.saturating_sub(1) {
            let other = i + self.0.word() as usize % (n - i);
            order.swap(i, other);
        }
        order
    }

    /// As one element of `torch.rand` in f32: 24 bits, in 0..1.
    pub fn uniform(&mut self) -> f32 {
        (self.0.word() & 0x00ff_ffff) as f32 / 16_777_216.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of torch; a seed's high half is not used, and 100,000 elements take many states.
    #[test]
    fn permutations_are_torchs() {
        let order = TorchRandom::new((1 << 40) + 7).permutation(12);
        assert_eq!(order, [3, 4, 0, 5, 7, 9, 11, 6, 8, 1, 10, 2]);
        let order = TorchRandom::new(5).permutation(100_000);
        let sum: u64 =
            order.iter().zip(0..).map(|(&element, place)| u64::from(element) * place).sum();
        assert_eq!((sum, &order[..3]), (250_048_928_748_506, &[53_411, 99_184, 41_565][..]));
    }

    #[test]
    fn a_permutation_has_each_element_once() {
        for n in [0, 1, 2, 100] {
            let mut order = TorchRandom::new(3).permutation(n);
            order.sort_unstable();
            assert_eq!(order, (0..n as u32).collect::<Vec<_>>());
        }
    }
}
