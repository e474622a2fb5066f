//! Transposing 32-bit elements in blocks of 4 x 4, in registers: compilers turn the plain loop into
//! gathers and scatters, which cost a load or store per element and more.

/// `to[j * to_row + i] = from[i * from_row + j]` for `i < rows` and `j < columns`.
///
/// # Safety
/// Both are valid for the elements that the counts and steps reach, and do not overlap.
#[inline(always)]
pub(crate) unsafe fn transpose(
    (rows, columns): (usize, usize),
    from: *const f32,
    from_row: usize,
    to: *mut f32,
    to_row: usize,
) {
    let (whole_rows, whole_columns) = (rows / 4 * 4, columns / 4 * 4);
    // SAFETY: blocks and what is left of them lie within the counts.
    unsafe {
        for i in (0..whole_rows).step_by(4) {
            for j in (0..whole_columns).step_by(4) {
                block(from.add(i * from_row + j), from_row, to.add(j * to_row + i), to_row);
            }
            for j in whole_columns..columns {
                for k in i..i + 4 {
                    *to.add(j * to_row + k) = *from.add(k * from_row + j);
                }
            }
        }
        for i in whole_rows..rows {
            for j in 0..columns {
                *to.add(j * to_row + i) = *from.add(i * from_row + j);
            }
        }
    }
}

/// Transposes one block of 4 x 4.
///
/// # Safety
/// As [`transpose`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn block(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
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

/// Transposes one block of 4 x 4.
///
/// # Safety
/// As [`transpose`].
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
unsafe fn block(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_lands_across_the_diagonal() {
        for (rows, columns) in [(1, 1), (4, 4), (5, 7), (16, 72), (3, 9), (8, 2)] {
            let from: Vec<f32> = (0..rows * (columns + 1)).map(|i| i as f32).collect();
            let mut to = vec![-1.0; columns * (rows + 2)];
            // SAFETY: both hold their rows with gaps of 1 and 2.
            unsafe {
                transpose((rows, columns), from.as_ptr(), columns + 1, to.as_mut_ptr(), rows + 2);
            }
            for i in 0..rows {
                for j in 0..columns {
                    assert_eq!(to[j * (rows + 2) + i], from[i * (columns + 1) + j]);
                }
            }
        }
    }
}
