//! Small loops over one row of f32.

use ops::DType;

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

/// Rounds `n` values to bf16.
///
/// # Safety
/// `from` is readable and `to` writable for `n` values.
#[inline(always)]
pub(crate) unsafe fn store_bf16<S: Simd>(s: S, from: *const f32, n: usize, to: *mut u16) {
    let mut i = 0;
    // SAFETY: lanes below n.
    unsafe {
        while i + S::LANES <= n {
            s.store_bf16(to.add(i), s.load(from.add(i)));
            i += S::LANES;
        }
        if i < n {
            s.store_bf16_n(to.add(i), s.load_n(from.add(i), n - i), n - i);
        }
    }
}

/// Calls `f(i, count)` for the vectors of `n` elements.
#[inline(always)]
pub(crate) fn each(n: usize, lanes: usize, f: impl Fn(usize, usize)) {
    let mut i = 0;
    while i + lanes <= n {
        f(i, lanes);
        i += lanes;
    }
    if i < n {
        f(i, n - i);
    }
}

/// Loads from a row of f32; lanes behind its end are zero.
///
/// # Safety
/// The row has the elements that are asked for.
#[inline(always)]
pub(crate) unsafe fn load_from<S: Simd>(
    s: S,
    from: *const f32,
) -> impl Fn(usize, usize) -> S::F + Copy {
    // SAFETY: the caller's promise.
    #[inline(always)]
    move |i, n| unsafe {
        if n == S::LANES { s.load(from.add(i)) } else { s.load_n(from.add(i), n) }
    }
}

/// Loads from rows of `n` f32, one after the other: of a row, from an element on, so many.
///
/// # Safety
/// The rows have the elements that are asked for.
#[inline(always)]
pub(crate) unsafe fn load_from_rows<S: Simd>(
    s: S,
    from: *const f32,
    n: usize,
) -> impl Fn(usize, usize, usize) -> S::F + Copy {
    // SAFETY: the caller's promise.
    #[inline(always)]
    move |row, i, count| unsafe { load_from(s, from.wrapping_add(row * n))(i, count) }
}

/// Loads whole vectors of a row that was just stored: masked loads would wait for the stores to
/// reach the cache.
///
/// # Safety
/// The row has whole vectors, zeros behind its end.
#[inline(always)]
pub(crate) unsafe fn load_whole<S: Simd>(s: S, from: *const f32) -> impl Fn(usize, usize) -> S::F {
    // SAFETY: the caller's promise.
    #[inline(always)]
    move |i, _| unsafe { s.load(from.add(i)) }
}

/// As [`load_from`] from a row of bf16.
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn load_from_bf16<S: Simd>(
    s: S,
    from: *const u16,
) -> impl Fn(usize, usize) -> S::F {
    // SAFETY: the caller's promise.
    #[inline(always)]
    move |i, n| unsafe {
        if n == S::LANES { s.load_bf16(from.add(i)) } else { s.load_bf16_n(from.add(i), n) }
    }
}

/// Loads `n <= LANES` floats of type `dtype` as f32; zero behind them.
///
/// # Safety
/// `from` is readable for the elements.
#[inline(always)]
pub(crate) unsafe fn load_as_f32<S: Simd>(s: S, dtype: DType, from: *const u8, n: usize) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        match (dtype, n == S::LANES) {
            (DType::Bf16, true) => s.load_bf16(from.cast()),
            (DType::Bf16, false) => s.load_bf16_n(from.cast(), n),
            (DType::F16, true) => s.load_f16(from.cast()),
            (DType::F16, false) => s.load_f16_n(from.cast(), n),
            (_, true) => s.load(from.cast()),
            (_, false) => s.load_n(from.cast(), n),
        }
    }
}

/// Words of pairs of bf16, exact: both are f32 that bf16 holds, `low` goes to the lower half.
#[inline(always)]
pub(crate) fn join_halves<S: Simd>(s: S, low: S::F, high: S::F) -> S::F {
    s.or(s.shr::<16>(low), high)
}

/// Stores whole vectors of a row of f32.
///
/// # Safety
/// The row has them.
#[inline(always)]
pub(crate) unsafe fn store_to<S: Simd>(s: S, to: *mut f32) -> impl Fn(usize, S::F, usize) + Copy {
    // SAFETY: the caller's promise.
    #[inline(always)]
    move |i, x, _| unsafe { s.store(to.add(i), x) }
}

/// Asks for the lines of `bytes` bytes from `row` on.
#[inline(always)]
pub(crate) fn prefetch_row(row: *const u8, bytes: usize) {
    for byte in (0..bytes + 63).step_by(64) {
        prefetch_l2(row.wrapping_add(byte));
    }
}
