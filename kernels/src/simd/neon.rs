//! [`Simd`] with ASIMD: four lanes.

use std::arch::aarch64::*;

use half::f16;

use super::{Simd, SimdJob};

/// The token of the NEON path; only [`super::dispatch`] makes it.
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

/// Runs `job`; every aarch64 has the features.
#[inline(never)]
pub(super) fn run<J: SimdJob>(job: J) -> J::Output {
    job.run(Neon(()))
}

const LANES: usize = 4;

#[inline(always)]
fn bits(a: float32x4_t) -> uint32x4_t {
    // SAFETY: every aarch64 has NEON; no memory is touched.
    unsafe { vreinterpretq_u32_f32(a) }
}

#[inline(always)]
fn float(a: uint32x4_t) -> float32x4_t {
    // SAFETY: every aarch64 has NEON; no memory is touched.
    unsafe { vreinterpretq_f32_u32(a) }
}

/// A call of an intrinsic that touches no memory.
macro_rules! op {
    ($($call:tt)*) => {{
        #[allow(unused_unsafe, reason = "some intrinsics are safe where NEON is always enabled")]
        // SAFETY: every aarch64 has NEON; no memory is touched.
        unsafe { $($call)* }
    }};
}

impl Simd for Neon {
    const LANES: usize = LANES;
    const FUSED: bool = true;
    const REGISTERS: usize = 32;
    type F = float32x4_t;
    type M = uint32x4_t;

    #[inline]
    fn outline<J: SimdJob>(self, job: J) -> J::Output {
        run(job)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        op!(vdupq_n_f32(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> float32x4_t {
        // SAFETY: the caller promises LANES readable values.
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> float32x4_t {
        let mut buffer = [0f32; LANES];
        // SAFETY: the caller promises n <= LANES readable values.
        unsafe {
            std::ptr::copy_nonoverlapping(p, buffer.as_mut_ptr(), n);
            vld1q_f32(buffer.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: float32x4_t) {
        // SAFETY: the caller promises LANES writable values.
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: float32x4_t, n: usize) {
        let mut buffer = [0f32; LANES];
        // SAFETY: the caller promises n <= LANES writable values.
        unsafe {
            vst1q_f32(buffer.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(buffer.as_ptr(), p, n);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> float32x4_t {
        // SAFETY: the caller promises LANES readable values.
        unsafe { float(vshll_n_u16::<16>(vld1_u16(p))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: float32x4_t) {
        // SAFETY: the caller promises LANES writable values.
        unsafe { vst1_u16(p, vshrn_n_u32::<16>(bits(self.round_bf16(v)))) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> float32x4_t {
        // SAFETY: the caller promises LANES readable values.
        unsafe {
            let v = p.cast::<[u16; LANES]>().read_unaligned();
            let wide: [f32; LANES] = std::array::from_fn(|lane| f16::from_bits(v[lane]).to_f32());
            vld1q_f32(wide.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: float32x4_t) {
        let mut wide = [0f32; LANES];
        // SAFETY: the caller promises LANES writable values.
        unsafe {
            vst1q_f32(wide.as_mut_ptr(), v);
            let narrow: [u16; LANES] =
                std::array::from_fn(|lane| f16::from_f32(wide[lane]).to_bits());
            p.cast::<[u16; LANES]>().write_unaligned(narrow);
        }
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        op!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn neg_mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        op!(vfmsq_f32(c, a, b))
    }
    #[inline(always)]
    fn swap_neighbors(self, a: float32x4_t) -> float32x4_t {
        op!(vrev64q_f32(a))
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vbslq_f32(vcltq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vbslq_f32(vcgtq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: float32x4_t) -> float32x4_t {
        op!(vsqrtq_f32(a))
    }

    #[inline(always)]
    fn lt(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        op!(vcltq_f32(a, b))
    }
    #[inline(always)]
    fn le(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        op!(vcleq_f32(a, b))
    }
    #[inline(always)]
    fn eq(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        op!(vceqq_f32(a, b))
    }
    #[inline(always)]
    fn ne(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        op!(vmvnq_u32(vceqq_f32(a, b)))
    }
    #[inline(always)]
    fn select(self, m: uint32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vbslq_f32(m, a, b))
    }
    #[inline(always)]
    fn any(self, m: uint32x4_t) -> bool {
        op!(vmaxvq_u32(m) != 0)
    }

    #[inline(always)]
    fn and(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        float(op!(vandq_u32(bits(a), bits(b))))
    }
    #[inline(always)]
    fn or(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        float(op!(vorrq_u32(bits(a), bits(b))))
    }
    #[inline(always)]
    fn xor(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        float(op!(veorq_u32(bits(a), bits(b))))
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: float32x4_t) -> float32x4_t {
        float(op!(vshlq_u32(bits(a), vdupq_n_s32(N.cast_signed()))))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: float32x4_t) -> float32x4_t {
        float(op!(vshlq_u32(bits(a), vdupq_n_s32(-N.cast_signed()))))
    }
    #[inline(always)]
    fn add_bits(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        float(op!(vaddq_u32(bits(a), bits(b))))
    }
    #[inline(always)]
    fn bits_to_f32(self, a: float32x4_t) -> float32x4_t {
        op!(vcvtq_f32_s32(vreinterpretq_s32_f32(a)))
    }

    #[inline(always)]
    fn first(self, a: float32x4_t) -> f32 {
        op!(vgetq_lane_f32::<0>(a))
    }
    #[inline(always)]
    fn reduce_add(self, a: float32x4_t) -> f32 {
        op!({
            let b = vadd_f32(vget_low_f32(a), vget_high_f32(a));
            vget_lane_f32::<0>(b) + vget_lane_f32::<1>(b)
        })
    }
    #[inline(always)]
    fn reduce_max(self, a: float32x4_t) -> f32 {
        op!(vmaxvq_f32(a))
    }
}
