//! The one inner loop of attention: a register tile of `C[r, q] += sum_t A[r, t] B[t, q]`, where
//! columns are queries. Both products have this form, transposed: scores are keys times queries
//! (`t` runs over head dims), outputs are values times weights (`t` runs over keys). So the softmax
//! works lane by lane, and rows of keys and values are broadcast from where they are.

use crate::simd::{Simd, SimdJob};

/// Where the factors of a product lie.
#[derive(Clone, Copy)]
pub(crate) struct Factors {
    /// A, scalars.
    pub(crate) a: *const f32,
    /// Step between rows of A.
    pub(crate) a_row: usize,
    /// Step along t in A.
    pub(crate) a_step: usize,
    /// B, rows of query lanes.
    pub(crate) b: *const f32,
    /// Step between rows of B.
    pub(crate) b_step: usize,
    /// Terms of each sum.
    pub(crate) terms: usize,
}

/// `C` of `rows` rows, `c_row` values apart, by `V` vectors; added to what is there if `add`.
///
/// # Safety
/// A, B and C have the elements that the counts and steps reach.
#[inline(always)]
pub(crate) unsafe fn product<S: Simd, const V: usize>(
    s: S,
    factors: Factors,
    rows: usize,
    c: *mut f32,
    c_row: usize,
    add: bool,
) {
    // Tile heights: as many sums as registers hold beside a row of B and one scalar.
    let many = S::REGISTERS == 32;
    let mut row = 0;
    macro_rules! tiles {
        ($height:literal) => {
            while rows - row >= $height {
                // SAFETY: rows below `rows`.
                unsafe {
                    let a = factors.a.add(row * factors.a_row);
                    let factors = Factors { a, ..factors };
                    let c = c.add(row * c_row);
                    s.outline(Tile::<$height, V> { factors, c, c_row, add });
                }
                row += $height;
            }
        };
    }
    match (many, V) {
        (true, 1) => tiles!(16),
        (true, 2) => tiles!(12),
        (true, 3) => tiles!(8),
        (true, _) => tiles!(6),
        (false, 1) => tiles!(12),
        (false, _) => tiles!(6),
    }
    if many && V <= 2 {
        tiles!(8);
    }
    tiles!(4);
    tiles!(2);
    tiles!(1);
}

/// One tile of `R` rows by `V` vectors, in a function of its own: its sums take all registers.
struct Tile<const R: usize, const V: usize> {
    factors: Factors,
    c: *mut f32,
    c_row: usize,
    add: bool,
}

impl<const R: usize, const V: usize> SimdJob for Tile<R, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Tile { factors, c, c_row, add } = self;
        let Factors { a, a_row, a_step, b, b_step, terms } = factors;
        // SAFETY: the caller of `product` promises the elements.
        unsafe {
            let mut sums = [[s.splat(0.0); V]; R];
            if add {
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = s.load(c.add(r * c_row + v * S::LANES));
                    }
                }
            }
            for t in 0..terms {
                let b = b.add(t * b_step);
                let lanes: [S::F; V] = std::array::from_fn(|v| s.load(b.add(v * S::LANES)));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = s.splat(*a.add(r * a_row + t * a_step));
                    for (sum, &lanes) in sums.iter_mut().zip(&lanes) {
                        *sum = s.mul_add(x, lanes, *sum);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (v, &sum) in sums.iter().enumerate() {
                    s.store(c.add(r * c_row + v * S::LANES), sum);
                }
            }
        }
    }
}
