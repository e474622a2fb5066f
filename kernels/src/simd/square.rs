//! Transposing a square of 32-bit elements in registers, on any instruction set.

/// Transposes 4 rows of 4 elements.
///
/// # Safety
/// Both are valid for four rows of four elements, `from_row` and `to_row` apart, and do not overlap.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub unsafe fn transpose_4x4(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
    use std::arch::x86_64::*;
    // SAFETY: SSE is part of x86_64; the caller promises four rows of four elements on both sides.
    unsafe {
        let row = |i: usize| _mm_loadu_ps(from.add(i * from_row));
        let (a, b, c, d) = (row(0), row(1), row(2), row(3));
        let (ab_low, ab_high) = (_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
        let (cd_low, cd_high) = (_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
        _mm_storeu_ps(to, _mm_movelh_ps(ab_low, cd_low));
        _mm_storeu_ps(to.add(to_row), _mm_movehl_ps(cd_low, ab_low));
        _mm_storeu_ps(to.add(2 * to_row), _mm_movelh_ps(ab_high, cd_high));
        _mm_storeu_ps(to.add(3 * to_row), _mm_movehl_ps(cd_high, ab_high));
    }
}

/// Transposes 4 rows of 4 elements.
///
/// # Safety
/// Both are valid for four rows of four elements, `from_row` and `to_row` apart, and do not overlap.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub unsafe fn transpose_4x4(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
    // SAFETY: the caller promises four rows of four elements on both sides.
    unsafe {
        let rows: [[f32; 4]; 4] =
            std::array::from_fn(|i| from.add(i * from_row).cast::<[f32; 4]>().read_unaligned());
        for j in 0..4 {
            let column: [f32; 4] = std::array::from_fn(|i| rows[i][j]);
            to.add(j * to_row).cast::<[f32; 4]>().write_unaligned(column);
        }
    }
}
