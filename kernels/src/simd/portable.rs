//! [`Simd`] in plain Rust: arrays of eight f32, which the compiler vectorizes with what the build
//! target guarantees. `mul_add` rounds twice: a fused one without the instruction is a slow call.

use half::{bf16, f16};

use super::{Simd, SimdJob};

/// The token of the portable path; anyone may make it.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

/// Runs `job` with the build target's instructions.
#[inline(never)]
pub(super) fn run<J: SimdJob>(job: J) -> J::Output {
    job.run(Portable)
}

const LANES: usize = 8;
type F = [f32; LANES];

#[inline(always)]
fn map(a: F, f: impl Fn(f32) -> f32) -> F {
    std::array::from_fn(|lane| f(a[lane]))
}

#[inline(always)]
fn zip(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    std::array::from_fn(|lane| f(a[lane], b[lane]))
}

#[inline(always)]
fn zip_bits(a: F, b: F, f: impl Fn(u32, u32) -> u32) -> F {
    zip(a, b, |x, y| f32::from_bits(f(x.to_bits(), y.to_bits())))
}

#[inline(always)]
fn compare(a: F, b: F, f: impl Fn(&f32, &f32) -> bool) -> [bool; LANES] {
    std::array::from_fn(|lane| f(&a[lane], &b[lane]))
}

impl Simd for Portable {
    const LANES: usize = LANES;
    const FUSED: bool = false;
    // Sixteen 128-bit registers, two for each value.
    const REGISTERS: usize = 8;
    type F = F;
    type M = [bool; LANES];

    #[inline]
    fn outline<J: SimdJob>(self, job: J) -> J::Output {
        run(job)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> F {
        // SAFETY: the caller promises LANES readable values.
        unsafe { p.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> F {
        let mut v = [0.0; LANES];
        for (lane, x) in v.iter_mut().enumerate().take(n) {
            // SAFETY: the caller promises n readable values.
            *x = unsafe { *p.add(lane) };
        }
        v
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: F) {
        // SAFETY: the caller promises LANES writable values.
        unsafe { p.cast::<F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: F, n: usize) {
        for (lane, &x) in v.iter().enumerate().take(n) {
            // SAFETY: the caller promises n writable values.
            unsafe { *p.add(lane) = x };
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> F {
        // SAFETY: the caller promises LANES readable values.
        let v = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        std::array::from_fn(|lane| f32::from_bits(u32::from(v[lane]) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: F) {
        let bits: [u16; LANES] = std::array::from_fn(|lane| bf16::from_f32(v[lane]).to_bits());
        // SAFETY: the caller promises LANES writable values.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> F {
        // SAFETY: the caller promises LANES readable values.
        let v = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        std::array::from_fn(|lane| f16::from_bits(v[lane]).to_f32_const())
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: F) {
        let bits: [u16; LANES] = std::array::from_fn(|lane| f16::from_f32_const(v[lane]).to_bits());
        // SAFETY: the caller promises LANES writable values.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(bits) }
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        zip(a, b, |x, y| x + y)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        zip(a, b, |x, y| x - y)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        zip(a, b, |x, y| x * y)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        zip(a, b, |x, y| x / y)
    }
    #[inline(always)]
    fn mul_add(self, a: F, b: F, c: F) -> F {
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }
    #[inline(always)]
    fn neg_mul_add(self, a: F, b: F, c: F) -> F {
        std::array::from_fn(|lane| c[lane] - a[lane] * b[lane])
    }
    #[inline(always)]
    fn swap_neighbors(self, a: F) -> F {
        std::array::from_fn(|lane| a[lane ^ 1])
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        zip(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn sqrt(self, a: F) -> F {
        map(a, f32::sqrt)
    }

    #[inline(always)]
    fn lt(self, a: F, b: F) -> Self::M {
        compare(a, b, f32::lt)
    }
    #[inline(always)]
    fn le(self, a: F, b: F) -> Self::M {
        compare(a, b, f32::le)
    }
    #[inline(always)]
    fn eq(self, a: F, b: F) -> Self::M {
        compare(a, b, f32::eq)
    }
    #[inline(always)]
    fn ne(self, a: F, b: F) -> Self::M {
        compare(a, b, f32::ne)
    }
    #[inline(always)]
    fn select(self, m: Self::M, a: F, b: F) -> F {
        std::array::from_fn(|lane| if m[lane] { a[lane] } else { b[lane] })
    }
    #[inline(always)]
    fn any(self, m: Self::M) -> bool {
        m.iter().fold(false, |any, &x| any | x)
    }

    #[inline(always)]
    fn and(self, a: F, b: F) -> F {
        zip_bits(a, b, |x, y| x & y)
    }
    #[inline(always)]
    fn or(self, a: F, b: F) -> F {
        zip_bits(a, b, |x, y| x | y)
    }
    #[inline(always)]
    fn xor(self, a: F, b: F) -> F {
        zip_bits(a, b, |x, y| x ^ y)
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: F) -> F {
        map(a, |x| f32::from_bits(x.to_bits() << N))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: F) -> F {
        map(a, |x| f32::from_bits(x.to_bits() >> N))
    }
    #[inline(always)]
    fn add_bits(self, a: F, b: F) -> F {
        zip_bits(a, b, u32::wrapping_add)
    }
    #[inline(always)]
    fn bits_to_f32(self, a: F) -> F {
        map(a, |x| x.to_bits().cast_signed() as f32)
    }

    #[inline(always)]
    fn first(self, a: F) -> f32 {
        a[0]
    }
    #[inline(always)]
    fn reduce_add(self, a: F) -> f32 {
        let b: [f32; 4] = std::array::from_fn(|lane| a[lane] + a[lane + 4]);
        (b[0] + b[2]) + (b[1] + b[3])
    }
    #[inline(always)]
    fn reduce_max(self, a: F) -> f32 {
        a.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max })
    }
}
