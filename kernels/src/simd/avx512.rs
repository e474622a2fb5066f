//! [`Simd`] with AVX-512: sixteen lanes, masks in mask registers.

use std::arch::x86_64::*;

use crate::isa::Bf16Dot;

use super::{Simd, SimdJob};

/// The token of the AVX-512 path; only [`super::dispatch`] makes it.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

/// Runs `job` with the features of [`crate::isa::Kind::Avx512`].
///
/// # Safety
/// The CPU has them.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn run<J: SimdJob>(job: J) -> J::Output {
    job.run(Avx512(()))
}

/// Runs `job` with the features of [`crate::isa::Kind::Avx512Bf16`].
///
/// # Safety
/// The CPU has them.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
unsafe fn run_bf16<J: SimdJob>(job: J) -> J::Output {
    job.run(Avx512(()))
}

const LANES: usize = 16;

/// Takes the halves of a register of 16-bit elements in turns.
const INTERLEAVED: [u16; 2 * LANES] = {
    let mut index = [0; 2 * LANES];
    let mut i = 0;
    while i < 2 * LANES {
        index[i] = (i / 2 + i % 2 * LANES) as u16;
        i += 1;
    }
    index
};

#[inline(always)]
fn prefix_mask(n: usize) -> u16 {
    debug_assert!(n <= LANES);
    ((1u32 << n) - 1) as u16
}

/// A call of an intrinsic that touches no memory.
macro_rules! op {
    ($($call:tt)*) => {
        // SAFETY: the token exists, so the CPU has the features; no memory is touched.
        unsafe { $($call)* }
    };
}

impl Simd for Avx512 {
    const LANES: usize = LANES;
    const FUSED: bool = true;
    const REGISTERS: usize = 32;
    type F = __m512;
    type M = __mmask16;

    #[inline]
    fn outline<J: SimdJob>(self, job: J) -> J::Output {
        // SAFETY: the token exists, so the CPU has the features.
        unsafe { run(job) }
    }

