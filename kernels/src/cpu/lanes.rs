//! Small loops over one row of f32, and the exponential of softmax.

use crate::simd::{Simd, prefetch_l2};

/// `to = from`.
///
/// # Safety
/// Both have `n` values and do not overlap.
#[inline(always)]
pub(crate) unsafe fn copy<S: Simd>(s: S, from: *const f32, n: usize, to: *mut f32) {
    let mut i = 0;
    // SAFETY: lanes below n.
    unsafe {
        while i + S::LANES <= n {
            s.store(to.add(i), s.load(from.add(i)));
            i += S::LANES;
        }
        if i < n {
            s.store_n(to.add(i), s.load_n(from.add(i), n - i), n - i);
        }
    }
}

/// `to = from * factor`.
///
/// # Safety
/// Both have `n` values; they are the same or do not overlap.
#[inline(always)]
pub(crate) unsafe fn scale_to<S: Simd>(
    s: S,
    from: *const f32,
    n: usize,
    factor: f32,
    to: *mut f32,
) {
    let factor = s.splat(factor);
    let mut i = 0;
    // SAFETY: lanes below n.
    unsafe {
        while i + S::LANES <= n {
            s.store(to.add(i), s.mul(s.load(from.add(i)), factor));
            i += S::LANES;
        }
        if i < n {
            s.store_n(to.add(i), s.mul(s.load_n(from.add(i), n - i), factor), n - i);
        }
    }
}

/// Asks for the lines of `n` f32 from `row` on.
#[inline(always)]
pub(crate) fn prefetch_row(row: *const u8, n: usize) {
    for byte in (0..n * 4 + 63).step_by(64) {
        prefetch_l2(row.wrapping_add(byte));
    }
}

/// `2^x` for `x <= 0`, within 2 ulp; below -126 it is `2^-126`, which no sum of weights feels. The
/// polynomial is that of the Cephes library (single precision).
#[inline(always)]
pub(crate) fn exp2_nonpositive<S: Simd>(s: S, x: S::F) -> S::F {
    // 1.5 * 2^23: adding it rounds to an integer, which then is in the low bits.
    let magic = s.splat(12_582_912.0);
    let x = s.max(x, s.splat(-126.0));
    let biased = s.add(x, magic);
    let r = s.sub(x, s.sub(biased, magic));
    let mut y = s.splat(1.535_336_2e-4);
    for c in [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0] {
        y = s.mul_add(y, r, s.splat(c));
    }
    s.add_bits(y, s.shl::<23>(biased))
}
