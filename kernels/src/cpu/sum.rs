//! Sums of many f32 that lose almost nothing: Knuth's two-sum, lane by lane (The Art of Computer
//! Programming, volume 2, section 4.2.2). Six operations an element, hidden behind memory; the
//! error does not grow with the length, so statistics need no second opinion in f64.

use crate::simd::{MAX_LANES, Simd};

use super::lanes::load_from;

/// A running sum and what its roundings lost, in each lane.
#[derive(Clone, Copy)]
pub(crate) struct Sum<S: Simd> {
    sum: S::F,
    lost: S::F,
}

impl<S: Simd> Sum<S> {
    /// Zero.
    #[inline(always)]
    pub(crate) fn zero(s: S) -> Sum<S> {
        Sum { sum: s.splat(0.0), lost: s.splat(0.0) }
    }

    /// Adds `x` to the lanes.
    #[inline(always)]
    pub(crate) fn add(&mut self, s: S, x: S::F) {
        let sum = s.add(self.sum, x);
        let added = s.sub(sum, self.sum);
        let lost = s.add(s.sub(self.sum, s.sub(sum, added)), s.sub(x, added));
        self.lost = s.add(self.lost, lost);
        self.sum = sum;
    }

    /// Every lane by itself.
    #[inline(always)]
    pub(crate) fn lanes(self, s: S) -> [f64; MAX_LANES] {
        let (mut sums, mut losses) = ([0f32; MAX_LANES], [0f32; MAX_LANES]);
        // SAFETY: both arrays hold MAX_LANES >= LANES values.
        unsafe {
            s.store(sums.as_mut_ptr(), self.sum);
            s.store(losses.as_mut_ptr(), self.lost);
        }
        std::array::from_fn(|lane| f64::from(sums[lane]) + f64::from(losses[lane]))
    }

    /// The sum over all lanes.
    #[inline(always)]
    pub(crate) fn total(self, s: S) -> f64 {
        self.lanes(s).iter().sum()
    }
}

/// Sum of `f(x[i])` for `i < n`.
///
/// # Safety
/// `x` is readable for `n` values.
#[inline(always)]
pub(crate) unsafe fn sum_of<S: Simd>(
    s: S,
    x: *const f32,
    n: usize,
    f: impl Fn(S::F) -> S::F,
) -> f64 {
    // SAFETY: passed on.
    let x = unsafe { load_from(s, x) };
    sum_each(
        s,
        n,
        #[inline(always)]
        |i, count| f(x(i, count)),
    )
}

/// Sum of the `n` values that `f(i, count)` has in its first lanes, `count` from `i` on.
#[inline(always)]
pub(crate) fn sum_each<S: Simd>(s: S, n: usize, f: impl Fn(usize, usize) -> S::F) -> f64 {
    let mut sums = [Sum::zero(s); 2];
    let mut i = 0;
    while i + 2 * S::LANES <= n {
        sums[0].add(s, f(i, S::LANES));
        sums[1].add(s, f(i + S::LANES, S::LANES));
        i += 2 * S::LANES;
    }
    let mut tail = 0.0;
    while i < n {
        let count = S::LANES.min(n - i);
        let mut lanes = [0f32; MAX_LANES];
        // SAFETY: the array holds MAX_LANES >= LANES values.
        unsafe { s.store(lanes.as_mut_ptr(), f(i, count)) };
        // Lanes behind the end may hold anything.
        tail += lanes[..count].iter().map(|&x| f64::from(x)).sum::<f64>();
        i += count;
    }
    sums[0].total(s) + sums[1].total(s) + tail
}

/// Largest of `n` values; negative infinity of none.
///
/// # Safety
/// `x` is readable for `n` values.
#[inline(always)]
pub(crate) unsafe fn max_of<S: Simd>(s: S, x: *const f32, n: usize) -> f32 {
    let mut max = s.splat(f32::NEG_INFINITY);
    let mut i = 0;
    // SAFETY: lanes below n.
    unsafe {
        while i + S::LANES <= n {
            max = s.max(max, s.load(x.add(i)));
            i += S::LANES;
        }
        let mut largest = s.reduce_max(max);
        while i < n {
            largest = largest.max(*x.add(i));
            i += 1;
        }
        largest
    }
}