    #[inline]
    fn outline_bf16<J: SimdJob>(self, _: Bf16Dot, job: J) -> J::Output {
        // SAFETY: the token and the proof exist, so the CPU has the features.
        unsafe { run_bf16(job) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the caller promises LANES readable values.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> __m512 {
        // SAFETY: the mask covers the n values the caller promises.
        unsafe { _mm512_maskz_loadu_ps(prefix_mask(n), p) }
    }
    #[inline(always)]
    unsafe fn load_alternate(self, p: *const f32) -> __m512 {
        // SAFETY: the caller promises 2 LANES - 1 readable values, and the mask leaves out the one behind them.
        unsafe {
            let even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
            let high = _mm512_maskz_loadu_ps(prefix_mask(LANES - 1), p.add(LANES));
            _mm512_permutex2var_ps(_mm512_loadu_ps(p), even, high)
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: the caller promises LANES writable values.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: __m512, n: usize) {
        // SAFETY: the mask covers the n values the caller promises.
        unsafe { _mm512_mask_storeu_ps(p, prefix_mask(n), v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m512 {
        // SAFETY: the caller promises LANES readable values.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: __m512) {
        let bits = op!(_mm512_srli_epi32::<16>(_mm512_castps_si512(self.round_bf16(v))));
        // SAFETY: the caller promises LANES writable values.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(bits)) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m512 {
        // SAFETY: the caller promises LANES readable values.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: __m512) {
        // SAFETY: the caller promises LANES writable values.
        unsafe {
            let bits = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v);
            _mm256_storeu_si256(p.cast(), bits);
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn neg_mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fnmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn dot_bf16(self, _: Bf16Dot, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the proof exists, so the CPU has the instruction; both types are 64 plain bytes.
        unsafe {
            let pairs = |x: __m512| std::mem::transmute::<__m512, __m512bh>(x);
            _mm512_dpbf16_ps(c, pairs(a), pairs(b))
        }
    }
    #[inline(always)]
    fn narrow_pair(self, _: Bf16Dot, low: __m512, high: __m512) -> __m512 {
        // SAFETY: the proof exists, so the CPU has the instruction; both types are 64 plain bytes.
        unsafe {
            let halves = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            let index = std::mem::transmute::<[u16; 2 * LANES], __m512i>(INTERLEAVED);
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(index, halves))
        }
    }
    #[inline(always)]
    fn dot_i16(self, _: Bf16Dot, a: __m512, b: __m512, c: __m512) -> __m512 {
        let bits = |x: __m512| op!(_mm512_castps_si512(x));
        // The proof exists, so the CPU has the instruction.
        op!(_mm512_castsi512_ps(_mm512_dpwssd_epi32(bits(c), bits(a), bits(b))))
    }
    #[inline(always)]
    fn pair_i16(self, _: Bf16Dot, low: __m512, high: __m512) -> __m512 {
        op!({
            let (low, high) = (_mm512_cvtps_epi32(low), _mm512_cvtps_epi32(high));
            let high = _mm512_slli_epi32::<16>(high);
            _mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaa_aaaa, low, high))
        })
    }
    #[inline(always)]
    unsafe fn store_i16(self, _: Bf16Dot, p: *mut i16, v: __m512) {
        // SAFETY: the caller promises LANES writable values.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    unsafe fn store_narrow_n(self, _: Bf16Dot, p: *mut u16, v: __m512, n: usize) {
        // SAFETY: the proof exists, so the CPU has the instruction; both types are 32 plain bytes; the
        // mask covers the n values the caller promises.
        unsafe {
            let halves = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v));
            if n == LANES {
                _mm256_storeu_si256(p.cast(), halves);
            } else {
                _mm256_mask_storeu_epi16(p.cast(), prefix_mask(n), halves);
            }
        }
    }
    #[inline(always)]
    fn swap_neighbors(self, a: __m512) -> __m512 {
        op!(_mm512_permute_ps::<0b10_11_00_01>(a))
    }
    #[inline(always)]
    unsafe fn transpose_square(
        self,
        from: *const f32,
        from_row: usize,
        to: *mut f32,
        to_row: usize,
    ) {
        // SAFETY: the caller promises LANES rows of LANES elements on both sides.
        unsafe {
            // Not `from_fn`, which is not always inlined: each load would be a call.
            let mut rows = [_mm512_setzero_ps(); LANES];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = self.load(from.add(i * from_row));
            }
            // Within quarters of 128 bits first: columns of four rows, as in a block of 4 x 4.
            let mut quarters = [self.splat(0.0); LANES];
            for i in (0..LANES).step_by(4) {
                let (a, b, c, d) = (rows[i], rows[i + 1], rows[i + 2], rows[i + 3]);
                let pd = |x: __m512| _mm512_castps_pd(x);
                let (ab_low, ab_high) =
                    (pd(_mm512_unpacklo_ps(a, b)), pd(_mm512_unpackhi_ps(a, b)));
                let (cd_low, cd_high) =
                    (pd(_mm512_unpacklo_ps(c, d)), pd(_mm512_unpackhi_ps(c, d)));
                quarters[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
                quarters[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
                quarters[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
                quarters[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
            }
            // Then the quarters themselves: quarter q of vector 4 r + j is part r of row 4 q + j.
            for j in 0..4 {
                let (a, b) = (quarters[j], quarters[4 + j]);
                let (c, d) = (quarters[8 + j], quarters[12 + j]);
                let ab_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                let ab_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
                let cd_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
                let cd_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
                let row = |q: usize| to.add((4 * q + j) * to_row);
                self.store(row(0), _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_even, cd_even));
                self.store(row(1), _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_odd, cd_odd));
                self.store(row(2), _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_even, cd_even));
                self.store(row(3), _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_odd, cd_odd));
            }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_n(self, p: *const u16, n: usize) -> __m512 {
        // SAFETY: the mask covers the n values the caller promises.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(prefix_mask(n), p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16_n(self, p: *mut u16, v: __m512, n: usize) {
        let bits = op!(_mm512_srli_epi32::<16>(_mm512_castps_si512(self.round_bf16(v))));
        // SAFETY: the mask covers the n values the caller promises.
        unsafe {
            _mm256_mask_storeu_epi16(p.cast(), prefix_mask(n), _mm512_cvtepi32_epi16(bits));
        }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        op!(_mm512_sqrt_ps(a))
    }

    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        op!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    fn le(self, a: __m512, b: __m512) -> __mmask16 {
        op!(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b))
    }
    #[inline(always)]
    fn eq(self, a: __m512, b: __m512) -> __mmask16 {
        op!(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b))
    }
    #[inline(always)]
    fn ne(self, a: __m512, b: __m512) -> __mmask16 {
        op!(_mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(a, b))
    }
    #[inline(always)]
    fn select(self, m: __mmask16, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mask_blend_ps(m, b, a))
    }
    #[inline(always)]
    fn any(self, m: __mmask16) -> bool {
        m != 0
    }

    #[inline(always)]
    fn and(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_and_ps(a, b))
    }
    #[inline(always)]
    fn or(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_or_ps(a, b))
    }
    #[inline(always)]
    fn xor(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_xor_ps(a, b))
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: __m512) -> __m512 {
        op!(_mm512_castsi512_ps(_mm512_slli_epi32::<N>(_mm512_castps_si512(a))))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: __m512) -> __m512 {
        op!(_mm512_castsi512_ps(_mm512_srli_epi32::<N>(_mm512_castps_si512(a))))
    }
    #[inline(always)]
    fn add_bits(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b))))
    }
    #[inline(always)]
    fn bits_to_f32(self, a: __m512) -> __m512 {
        op!(_mm512_cvtepi32_ps(_mm512_castps_si512(a)))
    }

    #[inline(always)]
    fn first(self, a: __m512) -> f32 {
        op!(_mm512_cvtss_f32(a))
    }
    #[inline(always)]
    fn reduce_add(self, a: __m512) -> f32 {
        op!({
            let high = _mm512_extractf32x8_ps::<1>(a);
            super::avx2::sum(_mm256_add_ps(_mm512_castps512_ps256(a), high))
        })
    }
    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        op!(_mm512_reduce_max_ps(a))
    }
}
