//! [`Simd`] with AVX2, FMA and F16C: eight lanes, masks as vectors.

use std::arch::x86_64::*;

use super::{Simd, SimdJob};

/// The token of the AVX2 path; only [`super::dispatch`] makes it.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

/// Runs `job` with the features of [`crate::isa::Kind::Avx2`].
///
/// # Safety
/// The CPU has them.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<J: SimdJob>(job: J) -> J::Output {
    job.run(Avx2(()))
}

const LANES: usize = 8;

/// Sum of eight lanes, halves added pairwise.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
pub(super) unsafe fn sum(a: __m256) -> f32 {
    // SAFETY: the caller promises AVX; no memory is touched.
    unsafe {
        let b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let c = _mm_add_ps(b, _mm_movehl_ps(b, b));
        _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)))
    }
}

/// All bits of the first `n` lanes.
#[inline(always)]
fn prefix_mask(n: usize) -> __m256i {
    debug_assert!(n <= LANES);
    const BITS: [i32; 2 * LANES] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: LANES - n + LANES <= 2 * LANES values are read; only called under AVX2.
    unsafe { _mm256_loadu_si256(BITS.as_ptr().add(LANES - n).cast()) }
}

/// A call of an intrinsic that touches no memory.
macro_rules! op {
    ($($call:tt)*) => {
        // SAFETY: the token exists, so the CPU has the features; no memory is touched.
        unsafe { $($call)* }
    };
}

impl Simd for Avx2 {
    const LANES: usize = LANES;
    const FUSED: bool = true;
    const REGISTERS: usize = 16;
    type F = __m256;
    type M = __m256;

    #[inline]
    fn outline<J: SimdJob>(self, job: J) -> J::Output {
        // SAFETY: the token exists, so the CPU has the features.
        unsafe { run(job) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        op!(_mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: the caller promises LANES readable values.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> __m256 {
        // SAFETY: the mask covers the n values the caller promises.
        unsafe { _mm256_maskload_ps(p, prefix_mask(n)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        // SAFETY: the caller promises LANES writable values.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: __m256, n: usize) {
        // SAFETY: the mask covers the n values the caller promises.
        unsafe { _mm256_maskstore_ps(p, prefix_mask(n), v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m256 {
        // SAFETY: the caller promises LANES readable values.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: __m256) {
        // SAFETY: the caller promises LANES writable values.
        unsafe {
            let bits = _mm256_srli_epi32::<16>(_mm256_castps_si256(self.round_bf16(v)));
            // Packing works within 128-bit halves: bring the two useful quarters together.
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(bits, bits));
            _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m256 {
        // SAFETY: the caller promises LANES readable values.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: __m256) {
        // SAFETY: the caller promises LANES writable values.
        unsafe {
            let bits = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            _mm_storeu_si128(p.cast(), bits);
        }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        op!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn neg_mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        op!(_mm256_fnmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn swap_neighbors(self, a: __m256) -> __m256 {
        op!(_mm256_permute_ps::<0b10_11_00_01>(a))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        op!(_mm256_sqrt_ps(a))
    }

    #[inline(always)]
    fn lt(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    fn le(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_cmp_ps::<_CMP_LE_OQ>(a, b))
    }
    #[inline(always)]
    fn eq(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_cmp_ps::<_CMP_EQ_OQ>(a, b))
    }
    #[inline(always)]
    fn ne(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_cmp_ps::<_CMP_NEQ_UQ>(a, b))
    }
    #[inline(always)]
    fn select(self, m: __m256, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_blendv_ps(b, a, m))
    }
    #[inline(always)]
    fn any(self, m: __m256) -> bool {
        op!(_mm256_movemask_ps(m) != 0)
    }

    #[inline(always)]
    fn and(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_and_ps(a, b))
    }
    #[inline(always)]
    fn or(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_or_ps(a, b))
    }
    #[inline(always)]
    fn xor(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_xor_ps(a, b))
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: __m256) -> __m256 {
        // The count must be a constant of another type than N: a register of it folds as well.
        op!(_mm256_castsi256_ps(_mm256_sllv_epi32(
            _mm256_castps_si256(a),
            _mm256_set1_epi32(N.cast_signed())
        )))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: __m256) -> __m256 {
        op!(_mm256_castsi256_ps(_mm256_srlv_epi32(
            _mm256_castps_si256(a),
            _mm256_set1_epi32(N.cast_signed())
        )))
    }
    #[inline(always)]
    fn add_bits(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b))))
    }
    #[inline(always)]
    fn bits_to_f32(self, a: __m256) -> __m256 {
        op!(_mm256_cvtepi32_ps(_mm256_castps_si256(a)))
    }

    #[inline(always)]
    fn first(self, a: __m256) -> f32 {
        op!(_mm256_cvtss_f32(a))
    }
    #[inline(always)]
    fn reduce_add(self, a: __m256) -> f32 {
        op!(sum(a))
    }
    #[inline(always)]
    fn reduce_max(self, a: __m256) -> f32 {
        op!({
            let b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let c = _mm_max_ps(b, _mm_movehl_ps(b, b));
            _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)))
        })
    }
}
