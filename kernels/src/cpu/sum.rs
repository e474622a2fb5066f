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

    /// One that has run: what its lanes are, and what they lost.
    #[inline(always)]
    pub(crate) fn of(sum: S::F, lost: S::F) -> Sum<S> {
        Sum { sum, lost }
    }

    /// What [`Sum::of`] takes.
    #[inline(always)]
    pub(crate) fn parts(self) -> (S::F, S::F) {
        (self.sum, self.lost)
    }

    /// The lanes, rounded once.
    #[inline(always)]
    pub(crate) fn rounded(self, s: S) -> S::F {
        s.add(self.sum, self.lost)
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

    /// Adds the lanes of another sum to those of this one.
    #[inline(always)]
    pub(crate) fn join(&mut self, s: S, other: Sum<S>) {
        self.add(s, other.sum);
        self.lost = s.add(self.lost, other.lost);
    }

    /// All lanes together.
    #[inline(always)]
    fn total(self, s: S) -> f64 {
        let mut lanes = self.lanes(s);
        // Halves are added, so that no lane waits for all before it.
        let mut half = MAX_LANES / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] += lanes[half + lane];
            }
            half /= 2;
        }
        lanes[0]
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
    sum_lanes(s, n, f).total(s)
}

/// The same, where the lanes are left to be added.
#[inline(always)]
pub(crate) fn sum_lanes<S: Simd>(s: S, n: usize, f: impl Fn(usize, usize) -> S::F) -> Sum<S> {
    let mut sums = [Sum::zero(s); 2];
    let mut i = 0;
    while i + 2 * S::LANES <= n {
        sums[0].add(s, f(i, S::LANES));
        sums[1].add(s, f(i + S::LANES, S::LANES));
        i += 2 * S::LANES;
    }
    if i + S::LANES <= n {
        sums[0].add(s, f(i, S::LANES));
        i += S::LANES;
    }
    if i < n {
        // Lanes behind the end may hold anything.
        sums[1].add(s, first_lanes(s, f(i, n - i), n - i));
    }
    sums[0].join(s, sums[1]);
    sums[0]
}

/// Sums of `count` rows, at most [`Simd::LANES`], of which `of_row` leaves the lanes to be added. Adding up lanes
/// takes longer than summing a short row, so those of all rows are turned: then a lane adds up a row.
#[inline(always)]
pub(crate) fn totals<S: Simd>(
    s: S,
    count: usize,
    of_row: impl Fn(usize) -> Sum<S>,
) -> [f64; MAX_LANES] {
    if count == 1 {
        let mut totals = [0.0; MAX_LANES];
        totals[0] = of_row(0).total(s);
        return totals;
    }
    const SQUARE: usize = MAX_LANES * MAX_LANES;
    // Sums, and what they lost, by rows and then by lanes.
    let (mut rows, mut lanes) = ([[0f32; SQUARE]; 2], [[0f32; SQUARE]; 2]);
    for row in 0..count.min(S::LANES) {
        let Sum { sum, lost } = of_row(row);
        for (rows, part) in rows.iter_mut().zip([sum, lost]) {
            // SAFETY: row < LANES <= MAX_LANES.
            unsafe { s.store(rows.as_mut_ptr().add(row * S::LANES), part) };
        }
    }
    for (rows, lanes) in rows.iter().zip(&mut lanes) {
        // SAFETY: both hold LANES rows of LANES values.
        unsafe { s.transpose_square(rows.as_ptr(), S::LANES, lanes.as_mut_ptr(), S::LANES) };
    }
    let mut total = Sum::zero(s);
    for lane in 0..S::LANES {
        // SAFETY: lane < LANES.
        let [sum, lost] = [0, 1].map(|part: usize| unsafe {
            let lanes: &[f32; SQUARE] = &lanes[part];
            s.load(lanes.as_ptr().add(lane * S::LANES))
        });
        total.join(s, Sum { sum, lost });
    }
    total.lanes(s)
}

/// The first `n` lanes of `x`, zeros behind them. In registers: what was just stored cannot be loaded again with
/// a mask before it is in the cache.
#[inline(always)]
fn first_lanes<S: Simd>(s: S, x: S::F, n: usize) -> S::F {
    const NUMBERS: [f32; MAX_LANES] =
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
    // SAFETY: there are MAX_LANES >= LANES numbers.
    let numbers = unsafe { s.load(NUMBERS.as_ptr()) };
    s.select(s.lt(numbers, s.splat(n as f32)), x, s.splat(0.0))
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
