//! Transposing 32-bit elements in blocks of 4 x 4, in registers: compilers turn the plain loop into
//! gathers and scatters, which cost a load or store per element and more.

use crate::simd::{Simd, transpose_4x4};

/// As [`transpose`], in squares of a vector's length where they fit.
///
/// # Safety
/// As [`transpose`].
#[inline(always)]
pub(crate) unsafe fn transpose_in<S: Simd>(
    s: S,
    (rows, columns): (usize, usize),
    from: *const f32,
    from_row: usize,
    to: *mut f32,
    to_row: usize,
) {
    let whole = columns / S::LANES * S::LANES;
    let mut i = 0;
    // SAFETY: squares and what is left of them lie within the counts.
    unsafe {
        while i + S::LANES <= rows {
            let from = from.add(i * from_row);
            for j in (0..whole).step_by(S::LANES) {
                s.transpose_square(from.add(j), from_row, to.add(j * to_row + i), to_row);
            }
            let (from, to) = (from.add(whole), to.add(whole * to_row + i));
            transpose((S::LANES, columns - whole), from, from_row, to, to_row);
            i += S::LANES;
        }
        transpose((rows - i, columns), from.add(i * from_row), from_row, to.add(i), to_row);
    }
}

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
                transpose_4x4(from.add(i * from_row + j), from_row, to.add(j * to_row + i), to_row);
            }
            for j in whole_columns..columns {
                for k in i..i + 4 {
                    let x = from.add(k * from_row + j).read_unaligned();
                    to.add(j * to_row + k).write_unaligned(x);
                }
            }
        }
        for i in whole_rows..rows {
            for j in 0..columns {
                let x = from.add(i * from_row + j).read_unaligned();
                to.add(j * to_row + i).write_unaligned(x);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::simd::{SimdJob, dispatch};

    /// [`transpose_in`] as a job.
    struct Transpose<'a> {
        dims: (usize, usize),
        from: &'a [f32],
        from_row: usize,
        to: &'a mut [f32],
        to_row: usize,
    }

    impl SimdJob for Transpose<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let Transpose { dims, from, from_row, to, to_row } = self;
            // SAFETY: both hold their rows.
            unsafe { transpose_in(s, dims, from.as_ptr(), from_row, to.as_mut_ptr(), to_row) };
        }
    }

    #[test]
    fn every_element_lands_across_the_diagonal() {
        let dims = [(1, 1), (4, 4), (5, 7), (16, 72), (3, 9), (8, 2), (72, 16), (37, 35)];
        for (rows, columns) in dims {
            let (from_row, to_row) = (columns + 1, rows + 2);
            let from: Vec<f32> = (0..rows * from_row).map(|i| i as f32).collect();
            for isa in Isa::available() {
                let mut to = vec![-1.0; columns * to_row];
                let dims = (rows, columns);
                dispatch(isa, Transpose { dims, from: &from, from_row, to: &mut to, to_row });
                for i in 0..rows {
                    for j in 0..columns {
                        assert_eq!(to[j * to_row + i], from[i * from_row + j], "{isa} {i} {j}");
                    }
                }
                let gaps = (0..columns * to_row).filter(|at| at % to_row >= rows);
                assert!(gaps.into_iter().all(|at| to[at] == -1.0), "{isa}: wrote into a gap");
            }
        }
    }
}
