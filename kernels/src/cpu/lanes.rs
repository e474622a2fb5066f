//! Small loops over one row of f32.

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

/// Asks for the lines of `bytes` bytes from `row` on.
#[inline(always)]
pub(crate) fn prefetch_row(row: *const u8, bytes: usize) {
    for byte in (0..bytes + 63).step_by(64) {
        prefetch_l2(row.wrapping_add(byte));
    }
}
